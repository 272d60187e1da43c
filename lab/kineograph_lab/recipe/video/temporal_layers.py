"""The video model with VidRD's layers: convolutions after the resnets and attention inside the spatial transformers.

It begins as the video model without its layers along time, so that the image network knows words for motion already,
and the new layers as the identity. As the paper has it, the resnets stay, and self- and cross-attention learn too; here
by matrices of low rank, since the network whole would weigh three times as much. Three departures: attention along time
knows distances between frames, the frame rate is told, and the resnets' norms stay those of each frame, since with
norms over all frames it would not begin as what it was.
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

NUM_CONVOLUTIONS = (
    3  # convolutions after a resnet, where the paper has four: with those and its decoder it would weigh 9 MB
)
VIDRD_CONFIG = TemporalConfig(
    num_frames=FRAMES,
    layers=(
        (Site("resnet"), ConvConfig(count=NUM_CONVOLUTIONS)),
        (Site("cross_attention"), AttentionConfig(head_width=32, relative=FRAMES)),
    ),
    frame_rate=True,
)


class TemporalLayersUNet(nn.Module):
    """The network as `fit` trains it, and what it is asked on the way."""

    def __init__(self, begun: VideoUNet, config: TemporalConfig) -> None:
        super().__init__()
        self.net = trainable_vidrd_unet(begun, config)
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
    """The averaged network."""
    ready = use_fast_group_norm(net).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    loss = partial(text_to_video.text_to_video_loss, text.to(best_device()))
    return train_loop(ready, plan, folder, sample_batch=sample_batch, loss=loss, report=report)


def mix_batches(films: SampleBatch, panned: SampleBatch, share: float) -> SampleBatch:
    """Batches of films, and as a share of the steps of pictures that are panned."""
    return lambda rng, progress: (panned if rng.uniform() < share else films)(rng, progress)


def trained_layers(net: VideoUNet) -> dict[str, Tensor]:
    """The weights that are not those of what it began from, by name: `temporal.*` and `image_unet.*`."""
    learns = [name for name in net.state_dict() if "lora_" in name or name.startswith("temporal.")]
    return {name: net.state_dict()[name].detach().cpu().contiguous() for name in sorted(learns)}


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
)
