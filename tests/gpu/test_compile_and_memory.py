"""Compiled networks, and memory of the device: flat over chunks of frames, over clips and over videos."""

from __future__ import annotations

import gc

import pytest
import torch
from cases.public_layouts import sd
from gpu.comparing import FEW, estimate, grey_levels, relative_error

import kineograph as kg
from kineograph.models.unet.frame_attention import first

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def backend(device: torch.device) -> str:
    return "inductor" if device.type == "cuda" else "eager"


# --- compile


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("name", ["pocket", "pocket-video"])
def test_compiled_network_estimates_what_it_did(device: torch.device, name: str) -> None:
    torch._dynamo.reset()
    model = kg.load(name, device=device, dtype="float32")
    plain = estimate(model)
    model.net.compile(backend=backend(device))
    assert relative_error(estimate(model), plain) < 1e-3


@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_of_a_pipeline_generate_the_same_video(device: torch.device) -> None:
    torch._dynamo.reset()
    wanted = kg.generate(kg.load(sd(), device=device, dtype="float32"), "a", **FEW)
    pipeline = sd()
    for block in pipeline.unet.down_blocks:
        for resnet in block.resnets:
            resnet.compile(backend=backend(device))
    video = kg.generate(kg.load(pipeline, device=device, dtype="float32"), "a", **FEW)
    assert grey_levels(video, wanted) < 1


# --- memory


def peak(device: torch.device) -> int:
    """Return the most bytes in use since the last call, and begin again."""
    torch.cuda.synchronize(device)
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most


@torch.no_grad()
def test_memory_of_an_image_model_is_flat_over_chunks(cuda: torch.device) -> None:
    model = kg.load(device=cuda, dtype="float32")
    condition = model.prompt(["a red fish"])
    most = []
    for frames in (8, 8, 64):  # the first chooses kernels
        x = torch.randn(1, frames, *model.latent_shape(256, 256))  # on the CPU: only a chunk is on the device
        denoise = model.bind(condition, frame_attention=first, chunk_size=4)
        peak(cuda)
        denoise(x, 5.0)
        most.append(peak(cuda))
    latents = 64 * 4 * model.latent_shape(256, 256)[0] * 32 * 32
    assert most[2] < most[1] + 6 * latents, "a chunk's activations are many times the latents"


@torch.no_grad()
def test_memory_of_a_video_model_is_flat_over_windows(cuda: torch.device) -> None:
    model = kg.load("pocket-video", device=cuda, dtype="float32")
    condition, most = model.prompt(["a red fish"]), []
    for frames in (8, 8, 48):
        x = torch.randn(1, frames, *model.latent_shape(128, 128))
        denoise = model.bind(condition, window=8)
        peak(cuda)
        denoise(x, 5.0)
        most.append(peak(cuda))
    latents = 48 * 4 * model.latent_shape(128, 128)[0] * 16 * 16
    assert most[2] < most[1] + 10 * latents


@torch.no_grad()
def test_memory_of_decoding_is_flat_over_frames(cuda: torch.device) -> None:
    model = kg.load(device=cuda, dtype="float32")
    most = []
    for frames in (4, 4, 32):
        latents = torch.randn(1, frames, *model.latent_shape(128, 128))
        peak(cuda)
        for _ in model.decode_chunks(latents, chunk_size=2):
            pass
        most.append(peak(cuda))
    assert most[2] < 1.1 * most[1] + 10_000_000


def test_nothing_stays_on_the_device_after_videos(cuda: torch.device) -> None:
    model, left = kg.load(device=cuda, dtype="float32"), []
    for seed in range(4):
        kg.generate(model, "a red fish", **(FEW | {"seed": seed}))
        gc.collect()
        left.append(torch.cuda.memory_allocated(cuda))
    assert max(left[1:]) - min(left[1:]) < 1_000_000


def test_model_leaves_the_device_with_its_last_reference(cuda: torch.device) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated(cuda)
    model = kg.load(device=cuda, dtype="float32")
    assert torch.cuda.memory_allocated(cuda) > before + 10_000_000
    model = model.to("cpu")
    gc.collect()
    assert torch.cuda.memory_allocated(cuda) < before + 1_000_000
    del model
