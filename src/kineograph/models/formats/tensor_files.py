"""Tensor files: safetensors and torch files from others, read without running any code, and safetensors written."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import ParameterDict

from kineograph.errors import InputError, in_one_line, is_out_of_memory

Tensors = Mapping[str, Tensor]
PICKLED = (b"PK\x03\x04", b"\x80\x02")  # torch's zip archive, and its format before that
WRAPPERS = ("state_dict", "module")  # keys of the weights in training checkpoints of Lightning and DeepSpeed
INTEGERS = (torch.uint8, torch.int8)
SCALES = (".scale_weight", ".weight_scale")  # of float8 weights, by the name of their layer
UNUSED_BY_SCALED = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")
PREFIXES = ("_forward_module.", "module.")  # added to all names by those two and by torch's parallel training
DTYPE_NAMES = {  # in the headers of safetensors files, which hold the tensors of the last ones first
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32", torch.complex64: "C64",
    torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
ALIGNMENT = 8  # of the first tensor in a safetensors file, in bytes
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # in the messages of safetensors, which is written in Rust
# of other libraries on damaged files
READ_ERRORS = (
    OSError, SafetensorError, StrictDataclassError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError,
    ImportError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError,
)  # fmt: skip
ALLOCATED = re.compile(r"you tried to allocate (\d+) bytes")  # in torch's errors
MAX_UNPACKED = 8  # times the size of a torch file, which holds its tensors uncompressed
# beginnings of files that stand in for a file that was never downloaded
SUBSTITUTES = {
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` to get the file itself",
    b"<!doctype": "a web page; the download needs a log-in or another address",
    b"<html": "a web page; the download needs a log-in or another address",
    b"gguf": "a GGUF file, whose weights are quantised: take a .safetensors version in float16, bfloat16 or float8",
}


@contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turn errors of another library's function inside, which reads files, into an InputError.

    what: the files, and what they are not. Functions of ours do not belong inside: their errors are to be seen. Lack of
    memory stays what it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # the library `tokenizers` raises plain Exceptions
        if is_out_of_memory(error) or (not isinstance(error, READ_ERRORS) and type(error) is not Exception):
            raise
        raise InputError(f"{what} ({in_one_line(error)}): fetch it again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    The state dict of a training checkpoint is unwrapped: keys and name prefixes of training frameworks are removed.
    Raises InputError if the file is damaged, holds code, or holds no tensors.
    """
    return _named_tensors(read_content(path), path)


