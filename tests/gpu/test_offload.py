"""Pipelines whose networks are offloaded from the device: model, sequential and group offload."""

from __future__ import annotations

import gc
from collections.abc import Callable

import accelerate
import pytest
import torch
from cases.public_layouts import sd, sdxl
from diffusers import StableDiffusionPipeline
from gpu.comparing import FEW, estimate, grey_levels, relative_error
from torch import nn

import kineograph as kg

pytestmark = pytest.mark.gpu

Offload = Callable[[StableDiffusionPipeline, torch.device], object]


def parts(pipeline: StableDiffusionPipeline) -> dict[str, nn.Module]:
    names = ("text_encoder", "text_encoder_2", "unet", "vae")
    return {name: each for name in names if (each := getattr(pipeline, name, None)) is not None}


def offload_models(pipeline: StableDiffusionPipeline, device: torch.device) -> None:
    if device.type == "cuda":
        pipeline.enable_model_cpu_offload(device=device)
        return
    hook = None
    for network in parts(pipeline).values():
        _, hook = accelerate.cpu_offload_with_hook(network, device, hook)


def offload_layers(pipeline: StableDiffusionPipeline, device: torch.device) -> None:
    if device.type == "cuda":
        pipeline.enable_sequential_cpu_offload(device=device)
        return
    for network in parts(pipeline).values():
        accelerate.cpu_offload(network, device, offload_buffers=True)


def offload_groups(pipeline: StableDiffusionPipeline, device: torch.device) -> None:
    cpu = torch.device("cpu")
    pipeline.enable_group_offload(onload_device=device, offload_device=cpu, offload_type="leaf_level")


WAYS = [offload_models, offload_layers, offload_groups]


@pytest.mark.parametrize("offload", WAYS)
@pytest.mark.parametrize("layout", [sd, sdxl])
def test_offloaded_model_estimates_what_the_cpu_does(device: torch.device, layout: Callable, offload: Offload) -> None:
    pipeline = layout()
    offload(pipeline, device)
    model = kg.load(pipeline)
    assert model.device.type == device.type
    assert relative_error(estimate(model), estimate(kg.load(layout(), device="cpu", dtype="float32"))) < 1e-3


@pytest.mark.parametrize("offload", WAYS)
def test_offloaded_model_generates_and_nothing_stays_on_the_device(device: torch.device, offload: Offload) -> None:
    wanted = kg.generate(kg.load(sd(), device="cpu", dtype="float32"), "a", **FEW)
    pipeline = sd()
    offload(pipeline, device)
    model = kg.load(pipeline)
    for _ in range(2):
        assert grey_levels(kg.generate(model, "a", **FEW), wanted) < 1
        stays = [
            name for name, network in parts(pipeline).items() if any(each.is_cuda for each in network.parameters())
        ]
        assert stays == []


def test_offloaded_pipeline_itself_still_runs(device: torch.device) -> None:
    pipeline = sd()
    offload_models(pipeline, device)
    kg.generate(kg.load(pipeline), "a", **FEW)
    image = pipeline("a", num_inference_steps=1, height=64, width=64, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert kg.generate(kg.load(pipeline), "a", **FEW).frames.shape == (3, 64, 64, 3)


def test_half_precision_with_a_vae_that_overflows(cuda: torch.device) -> None:
    """SDXL in float16 with model offload, as most use it."""
    pipeline = sdxl().to(torch.float16)
    pipeline.vae.register_to_config(force_upcast=True)
    pipeline.enable_model_cpu_offload(device=cuda)
    model = kg.load(pipeline)
    assert (model.vae.dtype, pipeline.vae.dtype) == (torch.float32, torch.float16)
    assert kg.generate(model, "a", **FEW).frames.shape == (3, 64, 64, 3)


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_model_loaded_with_offload_generates_what_the_cpu_does(cuda: torch.device, way: str) -> None:
    options = {**FEW, "num_frames": 3}
    wanted = kg.generate(kg.load(device="cpu", dtype="float32"), "a red fish", **options)
    model = kg.load(device=cuda, dtype="float32", offload=way)
    for _ in range(2):
        assert grey_levels(kg.generate(model, "a red fish", **options), wanted) < 1
        networks = (model.net.image_unet, model.vae, *(each.network for each in model.text_encoders))
        assert not any(weight.is_cuda for network in networks for weight in network.parameters())


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_video_model_loaded_with_offload_keeps_its_temporal_layers_on_the_device(cuda: torch.device, way: str) -> None:
    model = kg.load("pocket-video", device=cuda, dtype="float32", offload=way)
    assert model.net.temporal is not None
    assert all(weight.is_cuda for weight in model.net.temporal.parameters())
    assert kg.generate(model, "a red fish", **FEW).frames.shape[0] == FEW["num_frames"]


def test_offloading_takes_less_of_the_device(cuda: torch.device) -> None:
    peaks = []
    for way in (None, "model", "sequential"):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(cuda)
        before = torch.cuda.memory_allocated(cuda)
        kg.generate(kg.load(device=cuda, dtype="float32", offload=way), "a red fish", **FEW)
        peaks.append(torch.cuda.max_memory_allocated(cuda) - before)
    assert peaks[0] > peaks[1] > peaks[2]
