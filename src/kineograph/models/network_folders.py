"""Networks in folders of diffusers and transformers: variants, shards, and a check that every tensor is filled."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from kineograph.errors import InputError, InputWarning
from kineograph.models.formats.tensor_files import preview_names

# with the numbers of a shard before the variant, as older versions of diffusers wrote them, or after it
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?(?:\.([\w-]+?))?(?:-\d+-of-\d+)?"
    r"\.(?:safetensors|bin)"
)
READ_ERRORS = (OSError, SafetensorError, ValueError, RuntimeError, KeyError)
PLAIN = ""  # the variant of files without one in their names
PREFERRED = "fp16"
# tensors that files have beside those of a network: tables, and layers of the whole CLIP model
UNUSED = re.compile(r".*position_ids|(?:.*\.)?logit_scale|\w+_projection\..*")
OTHER_ENCODER = {"CLIPTextModel": "vision_model.", "CLIPVisionModel": "text_model."}

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turn errors of reading a network's files into an InputError. what: the files, and what they are not."""
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(f"{what}: {error}") from error


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
    untyped: Any = kind
    options: dict[str, Any] = {"variant": choose_variant(folder, variant), "local_files_only": True}
    options |= {} if dtype is None else {"dtype": dtype}
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


def _is_of_unpickling(error: BaseException | None) -> bool:
    """Return True for an error of unpickling, or one that was raised while it was handled."""
    while error is not None and not isinstance(error, pickle.UnpicklingError):
        error = error.__cause__ or error.__context__
    return error is not None
