"""Folders of diffusers and transformers: configurations, and networks whose tensors are all filled.

Other libraries read these files without checking them, and fail on damaged ones with errors of any type. So a
configuration is compared with what its class declares before the class reads it, and `as_input_error` surrounds their
functions, and nothing of ours.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
import types
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import torch
from accelerate import init_empty_weights
from pydantic import BaseModel, ValidationError
from torch import nn

from kineograph.errors import InputError, InputWarning, load_json, shown
from kineograph.models.formats.tensor_files import as_input_error, check_safetensors, preview_names

# with the numbers of a shard before the variant, as older versions of diffusers wrote them, or after it
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?(?:\.([\w-]+?))?(?:-\d+-of-\d+)?"
    r"\.(?:safetensors|bin)"
)
CONFIG = "config.json"
MAX_SETTING = 1_000_000  # of sizes and numbers of things in a configuration
MAX_LAYERS = 100  # of a block; a network of more would take minutes to build
PLAIN = ""  # the variant of files without one in their names
PREFERRED = "fp16"
# tensors that files have beside those of a network: tables, and layers of the whole CLIP model
UNUSED = re.compile(r".*position_ids|(?:.*\.)?logit_scale|\w+_projection\..*")
OTHER_ENCODER = {"CLIPTextModel": "vision_model.", "CLIPVisionModel": "text_model."}

Network = TypeVar("Network", bound=nn.Module)
Record = TypeVar("Record", bound=BaseModel)
Config = Mapping[str, Any]


def read_json(file: Path) -> Config:
    """Return the settings in a JSON file. Raises InputError if the file is damaged or missing, or no mapping."""
    try:
        content = load_json(file)
    except (OSError, InputError) as error:
        raise InputError(f"{file} is missing or damaged ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is damaged: expected settings by name, got {shown(content)}. Fetch it again")
    return content


def read_record(kind: type[Record], file: Path) -> Record:
    """Return the record of ours in a JSON file. Raises InputError if the file is damaged or missing."""
    return validated(kind, read_json(file), str(file))


def validated(kind: type[Record], content: object, what: str) -> Record:
    """Return a record of ours with these values. what: their source, for messages. Raises InputError."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise InputError(f"{what} is damaged, or from a newer Kineograph: {place}: {first['msg']}") from error


def read_config(folder: Path, *kinds: type[Any]) -> Config:
    """Return the configuration in a network's folder. Raises InputError if it is none of these classes, or damaged."""
    config = read_json(folder / CONFIG)
    check_config(config, kinds, folder / CONFIG)
    return config


def check_config(config: Config, kinds: Iterable[type[Any]], file: Path) -> None:
    """Raise InputError unless the settings of a configuration have the types that one of the classes declares.

    kinds: classes of diffusers or transformers. file: of the configuration, for messages.
    """
    declared = [_declared_settings(kind) for kind in kinds]
    for name, value in config.items():
        types_ = [settings[name] for settings in declared if name in settings]
        if types_ and not any(_is_of_type(value, each) for each in types_):
            expected = " or ".join(dict.fromkeys(_type_name(each) for each in types_))
            raise InputError(f"{file} is damaged: expected {name} to be {expected}, got {shown(value)}. Fetch it again")
        if types_ and (reason := _excess(name, value)):
            raise InputError(f"{file} is damaged: {name} is {shown(value)}, {reason}. Fetch it again")


@cache
def _declared_settings(kind: Any) -> dict[str, Any]:
    """Return the type of each setting that a class of diffusers or transformers declares."""
    kind = getattr(kind, "config_class", None) or kind
    if dataclasses.is_dataclass(kind):
        found = {each.name: (each.type, each.default) for each in dataclasses.fields(kind)}
    else:
        parameters = inspect.signature(kind.__init__).parameters
        found = {name: (each.annotation, each.default) for name, each in parameters.items()}
    return {
        name: Union[type_, None] if default is None else type_  # noqa: UP007 (| fails on some annotations)
        for name, (type_, default) in found.items()
        if not isinstance(type_, str) and type_ is not inspect.Parameter.empty
    }


def _is_of_type(value: object, type_: Any) -> bool:
    """Return True if a value of JSON has a declared type. A tuple may have any length; null may stand for False."""
    origin = get_origin(type_)
    if origin in (Union, types.UnionType):
        return any(_is_of_type(value, each) for each in get_args(type_))
    if type_ in (tuple, list) or origin in (tuple, list) or type_.__module__ == "numpy":
        inner = [each for each in get_args(type_) if each is not ...] or [int, float, str]
        return isinstance(value, list) and all(any(_is_of_type(each, one) for one in inner) for each in value)
    if type_ is bool:
        return isinstance(value, bool | None)
    if type_ in (int, float):
        return isinstance(value, int if type_ is int else int | float) and not isinstance(value, bool)
    if type_ is str:
        return isinstance(value, str)
    if type_ in (None, types.NoneType):
        return value is None
    return True  # of types that no network here reads


