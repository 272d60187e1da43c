"""Deterministic shuffling: items depend on seed, step and position only, whatever is broken."""

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
from kineograph.media.frames import BrokenFile
from kineograph.media.shards import FileRange
from kineograph.media.training_clips import Clip, load_clip, random_crop
from kineograph.training.temporal_layers.shuffling import sample_item

BATCH = 4
ITEMS = tuple(DatasetItem(f"{number}", "", "video", FileRange(Path(f"{number}"))) for number in range(23))
DATASET = Dataset("memory", "items", ITEMS)


def name(item: DatasetItem, rng: np.random.Generator) -> str:
    return item.name


def load_intact(item: DatasetItem, rng: np.random.Generator, broken: set[str]) -> str:
    if item.name in broken:
        raise BrokenFile(f"{item.name} is broken")
    return item.name


def batches(steps: range, load=name, skipped=None, dataset: Dataset = DATASET, seed: int = 7) -> list[list]:
    options = {"batch_size": BATCH, "seed": seed, "load": load, "skipped": {} if skipped is None else skipped}
    return [[sample_item(dataset, step, position, **options) for position in range(BATCH)] for step in steps]


def flat(nested: list[list]) -> list:
    return [*chain.from_iterable(nested)]


def test_every_epoch_is_another_permutation_of_all_items() -> None:
    shown = flat(batches(range(23)))  # four epochs of 23
    epochs = [shown[23 * number :][:23] for number in range(4)]
    assert all(sorted(epoch) == sorted(item.name for item in ITEMS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert batches(range(3)) != batches(range(3), seed=8)


def test_a_resumed_run_loads_the_same_batches() -> None:
    def load(item, rng):
        return item.name, rng.integers(1 << 30)

    assert batches(range(5, 9), load) == batches(range(9), load)[5:]
    assert len({rng for _, rng in flat(batches(range(9), load))}) == 36


def test_the_order_of_loading_has_no_effect() -> None:
    options = {"batch_size": BATCH, "seed": 7, "load": name, "skipped": {}}
    for step, batch in enumerate(batches(range(6))):
        backwards = [sample_item(DATASET, step, position, **options) for position in reversed(range(BATCH))]
        assert backwards[::-1] == batch


def test_a_broken_item_is_replaced_by_the_next_that_the_batch_does_not_hold() -> None:
    whole, skipped = batches(range(30)), {}
    broken = {whole[2][1], whole[5][3], "3"}
    found = batches(range(30), partial(load_intact, broken=broken), skipped)
    assert skipped == {name: f"{name} is broken" for name in broken}
    for step in range(29):
        for position in range(BATCH):
            expected = next(whole[later][position] for later in range(step, 30) if whole[later][position] not in broken)
            assert found[step][position] == expected
    inside = [batch for step, batch in enumerate(found) if (4 * step) % 23 < 15]  # all of one epoch, the next ones too
    assert all(len(set(batch)) == BATCH for batch in inside)


def test_items_skipped_before_have_no_effect() -> None:
    broken = {"3", "5", "8"}
    load = partial(load_intact, broken=broken)
    known = {"3": "known", "9": "intact by now"}
    assert batches(range(12), load, known) == batches(range(12), load, {})
    assert known["3"] == "known"  # counted once


def test_the_error_without_intact_items_gives_a_reason() -> None:
    everything = {item.name for item in ITEMS}
    skipped: dict[str, str] = {}
    with pytest.raises(InputError, match=r"23 of 23 were tried\. \d+ is broken"):
        batches(range(1), partial(load_intact, broken=everything), skipped)
    assert set(skipped) == everything
    assert batches(range(2), partial(load_intact, broken=everything - {"4"})) == [["4"] * 4] * 2
    with pytest.raises(InputError, match="0 of 0 were tried. it is empty"):
        batches(range(1), dataset=Dataset("memory", "items", ()))


def test_other_errors_propagate() -> None:
    def load(item, rng):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample_item(DATASET, 0, 0, batch_size=1, seed=0, load=load, skipped={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of five intact videos of several codecs, and of broken, empty, one-frame and odd-sized ones."""
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


def test_broken_files_of_a_folder_are_named_and_replaced(folder) -> None:
    load = partial(load_clip, num_frames=4, height=24, width=24, rates=(5, 10), crop=random_crop)
    skipped: dict[str, str] = {}
    clips: list[Clip] = flat(batches(range(4), load, skipped, open_dataset(folder)))
    assert {*skipped} == {"empty.mp4", "half.mp4", "short.mp4"}
    assert "empty.mp4 is empty" in skipped.values() and "is too short" in skipped["short.mp4"]
    assert all(seen.frames.shape == (4, 24, 24, 3) for seen in clips)
    for seen in clips:
        first, *_ = shown = numbers(seen.frames)
        assert shown == [first + number * round(10 / seen.fps) for number in range(4)]
    assert {seen.caption for seen in clips} == {f"of {n}" for n in ("0.mp4", "1.mkv", "2.webm", "3.avi", "odd.mkv")}


def test_shards_give_the_same_clips_as_the_folder_they_were_made_of(folder, tmp_path: Path) -> None:
    contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    shard = tar(tmp_path / "s.tar", contents)
    load = partial(load_clip, num_frames=4, height=24, width=24, rates=(5, 10), crop=random_crop)
    one, other = (flat(batches(range(3), load, {}, open_dataset(source))) for source in (folder, shard))
    for seen, same in zip(one, other, strict=True):
        assert (seen.frames == same.frames).all() and seen[1:] == same[1:]
