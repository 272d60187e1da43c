"""Folders of diffusers and transformers: configurations, and networks whose tensors are all filled.

Other libraries read these files without checking them, and fail on damaged ones with errors of any type. So a
configuration is compared with what its class declares before the class reads it, and `as_input_error` surrounds their
functions, and nothing of ours.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import pickle
import re
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from pydantic import BaseModel, ValidationError
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from kineograph.errors import (
    MAX_JSON_BYTES,
    InputError,
    InputWarning,
    check_number,
    check_plain_value,
    in_one_line,
    is_out_of_memory,
    shown,
)
from kineograph.models.formats.tensor_files import Tensors, as_input_error, preview_names, read_header
from kineograph.request import USUAL_GUIDANCE

# with the numbers of a shard before the variant, as older versions of diffusers wrote them, or after it
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?(?:\.([\w-]+?))?(?:-\d+-of-\d+)?"
    r"\.(?:safetensors|bin)"
)
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"  # options of sampling that a model's authors recommend
# lists with a value for each block
BLOCK_SETTINGS = (
    ("block_out_channels", "down_block_types", "up_block_types"),
    ("encoder_block_out_channels", "num_encoder_blocks"),
    ("decoder_block_out_channels", "num_decoder_blocks"),
)
PREFIX_OF_CLIP = re.compile(r"^(?:text|vision)_model\.")  # which only some versions of transformers write
INFINITE = ("lambda_min_clipped",)  # settings of schedulers that may be infinite
JSON_TYPES = {bool, int, float, str, types.NoneType}
MAX_SETTING = 1_000_000  # of sizes and numbers of things in a configuration
MAX_LAYERS = 100  # of a block; a network of more would take minutes to build
# of settings with this in their names
LIMITS = {"layers": MAX_LAYERS, "blocks": MAX_LAYERS, "image_size": 4096, "downscale_factor": 64}
PLAIN = ""  # the variant of files without one in their names
PREFERRED = "fp16"
# tensors that files have beside those of a network: tables, and layers of the whole CLIP model
UNUSED = re.compile(r".*position_ids|(?:.*\.)?logit_scale|\w+_projection\..*")
OTHER_ENCODER = {"CLIPTextModel": "vision_model.", "CLIPVisionModel": "text_model."}

Network = TypeVar("Network", bound=nn.Module)
Record = TypeVar("Record", bound=BaseModel)
Config = Mapping[str, Any]


def read_json(file: Path) -> Config:
    """Return the settings in a JSON file. Raises InputError if the file is damaged or missing, or no mapping.

    Unlike in other JSON, numbers may be infinite, as in the schedulers of diffusers.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        content = json.loads(file.read_bytes())
        check_plain_value(content, str(file))
    except (OSError, ValueError, RecursionError) as error:
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
        problem = f"{in_one_line(place)}: {in_one_line(first['msg'])}"
        raise InputError(f"{what} is damaged, or from a newer Kineograph: {problem}") from error


def read_config(folder: Path, *kinds: type[Any]) -> Config:
    """Return the configuration in a network's folder. Raises InputError if it is none of these classes, or damaged."""
    config = read_json(folder / CONFIG)
    check_config(config, kinds, folder / CONFIG)
    return config


def check_config(config: Config, kinds: Iterable[Any], file: Path) -> None:
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
    end = config.get("eos_token_id", 0)
    if "vocab_size" in config and type(end) is not int:  # of a text encoder, which looks for it in each text
        raise InputError(f"{file} is damaged: expected eos_token_id to be an integer, got {shown(end)}. Fetch it again")


class SettingType(NamedTuple):
    """A declared type: of a value or of the values in a list, whichever of the two it can be."""

    scalars: frozenset[type]
    is_single: bool
    is_list: bool


@cache
def _declared_settings(kind: Any) -> dict[str, SettingType]:
    """Return the type of each setting that a class of diffusers or transformers declares."""
    kind = getattr(kind, "config_class", None) or kind
    if dataclasses.is_dataclass(kind):
        found = {each.name: (each.type, each.default) for each in dataclasses.fields(kind)}
    else:
        parameters = inspect.signature(kind.__init__).parameters
        found = {name: (each.annotation, each.default) for name, each in parameters.items()}
    return {
        name: _setting_type(type_, default)
        for name, (type_, default) in found.items()
        if not isinstance(type_, str) and type_ is not inspect.Parameter.empty
    }


def _setting_type(type_: Any, default: object) -> SettingType:
    """Return the type of a setting. The declarations of lists are not exact: some have numbers beside lists."""
    kind = get_origin(type_) or type_
    parts = [_setting_type(each, default) for each in get_args(type_) if each is not ... and kind is not Literal]
    scalars = frozenset[type]().union(*(each.scalars for each in parts))
    if kind in (Union, types.UnionType):
        is_single, is_list = any(each.is_single for each in parts), any(each.is_list for each in parts)
    elif kind is Literal:
        is_single, is_list, scalars = True, False, frozenset(map(type, get_args(type_)))
    elif kind in (tuple, list, np.ndarray):
        is_single, is_list, scalars = False, True, scalars or frozenset([float])
    else:
        is_single, is_list, scalars = kind is not types.NoneType, False, frozenset([kind])
    # "or None" is declared for some numbers that are calculated with
    if default is None:
        scalars |= {types.NoneType}
    elif isinstance(default, float):
        scalars -= {types.NoneType}
    return SettingType(scalars, is_single, is_list)


