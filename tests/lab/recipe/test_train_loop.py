"""The training loop of the recipe: schedule, log, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kineograph_lab.recipe import loop
from kineograph_lab.recipe.loop import StagePlan

PLAN = StagePlan(minutes=1, steps=6, lr=1e-2, batch=4, warmup=2)


def regression(rng: np.random.Generator, progress: float) -> loop.Batch:
    x = torch.from_numpy(rng.standard_normal((4, 20), np.float32))
    return x, x.flip(1)


def squared(net: nn.Module, batch: loop.Batch) -> dict[str, torch.Tensor]:
    return {"squared": (net(batch[0]).float() - batch[1]).square().mean()}


def train(folder: Path, sample_batch=regression) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.SiLU(), nn.Linear(32, 20))
    return loop.train_loop(net, PLAN, folder, sample_batch=sample_batch, loss=squared, report=lambda _: {})


def test_an_interrupted_stage_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    calls = []

    def interrupted_at_the_fourth(rng, progress):
        calls.append(progress)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return regression(rng, progress)

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", interrupted_at_the_fourth)
    resumed = train(tmp_path / "killed")
    for name, weight in whole.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name], weight, atol=1e-6), name


def test_the_log_is_lines_of_json(tmp_path: Path) -> None:
    train(tmp_path / "stage")
    lines = [json.loads(line) for line in (tmp_path / "stage" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6
    assert lines[-1]["end"] == 1


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    assert PLAN.learning_rate(0, 0.0) == pytest.approx(PLAN.lr / 2)
    assert PLAN.learning_rate(5, 0.5) == pytest.approx(PLAN.lr / 2)
    assert PLAN.learning_rate(9, 1.2) == 0


def test_the_learning_rate_depends_on_the_step_alone() -> None:
    plan = StagePlan(minutes=1, lr=1.0, batch=4, steps=100, warmup=1, decay=0.25)
    assert plan.learning_rate(10, plan.progress(10, 1e9)) == plan.learning_rate(74, plan.progress(74, 0.0)) == 1.0
    assert plan.learning_rate(90, plan.progress(90, 0.0)) == pytest.approx(0.4)
    assert plan.learning_rate(100, plan.progress(100, 0.0)) == 0
