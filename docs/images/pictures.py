"""What the scripts beside this one have in common: videos with a line of text below each, in rows, forth and back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import kineograph as kg

SIDE, LINE = 192, 28


def cell(frames: np.ndarray, words: str) -> np.ndarray:
    """A video, enlarged, with its words below."""
    below = Image.new("RGB", (SIDE, LINE), "white")
    ImageDraw.Draw(below).text((SIDE / 2, LINE / 2), words, "black", ImageFont.load_default(11), anchor="mm")
    large = [np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for each in frames]
    return np.stack([np.concatenate([each, np.asarray(below)]) for each in large])


def grid(cells: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """The frames of all cells together."""
    rows = [np.concatenate(cells[k : k + columns], axis=2) for k in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=1)


def write(cells: Sequence[np.ndarray], path: Path) -> None:
    """All cells as one gif that plays forth and back."""
    frames = grid(cells)
    kg.Video(np.concatenate([frames, frames[-2:0:-1]]), fps=6).overwrite(path)
