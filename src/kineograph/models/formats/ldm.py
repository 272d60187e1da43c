"""Key maps of single-file checkpoints: OpenCLIP's text and vision encoders, and Stable Diffusion's VAE.

Source: OpenCLIP (Ilharco et al. 2021), whose names Stable Diffusion 2.x's files use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from diffusers import AutoencoderKL
from torch import Tensor, nn

from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors

BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
IN_PROJ_PARTS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
TEXT_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
VISION_NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
    "visual_projection.weight": "proj",
}


def text_encoder_key_map(encoder: nn.Module) -> dict[str, Entry]:
    """Return the key map of OpenCLIP's text encoder, for transformers' CLIPTextModel."""
    return {name: _clip_entry(name.removeprefix("text_model."), TEXT_NAMES) for name in encoder.state_dict()}


def vision_encoder_key_map(encoder: nn.Module) -> dict[str, Entry]:
    """Return the key map of OpenCLIP's vision encoder, for transformers' CLIPVisionModelWithProjection.

    The projection is transposed in files, see `transpose_projection`.
    """
    return {name: _clip_entry(name.removeprefix("vision_model."), VISION_NAMES) for name in encoder.state_dict()}


def transpose_projection(vision: Tensors) -> dict[str, Tensor]:
    """Return a vision encoder's tensors with the projection transposed: from a file's layout to ours, or back."""
    return {name: each.mT.contiguous() if name == "proj" else each for name, each in vision.items()}


def _clip_entry(name: str, known: Mapping[str, str]) -> Entry:
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None:
        return Entry(known[name])
    number, inner, leaf = found.groups()
    block = f"transformer.resblocks.{number}"
    if inner in IN_PROJ_PARTS:
        return Entry(f"{block}.attn.in_proj_{leaf}", part=IN_PROJ_PARTS[inner], num_parts=3)
    return Entry(f"{block}.{BLOCK_NAMES[inner]}.{leaf}")


VAE_MIDDLE_NAMES = {"resnets.0": "block_1", "resnets.1": "block_2", "attentions.0": "attn_1"}
VAE_ATTENTION_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(\w+\.\d+)\.(.+)")


def vae_key_map(vae: AutoencoderKL) -> dict[str, Entry]:
    """Return the key map of a VAE, without the prefix that its tensors share in a single file."""
    num_blocks = len(vae.config.block_out_channels)
    return {name: _vae_entry(name, num_blocks) for name in vae.state_dict()}


def _vae_entry(name: str, num_blocks: int) -> Entry:
    path, _, leaf = name.rpartition(".")
    if found := VAE_MIDDLE.fullmatch(path):
        side, layer, inner = found.groups()
        # linear layers of the attention are 1 x 1 convolutions in files
        linear = inner in VAE_ATTENTION_NAMES and inner != "group_norm" and leaf == "weight"
        inner = VAE_ATTENTION_NAMES.get(inner, inner.replace("conv_shortcut", "nin_shortcut"))
        return Entry(f"{side}.mid.{VAE_MIDDLE_NAMES[layer]}.{inner}.{leaf}", trailing_ones=2 if linear else 0)
    found = VAE_BLOCK.fullmatch(path)
    if found is None:
        return Entry(f"{path.replace('conv_norm_out', 'norm_out')}.{leaf}")
    side, block, kind, number, inner = found.groups()
    # files number the decoder's blocks from the image to the latents
    direction, index = ("down", int(block)) if side == "encoder" else ("up", num_blocks - 1 - int(block))
    if kind == "resnets":
        layer = f"block.{number}.{inner.replace('conv_shortcut', 'nin_shortcut')}"
    else:
        layer = f"{kind.removesuffix('rs')}.{inner}"
    return Entry(f"{side}.{direction}.{index}.{layer}.{leaf}")
