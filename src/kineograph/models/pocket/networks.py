"""Networks stored as changes of the pocket U-Net: low-rank matrices beside its layers, and a few layers of their own.

A ControlNet is a copy of half of a U-Net (Zhang et al. 2023), an editing U-Net is one that reads a picture too (Brooks
et al. 2023); four of them would weigh three times what they come from. So the copy is made when it is loaded, and what
training changed in it is told by matrices of rank 32 (Hu et al. 2021).
"""

from __future__ import annotations

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
ADAPTED = (
    "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj", "proj_in", "proj_out",
    "to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2",
)  # fmt: skip
EMBEDDING = (16, 32, 64, 96)  # channels, from a control picture's to the U-Net's first

Net = TypeVar("Net", ControlNetModel, UNet2DConditionModel)


def initial_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """The ControlNet that this U-Net begins as: it changes nothing yet."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING)


def initial_editing_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The editing U-Net that this U-Net begins as: it reads a picture beside the latents, and passes it over yet.

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
    """The network, frozen but for matrices of low rank put into it and what is its own: those learn."""
    net.requires_grad_(requires_grad=False)
    add_low_rank(net, list(ADAPTED), RANK)
    for name, weight in net.named_parameters():
        weight.requires_grad_(_added(net, name))
    return net


def add_low_rank(net: nn.Module, layers: list[str] | str, rank: int) -> None:
    """Put matrices of this rank, which change nothing yet and learn, beside layers: by the ends of their names, or by
    a regular expression that the whole name fits."""
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), net)


def merge_low_rank(net: nn.Module) -> None:
    """Make the matrices of low rank a part of the layers beside which they are."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            net.set_submodule(name, layer.get_base_layer())
    del net.peft_config  # by which peft would take the next matrices for a second adapter


def trained_weights(net: Net) -> dict[str, Tensor]:
    """The weights of an `adapted` network that are not those of what it was made from, by name."""
    return {name: weight for name, weight in net.state_dict().items() if _added(net, name)}


def _added(net: nn.Module, name: str) -> bool:
    return "lora_" in name or name.startswith("controlnet_" if isinstance(net, ControlNetModel) else "conv_in.")


def restore_network(net: Net, weights: dict[str, Tensor]) -> Net:
    """The network `as_control` or `as_editor` made, with these `added` weights, as a plain network of diffusers.

    Raises InputError when they are another network's.
    """
    changed = make_trainable(net)
    if missing := set(trained_weights(changed)) ^ set(weights):
        raise InputError(f"these weights are not for this {type(net).__name__}: {sorted(missing)[:3]}")
    changed.load_state_dict(weights, strict=False)
    merge_low_rank(changed)
    return changed


RESNETS = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj|downsamplers\.0\.conv|upsamplers\.0\.conv)"
RESNET_RANK = 16  # of what is learnt beside the resnets' layers: they are what moves things from place to place


def trainable_video_unet(image_unet: UNet2DConditionModel, config: TemporalConfig) -> VideoUNet:
    """The video network around an image network, frozen but for what learns."""
    add_low_rank(image_unet, RESNETS, RESNET_RANK)  # which freezes all else
    for layer in image_unet.modules():
        if isinstance(layer, Transformer2DModel):
            layer.requires_grad_(requires_grad=True)
    return VideoUNet(image_unet, TemporalLayers(image_unet, config))


def restore_video_unet(
    image_unet: UNet2DConditionModel, config: TemporalConfig, weights: dict[str, Tensor]
) -> VideoUNet:
    """The network that these `learnt` weights make of an image network, whose own they replace."""
    net = trainable_video_unet(image_unet, config)
    unknown = net.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
    merge_low_rank(image_unet)
    return net


ATTENTION = r".*attn[12]\.(to_q|to_k|to_v|to_out\.0)"
ATTENTION_RANK = 16


def trainable_vidrd_unet(begun: VideoUNet, config: TemporalConfig) -> VideoUNet:
    """This video model's image network and knowledge of frame rates, frozen but for what learns, and new layers."""
    unet = begun.image_unet
    add_low_rank(unet, ATTENTION, ATTENTION_RANK)  # which freezes all else
    layers = TemporalLayers(unet, config)
    if layers.fps is not None and begun.temporal is not None and begun.temporal.fps is not None:
        layers.fps.load_state_dict(begun.temporal.fps.state_dict())
    return VideoUNet(unet, layers)


def restore_vidrd_unet(begun: VideoUNet, config: TemporalConfig, weights: dict[str, Tensor]) -> VideoUNet:
    """The network that these `learnt` weights make of the one it began from, whose image network is changed."""
    net = trainable_vidrd_unet(begun, config)
    unknown = net.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
    merge_low_rank(net.image_unet)
    return net
