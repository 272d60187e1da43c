"""Shot detection, and decoding at a constant frame rate."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from curation.raw_footage import scene
from numbered import movie, numbered, numbers

from kineograph.curation.decoding import frames_at_rate, open_decodable, sample_frames, split_shots
from kineograph.curation.settings import Cuts
from kineograph.media.frames import BrokenFile
from kineograph.media.shards import FileRange, open_range


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_cuts_are_found_to_the_frame_and_long_shots_are_split(detector) -> None:
    lengths = [30, 12, 45]
    video = np.concatenate([scene(seed, count) for seed, count in enumerate(lengths)])
    found = [*split_shots(iter(video), 10.0, Cuts(detector=detector, longest=100))]
    assert [(start, len(part)) for start, part in found] == [(0, 30), (30, 12), (42, 45)]
    assert (np.concatenate([part for _, part in found]) == video).all()
    parted = [*split_shots(iter(video), 10.0, Cuts(detector=detector, longest=2))]
    assert [(start, len(part)) for start, part in parted] == [(0, 20), (20, 10), (30, 12), (42, 20), (62, 20), (82, 5)]
    assert (np.concatenate([part for _, part in parted]) == video).all()


@contextmanager
def opened_video(path: Path, fps: float | None = None, side: int | None = None):
    with open_range(FileRange(path)) as part:
        yield open_decodable(part, fps=fps, shorter_side=side)


def test_frames_are_resampled_to_a_constant_rate(tmp_path: Path) -> None:
    plain = movie(tmp_path / "a.mp4", numbered(24), rate=24)
    with opened_video(plain) as video:
        assert numbers([*frames_at_rate(video)]) == [*range(24)]
    with opened_video(plain, fps=8) as video:
        assert numbers([*frames_at_rate(video)]) == [*range(0, 24, 3)]
    times = [0, 1, 2, 6, 7, 8, 9, 10]  # the third frame is shown four times as long
    with opened_video(movie(tmp_path / "b.mkv", numbered(8), rate=10, times=times), fps=10) as video:
        shown = numbers([*frames_at_rate(video)])
        assert set(shown) == {*range(8)} and shown == sorted(shown) and shown.count(2) >= 2


def test_frames_are_scaled_down_but_never_up(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(3, 48, 96))
    for side, size in ((24, (24, 48)), (100, (48, 96)), (None, (48, 96))):
        with opened_video(path, side=side) as video:
            assert next(frames_at_rate(video)).shape == (*size, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sampled_frames_cover_the_whole_video(tmp_path: Path, name) -> None:
    path = movie(tmp_path / name, numbered(40), rate=10, codec="libx264")
    with opened_video(path) as video:
        for count, options in ((3, 3), (16, 16)):
            seen = numbers(sample_frames(video, count))
            assert len(seen) >= options // 2 and seen == sorted({*seen})
        assert max(seen) >= 30 and min(seen) <= 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_truncated_file_is_broken(tmp_path: Path, name) -> None:
    path = movie(
        tmp_path / name, scene(0, 60), rate=10, container={"movflags": "+faststart"} if "mp4" in name else None
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenFile), opened_video(path) as video:
        [*frames_at_rate(video)]
