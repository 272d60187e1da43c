"""OpenCLIP's text and vision towers by the names of its own code, as Stable Diffusion 2.x's files have them.

Source: OpenCLIP (Ilharco et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from kineograph.models.places import Place
from kineograph.models.tensor_files import Tensors

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


def text_layout(tower: nn.Module) -> dict[str, Place]:
    """Where a file has each tensor of a text tower of transformers."""
    return {name: _place(name.removeprefix("text_model."), OF_TEXT) for name in tower.state_dict()}


def vision_layout(tower: nn.Module) -> dict[str, Place]:
    """Where a file has each tensor of a vision tower of transformers, whose projection is turned on its side there."""
    return {name: _place(name.removeprefix("vision_model."), OF_VISION) for name in tower.state_dict()}


def turned(vision: Tensors) -> dict[str, Tensor]:
    """A vision tower's tensors with the projection turned: from a file's to ours, or back."""
    return {name: each.mT.contiguous() if name == "proj" else each for name, each in vision.items()}


def depth(tower: Tensors) -> int:
    """How many blocks a tower of a file has."""
    found = map(re.compile(r"transformer\.resblocks\.(\d+)\.ln_1\.weight").fullmatch, tower)
    return len([each for each in found if each])


def _place(name: str, known: Mapping[str, str]) -> Place:
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None:
        return Place(known[name])
    number, inner, leaf = found.groups()
    block = f"transformer.resblocks.{number}"
    if inner in THIRDS:
        return Place(f"{block}.attn.in_proj_{leaf}", part=THIRDS[inner], of=3)
    return Place(f"{block}.{IN_BLOCK[inner]}.{leaf}")
