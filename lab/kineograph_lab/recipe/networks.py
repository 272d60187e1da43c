"""The shapes of the pocket networks: Stable Diffusion's classes and layout, fewer channels."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

LATENT_CHANNELS = 8
WORDS = 48  # tokens of a prompt, begin and end included
WIDTH = 160  # of both towers, and of what the U-Net reads
SIDE, DOWN, PATCH = 128, 8, 16


def vae(channels: tuple[int, ...] = (32, 32, 64, 128), latents: int = LATENT_CHANNELS) -> AutoencoderKL:
    """3 x 128 x 128 -> 8 x 16 x 16. No attention in the middle: it is the one part that would not work at every size."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels, layers_per_block=1, latent_channels=latents, norm_num_groups=8,
        mid_block_add_attention=False, sample_size=SIDE,
    )  # fmt: skip


def clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Two towers of four layers; the text tower's last hidden state is what the U-Net reads, as in SD 1.x."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": WIDTH // 32,
        "projection_dim": 128,
    }
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**tower, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": WORDS}
    vision = {**tower, "image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def unet(channels: tuple[int, ...] = (96, 128, 192)) -> UNet2DConditionModel:
    """8 x 16 x 16 -> the same. As in SD, the lowest level has no attention of its own: the middle has."""
    attends = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=SIDE // DOWN, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * attends + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attends,
        layers_per_block=1, cross_attention_dim=WIDTH, norm_num_groups=8,
        attention_head_dim=tuple(c // 32 for c in channels),  # the number of heads: diffusers kept SD's misnomer
    )  # fmt: skip
