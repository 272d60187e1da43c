"""Extractors by their names on the command line, and the pocket world's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from kineograph.errors import InputError
from kineograph.metrics.encoders import clip_extractor, open_clip, open_videomae
from kineograph.metrics.features import Extractor
from kineograph.metrics.torchscript import open_torchscript
from kineograph.plugins import load_plugin

POCKET = "pocket"

OPENERS: Mapping[str, Callable[[str, torch.device | str], Extractor]] = {
    "clip": lambda source, device: clip_extractor(open_clip(source, device)),
    "videomae": open_videomae,
    "torchscript": open_torchscript,
}


def open_extractor(text: str, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of a text: pocket, clip:PATH, videomae:PATH (folders or hub ids) or torchscript:FILE.

    Raises InputError for another text, and when what it names cannot be opened.
    """
    if text == POCKET:
        return load_plugin("extractors", POCKET)()
    kind, _, source = text.partition(":")
    if kind not in OPENERS or not source:
        raise InputError(f"there is no extractor {text!r}: expected {POCKET}, {':PATH, '.join(OPENERS)}:PATH")
    return OPENERS[kind](source, device)


def open_extractors(texts: Sequence[str], device: torch.device | str = "cpu") -> list[Extractor]:
    """The extractors of several texts. Raises InputError as one does, and when two have the same name."""
    opened = [open_extractor(text, device) for text in texts]
    names = [each.name for each in opened]
    if len({*names}) < len(names):
        raise InputError(f"two extractors are called alike ({', '.join(names)}): give each once, or rename a file")
    return opened


def clip_of(texts: Sequence[str], pocket: Path) -> str | Path | None:
    """Where the CLIP lies that goes with these extractors: the first named, else the pocket world's with its judge."""
    named = [text.removeprefix("clip:") for text in texts if text.startswith("clip:")]
    return named[0] if named else pocket if POCKET in texts else None
