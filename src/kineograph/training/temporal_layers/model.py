"""The model that a training begins with: its layers along time, and which of its parameters are trained."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch.utils.checkpoint import checkpoint

from kineograph.errors import InputError
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.models.placement import Placement
from kineograph.models.temporal.config import TemporalConfig, TemporalLayers
from kineograph.models.unet.forward import CallStage, call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.gradients import DTYPES
from kineograph.training.norms import use_fast_group_norm
from kineograph.training.temporal_layers.settings import FAMILIES, VideoTrainingSettings


def open_model(settings: VideoTrainingSettings, device: torch.device) -> Model:
    """The model as its training begins, in float32, with nothing requiring gradients but what is trained.

    Raises InputError for a model that cannot be opened, layers that do not go with it or with the stages, and
    patterns that match nothing.
    """
    model = load(settings.model, motion=settings.motion, device=device, dtype="float32")
    config = _config(settings, model)
    _check(settings, model, config)
    through = call_checkpointed if settings.gradient_checkpointing else call_directly
    net = _network(model.net, config, settings.training.seed, through)
    set_trained(net, settings.trained, settings.frozen)
    _check_trained(settings, net)
    computes = DTYPES.get(settings.training.mixed_precision, torch.float32)
    place = Placement(device, computes, "for training")
    net = net.to(place.device, memory_format=place.memory_format).eval()  # type: ignore[call-overload]  # torch forgot
    net = use_fast_group_norm(net) if device.type == "cpu" else net
    return replace(model, net=net, vocabulary=None)  # its list of words will not be true any more


def call_checkpointed(stage: CallStage, *arguments: object) -> torch.Tensor:
    """Calls a part of the walk; where gradients are wanted it is walked again for them, and not remembered."""
    if not torch.is_grad_enabled():
        return stage(*arguments)
    return checkpoint(stage, *arguments, use_reentrant=False)


def _config(settings: VideoTrainingSettings, model: Model) -> TemporalConfig:
    """What the model will have along time: what it has, or what is asked for, told how it is trained now."""
    if model.temporal is not None and settings.layers is not None:
        raise InputError(f"{model.name} is a video model with layers along time of its own: leave layers out")
    chosen = FAMILIES[settings.layers] if isinstance(settings.layers, str) else settings.layers
    config = model.temporal or chosen or FAMILIES["videocrafter"]
    ratio = config.noise_ratio if settings.noise_ratio is None else settings.noise_ratio
    return config.model_copy(update={"num_frames": settings.stages[-1].num_frames, "noise_ratio": ratio})


def _check(settings: VideoTrainingSettings, model: Model, config: TemporalConfig) -> None:
    narrowest = min(model.net.image_unet.config.block_out_channels)
    for each in (config.entry, config.transformer, config.in_block):
        if each is not None and each.split(narrowest)[0] == 0:
            raise InputError(
                f"layers: heads {each.head_width} wide do not fit into {narrowest} channels, which the narrowest level "
                f"of {model.name} has: expected a head_width of at most that, or a number of heads"
            )
    for number, stage in enumerate(settings.stages, 1):
        model.latent_shape(stage.height, stage.width)
        if config.longest is not None and stage.num_frames > config.longest:
            raise InputError(
                f"stage {number} has {stage.num_frames} frames, and these layers see at most {config.longest} together"
            )


def _network(net: VideoUNet, config: TemporalConfig, seed: int, through: CallStage) -> VideoUNet:
    """The network with layers of this configuration: those that it has, or new ones, which are told by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = TemporalLayers(net.image_unet, config)
    if net.temporal is not None:
        layers.load_state_dict(net.temporal.state_dict())
    return VideoUNet(net.image_unet, layers, through)


def set_trained(net: VideoUNet, trained: Iterable[str], frozen: Iterable[str]) -> None:
    """Lets the parameters that the patterns name require gradients, and no others."""
    names = [name for name, _ in net.named_parameters()]
    chosen = match_parameters(names, "trained", trained) - match_parameters(names, "frozen", frozen)
    for name, weight in net.named_parameters():
        weight.requires_grad_(name in chosen)


def _check_trained(settings: VideoTrainingSettings, net: VideoUNet) -> None:
    names = [name for name, weight in net.named_parameters() if weight.requires_grad]
    if settings.image_share > 0 and all(name.startswith("temporal.") for name in names):
        raise InputError(
            "images teach nothing where only layers along time are trained, which pictures pass by: leave images and "
            "image_share out, or train a part of the image network too, such as image_unet.*attn2*"
        )


def match_parameters(names: Sequence[str], setting: str, patterns: Iterable[str]) -> set[str]:
    """The names that match any pattern. Raises InputError for a pattern that matches none, with names that are near."""
    matched: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise InputError(
                f"{setting}: no parameter of the network is called {pattern!r}; near it are "
                f"{', '.join(_near(names, pattern))}. A * stands for anything, as in temporal.*"
            )
        matched |= found
    return matched


def _near(names: Sequence[str], pattern: str) -> list[str]:
    """Names that a pattern may have meant, and beginnings of names."""
    heads = {head for name in names for head in accumulate(name.split("."), "{}.{}".format)}
    return difflib.get_close_matches(pattern.strip("*."), sorted(heads), n=3, cutoff=0) or list(names[:3])
