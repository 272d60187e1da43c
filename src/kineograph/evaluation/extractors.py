"""Extractors by their names on the command line, and the pocket world's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from kineograph.errors import InputError
from kineograph.evaluation.features import SPREAD, Extractor, Reading
from kineograph.evaluation.metrics import Frames
from kineograph.evaluation.torchscripts import open_torchscript
from kineograph.evaluation.towers import clip_extractor, open_clip, open_videomae
from kineograph.models.origin import fingerprint
from kineograph.pocket.judge import FRAMES, SIDE, SMALL, Judge, load_judge, resampled
from kineograph.pocket.sheets import as_tensor

POCKET = "pocket"
MOTION_WEIGHT = 16.0  # makes what moves vary as much as what is shown, over the world's clips
LEAST = 2  # frames of a video that moves

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
        return pocket_extractor(load_judge())
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


def pocket_extractor(judge: Judge) -> Extractor:
    """The judge's two eyes on the pocket world's clips: how it moves, and what its frames show on average.

    224 features, of 16 frames of 64 x 64 and of 128 x 128; its classes are the world's things. It knows nothing of
    other videos.
    """

    @torch.no_grad()
    def read(frames: Frames) -> Reading:
        pictures = as_tensor(frames)
        film = resampled(pictures, SMALL).transpose(0, 1)[None]
        moving = judge.motion_eye.layers[:-2](film).mean((2, 3, 4))[0]  # without the flat layer and the answers
        seen = judge.eye.stages(resampled(pictures, SIDE))
        things = functional.softmax(judge.eye.answers["thing"](seen), dim=1).mean(0)
        features = torch.cat([MOTION_WEIGHT * moving, seen.mean(0)])
        return Reading(features.double().numpy(), things.double().numpy())

    resize = f"bilinear, squashed to {SIDE} x {SIDE} and {SMALL} x {SMALL}"
    return Extractor(POCKET, fingerprint(judge), resize, FRAMES, SPREAD, LEAST, read)


def clip_of(texts: Sequence[str], pocket: Path) -> str | Path | None:
    """Where the CLIP lies that goes with these extractors: the first named, else the pocket world's with its judge."""
    named = [text.removeprefix("clip:") for text in texts if text.startswith("clip:")]
    return named[0] if named else pocket if POCKET in texts else None
