"""Properties of the parsers of texts that users write: ranges of files, lists, sizes, camera motions, windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.cli.options import parse_lora, parse_named, parse_numbers
from kineograph.errors import InputError
from kineograph.generation.check import check_prompts
from kineograph.hub import local_path
from kineograph.media.codecs import FrameFile, select_frames
from kineograph.media.dataset import open_dataset
from kineograph.media.frames import BrokenFile
from kineograph.media.metadata import existing_path, find_gap
from kineograph.media.shards import expand_braces
from kineograph.methods.sdedit import parse_size
from kineograph.metrics.collection import collect_videos, read_prompts
from kineograph.models.conditioning.prompt_weights import take_loras
from kineograph.models.unet.windows import overlapping_windows
from kineograph.motion import Motion, camera_offset, parse
from kineograph.training.customise.image_data import list_image_files
from kineograph.training.settings_file import read_yaml

FINITE = st.floats(-1e4, 1e4, allow_nan=False)
NAMES = st.text("abcdefg-_.", min_size=1, max_size=5)
MARKS = st.lists(
    st.one_of(st.sampled_from([*"{}(),;:+=.0189x", "pan:", "zoom:", "path:", "..", "none"]), st.text(max_size=3))
)
PARSERS: dict[str, Callable[[str], object]] = {
    "camera": parse,
    "braces": expand_braces,
    "size": parse_size,
    "numbers": lambda text: parse_numbers(text, "a list"),
    "named": lambda text: parse_named([text], "an option"),
    "lora": parse_lora,
}


@pytest.mark.parametrize("name", PARSERS)
@given(parts=MARKS)
def test_any_text_is_parsed_or_refused_in_one_line(name: str, parts: Sequence[str]) -> None:
    refusal = ""
    try:
        PARSERS[name]("".join(parts))
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 1000


@given(
    st.tuples(FINITE, FINITE), st.floats(1e-3, 10), FINITE, st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=4)
)
def test_camera_motion_written_as_text_is_read_again(pan, zoom, rotation, path) -> None:
    points = ";".join(f"{x!r},{y!r}" for x, y in path)
    text = f"pan:{pan[0]!r},{pan[1]!r}+zoom:{zoom!r}+rotate:{rotation!r}+path:{points}"
    motion = parse(text)
    assert motion == Motion(pan, zoom, rotation, tuple(path))
    assert all(map(math.isfinite, camera_offset(motion, 3, 8)))


@given(st.lists(st.lists(NAMES, min_size=2, max_size=3), min_size=1, max_size=3))
def test_braces_of_lists_name_all_combinations_in_order(choices: list[list[str]]) -> None:
    pattern = "/".join(f"{{{','.join(each)}}}" for each in choices)
    assert expand_braces(pattern) == ["/".join(each) for each in product(*choices)]


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 5))
def test_braces_of_numbers_name_each_once(first: int, count: int, width: int) -> None:
    last = first + count
    start = f"{first:0{width}d}"
    names = expand_braces(f"a-{{{start}..{last}}}.tar")
    assert [int(each[2:-4]) for each in names] == [*range(first, last + 1)]
    assert all(len(each) - 6 >= len(start) for each in names)


@given(st.integers(1, 100), st.integers(1, 24), st.data())
def test_windows_cover_all_frames_and_overlap_as_asked(frames: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    windows = overlapping_windows(frames, size, overlap)
    assert windows[0].start == 0
    assert windows[-1].stop == frames
    assert all(len(each) == min(size, frames) for each in windows)
    assert all(overlap <= before.stop - after.start for before, after in pairwise(windows))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.floats(0.1, 60), st.none() | st.floats(0.1, 240))
def test_frames_at_any_rate_are_those_of_the_file_in_order(times, own, rate) -> None:
    times = sorted({0.0, *times})
    indices = select_frames(FrameFile(times, own, times[-1] + 1 / own, lambda: iter(())), rate)
    assert indices
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < len(times)


@pytest.mark.parametrize(
    ("numbers", "gap"),
    [
        ([0, 1, 2], None),
        ([0, 10, 20], None),
        ([7], None),
        ([0, 1, 3], ("frame_1.png", "frame_3.png")),
        ([0, 5, 15, 20], ("frame_5.png", "frame_15.png")),
    ],
)
def test_missing_numbers_of_frames_are_found(numbers: list[int], gap: tuple[str, str] | None) -> None:
    assert find_gap([Path(f"frame_{number}.png") for number in numbers]) == gap


@given(st.floats(1e9, 1e300), st.floats(1e3, 1e6))
def test_timestamps_that_would_give_millions_of_frames_are_refused(end: float, rate: float) -> None:
    with pytest.raises(BrokenFile):
        select_frames(FrameFile([0.0, end], rate, end, lambda: iter(())))


def test_few_frames_with_hours_between_them_are_refused() -> None:
    times = [0.0, 0.04, 0.08, 6000.0]
    with pytest.raises(BrokenFile, match="would have 150001 frames at 25 a second"):
        select_frames(FrameFile(times, 25.0, 6000.04, lambda: iter(())))
    assert len(select_frames(FrameFile([*times[:3], 300.0], 25.0, 300.04, lambda: iter(())))) == 7501


@given(st.lists(FINITE, max_size=5))
def test_numbers_written_as_text_are_read_again(numbers: list[float]) -> None:
    assert parse_numbers(",".join(map(repr, numbers)), "a list") == tuple(numbers)


@pytest.mark.parametrize(
    "parse",
    [
        lambda: parse_lora(f"{'a' * 5000}=x"),
        lambda: take_loras(f"a cat <lora:{'a' * 5000}:x>"),
        lambda: take_loras(f"a cat <hypernet:{'a' * 5000}:1>"),
        lambda: check_prompts([f"a [{'a' * 5000}:0.5]"], "a1111"),
        lambda: check_prompts([f"({'a' * 5000}:1300)"], "a1111"),
        lambda: check_prompts([f"<lora:{'a' * 5000}:1>"], "a1111"),
    ],
)
def test_long_texts_are_not_repeated_in_messages(parse: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        parse()
    assert len(str(caught.value)) < 1000


@given(st.integers(0, 99999), st.integers(0, 99999))
def test_sizes_are_read_as_width_and_height(height: int, width: int) -> None:
    assert parse_size(f" {width}X{height} ") == (height, width)


@pytest.mark.parametrize(
    "open_path",
    [
        local_path,
        existing_path,
        open_dataset,
        collect_videos,
        list_image_files,
        lambda text: read_prompts(f"{text}.csv"),
        lambda text: read_yaml(Path(text)),
    ],
)
@pytest.mark.parametrize(
    "text", ["a" * 5000, "x\0y", "a/b\ud800", f"{'a' * 300}/b c.mp4"], ids=["long", "null", "surrogate", "name"]
)
def test_text_that_is_no_path_is_named_in_one_line(open_path: Callable[[str], object], text: str) -> None:
    with pytest.raises(InputError) as caught:
        open_path(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
