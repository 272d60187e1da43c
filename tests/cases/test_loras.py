"""LoRA files of every trainer: their names, scales, ranks, and the kinds that are something else."""

from __future__ import annotations

import json
from unittest import mock

import pytest
import torch
from cases import tiny_models
from cases.program import SMALL, run
from cases.tiny_models import (
    add,
    far,
    image_unet,
    kohya,
    layers,
    ldm_unet_name,
    load_lora,
    low_rank,
    prefixed,
    product,
    text_networks,
    text_output,
    unet_output,
)
from format_rows import loads, refused
from safetensors.torch import save_file
from torch import nn

import kineograph as kg
from kineograph.models.loading.describe import describe

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def flat(name: str) -> str:
    return name.replace(".", "_")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# --- names


@pytest.mark.slow
@loads("LoRA", "layers beside attention: conv_in, conv_out, ResNets, time embeddings, the text encoder's")
def test_kohya_names_of_all_layers_and_their_alphas(work, sd_folder, generator) -> None:
    """Case 15 (diffusers#14005): conv_in, conv_out and the time embedding too, the text encoder's as well."""
    pipeline, weights = tiny_models.sd(), {}
    for prefix, network in (("lora_unet_", pipeline.unet), ("lora_te_text_model_", pipeline.text_encoder)):
        deltas = {}
        for number, (name, layer) in enumerate(layers(network)):
            rank, alpha = 1 + number % 3, (1.0, 2.0, 0.5, 8.0)[number % 4]
            down, up = low_rank(layer, rank, generator)
            weights |= kohya(prefix + flat(name.removeprefix("text_model.")), down, up, alpha)
            deltas[name] = alpha / rank * product(down, up)
        add(network, deltas, 0.7)
    save_file(weights, work / "all.safetensors")
    model, warned = load_lora(sd_folder, work / "all.safetensors", 0.7)
    assert far(unet_output(image_unet(model)), unet_output(pipeline.unet)) < 1e-3
    assert far(text_output(text_networks(model)[0]), text_output(pipeline.text_encoder)) < 1e-3
    assert warned == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_ldm_names_of_all_layers(work, sd_folder, sdxl_folder, generator, family) -> None:
    """Case 38 (LyCORIS#22, diffusers#4133): names such as lora_unet_input_blocks_3_0_op."""
    pipeline, folder = (tiny_models.sd(), sd_folder) if family == "sd" else (tiny_models.sdxl(), sdxl_folder)
    weights, deltas = {}, {}
    for name, layer in layers(pipeline.unet):
        down, up = low_rank(layer, 2, generator)
        weights |= kohya("lora_unet_" + flat(ldm_unet_name(name, pipeline.unet)), down, up, 1.0)
        deltas[name] = product(down, up)
    add(pipeline.unet, deltas, 0.5)
    save_file(weights, work / "all.safetensors")
    model, warned = load_lora(folder, work / "all.safetensors")
    assert far(unet_output(image_unet(model)), unet_output(pipeline.unet)) < 1e-3
    assert warned == []


@pytest.mark.slow
@loads("LoRA", "SDXL: kohya's ldm names, text encoders `lora_te1_`, `lora_te2_`", within=1e-5)
@pytest.mark.filterwarnings("ignore")
def test_sdxl_kohya_lora_loads_as_in_diffusers(work, sdxl_folder, generator, within) -> None:
    """Case 25 (diffusers#4287, #4133): ldm names, both text encoders (te1, te2)."""
    pipeline, weights = tiny_models.sdxl(), {}
    for name, layer in layers(pipeline.unet, nn.Linear):
        if "transformer_blocks" in name or "proj_in" in name or "proj_out" in name:
            named = "lora_unet_" + flat(ldm_unet_name(name, pipeline.unet))
            weights |= kohya(named, *low_rank(layer, 4, generator), 2.0)
    encoders = {"lora_te1_text_model_": pipeline.text_encoder, "lora_te2_text_model_": pipeline.text_encoder_2}
    for prefix, network in encoders.items():
        for name, layer in layers(network, nn.Linear):
            if "layers" in name:
                weights |= kohya(prefix + flat(name.removeprefix("text_model.")), *low_rank(layer, 4, generator), 1.0)
    save_file(weights, work / "xl.safetensors")
    model, warned = load_lora(sdxl_folder, work / "xl.safetensors")
    without = unet_output(pipeline.unet)
    pipeline.load_lora_weights(str(work), weight_name="xl.safetensors")
    theirs = unet_output(pipeline.unet)
    assert far(unet_output(image_unet(model)), theirs) < within
    for ours, network in zip(text_networks(model), encoders.values(), strict=True):
        assert far(text_output(ours), text_output(network)) < within
    assert far(without, theirs) > 0.01
    assert warned == []


