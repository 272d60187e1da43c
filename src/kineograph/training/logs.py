"""A run's log: JSON lines always, and TensorBoard's where that is installed.

After a kill the log is cut back to the step that is resumed, so that it reads like that of a run never interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.media.files import instead_of

LossSums = Mapping[str, tuple[float, int]]  # of a loss its sum and how many are in it


@dataclass(frozen=True)
class Log:
    """Where figures go; both are None in all processes but the first, where nothing is written.

    board: TensorBoard's SummaryWriter, if it is installed.
    """

    path: Path | None = None
    board: Any = None

    def tell(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a line. Names of a kind share a prefix: "loss/image", "validation/psnr"."""
        if self.path:
            line = {"step": step, **{name: _short(value) for name, value in figures.items()}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Shows a picture, uint8 [h w 3], in TensorBoard."""
        if self.board:
            self.board.add_image(name, picture, step, dataformats="HWC")


def _short(value: float) -> float | None:
    """Six digits of a number; nothing for what JSON knows no number for, as the norm of a step that overflowed."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


@contextmanager
def open_log(folder: Path, step: int) -> Iterator[Log]:
    """The log of a run that goes on from a step; lines of later steps are dropped."""
    path = folder / "log.jsonl"
    _cut_back(path, step)
    board = _board(folder / "tensorboard", step)
    try:
        yield Log(path, board)
    finally:
        if board:
            board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _cut_back(path: Path, step: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    past = [line for line in lines if _step(line) <= step]
    if past != lines:
        with instead_of(path) as part:
            part.write_text("".join(past), encoding="utf-8")


def _step(line: str) -> float:
    """A line's step; infinity for one that was cut short."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def add_losses(tally: LossSums, losses: Mapping[str, float]) -> LossSums:
    """The tally with a step's losses in it; a loss need not come with every step."""
    before = {name: tally.get(name, (0.0, 0)) for name in losses}
    return {**tally, **{name: (total + losses[name], count + 1) for name, (total, count) in before.items()}}


def mean_losses(tally: LossSums) -> dict[str, float]:
    """The mean of each loss since the last line, and of their sum where there are several."""
    each = {f"loss/{name}": total / count for name, (total, count) in tally.items()}
    return {"loss": sum(each.values()), **each}
