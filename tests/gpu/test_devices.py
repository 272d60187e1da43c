"""Moves of models between devices and dtypes, and their results there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases.public_layouts import sd, sd2, sdxl
from gpu.comparing import FEW, device_types, estimate, grey_levels, relative_error
from tiny_temporal import CONFIGS, VIDRD, Z, condition_for
from tiny_unets import randomised, with_temporal_layers

import kineograph as kg
from kineograph.models.temporal.config import TemporalConfig
from kineograph.training.gradients import seeded

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:float16 is slow on a CPU")]

LIMITS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}  # of the error, relative to float32 on the CPU
BUILT_IN = ("pocket", "pocket-video", "pocket-vidrd", "pocket-animate", "pocket-edit")
LAYOUTS: dict[str, Callable[[], object]] = {"SD 1.5": sd, "SD 2.1": sd2, "SDXL": sdxl}


# --- moves


@pytest.mark.parametrize("name", BUILT_IN)
def test_model_moves_to_the_device_and_back(device: torch.device, name: str) -> None:
    model = kg.load(name, device="cpu", dtype="float32")
    weights = [weight.clone() for weight in model.net.parameters()]
    there = model.to(device)
    assert device_types(there) == {device.type} and there.device.type == device.type
    back = there.to("cpu")
    assert device_types(back) == {"cpu"}
    assert all(torch.equal(*each) for each in zip(weights, back.net.parameters(), strict=True))


def test_controls_move_with_the_model(device: torch.device) -> None:
    model = kg.load(device="cpu", dtype="float32")
    opened = model.control("canny")
    there = model.to(device)
    assert next(there.control("canny").parameters()).device.type == device.type
    assert next(there.control("depth").parameters()).device.type == device.type, "opened after the move"
    del opened


def test_model_that_was_moved_is_refused(cuda: torch.device) -> None:
    model = kg.load(device="cpu", dtype="float32")
    model.to(cuda)
    with pytest.raises(kg.InputError, match="were moved to cuda"):
        estimate(model)


def test_default_is_the_device_in_half_precision(cuda: torch.device) -> None:
    model = kg.load()
    assert model.device.type == "cuda" and model.dtype in (torch.bfloat16, torch.float16)


def test_loras_can_be_added_and_removed_there(device: torch.device, tmp_path) -> None:
    from safetensors.torch import save_file

    model = kg.load(device=device, dtype="float32")
    layer = next(name for name, _ in model.net.image_unet.named_modules() if name.endswith("attn1.to_q"))
    width = model.net.image_unet.get_submodule(layer).in_features
    random = torch.Generator().manual_seed(0)
    lora = {f"unet.{layer}.lora_{letter}.weight": torch.randn(shape, generator=random)
            for letter, shape in (("A", (2, width)), ("B", (width, 2)))}  # fmt: skip
    save_file(lora, tmp_path / "lora.safetensors")
    plain, changed = estimate(model), model.load_lora_weights(tmp_path / "lora.safetensors")
    assert device_types(changed) == {device.type}
    assert relative_error(estimate(changed), plain) > 1e-3
    assert torch.equal(estimate(changed.unload_lora_weights()), plain)


# --- results


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", ["pocket", "pocket-video", "pocket-vidrd"])
def test_built_in_model_estimates_what_it_does_on_the_cpu(device: torch.device, name: str, dtype: str) -> None:
    wanted = estimate(kg.load(name, device="cpu", dtype="float32"))
    assert relative_error(estimate(kg.load(name, device=device, dtype=dtype)), wanted) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_estimates_what_it_does_on_the_cpu(device: torch.device, layout: str, dtype: str) -> None:
    wanted = estimate(kg.load(LAYOUTS[layout](), device="cpu", dtype="float32"))
    there = kg.load(LAYOUTS[layout](), device=device, dtype=dtype)
    assert relative_error(estimate(there), wanted) < LIMITS[dtype]


@torch.no_grad()
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("config", [*CONFIGS.values(), VIDRD], ids=[*CONFIGS, "vidrd"])
def test_temporal_layers_compute_what_they_do_on_the_cpu(
    device: torch.device, config: TemporalConfig, dtype: str
) -> None:
    net, condition = randomised(with_temporal_layers(config)), condition_for(config)
    wanted = net(Z, 481.0, condition)
    got = net.to(device, getattr(torch, dtype))(Z.to(device), 481.0, condition)
    assert got.dtype == torch.float32 and relative_error(got, wanted) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_vae_encodes_and_decodes_what_it_does_on_the_cpu(device: torch.device, dtype: str) -> None:
    pixels = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, other = kg.load(device="cpu", dtype="float32"), kg.load(device=device, dtype=dtype)
    latents = one.encode(pixels)
    assert relative_error(other.encode(pixels), latents) < LIMITS[dtype]
    assert relative_error(other.decode(latents.to(device)), one.decode(latents)) < LIMITS[dtype]


def test_vae_that_overflows_in_half_precision_stays_in_float32(device: torch.device) -> None:
    pipeline = sdxl()
    pipeline.vae.register_to_config(force_upcast=True)
    model = kg.load(pipeline, device=device, dtype="float16")
    assert (model.net.image_unet.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert np.isfinite(kg.generate(model, "a", **FEW).frames).all()


def test_a_video_is_the_same_again_there(device: torch.device) -> None:
    model = kg.load(device=device, dtype="float32")
    first, second = (kg.generate(model, "a red fish", **FEW) for _ in range(2))
    assert grey_levels(first, second) < 0.1  # kernels of a GPU may add in another order


# --- random numbers


def test_seeding_a_block_leaves_the_generators_of_the_device(device: torch.device) -> None:
    torch.rand(3, device=device)
    before = torch.cuda.get_rng_state_all() if device.type == "cuda" else [torch.get_rng_state()]
    with seeded(7):
        torch.rand(3)
    after = torch.cuda.get_rng_state_all() if device.type == "cuda" else [torch.get_rng_state()]
    assert all(torch.equal(*each) for each in zip(before, after, strict=True))
    numbers = []
    for _ in range(2):
        with seeded(7, device):
            numbers.append(torch.rand(3, device=device))
    assert torch.equal(*numbers)
    after = torch.cuda.get_rng_state_all() if device.type == "cuda" else [torch.get_rng_state()]
    assert all(torch.equal(*each) for each in zip(before, after, strict=True))


def test_generating_leaves_the_generators_of_the_device(cuda: torch.device) -> None:
    model = kg.load(device=cuda, dtype="float32")
    before = torch.cuda.get_rng_state_all()
    kg.generate(model, "a red fish", **FEW, sampler="euler-ancestral")
    assert all(torch.equal(*each) for each in zip(before, torch.cuda.get_rng_state_all(), strict=True))
