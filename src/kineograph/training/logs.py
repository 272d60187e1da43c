"""Log of a run: JSON lines always, and TensorBoard where that is installed.

After a kill the log is cut back to the step that is resumed, so that it equals that of an uninterrupted run.
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

from kineograph.errors import InputError, parse_json
from kineograph.media.files import append_text, replace_atomically

LossSums = Mapping[str, tuple[float, int]]  # loss -> its sum since the last line, and the number of steps in it


@dataclass(frozen=True)
class Log:
    """Writer of figures and images; both fields are None in all processes but the first, where nothing is written.

    board: TensorBoard's SummaryWriter, if it is installed.
    """

    path: Path | None = None
    board: Any = None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line of figures. Names of a kind share a prefix: "loss/image", "validation/psnr"."""
        if self.path:
            line = {"step": step, **{name: _round(value) for name, value in figures.items()}}
            append_text(self.path, json.dumps(line) + "\n")
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Add an image, uint8 [h w 3], to TensorBoard."""
        if self.board:
            self.board.add_image(name, image, step, dataformats="HWC")


def _round(value: float) -> float | None:
    """Return a number rounded to six digits; None for infinity and NaN, which JSON does not have."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


@contextmanager
def open_log(folder: Path, step: int) -> Iterator[Log]:
    """Open the log of a run that continues after a step; lines of later steps are dropped."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    past = [line for line in lines if _step_of(line) <= step]
    if past != lines:
        with replace_atomically(path) as part:
            part.write_text("".join(past), encoding="utf-8")
    board = _open_board(folder / "tensorboard", step)
    try:
        yield Log(path, board)
    finally:
        if board:
            board.close()


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for an incomplete or damaged one."""
    try:
        step = parse_json(line, "a line of the log")["step"] if line.endswith("\n") else None
    except (InputError, LookupError, TypeError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def add_losses(sums: LossSums, losses: Mapping[str, float]) -> LossSums:
    """Return the sums with a step's losses added; a loss need not occur in every step."""
    before = {name: sums.get(name, (0.0, 0)) for name in losses}
    return {**sums, **{name: (total + losses[name], count + 1) for name, (total, count) in before.items()}}


def mean_losses(sums: LossSums) -> dict[str, float]:
    """Return the mean of each loss since the last line, and "loss", the sum of these means."""
    each = {f"loss/{name}": total / count for name, (total, count) in sums.items()}
    return {"loss": sum(each.values()), **each}
