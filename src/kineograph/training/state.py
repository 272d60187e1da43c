"""Checkpoints: folders that are whole or absent, from which a run goes on as if it had never stopped.

checkpoints/step-000500/ holds weights, average and optimiser as safetensors, and state.json; no file in it holds code.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp import GradScaler

from kineograph.errors import InputError, InputWarning
from kineograph.media.files import instead_of, remove
from kineograph.training import optimisers
from kineograph.training.logs import LossSums

Terms = Mapping[str, Any]  # what must be equal between a run and its resumption, as JSON values
ENDING = ".safetensors"


@dataclass(frozen=True)
class TrainState:
    """All that steps change: weights and their averages by name, what steps them, and the scale of fp16's losses."""

    trained: Mapping[str, nn.Parameter]
    average: Mapping[str, Tensor]
    ways: optimisers.Optimisers
    scaler: GradScaler


class LoopPosition(NamedTuple):
    """How far a run is: steps done, seconds they took, and the losses since the log's last line."""

    step: int
    seconds: float
    tally: LossSums


def save_checkpoint(run: TrainState, reached: LoopPosition, folder: Path, terms: Terms, limit: int | None) -> None:
    """Writes a checkpoint, and removes the oldest where there are more than `limit`.

    Raises InputError when it cannot be written; then nothing is left of it, and those before it stay.
    """
    path = _home(folder) / f"step-{reached.step:06d}"
    files = {"weights": run.trained, "average": run.average, "optimiser": optimisers.optimiser_state(run.ways)}
    needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    state = reached._asdict() | {"scaler": run.scaler.state_dict(), "terms": terms}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed > (free := shutil.disk_usage(path.parent).free):
            raise _unwritten(path, needed, f"{_size(free)} are free")
        with instead_of(path) as part:
            _write(part, files, state)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, needed, str(error)) from error
    for old in _all(folder)[limit:] if limit else []:
        aside = old.replace(old.with_name(f".{old.name}.part"))  # so that no kill leaves half of it under its name
        remove(aside)


def _write(part: Path, files: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
    part.mkdir()
    for name, tensors in files.items():
        if tensors:
            save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, part / (name + ENDING))
    sizes = {file.name: file.stat().st_size for file in part.iterdir()}
    (part / "state.json").write_text(json.dumps(state | {"sizes": sizes}, indent=1), encoding="utf-8")
    for file in (*part.iterdir(), part):
        _sync(file)


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk: a rename may get there before what it renames."""
    if path.is_dir() and os.name != "posix":
        return
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _unwritten(path: Path, needed: int, why: str) -> InputError:
    return InputError(
        f"{path} cannot be written: it takes {_size(needed)}, and {why}. Nothing is left of it, and the checkpoints "
        "before it are whole: make room (checkpoints_total_limit keeps fewer), and the same command goes on from there"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def remove_partial_checkpoints(folder: Path) -> None:
    """Removes what a kill left half-written."""
    for part in _home(folder).glob(".*.part"):
        remove(part)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder; a damaged one is passed over with an InputWarning."""
    for path in _all(folder):
        if _is_whole(path):
            return path
        warnings.warn(InputWarning(f"{path} is damaged and passed over: the one before it is used"), stacklevel=2)
    return None


def _home(folder: Path) -> Path:
    return folder / "checkpoints"


def _all(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    found = (path for path in _home(folder).glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        sizes = _state(path)["sizes"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError):
        return False


def _state(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def _tensors(path: Path, name: str) -> dict[str, Tensor]:
    file = path / (name + ENDING)
    return load_file(file) if file.exists() else {}


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of the newest checkpoint, on the CPU: their averages, where those are kept.

    Raises InputError when there is no checkpoint.
    """
    path = latest_checkpoint(folder)
    if path is None:
        raise InputError(f"{folder} holds no checkpoint: expected the folder of a training run")
    return _tensors(path, "average") or _tensors(path, "weights")


@torch.no_grad()
def resume_run(run: TrainState, folder: Path, terms: Terms) -> LoopPosition:
    """Puts the run where the newest checkpoint was, if there is one, and says how far that is.

    Raises InputError when it was made with other terms or trains other weights, naming them.
    """
    path = latest_checkpoint(folder)
    if path is None:
        return LoopPosition(0, 0.0, {})
    state, kept = _state(path), _tensors(path, "weights")
    _check_terms(path, state["terms"], terms)
    _check_shapes(path, kept, run.trained)
    for name, weight in run.trained.items():
        weight.copy_(kept[name])
    for name, value in _tensors(path, "average").items():
        run.average[name].copy_(value)
    optimisers.load_optimiser_state(run.ways, _tensors(path, "optimiser"))
    if state["scaler"]:
        run.scaler.load_state_dict(state["scaler"])
    return LoopPosition(state["step"], state["seconds"], {name: (s, n) for name, (s, n) in state["tally"].items()})


def _check_terms(path: Path, before: Terms, now: Terms) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        told = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
        raise InputError(f"{path} would not be continued but changed: {told}. Take what it had, or another folder")


def _check_shapes(path: Path, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    old, new = ({name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (before, now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        told = "; ".join(f"{name} was {old.get(name, 'not there')} and is {new.get(name, 'not')}" for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InputError(f"{path} trained other weights: {told}{more}. Train the same, or take another folder")
