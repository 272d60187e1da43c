"""What is measured of clips before they are kept, on pictures whose measures are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from kineograph.curation.clip_steps import CandidateClip, ClipKind, Rejection, apply_steps, select_key_frames
from kineograph.curation.clips import Window, clip_size, freeze_frame, largest_window, pan_and_zoom, random_windows
from kineograph.curation.filters import (
    HASH_BITS,
    HashedClip,
    filter_steps,
    find_duplicates,
    mean_brightness,
    motion_fraction,
    perceptual_hash,
    text_fraction,
)
from kineograph.curation.settings import Cuts, Filters, Watermarks
from kineograph.curation.watermarks import Mark, detect_watermark, inpaint, resize_mask, watermark_step

SIZE, LARGE = (96, 144), (192, 288)
SETTINGS = Watermarks()


def scene(seed: int, height: int = SIZE[0], width: int = SIZE[1], grain: int = 12) -> np.ndarray:
    """A smooth random picture, unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (grain, grain * 3 // 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def shot(frames: np.ndarray, kind: ClipKind = "filmed", fps: float = 8.0) -> CandidateClip:
    return CandidateClip(frames, fps, 0.0, kind)


def sliding(seed: int, count: int = 16, step: int = 2) -> np.ndarray:
    wide = scene(seed, SIZE[0], SIZE[1] + step * count)
    return np.stack([wide[:, step * n : step * n + SIZE[1]] for n in range(count)])


def written(
    picture: np.ndarray, text: str, size: int, ink: tuple[int, int, int, int], at: tuple[int, int]
) -> np.ndarray:
    over = Image.new("RGBA", picture.shape[1::-1], (0, 0, 0, 0))
    ImageDraw.Draw(over).text(at, text, font=ImageFont.load_default(size), fill=ink)
    return np.asarray(Image.alpha_composite(Image.fromarray(picture).convert("RGBA"), over).convert("RGB"))


def why(frames: np.ndarray, kind: ClipKind = "filmed", **filters: float | None) -> str | None:
    passed = apply_steps(shot(frames, kind), filter_steps(Cuts(), Filters(**filters)))
    return passed.why if isinstance(passed, Rejection) else None


def test_brightness_is_the_mean_grey():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    frames[:, :4] = 200
    assert mean_brightness(frames) == pytest.approx(100, abs=0.1)
    assert mean_brightness(np.full((1, 4, 4, 3), (255, 0, 0), np.uint8)) == pytest.approx(0.299 * 255, abs=0.1)


def test_movement_is_the_share_that_changes():
    still = np.repeat(scene(0)[None], 16, axis=0)
    grainy = np.clip(still + np.random.default_rng(0).normal(0, 4, still.shape), 0, 255).astype(np.uint8)
    assert motion_fraction(still) == 0 and motion_fraction(grainy) == 0
    thing = still.copy()
    for number, frame in enumerate(thing):
        frame[:24, 6 * number : 6 * number + 24] = 255 * (number % 2)
    assert 0.05 < motion_fraction(thing) < 0.25
    assert motion_fraction(sliding(1)) > 0.5


def test_each_filter_drops_what_it_is_named_after_and_says_what_it_found():
    good = sliding(1)
    assert why(good) is None
    assert why(good[:7]) == "short" and why(good[:8]) is None
    assert why(good // 40) == "dark" and why(good // 40, least_brightness=None, least_movement=None) is None
    assert why(np.repeat(good[:1], 16, axis=0)) == "still"
    assert why(np.repeat(good[:1], 16, axis=0), "frozen") is None
    dropped = apply_steps(shot(good[:4]), filter_steps(Cuts(), Filters()))
    assert dropped == Rejection("short", "lasts 0.50 s, less than 1")


def test_lettering_finds_lines_of_text_and_not_pictures():
    lines = ["The quick brown fox", "jumps over the lazy", "dog and runs away", "into the forest"]
    for ink in ((255, 255, 255, 255), (0, 0, 0, 255)):
        page = np.full((256, 384, 3), 255 - ink[0], np.uint8)
        for number, line in enumerate(lines):
            page = written(page, line, 36, ink, (10, 10 + 56 * number))
        assert text_fraction(page[None]) > 0.3
    for seed in range(6):
        assert text_fraction(scene(seed, 256, 384)[None]) == 0
    stripes = np.repeat((np.arange(384) // 12 % 2 * 255).astype(np.uint8)[None], 256, axis=0)
    board = (np.indices((256, 384)) // 12).sum(0).astype(np.uint8) % 2 * 255
    for pattern in (stripes, board):
        assert text_fraction(np.repeat(pattern[None, ..., None], 3, axis=-1)) == 0
    assert why(np.repeat(page[None], 16, axis=0), least_movement=None) == "text"


def test_key_frames_lie_in_the_middles_of_equal_parts():
    frames = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1).repeat(3, axis=-1)
    assert select_key_frames(frames, 3)[:, 0, 0, 0].tolist() == [2, 6, 10]
    assert len(select_key_frames(frames, 99)) == 12


@pytest.mark.parametrize("strength", [60, 128, 255])
def test_a_mark_over_changing_scenes_is_found_where_it_is(strength):
    ink = (255, 255, 255, strength)
    pictures = [written(scene(seed, *LARGE), "STOCK", 30, ink, (20, 50)) for seed in range(16)]
    mark = detect_watermark(pictures, SETTINGS)
    assert mark is not None
    truth = written(np.zeros((*LARGE, 3), np.uint8), "STOCK", 30, ink, (20, 50)).any(-1)
    assert mark.mask[truth].mean() > 0.95  # nearly all of it
    rows, columns = np.nonzero(mark.mask)
    assert rows.min() > 50 and columns.max() < 140 and mark.mask.sum() < 4 * truth.sum()


def test_what_is_no_mark_is_not_taken_for_one():
    scenes = [scene(seed, *LARGE) for seed in range(16)]
    assert detect_watermark(scenes, SETTINGS) is None
    assert detect_watermark([written(each, "STOCK", 30, (255,) * 4, (20, 50)) for each in scenes[:5]], SETTINGS) is None
    assert detect_watermark([scenes[0]] * 16, SETTINGS) is None  # a scene that never changes cannot be told from a mark
    boxed = [np.pad(each, ((12, 12), (0, 0), (0, 0))) for each in scenes]
    assert detect_watermark(boxed, SETTINGS) is None  # black bars
    assert detect_watermark([], SETTINGS) is None


def test_a_mark_is_painted_over_dropped_or_kept():
    plain = np.full((2, *SIZE, 3), (90, 140, 60), np.uint8)
    marked = np.stack([written(frame, "STOCK", 30, (255,) * 4, (20, 50)) for frame in plain])
    mark = Mark((marked[0] != plain[0]).any(-1))
    clean = watermark_step(mark, SETTINGS)(shot(marked))
    assert isinstance(clean, CandidateClip) and np.abs(clean.frames.astype(int) - plain).max() <= 2
    dropped = watermark_step(mark, Watermarks(then="drop"))(shot(marked))
    assert isinstance(dropped, Rejection) and dropped.why == "watermark"
    for step in (watermark_step(mark, Watermarks(then="keep")), watermark_step(None, SETTINGS)):
        assert step(shot(marked)) == shot(marked)


def test_what_is_not_masked_is_not_touched():
    mask = np.zeros(SIZE, bool)
    mask[40:50, 30:60] = True
    picture = scene(3)
    painted = inpaint(picture, mask)
    assert (painted[~mask] == picture[~mask]).all() and (painted[mask] != picture[mask]).any()


def test_a_mask_fits_other_sizes_of_its_shape_only():
    mask = np.zeros(SIZE, bool)
    mask[:48] = True
    half = resize_mask(mask, 48, 72)
    assert half is not None and half[:24].all() and not half[24:].any()
    assert resize_mask(mask, 96, 96) is None


def test_fingerprints_outlast_scaling_light_and_noise():
    rng = np.random.default_rng(0)
    for seed in range(8):
        clip = sliding(seed)
        known = perceptual_hash(clip)
        smaller = np.stack([np.asarray(Image.fromarray(frame).resize((72, 48))) for frame in clip])
        lighter = np.clip(clip * 0.8 + 30, 0, 255).astype(np.uint8)
        noisy = np.clip(clip + rng.normal(0, 5, clip.shape), 0, 255).astype(np.uint8)
        for same in (smaller, lighter, noisy):
            assert (known ^ perceptual_hash(same)).bit_count() <= 12
        assert (known ^ perceptual_hash(sliding(seed + 100))).bit_count() > 60


def test_duplicates_are_those_that_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    seeds = [int.from_bytes(rng.bytes(HASH_BITS // 8), "big") for _ in range(20)]
    prints = [
        HashedClip(
            0,
            f"{number:03d}",
            "filmed",
            seeds[number % 20] ^ sum(1 << int(bit) for bit in {*rng.integers(0, HASH_BITS, rng.integers(0, 16))}),
        )
        for number in range(200)
    ]
    kept: list[HashedClip] = []
    for one in prints:
        if all((one.bits ^ other.bits).bit_count() > 6 for other in kept):
            kept.append(one)
    found = find_duplicates(prints, 6)
    assert {one.name for one in prints} - found.keys() == {one.name for one in kept} and 20 < len(kept) < 200
    assert find_duplicates(prints[::-1], 6) == found


def test_of_duplicates_the_first_by_rank_and_name_stays_and_groups_are_apart():
    prints = [HashedClip(1, "a", "filmed", 7), HashedClip(0, "b", "filmed", 7), HashedClip(1, "c", "panned", 7)]
    assert find_duplicates(prints, 0) == {"a": "b"}


RAMP = Image.fromarray(np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (120, 200, 3)).copy())


def test_a_pan_moves_evenly_and_to_the_subpixel():
    frames = pan_and_zoom(RAMP, Window(10, 20, 70, 60), Window(41, 30, 101, 70), 9, 40, 60)
    steep = Image.fromarray(np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], (20, 50, 3)).copy())
    middles = pan_and_zoom(steep, Window(10, 0, 30, 20), Window(14, 0, 34, 20), 9, 20, 20)[:, 10, 10, 0].astype(int)
    assert frames.shape == (9, 40, 60, 3) and np.abs(middles - (middles[0] + 2.5 * np.arange(9))).max() <= 1
    assert (frames[0] == np.asarray(RAMP)[20:60, 10:70]).all()
    assert (frames[-1] == np.asarray(RAMP)[30:70, 41:101]).all()


def test_a_zoom_shows_less_and_less():
    frames = pan_and_zoom(RAMP, Window(0, 0, 180, 120), Window(60, 40, 120, 80), 5, 40, 60).astype(int)
    spans = np.ptp(frames[:, 20, :, 0], axis=1)
    assert np.allclose(np.diff(spans), -30, atol=2)


def test_fine_patterns_do_not_flicker():
    board = Image.fromarray(np.indices((240, 240)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    frames = pan_and_zoom(board, Window(0, 0, 180, 180), Window(7, 3, 187, 183), 8, 36, 36)
    assert np.abs(frames[:, 4:-4, 4:-4].astype(int) - 127).max() < 12


def test_windows_lie_in_the_picture_differ_by_seed_and_can_be_told_again():
    for seed in range(50):
        first, last = random_windows(np.random.default_rng(seed), RAMP, 1.5, 0.5)
        for window in (first, last):
            assert 0 <= window.left < window.right <= 200 + 1e-9 and 0 <= window.top < window.bottom <= 120 + 1e-9
            assert (window.right - window.left) / (window.bottom - window.top) == pytest.approx(1.5)
        assert np.abs(np.subtract(first, last)).max() >= 20
        assert (first, last) == random_windows(np.random.default_rng(seed), RAMP, 1.5, 0.5)
        assert first != random_windows(np.random.default_rng(seed + 1), RAMP, 1.5, 0.5)[0]


def test_pictures_are_never_enlarged_and_frozen_ones_rest():
    assert clip_size(RAMP, 0.5, 256) == (60, 100) and clip_size(RAMP, 0.5, 30) == (30, 50)
    frames = freeze_frame(RAMP, largest_window(RAMP, 1.0), 4, 60, 60)
    assert (frames == frames[0]).all() and largest_window(RAMP, 1.0) == Window(40, 0, 160, 120)
