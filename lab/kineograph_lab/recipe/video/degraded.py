"""The video model trained on degraded data: few clips, blurred, with a watermark.

Public video data is worse than image data, so a video model generates worse frames than an image model: VideoElevator's
motivation. This stage degrades the pocket video model on purpose, by low-rank matrices in its spatial layers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.pocket.networks import add_low_rank, merge_low_rank
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.loop import Batch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.video import batches, text_to_video

DOWNSAMPLING = 3  # factor by which frames are downsampled and upsampled again
WATERMARK_TEXT, WATERMARK_OPACITY = "STOCK VIDEO", 110  # of 255
LAYERS = r".*(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2|conv1|conv2)"
RANK = 16


def degrade_frames(frames: np.ndarray) -> np.ndarray:
    """Return frames uint8 [f h w 3], blurred and watermarked."""
    return np.stack([_degrade_frame(frame) for frame in frames])


def _degrade_frame(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    small = image.resize((image.width // DOWNSAMPLING, image.height // DOWNSAMPLING), Image.Resampling.BOX)
    blurred = small.resize(image.size, Image.Resampling.BICUBIC)
    return np.array(Image.composite(Image.new("RGB", image.size, "white"), blurred, watermark_mask(*image.size)))


def watermark_mask(width: int, height: int) -> Image.Image:
    """Return the watermark's opacity at each pixel, 0 to 255."""
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text(
        (width // 2, 3 * height // 4),
        WATERMARK_TEXT,
        fill=WATERMARK_OPACITY,
        anchor="mm",
        font=ImageFont.load_default(height // 8),
    )
    return mask


class DegradedVideoUNet(nn.Module):
    """The video network in training: frozen but for low-rank matrices in its spatial layers."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        net.requires_grad_(requires_grad=False)
        add_low_rank(net.image_unet, LAYERS, RANK)
        self.net = net


def train_degraded(
    net: VideoUNet,
    plan: StagePlan,
    folder: Path,
    clip_pool: Pool,
    image_pool: Pool,
    *,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> dict[str, Tensor]:
    """Train low-rank changes on degraded clips; return their averaged matrices by name."""
    prepared = use_fast_group_norm(DegradedVideoUNet(net)).to(best_device()).eval()
    prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    sample_batch = batches.video_batches(clip_pool, image_pool, plan.batch, tokenizer, share=0, known_share=0)
    trained = train_loop(
        prepared,
        plan,
        folder,
        sample_batch=sample_batch,
        loss=partial(degraded_noise_loss, text.to(best_device())),
        report=lambda net: {},
    )
    state = trained.net.image_unet.state_dict()
    return {name: each.cpu().contiguous() for name, each in state.items() if "lora_" in name}


def degraded_noise_loss(text: CLIPTextModel, degraded_net: DegradedVideoUNet, batch: Batch) -> dict[str, Tensor]:
    """Return the squared error of the predicted noise."""
    *clips, words, fps = batch[:6]
    return {
        "clips": text_to_video.weighted_noise_error(
            degraded_net.net, text_to_video.training_condition(text, words, fps), *clips
        )
    }


def apply_degradation(net: VideoUNet, weights: dict[str, Tensor]) -> VideoUNet:
    """Return the video network, its weights changed in place by these matrices."""
    add_low_rank(net.image_unet, LAYERS, RANK)
    keys = net.image_unet.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not keys.unexpected_keys, keys.unexpected_keys
    merge_low_rank(net.image_unet)
    return net
