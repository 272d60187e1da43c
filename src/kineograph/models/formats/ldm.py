"""OpenCLIP's text and vision towers by the names of its own code, as Stable Diffusion 2.x's files have them.

Source: OpenCLIP (Ilharco et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from diffusers import AutoencoderKL
from torch import Tensor, nn

from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors

IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
THIRDS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
OF_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OF_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
    "visual_projection.weight": "proj",
}


def text_encoder_key_map(tower: nn.Module) -> dict[str, Entry]:
    """Where a file has each tensor of a text tower of transformers."""
    return {name: _encoder_place(name.removeprefix("text_model."), OF_TEXT) for name in tower.state_dict()}


def vision_encoder_key_map(tower: nn.Module) -> dict[str, Entry]:
    """Where a file has each tensor of a vision tower of transformers, whose projection is turned on its side there."""
    return {name: _encoder_place(name.removeprefix("vision_model."), OF_VISION) for name in tower.state_dict()}


def transpose_projection(vision: Tensors) -> dict[str, Tensor]:
    """A vision tower's tensors with the projection turned: from a file's to ours, or back."""
    return {name: each.mT.contiguous() if name == "proj" else each for name, each in vision.items()}


def depth(tower: Tensors) -> int:
    """How many blocks a tower of a file has."""
    found = map(re.compile(r"transformer\.resblocks\.(\d+)\.ln_1\.weight").fullmatch, tower)
    return len([each for each in found if each])


def _encoder_place(name: str, known: Mapping[str, str]) -> Entry:
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None:
        return Entry(known[name])
    number, inner, leaf = found.groups()
    block = f"transformer.resblocks.{number}"
    if inner in THIRDS:
        return Entry(f"{block}.attn.in_proj_{leaf}", part=THIRDS[inner], of=3)
    return Entry(f"{block}.{IN_BLOCK[inner]}.{leaf}")


IN_MIDDLE = {"resnets.0": "block_1", "resnets.1": "block_2", "attentions.0": "attn_1"}
IN_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(\w+\.\d+)\.(.+)")


def vae_key_map(vae: AutoencoderKL) -> dict[str, Entry]:
    """Where a single file has each tensor of a VAE, after the beginning that all of them share there."""
    depth = len(vae.config.block_out_channels)
    return {name: _vae_place(name, depth) for name in vae.state_dict()}


def _vae_place(name: str, depth: int) -> Entry:
    path, _, leaf = name.rpartition(".")
    if found := MIDDLE.fullmatch(path):
        side, room, inner = found.groups()
        linear = inner in IN_ATTENTION and inner != "group_norm" and leaf == "weight"  # a 1 x 1 convolution there
        inner = IN_ATTENTION.get(inner, inner.replace("conv_shortcut", "nin_shortcut"))
        return Entry(f"{side}.mid.{IN_MIDDLE[room]}.{inner}.{leaf}", ones=2 if linear else 0)
    if found := BLOCK.fullmatch(path):
        return Entry(f"{_in_block(depth, *found.groups())}.{leaf}")
    return Entry(f"{path.replace('conv_norm_out', 'norm_out')}.{leaf}")


def _in_block(depth: int, side: str, block: str, kind: str, number: str, inner: str) -> str:
    """Blocks of the decoder are counted from the picture, not from the latents."""
    way, at = ("down", int(block)) if side == "encoder" else ("up", depth - 1 - int(block))
    if kind == "resnets":
        return f"{side}.{way}.{at}.block.{number}.{inner.replace('conv_shortcut', 'nin_shortcut')}"
    return f"{side}.{way}.{at}.{kind.removesuffix('rs')}.{inner}"
