"""Layout of the README's animations: videos in a grid, each with a caption, played forwards and backwards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import kineograph as kg

SIDE, LINE = 192, 28


def captioned(frames: np.ndarray, caption: str) -> np.ndarray:
    """Return the video, enlarged, with a caption below."""
    strip = Image.new("RGB", (SIDE, LINE), "white")
    ImageDraw.Draw(strip).text((SIDE / 2, LINE / 2), caption, "black", ImageFont.load_default(11), anchor="mm")
    large = [np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for each in frames]
    return np.stack([np.concatenate([each, np.asarray(strip)]) for each in large])


def grid(cells: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Return one video with the cells in rows."""
    rows = [np.concatenate(cells[k : k + columns], axis=2) for k in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=1)


def write(cells: Sequence[np.ndarray], path: Path) -> None:
    """Write the cells as one GIF that plays forwards and backwards."""
    frames = grid(cells)
    kg.Video(np.concatenate([frames, frames[-2:0:-1]]), fps=6).overwrite(path)
