"""Frames of long videos in temporary files: equal to frames in memory, and not held in memory."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from cases.public_layouts import sd

import kineograph as kg
from kineograph.media import mapped_frames
from kineograph.media.mapped_frames import collect_frames, iterate_frames, pixel_digest


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Map videos of any length."""
    monkeypatch.setattr(mapped_frames, "MAX_IN_MEMORY", 0)


@pytest.mark.parametrize("limit", [0, 1 << 24])
def test_frames_of_chunks_are_those_of_each_video(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_frames, "MAX_IN_MEMORY", limit)
    chunks = [noise(2, frames, 4, 6, 3) for frames in (3, 3, 1)]
    videos = collect_frames(iter(chunks))
    assert np.array_equal(np.stack(videos), np.concatenate(chunks, axis=1))
    assert all((mapped_frames._mapping(video) is None) == (limit > 0) for video in videos)


@pytest.mark.usefixtures("mapped")
def test_changes_of_a_mapped_array_stay() -> None:
    (frames,) = collect_frames([noise(1, 5, 4, 6, 3)])
    frames[2] = 7
    assert all((frame == 7).all() == (number == 2) for number, frame in enumerate(iterate_frames(frames)))
    assert (frames[2] == 7).all(), "its pages were released"


@pytest.mark.usefixtures("mapped")
def test_digest_is_that_of_the_pixels() -> None:
    pixels = noise(1, 5, 4, 6, 3)
    (frames,) = collect_frames([pixels])
    wanted = hashlib.sha256(b"(5, 4, 6, 3)" + pixels.tobytes()).hexdigest()
    assert pixel_digest(frames) == pixel_digest(pixels[0]) == wanted


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a"])
def test_file_of_a_mapped_video_is_that_of_one_in_memory(name: str, tmp_path: Path) -> None:
    pixels = noise(1, 5, 15, 17, 3)
    (frames,) = collect_frames([pixels])
    files = [kg.Video(each).save(tmp_path / f"{k}{name}") for k, each in enumerate((frames, pixels[0]))]
    read = [sorted(file.iterdir()) if file.is_dir() else [file] for file in files]
    assert [file.read_bytes() for file in read[0]] == [file.read_bytes() for file in read[1]]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_frames_that_were_read_do_not_stay_in_memory() -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("RssFile")) // 1024

    before = resident()
    (frames,) = collect_frames(np.full((1, 8, 256, 256, 3), number, np.uint8) for number in range(64))
    pixel_digest(frames)
    assert resident() - before < 50, "MB; the frames are 96"
    assert [int(frame[0, 0, 0]) for frame in frames[::8]] == [*range(64)]


@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")
def test_generated_frames_are_the_same_if_they_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = kg.load(sd())
    options = {"num_frames": 2, "num_inference_steps": 1, "height": 64, "width": 64, "seed": 0, "clips": 2}
    wanted = kg.generate(model, "a", **options)
    monkeypatch.setattr(mapped_frames, "MAX_IN_MEMORY", 0)
    found = kg.generate(model, "a", **options)
    assert mapped_frames._mapping(found.frames) is not None
    assert np.array_equal(found.frames, wanted.frames) and found.settings == wanted.settings