@pytest.mark.parametrize("trainer", ["comfy", "lycoris"])
def test_names_of_comfyui_and_lycoris(work, sd_folder, generator, trainer) -> None:
    """Case 26 (ComfyUI#9753, #1144): diffusion_model.* as ComfyUI saves, lycoris_* as LyCORIS does."""
    network, weights, deltas = tiny_models.sd().unet, {}, {}
    for name, layer in layers(network, nn.Linear):
        if ".attn2.to_k" in name:
            down, up = low_rank(layer, 4, generator)
            comfy = "diffusion_model." + ldm_unet_name(name, network)
            weights |= kohya(comfy if trainer == "comfy" else "lycoris_" + flat(name), down, up, 4.0)
            deltas[name] = product(down, up)
    add(network, deltas)
    save_file(weights, work / "lora.safetensors")
    model, _ = load_lora(sd_folder, work / "lora.safetensors")
    assert far(unet_output(image_unet(model)), unet_output(network)) < 1e-3


@loads("LoRA", "domain adapter of AnimateDiff v3 (pickled, `module.`)", within=1e-4, reference="merged weights")
def test_domain_adapter_of_animatediff_loads_as_a_lora(work, sd_folder, generator, within) -> None:
    """Case 22 (AnimateDiff#257, sd-webui-animatediff#494): a pickled state_dict with "module." names."""
    network, weights, deltas = tiny_models.sd().unet, {}, {}
    for name, layer in layers(network, nn.Linear):
        if ".attn1.to_" in name or ".attn2.to_" in name:
            down, up = low_rank(layer, 4, generator)
            attention, which = name.removesuffix(".0").rsplit(".", 1)
            named = f"module.{attention}.processor.{which}_lora"
            weights |= {f"{named}.down.weight": down, f"{named}.up.weight": up}
            deltas[name] = product(down, up)
    add(network, deltas)
    torch.save({"epoch": 1, "global_step": 2, "state_dict": weights}, work / "v3_sd15_adapter.ckpt")
    model, warned = load_lora(sd_folder, work / "v3_sd15_adapter.ckpt")
    assert far(unet_output(image_unet(model)), unet_output(network)) < within
    assert warned == []


# --- ranks and scales


@loads("LoRA", "ranks that differ, without alpha: each at scale 1", within=1e-4, reference="merged weights")
def test_ranks_that_differ_without_alpha_are_all_at_scale_one(work, sd_folder, generator, within) -> None:
    """Case 16 (diffusers#14409)."""
    network, weights, deltas = tiny_models.sd().unet, {}, {}
    for number, (name, layer) in enumerate(layers(network, nn.Linear)):
        if ".attn" in name:
            down, up = low_rank(layer, 2 if number % 2 else 8, generator)
            weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            deltas[name] = product(down, up)
    add(network, deltas)
    save_file(weights, work / "mixed.safetensors")
    model, warned = load_lora(sd_folder, work / "mixed.safetensors")
    assert far(unet_output(image_unet(model)), unet_output(network)) < within
    assert warned == []


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_of_the_header_counts(work, sd_folder, generator, rslora) -> None:
    """Case 17 (peft#2733, diffusers#6087, ComfyUI#15830): alpha / rank, and alpha / sqrt(rank) in rsLoRA."""
    network, weights, deltas = tiny_models.sd().unet, {}, {}
    for name, layer in layers(network, nn.Linear):
        if ".attn" in name:
            down, up = low_rank(layer, 4, generator)
            weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            deltas[name] = 16 / (2 if rslora else 4) * product(down, up)
    add(network, deltas, 0.5)
    header = json.dumps({"unet.r": 4, "unet.lora_alpha": 16, "unet.use_rslora": rslora})
    save_file(weights, work / "lora.safetensors", metadata={"format": "pt", "lora_adapter_metadata": header})
    model, warned = load_lora(sd_folder, work / "lora.safetensors", 0.5)
    assert far(unet_output(image_unet(model)), unet_output(network)) < 1e-3
    assert warned == []


# --- other kinds


def test_dora_magnitudes_are_applied(work, sd_folder, generator) -> None:
    """Case 12 (diffusers#7592, #7366): W' = m (W + up down) / |W + up down| by rows (Liu et al. 2024)."""
    network, weights = tiny_models.sd().unet, {}
    with torch.no_grad():
        for name, layer in layers(network, nn.Linear):
            if ".attn" in name and name.endswith(("to_q", "to_k", "to_v")):
                down, up = low_rank(layer, 4, generator)
                magnitude = layer.weight.norm(dim=1, keepdim=True) * 1.5
                named = "lora_unet_" + flat(name)
                weights |= kohya(named, down, up, 4.0) | {f"{named}.dora_scale": magnitude}
                moved = layer.weight + product(down, up)
                layer.weight.copy_(magnitude * moved / moved.norm(dim=1, keepdim=True))
    save_file(weights, work / "dora.safetensors")
    model, _ = load_lora(sd_folder, work / "dora.safetensors")
    assert far(unet_output(image_unet(model)), unet_output(network)) < 1e-3


