"""Networks stored as changes of the pocket U-Net: low-rank updates of its layers, and a few layers of their own.

A ControlNet is a copy of half of a U-Net (Zhang et al. 2023), an editing U-Net is one that reads an image too (Brooks
et al. 2023): the three ControlNets and the editing U-Net would weigh three times as much as the U-Net. Instead, the
copy is made at loading, and its training is stored as updates of rank 32 (Hu et al. 2021). The functions that make a
network trainable are those by which the recipe trained it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

RANK = 32
LOW_RANK_LAYERS = (
    "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj", "proj_in", "proj_out",
    "to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2",
)  # fmt: skip
EMBEDDING = (16, 32, 64, 96)  # channels between a control map and the U-Net's first layer
RESNETS = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj|downsamplers\.0\.conv|upsamplers\.0\.conv)"
RESNET_RANK = 16  # the ResNet blocks move objects between places
ATTENTION = r".*attn[12]\.(to_q|to_k|to_v|to_out\.0)"
ATTENTION_RANK = 16

Net = TypeVar("Net", ControlNetModel, UNet2DConditionModel)


def add_low_rank(net: nn.Module, layers: list[str] | str, rank: int) -> None:
    """Add trainable low-rank updates, which are zero at first, to layers, and freeze everything else.

    layers: endings of the layers' names, or a regular expression for whole names.
    """
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), net)


def merge_low_rank(net: nn.Module) -> None:
    """Merge low-rank updates into their layers."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            net.set_submodule(name, layer.get_base_layer())
    del net.peft_config  # else peft would take later updates for a second adapter


def load_float32(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load some of a network's weights, in float32."""
    unknown = net.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys


# --- ControlNets and the editing U-Net


def initial_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return the untrained ControlNet of a U-Net, whose residuals are zero."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING)


def initial_editing_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return the untrained editing U-Net of a U-Net: it reads an image's latents too, with weights of zero.

    Source: InstructPix2Pix (Brooks et al. 2023), section 3.2.
    """
    channels = unet.config.in_channels
    net = UNet2DConditionModel.from_config({**unet.config, "in_channels": 2 * channels})
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros_like(first)], dim=1)
    net.load_state_dict(weights)
    return net if unet.dtype == net.dtype else net.to(unet.dtype)


def make_trainable(net: Net) -> Net:
    """Freeze a ControlNet or editing U-Net, except low-rank updates, which are added, and layers that a U-Net lacks."""
    net.requires_grad_(requires_grad=False)
    add_low_rank(net, list(LOW_RANK_LAYERS), RANK)
    for name, weight in net.named_parameters():
        weight.requires_grad_(_is_trained(net, name))
    return net


def trained_weights(net: Net) -> dict[str, Tensor]:
    """Return the weights of a `make_trainable` network that are trained, by name."""
    return {name: weight for name, weight in net.state_dict().items() if _is_trained(net, name)}


def _is_trained(net: nn.Module, name: str) -> bool:
    return "lora_" in name or name.startswith("controlnet_" if isinstance(net, ControlNetModel) else "conv_in.")


def restore_network(net: Net, weights: dict[str, Tensor]) -> Net:
    """Return a trained ControlNet or editing U-Net, as a plain network of diffusers.

    net: the result of `initial_controlnet` or `initial_editing_unet`, which is changed. weights: the `trained_weights`.
    Raises InputError if they are another network's.
    """
    trainable = make_trainable(net)
    if difference := set(trained_weights(trainable)) ^ set(weights):
        raise InputError(f"these weights are not for this {type(net).__name__}: {sorted(difference)[:3]}")
    trainable.load_state_dict(weights, strict=False)
    merge_low_rank(trainable)
    return trainable


# --- video U-Nets


def trainable_video_unet(image_unet: UNet2DConditionModel, config: TemporalConfig) -> VideoUNet:
    """Return a video U-Net whose temporal layers, spatial transformers and updates of ResNet blocks are trainable."""
    add_low_rank(image_unet, RESNETS, RESNET_RANK)
    for layer in image_unet.modules():
        if isinstance(layer, Transformer2DModel):
            layer.requires_grad_(requires_grad=True)
    return VideoUNet(image_unet, TemporalLayers(image_unet, config))


def restore_video_unet(
    image_unet: UNet2DConditionModel, config: TemporalConfig, weights: dict[str, Tensor]
) -> VideoUNet:
    """Return the video U-Net with trained weights, some of which change the image network."""
    net = trainable_video_unet(image_unet, config)
    load_float32(net, weights)
    merge_low_rank(image_unet)
    return net


def trainable_vidrd_unet(video_unet: VideoUNet, config: TemporalConfig) -> VideoUNet:
    """Return VidRD's U-Net on the image network and frame-rate embedding of a video U-Net.

    Its new temporal layers and updates of the spatial attention are trainable.
    """
    unet = video_unet.image_unet
    add_low_rank(unet, ATTENTION, ATTENTION_RANK)
    layers = TemporalLayers(unet, config)
    if layers.fps is not None and video_unet.temporal is not None and video_unet.temporal.fps is not None:
        layers.fps.load_state_dict(video_unet.temporal.fps.state_dict())
    return VideoUNet(unet, layers)


def restore_vidrd_unet(video_unet: VideoUNet, config: TemporalConfig, weights: dict[str, Tensor]) -> VideoUNet:
    """Return VidRD's U-Net with trained weights, some of which change the image network of the video U-Net."""
    net = trainable_vidrd_unet(video_unet, config)
    load_float32(net, weights)
    merge_low_rank(net.image_unet)
    return net
