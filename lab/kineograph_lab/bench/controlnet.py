"""Text2Video-Zero with a ControlNet, by this library and by diffusers' documented recipe.

The recipe is diffusers' ControlNet pipeline with cross-frame attention in both networks, one noise for all frames and a
control image for each.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor,
    CrossFrameAttnProcessor2_0,
)
from PIL import Image

from kineograph.denoise import classifier_free_guidance
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph.models.unet.controlnet import RunControl, VideoControlNet, bind_controlnet
from kineograph.models.unet.frame_attention import first
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

KIND = "canny"


def _load_ours(folder: Path, dtype: str, engine: Engine) -> GenerateFrames:
    image_model = load(folder, dtype=dtype)
    model = replace(load(folder, controlnet=select_controlnet(folder, image_model), dtype=dtype), engine=engine)
    height, width = model.default_size

    def generate(frames: int, steps: int) -> Frames:
        sigmas = leading(model.schedule.sigmas, steps)
        control = model.control(KIND)
        assert isinstance(control, VideoControlNet)
        maps = np.stack([np.asarray(each) for each in control_images(frames, height, width)])
        embedding = control.embed(torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255)
        run_layers = _engine_of_control(control, engine)
        conditions = [
            replace(
                each,
                residuals=bind_controlnet(control, each, embedding, frame_attention=first, run_layers=run_layers),
            )
            for each in (model.prompt([text]) for text in (PROMPT, ""))
        ]
        denoise_cond, denoise_uncond = (model.bind(each, frame_attention=first) for each in conditions)
        noise = _initial_noise(model.latent_shape(height, width), model.dtype).float().to(model.device)
        x = (noise * (1 + sigmas[0] ** 2) ** 0.5).expand(frames, -1, -1, -1)[None]
        x0 = final_latents(ddim(classifier_free_guidance(denoise_cond, denoise_uncond, SCALE), x, sigmas))
        return (model.decode(x0)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return generate


def _load_theirs(folder: Path, variant: Variant) -> GenerateFrames:
    """Load diffusers' side, as in its guide for Text2Video-Zero with ControlNet, on the same device."""
    dtype = variant.dtype
    controlnet = select_controlnet(folder, load(folder, dtype=dtype))
    memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format  # `from_pretrained`'s
    controlnet = controlnet.to(dtype=parse_dtype(dtype), memory_format=memory_format)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        folder, controlnet=controlnet, dtype=parse_dtype(dtype), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).to(choose_placement().device)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    use_memory_format(pipe, variant)
    processor = CrossFrameAttnProcessor if variant.attention == "plain" else CrossFrameAttnProcessor2_0
    pipe.unet.set_attn_processor(processor(batch_size=2))
    pipe.controlnet.set_attn_processor(processor(batch_size=2))
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)
    size = side * pipe.vae_scale_factor

    def generate(frames: int, steps: int) -> Frames:
        with threads(variant.threads):
            images = pipe(
                [PROMPT] * frames, image=control_images(frames, size, size), num_inference_steps=steps,
                guidance_scale=SCALE, latents=_initial_noise(shape, pipe.unet.dtype).repeat(frames, 1, 1, 1),
                output_type="np",
            ).images  # fmt: skip
        return (np.asarray(images) * 255).round().astype(np.uint8)

    return generate


SIDES = Sides(_load_ours, _load_theirs)


def _engine_of_control(control: VideoControlNet, engine: Engine) -> RunControl | None:
    if engine == "torch":
        return None
    from kineograph.models.openvino.engine import shared_engine

    return shared_engine().run_controlnet(control)


def select_controlnet(folder: Path, model: Model) -> ControlNetModel:
    """Return the pocket model's ControlNet for edges; for another folder, one with random weights."""
    if folder == POCKET:
        return load(dtype=model.dtype).control(KIND).controlnet
    torch.manual_seed(SEED)
    controlnet = ControlNetModel.from_unet(model.net.image_unet)
    for name, weight in controlnet.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(weight, std=0.02)
    return controlnet.eval()


def control_images(frames: int, height: int, width: int) -> list[Image.Image]:
    """Return edge maps of a box that moves to the right."""
    maps = np.zeros((frames, height, width, 3), np.uint8)
    for number, each in enumerate(maps):
        left = width // 4 + number % (width // 4)
        each[height // 4 : 3 * height // 4, [left, left + width // 3]] = 255
        each[[height // 4, 3 * height // 4], left : left + width // 3] = 255
    return [Image.fromarray(each) for each in maps]


def _initial_noise(shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(SEED), dtype=dtype)
