"""The video networks that learn an adapter, what a step of that sees, and its loss: steps I and II of Still-Moving.

A step is of frozen videos alone, or of as many natural ones beside them, in which the motion adapter is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from kineograph import noise
from kineograph.latents import Latents
from kineograph.methods import still_moving as method
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.model import Model
from kineograph.models.placement import fastest_memory_format
from kineograph.models.temporal.adapters import AdapterConfig, MotionAdapter
from kineograph.models.unet.forward import call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise.batches import WEIGHTS, CustomisationBatch, EncodePrompts, TrainingSample
from kineograph.training.customise.settings import VideoCustomisationSettings
from kineograph.training.norms import use_fast_group_norm
from kineograph.training.settings import TrainingSettings
from kineograph.training.temporal_layers.model import call_checkpointed

Loss = Callable[[VideoUNet, CustomisationBatch, int], dict[str, Tensor]]


def motion_adapter_network(video: Model, settings: VideoCustomisationSettings) -> VideoUNet:
    """A copy of the network with a new motion adapter, which is what learns."""
    net = _copied(video, settings, settings.motion_training)
    return _placed(video, _attached(net, settings, motion=settings.motion), settings.motion_training)


def spatial_adapter_network(video: Model, settings: VideoCustomisationSettings) -> VideoUNet:
    """A copy of the network of a video model with a customised image network, with a new spatial adapter, which is what
    learns; or, where there is none, all that is no motion adapter."""
    net = _copied(video, settings, settings.training)
    if settings.spatial is not None:
        return _placed(video, _attached(net, settings, spatial=settings.spatial), settings.training)
    merge_loras(net.image_unet)
    for part in (net.image_unet, net.temporal):
        assert part is not None
        part.float().requires_grad_(requires_grad=True)
    return _placed(video, net, settings.training)


def _copied(video: Model, settings: VideoCustomisationSettings, loop: TrainingSettings) -> VideoUNet:
    """The networks as they are, where nothing learns yet; float32 where nothing computes in fewer bits."""
    through = call_checkpointed if settings.gradient_checkpointing else call_directly
    image, temporal, motion = deepcopy((video.net.image_unet, video.net.temporal, video.net.motion_adapter))
    net = VideoUNet(image, temporal, through, motion_adapter=motion).requires_grad_(requires_grad=False)
    return net.float() if loop.mixed_precision == "no" else net


def _attached(
    net: VideoUNet,
    settings: VideoCustomisationSettings,
    *,
    motion: AdapterConfig | None = None,
    spatial: AdapterConfig | None = None,
) -> VideoUNet:
    """With new branches, which the seed decides, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        return method.attach(net, motion=motion, spatial=spatial)


def _placed(video: Model, net: VideoUNet, loop: TrainingSettings) -> VideoUNet:
    net = net.to(video.device, memory_format=fastest_memory_format(video.device, video.dtype)).eval()  # type: ignore[call-overload]  # torch forgot
    return use_fast_group_norm(net) if video.device.type == "cpu" else net


@torch.no_grad()
def merge_loras(network: nn.Module) -> None:
    """Adds LoRAs to the weights beside which they are, in place, and takes them off."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())


def frozen_videos(shown: TrainingSample, frames: int) -> TrainingSample:
    """Each frame of a picture or a video as a video that stands still."""
    each = [view[number] for view in shown.views for number in range(len(view))]
    views = method.repeat_frame(torch.stack(each)[:, None], torch.zeros(len(each), dtype=torch.long), frames)
    return TrainingSample(tuple(views), shown.caption)


def still_moving_loss(
    model: Model, settings: VideoCustomisationSettings, tell: EncodePrompts, parts: Mapping[str, tuple[float, float]]
) -> Loss:
    """The loss as `training.fit` wants it.

    parts: of a batch, in order and of one size: name -> scale of the motion adapter, and how much it counts.
    """
    assert model.temporal is not None, "checked before"
    ratio, weigh = model.temporal.noise_ratio, WEIGHTS[settings.error]
    scales, counts = zip(*parts.values(), strict=True)

    def loss(net: VideoUNet, batch: CustomisationBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        x0, each = batch.x0, len(batch.x0) // len(parts)
        motion = torch.tensor(scales, device=x0.device).repeat_interleave(each)
        drawn = part_noise(ratio, seed, len(parts), x0).to(x0)
        told = tell(net, batch.texts)
        off = method.loss(net, model.schedule, told, x0, drawn, batch.timesteps, motion)
        errors = (weigh(model.schedule, batch.timesteps) * off).chunk(len(parts))
        return {name: count * error.mean() for name, count, error in zip(parts, counts, errors, strict=True)}

    return loss


def part_noise(ratio: float, seed: int, parts: int, x0: Latents) -> Latents:
    """The noise of a batch's videos: a sample's parts are like clips that follow each other."""
    frames, shape = x0.shape[1], (len(x0) // parts, *x0.shape[2:])
    clips = (range(part * frames, (part + 1) * frames) for part in range(parts))
    return torch.cat([noise.partly_shared(ratio, seed, clip, shape, part) for part, clip in enumerate(clips)])


def spatial_adapter_parts(settings: VideoCustomisationSettings) -> dict[str, tuple[float, float]]:
    """Of a batch of step II."""
    natural = {"natural": (method.MOVING, settings.natural_weight)} if settings.natural_weight else {}
    return {"still": (settings.still_scale, 1.0), **natural}


def with_motion_adapter(video: Model, motion: MotionAdapter | None) -> VideoUNet:
    """A model's network with this motion adapter, in its number format."""
    if motion is not None:
        motion = deepcopy(motion).to(video.device, video.dtype)
    net = video.net
    return VideoUNet(net.image_unet, net.temporal, motion_adapter=motion, spatial_adapter=net.spatial_adapter)


def without_adapters(model: Model) -> Model:
    """A model of which all weights learnt as a folder holds it: without a motion adapter, and with its text encoders'
    LoRAs added to their weights."""
    return replace(
        model,
        net=with_motion_adapter(model, None).to(model.dtype),
        text=tuple(_without_lora(each) for each in model.text),
    )


def _without_lora(text: TextEncoder) -> TextEncoder:
    network = deepcopy(text.network)
    names = list(getattr(network, "peft_config", {}))
    merge_loras(network)
    if names:
        network.delete_adapter(names)  # or transformers would write the adapter alone
    return replace(text, network=network)


def all_captions(parts: Sequence[Sequence[TrainingSample]]) -> list[str]:
    """All that is told in a training."""
    return ["", *dict.fromkeys(each.caption for part in parts for each in part)]
