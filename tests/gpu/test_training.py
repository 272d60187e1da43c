"""A few steps of every training on the device: its losses are those of the CPU, in every precision."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from models.conftest import sd, sd_folder  # noqa: F401
from tiny_customising import SUBJECT
from tiny_customising import settings as image_settings
from tiny_training import WIDTH, load_batch, numbers, tiny_net
from tiny_video_customising import pictures, save_waves
from tiny_video_customising import settings as video_settings
from tiny_video_training import ONE, both, told
from torch import Tensor, nn

import kineograph as kg
from kineograph.training import TrainingProgress, TrainingSettings, fit
from kineograph.training.customise import PhaseProgress, customise_image, customise_video, load_customised
from kineograph.training.temporal_layers import prepare_training, train

# ruff: noqa: F811 (a fixture that comes from another file)
pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
PRECISIONS = ("no", "bf16", "fp16")
LOOP = {"max_train_steps": 6, "train_batch_size": 4, "learning_rate": 0.01, "log_every": 2, "checkpointing_steps": 3}


def skip_fp16_on_cpu(device: torch.device, precision: str) -> None:
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("a CPU does not train in fp16")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"))


def steps_on(device: torch.device, folder: Path, net: nn.Module | None = None, **given: object) -> list[float]:
    """Train a tiny network, and return the losses of all steps."""
    settings = TrainingSettings.model_validate(LOOP | given)
    steps = fit((net or tiny_net()).to(device), settings, folder, load_batch=load_batch, loss=denoising_loss)
    return [sum(each.losses.values()) for each in steps]


def denoising_loss(net: nn.Module, batch: tuple[Tensor], seed: int) -> dict[str, Tensor]:
    """Return the loss of `tiny_training`, whose noise is of the CPU, on the network's device."""
    (clean,) = batch
    noise = torch.stack([numbers(seed + sample, 4, 8, 8) for sample in range(len(clean))]).to(clean)
    error = net(clean + 0.1 * noise).float() - 10 * clean.mean((2, 3)).repeat(1, WIDTH // 4)
    return {"near": error.square().mean(), "far": 0.1 * error.abs().mean()}


# --- the loop


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_losses_are_those_of_the_cpu(device: torch.device, tmp_path: Path, precision: str, optimizer: str) -> None:
    skip_fp16_on_cpu(device, precision)
    wanted = steps_on(CPU, tmp_path / "cpu", optimizer=optimizer)
    got = steps_on(device, tmp_path / "there", optimizer=optimizer, mixed_precision=precision)
    if precision == "fp16":  # the first steps may be left out, while the scale is found
        assert got[0] == pytest.approx(wanted[0], rel=0.05) and all(map(math.isfinite, got))
        return
    assert got == pytest.approx(wanted, rel=1e-2 if precision == "no" else 0.2)
    assert got[-1] < got[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_resumes(device: torch.device, tmp_path: Path, precision: str) -> None:
    skip_fp16_on_cpu(device, precision)
    whole = steps_on(device, tmp_path / "whole", mixed_precision=precision)
    first = steps_on(device, tmp_path / "parts", mixed_precision=precision, max_train_steps=3)
    second = steps_on(device, tmp_path / "parts", mixed_precision=precision)
    assert [*first, *second] == pytest.approx(whole, rel=1e-2)


def test_dropout_depends_on_the_seed_alone(device: torch.device, tmp_path: Path) -> None:
    def losses(name: str) -> list[float]:
        net = tiny_net()
        net.insert(3, nn.Dropout(0.3))
        torch.rand(17, device=device)  # the generator's state before has no effect
        return steps_on(device, tmp_path / name, net.train())

    assert losses("one") == pytest.approx(losses("other"), rel=1e-3)


# --- customising


def last_progress(steps: list[PhaseProgress]) -> TrainingProgress:
    progress = steps[-1].progress
    assert progress is not None
    return progress


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("changes", [{}, {"lora": None}, {"lora": {"text_rank": 2}}], ids=["lora", "whole", "text"])
def test_image_model_is_customised(
    device: torch.device, sd_folder: Path, few: Path, tmp_path: Path, precision: str, changes: dict
) -> None:
    skip_fp16_on_cpu(device, precision)
    dtype = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    model = kg.load(sd_folder, device=device, dtype=dtype)
    settings = image_settings(previews=["a sks dog"], training={"mixed_precision": precision}, **changes)
    steps = [*customise_image(model, few, tmp_path / "out", subject=SUBJECT, settings=settings)]
    assert all(math.isfinite(each) for each in last_progress(steps).losses.values())
    customised = load_customised(model, tmp_path / "out" / "final")
    assert customised.device.type == device.type and customised.dtype == model.dtype


def test_customising_has_the_losses_of_the_cpu(
    device: torch.device, sd_folder: Path, few: Path, tmp_path: Path
) -> None:
    def losses(there: torch.device, name: str) -> list[float]:
        model = kg.load(sd_folder, device=there, dtype="float32")
        given = image_settings(prior_weight=0.0)
        steps = customise_image(model, few, tmp_path / name, subject=SUBJECT, settings=given)
        return [sum(each.progress.losses.values()) for each in steps if each.progress]

    assert losses(device, "there") == pytest.approx(losses(CPU, "cpu"), rel=1e-2)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"spatial": None}], ids=["adapter", "whole"])
def test_video_model_is_customised(
    device: torch.device, few: Path, tmp_path: Path, precision: str, changes: dict
) -> None:
    waves = save_waves(kg.load(sd(), device="cpu", dtype="float32"), tmp_path / "waves")
    model = kg.load(waves, device=device, dtype="bfloat16")
    loop = {"mixed_precision": precision, "max_train_steps": 2, "validation_steps": 2}
    given = video_settings(
        previews=["a sks dog"], training=loop, motion_training=loop, image={"training": loop}, **changes
    )
    steps = [*customise_video(model, few, tmp_path / "out", subject=SUBJECT, settings=given)]
    assert all(math.isfinite(each) for each in last_progress(steps).losses.values())
    assert steps[-1].previews[0].is_file()


# --- temporal layers


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
def test_temporal_layers_are_trained(
    device: torch.device,
    sd_folder: Path,
    tmp_path: Path,
    precision: str,
    checkpointing: bool,  # noqa: FBT001 (of the table)
) -> None:
    skip_fp16_on_cpu(device, precision)
    data = both(tmp_path / "data")
    loop = {"train_batch_size": 2, "learning_rate": 0.01, "mixed_precision": precision, "ema_decay": 0.9}
    settings = told(sd_folder, data, tmp_path / "out", stages=ONE, training=loop, gradient_checkpointing=checkpointing)
    steps = [*train(prepare_training(settings))]
    assert all(math.isfinite(value) for each in steps for value in each.progress.losses.values())
    assert (tmp_path / "out").is_dir()
