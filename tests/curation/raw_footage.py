"""A folder of raw footage: several codecs, sizes and rates, and files that cannot be used."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numbered import movie
from PIL import Image, ImageDraw, ImageFont

from kineograph.curation.settings import CurationSettings


def scene(seed: int, count: int, *, height: int = 96, width: int = 128, step: int = 1) -> np.ndarray:
    """Return frames of a smooth random image, different for every seed, that moves sideways. uint8 [f h w 3]."""
    small = np.random.default_rng(seed).integers(20, 256, (5, 12, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(small).resize((width + step * count, height), Image.Resampling.BICUBIC))
    return np.stack([wide[:, step * number : step * number + width] for number in range(count)])


def lettered(frames: np.ndarray, text: str, size: int, at: tuple[int, int]) -> np.ndarray:
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        ImageDraw.Draw(image).multiline_text(at, text, font=ImageFont.load_default(size), fill="white")
    return np.stack([np.asarray(image) for image in images])


def footage(folder: Path) -> Path:
    """Write videos and images of eight clips to keep, and one file of each kind that is dropped."""
    movie(folder / "riding_a_bike" / "three.mp4", np.concatenate([scene(n, 20) for n in (1, 2, 3)]), rate=10)
    (folder / "riding_a_bike" / "three.txt").write_text("a person riding a bike")
    movie(folder / "surf" / "large.webm", scene(4, 24, height=240, width=320), rate=12, codec="libvpx-vp9")
    movie(folder / "surf" / "turned.mov", scene(5, 30), rate=25, quarters=1)
    movie(folder / "surf" / "wide.mkv", scene(6, 20), rate=15, codec="mpeg4", pixel=Fraction(2, 1))
    copied = [np.asarray(Image.fromarray(each).resize((128, 96))) for each in scene(4, 24, height=240, width=320)]
    movie(folder / "copy.avi", np.stack(copied), rate=12, codec="mjpeg")  # smaller, and compressed otherwise
    movie(folder / "dark.mkv", scene(7, 20) // 30, rate=10, codec="ffv1")
    movie(folder / "still.ts", scene(8, 20, step=0), rate=10, codec="mpeg2video")
    movie(folder / "short.mp4", scene(9, 6), rate=10)
    page = lettered(scene(11, 20, height=192, width=256) // 3, "\n".join(["A page of words"] * 5), 30, (8, 2))
    movie(folder / "text.mp4", page, rate=10)
    whole = movie(folder / "cut.mp4", scene(10, 60), rate=10, container={"movflags": "+faststart"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "no.mp4").write_bytes(b"this is not a video")
    (folder / "empty.mov").write_bytes(b"")
    (folder / "lone.txt").write_text("a label without a video")
    for number in (1, 2):
        Image.fromarray(scene(20 + number, 1, height=160, width=240)[0]).save(folder / f"photo{number}.png")
    return folder


def settings_for(source: Path | str, output: Path, **fields: Any) -> CurationSettings:
    return CurationSettings(**{"sources": [str(source)], "output": output, "run": "alone", **fields})
