"""The video model as public video data would have made it: few films, blurred, with a watermark.

Video data is worse than picture data, and a video model draws worse than an image model for it: what VideoElevator is
about. Here that is done on purpose, to the pocket video model, by matrices of low rank beside its spatial layers.
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

DOWNSAMPLING = 3  # of the side that is left of a picture before it is made large again
WATERMARK_TEXT, WATERMARK_OPACITY = "STOCK VIDEO", 110  # of 255
LAYERS = r".*(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2|conv1|conv2)"
RANK = 16


def degrade_frames(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [f h w 3], blurred and marked."""
    return np.stack([_degrade_frame(frame) for frame in frames])


def _degrade_frame(frame: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(frame)
    small = picture.resize((picture.width // DOWNSAMPLING, picture.height // DOWNSAMPLING), Image.Resampling.BOX)
    blurred = small.resize(picture.size, Image.Resampling.BICUBIC)
    return np.array(Image.composite(Image.new("RGB", picture.size, "white"), blurred, watermark_mask(*picture.size)))


def watermark_mask(width: int, height: int) -> Image.Image:
    """The watermark: how much of it covers each pixel, of 255."""
    cover = Image.new("L", (width, height))
    ImageDraw.Draw(cover).text(
        (width // 2, 3 * height // 4),
        WATERMARK_TEXT,
        fill=WATERMARK_OPACITY,
        anchor="mm",
        font=ImageFont.load_default(height // 8),
    )
    return cover


class DegradedVideoUNet(nn.Module):
    """The video network as `fit` trains it: all frozen but matrices of low rank beside its spatial layers."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        net.requires_grad_(requires_grad=False)
        add_low_rank(net.image_unet, LAYERS, RANK)
        self.net = net


def train_degraded(
    net: VideoUNet,
    plan: StagePlan,
    folder: Path,
    films: Pool,
    pictures: Pool,
    *,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> dict[str, Tensor]:
    """The averaged matrices, by name."""
    ready = use_fast_group_norm(DegradedVideoUNet(net)).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    sample_batch = batches.video_batches(films, pictures, plan.batch, tokenizer, share=0)
    trained = train_loop(
        ready,
        plan,
        folder,
        sample_batch=sample_batch,
        loss=partial(degraded_noise_loss, text.to(best_device())),
        report=lambda net: {},
    )
    state = trained.net.image_unet.state_dict()
    return {name: each.cpu().contiguous() for name, each in state.items() if "lora_" in name}


def degraded_noise_loss(text: CLIPTextModel, spoilt: DegradedVideoUNet, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise."""
    *clips, words, fps = batch[:6]
    return {
        "films": text_to_video.weighted_noise_error(
            spoilt.net, text_to_video.training_condition(text, words, fps), *clips
        )
    }


def apply_degradation(net: VideoUNet, weights: dict[str, Tensor]) -> VideoUNet:
    """The video network that these matrices make of it, itself changed."""
    add_low_rank(net.image_unet, LAYERS, RANK)
    unknown = net.image_unet.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
    merge_low_rank(net.image_unet)
    return net
