"""Frames of a long video in a temporary file, as an array that is mapped to it (`mmap`).

The array is like any other, and may be changed. Its pixels are on disk: reading them maps a page of the file, which
counts as memory of the process until the system takes it back or `iterate_frames` has passed it. The file has no name,
and is gone with the array. It is in the folder of Python's `tempfile`, which the environment variable TMPDIR chooses.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO

import numpy as np
from jaxtyping import UInt8

Frames = UInt8[np.ndarray, "f h w 3"]
MAX_IN_MEMORY = 1 << 24  # bytes of a video that is not mapped: 21 frames of 512 x 512


def collect_frames(chunks: Iterable[UInt8[np.ndarray, "b f h w 3"]]) -> list[Frames]:
    """Return the frames of each video of a batch; a video of more than `MAX_IN_MEMORY` bytes is mapped to a file.

    chunks: the videos' next frames; of at least one frame in all. Only one chunk is held at a time.
    """
    with ExitStack() as stack:
        files, shape = list[IO[bytes]](), (0, 0, 3)
        for chunk in chunks:
            shape = chunk.shape[2:]
            files = files or [stack.enter_context(tempfile.SpooledTemporaryFile(MAX_IN_MEMORY)) for _ in chunk]
            for file, frames in zip(files, chunk, strict=True):
                for frame in iterate_frames(frames):
                    file.write(np.ascontiguousarray(frame).data)
        return [_open_array(file, shape) for file in files]


def _open_array(file: IO[bytes], shape: tuple[int, ...]) -> Frames:
    size = file.tell()
    if size <= MAX_IN_MEMORY:
        file.seek(0)
        content: bytearray | mmap.mmap = bytearray(file.read())
    else:
        file.flush()
        content = mmap.mmap(file.fileno(), size)  # keeps the file open
    return np.frombuffer(content, np.uint8).reshape(-1, *shape)


def iterate_frames(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of an array [f ...]; of a mapped one, the pages that were read are released on the way."""
    mapped = _mapping(frames)
    step = max(1, MAX_IN_MEMORY // max(1, math.prod(frames.shape[1:])))
    for start in range(0, len(frames), step):
        yield from frames[start : start + step]
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)  # changed pages are written to the file, none is lost


def _mapping(frames: np.ndarray) -> mmap.mmap | None:
    """Return the map of a file that these are all or some frames of; None for frames in memory."""
    base: object = frames
    while isinstance(base, np.ndarray):
        base = base.base
    content = base.obj if isinstance(base, memoryview) else base
    return content if isinstance(content, mmap.mmap) and hasattr(content, "madvise") else None


def pixel_digest(pixels: np.ndarray) -> str:
    """Return the SHA-256 of pixels: equal if and only if every pixel is."""
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    for part in iterate_frames(pixels):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