def _is_of_type(value: object, type_: SettingType) -> bool:
    """Return True if a value of JSON has a declared type. null may stand for False."""
    if isinstance(value, list):
        inner = type_._replace(is_single=True)
        return type_.is_list and all(_is_of_type(each, inner) for each in value)
    if not type_.scalars <= JSON_TYPES:
        return True  # of a type that no network here reads
    if value is None:
        return not type_.scalars.isdisjoint((bool, types.NoneType))
    known = type(value) in type_.scalars or (type(value) is int and float in type_.scalars)
    return type_.is_single and known


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
    if name == "num_hidden_layers" and value == 0:
        return "a network without layers"
    if math.isinf(value) and name in INFINITE:
        return ""
    most = next((limit for part, limit in LIMITS.items() if part in name), MAX_SETTING)
    return f"which is more than {most}" if not abs(value) <= most else ""


def _type_name(type_: SettingType) -> str:
    names = " or ".join(sorted(each.__name__ for each in type_.scalars)).replace("NoneType", "null")
    return names if not type_.is_list else f"{names}, or a list of them" if type_.is_single else f"a list of {names}"


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
    config = read_config(folder, kind)
    untyped: Any = kind
    options: dict[str, Any] = {"variant": choose_variant(folder, variant), "local_files_only": True}
    options |= {} if dtype is None else {"dtype": dtype}
    headers = {file: read_header(file) for file in sorted(folder.glob("*.safetensors"))}
    if issubclass(kind, PreTrainedModel):
        for file, header in headers.items():
            _check_shapes(empty_transformer(kind, folder), header or {}, file)
    with as_input_error(f"{folder} is incomplete or damaged, or no {kind.__name__}"):
        try:
            network, found = untyped.from_pretrained(folder, output_loading_info=True, **options)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and issubclass(kind, ModelMixin):  # of a size that a damaged file states?
                for file, header in headers.items():
                    _check_shapes(empty_network(kind, config, str(folder)), header or {}, file)
            raise
        except (OSError, pickle.UnpicklingError) as error:
            if _is_of_unpickling(error):
                raise InputError(
                    f"{folder} has pickled weights that want to run code, so they are not opened: use a .safetensors "
                    "version of them, or convert them on a machine you can afford to lose"
                ) from error
            raise
    _check_blocks(network, folder)
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


class _EmptyOnMeta(TorchFunctionMode):
    """Places what `torch.empty` returns on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        placed = {"device": "meta"} if func is torch.empty and (kwargs or {}).get("device") is None else {}
        return func(*args, **{**(kwargs or {}), **placed})


@contextmanager
def empty_weights() -> Iterator[None]:
    """Have networks made inside without memory: weights on the meta device, buffers as they are.

    accelerate's `init_empty_weights` allocates each weight first, of whatever size a damaged file states.
    """
    with init_empty_weights(include_buffers=False), _EmptyOnMeta():
        yield


def empty_network(kind: type[Network], config: Config, what: str) -> Network:
    """Return a network of diffusers on the meta device. what: the files of the configuration, for the error."""
    untyped: Any = kind
    with as_input_error(f"{what} is no {kind.__name__}, or damaged"), empty_weights():
        network = untyped.from_config(config)
    _check_blocks(network, what)
    return network


def _check_blocks(network: nn.Module, what: object) -> None:
    """Raise InputError if lists with a value for each block of a network have different lengths."""
    config: Any = network.config
    for names in BLOCK_SETTINGS if isinstance(config, Mapping) else ():
        lengths = {name: len(config[name]) for name in names if isinstance(config.get(name), list | tuple)}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise InputError(
                f"{what} has a damaged configuration: expected lists of one length, {found}. Fetch it again"
            )


def _check_shapes(network: nn.Module, header: Tensors, file: Path) -> None:
    """Raise InputError if tensors of a file have other shapes than those of a network.

    The libraries find it too, but only after they made tensors of any size in their place.
    """
    expected = {PREFIX_OF_CLIP.sub("", name): each.shape for name, each in network.state_dict().items()}
    other = "text_model." if "Vision" in type(network).__name__ else "vision_model."  # a file of both has both prefixes
    found = {
        name: (each.shape, expected.get(PREFIX_OF_CLIP.sub("", name), each.shape))
        for name, each in header.items()
        if not name.startswith(other)
    }
    if wrong := [name for name, (given, wanted) in found.items() if given != wanted]:
        given, wanted = (" x ".join(map(str, shape)) for shape in found[wrong[0]])
        raise InputError(
            f"{file} does not fit the configuration beside it: {len(wrong)} tensors have other shapes, such as "
            f"{wrong[0]}, {given} and not {wanted}. Fetch both again"
        )


def empty_transformer(kind: type[Network], folder: Path) -> Network:
    """Return a network of transformers on the meta device, with the configuration in a folder."""
    read_config(folder, kind)
    untyped: Any = kind
    with as_input_error(f"{folder} is no {kind.__name__}, or damaged"), empty_weights():
        return untyped(untyped.config_class.from_pretrained(folder))


def _is_of_unpickling(error: BaseException | None) -> bool:
    """Return True for an error of unpickling, or one that was raised while it was handled."""
    while error is not None and not isinstance(error, pickle.UnpicklingError):
        error = error.__cause__ or error.__context__
    return error is not None


def read_generation_config(folder: Path) -> dict[str, float]:
    """Return the options of `USUAL_GUIDANCE` that a folder recommends; empty without a file.

    Other keys are ignored: transformers' models have a file of this name too. Raises InputError for a value that is no
    number.
    """
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return {}
    recommended = {name: value for name, value in read_json(file).items() if name in USUAL_GUIDANCE}
    for name, value in recommended.items():
        check_number(f"`{name}` in {file}", value)
    return recommended