LYCORIS = {
    "loha": {
        "hada_w1_a": torch.ones(16, 2), "hada_w1_b": torch.ones(2, 16),
        "hada_w2_a": torch.ones(16, 2), "hada_w2_b": torch.ones(2, 16), "alpha": torch.tensor(1.0),
    },
    "a lokr": {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(4, 4), "alpha": torch.tensor(1.0)},
    "full": {"diff": torch.ones(16, 16)},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris_file_works_or_is_called_by_its_kind(work, sd_folder, kind) -> None:
    """Case 13 (diffusers#3087): LoHa, LoKr and whole weights given as a LoRA."""
    save_file(prefixed(f"lora_unet_{flat(ATTENTION)}.", LYCORIS[kind]), work / "x.safetensors")
    said = run(
        "generate", "a cat", "--model", sd_folder, "--lora", work / "x.safetensors", *SMALL, "-o", work / "x.mp4"
    )
    assert said.status == 0 or kind in said.text.lower()


def test_tucker_decomposed_convolution_is_applied_or_refused_by_name(work, sd_folder, generator) -> None:
    """Case 14 (LyCORIS#22, stable-diffusion.cpp#577): a LoCon with lora_mid between up and down."""
    network, name, rank = tiny_models.sd().unet, "down_blocks.0.resnets.0.conv1", 4
    down, up = (torch.randn(*shape, 1, 1, generator=generator) for shape in ((rank, 8), (8, rank)))
    middle = torch.randn(rank, rank, 3, 3, generator=generator)
    named = "lora_unet_" + flat(name)
    weights = kohya(named, down, up, 4.0) | {f"{named}.lora_mid.weight": middle}
    linear = low_rank(network.get_submodule(ATTENTION), rank, generator)
    save_file(weights | kohya("lora_unet_" + flat(ATTENTION), *linear, 4.0), work / "locon.safetensors")
    convolution = torch.einsum("or,rshw,si->oihw", up.flatten(1), middle, down.flatten(1))
    add(network, {name: convolution, ATTENTION: product(*linear)})
    try:
        model, _ = load_lora(sd_folder, work / "locon.safetensors")
    except kg.InputError as error:
        refusal = str(error).lower()
    else:
        refusal = ""
        assert far(unet_output(image_unet(model)), unet_output(network)) < 1e-3
    assert not refusal or "tucker" in refusal or "lora_mid" in refusal


@pytest.mark.parametrize(("end", "name"), [("oft_blocks", "OFT"), ("a1.weight", "GLoRA"), ("on_input", "IA3")])
def test_other_kind_is_refused_before_the_model_is_loaded(work, sd_folder, generator, end, name) -> None:
    fitting = kohya(
        "lora_unet_" + flat(ATTENTION), *low_rank(tiny_models.sd().unet.get_submodule(ATTENTION), 2, generator), 1.0
    )
    save_file(fitting | {f"lora_unet_{flat(ATTENTION)}.{end}": torch.ones(2, 2, 2)}, work / "x.safetensors")
    with (
        pytest.raises(kg.InputError, match=name),
        mock.patch("kineograph.models.loading.load.components_from_folder") as read,
    ):
        describe(sd_folder, lora=work / "x.safetensors")
    read.assert_not_called()
    with pytest.raises(kg.InputError, match=name):
        load_lora(sd_folder, work / "x.safetensors")


@refused("LoRA", "a LoRA of another architecture", "none of its tensors, or their shapes, fit the model's layers")
@pytest.mark.parametrize("trained_on", ["sd", "sdxl"])
def test_lora_of_another_architecture_is_refused(work, sd_folder, sdxl_folder, generator, trained_on) -> None:
    """Case 24 (sdnext#3378): SD 1.5's on SDXL, and SDXL's on SD 1.5."""
    other = trained_on == "sdxl"
    pipeline = tiny_models.sdxl() if other else tiny_models.sd(cross_attention_dim=24)
    weights = {}
    for name, layer in layers(pipeline.unet, nn.Linear):
        if "attn2" in name:
            weights |= kohya("lora_unet_" + flat(name), *low_rank(layer, 2, generator), 1.0)
    save_file(weights, work / "lora.safetensors")
    model = sd_folder if other else sdxl_folder
    said = run("generate", "a cat", "--model", model, "--lora", work / "lora.safetensors", *SMALL, "-o", work / "x.mp4")
    assert said.status == 2 and "another architecture" in said.text


@pytest.mark.slow
def test_lora_path_may_have_an_equals_sign(work, sd_folder, generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 35: civitai's style_v=2.safetensors, folders such as rank=8."""
    monkeypatch.chdir(work)
    down, up = low_rank(tiny_models.sd().unet.get_submodule(ATTENTION), 2, generator)
    (work / "rank=8").mkdir()
    weights = {f"unet.{ATTENTION}.lora_A.weight": down, f"unet.{ATTENTION}.lora_B.weight": up}
    save_file(weights, work / "rank=8/lora.safetensors")
    said = run("generate", "a cat", "--model", sd_folder, "--lora", "rank=8/lora.safetensors", *SMALL, "-o", "x.mp4")
    assert said.status == 0