def _excess(name: str, value: object) -> str:
    """Return what is wrong with the size of a value, "" if it can be."""
    if isinstance(value, list):
        if len(value) > MAX_LAYERS and not isinstance(value[0], float):
            return f"which has more than {MAX_LAYERS} values"
        return next(filter(None, (_excess(name, each) for each in value)), "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, int) and not name.endswith("token_id") and value < 0:
        return "which is negative"
    most = MAX_LAYERS if "layers" in name or "blocks" in name else MAX_SETTING
    return f"which is more than {most}" if not abs(value) <= most else ""


def _type_name(type_: Any) -> str:
    return type_.__name__ if isinstance(type_, type) else str(type_).replace("typing.", "").replace("NoneType", "null")


def list_variants(folder: Path) -> set[str]:
    """Return the variants of the weights in a network's folder, `PLAIN` for files that name none."""
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return {match[1] or PLAIN for match in map(WEIGHTS.fullmatch, names) if match}


def choose_variant(folder: Path, variant: str | None) -> str | None:
    """Return the variant to read of a network's folder: the given one or, if it has other files only, theirs.

    Raises InputError if the files are of several variants and none of them was given.
    """
    found = list_variants(folder)
    if not found or (variant or PLAIN) in found:
        return variant
    if PLAIN in found:
        return None
    if variant is None and (PREFERRED in found or len(found) == 1):
        return PREFERRED if PREFERRED in found else next(iter(found))
    names = " or ".join(sorted(found))
    raise InputError(f"{folder} has weights of {names} only: expected `variant` to be one of them, got {variant}")


def read_network(
    kind: type[Network], folder: Path, *, dtype: torch.dtype | None = None, variant: str | None = None
) -> Network:
    """Return the network in a folder, for evaluation. dtype: the library's default unless given.

    Warns of tensors that the network does not have. Raises InputError if tensors are missing, which the libraries would
    replace by random ones.
    """
    read_config(folder, kind)
    untyped: Any = kind
    options: dict[str, Any] = {"variant": choose_variant(folder, variant), "local_files_only": True}
    options |= {} if dtype is None else {"dtype": dtype}
    for file in folder.glob("*.safetensors"):
        check_safetensors(file)
    with as_input_error(f"{folder} is incomplete or damaged, or no {kind.__name__}"):
        try:
            network, found = untyped.from_pretrained(folder, output_loading_info=True, **options)
        except (OSError, pickle.UnpicklingError) as error:
            if _is_of_unpickling(error):
                raise InputError(
                    f"{folder} has pickled weights that want to run code, so they are not opened: use a .safetensors "
                    "version of them, or convert them on a machine you can afford to lose"
                ) from error
            raise
    if missing := found["missing_keys"]:
        raise InputError(
            f"{folder} has no weights for {preview_names(sorted(missing))}: it is incomplete, or made for other "
            "versions of diffusers and transformers. Fetch it again"
        )
    other = next((prefix for name, prefix in OTHER_ENCODER.items() if kind.__name__.startswith(name)), " ")
    unexpected = sorted(name for name in found["unexpected_keys"] if not name.startswith(other))
    if unused := [name for name in unexpected if not UNUSED.fullmatch(name)]:
        warnings.warn(
            f"{folder} has {len(unused)} tensors that its configuration does not know and that are left out: "
            f"{preview_names(unused)}",
            InputWarning,
            stacklevel=2,
        )
    return network.eval()


def empty_network(kind: type[Network], config: Config, what: str) -> Network:
    """Return a network of diffusers on the meta device. what: the files of the configuration, for the error."""
    untyped: Any = kind
    with as_input_error(f"{what} is no {kind.__name__}, or damaged"), init_empty_weights(include_buffers=False):
        return untyped.from_config(config)


def empty_transformer(kind: type[Network], folder: Path) -> Network:
    """Return a network of transformers on the meta device, with the configuration in a folder."""
    read_config(folder, kind)
    untyped: Any = kind
    with as_input_error(f"{folder} is no {kind.__name__}, or damaged"), init_empty_weights(include_buffers=False):
        return untyped(untyped.config_class.from_pretrained(folder))


def _is_of_unpickling(error: BaseException | None) -> bool:
    """Return True for an error of unpickling, or one that was raised while it was handled."""
    while error is not None and not isinstance(error, pickle.UnpicklingError):
        error = error.__cause__ or error.__context__
    return error is not None
