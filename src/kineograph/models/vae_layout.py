"""Stable Diffusion's VAE by the names of its own code, as single files have it.

Source: the released checkpoints of latent diffusion (Rombach et al. 2022).
"""

from __future__ import annotations

import re

from diffusers import AutoencoderKL

from kineograph.models.places import Place

IN_MIDDLE = {"resnets.0": "block_1", "resnets.1": "block_2", "attentions.0": "attn_1"}
IN_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(\w+\.\d+)\.(.+)")


def layout(vae: AutoencoderKL) -> dict[str, Place]:
    """Where a single file has each tensor of a VAE, after the beginning that all of them share there."""
    depth = len(vae.config.block_out_channels)
    return {name: _place(name, depth) for name in vae.state_dict()}


def _place(name: str, depth: int) -> Place:
    path, _, leaf = name.rpartition(".")
    if found := MIDDLE.fullmatch(path):
        side, room, inner = found.groups()
        linear = inner in IN_ATTENTION and inner != "group_norm" and leaf == "weight"  # a 1 x 1 convolution there
        inner = IN_ATTENTION.get(inner, inner.replace("conv_shortcut", "nin_shortcut"))
        return Place(f"{side}.mid.{IN_MIDDLE[room]}.{inner}.{leaf}", ones=2 if linear else 0)
    if found := BLOCK.fullmatch(path):
        return Place(f"{_in_block(depth, *found.groups())}.{leaf}")
    return Place(f"{path.replace('conv_norm_out', 'norm_out')}.{leaf}")


def _in_block(depth: int, side: str, block: str, kind: str, number: str, inner: str) -> str:
    """Blocks of the decoder are counted from the picture, not from the latents."""
    way, at = ("down", int(block)) if side == "encoder" else ("up", depth - 1 - int(block))
    if kind == "resnets":
        return f"{side}.{way}.{at}.block.{number}.{inner.replace('conv_shortcut', 'nin_shortcut')}"
    return f"{side}.{way}.{at}.{kind.removesuffix('rs')}.{inner}"
