"""The video models: layers along time around the image network, on latents of films made once.

What is trained: the layers along time, and the image network's transformers, where the words for motion come in and
where what they mean can reach the places beside. With cross-attention alone in place of whole transformers the network
did not know left from right after 6,000 clips.
Single pictures train along, so that it still draws what it drew (VideoCrafter1's joint training). Where a thing goes is
decided at high noise levels, so those are looked at most. Each frame's noise is its own: what frames have in common is
then seen before what differs between them, which is when words for motion are worth something (decision 8).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel

from kineograph.condition import Condition
from kineograph.latents import Latents
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

MAX_WEIGHT = 24.0**2  # weight of a level: an error of the picture weighs alike up to a sigma of 24
NOISE_RATIO = 0.0  # parts of noise that all frames share to one of a frame's own
FRAME_DIFFERENCE_WEIGHT = (
    4.0  # weight of an error in which frames differ beside one that they share: the latter is the image network's
)
READOUT_WEIGHT = 0.3  # weight of what is asked about the thing's motion beside the error of the noise
# Sixteen frames tell together what one does not: at the image network's highest level, a sigma of 15, which way a thing
# goes is still to be read from them, and words for it are worth little. So the table goes on to a sigma of 59, its
# timesteps to 1199, and below that nothing changes. (VideoCrafter1 takes away the signal instead, `signal_scale`.)
TIMESTEPS = 1200
SCHEDULER = {**unet.SCHEDULER, "num_train_timesteps": TIMESTEPS, "beta_end": unet.beta_at(TIMESTEPS - 1)}
SCHEDULE = Schedule.from_config(SCHEDULER)
USUAL_FPS, FPS_GAIN = (
    8.0,
    1.25,
)  # frames a second; and how much more other rates say in the end than training made them say
TRANSFORMER = TransformerConfig(head_width=32, relative=FRAMES, positions=4 * FRAMES, ff_mult=2)
TEXT_TO_VIDEO = TemporalConfig(
    num_frames=FRAMES,
    layers=((Site("conv_in"), TRANSFORMER), (Site("transformer"), TRANSFORMER)),
    frame_rate=True,
    noise_ratio=NOISE_RATIO,
)


class TextToVideoUNet(nn.Module):
    """The video network as `fit` trains it, its frozen parts frozen, and what it is asked on the way."""

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
    """The averaged network, of batches as `screenings` draws them."""
    ready = use_fast_group_norm(net).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    return train_loop(
        ready, plan, folder, sample_batch=sample_batch, loss=partial(text_to_video_loss, text), report=report
    )


@torch.no_grad()
def amplify_frame_rates(net: VideoUNet) -> None:
    """Put what each frame rate says further from what the usual one says, `LOUDER` times as far.

    Training alone leaves the way of a thing from frame to frame at 0.63 of the usual where it should be half
    (decision 8). What is said is affine in the last layer, so only that changes, and the usual rate says what it said.
    """
    assert net.temporal is not None and net.temporal.fps is not None
    rates = net.temporal.fps
    usual, last = rates(torch.tensor([USUAL_FPS]))[0], rates.embedding.linear_2
    last.weight.mul_(FPS_GAIN)
    last.bias.mul_(FPS_GAIN).add_((1 - FPS_GAIN) * usual)


def trained_weights(films: TextToVideoUNet) -> dict[str, Tensor]:
    """The weights that are not those of the image network, by name: `temporal.*` and `image_unet.*`."""
    whole = [name for name, layer in films.net.named_modules() if isinstance(layer, Transformer2DModel)]
    state = films.net.state_dict()
    learns = [name for name in state if "lora_" in name or name.startswith(("temporal.", *(f"{at}." for at in whole)))]
    return {name: state[name].detach().cpu().contiguous() for name in sorted(learns)}


def text_to_video_loss(text: CLIPTextModel, films: motion_readout.HasMotionReadout, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise of films and of single pictures, and of what is asked about films."""
    *clips, words, fps, moves, there = batch[:8]
    films.questions.listen()
    losses = {"films": weighted_noise_error(films.net, training_condition(text, words, fps), *clips)}
    losses["asked"] = READOUT_WEIGHT * films.questions.error(moves, there)
    if len(batch) > 8:
        *stills, of_stills = batch[8:]
        losses["pictures"] = weighted_noise_error(
            films.net, training_condition(text, of_stills, 0 * of_stills[:, 0]), *stills
        )
    return losses


def training_condition(text: CLIPTextModel, words: Tensor, fps: Tensor) -> Condition:
    """What the network is told in training; the tower learns no more."""
    with torch.no_grad():
        return Condition(text(words).last_hidden_state, embedding=fps.float()[:, None])


def weighted_noise_error(
    net: Callable[..., Latents], told: Condition, x0: Latents, noise: Latents, weight: Float[Tensor, "b f h w"], t: Tensor
) -> Tensor:  # fmt: skip
    """The squared error of the noise that a network predicts, weighted as the image network's (`unet.noise_loss`)."""
    z, sigma = SCHEDULE.add_noise(x0, noise, t)
    off = per_clip_error(net(z, t, told).float() - noise, weight)
    return ((1 + sigma**2).clamp(max=MAX_WEIGHT) * off).mean()


def per_clip_error(off: Latents, weight: Float[Tensor, "b f h w"]) -> Float[Tensor, " b"]:
    """The squared error of each video. What is wrong in all frames alike counts less than what is wrong in some: the
    mean of the posterior minimises both, so this changes what is learnt first, not what is learnt."""
    common = off.mean(1, keepdim=True)
    squared = (common.square() + FRAME_DIFFERENCE_WEIGHT * (off - common).square()).mean(2)
    return (squared * weight).mean((1, 2, 3))
