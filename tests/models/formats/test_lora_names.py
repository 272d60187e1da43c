"""Names of tensors in LoRA files of all trainers: each is of the layer that it was written for, or is reported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cases import tiny_models
from diffusers import UNet3DConditionModel
from format_rows import loads
from hypothesis import given, settings
from hypothesis import strategies as st
from models.formats.test_lora_kinds import weight_of
from safetensors.torch import save_file
from torch import Generator, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from kineograph.errors import InputError
from kineograph.models.formats import lora, lora_kinds, modelscope, videocrafter
from kineograph.models.formats.layer_names import motion_module_name, weighted_layers
from kineograph.models.lora_layers import has_loras
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers

pytestmark = pytest.mark.slow
Networks = Mapping[str, nn.Module]
Name = Callable[[str, str, nn.Module], str]  # network, path of a layer, U-Net -> name of the layer in files
SD_TEXT = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
XL_TEXT = SD_TEXT | {"text_encoder": "lora_te1"}


@pytest.fixture(scope="module", autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def sd() -> Networks:
    torch.manual_seed(0)
    return {"unet": tiny_models.unet(), "text_encoder": CLIPTextModel(tiny_models.text_config(16))}


@pytest.fixture(scope="module")
def sdxl() -> Networks:
    torch.manual_seed(0)
    pipeline = tiny_models.sdxl()
    return {
        "unet": pipeline.unet,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": CLIPTextModelWithProjection(tiny_models.text_config(24, "gelu")),
    }


# --- layouts


def flat(name: str) -> str:
    return name.replace(".", "_")


def full(part: str, path: str) -> str:
    """Return a layer's name with the level `text_model` that transformers' versions have or have not."""
    is_text = part != "unet" and not path.startswith(("text_model.", "text_projection"))
    return f"text_model.{path}" if is_text else path


def kohya(part: str, path: str, unet: nn.Module) -> str:
    return f"{SD_TEXT[part]}_{flat(full(part, path))}"


def kohya_xl(part: str, path: str, unet: nn.Module) -> str:
    name = tiny_models.ldm_unet_name(path, unet) if part == "unet" else full(part, path)
    return f"{XL_TEXT[part]}_{flat(name)}"


def diffusers(part: str, path: str, unet: nn.Module) -> str:
    return f"{part}.{full(part, path)}"


def comfyui(part: str, path: str, unet: nn.Module) -> str:
    if part == "unet":
        return f"diffusion_model.{tiny_models.ldm_unet_name(path, unet)}"
    return f"text_encoders.{'clip_l' if part == 'text_encoder' else 'clip_g'}.transformer.{full(part, path)}"


def omi(part: str, path: str, unet: nn.Module) -> str:
    if part == "unet":
        return f"unet.{tiny_models.ldm_unet_name(path, unet)}"
    return f"{'clip_l' if part == 'text_encoder' else 'clip_g'}.{full(part, path)}"


def onetrainer(part: str, path: str, unet: nn.Module) -> str:
    return f"{XL_TEXT[part]}.{full(part, path)}"


def compiled(part: str, path: str, unet: nn.Module) -> str:
    return f"{part}._orig_mod.{full(part, path)}"


def peft(part: str, path: str, unet: nn.Module) -> str:
    return f"base_model.model.{full(part, path)}"


def lycoris(part: str, path: str, unet: nn.Module) -> str:
    return f"lycoris_{flat(path)}"


def single_file(part: str, path: str, unet: nn.Module) -> str:
    if part == "unet":
        return f"model.diffusion_model.{tiny_models.ldm_unet_name(path, unet)}"
    return f"cond_stage_model.transformer.{full(part, path)}"


class Layout(NamedTuple):
    """Names of a trainer. parts: the networks that its files can hold together."""

    name: Name
    parts: tuple[str, ...]
    down: str = "lora_down.weight"
    up: str = "lora_up.weight"


ALL = ("unet", "text_encoder", "text_encoder_2")
PEFT_ENDS = ("lora_A.weight", "lora_B.weight")
LAYOUTS = {
    "names: kohya's scripts (`lora_unet_`, `lora_te_`) by diffusers' names": Layout(kohya, ALL[:2]),
    "names: kohya's scripts for SDXL (`lora_te1_`, `lora_te2_`) by the original code's names": Layout(kohya_xl, ALL),
    "names: diffusers (`unet.`, `text_encoder.`, `text_encoder_2.`)": Layout(diffusers, ALL, *PEFT_ENDS),
    "names: diffusers before peft (`lora.down`, `lora_linear_layer.down`)": Layout(
        diffusers, ALL, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"
    ),
    "names: peft on one network (`base_model.model.`)": Layout(peft, ALL[:1], *PEFT_ENDS),
    "names: peft on a text encoder": Layout(peft, ALL[1:2], *PEFT_ENDS),
    "names: state dict of a network with peft's `default` adapter": Layout(
        diffusers, ALL, "lora_A.default.weight", "lora_B.default.weight"
    ),
    "names: LyCORIS (`lycoris_`)": Layout(lycoris, ALL[:1]),
    "names: ComfyUI (`diffusion_model.`, `text_encoders.clip_l.`, `text_encoders.clip_g.`)": Layout(comfyui, ALL),
    "names: OMI, as OneTrainer writes (`unet.`, `clip_l.`, `clip_g.`)": Layout(omi, ALL),
    "names: OneTrainer (`lora_unet.`, `lora_te1.`, `lora_te2.`)": Layout(onetrainer, ALL),
    "names: single files (`model.diffusion_model.`, `cond_stage_model.transformer.`)": Layout(single_file, ALL[:2]),
    "names: a compiled network (`_orig_mod.`)": Layout(compiled, ALL, *PEFT_ENDS),
}  # fmt: skip
ROWS = [
    pytest.param(layout, marks=loads("LoRA", name, within=1e-6, reference="the formula"), id=name)
    for name, layout in LAYOUTS.items()
]


@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_layers_are_found_by_their_names(request, tmp_path: Path, within: float, layout: Layout, family: str) -> None:
    networks = deepcopy(request.getfixturevalue(family))
    if set(layout.parts) - set(networks) and family == "sd":
        layout = layout._replace(parts=layout.parts[:2])
    if family == "sdxl" and layout.parts == ALL[:2]:
        layout = layout._replace(parts=ALL[:1])  # names of SD 1.x's text encoder
    generator, tensors, expected = Generator().manual_seed(0), {}, {}
    for part in layout.parts:
        for path, layer in [*tiny_models.layers(networks[part])][::5]:
            down, up = tiny_models.low_rank(layer, 2, generator)
            name = layout.name(part, path, networks["unet"])
            tensors |= {f"{name}.{layout.down}": down, f"{name}.{layout.up}": up}
            expected[part, path] = layer.weight + tiny_models.product(down, up)
    save_file(tensors, tmp_path / "file.safetensors")
    lora.load_lora(networks, tmp_path / "file.safetensors", 1.0, lora.HubOptions())
    for (part, path), weight in expected.items():
        assert tiny_models.far(weight_of(networks[part], path), weight.double()) < within


OLD = re.compile(r"\.(to_[qkv]|to_out)(\.0)?$")


@loads("LoRA", "names: diffusers' first (`attn1.processor.to_q_lora.down`, with `unet.` or without)", within=1e-6,
       reference="the formula")  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_names_of_attention_processors(sd: Networks, tmp_path: Path, within: float, prefix: str) -> None:
    networks, generator, tensors, expected = deepcopy(sd), Generator().manual_seed(0), {}, {}
    for path, layer in tiny_models.layers(networks["unet"], nn.Linear):
        if OLD.search(path):
            down, up = tiny_models.low_rank(layer, 2, generator)
            name = prefix + OLD.sub(r".processor.\1_lora", path)
            tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
            expected[path] = layer.weight + tiny_models.product(down, up)
    save_file(tensors, tmp_path / "file.safetensors")
    lora.load_lora(networks, tmp_path / "file.safetensors", 1.0, lora.HubOptions())
    for path, weight in expected.items():
        assert tiny_models.far(weight_of(networks["unet"], path), weight.double()) < within


# --- videos


def modelscope_networks() -> Networks:
    torch.manual_seed(0)
    network = UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=4, sample_size=8, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    net = modelscope.video_unet_from_modelscope(network)
    return {"unet": net.image_unet, "temporal": net.temporal, "released": network}


@loads("LoRA", "LoRAs of ModelScope and ZeroScope (`temp_attentions`, `temp_convs`, `transformer_in`)", within=1e-6,
       reference="the formula")  # fmt: skip
@pytest.mark.parametrize("name", [lambda path: f"unet.{path}", lambda path: f"lora_unet_{flat(path)}"])
def test_names_of_modelscopes_layers(tmp_path: Path, within: float, name: Callable[[str], str]) -> None:
    networks = dict(modelscope_networks())
    released, generator, tensors = networks.pop("released"), Generator().manual_seed(0), {}
    changed = deepcopy(released)
    for path, layer in tiny_models.layers(released, nn.Linear, nn.Conv2d, nn.Conv3d):
        down, up = tiny_models.low_rank(layer, 2, generator)
        tensors |= {f"{name(path)}.lora_down.weight": down, f"{name(path)}.lora_up.weight": up}
        changed.get_submodule(path).weight += tiny_models.product(down, up)
    save_file(tensors, tmp_path / "file.safetensors")
    lora.load_lora(networks, tmp_path / "file.safetensors", 1.0, lora.HubOptions())
    expected = modelscope.video_unet_from_modelscope(changed)
    for part, network in (("unet", expected.image_unet), ("temporal", expected.temporal)):
        for path, layer in tiny_models.layers(network):
            assert tiny_models.far(weight_of(networks[part], path), layer.weight.double()) < within


@loads("LoRA", "LoRAs of VideoCrafter (`input_blocks.1.2.transformer_blocks...`)", within=1e-6, reference="the formula")
def test_names_of_videocrafters_layers(tmp_path: Path, within: float) -> None:
    networks = dict(modelscope_networks())
    del networks["released"]
    unet, generator, tensors, expected = networks["unet"], Generator().manual_seed(0), {}, {}
    for part, inner in (("unet", "image_unet"), ("temporal", "temporal")):
        for path, layer in tiny_models.layers(networks[part]):
            entry = videocrafter.videocrafter_entry(unet, f"{inner}.{path}.weight")
            name = entry.name.removeprefix("model.").removesuffix(".weight")
            down, up = tiny_models.low_rank(layer, 2, generator)
            expected[part, path] = layer.weight + tiny_models.product(down, up)
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    assert len(tensors) == 2 * len(expected)
    save_file(tensors, tmp_path / "file.safetensors")
    lora.load_lora(networks, tmp_path / "file.safetensors", 1.0, lora.HubOptions())
    for (part, path), weight in expected.items():
        assert tiny_models.far(weight_of(networks[part], path), weight.double()) < within


def animatediff_networks() -> Networks:
    torch.manual_seed(0)
    unet = tiny_models.unet()
    transformer = TransformerConfig(heads=2, positions=8)
    layers = TemporalLayers(unet, TemporalConfig(layers=((Site(after="stage"), transformer),), groups=4))
    return {"unet": unet, "temporal": layers}


def released_motion_name(path: str) -> str:
    name = motion_module_name(path).removesuffix(".0")
    name = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name)
    return re.sub(r"\.attn([12])\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.processor.", name)


@loads("LoRA", "motion LoRAs of AnimateDiff: LoRA, LoHa and DoRA on motion modules, by released and diffusers' names",
       within=1e-6, reference="the formula")  # fmt: skip
@pytest.mark.parametrize("kind", ["released", "lora", "loha", "dora"])
def test_motion_loras_of_all_kinds(tmp_path: Path, within: float, kind: str) -> None:
    networks, generator, tensors, expected = animatediff_networks(), Generator().manual_seed(0), {}, {}
    for path, layer in tiny_models.layers(networks["temporal"], nn.Linear):
        if ".attn" not in path:
            continue
        down, up = tiny_models.low_rank(layer, 2, generator)
        change = tiny_models.product(down, up).double()
        name = f"unet.{motion_module_name(path)}"
        if kind == "released":
            name = released_motion_name(path)
            tensors |= {f"{name}_lora.down.weight": down, f"{name}_lora.up.weight": up}
        elif kind == "loha":
            other = torch.ones_like(up), torch.ones_like(down) / 2
            halves = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": other[0], "hada_w2_b": other[1]}
            tensors |= {f"{name}.{end}": each for end, each in halves.items()}
        else:
            tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        weight = layer.weight.double() + change
        if kind == "dora":
            magnitude = 1.3 * layer.weight.norm(dim=1)
            tensors[f"{name}.lora_magnitude_vector"] = magnitude
            weight = magnitude.double()[:, None] * weight / weight.norm(dim=1, keepdim=True)
        expected[path] = weight
    save_file(tensors, tmp_path / "file.safetensors")
    lora.load_lora(networks, tmp_path / "file.safetensors", 1.0, lora.HubOptions())
    assert has_loras(networks["temporal"]) and not has_loras(networks["unet"])
    for path, weight in expected.items():
        assert tiny_models.far(weight_of(networks["temporal"], path), weight) < within


# --- properties

ENDS = {role: role for role in lora_kinds.ROLES} | {  # an ending of each role
    "down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "up_bias": "lora_B.bias",
    "embedding_down": "lora_embedding_A", "embedding_up": "lora_embedding_B", "magnitude": "lora_magnitude_vector",
}  # fmt: skip
NAMED = [layout for layout in LAYOUTS.values() if layout.parts == ALL]
EMPTY = torch.empty(0)


@pytest.fixture(scope="module")
def places(sdxl: Networks) -> list[lora.Layer]:
    return [(part, path) for part in sdxl for path in weighted_layers(sdxl[part])]


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_key_map_and_its_inverse_give_the_file_back(
    sdxl: Networks, places: list[lora.Layer], data: st.DataObject
) -> None:
    layout = data.draw(st.sampled_from(NAMED))
    written = data.draw(st.sets(st.tuples(st.sampled_from(places), st.sampled_from(sorted(ENDS))), max_size=30))

    def name(layer: lora.Layer, role: str) -> str:
        return f"{layout.name(*layer, sdxl['unet'])}.{ENDS[role]}"

    file = {name(layer, role): EMPTY for layer, role in written}
    assert len(file) == len(written)
    matches = lora.match_tensors(file, sdxl)
    assert not (matches.elsewhere or matches.unknown or matches.repeated)
    assert {name(layer, role) for layer, roles in matches.layers.items() for role in roles} == set(file)
    assert {(layer, role) for layer, roles in matches.layers.items() for role in roles} == written


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_no_tensor_is_left_out_in_silence(sdxl: Networks, places: list[lora.Layer], data: st.DataObject) -> None:
    """Every tensor is of a layer, is warned of, or has its file refused."""
    known = data.draw(st.lists(st.sampled_from(places), max_size=5, unique=True))
    junk = data.draw(st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=40), max_size=5))
    ends = data.draw(st.lists(st.text("abcdefgh_.", min_size=1, max_size=12), min_size=1, max_size=3))
    layout = data.draw(st.sampled_from(NAMED))
    names = [f"{layout.name(*layer, sdxl['unet'])}.{end}" for layer in known for end in (*ENDS.values(), *ends)]
    file = dict.fromkeys([*names, *junk], EMPTY)
    matches = lora.match_tensors(file, sdxl)
    reported = [*matches.elsewhere, *matches.unknown, *matches.repeated]
    assert sum(map(len, matches.layers.values())) + len(reported) == len(file)


@given(junk=st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), st.just(EMPTY), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_file_of_other_names_is_refused_in_a_line(sdxl: Networks, junk: dict) -> None:
    with pytest.raises(InputError) as caught:
        lora.add_lora(Path(__file__), junk, sdxl, 1.0)
    assert "Traceback" not in str(caught.value)
