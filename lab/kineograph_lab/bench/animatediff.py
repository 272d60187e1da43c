"""The same video drawn by us and by diffusers' AnimateDiffPipeline: one image model, motion modules and noise.

The motion modules are random and not silent: what they draw means nothing, and takes as long as what trained ones draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNet2DConditionModel
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
from kineograph_lab.bench.text2video_zero import PROMPT, SCALE, SEED, Draw

AT_ONCE = 32
LOUDNESS = 0.02  # of the last layer of a motion module, which begins as zero


def ours(folder: Path, dtype: str) -> Draw:
    """This library, as `kineograph.load` sets it up."""
    model = load(folder, motion=adapter(folder), dtype=dtype)
    shape = model.latent_shape(*model.default_size)

    def draw(frames: int, steps: int) -> Frames:
        sigmas = leading(model.schedule.sigmas, steps)
        window = min(frames, AT_ONCE)  # theirs sees all at once, and knows as many positions
        told, blank = (model.bind(model.prompt([text]), window=window) for text in (PROMPT, ""))
        begin = _noise(frames, shape).to(model.device) * (1 + sigmas[0] ** 2) ** 0.5 / sigmas[0]
        x0 = final_latents(sample(classifier_free_guidance(told, blank, SCALE), begin, sigmas, sampler=ddim))
        return (model.decode(x0)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return draw


def theirs(folder: Path, dtype: str) -> Draw:
    """diffusers, as its guide has it, on the same device."""
    made = adapter(folder).to(parse_dtype(dtype))
    pipe = AnimateDiffPipeline.from_pretrained(
        folder, motion_adapter=made, dtype=parse_dtype(dtype), feature_extractor=None, image_encoder=None,
    ).to(choose_placement().device)  # fmt: skip
    pipe.scheduler = DDIMScheduler(
        **{name: value for name, value in ANIMATEDIFF_SCHEDULER.items() if value is not None}
    )
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    shape = (pipe.vae.config.latent_channels, side, side)

    def draw(frames: int, steps: int) -> Frames:
        images = pipe(
            PROMPT,
            num_frames=frames,
            height=side * pipe.vae_scale_factor,
            width=side * pipe.vae_scale_factor,
            num_inference_steps=steps,
            guidance_scale=SCALE,
            latents=_noise(frames, shape).transpose(1, 2).to(pipe.unet.dtype),
            output_type="np",
        ).frames[0]
        return (np.asarray(images) * 255).round().astype(np.uint8)

    return draw


SIDES: Mapping[str, Callable[[Path, str], Draw]] = {"ours": ours, "theirs": theirs}


def adapter(folder: Path) -> MotionAdapter:
    """Motion modules for the image model in a folder."""
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    torch.manual_seed(SEED)
    made = MotionAdapter(
        block_out_channels=tuple(config["block_out_channels"]),
        motion_layers_per_block=config["layers_per_block"],
        motion_norm_num_groups=config["norm_num_groups"],
    )
    for name, weight in made.named_parameters():
        if "proj_out" in name:
            nn.init.normal_(weight, std=LOUDNESS)
    return made.eval()


def _noise(frames: int, shape: tuple[int, int, int]) -> Latents:
    return torch.randn(1, frames, *shape, generator=torch.Generator().manual_seed(SEED))
