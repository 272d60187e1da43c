"""Compiled networks, and memory of the device: flat over chunks of frames, over clips and over videos."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cases.public_layouts import sd
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from gpu.comparing import FEW, grey_levels
from transformers import CLIPTextConfig, CLIPTextModel

import kineograph as kg
from kineograph.models.description import describe_model
from kineograph.models.memory import Run, measure, predict_peak
from kineograph.models.unet.frame_attention import first

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def backend(device: torch.device) -> str:
    """Return the compiler; on a CPU, where the tests themselves are checked, and without Triton it only traces."""
    return "inductor" if device.type == "cuda" and find_spec("triton") else "eager"


# --- compile


COMPILED_MODEL = """
import sys
import torch
from cases.public_layouts import sd
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from gpu.comparing import estimate, relative_error
import kineograph as kg

model = kg.load(sd(), device=sys.argv[1], dtype="float32")
plain = estimate(model)
model.net.compile(backend=sys.argv[2])
print(relative_error(estimate(model), plain), torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
COMPILED_VIDEO_UNET = """
import sys
import torch
from gpu.comparing import relative_error
from tiny_temporal import COND, CONFIGS, Z
from tiny_unets import randomised, with_temporal_layers

net = randomised(with_temporal_layers(CONFIGS["videocrafter t2v"])).to(sys.argv[1])
with torch.no_grad():
    plain = net(Z.to(sys.argv[1]), 481.0, COND).cpu()
    net.compile(backend=sys.argv[2])
    found = net(Z.to(sys.argv[1]), 481.0, COND)
print(relative_error(found, plain), torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.parametrize("network", ["model", "video U-Net"])
def test_compiled_network_estimates_what_it_did(device: torch.device, network: str) -> None:
    """In another process, since the compiler cannot trace the tests' checks of shapes."""
    program, compiler = (
        (COMPILED_MODEL, "eager") if network == "model" else (COMPILED_VIDEO_UNET, backend(device))
    )  # of these thousand operations the second is quicker to compile
    command = [sys.executable, "-W", "ignore", "-c", program, device.type, compiler]
    path = str(Path(__file__).parents[1])
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr
    error, graphs = map(float, ended.stdout.split()[-2:])
    assert error < 1e-3 and graphs == 1


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_compiled_layers_of_a_pipeline_generate_the_same_video(device: torch.device) -> None:
    torch._dynamo.reset()
    pipeline = sd().to(device)
    wanted = kg.generate(kg.load(pipeline), "a", **FEW)
    for resnet in pipeline.unet.mid_block.resnets:
        resnet.compile(backend=backend(device))
    assert grey_levels(kg.generate(kg.load(pipeline), "a", **FEW), wanted) < 1


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


# --- prediction


def stable_diffusion(device: torch.device) -> StableDiffusionPipeline:
    """Return Stable Diffusion 1.5's networks with random weights in float16, without the tokenizer's words."""
    parts = sd()
    with torch.device(device):
        torch.set_default_dtype(torch.float16)
        try:
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
            vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            )  # fmt: skip
            text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        finally:
            torch.set_default_dtype(torch.float32)
    return StableDiffusionPipeline(
        vae, text, parts.tokenizer, unet, parts.scheduler, None, None, requires_safety_checker=False
    )


@pytest.mark.parametrize("frames", [1, 8])
def test_predicted_peak_is_within_15_percent_of_cuda_s_counter(cuda: torch.device, frames: int) -> None:
    """Stable Diffusion 1.5 at 512 x 512, 16 frames."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(cuda)
    model = kg.load(stable_diffusion(cuda))
    networks = describe_model(model).networks
    assert networks is not None
    run = Run(videos=1, frames=frames, height=512, width=512)
    predicted = predict_peak(networks, measure(networks, None, run), run).total
    torch.cuda.reset_peak_memory_stats(cuda)
    kg.generate(model, "a", num_frames=16, num_inference_steps=1, chunk_size=frames, height=512, width=512, seed=0)
    assert torch.cuda.max_memory_allocated(cuda) - before == pytest.approx(predicted, rel=0.15)


def test_memory_limits_what_a_run_takes_of_the_device(cuda: torch.device) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(cuda)
    model = kg.load(stable_diffusion(cuda))
    torch.cuda.reset_peak_memory_stats(cuda)
    video = kg.generate(model, "a", num_frames=8, num_inference_steps=1, memory="2.6GB", height=512, width=512, seed=0)
    assert torch.cuda.max_memory_allocated(cuda) - before < 1.15 * 2.6e9
    assert video.settings["chunk_size"] < 8
