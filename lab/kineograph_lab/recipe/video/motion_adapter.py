"""The pocket video model's motion adapter (Still-Moving, step I): clips of one repeated frame, with captions of motion.

Each frame has noise and captions as in a moving clip; only the frames are all the same.
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
    """A video network with a new, trainable motion adapter; all other weights are fixed."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        assert net.temporal is not None
        net.requires_grad_(requires_grad=False)
        self.net = VideoUNet(net.image_unet, net.temporal, motion_adapter=MotionAdapter(net.temporal, MOTION_ADAPTER))


def train_pocket_motion_adapter(
    net: VideoUNet, plan: StagePlan, folder: Path, clip_pool: Pool, *, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> VideoUNet:
    """Train the motion adapter on frozen clips, the rest fixed; return the network with the adapter's mean weights."""
    prepared = use_fast_group_norm(FrozenClipUNet(net)).to(best_device()).eval()
    prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    loss = partial(frozen_clip_loss, text.to(best_device()))
    sample_batch = frozen_clip_batches(clip_pool, plan.batch, tokenizer)
    return train_loop(prepared, plan, folder, sample_batch=sample_batch, loss=loss, report=lambda frozen: {}).net


def frozen_clip_batches(clip_pool: Pool, batch: int, tokenizer: CLIPTokenizer) -> SampleBatch:
    """Return a sampler of (clips, noise, weights, timesteps, tokens, frame rates), each clip one frame repeated."""
    clip_tokens, empty_caption = tokenize_captions(clip_pool, tokenizer), tokenize(tokenizer, [""])[0]
    weights = np.stack([batches.clip_cell_weights(fact) for fact in clip_pool.facts])
    rates = np.array([fact["fps"] for fact in clip_pool.facts], np.float32)

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < batches.SHORT_SHARE else FRAMES
        chosen_clips, chosen_frames = (
            rng.integers(n, size=batch * FRAMES // frames) for n in (len(clip_tokens), FRAMES)
        )
        clips, cell_weights = (
            np.repeat(values[chosen_clips, chosen_frames][:, None], frames, 1) for values in (clip_pool.items, weights)
        )
        captions = batches.sample_captions(rng, clip_tokens[chosen_clips], empty_caption)
        return (*batches.sample_noised(rng, clips, cell_weights), captions, torch.from_numpy(rates[chosen_clips]))

    return sample_batch


def frozen_clip_loss(text: CLIPTextModel, frozen: FrozenClipUNet, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the squared error of the predicted noise with the adapter at scale 1."""
    *clips, words, fps = batch
    return {
        "frozen": text_to_video.weighted_noise_error(
            partial(frozen.net, motion_scale=1.0), text_to_video.training_condition(text, words, fps), *clips
        )
    }
