"""The text-to-video model: temporal layers around the image network, trained on cached latents of clips.

Trained are the temporal layers and the image network's transformers, in which words for motion enter and their meaning can
reach neighbouring positions. With cross-attention alone in place of whole transformers the network did not know left from
right after 6,000 clips. Single images are trained together with clips, so that image quality is kept (VideoCrafter1's joint
training). The direction of motion is decided at high sigmas, so those are sampled most. Each frame's noise is independent:
what frames have in common is then recognised before what differs between them, and that is when words for motion matter
(decision 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel

from kineograph.latents import Latents
from kineograph.models.conditioning.condition import Condition
from kineograph.models.pocket.networks import trainable_video_unet
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image import unet
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.video import motion_readout
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.recipe.video.motion_readout import MotionReadout

MAX_WEIGHT = 24.0**2  # largest weight of a sigma: an error of the image counts alike up to a sigma of 24
NOISE_RATIO = 0.0  # parts of noise shared by all frames to one of a frame's own
# Weight of the error in which frames differ, relative to the error common to all frames (the image network's).
FRAME_DIFFERENCE_WEIGHT = 4.0
READOUT_WEIGHT = 0.3  # weight of the motion readout's error relative to the noise's
# Sixteen frames together reveal what one does not: at the image network's highest sigma, 15, the direction of motion can
# still be read from them, and words for it are worth little. So the schedule continues to a sigma of 59, timestep 1199, and
# below sigma 15 nothing changes. (VideoCrafter1 scales the signal down instead, `signal_scale`.)
TIMESTEPS = 1200
SCHEDULER = {**unet.SCHEDULER, "num_train_timesteps": TIMESTEPS, "beta_end": unet.beta_at(TIMESTEPS - 1)}
SCHEDULE = Schedule.from_config(SCHEDULER)
USUAL_FPS = 8.0
FPS_GAIN = 1.25  # gain of the embeddings of other frame rates after training
TRANSFORMER = TransformerConfig(head_width=32, relative=FRAMES, positions=4 * FRAMES, ff_mult=2)
TEXT_TO_VIDEO = TemporalConfig(
    num_frames=FRAMES,
    layers=((Site("conv_in"), TRANSFORMER), (Site("transformer"), TRANSFORMER)),
    frame_rate=True,
    noise_ratio=NOISE_RATIO,
    clean_frames=True,
)


class TextToVideoUNet(nn.Module):
    """The video network in training, partly frozen, and its motion readout."""

    def __init__(self, image_unet: UNet2DConditionModel, config: TemporalConfig) -> None:
        super().__init__()
        self.net = trainable_video_unet(image_unet, config)
        assert self.net.temporal is not None
        self.questions = MotionReadout(self.net.temporal)


def train_text_to_video(
    net: TextToVideoUNet,
    plan: StagePlan,
    folder: Path,
    sample_batch: SampleBatch,
    report: Callable[[TextToVideoUNet], Metrics],
    *,
    text: CLIPTextModel,
) -> TextToVideoUNet:
    """Train the network on batches of `video_batches`; return it with averaged weights."""
    prepared = use_fast_group_norm(net).to(best_device()).eval()
    prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    return train_loop(
        prepared, plan, folder, sample_batch=sample_batch, loss=partial(text_to_video_loss, text), report=report
    )


def move_to_other_unet(
    weights: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a video network's weights for another image network: each changed layer keeps its difference to the image's.

    weights: of `text_to_video_weights`. before, after: the weights of the image networks.
    """
    moved = dict(weights)
    for name, weight in weights.items():
        own = name.removeprefix("image_unet.")
        if own != name and own in before:
            moved[name] = weight.float() + after[own].float() - before[own].float()
    return moved


@torch.no_grad()
def amplify_frame_rates(net: VideoUNet, gain: float = FPS_GAIN) -> None:
    """Move each frame rate's embedding away from the usual rate's, to `gain` times the distance.

    Training alone leaves the motion of a subject from frame to frame at 0.63 of the usual where it should be half (decision 8).
    The embedding is affine in the last layer, so only that layer changes, and the usual rate's embedding stays.
    """
    assert net.temporal is not None and net.temporal.fps is not None
    fps_embedding = net.temporal.fps
    usual_embedding, last = fps_embedding(torch.tensor([USUAL_FPS]))[0], fps_embedding.embedding.linear_2
    last.weight.mul_(gain)
    last.bias.mul_(gain).add_((1 - gain) * usual_embedding)


def text_to_video_weights(net_with_readout: TextToVideoUNet) -> dict[str, Tensor]:
    """Return the weights that differ from the image network's, by name: `temporal.*` and `image_unet.*`."""
    transformers = [
        name for name, layer in net_with_readout.net.named_modules() if isinstance(layer, Transformer2DModel)
    ]
    state = net_with_readout.net.state_dict()
    names = [
        name for name in state if "lora_" in name or name.startswith(("temporal.", *(f"{at}." for at in transformers)))
    ]
    return {name: state[name].detach().cpu().contiguous() for name in sorted(names)}


def text_to_video_loss(
    text: CLIPTextModel, net_with_readout: motion_readout.HasMotionReadout, batch: Batch
) -> dict[str, Tensor]:
    """Return the squared error of the predicted noise of clips and of single images, and the motion readout's error."""
    *clip_inputs, clip_tokens, fps, motion, is_subject = batch[:8]
    net_with_readout.questions.record()
    losses = {
        "clips": weighted_noise_error(net_with_readout.net, training_condition(text, clip_tokens, fps), *clip_inputs)
    }
    losses["motion_readout"] = READOUT_WEIGHT * net_with_readout.questions.error(motion, is_subject)
    if len(batch) > 8:
        *image_inputs, image_tokens = batch[8:]
        losses["images"] = weighted_noise_error(
            net_with_readout.net, training_condition(text, image_tokens, 0 * image_tokens[:, 0]), *image_inputs
        )
    return losses


def training_condition(text: CLIPTextModel, tokens: Tensor, fps: Tensor) -> Condition:
    """Return the network's condition in training, from the frozen text encoder."""
    with torch.no_grad():
        return Condition(text(tokens).last_hidden_state, embedding=fps.float()[:, None])


def weighted_noise_error(
    net: Callable[..., Latents], condition: Condition, x0: Latents, noise: Latents, weight: Float[Tensor, "b f h w"], t: Tensor
) -> Tensor:  # fmt: skip
    """Return the squared error of the predicted noise, weighted as in `image_noise_loss`."""
    z, sigma = SCHEDULE.add_noise(x0, noise, t)
    known = (weight == 0)[:, :, None]  # frames without noise
    difference = per_clip_error((net(z, t, condition).float() - noise).masked_fill(known, 0), weight)
    return ((1 + sigma**2).clamp(max=MAX_WEIGHT) * difference).mean()


def per_clip_error(difference: Latents, weight: Float[Tensor, "b f h w"]) -> Float[Tensor, " b"]:
    """Return the squared error of each clip, with the error common to all frames weighted less.

    The mean of the posterior minimises both parts, so this changes the order of learning, not its result.
    """
    common = difference.mean(1, keepdim=True)
    squared = (common.square() + FRAME_DIFFERENCE_WEIGHT * (difference - common).square()).mean(2)
    return (squared * weight).mean((1, 2, 3))
