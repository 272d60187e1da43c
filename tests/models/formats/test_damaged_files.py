"""Files of tensors that lack memory or state more than they hold."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from kineograph.errors import InputError
from kineograph.models.formats.tensor_files import as_input_error, read_content


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_lack_of_memory_is_no_damage(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, as_input_error("the file is damaged"):
        raise error
    assert caught.value is error


def test_a_tensor_larger_than_its_file_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    torch.save({"w": torch.zeros(1000)}, file, _use_new_zipfile_serialization=False)
    number, huge = b"M" + struct.pack("<H", 1000), b"\x8a\x08" + struct.pack("<q", 10**15)
    file.write_bytes(file.read_bytes().replace(number, huge, 1))
    with pytest.raises(InputError, match=r"old\.pt is damaged: it states a tensor of 4,000,000,000,000,000 bytes"):
        read_content(file)


def test_a_damaged_length_allocates_no_more_than_the_file_has(tmp_path: Path) -> None:
    """Found by tools/fuzz.py: a text of 4 GB in a pickle of a few bytes."""
    file = tmp_path / "old.ckpt"
    file.write_bytes(b"\x80\x02X\xff\xff\xff\xffname" + bytes(100))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"old\.ckpt is a damaged or truncated torch file"):
        read_content(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
