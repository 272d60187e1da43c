"""Supported image networks: the U-Nets of SD 1.x, 2.x and SDXL, and ControlNets for them.

The forward pass calls the layers itself, so a layer that it does not know would be left out silently and give a wrong
image. Such networks are refused, naming the setting.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models import attention_processor as processors
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from kineograph.errors import InputError

BLOCK_TYPES: dict[str, set] = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
    "mid_block_type": {"UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
}
SETTINGS: dict[str, set] = {
    "addition_embed_type": {None, "text_time"},
    "attention_type": {"default"},
    "center_input_sample": {False},
    "downsample_padding": {0, 1},  # with another number the sides of skip connections do not match
    "class_embed_type": {None},
    "dual_cross_attention": {False},
    "encoder_hid_dim_type": {None, "ip_image_proj"},
    "num_class_embeds": {None},
    "only_cross_attention": {False},
    "time_embedding_act_fn": {None},
    "time_embedding_type": {"positional"},
}
# For networks whose norms span all frames: there the layers of the ResNet blocks are called one by one.
RESNET_SETTINGS: dict[str, set] = {"resnet_skip_time_act": {False}, "resnet_time_scale_shift": {"default"}}
# All of these compute softmax(Q K^T / sqrt(d)) V, which the forward pass computes itself.
PLAIN_PROCESSORS = (
    processors.AttnProcessor,
    processors.AttnProcessor2_0,
    processors.FusedAttnProcessor2_0,
    processors.SlicedAttnProcessor,
    processors.XFormersAttnProcessor,
)
IP_ADAPTER_PROCESSORS = (
    processors.IPAdapterAttnProcessor,
    processors.IPAdapterAttnProcessor2_0,
    processors.IPAdapterXFormersAttnProcessor,
)


def check_unet_config(unet: UNet2DConditionModel | ControlNetModel) -> None:
    """Raise InputError for a network with layers that the forward pass would not call."""
    _check(unet, BLOCK_TYPES | SETTINGS)
    if unet.config.norm_num_groups is None:
        raise InputError("this U-Net has norm_num_groups=None, which is not supported: expected a number of groups")


def check_resnet_config(unet: UNet2DConditionModel) -> None:
    """Raise InputError for ResNet blocks that `joint_resnet` cannot compute."""
    _check(unet, RESNET_SETTINGS)


def _check(unet: UNet2DConditionModel | ControlNetModel, settings: dict[str, set]) -> None:
    kind = "ControlNet" if isinstance(unet, ControlNetModel) else "U-Net"
    for name, known in settings.items():
        values = unet.config.get(name, [])
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if value not in known:
                raise InputError(
                    f"this {kind} has {name}={value!r}, which is not supported: expected {_either(known)}, "
                    "as in Stable Diffusion 1.x, 2.x and SDXL. Load a network of one of these kinds"
                )


def check_attention_processors(unet: nn.Module) -> None:
    """Raise InputError for attention processors that compute something else, such as another library's patch."""
    for name, block in transformer_blocks(unet):
        for layer, known in (("attn1", PLAIN_PROCESSORS), ("attn2", PLAIN_PROCESSORS + IP_ADAPTER_PROCESSORS)):
            processor = getattr(block, layer).processor
            if not isinstance(processor, known):
                raise InputError(
                    f"{name}.{layer} computes attention by {type(processor).__name__}, which is not supported: "
                    f"expected {_either({each.__name__ for each in known})}. "
                    "Call set_default_attn_processor() on the U-Net to take it off"
                )


def transformer_blocks(unet: nn.Module) -> Iterator[tuple[str, BasicTransformerBlock]]:
    """Return every transformer block with its dotted name."""
    return ((name, module) for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock))


def _either(known: set) -> str:
    return " or ".join(sorted(map(repr, known)))
