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
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.loop import Batch, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import tokenize
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.video import batches, text_to_video
from kineograph_lab.recipe.video.clips import FRAMES

Rng = np.random.Generator


class FrozenClipUNet(nn.Module):
    """The video network as `fit` trains it: all frozen but a motion adapter."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        assert net.temporal is not None
        net.requires_grad_(requires_grad=False)
        self.net = VideoUNet(net.image_unet, net.temporal, motion_adapter=MotionAdapter(net.temporal, MOTION_ADAPTER))


def train_pocket_motion_adapter(
    net: VideoUNet, plan: StagePlan, folder: Path, films: Pool, *, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> VideoUNet:
    """The network with the averaged adapter."""
    ready = use_fast_group_norm(FrozenClipUNet(net)).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    loss = partial(frozen_clip_loss, text.to(best_device()))
    sample_batch = frozen_clip_batches(films, plan.batch, tokenizer)
    return train_loop(ready, plan, folder, sample_batch=sample_batch, loss=loss, report=lambda stilled: {}).net


def frozen_clip_batches(films: Pool, batch: int, tokens: CLIPTokenizer) -> SampleBatch:
    """Batches of (clips, noise, weights, timesteps, words, frame rates), each clip one frame of a film many times."""
    words, blank = tokenize_captions(films, tokens), tokenize(tokens, [""])[0]
    weights = np.stack([batches.clip_cell_weights(fact) for fact in films.facts])
    rates = np.array([fact["fps"] for fact in films.facts], np.float32)

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < batches.SHORT_SHARE else FRAMES
        films_of, frame_of = (rng.integers(n, size=batch * FRAMES // frames) for n in (len(words), FRAMES))
        clips, heavy = (np.repeat(of[films_of, frame_of][:, None], frames, 1) for of in (films.items, weights))
        told = batches.sample_captions(rng, words[films_of], blank)
        return (*batches.sample_noised(rng, clips, heavy), told, torch.from_numpy(rates[films_of]))

    return sample_batch


def frozen_clip_loss(text: CLIPTextModel, stilled: FrozenClipUNet, batch: Batch) -> dict[str, torch.Tensor]:
    """The squared error of the predicted noise with the adapter at scale 1."""
    *clips, words, fps = batch
    return {
        "frozen": text_to_video.weighted_noise_error(
            partial(stilled.net, motion_scale=1.0), text_to_video.training_condition(text, words, fps), *clips
        )
    }
