"""Reading files of tensors that others made: nothing in them is ever run, and what is wrong with one is said."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kineograph.errors import InputError

Tensors = Mapping[str, Tensor]
PICKLED = (b"PK\x03\x04", b"\x80\x02")  # torch's zip archive, and its format before that
WRAPPERS = ("state_dict", "module")  # what a checkpoint from training has its weights under: Lightning's, DeepSpeed's
PREFIXES = ("_forward_module.", "module.")  # what the same, and torch's own parallel training, put before all names
# what is on disk when the real file was never fetched
SUBSTITUTES = {
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` to get the file itself",
    b"<!doctype": "a web page; the download needs a log-in or another address",
    b"<html": "a web page; the download needs a log-in or another address",
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; of a checkpoint from training, its state dict without wrappers' names.

    Raises InputError when the file is damaged, holds code, or holds no tensors.
    """
    content = read_content(path)
    while isinstance(content, dict) and (inside := [each for each in WRAPPERS if isinstance(content.get(each), dict)]):
        content = content[inside[0]]
    tensors = {name: each for name, each in content.items() if isinstance(each, Tensor)} if _is_named(content) else {}
    if not tensors:
        raise InputError(f"{path} holds no named tensors: expected the weights of a network")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): each for name, each in tensors.items()}
    return tensors


def read_content(path: Path) -> Any:
    """All that a file holds: tensors by name, or for a pickled one whatever plain data it was made of."""
    if not _is_safetensors(path):
        return _unpickled(path)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself; nothing for a file of another kind."""
    if not _is_safetensors(path):
        return {}
    with _opened(path) as file:
        return file.metadata() or {}


def preview_names(names: Iterable[str], count: int = 3) -> str:
    """A few names, to show what a file looks like."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _is_safetensors(path: Path) -> bool:
    """Told by content, since names lie. Raises InputError when it is neither this nor a torch file."""
    with path.open("rb") as file:
        start = file.read(64)
    if start[:4].startswith(PICKLED):
        return False
    if len(start) > 8 and start[8:9] == b"{":
        return True
    for mark, what in SUBSTITUTES.items():
        if start.lower().startswith(mark):
            raise InputError(f"{path} is {what}")
    size = path.stat().st_size
    raise InputError(f"{path} ({size} bytes) is neither a safetensors nor a torch file, or damaged: fetch it again")


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, struct.error) as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} is a damaged or truncated safetensors file ({error}); it has {size} bytes: fetch it again"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # by its content: given the path, torch goes by its name
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _with_code(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is a damaged or truncated torch file: fetch it again") from error


def _with_code(path: Path, error: pickle.UnpicklingError) -> InputError:
    """The error for a pickle that asks for more than tensors, naming what it asks for where that can be told."""
    try:
        with path.open("rb") as file:
            wanted = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except (ValueError, RuntimeError):  # torch's old format is not listed
        wanted = str(error).partition("GLOBAL ")[2].partition(" ")[0]
    return InputError(
        f"{path} is a pickled file that wants to run code ({wanted or 'unnamed'}), which could be anything, so it is "
        "not opened: use a .safetensors version of it, or convert it on a machine you can afford to lose"
    )


def _is_named(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content)
