"""Small video networks of diffusers and of this library, with random weights."""

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from tiny_unets import CROSS, PLAIN, TOKEN_WIDTH
from torch import Tensor, nn

from kineograph.models.temporal.config import AttentionConfig, ConvConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

Z, TOKENS = (
    torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.ones(2, 7, TOKEN_WIDTH).cumsum(1),
)


def shaken(net: nn.Module) -> nn.Module:
    """Give all parameters random values: many layers start at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return net.eval()


def modelscope(**settings) -> UNet3DConditionModel:
    shape = {
        "sample_size": 8, "block_out_channels": (16, 32, 32), "layers_per_block": 2, "norm_num_groups": 4,
        "cross_attention_dim": TOKEN_WIDTH, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    } | settings  # fmt: skip
    return shaken(UNet3DConditionModel(**shape))


def animatediff(**settings) -> UNetMotionModel:
    shape = {
        "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 2, "norm_num_groups": 4,
        "cross_attention_dim": TOKEN_WIDTH, "num_attention_heads": 2, "motion_num_attention_heads": 2,
        "motion_max_seq_length": 24, "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    } | settings  # fmt: skip
    return shaken(UNetMotionModel(**shape))


def adapter(**settings) -> MotionAdapter:
    """Return motion modules for `two_levels`."""
    shape = {
        "block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_num_attention_heads": 8,
        "motion_norm_num_groups": 4, "motion_max_seq_length": 24,
    } | settings  # fmt: skip
    return shaken(MotionAdapter(**shape))


def two_levels(**settings) -> UNet2DConditionModel:
    """Return a U-Net of Stable Diffusion 2.x's architecture, with heads four wide, as VideoCrafter1 uses."""
    torch.manual_seed(0)
    shape = {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 32, "attention_head_dim": (2, 4), "use_linear_projection": True,
        "down_block_types": (CROSS, PLAIN), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    } | settings  # fmt: skip
    return UNet2DConditionModel(**shape).eval()


def videocrafter(unet: UNet2DConditionModel, *, head_width: int = 4, **settings) -> VideoUNet:
    """Return a video U-Net with VideoCrafter1's temporal layers: transformers with relative positions."""
    transformer = TransformerConfig(head_width=head_width, relative=8)
    config = TemporalConfig(
        num_frames=8,
        layers=(
            (Site("conv_in"), transformer.model_copy(update={"heads": 2})),
            (Site("transformer"), transformer),
        ),
        sampler="euler-ancestral",
        **settings,
    )
    return VideoUNet(unet, shaken(TemporalLayers(unet, config)))


def vidrd(unet: UNet2DConditionModel) -> VideoUNet:
    """Return a video U-Net with VidRD's temporal layers, for image U-Nets whose heads are 16 wide."""
    config = TemporalConfig(
        num_frames=8,
        layers=(
            (Site("conv_in"), TransformerConfig(heads=8, head_width=8, attentions=1, transposed=True)),
            (Site("resnet"), ConvConfig()),
            (Site("cross_attention"), AttentionConfig(head_width=16, positions=128)),
        ),
        joint_norms=True,
        groups=32,
    )
    return VideoUNet(unet, shaken(TemporalLayers(unet, config)))


def off(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()
