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
from kineograph.training.norms import use_fast_group_norm
from kineograph_lab.recipe.loop import Batch, Plan, best_device, fit
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.video import batches, text_to_video

SHARE = 3  # of the side that is left of a picture before it is made large again
MARK, FAINT = "STOCK VIDEO", 110  # of 255
LAYERS = r".*(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2|conv1|conv2)"
RANK = 16


def spoilt(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [f h w 3], blurred and marked."""
    return np.stack([_spoilt(frame) for frame in frames])


def _spoilt(frame: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(frame)
    small = picture.resize((picture.width // SHARE, picture.height // SHARE), Image.Resampling.BOX)
    blurred = small.resize(picture.size, Image.Resampling.BICUBIC)
    return np.array(Image.composite(Image.new("RGB", picture.size, "white"), blurred, mark(*picture.size)))


def mark(width: int, height: int) -> Image.Image:
    """The watermark: how much of it covers each pixel, of 255."""
    cover = Image.new("L", (width, height))
    ImageDraw.Draw(cover).text(
        (width // 2, 3 * height // 4), MARK, fill=FAINT, anchor="mm", font=ImageFont.load_default(height // 8)
    )
    return cover


class Spoilt(nn.Module):
    """The video network as `fit` trains it: all frozen but matrices of low rank beside its spatial layers."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        net.requires_grad_(requires_grad=False)
        add_low_rank(net.image_unet, LAYERS, RANK)
        self.net = net


def train(
    net: VideoUNet,
    plan: Plan,
    folder: Path,
    films: Pool,
    pictures: Pool,
    *,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> dict[str, Tensor]:
    """The averaged matrices, by name."""
    ready = use_fast_group_norm(Spoilt(net)).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    draw = batches.batches(films, pictures, plan.batch, tokenizer, share=0)
    trained = fit(
        ready, plan, folder, draw=draw, loss=partial(noise_loss, text.to(best_device())), report=lambda net: {}
    )
    state = trained.net.image_unet.state_dict()
    return {name: each.cpu().contiguous() for name, each in state.items() if "lora_" in name}


def noise_loss(text: CLIPTextModel, spoilt: Spoilt, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise."""
    *clips, words, fps = batch[:6]
    return {"films": text_to_video.error(spoilt.net, text_to_video.told_of(text, words, fps), *clips)}


def degraded(net: VideoUNet, weights: dict[str, Tensor]) -> VideoUNet:
    """The video network that these matrices make of it, itself changed."""
    add_low_rank(net.image_unet, LAYERS, RANK)
    unknown = net.image_unet.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
    merge_low_rank(net.image_unet)
    return net
