"""Other temporal layers for the video model: VidRD's, and a space-time U-Net in the manner of Lumiere.

VidRD has convolutions after the resnets and attention inside the spatial transformers. Training starts from the video
model without its temporal layers, so that the image network knows words for motion already, and from new layers that are
the identity. As in the paper, the resnets are frozen and self- and cross-attention are trained; here by low-rank matrices,
since the whole network would take three times the space. Three departures: temporal attention knows distances between
frames, the frame rate is a condition, and the resnets' norms stay those of each frame, since with norms over all frames the
network would not start as the one it was.

The space-time U-Net (Bar-Tal et al. 2024) halves sixteen frames to eight at half the size and four at a quarter, and only
there has temporal attention; everywhere else convolutions follow the resnets. Still-Moving's paper has such a model beside
one of temporal layers inside an image U-Net; here it is `pocket-space-time`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from kineograph.models.pocket.networks import trainable_vidrd_unet
from kineograph.models.temporal.config import (
    AttentionConfig,
    ConvConfig,
    ResamplingConfig,
    Site,
    TemporalConfig,
    TransformerConfig,
)
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.loop import Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.video import text_to_video
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.recipe.video.motion_readout import MotionReadout

NUM_CONVOLUTIONS = 3  # after a resnet; the paper has four, and with those the model and its decoder would take 9 MB
VIDRD_CONFIG = TemporalConfig(
    num_frames=FRAMES,
    layers=(
        (Site("resnet"), ConvConfig(count=NUM_CONVOLUTIONS)),
        (Site("cross_attention"), AttentionConfig(head_width=32, relative=FRAMES)),
    ),
    frame_rate=True,
    clean_frames=True,
)


class TemporalLayersUNet(nn.Module):
    """The network in training, and its motion readout."""

    def __init__(self, initial: VideoUNet, config: TemporalConfig) -> None:
        super().__init__()
        self.net = trainable_vidrd_unet(initial, config)
        assert self.net.temporal is not None
        self.questions = MotionReadout(self.net.temporal)


def train_temporal_layers(
    net: TemporalLayersUNet,
    plan: StagePlan,
    folder: Path,
    sample_batch: SampleBatch,
    report: Callable[[TemporalLayersUNet], Metrics],
    *,
    text: CLIPTextModel,
) -> TemporalLayersUNet:
    """Train the network on these batches; return it with averaged weights."""
    prepared = use_fast_group_norm(net).to(best_device()).eval()
    prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    loss = partial(text_to_video.text_to_video_loss, text.to(best_device()))
    return train_loop(prepared, plan, folder, sample_batch=sample_batch, loss=loss, report=report)


def mix_batches(clip_batches: SampleBatch, panned_clip_batches: SampleBatch, share: float) -> SampleBatch:
    """Return a sampler of clips, and at a share of the steps of panned images."""
    return lambda rng, progress: (panned_clip_batches if rng.uniform() < share else clip_batches)(rng, progress)


def trained_layers(net: VideoUNet) -> dict[str, Tensor]:
    """Return the weights that training changes, by name: `temporal.*` and `image_unet.*`."""
    names = [name for name in net.state_dict() if "lora_" in name or name.startswith("temporal.")]
    return {name: net.state_dict()[name].detach().cpu().contiguous() for name in sorted(names)}


SPACE_TIME_CONFIG = TemporalConfig(
    num_frames=FRAMES,
    layers=(
        (Site("resnet", resolution="higher"), ConvConfig(count=2)),
        (
            Site("stage", resolution="lowest"),
            TransformerConfig(head_width=32, relative=FRAMES, positions=4 * FRAMES, ff_mult=2),
        ),
        (Site("resampler"), ResamplingConfig(factors=(2, 2))),
    ),
    frame_rate=True,
    clean_frames=True,
)
