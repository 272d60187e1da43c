"""Key maps of files in the layouts of the original code: OpenCLIP's encoders, VAE, ControlNet and T2I-Adapter.

Source: OpenCLIP (Ilharco et al. 2021), whose names Stable Diffusion 2.x's files use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from diffusers import AutoencoderKL, ControlNetModel, T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn

from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.layer_names import ldm_layer_name
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
    "text_projection.weight": "text_projection",
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


def unet_key_map(unet: UNet2DConditionModel) -> dict[str, Entry]:
    """Return the key map of a U-Net, without the prefix that its tensors share in a single file."""
    paths = {name: name.rpartition(".") for name in unet.state_dict()}
    return {name: Entry(f"{ldm_layer_name(unet, path)}.{leaf}") for name, (path, _, leaf) in paths.items()}


def clip_key_map(encoder: nn.Module) -> dict[str, Entry]:
    """Return the key map of a text encoder of transformers, without the prefix that some versions add."""
    return {name: Entry(name.removeprefix("text_model.")) for name in encoder.state_dict()}


def text_encoder_key_map(encoder: nn.Module) -> dict[str, Entry]:
    """Return the key map of OpenCLIP's text encoder, for transformers' CLIPTextModel with a projection or without.

    The projection is transposed in files, see `transpose_projection`.
    """
    return {name: _clip_entry(name.removeprefix("text_model."), TEXT_NAMES) for name in encoder.state_dict()}


def vision_encoder_key_map(encoder: nn.Module) -> dict[str, Entry]:
    """Return the key map of OpenCLIP's vision encoder, for transformers' CLIPVisionModelWithProjection.

    The projection is transposed in files, see `transpose_projection`.
    """
    return {name: _clip_entry(name.removeprefix("vision_model."), VISION_NAMES) for name in encoder.state_dict()}


def transpose_projection(encoder: Tensors) -> dict[str, Tensor]:
    """Return an encoder's tensors with the projection transposed: from a file's layout to ours, or back."""
    names = ("proj", "text_projection")
    return {name: each.mT.contiguous() if name in names else each for name, each in encoder.items()}


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


CONTROL_HINT = "controlnet_cond_embedding"
CONTROL_OUTPUT = re.compile(r"controlnet_(down|mid)_blocks?(?:\.(\d+))?")


def controlnet_key_map(net: ControlNetModel) -> dict[str, Entry]:
    """Return the key map of a ControlNet in the original layout, without the prefix `control_model.`."""
    return {name: Entry(_controlnet_name(net, name)) for name in net.state_dict()}


def _controlnet_name(net: ControlNetModel, name: str) -> str:
    path, _, leaf = name.rpartition(".")
    if output := CONTROL_OUTPUT.fullmatch(path):
        return f"zero_convs.{output[2]}.0.{leaf}" if output[1] == "down" else f"middle_block_out.0.{leaf}"
    if not path.startswith(CONTROL_HINT):
        return f"{ldm_layer_name(net, path)}.{leaf}"
    layer, _, number = path.removeprefix(f"{CONTROL_HINT}.").partition(".")  # convolutions, activations between them
    last = len(net.controlnet_cond_embedding.blocks) + 1
    return f"input_hint_block.{2 * {'conv_in': 0, 'conv_out': last}.get(layer, int(number or 0) + 1)}.{leaf}"


def t2i_adapter_key_map(net: T2IAdapter) -> dict[str, Entry]:
    """Return the key map of a T2I-Adapter in the original layout, which numbers the ResNet blocks of all levels."""
    is_light, count = net.config.adapter_type == "light_adapter", net.config.num_res_blocks

    def in_file(name: str) -> str:
        found = re.fullmatch(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(.+)", name.removeprefix("adapter."))
        if found is None:
            return name.removeprefix("adapter.")
        level, resnet, rest = found.groups()
        if is_light:
            return f"body.{level}.{rest}" if resnet is None else f"body.{level}.body.{resnet}.{rest}"
        return f"body.{int(level) * count + int(resnet or 0)}.{rest}"

    return {name: Entry(in_file(name)) for name in net.state_dict()}
