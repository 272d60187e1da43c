"""Small frames and clips for tests of filters and watermarks."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kineograph.curation.clip_steps import CandidateClip, ClipKind

SIZE, LARGE = (96, 144), (192, 288)


def scene(seed: int, height: int = SIZE[0], width: int = SIZE[1], grain: int = 12) -> np.ndarray:
    """Return a smooth random image, different for every seed."""
    small = np.random.default_rng(seed).integers(0, 256, (grain, grain * 3 // 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def candidate(frames: np.ndarray, kind: ClipKind = "filmed", fps: float = 8.0) -> CandidateClip:
    return CandidateClip(frames, fps, 0.0, kind)


def sliding(seed: int, count: int = 16, step: int = 2) -> np.ndarray:
    wide = scene(seed, SIZE[0], SIZE[1] + step * count)
    return np.stack([wide[:, step * n : step * n + SIZE[1]] for n in range(count)])


def with_text(
    image: np.ndarray, text: str, size: int, ink: tuple[int, int, int, int], at: tuple[int, int]
) -> np.ndarray:
    over = Image.new("RGBA", image.shape[1::-1], (0, 0, 0, 0))
    ImageDraw.Draw(over).text(at, text, font=ImageFont.load_default(size), fill=ink)
    return np.asarray(Image.alpha_composite(Image.fromarray(image).convert("RGBA"), over).convert("RGB"))
