"""Clips from images: pan, zoom and frozen frames."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kineograph.curation.clips import clip_size
from kineograph.media.images import Window, freeze_frame, largest_window, pan_and_zoom, random_windows

RAMP = Image.fromarray(np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (120, 200, 3)).copy())


def test_a_pan_moves_evenly_at_subpixel_precision() -> None:
    frames = pan_and_zoom(RAMP, Window(10, 20, 70, 60), Window(41, 30, 101, 70), 9, 40, 60)
    steep = Image.fromarray(np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], (20, 50, 3)).copy())
    middles = pan_and_zoom(steep, Window(10, 0, 30, 20), Window(14, 0, 34, 20), 9, 20, 20)[:, 10, 10, 0].astype(int)
    assert frames.shape == (9, 40, 60, 3) and np.abs(middles - (middles[0] + 2.5 * np.arange(9))).max() <= 1
    assert (frames[0] == np.asarray(RAMP)[20:60, 10:70]).all()
    assert (frames[-1] == np.asarray(RAMP)[30:70, 41:101]).all()


def test_a_zoom_narrows_the_window_evenly() -> None:
    frames = pan_and_zoom(RAMP, Window(0, 0, 180, 120), Window(60, 40, 120, 80), 5, 40, 60).astype(int)
    spans = np.ptp(frames[:, 20, :, 0], axis=1)
    assert np.allclose(np.diff(spans), -30, atol=2)


def test_fine_patterns_do_not_flicker() -> None:
    board = Image.fromarray(np.indices((240, 240)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    frames = pan_and_zoom(board, Window(0, 0, 180, 180), Window(7, 3, 187, 183), 8, 36, 36)
    assert np.abs(frames[:, 4:-4, 4:-4].astype(int) - 127).max() < 12


def test_random_windows_lie_in_the_image_and_depend_on_the_seed() -> None:
    for seed in range(50):
        first, last = random_windows(np.random.default_rng(seed), RAMP, 1.5, 0.5)
        for window in (first, last):
            assert 0 <= window.left < window.right <= 200 + 1e-9 and 0 <= window.top < window.bottom <= 120 + 1e-9
            assert (window.right - window.left) / (window.bottom - window.top) == pytest.approx(1.5)
        assert np.abs(np.subtract(first, last)).max() >= 20
        assert (first, last) == random_windows(np.random.default_rng(seed), RAMP, 1.5, 0.5)
        assert first != random_windows(np.random.default_rng(seed + 1), RAMP, 1.5, 0.5)[0]


def test_images_are_not_enlarged_and_frozen_frames_are_equal() -> None:
    assert clip_size(RAMP, 0.5, 256) == (60, 100) and clip_size(RAMP, 0.5, 30) == (30, 50)
    frames = freeze_frame(RAMP, largest_window(RAMP, 1.0), 4, 60, 60)
    assert (frames == frames[0]).all() and largest_window(RAMP, 1.0) == Window(40, 0, 160, 120)
