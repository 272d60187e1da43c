"""Filters and perceptual hashes, on frames whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
from curation.tiny_clips import candidate, scene, sliding, with_text
from PIL import Image

from kineograph.curation.clip_steps import ClipKind, Rejection, apply_steps, select_key_frames
from kineograph.curation.filters import (
    HASH_BITS,
    HashedClip,
    filter_steps,
    find_duplicates,
    mean_brightness,
    motion_fraction,
    perceptual_hash,
)
from kineograph.curation.settings import Cuts, Filters
from kineograph.curation.text_detection import text_fraction


def rejection(frames: np.ndarray, kind: ClipKind = "filmed", **filters: float | None) -> str | None:
    result = apply_steps(candidate(frames, kind), filter_steps(Cuts(), Filters(**filters)))
    return result.reason if isinstance(result, Rejection) else None


def test_brightness_is_the_mean_grey() -> None:
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    frames[:, :4] = 200
    assert mean_brightness(frames) == pytest.approx(100, abs=0.1)
    assert mean_brightness(np.full((1, 4, 4, 3), (255, 0, 0), np.uint8)) == pytest.approx(0.299 * 255, abs=0.1)


def test_motion_is_the_share_of_changed_pixels() -> None:
    still = np.repeat(scene(0)[None], 16, axis=0)
    grainy = np.clip(still + np.random.default_rng(0).normal(0, 4, still.shape), 0, 255).astype(np.uint8)
    assert motion_fraction(still) == 0 and motion_fraction(grainy) == 0
    square = still.copy()
    for number, frame in enumerate(square):
        frame[:24, 6 * number : 6 * number + 24] = 255 * (number % 2)
    assert 0.05 < motion_fraction(square) < 0.25
    assert motion_fraction(sliding(1)) > 0.5


def test_each_filter_drops_clips_with_its_reason() -> None:
    good = sliding(1)
    assert rejection(good) is None
    assert rejection(good[:7]) == "short" and rejection(good[:8]) is None
    assert rejection(good // 40) == "dark" and rejection(good // 40, least_brightness=None, least_movement=None) is None
    assert rejection(np.repeat(good[:1], 16, axis=0)) == "still"
    assert rejection(np.repeat(good[:1], 16, axis=0), "frozen") is None
    dropped = apply_steps(candidate(good[:4]), filter_steps(Cuts(), Filters()))
    assert dropped == Rejection("short", "lasts 0.50 s, less than 1")


def test_text_is_found_in_pages_and_not_in_textures() -> None:
    lines = ["The quick brown fox", "jumps over the lazy", "dog and runs away", "into the forest"]
    for ink in ((255, 255, 255, 255), (0, 0, 0, 255)):
        page = np.full((256, 384, 3), 255 - ink[0], np.uint8)
        for number, line in enumerate(lines):
            page = with_text(page, line, 36, ink, (10, 10 + 56 * number))
        assert text_fraction(page[None]) > 0.3
    for seed in range(6):
        assert text_fraction(scene(seed, 256, 384)[None]) == 0
    stripes = np.repeat((np.arange(384) // 12 % 2 * 255).astype(np.uint8)[None], 256, axis=0)
    board = (np.indices((256, 384)) // 12).sum(0).astype(np.uint8) % 2 * 255
    for pattern in (stripes, board):
        assert text_fraction(np.repeat(pattern[None, ..., None], 3, axis=-1)) == 0
    assert rejection(np.repeat(page[None], 16, axis=0), least_movement=None) == "text"


def test_key_frames_are_the_middles_of_equal_parts() -> None:
    frames = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1).repeat(3, axis=-1)
    assert select_key_frames(frames, 3)[:, 0, 0, 0].tolist() == [2, 6, 10]
    assert len(select_key_frames(frames, 99)) == 12


def test_hashes_are_invariant_to_scaling_brightness_and_noise() -> None:
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


def test_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    seeds = [int.from_bytes(rng.bytes(HASH_BITS // 8), "big") for _ in range(20)]
    clips = [
        HashedClip(
            0,
            f"{number:03d}",
            "filmed",
            seeds[number % 20] ^ sum(1 << int(bit) for bit in {*rng.integers(0, HASH_BITS, rng.integers(0, 16))}),
        )
        for number in range(200)
    ]
    unique: list[HashedClip] = []
    for one in clips:
        if all((one.bits ^ other.bits).bit_count() > 6 for other in unique):
            unique.append(one)
    found = find_duplicates(clips, 6)
    assert {one.name for one in clips} - found.keys() == {one.name for one in unique} and 20 < len(unique) < 200
    assert find_duplicates(clips[::-1], 6) == found


def test_the_first_duplicate_by_rank_and_name_stays_and_groups_are_separate() -> None:
    clips = [HashedClip(1, "a", "filmed", 7), HashedClip(0, "b", "filmed", 7), HashedClip(1, "c", "panned", 7)]
    assert find_duplicates(clips, 0) == {"a": "b"}
