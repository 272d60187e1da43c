"""Model at the start of a training: its temporal layers, and the parameters that are trained."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch.utils.checkpoint import checkpoint

from kineograph.errors import InputError
from kineograph.methods import videocrafter
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.models.temporal.config import TemporalConfig, split_heads
from kineograph.models.unet.forward import CallStage, call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.gradients import AMP_DTYPES, seeded
from kineograph.training.group_norm import prepare_for_device
from kineograph.training.temporal_layers.settings import LAYER_PRESETS, VideoTrainingSettings


def open_model(settings: VideoTrainingSettings, device: torch.device) -> Model:
    """Open the model that the settings name, in float32; only the trained parameters require gradients.

    Raises InputError for a model that cannot be opened, layers that do not fit it or the stages, and patterns that
    match nothing.
    """
    model = load(settings.model, motion_module=settings.motion, device=device, dtype="float32")
    config = _config(settings, model)
    _check_layers(settings, model, config)
    call_stage = call_checkpointed if settings.gradient_checkpointing else call_directly
    net = _network(model.net, config, settings.training.seed, call_stage)
    set_trained(net, settings.trained, settings.frozen)
    _check_trained(settings, net)
    compute_dtype = AMP_DTYPES.get(settings.training.mixed_precision, torch.float32)
    net = prepare_for_device(net, device, compute_dtype).eval()
    return replace(model, net=net, vocabulary=None)  # its list of known words will not hold any more


def call_checkpointed(stage: CallStage, *arguments: object) -> torch.Tensor:
    """Call a stage of the U-Net with gradient checkpointing: its activations are recomputed in the backward pass."""
    if not torch.is_grad_enabled():
        return stage(*arguments)
    return checkpoint(stage, *arguments, use_reentrant=False)


def _config(settings: VideoTrainingSettings, model: Model) -> TemporalConfig:
    """Return the temporal layers' configuration, the model's or the settings', with the training's frames and noise."""
    if model.temporal is not None and settings.layers is not None:
        raise InputError(f"{model.name} has temporal layers of its own: leave layers out")
    chosen = LAYER_PRESETS[settings.layers] if isinstance(settings.layers, str) else settings.layers
    config = model.temporal or chosen or LAYER_PRESETS["videocrafter"]
    ratio = config.noise_ratio if settings.noise_ratio is None else settings.noise_ratio
    return config.model_copy(update={"num_frames": settings.stages[-1].num_frames, "noise_ratio": ratio})


def _check_layers(settings: VideoTrainingSettings, model: Model, config: TemporalConfig) -> None:
    narrowest = min(model.net.image_unet.config.block_out_channels)
    for each in config.attentions:
        if split_heads(each, narrowest)[0] == 0:
            raise InputError(
                f"layers: heads {each.head_width} wide do not fit into {narrowest} channels, which the narrowest block "
                f"of {model.name} has: expected a head_width of at most that, or a number of heads"
            )
    for number, stage in enumerate(settings.stages, 1):
        model.latent_shape(stage.height, stage.width)
        if config.max_frames is not None and stage.num_frames > config.max_frames:
            raise InputError(
                f"stage {number} has {stage.num_frames} frames, and these layers take at most {config.max_frames} "
                "together"
            )


def _network(net: VideoUNet, config: TemporalConfig, seed: int, call_stage: CallStage) -> VideoUNet:
    """Return the network with temporal layers of this configuration: its own, or new ones initialised from the seed."""
    with seeded(seed):
        attached = videocrafter.attach(net.image_unet, config, call_stage)
    if net.temporal is not None and attached.temporal is not None:
        attached.temporal.load_state_dict(net.temporal.state_dict())
    return attached


def set_trained(net: VideoUNet, trained: Iterable[str], frozen: Iterable[str]) -> None:
    """Let only the parameters require gradients that match `trained` and do not match `frozen`."""
    names = [name for name, _ in net.named_parameters()]
    chosen = match_parameters(names, "trained", trained) - match_parameters(names, "frozen", frozen)
    for name, weight in net.named_parameters():
        weight.requires_grad_(name in chosen)


def _check_trained(settings: VideoTrainingSettings, net: VideoUNet) -> None:
    names = [name for name, weight in net.named_parameters() if weight.requires_grad]
    if settings.image_share > 0 and all(name.startswith("temporal.") for name in names):
        raise InputError(
            "images train nothing where only temporal layers are trained, which they skip: leave images and "
            "image_share out, or train a part of the image network too, such as image_unet.*attn2*"
        )


def match_parameters(names: Sequence[str], setting: str, patterns: Iterable[str]) -> set[str]:
    """Return the names that match any pattern. Raises InputError for one that matches none, with similar names."""
    matched: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise InputError(
                f"{setting}: no parameter of the network is called {pattern!r}; similar names: "
                f"{', '.join(_similar(names, pattern))}. A * matches anything, as in temporal.*"
            )
        matched |= found
    return matched


def _similar(names: Sequence[str], pattern: str) -> list[str]:
    """Return names, and beginnings of names, that resemble a pattern."""
    heads = {head for name in names for head in accumulate(name.split("."), "{}.{}".format)}
    return difflib.get_close_matches(pattern.strip("*."), sorted(heads), n=3, cutoff=0) or list(names[:3])
