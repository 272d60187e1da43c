"""Motion and warp error of videos whose motion is known."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kineograph.metrics.optical_flow import consistent_pixels, estimate_flow, measure_flow, warp_image
from kineograph_lab.world.world import ShotSpec, Subject, render_clip


def panned(speed: float, count: int = 4, scale: int = 1) -> np.ndarray:
    """Return crops of 128 x 128 of smoothed noise that moves right by `speed` pixels per frame."""
    grain = np.random.default_rng(0).integers(0, 255, (128, 256, 3), dtype=np.uint8)
    wide = Image.fromarray(grain).filter(ImageFilter.GaussianBlur(3))
    views = [
        wide.transform((128, 128), Image.Transform.AFFINE, (1, 0, 64 - k * speed, 0, 1, 0), Image.Resampling.BICUBIC)
        for k in range(count)
    ]
    return np.stack([np.asarray(view.resize((128 * scale, 128 * scale), Image.Resampling.BICUBIC)) for view in views])


@pytest.mark.parametrize(("fps", "scale"), [(8.0, 1), (16.0, 1), (8.0, 3)])
def test_motion_is_in_frame_widths_per_second(fps, scale) -> None:
    found = dict(measure_flow(panned(4.0, scale=scale), fps))
    assert found["motion"] == pytest.approx(4 / 128 * fps, rel=0.05)
    assert found["warp error"] < 2 and found["followed"] > 0.9


def test_a_frozen_video_has_neither_motion_nor_error() -> None:
    found = dict(measure_flow(np.repeat(panned(0.0)[:1], 3, axis=0), 8))
    assert found == {"motion": pytest.approx(0, abs=1e-3), "followed": 1, "warp error": pytest.approx(0, abs=0.01)}


def test_flicker_has_a_larger_warp_error_than_motion() -> None:
    still = render_clip(ShotSpec("sea", "flat", (Subject("fish", "red", 1, motion="right"),)), 4)
    flicker = still.copy()
    flicker[1::2] = np.clip(flicker[1::2].astype(int) + 40, 0, 255).astype(np.uint8)
    assert dict(measure_flow(flicker, 8))["warp error"] > 5 * dict(measure_flow(still, 8))["warp error"]


def test_noise_is_not_followed() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    assert dict(measure_flow(noise, 8))["followed"] < 0.8


def test_a_single_frame_has_no_motion() -> None:
    assert dict(measure_flow(panned(0.0)[:1], 8)) == {}


def test_flow_and_warp_invert_a_pan() -> None:
    before, after = panned(5.0)[:2]
    forth, back = estimate_flow(before, after), estimate_flow(after, before)
    middle = (slice(16, -16), slice(16, -16))
    assert np.median(forth[middle][..., 0]) == pytest.approx(5, abs=0.3)
    assert np.abs(warp_image(after, forth) - before)[middle].mean() < 3
    there = consistent_pixels(forth, back)
    assert there[middle].mean() > 0.9 and there[:, -4:].mean() < 0.5  # these have left the picture


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    import cv2

    frames, before = panned(4.0, scale=3), cv2.getNumThreads()
    found = []
    try:
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            found.append(list(measure_flow(frames, 8)))
    finally:
        cv2.setNumThreads(before)
    assert found[0] == found[1]
