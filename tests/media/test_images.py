"""The image of a request: a file, or an image in memory."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kineograph.errors import InputError, is_memory_label
from kineograph.media.images import read_image
from kineograph.media.video import Video

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(PIXELS), PIXELS, PIXELS / 255, (PIXELS / 255).astype(np.float32), TENSOR, TENSOR[None]],
    ids=["PIL", "uint8", "float64", "float32", "tensor", "batch of one"],
)
def test_an_image_in_memory_equals_its_file(tmp_path: Path, image: object) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    read = read_image(image)
    assert np.array_equal(read.pixels, read_image(tmp_path / "image.png").pixels)
    assert read.path == f"image in memory (8 x 6, sha256 {read.digest[:16]})" and is_memory_label(read.path)
    assert read.digest == read_image(PIXELS.copy()).digest != read_image(PIXELS[::-1]).digest


def test_grey_is_grey_and_transparent_pixels_lie_on_white() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for image in (grey, grey / 255, Image.fromarray(grey)):
        assert np.array_equal(read_image(image).pixels, np.repeat(grey[..., None], 3, axis=-1))
    clear = np.concatenate([PIXELS, np.full((6, 8, 1), 0, np.uint8)], axis=-1)
    clear[0, 0, 3] = 255
    for image in (clear, clear / 255, Image.fromarray(clear)):
        pixels = read_image(image).pixels
        assert (pixels[0, 0] == PIXELS[0, 0]).all() and (pixels[1:] == 255).all()


def test_rounding_errors_beyond_0_and_1_are_cut() -> None:
    assert read_image(np.full((2, 2, 3), 1.0001)).pixels.max() == 255
    assert read_image(torch.full((3, 2, 2), -0.0001)).pixels.max() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "`image` is a path, a PIL image, .*, not an object of type int"),
        (Video(PIXELS[None]), "not an object of type Video"),
        ([PIXELS], "not an object of type list"),
        (PIXELS[None], r"not an array \[1 6 8 3\] of uint8"),
        (PIXELS[..., :2], r"not an array \[6 8 2\] of uint8"),
        (PIXELS[:0], r"not an array \[0 8 3\] of uint8"),
        (PIXELS > 3, "the values of `image` are uint8 from 0 to 255, or floats from 0 to 1, not bool"),
        (PIXELS.astype(float), "these floats are from"),
        (TENSOR.permute(1, 2, 0), r"not a tensor \[6 8 3\] of float32"),
        (TENSOR.expand(2, 3, 6, 8), r"not a tensor \[2 3 6 8\] of float32"),
        (TENSOR * 2 - 1, "these floats are from -"),
        ("a fish", "there is no image a fish"),
        ("a fish " * 1000, "there is no image a fish"),
        ("a\0fish", "there is no image"),
    ],
)
def test_other_objects_are_refused_in_one_line(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_image(given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize("profile", [b"ICC", b"ICC\x00"])
def test_a_profile_without_its_data_is_damage(tmp_path: Path, profile: bytes) -> None:
    """Found by tools/fuzz.py: Pillow raises IndexError while it reads the end of the file."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    end = content.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(content[:end] + png_chunk(b"iCCP", profile) + content[end:])
    with pytest.raises(InputError, match=r"a\.png is not an image that can be read, or is damaged"):
        read_image(tmp_path / "a.png")


def test_a_small_file_with_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by tools/fuzz.py: 80 x 2097216 pixels in ten kilobytes took more than 2 GB."""
    monkeypatch.delenv("KINEOGRAPH_MAX_PIXELS", raising=False)
    header = (80).to_bytes(4, "big") + (1_000_000).to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    content += png_chunk(b"IDAT", zlib.compress(bytes(10000))) + png_chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bomb\.png has 1 frame of 80 x 1000000: expected at most"):
        read_image(tmp_path / "bomb.png")
