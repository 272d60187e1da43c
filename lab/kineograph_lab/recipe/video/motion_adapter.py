"""The pocket video model's motion adapter: films frozen at one frame, told as if they moved (Still-Moving, step I).

The noise of their frames is each frame's own, and so is what is to be said of it; only the film stands still.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.temporal.adapters import MOTION_ADAPTER, MotionAdapter
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.norms import use_fast_group_norm
from kineograph_lab.recipe.image.text_encoder import captions_as_ids
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.loop import Batch, Draw, Plan, best_device, fit
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.video import batches, text_to_video
from kineograph_lab.recipe.video.clips import FRAMES

Rng = np.random.Generator


class Stilled(nn.Module):
    """The video network as `fit` trains it: all frozen but a motion adapter."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        assert net.temporal is not None
        net.requires_grad_(requires_grad=False)
        self.net = VideoUNet(net.image_unet, net.temporal, motion_adapter=MotionAdapter(net.temporal, MOTION_ADAPTER))


def train(
    net: VideoUNet, plan: Plan, folder: Path, films: Pool, *, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> VideoUNet:
    """The network with the averaged adapter."""
    ready = use_fast_group_norm(Stilled(net)).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    loss = partial(noise_loss, text.to(best_device()))
    draw = stills(films, plan.batch, tokenizer)
    return fit(ready, plan, folder, draw=draw, loss=loss, report=lambda stilled: {}).net


def stills(films: Pool, batch: int, tokens: CLIPTokenizer) -> Draw:
    """Batches of (clips, noise, weights, timesteps, words, frame rates), each clip one frame of a film many times."""
    words, blank = captions_as_ids(films, tokens), ids(tokens, [""])[0]
    weights = np.stack([batches.weights_of(fact) for fact in films.facts])
    rates = np.array([fact["fps"] for fact in films.facts], np.float32)

    def draw(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < batches.SHORT else FRAMES
        films_of, frame_of = (rng.integers(n, size=batch * FRAMES // frames) for n in (len(words), FRAMES))
        clips, heavy = (np.repeat(of[films_of, frame_of][:, None], frames, 1) for of in (films.pictures, weights))
        told = batches.said(rng, words[films_of], blank)
        return (*batches.noised(rng, clips, heavy), told, torch.from_numpy(rates[films_of]))

    return draw


def noise_loss(text: CLIPTextModel, stilled: Stilled, batch: Batch) -> dict[str, torch.Tensor]:
    """The squared error of the predicted noise with the adapter at scale 1."""
    *clips, words, fps = batch
    return {
        "frozen": text_to_video.error(
            partial(stilled.net, motion_scale=1.0), text_to_video.told_of(text, words, fps), *clips
        )
    }
