"""Sharpness, which tells a steady video from a blurred one."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kineograph.metrics.video_metrics import sharpness


def frames_of(noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(255, size=(8, 8, 3)), np.ones((8, 8, 1)))
    return np.clip(wide + rng.normal(0, noise, (3, 64, 64, 3)), 0, 255).astype(np.uint8)


def test_blur_lowers_sharpness_and_noise_raises_it() -> None:
    frames, gaussian = frames_of(), ImageFilter.GaussianBlur(2)
    blurred = np.stack([np.asarray(Image.fromarray(frame).filter(gaussian)) for frame in frames])
    assert sharpness(blurred) < 0.5 * sharpness(frames) < 0.5 * sharpness(frames_of(noise=20))
    assert sharpness(np.full_like(frames, 90)) == 0


def test_flicker_of_the_brightness_leaves_sharpness() -> None:
    frames = frames_of() // 2
    flickering = frames.copy()
    flickering[1::2] += 40
    assert sharpness(flickering) == pytest.approx(sharpness(frames))
