"""Checkpoints: folders that are complete or absent, from which a run continues as if it had never stopped.

checkpoints/step-000500/ holds weights, averages and optimiser state as safetensors, and state.json, which has their
SHA-256 and its own: a damaged checkpoint is never used. No file contains code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.amp import GradScaler

from kineograph.errors import InputError, InputWarning
from kineograph.media.files import file_sha256, json_sha256, remove_atomically, remove_leftovers, replace_atomically
from kineograph.models.formats.tensor_files import write_tensors
from kineograph.training.logs import LossSums
from kineograph.training.optimisers import Optimisers, copy_weights, load_optimiser_state, optimiser_state

Terms = Mapping[str, Any]  # settings and facts that must be equal between a run and its resumption, as JSON values
SUFFIX = ".safetensors"
OWN_DIGEST = "sha256"  # in state.json, of its other entries


@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes: weights and averages by name, optimisers, and the loss scale of fp16."""

    trained: Mapping[str, nn.Parameter]
    average: Mapping[str, Tensor]
    optimisers: Optimisers
    scaler: GradScaler


class LoopPosition(NamedTuple):
    """Position of a run: steps done, seconds they took, and the losses since the log's last line."""

    step: int
    seconds: float
    losses: LossSums


def save_checkpoint(state: TrainState, position: LoopPosition, folder: Path, terms: Terms, limit: int | None) -> None:
    """Write a checkpoint, and remove the oldest where there are more than `limit`.

    Raises InputError when it cannot be written; then nothing is left of it, and earlier checkpoints stay.
    """
    path = _checkpoints(folder) / f"step-{position.step:06d}"
    files = {"weights": state.trained, "average": state.average, "optimiser": optimiser_state(state.optimisers)}
    needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    record = {"step": position.step, "seconds": position.seconds, "tally": position.losses}
    record |= {"scaler": state.scaler.state_dict(), "terms": terms}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed > (free := shutil.disk_usage(path.parent).free):
            raise _write_error(path, needed, f"{_megabytes(free)} are free")
        with replace_atomically(path) as part:
            _write(part, files, record)
        _sync(path.parent)
    except OSError as error:
        raise _write_error(path, needed, str(error)) from error
    for old in _list(folder)[limit:] if limit else []:
        remove_atomically(old)


def _write(part: Path, files: Mapping[str, Mapping[str, Tensor]], record: dict[str, Any]) -> None:
    part.mkdir()
    for name, tensors in files.items():
        if tensors:
            write_tensors(tensors, part / (name + SUFFIX))
    content = json.loads(
        json.dumps(record | {"files": {file.name: file_sha256(file) for file in sorted(part.iterdir())}})
    )
    text = json.dumps(content | {OWN_DIGEST: json_sha256(content)}, indent=1)
    (part / "state.json").write_text(text, encoding="utf-8")
    for file in (*part.iterdir(), part):
        _sync(file)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename may be written before the file that it renames."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(path: Path, needed: int, reason: str) -> InputError:
    return InputError(
        f"{path} cannot be written: it takes {_megabytes(needed)}, and {reason}. Nothing is left of it, and the "
        "checkpoints before it are complete: make room (checkpoints_total_limit keeps fewer), and the same command "
        "continues from there"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove the incomplete checkpoints that a kill left behind."""
    remove_leftovers(_checkpoints(folder))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run's folder, None without one.

    Warns (InputWarning) of damaged ones, which are skipped.
    """
    found = _list(folder)
    for number, path in enumerate(found, 1):
        if _is_whole(path):
            return path
        then = (
            "the one before it is used"
            if number < len(found)
            else "there is none before it, so all steps are done again"
        )
        warnings.warn(InputWarning(f"{path} is damaged and skipped: {then}"), stacklevel=2)
    return None


def _checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def _list(folder: Path) -> list[Path]:
    """Return all checkpoints, the newest first."""
    found = (path for path in _checkpoints(folder).glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        record = _read_record(path)
        if "sizes" in record:  # of a version that kept no digests
            return all((path / name).stat().st_size == size for name, size in record["sizes"].items())
        own = record.pop(OWN_DIGEST)
        return own == json_sha256(record) and all(
            file_sha256(path / name) == each for name, each in record["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _read_record(path: Path) -> dict[str, Any]:
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{path / 'state.json'} is no record of a checkpoint")
    return record


def _read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    file = path / (name + SUFFIX)
    return load_file(file) if file.exists() else {}


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the trained weights of the newest checkpoint, on the CPU: the averaged ones, where averages are kept.

    Raises InputError without a checkpoint.
    """
    path = latest_checkpoint(folder)
    if path is None:
        raise InputError(f"{folder} holds no checkpoint: expected the folder of a training run")
    return _read_tensors(path, "average") or _read_tensors(path, "weights")


@torch.no_grad()
def resume_run(net: nn.Module, state: TrainState, folder: Path, terms: Terms) -> LoopPosition:
    """Restore the newest checkpoint, if there is one, and return its position.

    Raises InputError when it was made with other terms or trains other weights, naming them.
    """
    path = latest_checkpoint(folder)
    if path is None:
        return LoopPosition(0, 0.0, {})
    record, saved = _read_record(path), _read_tensors(path, "weights")
    _check_terms(path, record["terms"], terms)
    _check_shapes(path, saved, state.trained)
    copy_weights(net, saved)
    for name, value in _read_tensors(path, "average").items():
        state.average[name].copy_(value)
    load_optimiser_state(state.optimisers, _read_tensors(path, "optimiser"))
    if record["scaler"]:
        state.scaler.load_state_dict(record["scaler"])
    losses = {name: (total, count) for name, (total, count) in record["tally"].items()}
    return LoopPosition(record["step"], record["seconds"], losses)


def _check_terms(path: Path, before: Terms, now: Terms) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
        raise InputError(f"{path} was trained with other settings: {changes}. Use the same settings, or another folder")


def _check_shapes(path: Path, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    old, new = ({name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (before, now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        changes = "; ".join(
            f"{name} was {old.get(name, 'not trained')} and is {new.get(name, 'not trained')}" for name in names[:5]
        )
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InputError(f"{path} trained other weights: {changes}{more}. Train the same, or use another folder")
