"""Drawing for training: told by seed, step and place alone, whoever draws, and whatever is broken."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from numbered import movie, numbered, numbers, tar

from kineograph.errors import InputError
from kineograph.media.dataset import Dataset, open_dataset
from kineograph.media.dataset_layouts import DatasetItem
from kineograph.media.sampling_order import draw, sample_item, share
from kineograph.media.seek import BrokenFile
from kineograph.media.shards import FileRange
from kineograph.media.training_clips import Clip, load_clip, random_crop

BATCH = 4
ITEMS = tuple(DatasetItem(f"{number}", "", "video", FileRange(Path(f"{number}"))) for number in range(23))
DATASET = Dataset("memory", "items", ITEMS)


def name(item: DatasetItem, rng: np.random.Generator) -> str:
    return item.name


def sound(item: DatasetItem, rng: np.random.Generator, broken: set[str]) -> str:
    if item.name in broken:
        raise BrokenFile(f"{item.name} is broken")
    return item.name


def batches(steps: range, cut=name, skipped=None, dataset: Dataset = DATASET, seed: int = 7) -> list[list]:
    told = {} if skipped is None else skipped
    return [draw(dataset, step, range(BATCH), batch=BATCH, seed=seed, cut=cut, skipped=told) for step in steps]


def flat(drawn: list[list]) -> list:
    return [*chain.from_iterable(drawn)]


def test_every_epoch_shows_everything_once_in_an_order_of_its_own():
    shown = flat(batches(range(23)))  # four epochs of 23
    epochs = [shown[23 * number :][:23] for number in range(4)]
    assert all(sorted(epoch) == sorted(item.name for item in ITEMS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert batches(range(3)) != batches(range(3), seed=8)


def test_a_run_that_goes_on_draws_what_it_would_have_drawn():
    def cut(item, rng):
        return item.name, rng.integers(1 << 30)

    assert batches(range(5, 9), cut) == batches(range(9), cut)[5:]
    assert len({rng for _, rng in flat(batches(range(9), cut))}) == 36


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_a_batch_without_changing_it(processes):
    whole = batches(range(6))
    for step, batch in enumerate(whole):
        places = [share(BATCH, rank, processes) for rank in range(processes)]
        parts = [draw(DATASET, step, mine, batch=BATCH, seed=7, cut=name, skipped={}) for mine in places]
        assert all(place % processes == rank for rank, mine in enumerate(places) for place in mine)
        shown = dict(zip(chain(*places), chain(*parts), strict=True))
        assert [shown[place] for place in range(BATCH)] == batch


def test_in_place_of_a_broken_item_comes_the_next_that_the_batch_does_not_hold():
    whole, skipped = batches(range(30)), {}
    broken = {whole[2][1], whole[5][3], "3"}
    found = batches(range(30), partial(sound, broken=broken), skipped)
    assert skipped == {name: f"{name} is broken" for name in broken}
    for step in range(29):
        for place in range(BATCH):
            comes = next(whole[later][place] for later in range(step, 30) if whole[later][place] not in broken)
            assert found[step][place] == comes
    inside = [batch for step, batch in enumerate(found) if (4 * step) % 23 < 15]  # all of one epoch, the next ones too
    assert all(len(set(batch)) == BATCH for batch in inside)


def test_what_was_skipped_before_changes_nothing():
    broken = {"3", "5", "8"}
    cut = partial(sound, broken=broken)
    known = {"3": "known", "9": "sound by now"}
    assert batches(range(12), cut, known) == batches(range(12), cut, {})
    assert known["3"] == "known"  # counted once


def test_when_nothing_is_left_it_says_why():
    everything = {item.name for item in ITEMS}
    skipped: dict[str, str] = {}
    with pytest.raises(InputError, match=r"23 of 23 were tried\. \d+ is broken"):
        batches(range(1), partial(sound, broken=everything), skipped)
    assert set(skipped) == everything
    assert batches(range(2), partial(sound, broken=everything - {"4"})) == [["4"] * 4] * 2
    with pytest.raises(InputError, match="0 of 0 were tried. it is empty"):
        batches(range(1), dataset=Dataset("memory", "items", ()))


def test_other_errors_are_not_swallowed():
    def cut(item, rng):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample_item(DATASET, 0, 0, batch=1, seed=0, cut=cut, skipped={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sound videos of several codecs, and what a folder gathers: broken, empty, one-frame and odd-sized ones."""
    videos = tmp_path / "videos"
    kinds = (("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"))
    for number, (ending, codec) in enumerate(kinds):
        movie(videos / f"{number}.{ending}", numbered(12, 32 + 16 * number, 48), codec=codec)
    movie(videos / "odd.mkv", numbered(12, 33, 51), codec="ffv1")
    movie(videos / "short.mp4", numbered(1))
    (videos / "empty.mp4").touch()
    (videos / "half.mp4").write_bytes((videos / "0.mp4").read_bytes()[:700])
    for file in list(videos.iterdir()):
        file.with_suffix(".txt").write_text(f"of {file.name}")
    return videos


def test_training_on_a_folder_with_broken_files_names_them_and_goes_on(folder):
    cut = partial(load_clip, num_frames=4, height=24, width=24, rates=(5, 10), crop=random_crop)
    skipped: dict[str, str] = {}
    clips: list[Clip] = flat(batches(range(4), cut, skipped, open_dataset(folder)))
    assert {*skipped} == {"empty.mp4", "half.mp4", "short.mp4"}
    assert "empty.mp4 is empty" in skipped.values() and "is too short" in skipped["short.mp4"]
    assert all(seen.frames.shape == (4, 24, 24, 3) for seen in clips)
    for seen in clips:
        first, *_ = shown = numbers(seen.frames)
        assert shown == [first + number * round(10 / seen.fps) for number in range(4)]
    assert {seen.caption for seen in clips} == {f"of {n}" for n in ("0.mp4", "1.mkv", "2.webm", "3.avi", "odd.mkv")}


def test_shards_are_drawn_like_the_folder_they_were_made_of(folder, tmp_path):
    contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    shard = tar(tmp_path / "s.tar", contents)
    cut = partial(load_clip, num_frames=4, height=24, width=24, rates=(5, 10), crop=random_crop)
    one, other = (flat(batches(range(3), cut, {}, open_dataset(source))) for source in (folder, shard))
    for seen, same in zip(one, other, strict=True):
        assert (seen.frames == same.frames).all() and seen[1:] == same[1:]
