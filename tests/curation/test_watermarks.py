"""Detection and removal of watermarks."""

from __future__ import annotations

import numpy as np
import pytest
from curation.tiny_clips import LARGE, SIZE, candidate, scene, with_text

from kineograph.curation.clip_steps import CandidateClip, Rejection
from kineograph.curation.settings import Watermarks
from kineograph.curation.watermarks import detect_watermark, inpaint, resize_mask, watermark_step

SETTINGS = Watermarks()


@pytest.mark.parametrize("strength", [60, 128, 255])
def test_a_watermark_over_changing_scenes_is_found(strength) -> None:
    ink = (255, 255, 255, strength)
    images = [with_text(scene(seed, *LARGE), "STOCK", 30, ink, (20, 50)) for seed in range(16)]
    mask = detect_watermark(images, SETTINGS)
    assert mask is not None
    truth = with_text(np.zeros((*LARGE, 3), np.uint8), "STOCK", 30, ink, (20, 50)).any(-1)
    assert mask[truth].mean() > 0.95  # nearly all of it
    rows, columns = np.nonzero(mask)
    assert rows.min() > 50 and columns.max() < 140 and mask.sum() < 4 * truth.sum()


def test_other_images_have_no_watermark() -> None:
    scenes = [scene(seed, *LARGE) for seed in range(16)]
    assert detect_watermark(scenes, SETTINGS) is None
    assert (
        detect_watermark([with_text(each, "STOCK", 30, (255,) * 4, (20, 50)) for each in scenes[:5]], SETTINGS) is None
    )
    assert (
        detect_watermark([scenes[0]] * 16, SETTINGS) is None
    )  # a scene that never changes cannot be distinguished from a watermark
    boxed = [np.pad(each, ((12, 12), (0, 0), (0, 0))) for each in scenes]
    assert detect_watermark(boxed, SETTINGS) is None  # black bars
    assert detect_watermark([], SETTINGS) is None


def test_a_watermark_is_inpainted_dropped_or_kept() -> None:
    plain = np.full((2, *SIZE, 3), (90, 140, 60), np.uint8)
    marked = np.stack([with_text(frame, "STOCK", 30, (255,) * 4, (20, 50)) for frame in plain])
    mask = (marked[0] != plain[0]).any(-1)
    clean = watermark_step(mask, SETTINGS)(candidate(marked))
    assert isinstance(clean, CandidateClip) and np.abs(clean.frames.astype(int) - plain).max() <= 2
    dropped = watermark_step(mask, Watermarks(then="drop"))(candidate(marked))
    assert isinstance(dropped, Rejection) and dropped.reason == "watermark"
    for step in (watermark_step(mask, Watermarks(then="keep")), watermark_step(None, SETTINGS)):
        assert step(candidate(marked)) == candidate(marked)


def test_only_masked_pixels_are_inpainted() -> None:
    mask = np.zeros(SIZE, bool)
    mask[40:50, 30:60] = True
    image = scene(3)
    painted = inpaint(image, mask)
    assert (painted[~mask] == image[~mask]).all() and (painted[mask] != image[mask]).any()


def test_a_mask_fits_other_sizes_of_its_aspect_ratio_only() -> None:
    mask = np.zeros(SIZE, bool)
    mask[:48] = True
    half = resize_mask(mask, 48, 72)
    assert half is not None and half[:24].all() and not half[24:].any()
    assert resize_mask(mask, 96, 96) is None
