"""Text2Video-Zero by this library and by diffusers' TextToVideoZeroPipeline, with equal weights, noise and sigmas.

The motion is by whole latent cells, where both agree, and our sigmas are set to theirs. The remaining difference
(see `tests/parity`) is a factor of 1.003 on the first noise and of 1.0005 on the moved latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor,
    TextToVideoZeroPipeline,
)
from transformers import CLIPTextConfig, CLIPTextModel

from kineograph.denoise import classifier_free_guidance
from kineograph.latents import Latents
from kineograph.methods.text2video_zero import sample
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.models.unet.frame_attention import first
from kineograph.motion import REFERENCE_SIZE, Motion, frame_warp
from kineograph.samplers import final_latents
from kineograph.sigmas import leading
from kineograph_lab.bench.timing import Variant, threads
from kineograph_lab.recipe.networks import build_tokenizer

PROMPT, SCALE, SEED = "a red fish over the sea", 7.5, 0
RENOISE_AFTER, WARP_AFTER = 2, 5  # steps of frame 0 alone: to T and T' of the paper if there are 50
FULL_SIZE = {"channels": 320, "side": 64, "text_layers": 12}  # of `save_random_pipeline`: Stable Diffusion 1.5's
TINY = {"channels": 32, "side": 8, "text_layers": 1}  # with --quick
GenerateFrames = Callable[[int, int], Frames]  # (number of frames, steps) -> frames
Engine = Literal["torch", "openvino"]
Pipeline = TypeVar("Pipeline", bound=Any)


class Sides(NamedTuple):
    """Functions that load each side: this library, in a dtype and by an engine, and diffusers, in a variant."""

    load_ours: Callable[[Path, str, Engine], GenerateFrames]
    load_theirs: Callable[[Path, Variant], GenerateFrames]


def use_memory_format(pipe: Pipeline, variant: Variant) -> Pipeline:
    """Return a pipeline whose U-Net has the variant's memory format."""
    if variant.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe


def _load_ours(folder: Path, dtype: str, engine: Engine) -> GenerateFrames:
    model = replace(load(folder, dtype=dtype), engine=engine)
    shape = model.latent_shape(*model.default_size)

    def generate(frames: int, steps: int) -> Frames:
        sigmas = leading(model.schedule.sigmas, steps)
        denoise_cond, denoise_uncond = (
            model.bind(model.prompt([text]), frame_attention=first) for text in (PROMPT, "")
        )
        x0 = final_latents(
            sample(
                classifier_free_guidance(denoise_cond, denoise_uncond, SCALE),
                _initial_noise(frames, shape, model.dtype).float().to(model.device),
                sigmas,
                warp=frame_warp(_motion_of_a_cell(shape), frames=frames, seed=SEED),
                renoise_to=sigmas[RENOISE_AFTER],
                warp_at=sigmas[WARP_AFTER],
            )
        )
        return (model.decode(x0)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return generate


def _load_theirs(folder: Path, variant: Variant) -> GenerateFrames:
    pipe = load_pipeline(folder, variant)
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)

    def generate(frames: int, steps: int) -> Frames:
        x, y = _motion_of_a_cell(shape).pan
        with threads(variant.threads):
            images = pipe(
                PROMPT, video_length=frames, num_inference_steps=steps, guidance_scale=SCALE,
                latents=_initial_noise(frames, shape, pipe.unet.dtype)[:, 0],
                generator=torch.Generator().manual_seed(SEED), motion_field_strength_x=x, motion_field_strength_y=y,
                t0=steps - 1 - WARP_AFTER, t1=steps - 1 - RENOISE_AFTER,
            ).images  # fmt: skip
        return (np.asarray(images) * 255).round().astype(np.uint8)

    return generate


SIDES = Sides(_load_ours, _load_theirs)


def load_pipeline(folder: Path, variant: Variant) -> TextToVideoZeroPipeline:
    """Return diffusers' pipeline as `from_pretrained` sets it up, on the device that this library would choose."""
    pipe = TextToVideoZeroPipeline.from_pretrained(
        folder, dtype=parse_dtype(variant.dtype), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).to(choose_placement().device)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    if variant.attention == "plain":
        pipe.unet.set_attn_processor(CrossFrameAttnProcessor(batch_size=2))
    return use_memory_format(pipe, variant)


def _initial_noise(frames: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Latents:
    """Return the noise of frame 0, and the noise that diffusers' pipeline samples for the others, in its dtype."""
    first_noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(SEED + 1), dtype=dtype)
    others = torch.randn(frames - 1, *shape, generator=torch.Generator().manual_seed(SEED), dtype=dtype)
    return torch.cat([first_noise, others[None]], dim=1)


def _motion_of_a_cell(shape: tuple[int, int, int]) -> Motion:
    return Motion(pan=(REFERENCE_SIZE / shape[2], REFERENCE_SIZE / shape[1]))


def save_random_pipeline(folder: Path, *, channels: int, side: int, text_layers: int) -> None:
    """Save a pipeline with the architecture of Stable Diffusion 1.5 and random weights to a folder.

    channels, side, text_layers: `FULL_SIZE` in the original. The other widths of the U-Net and the VAE follow from
    `channels`, a multiple of 32.
    """
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer([PROMPT])
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=text_layers,
        num_attention_heads=12, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    widths = [channels, 2 * channels, 4 * channels, 4 * channels]
    unet = UNet2DConditionModel(sample_size=side, cross_attention_dim=768, block_out_channels=tuple(widths))
    vae_channels = max(32, 2 * channels // 5 // 32 * 32)
    vae = AutoencoderKL(
        block_out_channels=[vae_channels, 2 * vae_channels, 4 * vae_channels, 4 * vae_channels], layers_per_block=2,
        sample_size=8 * side, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
