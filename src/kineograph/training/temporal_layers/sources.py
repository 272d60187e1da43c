"""Where a training's pictures and videos come from: datasets and the pocket world, each drawn from by its weight."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from kineograph.errors import InputError
from kineograph.media.dataset import Dataset, open_dataset
from kineograph.media.dataset_layouts import Item, Kind
from kineograph.media.sampling_order import drawn
from kineograph.media.seek import BrokenFile
from kineograph.media.training_clips import Clip, clip, fitted_at
from kineograph.plugins import load_plugin
from kineograph.training.temporal_layers.latents import EncodeClip, EncodedClip, ClipRequest
from kineograph.training.temporal_layers.settings import POCKET, DataSource, Stage

Rng = np.random.Generator
ClipLoader = Callable[
    [int, int, int], EncodedClip
]  # (which batch of its kind, place in it, how many places it has) -> what is there

CHOICE, CLIP, SHOT = 11, 12, 13  # streams of random numbers of one seed, beside those of data.draws


class OpenSource(NamedTuple):
    """A source of pictures or of videos. dataset: None for the pocket world."""

    source: DataSource
    kind: Kind
    dataset: Dataset | None


class ClipShape(NamedTuple):
    """What is cut of an item. rates: frames a second to choose from; None for its own."""

    num_frames: int
    height: int
    width: int
    rates: tuple[float, ...] | None


class LoadOptions(NamedTuple):
    """How items are drawn. seed: of the order; those of what is seen, in whichever order, have `content_seed`.

    clips: how many different windows of an item there are; None for no end of them.
    skipped: every broken item is entered with the reason.
    """

    seed: int
    content_seed: int
    clips: int | None
    see: EncodeClip
    skipped: MutableMapping[str, str]


def clip_shape(stage: Stage, kind: Kind) -> ClipShape:
    """What a stage cuts of an item."""
    if kind == "image":
        return ClipShape(1, stage.height, stage.width, None)
    return ClipShape(stage.num_frames, stage.height, stage.width, stage.fps)


def open_sources(sources: Iterable[DataSource], kind: Kind) -> tuple[OpenSource, ...]:
    """The sources' pictures, or their videos. Raises InputError for one that has none, or nothing at all."""
    return tuple(OpenSource(each, kind, None if each.source == POCKET else _only(each, kind)) for each in sources)


def _only(source: DataSource, kind: Kind) -> Dataset:
    whole = open_dataset(source.source)
    chosen = whole.only(kind)
    if not chosen:
        raise InputError(
            f"{source.source} is named among the {kind}s and has none, but {len(whole)} of the other kind, read as "
            f"{whole.layout}: name it under {'videos' if kind == 'image' else 'images'}"
        )
    return chosen


def combined_loader(sources: Sequence[OpenSource], shape: ClipShape, rules: LoadOptions) -> ClipLoader:
    """What is seen at each place of each batch, of all sources together."""
    looks = [_look(each, shape, rules) for each in sources]
    if len(looks) == 1:
        return looks[0]
    weights = np.array([each.source.weight for each in sources])

    def look(turn: int, place: int, batch: int) -> EncodedClip:
        rng = np.random.default_rng((CHOICE, rules.seed, turn, place))
        return looks[int(rng.choice(len(looks), p=weights / weights.sum()))](turn, place, batch)

    return look


def _look(each: OpenSource, shape: ClipShape, rules: LoadOptions) -> ClipLoader:
    if each.dataset is None:
        return partial(_rendered, each, shape, rules)
    seen = partial(_in_file, shape, rules)

    def look(turn: int, place: int, batch: int) -> EncodedClip:
        assert each.dataset is not None
        return drawn(each.dataset, turn, place, batch=batch, seed=rules.seed, cut=seen, skipped=rules.skipped)

    return look


def _in_file(shape: ClipShape, rules: LoadOptions, item: Item, rng: Rng) -> EncodedClip:
    """A window of an item: any, or, where they are counted, one of a few."""
    key: tuple[object, ...] = ()
    if rules.clips is not None:
        number = int(rng.integers(rules.clips)) if item.kind == "video" else 0
        rng = np.random.default_rng((CLIP, rules.content_seed, zlib.crc32(item.name.encode()), number))
        key = (*_identity(item), number, rules.content_seed, *shape)
    return rules.see(ClipRequest(key, item.caption, partial(cut_clip, item, rng, shape)))


def cut_clip(item: Item, rng: Rng, shape: ClipShape) -> Clip:
    """A random window of an item. Raises BrokenFile."""
    num_frames, height, width, rates = shape
    return clip(item, rng, num_frames=num_frames, height=height, width=width, rates=rates)


def _identity(item: Item) -> tuple[object, ...]:
    """What tells an item from what may once stand in its place. Raises BrokenFile when it is gone."""
    try:
        file = item.place.path.stat()
    except OSError as error:
        raise BrokenFile(f"{item.name} cannot be read ({error.strerror})") from error
    start, size = item.place.start, item.place.size
    return item.name, str(item.place.path.resolve()), start, size, file.st_size, file.st_mtime_ns


def _rendered(each: OpenSource, shape: ClipShape, rules: LoadOptions, turn: int, place: int, batch: int) -> EncodedClip:
    number = turn * batch + place
    number = number if each.source.count is None else number % each.source.count
    rng = np.random.default_rng((SHOT, rules.content_seed, number))
    caption, render = load_plugin("training_sources", POCKET)(rng, each.kind, shape)
    key = (POCKET, each.kind, rules.content_seed, number, *shape)
    return rules.see(ClipRequest(key, caption, lambda: _fitted_clip(render(), shape)))


def _fitted_clip(clip: Clip, shape: ClipShape) -> Clip:
    return clip._replace(frames=_fitted(clip.frames, shape))


def _fitted(frames: np.ndarray, shape: ClipShape) -> np.ndarray:
    if frames.shape[1:3] == (shape.height, shape.width):
        return frames
    at = (0.5, 0.5)
    return np.stack([fitted_at(Image.fromarray(frame), shape.height, shape.width, at) for frame in frames])
