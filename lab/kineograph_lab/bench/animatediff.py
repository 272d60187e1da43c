"""AnimateDiff by this library and by diffusers' AnimateDiffPipeline, with equal weights and noise.

The motion modules are random, with output layers that are not zero: they take as long as trained ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from kineograph.denoise import classifier_free_guidance
from kineograph.latents import Latents
from kineograph.methods.videocrafter import sample
from kineograph.metrics.features import Frames
from kineograph.models.formats.animatediff import ANIMATEDIFF_SCHEDULER
from kineograph.models.loading.load import load
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.samplers import ddim, final_latents
from kineograph.sigmas import leading
from kineograph_lab.bench.text2video_zero import (
    PROMPT,
    SCALE,
    SEED,
    Engine,
    GenerateFrames,
    Sides,
    use_memory_format,
)
from kineograph_lab.bench.timing import Variant, threads

MAX_WINDOW = 32
PROJ_OUT_STD = 0.02  # of the last layer of a motion module, which is initialised to zero


def _load_ours(folder: Path, dtype: str, engine: Engine) -> GenerateFrames:
    model = replace(load(folder, motion_module=random_motion_adapter(folder), dtype=dtype), engine=engine)
    shape = model.latent_shape(*model.default_size)

    def generate(frames: int, steps: int) -> Frames:
        sigmas = leading(model.schedule.sigmas, steps)
        window = min(frames, MAX_WINDOW)  # diffusers attends to all frames at once, up to as many positions
        denoise_cond, denoise_uncond = (model.bind(model.prompt([text]), window=window) for text in (PROMPT, ""))
        initial_noise = _initial_noise(frames, shape).to(model.device) * (1 + sigmas[0] ** 2) ** 0.5 / sigmas[0]
        denoise = classifier_free_guidance(denoise_cond, denoise_uncond, SCALE)
        x0 = final_latents(sample(denoise, initial_noise, sigmas, sampler=ddim))
        return (model.decode(x0)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return generate


def _load_theirs(folder: Path, variant: Variant) -> GenerateFrames:
    """Load diffusers' side, as in its guide, on the same device."""
    dtype = variant.dtype
    motion_adapter = random_motion_adapter(folder).to(parse_dtype(dtype))
    pipe = AnimateDiffPipeline.from_pretrained(
        folder, motion_adapter=motion_adapter, dtype=parse_dtype(dtype), feature_extractor=None, image_encoder=None,
    ).to(choose_placement().device)  # fmt: skip
    pipe.scheduler = DDIMScheduler(
        **{name: value for name, value in ANIMATEDIFF_SCHEDULER.items() if value is not None}
    )
    pipe.set_progress_bar_config(disable=True)
    use_memory_format(pipe, variant)
    if variant.attention == "plain":
        pipe.unet.set_attn_processor(AttnProcessor())
    side = pipe.unet.config.sample_size
    shape = (pipe.vae.config.latent_channels, side, side)

    def generate(frames: int, steps: int) -> Frames:
        size = side * pipe.vae_scale_factor
        with threads(variant.threads):
            images = pipe(
                PROMPT, num_frames=frames, height=size, width=size, num_inference_steps=steps, guidance_scale=SCALE,
                latents=_initial_noise(frames, shape).transpose(1, 2).to(pipe.unet.dtype), output_type="np",
            ).frames[0]  # fmt: skip
        return (np.asarray(images) * 255).round().astype(np.uint8)

    return generate


SIDES = Sides(_load_ours, _load_theirs)


def random_motion_adapter(folder: Path) -> MotionAdapter:
    """Return random motion modules for the image model in a folder."""
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    torch.manual_seed(SEED)
    motion_adapter = MotionAdapter(
        block_out_channels=tuple(config["block_out_channels"]),
        motion_layers_per_block=config["layers_per_block"],
        motion_norm_num_groups=config["norm_num_groups"],
    )
    for name, weight in motion_adapter.named_parameters():
        if "proj_out" in name:
            nn.init.normal_(weight, std=PROJ_OUT_STD)
    return motion_adapter.eval()


def _initial_noise(frames: int, shape: tuple[int, int, int]) -> Latents:
    return torch.randn(1, frames, *shape, generator=torch.Generator().manual_seed(SEED))
