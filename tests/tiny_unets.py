"""Image networks with random weights, of the shapes that checkpoints have, small enough to run in milliseconds."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

READS = 12  # channels of a text token
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def unet(**settings) -> UNet2DConditionModel:
    """Shaped like SD 1.x unless the settings say otherwise."""
    torch.manual_seed(0)
    shape = {
        "sample_size": 8, "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": READS, "attention_head_dim": 2, "down_block_types": (CROSS, CROSS, PLAIN),
    } | settings  # fmt: skip
    ups = [block.replace("Down", "Up") for block in reversed(shape["down_block_types"])]
    return UNet2DConditionModel(up_block_types=tuple(ups), **shape).eval()


def sd2() -> UNet2DConditionModel:
    """Linear projections around the transformers, and heads of one size at every level."""
    return unet(use_linear_projection=True, attention_head_dim=(2, 4, 4), upcast_attention=True)


def sdxl() -> UNet2DConditionModel:
    """No attention at the top, several transformer blocks below, and an embedding of the picture's size."""
    return unet(
        down_block_types=(PLAIN, CROSS, CROSS), transformer_layers_per_block=(1, 2, 3), use_linear_projection=True,
        attention_head_dim=(2, 4, 4), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )  # fmt: skip


def along_time(config: TemporalConfig) -> VideoUNet:
    """With layers along time that begin as the identity."""
    image = unet()
    return VideoUNet(image, TemporalLayers(image, config)).eval()


def stirred(net: VideoUNet) -> VideoUNet:
    """The same with layers along time that are no longer the identity."""
    torch.manual_seed(3)
    for weight in net.temporal.parameters():
        nn.init.normal_(weight, std=0.1)
    return net


def with_ip_adapters(net: UNet2DConditionModel, scales: list[float]) -> UNet2DConditionModel:
    """With an IP-Adapter for each scale, of four tokens an image, that reads image embeddings of six numbers."""
    torch.manual_seed(1)
    net._load_ip_adapter_weights([_ip_adapter(net) for _ in scales], low_cpu_mem_usage=False)
    for processor in net.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = scales
    return net


def _ip_adapter(net: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    image_proj = {
        "proj.weight": torch.randn(4 * READS, 6), "proj.bias": torch.randn(4 * READS),
        "norm.weight": torch.ones(READS), "norm.bias": torch.zeros(READS),
    }  # fmt: skip
    readers = [net.get_submodule(name.removesuffix(".processor")) for name in net.attn_processors if "attn2" in name]
    weights = {
        f"{2 * number + 1}.to_{letter}_ip.weight": torch.randn(reader.to_k.out_features, READS)
        for number, reader in enumerate(readers)
        for letter in "kv"
    }
    return {"image_proj": image_proj, "ip_adapter": weights}
