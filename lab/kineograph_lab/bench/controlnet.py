"""The same guided video drawn by us and by diffusers' documented recipe: its ControlNet pipeline, with cross-frame
attention put on both networks, one noise for all frames and a control picture for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor2_0,
)
from PIL import Image

from kineograph.denoise import classifier_free_guidance
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph.models.unet.controlnet import bind_controlnet
from kineograph.models.unet.frame_attention import first
from kineograph.samplers import ddim, final_latents
from kineograph.sigmas import leading
from kineograph_lab.bench.text2video_zero import PROMPT, SCALE, SEED, Draw

KIND = "canny"


def ours(folder: Path, dtype: str) -> Draw:
    """This library, as `kineograph.load` sets it up."""
    plain = load(folder, dtype=dtype)
    net = load(folder, controlnet=controlnet(folder, plain), dtype=dtype)
    height, width = net.default_size

    def draw(frames: int, steps: int) -> Frames:
        sigmas = leading(net.schedule.sigmas, steps)
        control = net.control(KIND)
        maps = np.stack([np.asarray(each) for each in pictures(frames, height, width)])
        cues = control.embed(torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255)
        said = [net.prompt([text]) for text in (PROMPT, "")]
        told, blank = (
            net.bind(
                replace(each, residuals=bind_controlnet(control, each, cues, frame_attention=first)),
                frame_attention=first,
            )
            for each in said
        )
        start = _noise(net.latent_shape(height, width), net.dtype).float().to(net.device)
        x = (start * (1 + sigmas[0] ** 2) ** 0.5).expand(frames, -1, -1, -1)[None]
        x0 = final_latents(ddim(classifier_free_guidance(told, blank, SCALE), x, sigmas))
        return (net.decode(x0)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return draw


def theirs(folder: Path, dtype: str) -> Draw:
    """diffusers, as its guide for Text2Video-Zero with ControlNet has it, on the same device."""
    net = controlnet(folder, load(folder, dtype=dtype))
    net = net.to(dtype=parse_dtype(dtype), memory_format=torch.contiguous_format)  # as it comes from `from_pretrained`
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        folder, controlnet=net, dtype=parse_dtype(dtype), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).to(choose_placement().device)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.set_attn_processor(CrossFrameAttnProcessor2_0(batch_size=2))
    pipe.controlnet.set_attn_processor(CrossFrameAttnProcessor2_0(batch_size=2))
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)
    size = side * pipe.vae_scale_factor

    def draw(frames: int, steps: int) -> Frames:
        images = pipe(
            [PROMPT] * frames,
            image=pictures(frames, size, size),
            num_inference_steps=steps,
            guidance_scale=SCALE,
            latents=_noise(shape, pipe.unet.dtype).repeat(frames, 1, 1, 1),
            output_type="np",
        ).images
        return (np.asarray(images) * 255).round().astype(np.uint8)

    return draw


SIDES: Mapping[str, Callable[[Path, str], Draw]] = {"ours": ours, "theirs": theirs}


def controlnet(folder: Path, model: Model) -> ControlNetModel:
    """The pocket model's own for edges; beside a stand-in, one with random weights."""
    if folder == POCKET:
        return load(dtype=model.dtype).control(KIND).controlnet
    torch.manual_seed(SEED)
    net = ControlNetModel.from_unet(model.net.image_unet)
    for name, weight in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(weight, std=0.02)
    return net.eval()


def pictures(frames: int, height: int, width: int) -> list[Image.Image]:
    """Edges of a box that moves to the right."""
    maps = np.zeros((frames, height, width, 3), np.uint8)
    for number, each in enumerate(maps):
        left = width // 4 + number % (width // 4)
        each[height // 4 : 3 * height // 4, [left, left + width // 3]] = 255
        each[[height // 4, 3 * height // 4], left : left + width // 3] = 255
    return [Image.fromarray(each) for each in maps]


def _noise(shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(SEED), dtype=dtype)
