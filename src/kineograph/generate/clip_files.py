"""Finished clips on disk, so that a video that was interrupted goes on from the last of them to the same result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from kineograph.generate.clips import Drawn
from kineograph.media.files import instead_of
from kineograph.media.metadata import identifier
from kineograph.methods.vidrd import Past
from kineograph.plan import Clip


def place(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Where the clips of a video of these settings are kept: other settings, other clips."""
    return folder / identifier(json.loads(json.dumps(settings)))


def kept(at: Path) -> tuple[list[np.ndarray], Clip]:
    """The frames of the clips that are finished, and the clip to go on with."""
    files = sorted(at.glob("*.safetensors"))
    if not files:
        return [], Clip()
    return [load_file(file)["frames"].numpy() for file in files], _clip(load_file(files[-1]), len(files))


def keeping(at: Path, clips: Iterable[Drawn]) -> Iterator[Drawn]:
    """The same clips, each written when it is finished."""
    for each in clips:
        with instead_of(at / f"{each.after.number - 1:04}.safetensors") as part:
            save_file({"frames": torch.from_numpy(np.ascontiguousarray(each.frames)), **_tensors(each.after)}, part)
        yield each


def _tensors(clip: Clip) -> dict[str, torch.Tensor]:
    assert clip.past is not None, "a clip was finished"
    levels = {f"level {sigma!r}": x for sigma, x in clip.past.levels.items()}
    first = {f"first {sigma!r}": x for sigma, x in (clip.first or {}).items()}
    return {name: x.cpu().contiguous() for name, x in {"noise": clip.past.noise, **levels, **first}.items()}


def _clip(tensors: Mapping[str, torch.Tensor], number: int) -> Clip:
    def named(kind: str) -> dict[float, torch.Tensor]:
        return {float(name.split()[1]): x for name, x in tensors.items() if name.startswith(kind)}

    return Clip(number, Past(tensors["noise"], named("level ")), named("first "))
