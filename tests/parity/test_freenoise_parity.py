"""Prompt travel and FreeNoise compute what diffusers' AnimateDiffPipeline computes with `enable_free_noise`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases.public_layouts import BETAS, normal, shake
from cases.tiny_models import far, motion_module, sd
from diffusers import AnimateDiffPipeline, DDIMScheduler
from torch import Tensor

import kineograph as kg
from kineograph.generation.check import complete
from kineograph.generation.resolve import Inputs, resolve
from kineograph.methods import freenoise, videocrafter
from kineograph.methods.freenoise import noise_order
from kineograph.models.unet.frame_attention import own
from kineograph.plan import Plan, bind_model, encode_prompts
from kineograph.samplers import ddim, final_latents

pytestmark = pytest.mark.parity
PROMPTS = {0: "a fish", 2: "the cat", 3: "a sea"}
STEPS, SCALE, CLOSE = 2, 3.0, 1e-4


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs warns of what it will change
        yield


def pipeline() -> AnimateDiffPipeline:
    """Return a tiny AnimateDiff pipeline with random weights."""
    parts, motion = sd(), motion_module().eval()
    shake(motion, 0.1, seed=5)
    linear = DDIMScheduler(**(BETAS | {"beta_schedule": "linear"}), steps_offset=1, clip_sample=False)
    pipe = AnimateDiffPipeline(parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, motion, linear)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(model: kg.Model, frames: int, **options: object) -> Plan:
    given = {"num_frames": frames, "num_inference_steps": STEPS, "guidance_scale": SCALE, "seed": 0, **options}
    return resolve(model, (PROMPTS[0],), complete(given), Inputs())


def theirs(pipe: AnimateDiffPipeline, noise: Tensor, prompt: object) -> Tensor:
    side = pipe.vae_scale_factor * noise.shape[-1]
    return pipe(
        prompt, num_frames=noise.shape[1], height=side, width=side, num_inference_steps=STEPS, guidance_scale=SCALE,
        latents=noise.transpose(1, 2).clone(), output_type="latent",
    ).frames.transpose(1, 2)  # fmt: skip


def at_first_sigma(noise: Tensor, sigma: float) -> Tensor:
    """Return the noise of their first timestep, where the signal is a little, as noise of ours."""
    return noise * (1 + sigma**2) ** 0.5 / sigma


@pytest.mark.slow
def test_prompt_travel() -> None:
    pipe, frames = pipeline(), 5
    plan = ours(kg.load(pipe), frames, prompt_at={frame: text for frame, text in PROMPTS.items() if frame})
    pipe.enable_free_noise(context_length=frames, context_stride=4)  # one window: the network as it is
    tokens, _ = pipe._encode_prompt_free_noise(
        PROMPTS, frames, device="cpu", num_videos_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(encode_prompts(plan, plan.model).tokens[0], tokens, atol=1e-6, rtol=0)
    noise = normal(1, frames, 4, 8, 8, seed=3)
    sigmas = plan.sigmas(plan.model.schedule)
    denoise = bind_model(plan, frame_attention=own).guided
    steps = videocrafter.sample(denoise, at_first_sigma(noise, sigmas[0]), sigmas, sampler=ddim)
    assert far(final_latents(steps), theirs(pipe, noise, PROMPTS)) <= CLOSE


def test_noise_is_rescheduled_as_theirs_by_the_same_permutations() -> None:
    pipe, frames, window, stride = pipeline(), 15, 8, 3
    pipe.enable_free_noise(context_length=window, context_stride=stride)
    their_noise = pipe._prepare_latents_free_noise(
        1, 4, frames, 8, 8, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(0)
    ).transpose(1, 2)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, frames, 8 // pipe.vae_scale_factor, 8 // pipe.vae_scale_factor)
    drawn = torch.randn(shape, generator=generator).transpose(1, 2)
    order = noise_order(range(frames), window, stride, lambda frame: torch.randperm(stride, generator=generator))
    assert torch.equal(drawn[:, order], their_noise)
    assert len({*order}) == window


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "weights"),
    [(8, "pyramid"), (14, "pyramid"), (15, "pyramid"), (16, "flat")],
    ids=["one window", "windows that end with the video", "one frame left", "two frames left"],
)
def test_freenoise(frames: int, weights: str) -> None:
    """With two frames left theirs divides the weights of both by the first one's, which holds for flat weights."""
    pipe, window, stride = pipeline(), 8, 3
    windows = {"window_stride": stride, "window_weights": weights} if frames > window else {}
    plan = ours(
        kg.load(pipe), frames, method="freenoise", window=window, **windows,
        prompt_at={frame: text for frame, text in PROMPTS.items() if frame}, injection_start=0.0, injection_end=1.0,
    )  # fmt: skip
    pipe.enable_free_noise(context_length=window, context_stride=stride, weighting_scheme=weights)
    noise = normal(1, frames, 4, 8, 8, seed=3)
    sigma = plan.sigmas(plan.model.schedule)[0]
    plan = replace(plan, continue_noise=lambda own: at_first_sigma(noise, sigma))
    assert far(final_latents(freenoise.run(plan).steps), theirs(pipe, noise, PROMPTS)) <= CLOSE
