"""Finished clips of a long video on disk, from which the same request continues, also with more clips.

NNNN.safetensors   the frames of clip NNNN; the last file has the state that the next clip starts from as well
.lock              locked while a process writes

The folder of a request is named by a hash of what its frames depend on, except the number of clips and their prompts,
which each file records, and the seed, if none is requested: then the first run's seed is used again. Each file has a
SHA-256 of what it holds: a damaged clip is never used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from kineograph.errors import InputError, InputWarning, expand_user
from kineograph.media.files import remove_leftovers, replace_atomically
from kineograph.media.metadata import settings_id
from kineograph.methods.vidrd import ClipState, Past
from kineograph.models.formats.tensor_files import write_tensors
from kineograph.models.loading.provenance import hash_tensors

log = logging.getLogger(__name__)

FORMAT = "kineograph_clip"  # key of the files' metadata: JSON of {"prompt", "seed", "clip", "sha256"}


class GeneratedClip(NamedTuple):
    """The frames of a clip, uint8 [b f h w 3], and the state that the next clip starts from."""

    frames: np.ndarray
    state: ClipState


class KeptClip(NamedTuple):
    """Content of a clip's file. tensors: its frames, uint8 [f h w 3], and its state if nothing goes on from it yet."""

    prompt: str
    seed: int
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class ClipFiles:
    """The folder of one request's finished clips."""

    folder: Path

    @classmethod
    def for_settings(cls, folder: str | Path, settings: Mapping[str, Any]) -> ClipFiles:
        """Return the subfolder of a video with these settings."""
        return cls(expand_user(folder) / settings_id(json.loads(json.dumps(settings))))

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
        remove_leftovers(self.folder)
        try:
            yield True
        finally:
            lock.release()

    def recorded_seed(self) -> int | None:
        """Return the seed of the clips in the folder; None if there are none.

        Raises InputError if all are damaged: another seed would give another video.
        """
        files = sorted(self.folder.glob("*.safetensors"))
        kept = next(filter(None, map(_read, files)), None)
        if kept is None and files:
            raise InputError(
                f"all clips in {self.folder} are damaged, and the seed of their video is lost with them: give its "
                "`seed`, or delete the folder to begin anew"
            )
        return kept and kept.seed

    def load(self, prompts: Sequence[str], num_clips: int, *, prune: bool = False) -> list[GeneratedClip]:
        """Load the finished clips, of at most so many, the last with its state; none if their prompts differ.

        Clips after a missing or damaged one do not count. prompts: of each clip of the request. prune: remove the
        states that a run left behind which was killed in `save`.
        """
        found: list[KeptClip] = []
        for number, prompt in enumerate(prompts[:num_clips]):
            kept = _read(self._file(number))
            if kept is None:
                break
            if kept.prompt != prompt:
                return []
            found.append(kept)
        for number, kept in enumerate(found[:-1] if prune else []):
            self._remove_state(number, kept)
        clips = [GeneratedClip(each.tensors["frames"].numpy()[None], ClipState(k)) for k, each in enumerate(found, 1)]
        if found and len(found) < num_clips:
            if "noise" not in found[-1].tensors:  # its state was pruned: a longer video went on from a later clip
                return []
            clips[-1] = clips[-1]._replace(state=_read_state(found[-1].tensors, len(found)))
        return clips

    def save(self, clip: GeneratedClip, prompt: str, seed: int) -> None:
        """Write a clip with its state, and remove the state from the previous clip's file."""
        frames = torch.from_numpy(np.ascontiguousarray(clip.frames[0]))
        number = clip.state.number - 1
        for later in self.folder.glob("*.safetensors"):
            if later.stem > self._file(number).stem:  # of other prompts, or after a damaged clip
                later.unlink()
        self._write(number, KeptClip(prompt, seed, {"frames": frames, **_state_tensors(clip.state)}))
        before = _read(self._file(number - 1)) if number else None
        if before is not None:
            self._remove_state(number - 1, before)

    def _remove_state(self, number: int, kept: KeptClip) -> None:
        if kept.tensors.keys() != {"frames"}:
            self._write(number, kept._replace(tensors={"frames": kept.tensors["frames"]}))

    def _write(self, number: int, kept: KeptClip) -> None:
        facts = {"prompt": kept.prompt, "seed": kept.seed, "clip": number}
        with replace_atomically(self._file(number)) as part:
            write_tensors(kept.tensors, part, {FORMAT: json.dumps(facts | {"sha256": _digest(facts, kept.tensors)})})

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:04}.safetensors"


def _read(file: Path) -> KeptClip | None:
    """Return the clip in a file; None if there is no file, or, with a warning, if it is damaged.

    Raises InputError for a whole file in the place of another.
    """
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {})[FORMAT])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
        whole = facts.pop("sha256") == _digest(facts, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        warnings.warn(InputWarning(f"{file} is damaged: it is not used, and is generated again"), stacklevel=2)
        return None
    if f"{facts['clip']:04}" != file.stem:
        raise InputError(f"{file} is damaged, or of another version: delete {file.parent} to begin anew")
    return KeptClip(facts["prompt"], facts["seed"], tensors)


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    text = json.dumps([dict(facts), hash_tensors(dict(sorted(tensors.items())))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
