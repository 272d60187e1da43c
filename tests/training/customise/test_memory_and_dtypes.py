# ruff: noqa: F811 (a fixture that comes from another file)
"""Customisation of models in half precision, and how many networks it holds at once."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from models.conftest import sd, sd_folder  # noqa: F401
from tiny_customising import SUBJECT
from tiny_customising import settings as image_settings
from tiny_video_customising import pictures, save_waves
from tiny_video_customising import settings as video_settings
from torch import nn

import kineograph as kg
from kineograph.models.model import Model
from kineograph.training.customise import (
    PhaseProgress,
    adapters,
    customise_image,
    customise_video,
    default_settings,
    load_customised,
    load_customised_video,
    networks,
    train_interleaved,
)

WHOLE = {"lora": None}
STEPS = {"max_train_steps": 2, "checkpointing_steps": 2, "validation_steps": 2}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a video model without a motion adapter."""
    return save_waves(kg.load(sd(), device="cpu", dtype="float32"), tmp_path_factory.mktemp("models") / "waves")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def open_model(folder: Path, dtype: str = "float32") -> Model:
    return kg.load(folder, device="cpu", dtype=dtype)


def parameter_dtypes(network: nn.Module) -> set[torch.dtype]:
    return {weight.dtype for weight in network.parameters()}


# --- dtypes


@pytest.mark.filterwarnings("ignore:float16 is slow")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, WHOLE, {"lora": {"text_rank": 2}}], ids=["lora", "whole", "with text"])
@pytest.mark.slow
def test_without_mixed_precision_all_weights_are_float32(sd_folder: Path, dtype: str, changes: dict) -> None:
    """As on Apple's GPUs, for which a model is opened in float16."""
    model = open_model(sd_folder, dtype)
    begun = networks.trainable_copy(model, image_settings(**changes))
    assert parameter_dtypes(begun) == {torch.float32}
    assert parameter_dtypes(model.net) == {getattr(torch, dtype)}, "the given model stays as it is"


def test_on_apples_gpus_the_loop_is_without_mixed_precision(sd_folder: Path) -> None:
    from kineograph.training.customise.settings import training_precision

    assert training_precision(torch.device("mps")) == "no"
    assert default_settings(open_model(sd_folder), "subject").training.mixed_precision in ("no", "bf16")


def test_with_mixed_precision_only_trained_weights_are_float32(sd_folder: Path) -> None:
    begun = networks.trainable_copy(
        open_model(sd_folder, "bfloat16"), image_settings(training={"mixed_precision": "bf16"})
    )
    found = Counter((weight.dtype, weight.requires_grad) for weight in begun.parameters())
    assert set(found) == {(torch.float32, True), (torch.bfloat16, False)}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "changes"), [("no", {}), ("bf16", WHOLE)], ids=["lora", "whole"])
def test_model_in_half_precision_is_customised_with_previews(
    sd_folder: Path, few: Path, tmp_path: Path, precision: str, changes: dict
) -> None:
    model = open_model(sd_folder, "bfloat16")
    given = image_settings(previews=["a sks dog"], training={**STEPS, "mixed_precision": precision}, **changes)
    *_, last = customise_image(model, few, tmp_path / "out", subject=SUBJECT, settings=given)
    assert len(last.previews) == 1 and last.previews[0].is_file()
    assert load_customised(model, tmp_path / "out" / "final").dtype == model.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "changes"), [("no", {}), ("bf16", {"spatial": None})], ids=["adapter", "whole"])
def test_video_model_in_half_precision_is_customised_with_previews(
    waves: Path, few: Path, tmp_path: Path, precision: str, changes: dict
) -> None:
    model, loop = open_model(waves, "bfloat16"), {**STEPS, "mixed_precision": precision}
    given = video_settings(
        previews=["a sks dog"], training=loop, motion_training=loop, image={"training": loop}, **changes
    )
    *_, last = customise_video(model, few, tmp_path / "out", subject=SUBJECT, settings=given)
    assert len(last.previews) == 1 and last.previews[0].is_file()
    assert load_customised_video(model, tmp_path / "out").dtype == torch.bfloat16
    assert parameter_dtypes(model.net) == {torch.bfloat16}


@pytest.mark.slow
def test_interleaved_training_of_a_model_in_half_precision(waves: Path, few: Path, tmp_path: Path) -> None:
    model = open_model(waves, "bfloat16")
    assert [*train_interleaved(model, few, tmp_path / "out", subject=SUBJECT, settings=video_settings())]


# --- memory


def live_unets(of: torch.Size) -> int:
    """Return the number of U-Nets in memory whose first layer has weights of this shape."""
    unets = [each for each in gc.get_objects() if type(each) is UNet2DConditionModel]
    return sum(next(each.parameters()).shape == of for each in unets)


def most_unets(model: Model, steps: Iterator[PhaseProgress]) -> dict[str, int]:
    """Return the most U-Nets that are in memory in each phase, besides those that were before."""
    shape, most = next(model.net.image_unet.parameters()).shape, dict[str, int]()
    gc.collect()
    before = live_unets(shape)
    for each in steps:
        if each.done == each.total or each.phase not in most:
            most[each.phase] = max(most.get(each.phase, 0), live_unets(shape) - before)
    assert live_unets(shape) == before, "nothing is left"
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [pytest.param({}, id="lora"), pytest.param(WHOLE, id="whole", marks=pytest.mark.soak)]
)
def test_customising_an_image_model_holds_one_more_network(
    sd_folder: Path, few: Path, tmp_path: Path, changes: dict
) -> None:
    model = open_model(sd_folder)
    given = image_settings(previews=["a sks dog"], **changes)
    steps = customise_image(model, few, tmp_path / "out", subject=SUBJECT, settings=given)
    assert most_unets(model, steps) == {"prior": 0, "encoding": 0, "training": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="adapter"),
        pytest.param({"spatial": None, "image": WHOLE}, id="whole", marks=pytest.mark.soak),
    ],
)
def test_customising_a_video_model_holds_one_more_network(
    waves: Path, few: Path, tmp_path: Path, changes: dict
) -> None:
    model = open_model(waves)
    given = video_settings(previews=["a sks dog"], **changes)
    most = most_unets(model, customise_video(model, few, tmp_path / "out", subject=SUBJECT, settings=given))
    assert most == {
        "prior": 0, "encoding": 0, "training": 1, "stills": 1, "natural": 0, "motion_adapter": 1, "spatial_adapter": 1,
    }  # fmt: skip


def test_the_spatial_adapter_is_trained_around_the_customised_network_itself(waves: Path) -> None:
    model = open_model(waves)
    net = adapters.spatial_adapter_network(model, video_settings())
    assert net.image_unet is model.net.image_unet and net.temporal is not model.net.temporal