def read_header(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file by name as `read_tensors` does, on the meta device: shapes without values.

    None for a torch file that is no zip archive, that is named .safetensors, or that `read_tensors` refuses. Raises
    InputError for a damaged safetensors file, and for a file without named tensors.
    """
    if _is_safetensors(path):
        with _reading(path), safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
        return _named_tensors({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, path)
    try:
        with torch.serialization.safe_globals([ParameterDict]):
            content = _as_dict(torch.load(str(path), map_location="meta", weights_only=True, mmap=True))
    except READ_ERRORS:
        return None
    return _named_tensors(content, path)


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict) and (keys := [key for key in WRAPPERS if isinstance(content.get(key), dict)]):
        content = content[keys[0]]
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    tensors = {name: each for name, each in content.items() if isinstance(each, Tensor)} if named else {}
    if tensors:  # pickled LoRAs have plain numbers too
        tensors |= {
            name: torch.tensor(float(each))
            for name, each in content.items()
            if name.endswith(".alpha") and isinstance(each, int | float)
        }
    if named and not tensors:  # files of textual inversions and of IP-Adapters have sections
        tensors = {
            f"{section}.{name}": each
            for section, inside in content.items()
            if isinstance(inside, dict)
            for name, each in inside.items()
            if isinstance(each, Tensor)
        }
    if not tensors:
        raise InputError(f"{path} holds no named tensors: expected the weights of a network")
    odd = [name for name, each in tensors.items() if each.layout != torch.strided or each.is_quantized]
    if odd:
        raise InputError(f"{path} has sparse or quantised tensors ({preview_names(odd)}): expected plain ones")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): each for name, each in tensors.items()}
    return tensors


def read_content(path: Path) -> Any:
    """Return the whole content of a file: tensors by name, or the plain data of a pickled file."""
    if not _is_safetensors(path):
        return _unpickled(path)
    with _reading(path), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; empty for another kind of file."""
    if not _is_safetensors(path):
        return {}
    with _reading(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


def write_tensors(tensors: Tensors, file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file: the same bytes each time for the same tensors and metadata.

    safetensors' own function writes the entries of the metadata in any order. Raises OSError if it cannot be written.
    """
    order = {dtype: -place for place, dtype in enumerate(DTYPE_NAMES)}
    ordered = sorted(tensors.items(), key=lambda named: (order[named[1].dtype], named[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **(metadata or {})}.items()))}
    end = 0
    for name, each in ordered:
        start, end = end, end + each.numel() * each.element_size()
        header[name] = {"dtype": DTYPE_NAMES[each.dtype], "shape": list(each.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for _, each in ordered:
            opened.write(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


@contextmanager
def as_os_error(file: Path) -> Iterator[None]:
    """Turn safetensors' errors of a failed write inside, by diffusers or transformers, into OSError."""
    try:
        yield
    except SafetensorError as error:
        number = SYSTEM_ERROR.search(str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(file)) from error


def restore_scaled_weights(tensors: Tensors, dtype: torch.dtype, what: str) -> dict[str, Tensor]:
    """Return the tensors with weights in float8 multiplied by the scales that ComfyUI stores beside them.

    dtype: of the products. what: the file, for the error. Raises InputError for quantised weights of other kinds.
    """
    if quantised := [name for name, each in tensors.items() if name.endswith("weight") and each.dtype in INTEGERS]:
        raise InputError(
            f"{what} has weights that are quantised to integers ({preview_names(quantised)}): take a version in "
            "float16, bfloat16 or float8"
        )
    kept = {name: each for name, each in tensors.items() if not name.endswith((*SCALES, *UNUSED_BY_SCALED))}
    for name, scale in tensors.items():
        ending = next((each for each in SCALES if name.endswith(each)), None)
        weight = ending and f"{name.removesuffix(ending)}.weight"
        if weight in kept:
            factor = scale.float().view(-1, *[1] * (kept[weight].ndim - 1)) if scale.ndim == 1 else scale.float()
            kept[weight] = (kept[weight].float() * factor).to(dtype)
    return kept


def read_dtype(path: Path) -> torch.dtype:
    """Return the dtype of the first tensor of a safetensors file, without reading the others."""
    with _reading(path), safe_open(path, "pt") as file:
        names = file.keys()
        return file.get_tensor(names[0]).dtype


def preview_names(names: Iterable[str], count: int = 3) -> str:
    """Return the first `count` names and the number of the others, for error messages."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _is_safetensors(path: Path) -> bool:
    """Return True for a safetensors file, False for a torch file, judged by content and not by file name.

    Raises InputError if the file is neither.
    """
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


def _reading(path: Path) -> AbstractContextManager[None]:
    size = path.stat().st_size
    return as_input_error(f"{path} ({size} bytes) is a damaged or truncated safetensors file")


def _unpickled(path: Path) -> Any:
    with as_input_error(f"{path} is a damaged or truncated torch file"):
        _refuse_compressed(path)
        try:
            # a path would make torch judge the format by the file name
            with BoundedReader(path) as file, torch.serialization.safe_globals([ParameterDict]):
                return _as_dict(torch.load(file, map_location="cpu", weights_only=True))
        except pickle.UnpicklingError as error:
            raise _code_error(path, error) from error
        except RuntimeError as error:
            size = ALLOCATED.search(str(error))
            if size and int(size[1]) > MAX_UNPACKED * path.stat().st_size:
                raise InputError(f"{path} is damaged: it states a tensor of {int(size[1]):,} bytes") from error
            raise


class BoundedReader(io.BufferedReader):
    """A file of which no more is asked for than it has: Python allocates what a damaged length asks for, gigabytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most so many bytes; all that are left if the size is negative or None."""
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _refuse_compressed(path: Path) -> None:
    """Raise InputError for an archive that unpacks to much more than its own size, which those of torch do not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(each.file_size for each in archive.infolist())
    if unpacked > MAX_UNPACKED * path.stat().st_size:
        raise InputError(
            f"{path} unpacks to {unpacked:,} bytes, many times its own size: expected a file that torch wrote, whose "
            "tensors are not compressed"
        )


def _as_dict(content: Any) -> Any:
    """Return plain dictionaries in place of torch's, which early textual inversions hold."""
    if isinstance(content, dict | ParameterDict):
        return {name: _as_dict(each) for name, each in content.items()}
    return content


def _code_error(path: Path, error: pickle.UnpicklingError) -> InputError:
    """Return the error for a pickle that would import more than tensors; it names the imports if they are known."""
    try:
        with BoundedReader(path) as file:
            wanted = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except READ_ERRORS:  # torch cannot list those of its old format, nor of a damaged one
        wanted = str(error).partition("GLOBAL ")[2].partition(" ")[0]
    return InputError(
        f"{path} is a pickled file that wants to run code ({wanted or 'unnamed'}), which could be anything, so it is "
        "not opened: use a .safetensors version of it, or convert it on a machine you can afford to lose"
    )
