"""Small image U-Nets with random weights, of the architectures of released checkpoints."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

TOKEN_WIDTH = 12  # channels of a text token
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def unet(**settings) -> UNet2DConditionModel:
    """Return a U-Net of SD 1.x's architecture, with these settings changed."""
    torch.manual_seed(0)
    shape = {
        "sample_size": 8, "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": TOKEN_WIDTH, "attention_head_dim": 2, "down_block_types": (CROSS, CROSS, PLAIN),
    } | settings  # fmt: skip
    ups = [block.replace("Down", "Up") for block in reversed(shape["down_block_types"])]
    return UNet2DConditionModel(up_block_types=tuple(ups), **shape).eval()


def sd2() -> UNet2DConditionModel:
    """Return a U-Net with linear projections and heads of one width at every level, as in SD 2.x."""
    return unet(use_linear_projection=True, attention_head_dim=(2, 4, 4), upcast_attention=True)


def sdxl() -> UNet2DConditionModel:
    """Return a U-Net of SDXL's architecture: no attention at the top, deep transformers below, a size embedding."""
    return unet(
        down_block_types=(PLAIN, CROSS, CROSS), transformer_layers_per_block=(1, 2, 3), use_linear_projection=True,
        attention_head_dim=(2, 4, 4), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )  # fmt: skip


def with_temporal_layers(config: TemporalConfig) -> VideoUNet:
    """Return a video U-Net with untrained temporal layers, which are the identity."""
    image = unet()
    return VideoUNet(image, TemporalLayers(image, config)).eval()


def randomised(net: VideoUNet) -> VideoUNet:
    """Give the temporal layers random weights, so that they are not the identity."""
    torch.manual_seed(3)
    for weight in net.temporal.parameters():
        nn.init.normal_(weight, std=0.1)
    return net


def with_ip_adapters(net: UNet2DConditionModel, scales: list[float]) -> UNet2DConditionModel:
    """Load an IP-Adapter for each scale, with four tokens an image, for image embeddings of six numbers."""
    torch.manual_seed(1)
    net._load_ip_adapter_weights([_ip_adapter(net) for _ in scales], low_cpu_mem_usage=False)
    for processor in net.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = scales
    return net


def _ip_adapter(net: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    image_proj = {
        "proj.weight": torch.randn(4 * TOKEN_WIDTH, 6), "proj.bias": torch.randn(4 * TOKEN_WIDTH),
        "norm.weight": torch.ones(TOKEN_WIDTH), "norm.bias": torch.zeros(TOKEN_WIDTH),
    }  # fmt: skip
    layers = [net.get_submodule(name.removesuffix(".processor")) for name in net.attn_processors if "attn2" in name]
    weights = {
        f"{2 * number + 1}.to_{letter}_ip.weight": torch.randn(layer.to_k.out_features, TOKEN_WIDTH)
        for number, layer in enumerate(layers)
        for letter in "kv"
    }
    return {"image_proj": image_proj, "ip_adapter": weights}
