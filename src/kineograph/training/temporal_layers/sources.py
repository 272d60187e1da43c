"""Sources of training images and videos: data sets and the built-in pocket world, sampled by their weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from kineograph.errors import InputError
from kineograph.media.dataset import Dataset, open_dataset
from kineograph.media.dataset_layouts import DatasetItem, MediaKind
from kineograph.media.frames import BrokenFile
from kineograph.media.images import crop_resize
from kineograph.media.training_clips import Clip, load_clip
from kineograph.plugins import load_plugin
from kineograph.training.temporal_layers.latent_cache import ClipRequest, EncodeClip, EncodedClip
from kineograph.training.temporal_layers.settings import POCKET, DataSource, Stage
from kineograph.training.temporal_layers.shuffling import sample_item

# (number of the batch of its kind, position in the batch, size of the batch) -> clip
ClipLoader = Callable[[int, int, int], EncodedClip]

# Streams of random numbers of one seed, different from those of `shuffling`.
SOURCE_STREAM, WINDOW_STREAM, RENDER_STREAM = 11, 12, 13


class OpenSource(NamedTuple):
    """A source of images or of videos. dataset: None for the pocket world."""

    source: DataSource
    kind: MediaKind
    dataset: Dataset | None


class ClipShape(NamedTuple):
    """Number and size of the frames of a clip. rates: frames a second to choose from; None for the video's own."""

    num_frames: int
    height: int
    width: int
    rates: tuple[float, ...] | None


class ClipLoaderOptions(NamedTuple):
    """Options of loading clips.

    seed: of the order of items.
    content_seed: of the windows and renderings, whichever order they come in.
    windows: number of different windows of a video; None for no limit.
    encode: turns a clip into latents.
    skipped: receives the name of every broken item with the reason.
    """

    seed: int
    content_seed: int
    windows: int | None
    encode: EncodeClip
    skipped: MutableMapping[str, str]


def clip_shape(stage: Stage, kind: MediaKind) -> ClipShape:
    """Return the shape of a stage's clips; an image is a clip of one frame."""
    if kind == "image":
        return ClipShape(1, stage.height, stage.width, None)
    return ClipShape(stage.num_frames, stage.height, stage.width, stage.fps)


def open_sources(sources: Iterable[DataSource], kind: MediaKind) -> tuple[OpenSource, ...]:
    """Open the images, or the videos, of sources. Raises InputError for a source without any."""
    return tuple(OpenSource(each, kind, None if each.source == POCKET else _open(each, kind)) for each in sources)


def _open(source: DataSource, kind: MediaKind) -> Dataset:
    whole = open_dataset(source.source)
    chosen = whole.only(kind)
    if not chosen:
        raise InputError(
            f"{source.source} is named among the {kind}s and has none, but {len(whole)} of the other kind, read as "
            f"{whole.layout}: name it under {'videos' if kind == 'image' else 'images'}"
        )
    return chosen


def combined_loader(sources: Sequence[OpenSource], shape: ClipShape, options: ClipLoaderOptions) -> ClipLoader:
    """Return the function that loads clips from all sources, each chosen by its weight."""
    loaders = [_loader(each, shape, options) for each in sources]
    if len(loaders) == 1:
        return loaders[0]
    weights = np.array([each.source.weight for each in sources])

    def load(batch: int, position: int, size: int) -> EncodedClip:
        rng = np.random.default_rng((SOURCE_STREAM, options.seed, batch, position))
        return loaders[int(rng.choice(len(loaders), p=weights / weights.sum()))](batch, position, size)

    return load


def _loader(opened: OpenSource, shape: ClipShape, options: ClipLoaderOptions) -> ClipLoader:
    if opened.dataset is None:
        return partial(_load_rendering, opened, shape, options)
    dataset, load_item = opened.dataset, partial(_load_item, shape, options)

    def load(batch: int, position: int, size: int) -> EncodedClip:
        return sample_item(
            dataset, batch, position, batch_size=size, seed=options.seed, load=load_item, skipped=options.skipped
        )

    return load


def _load_item(
    shape: ClipShape, options: ClipLoaderOptions, item: DatasetItem, rng: np.random.Generator
) -> EncodedClip:
    """Load a random window of an item: any, or one of `options.windows`."""
    key: tuple[object, ...] = ()
    if options.windows is not None:
        number = int(rng.integers(options.windows)) if item.kind == "video" else 0
        rng = np.random.default_rng((WINDOW_STREAM, options.content_seed, zlib.crc32(item.name.encode()), number))
        key = (*_identity(item), number, options.content_seed, *shape)
    return options.encode(ClipRequest(key, item.caption, partial(cut_clip, item, rng, shape)))


def cut_clip(item: DatasetItem, rng: np.random.Generator, shape: ClipShape) -> Clip:
    """Cut a random window from an item. Raises BrokenFile."""
    num_frames, height, width, rates = shape
    return load_clip(item, rng, num_frames=num_frames, height=height, width=width, rates=rates)


def _identity(item: DatasetItem) -> tuple[object, ...]:
    """Return what distinguishes a file from a later one of the same name. Raises BrokenFile when it is gone."""
    try:
        file = item.file_range.path.stat()
    except OSError as error:
        raise BrokenFile(f"{item.name} cannot be read ({error.strerror})") from error
    start, size = item.file_range.start, item.file_range.size
    return item.name, str(item.file_range.path.resolve()), start, size, file.st_size, file.st_mtime_ns


def _load_rendering(
    opened: OpenSource, shape: ClipShape, options: ClipLoaderOptions, batch: int, position: int, size: int
) -> EncodedClip:
    """Render an image or clip of the pocket world."""
    number = batch * size + position
    number = number if opened.source.count is None else number % opened.source.count
    rng = np.random.default_rng((RENDER_STREAM, options.content_seed, number))
    caption, render = load_plugin("training_sources", POCKET)(rng, opened.kind, shape)
    key = (POCKET, opened.kind, options.content_seed, number, *shape)
    return options.encode(ClipRequest(key, caption, lambda: _resize(render(), shape)))


def _resize(clip: Clip, shape: ClipShape) -> Clip:
    if clip.frames.shape[1:3] == (shape.height, shape.width):
        return clip
    centre = (0.5, 0.5)
    frames = [crop_resize(Image.fromarray(frame), shape.height, shape.width, centre) for frame in clip.frames]
    return clip._replace(frames=np.stack(frames))
