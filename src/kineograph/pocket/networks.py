"""The shapes of the pocket networks: Stable Diffusion's classes and layout, fewer channels."""

from __future__ import annotations

from diffusers import AutoencoderKL

LATENT_CHANNELS = 8


def vae(channels: tuple[int, ...] = (32, 32, 64, 128), latents: int = LATENT_CHANNELS) -> AutoencoderKL:
    """3 x 128 x 128 -> 8 x 16 x 16. No attention in the middle: it is the one part that would not work at every size."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels, layers_per_block=1, latent_channels=latents, norm_num_groups=8,
        mid_block_add_attention=False, sample_size=128,
    )  # fmt: skip
