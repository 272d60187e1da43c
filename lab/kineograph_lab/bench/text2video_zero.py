"""The same video drawn by us and by diffusers' TextToVideoZeroPipeline: same folder of weights, noise and levels.

The motion is by whole latent cells, where both are defined alike, and our levels are set to theirs. What still differs
(`tests/parity` has it all) is a factor of 1.003 on the first noise and of 1.0005 on the moved latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import TextToVideoZeroPipeline
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
from kineograph_lab.recipe.networks import build_tokenizer

PROMPT, SCALE, SEED = "a red fish over the sea", 7.5, 0
SPREAD_AFTER, MOVE_AFTER = 2, 5  # steps of frame 0 alone: T and T' of the paper when there are 50
Draw = Callable[[int, int], Frames]  # (frames, steps) -> a video


def ours(folder: Path, dtype: str) -> Draw:
    """This library, as `kineograph.load` sets it up."""
    model = load(folder, dtype=dtype)
    shape = model.latent_shape(*model.default_size)

    def draw(frames: int, steps: int) -> Frames:
        sigmas = leading(model.schedule.sigmas, steps)
        told, blank = (model.bind(model.prompt([text]), frame_attention=first) for text in (PROMPT, ""))
        x0 = final_latents(
            sample(
                classifier_free_guidance(told, blank, SCALE),
                _noise(frames, shape, model.dtype).float().to(model.device),
                sigmas,
                warp=frame_warp(_by_a_cell(shape), frames=frames, seed=SEED),
                renoise_to=sigmas[SPREAD_AFTER],
                warp_at=sigmas[MOVE_AFTER],
            )
        )
        return (model.decode(x0)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return draw


def theirs(folder: Path, dtype: str) -> Draw:
    """diffusers, as `from_pretrained` sets it up, on the same device."""
    pipe = TextToVideoZeroPipeline.from_pretrained(
        folder, dtype=parse_dtype(dtype), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).to(choose_placement().device)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)

    def draw(frames: int, steps: int) -> Frames:
        x, y = _by_a_cell(shape).pan
        images = pipe(
            PROMPT,
            video_length=frames,
            num_inference_steps=steps,
            guidance_scale=SCALE,
            latents=_noise(frames, shape, pipe.unet.dtype)[:, 0],
            generator=torch.Generator().manual_seed(SEED),
            motion_field_strength_x=x,
            motion_field_strength_y=y,
            t0=steps - 1 - MOVE_AFTER,
            t1=steps - 1 - SPREAD_AFTER,
        ).images
        return (np.asarray(images) * 255).round().astype(np.uint8)

    return draw


SIDES: Mapping[str, Callable[[Path, str], Draw]] = {"ours": ours, "theirs": theirs}


def _noise(frames: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Latents:
    """The noise of frame 0, and what their pipeline draws for the others, in one call and in its own dtype."""
    start = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(SEED + 1), dtype=dtype)
    others = torch.randn(frames - 1, *shape, generator=torch.Generator().manual_seed(SEED), dtype=dtype)
    return torch.cat([start, others[None]], dim=1)


def _by_a_cell(shape: tuple[int, int, int]) -> Motion:
    return Motion(pan=(REFERENCE_SIZE / shape[2], REFERENCE_SIZE / shape[1]))


def save_stand_in(folder: Path, *, channels: int, side: int, text_layers: int) -> None:
    """A pipeline in the shape of Stable Diffusion 1.5, with random weights, in a folder.

    channels, side, text_layers: 320, 64 and 12 in the original. The U-Net's other widths and the VAE's follow from
    `channels`, a multiple of 32.
    """
    torch.manual_seed(SEED)
    words = build_tokenizer([PROMPT])
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=text_layers,
        num_attention_heads=12,
        **ends,
    )
    unet = UNet2DConditionModel(
        sample_size=side,
        cross_attention_dim=768,
        block_out_channels=(channels, 2 * channels, 4 * channels, 4 * channels),
    )
    narrow = max(32, 2 * channels // 5 // 32 * 32)
    vae = AutoencoderKL(
        block_out_channels=[narrow, 2 * narrow, 4 * narrow, 4 * narrow],
        layers_per_block=2,
        sample_size=8 * side,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
