"""Files of several kinds at once, on every layer of SDXL's networks: each weight is what the formulas say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import tiny_models
from format_rows import loads
from models.formats.test_lora_kinds import (
    SCALE,
    Roles,
    full,
    locon,
    loha,
    loha_tucker,
    lokr,
    normal,
    tucker,
    weight_of,
)
from models.formats.test_lora_names import LAYOUTS, Layout
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from kineograph.models.formats import lora
from kineograph.models.formats.layer_names import weighted_layers
from kineograph.models.lora_layers import remove_loras

pytestmark = pytest.mark.slow
MATRICES = (locon, loha, lokr("whole", "product"), lokr("product", "product"), lokr("whole", "whole"), full)
CONVOLUTIONS = (*MATRICES, tucker, loha_tucker, lokr("whole", "tucker"))
ALL = ("unet", "text_encoder", "text_encoder_2")
MIXED = [name for name in LAYOUTS if "for SDXL" in name or "ComfyUI" in name]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def change(layer: nn.Module, number: int, generator: Generator) -> tuple[Roles, Tensor, Tensor | None]:
    """Return the tensors of a change, the weight with it, and the bias with it. number: chooses the kind."""
    weight, shape = layer.weight.double(), layer.weight.shape
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        one, other = normal(generator, *shape), normal(generator, *shape)
        names = ("w_norm", "b_norm") if number % 2 else ("diff", "diff_b")
        return dict(zip(names, (one, other), strict=True)), weight + SCALE * one, layer.bias + SCALE * other.double()
    kinds = CONVOLUTIONS if len(shape) == 4 and shape[-1] == 3 else MATRICES
    if shape[0] % 4 or shape[1] % 2:
        kinds = (locon, full)  # which factors of LoKr would not divide
    roles, by = kinds[number % len(kinds)](shape, generator)
    moved = weight + SCALE * by.reshape(shape)
    if number % 3 == 0:  # DoRA, by output or by input
        axis = number % 2
        others = [each for each in range(len(shape)) if each != axis]
        size = [-1 if each == axis else 1 for each in range(len(shape))]
        magnitude = (0.5 + torch.rand(shape[axis], generator=generator)).reshape(size)
        roles |= {"dora_scale": magnitude}
        if axis == 0 or shape[0] != 1:
            moved = magnitude.double() * moved / torch.linalg.vector_norm(moved, dim=others, keepdim=True)
    if layer.bias is not None and number % 5 == 0:
        bias = normal(generator, shape[0])
        return roles | {"diff_b": bias}, moved, layer.bias + SCALE * bias.double()
    return roles, moved, None


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            LAYOUTS[name], id=name,
            marks=loads("LoRA", f"all kinds in one file on all layers, {name}", within=1e-5, reference="the formulas"),
        )
        for name in MIXED
    ],
)  # fmt: skip
def test_all_layers_of_sdxl_in_mixed_kinds(tmp_path: Path, within: float, layout: Layout) -> None:
    pipeline, generator, tensors, expected = tiny_models.sdxl(), Generator().manual_seed(0), {}, {}
    networks = {part: getattr(pipeline, part) for part in ALL}
    before = {part: {name: each.clone() for name, each in networks[part].state_dict().items()} for part in ALL}
    number = 0
    for part in ALL:
        for path, layer in weighted_layers(networks[part]).items():
            if isinstance(layer, nn.Embedding):
                continue
            number += 1
            roles, weight, bias = change(layer, number, generator)
            name = layout.name(part, path, networks["unet"])
            tensors |= {f"{name}.{role}": each.clone().contiguous() for role, each in roles.items()}
            expected[part, path] = weight, bias
    save_file(tensors, tmp_path / "file.safetensors")
    lora.load_lora(networks, tmp_path / "file.safetensors", SCALE, lora.HubOptions())
    for (part, path), (weight, bias) in expected.items():
        assert tiny_models.far(weight_of(networks[part], path), weight) < within, path
        if bias is not None:
            assert tiny_models.far(networks[part].get_submodule(path).bias.double(), bias) < within, path
    remove_loras(networks)
    for part in ALL:
        after = networks[part].state_dict()
        assert after.keys() == before[part].keys()
        assert all(torch.equal(each, after[name]) for name, each in before[part].items())
