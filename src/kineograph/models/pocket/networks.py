"""kineograph.models.pocket.networks."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from kineograph.models.pocket.low_rank import lend, merge
from kineograph.models.temporal.config import TemporalConfig, TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

RESNETS = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj|downsamplers\.0\.conv|upsamplers\.0\.conv)"
RESNET_RANK = 16  # of what is learnt beside the resnets' layers: they are what moves things from place to place


def trainable_video_unet(image_unet: UNet2DConditionModel, config: TemporalConfig) -> VideoUNet:
    """The video network around an image network, frozen but for what learns."""
    lend(image_unet, RESNETS, RESNET_RANK)  # which freezes all else
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
    merge(image_unet)
    return net


ATTENTION = r".*attn[12]\.(to_q|to_k|to_v|to_out\.0)"
ATTENTION_RANK = 16


def trainable_vidrd_unet(begun: VideoUNet, config: TemporalConfig) -> VideoUNet:
    """This video model's image network and knowledge of frame rates, frozen but for what learns, and new layers."""
    unet = begun.image_unet
    lend(unet, ATTENTION, ATTENTION_RANK)  # which freezes all else
    layers = TemporalLayers(unet, config)
    if layers.fps is not None and begun.temporal is not None and begun.temporal.fps is not None:
        layers.fps.load_state_dict(begun.temporal.fps.state_dict())
    return VideoUNet(unet, layers)


def restore_vidrd_unet(begun: VideoUNet, config: TemporalConfig, weights: dict[str, Tensor]) -> VideoUNet:
    """The network that these `learnt` weights make of the one it began from, whose image network is changed."""
    net = trainable_vidrd_unet(begun, config)
    unknown = net.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
    merge(net.image_unet)
    return net
