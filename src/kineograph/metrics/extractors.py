"""Extractors and video metrics by the names that `kineograph evaluate --extractor` takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from kineograph.errors import InputError, expand_user
from kineograph.media.dataset_layouts import IMAGE_SUFFIXES
from kineograph.media.images import read_image
from kineograph.metrics.encoders import clip_extractor, load_clip_encoder, load_videomae
from kineograph.metrics.features import Extractor, Frames
from kineograph.metrics.torchscript import load_torchscript
from kineograph.metrics.video_metrics import (
    VideoMetric,
    clip_metric,
    flow_metric,
    image_similarity_metric,
    sharpness_metric,
)
from kineograph.models.pocket import WEIGHTS
from kineograph.plugins import find_plugins, load_plugin

POCKET = "pocket"  # the laboratory's judge
CLIP = "clip"
POCKET_CLIP = WEIGHTS / "clip"  # the CLIP that ships with the pocket model
BUILT_IN = (POCKET, "pocket-clip")  # names of extractors that were trained on the pocket world alone

LOADERS: Mapping[str, Callable[[str, torch.device | str], Extractor]] = {
    CLIP: lambda source, device: clip_extractor(load_clip_encoder(source, device)),
    "videomae": load_videomae,
    "torchscript": load_torchscript,
}


def default_extractor() -> str:
    """Return "pocket" if the laboratory is installed, else "clip"."""
    return POCKET if POCKET in find_plugins("extractors") else CLIP


def load_metrics(
    names: Sequence[str] | None = None, *, images: str | Path | None = None, device: torch.device | str = "cpu"
) -> tuple[list[Extractor], list[VideoMetric]]:
    """Load the named extractors, and the video metrics that go with them.

    The optical-flow metrics and sharpness are always among them. The first CLIP named gives CLIP-T and frame
    consistency; "pocket" gives them by the pocket model's own CLIP, and adds the judge's metrics.

    Args:
        names: names as `load_extractor` takes them; by default `default_extractor`.
        images: a folder with images of a subject or style, for CLIP-I.

    Raises InputError when an extractor cannot be loaded, two have one name, `images` is given without a CLIP or holds
    no images, or OpenCV is not installed.
    """
    names = names or [default_extractor()]
    extractors, metrics = load_extractors(names, device), [flow_metric(), sharpness_metric()]
    source = _clip_source(names)
    if source is None and images is not None:
        raise InputError("similarity to images needs a CLIP: name one by clip:PATH, or pocket")
    if source is not None:
        encoder = load_clip_encoder(source, device)
        metrics.append(clip_metric(encoder))
        if images is not None:
            metrics.append(image_similarity_metric(encoder, *_read_images(expand_user(images))))
    if POCKET in names:
        metrics.append(load_plugin("metrics", POCKET)())
    return extractors, metrics


def load_extractors(names: Sequence[str], device: torch.device | str = "cpu") -> list[Extractor]:
    """Load several extractors. Raises InputError as `load_extractor` does, and when two have the same name."""
    extractors = [load_extractor(name, device) for name in names]
    labels = [extractor.name for extractor in extractors]
    if len({*labels}) < len(labels):
        raise InputError(f"two extractors have the same name ({', '.join(labels)}): give each once, or rename a file")
    return extractors


def load_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """Load an extractor: pocket, clip, clip:PATH, videomae:PATH (folders or hub ids) or torchscript:FILE.

    Raises InputError when there is no such extractor, or it cannot be loaded.
    """
    if name == POCKET:
        return load_plugin("extractors", POCKET)()
    if name == CLIP:
        return clip_extractor(load_clip_encoder(POCKET_CLIP, device))._replace(name="pocket-clip")
    kind, _, source = name.partition(":")
    if kind not in LOADERS or not source:
        raise InputError(f"there is no extractor {name!r}: expected {POCKET}, {CLIP}, {':PATH, '.join(LOADERS)}:PATH")
    return LOADERS[kind](source, device)


def _clip_source(names: Sequence[str]) -> str | Path | None:
    """Return the source of the first CLIP named; the pocket model's for "pocket", whose judge is no CLIP."""
    named = [name for name in names if name.partition(":")[0] == CLIP]
    if named:
        return named[0].removeprefix(f"{CLIP}:") if named[0] != CLIP else POCKET_CLIP
    return POCKET_CLIP if POCKET in names else None


def _read_images(folder: Path) -> tuple[list[Frames], str]:
    """Read the images of a folder, each a video of one frame, and hash their files."""
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no images: expected files that end in {' '.join(sorted(IMAGE_SUFFIXES))}")
    digest, images = hashlib.sha256(), []
    for file in files:
        image = read_image(file)
        images.append(image.pixels[None])
        digest.update(bytes.fromhex(image.digest))
    return images, digest.hexdigest()
