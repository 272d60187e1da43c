"""A training whose loss becomes NaN ends with an error, in every number format.

From formats/19-fp16-nan.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.training import TrainingSettings, fit, loop

FORTY_STEPS = {
    "max_train_steps": 40, "train_batch_size": 2, "learning_rate": 0.01, "log_every": 1, "checkpointing_steps": 10,
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))


def samples(step: int, numbers: range) -> tuple[Tensor]:
    drawn = [torch.randn(8, generator=torch.Generator().manual_seed(number % 8)) for number in numbers]
    return (torch.stack(drawn),)


@pytest.mark.parametrize("mixed_precision", ["no", "fp16"])
def test_training_ends_when_the_loss_is_nan_from_the_third_step_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed_precision: str
) -> None:
    if mixed_precision == "fp16":
        monkeypatch.setattr(loop, "_check", lambda *_: None)  # which refuses fp16 on a CPU
    steps = [0]

    def loss(net: nn.Module, batch: tuple[Tensor], seed: int) -> Mapping[str, Tensor]:
        error = (net(batch[0]) - 1).float().square().mean()
        return {"all": error * (float("nan") if steps[-1] >= 3 else 1)}

    training = fit(
        network(),
        TrainingSettings(mixed_precision=mixed_precision, **FORTY_STEPS),
        tmp_path,
        load_batch=samples,
        loss=loss,
    )
    with pytest.raises(InputError, match="loss of all nan"):
        steps.extend(progress.step for progress in training)
