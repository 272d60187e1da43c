"""Finished clips of a long video on disk, from which the same request continues, also with more clips.

NNNN.safetensors   the frames of clip NNNN; the last file has the state that the next clip starts from as well
.lock              locked while a process writes

The folder of a request is named by a hash of what its frames depend on, except the number of clips and their prompts,
which each file records, and the seed, if none is requested: then the first run's seed is used again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from kineograph.errors import InputError
from kineograph.media.files import replace_atomically
from kineograph.media.metadata import settings_id
from kineograph.methods.vidrd import ClipState, Past
from kineograph.models.formats.tensor_files import write_tensors

log = logging.getLogger(__name__)

FORMAT = "kineograph_clip"  # key of the files' metadata: JSON of {"prompt", "seed", "clip"}


class GeneratedClip(NamedTuple):
    """The frames of a clip, uint8 [b f h w 3], and the state that the next clip starts from."""

    frames: np.ndarray
    state: ClipState


@dataclass(frozen=True)
class ClipFiles:
    """The folder of one request's finished clips."""

    folder: Path

    @classmethod
    def for_settings(cls, folder: str | Path, settings: Mapping[str, Any]) -> ClipFiles:
        """Return the subfolder of a video with these settings."""
        return cls(Path(folder).expanduser() / settings_id(json.loads(json.dumps(settings))))

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Lock the folder inside the `with` block; yields False if another process has locked it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            log.warning("%s is in use by another process: the clips of this run are not kept", self.folder)
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def recorded_seed(self) -> int | None:
        """Return the seed of the clips in the folder; None if there are none."""
        files = self._files()
        return int(_read_facts(files[0])["seed"]) if files else None

    def load(self, prompts: Sequence[str], num_clips: int) -> list[GeneratedClip]:
        """Load the finished clips, of at most so many, the last with its state; none if their prompts differ.

        prompts: of each clip of the request.
        """
        files = self._files()[:num_clips]
        if not files or [_read_facts(file)["prompt"] for file in files] != list(prompts[: len(files)]):
            return []
        clips = [GeneratedClip(_read_frames(file)[None], ClipState(k)) for k, file in enumerate(files, 1)]
        if len({clip.frames.shape for clip in clips}) > 1:
            raise _damaged(files[-1])
        last = load_file(files[-1])
        if len(files) < num_clips:
            if "noise" not in last:  # its state was pruned: a longer video went on from a later clip
                return []
            clips[-1] = clips[-1]._replace(state=_read_state(last, len(files)))
        return clips

    def save(self, clip: GeneratedClip, prompt: str, seed: int) -> None:
        """Write a clip with its state, and remove the state from the previous clip's file."""
        frames = torch.from_numpy(np.ascontiguousarray(clip.frames[0]))
        number = clip.state.number - 1
        self._write(number, {"frames": frames, **_state_tensors(clip.state)}, prompt, seed)
        for later in self.folder.glob("*.safetensors"):
            if int(later.stem) > number:  # of other prompts
                later.unlink()
        if number:
            facts, before = _read_facts(self._file(number - 1)), load_file(self._file(number - 1))
            self._write(number - 1, {"frames": before["frames"]}, facts["prompt"], facts["seed"])

    def _write(self, number: int, tensors: dict[str, torch.Tensor], prompt: str, seed: int) -> None:
        with replace_atomically(self._file(number)) as part:
            write_tensors(tensors, part, {FORMAT: json.dumps({"prompt": prompt, "seed": seed, "clip": number})})

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:04}.safetensors"

    def _files(self) -> list[Path]:
        """Return the files of the first clips, up to the first that is missing."""
        return list(takewhile(Path.exists, map(self._file, count())))


def _read_facts(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {})[FORMAT])
            if {"prompt", "seed", "clip"} <= set(facts) and f"{facts['clip']:04}" == file.stem:
                return dict(facts)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise _damaged(file) from error
    raise _damaged(file)


def _read_frames(file: Path) -> np.ndarray:
    frames = load_file(file).get("frames", torch.empty(0)).numpy()
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise _damaged(file)
    return frames


def _damaged(file: Path) -> InputError:
    return InputError(f"{file} is damaged, or of another version: delete {file.parent} to begin anew")


def _state_tensors(state: ClipState) -> dict[str, torch.Tensor]:
    past = state.past or Past(torch.empty(0), {})
    tensors = {
        "noise": past.noise,
        **{f"level {sigma!r}": x for sigma, x in past.latents.items()},
        **{f"first {sigma!r}": x for sigma, x in (state.first or {}).items()},
    }
    return {name: x.cpu().contiguous() for name, x in tensors.items()}


def _read_state(tensors: Mapping[str, torch.Tensor], number: int) -> ClipState:
    def by_sigma(prefix: str) -> dict[float, torch.Tensor]:
        return {float(name.split()[1]): x for name, x in tensors.items() if name.startswith(prefix)}

    return ClipState(number, Past(tensors["noise"], by_sigma("level ")), by_sigma("first "))
