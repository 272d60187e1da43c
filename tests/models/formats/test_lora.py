"""LoRAs in every layout: each equals the weights merged by the paper's formula; errors for those that do not fit."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from kineograph.errors import InputError, InputWarning
from kineograph.models.formats import layer_names, lora, lora_kinds
from kineograph.models.loading.load import load
from kineograph.models.model import Model

UNET = [  # one layer of each kind: attention, its output, feed-forward, 1 x 1 and 3 x 3 convolutions, time
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.attentions.0.proj_in",
    "mid_block.resnets.1.conv2",
    "up_blocks.0.resnets.0.time_emb_proj",
]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]
IN_SDXL = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
RANK = 2
Deltas = dict[str, tuple[Tensor, Tensor]]


def deltas(network: nn.Module, paths: list[str], rank: int = RANK) -> Deltas:
    """Return random down and up matrices for these layers."""
    generator = torch.Generator().manual_seed(len(paths))
    random = {}
    for path in paths:
        out, *rest = network.get_submodule(path).weight.shape
        down = torch.randn(rank, *rest, generator=generator)
        random[path] = down, torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator)
    return random


def kohya(prefix: str, layers: Deltas, alpha: float) -> dict[str, Tensor]:
    named = {}
    for path, (down, up) in layers.items():
        name = f"{prefix}_{path.replace('.', '_')}"
        named |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
    return named


def spelled(prefix: str, layers: Deltas, down_name: str, up_name: str) -> dict[str, Tensor]:
    ends = ((down_name, 0), (up_name, 1))
    return {f"{prefix}{path}.{end}.weight": pair[n].clone() for path, pair in layers.items() for end, n in ends}


def merged(network: nn.Module, layers: Deltas, scale: float) -> dict[str, Tensor]:
    """Return the weights merged with the LoRA: W + scale * up @ down, convolutions as matrices."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for path, (down, up) in layers.items():
        state[f"{path}.weight"] += scale * (up.flatten(1) @ down.flatten(1)).view_as(state[f"{path}.weight"])
    return state


def estimate(source) -> Tensor:
    """Return the denoised output for a prompt, which every layer that a LoRA can change contributes to.

    source: a model, or a pipeline.
    """
    model = source if isinstance(source, Model) else load(source)
    with torch.no_grad():
        x = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return model.bind(model.prompt(["a fish"]))(x, 5.0)


def check(make: Callable, path, scale: float, parts: dict[str, Deltas], factor: float) -> None:
    """Assert that the LoRA in the file, at this scale, equals the merged network."""
    expected, pipeline = make(), make()
    for part, layers in parts.items():
        network = getattr(expected, part)
        network.load_state_dict(merged(network, layers, scale * factor))
    plain, adapted = estimate(pipeline), load(pipeline, lora=(path, scale))
    torch.testing.assert_close(estimate(adapted), estimate(expected), rtol=1e-4, atol=1e-4)
    assert (estimate(adapted) - plain).abs().max() > 1e-2
    assert torch.equal(estimate(pipeline), plain)


@pytest.fixture
def parts(sd_pipeline) -> dict[str, Deltas]:
    return {"unet": deltas(sd_pipeline.unet, UNET), "text_encoder": deltas(sd_pipeline.text_encoder, TEXT)}


def test_layout_of_kohya_with_alpha(make_sd, parts, tmp_path) -> None:
    text = {f"text_model.{path}": pair for path, pair in parts["text_encoder"].items()}
    tensors = kohya("lora_unet", parts["unet"], alpha=1.0) | kohya("lora_te", text, alpha=1.0)
    save_file(tensors, tmp_path / "kohya.safetensors")
    check(make_sd, tmp_path / "kohya.safetensors", 0.7, parts, factor=1 / RANK)


@pytest.mark.parametrize("level", ["", "text_model."])
def test_layout_of_diffusers_and_peft(make_sd, parts, tmp_path, level) -> None:
    tensors = spelled("unet.", parts["unet"], "lora_A", "lora_B")
    tensors |= spelled(f"text_encoder.{level}", parts["text_encoder"], "lora_A", "lora_B")
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    check(make_sd, tmp_path, 1.0, parts, factor=1.0)


def test_layouts_of_diffusers_before_peft(make_sd, parts, tmp_path) -> None:
    attention = {path: pair for path, pair in parts["unet"].items() if ".attn" in path}
    tensors = {}
    for path, (down, up) in attention.items():
        name = path.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_")
        tensors |= {f"unet.{name}_lora.down.weight": down, f"unet.{name}_lora.up.weight": up}
    query = {TEXT[0]: parts["text_encoder"][TEXT[0]]}
    for path, (down, up) in query.items():
        name = f"text_encoder.text_model.{path.replace('q_proj', 'to_q')}_lora"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    save_file(tensors, tmp_path / "old.safetensors")
    check(make_sd, tmp_path / "old.safetensors", 1.0, {"unet": attention, "text_encoder": query}, factor=1.0)

    tensors = spelled("unet.", attention, "lora.down", "lora.up")
    tensors |= spelled("text_encoder.text_model.", query, "lora_linear_layer.down", "lora_linear_layer.up")
    save_file(tensors, tmp_path / "newer.safetensors")
    check(make_sd, tmp_path / "newer.safetensors", 1.0, {"unet": attention, "text_encoder": query}, factor=1.0)


def test_file_saved_by_diffusers(make_sd, tmp_path) -> None:
    """The settings are in the header: one alpha for all but one layer, rank-stabilised."""
    trained = make_sd()
    paths = UNET[:3]
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=paths,
        alpha_pattern={"attn1.to_q": 2},
        use_rslora=True,
        init_lora_weights=False,
    )
    trained.unet.add_adapter(config)
    expected = estimate(trained)
    trained.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(trained.unet),
        unet_lora_adapter_metadata=config.to_dict() | {"target_modules": paths},
    )  # fmt: skip
    adapted = load(make_sd(), lora=tmp_path)
    torch.testing.assert_close(estimate(adapted), expected, rtol=1e-5, atol=1e-5)


def test_folder_saved_by_peft(make_sd, parts, tmp_path) -> None:
    save_file(spelled("base_model.model.", parts["unet"], "lora_A", "lora_B"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 5, "alpha_pattern": None}))
    check(make_sd, tmp_path, 1.0, {"unet": parts["unet"]}, factor=5 / RANK)


def test_ranks_that_differ_between_layers(make_sd, sd_pipeline, tmp_path) -> None:
    layers = deltas(sd_pipeline.unet, UNET[:3], rank=1) | deltas(sd_pipeline.unet, UNET[3:], rank=3)
    tensors = {}
    for path, pair in layers.items():
        tensors |= kohya("lora_unet", {path: pair}, alpha=2.0 * len(pair[0]))
    save_file(tensors, tmp_path / "ranks.safetensors")
    check(make_sd, tmp_path / "ranks.safetensors", 1.0, {"unet": layers}, factor=2.0)


def test_sdxl_by_the_names_of_the_original_code(sdxl_pipeline, tmp_path) -> None:
    """kohya's scripts use these names for SDXL; here for two blocks with one ResNet block each."""
    names = {
        "input_blocks_3_1_transformer_blocks_0_attn2_to_k": IN_SDXL,
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
        "output_blocks_1_1_transformer_blocks_1_ff_net_2": "up_blocks.0.attentions.1.transformer_blocks.1.ff.net.2",
        "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_2_0_skip_connection": "up_blocks.1.resnets.0.conv_shortcut",
        "label_emb_0_0": "add_embedding.linear_1",
        "out_2": "conv_out",
    }
    flat = layer_names.flattened_names(sdxl_pipeline.unet)
    assert {name: flat.get(name) for name in names} == names
    layers = deltas(sdxl_pipeline.unet, list(names.values()))
    tensors = {}
    for name, path in names.items():
        tensors |= kohya("lora_unet", {name: layers[path]}, alpha=RANK)
    second = deltas(sdxl_pipeline.text_encoder_2, ["text_model.encoder.layers.0.mlp.fc2"])
    tensors |= kohya("lora_te1", deltas(sdxl_pipeline.text_encoder, TEXT), alpha=RANK)
    tensors |= kohya("lora_te2", second, alpha=RANK)
    save_file(tensors, tmp_path / "xl.safetensors")
    networks = load(sdxl_pipeline, lora=tmp_path / "xl.safetensors").networks
    assert all(hasattr(networks["unet"].get_submodule(path), "lora_A") for path in names.values())
    assert hasattr(networks["text_encoder"].get_submodule(TEXT[1]), "lora_A")
    adapted = networks["text_encoder_2"].get_submodule("text_model.encoder.layers.0.mlp.fc2")
    assert torch.equal(adapted.lora_A["xl"].weight, second["text_model.encoder.layers.0.mlp.fc2"][0])


def test_loras_add_up_and_a_scale_of_zero_changes_nothing(make_sd, parts, tmp_path) -> None:
    plain = make_sd()
    first, second = dict(list(parts["unet"].items())[:3]), dict(list(parts["unet"].items())[2:])
    save_file(kohya("lora_unet", first, alpha=RANK), tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    save_file(kohya("lora_unet", second, alpha=RANK), tmp_path / "b" / "a.safetensors")  # the same name

    silent = load(make_sd(), lora=[(tmp_path / "a.safetensors", 0.0), (tmp_path / "b", 0)])
    assert torch.equal(estimate(silent), estimate(plain))
    assert {str(each.dtype) for each in silent.net.parameters()} == {"torch.float32"}

    both = load(make_sd(), lora=(tmp_path / "a.safetensors", 0.5))
    both = both.load_lora_weights(tmp_path / "b", 2.0)  # later, beside the first
    plain.unet.load_state_dict(merged(plain.unet, first, 0.5))
    plain.unet.load_state_dict(merged(plain.unet, second, 2.0))
    torch.testing.assert_close(estimate(both), estimate(plain), rtol=1e-4, atol=1e-4)
    assert sorted(both.net.image_unet.peft_config) == ["a", "a_2"]
    assert torch.equal(estimate(both.unload_lora_weights()), estimate(make_sd()))


@pytest.mark.slow
def test_lora_takes_the_dtype_of_the_network(sd_folder, parts, tmp_path) -> None:
    save_file(kohya("lora_unet", parts["unet"], alpha=RANK), tmp_path / "a.safetensors")
    model = load(sd_folder, lora=tmp_path / "a.safetensors", dtype="bfloat16", device="cpu")
    assert {each.dtype for each in model.net.parameters()} == {torch.bfloat16}
    assert not any(each.requires_grad for name, each in model.net.named_parameters() if "lora" in name)
    assert model.settings["lora"] == [[str(tmp_path / "a.safetensors"), 1.0]]


def test_tensors_of_no_layer_are_warned_of(sd_pipeline, parts, tmp_path) -> None:
    tensors = kohya("lora_unet", parts["unet"], alpha=RANK)
    tensors |= {f"lora_unet_elsewhere_{n}.lora_down.weight": torch.zeros(1, 1) for n in range(4)}
    save_file(tensors, tmp_path / "more.safetensors")
    count = 3 * len(UNET) + 4
    with pytest.warns(InputWarning, match=rf"4 of {count} tensors are left out: 4 belong to no layer .*elsewhere_0"):
        load(sd_pipeline, lora=tmp_path / "more.safetensors")


def test_lora_for_another_architecture_is_refused_and_changes_nothing(make_sd, sd_pipeline, tmp_path) -> None:
    wide = make_sd(reads=64)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(kohya("lora_unet", deltas(wide.unet, [UNET[0], path]), alpha=RANK), tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match=rf"another architecture: it changes {path} from \(2, 64\) to \(8, 2\)"):
        load(sd_pipeline, lora=tmp_path / "wide.safetensors")
    save_file({"transformer.blocks.0.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "flux.safetensors")
    with pytest.raises(InputError, match=r"another architecture: none of its 1 tensors .*transformer.blocks.0.lora_A"):
        load(sd_pipeline, lora=tmp_path / "flux.safetensors")
    assert not hasattr(sd_pipeline.unet, "peft_config")


def test_folder_without_a_single_lora_is_refused(sd_pipeline, tmp_path) -> None:
    with pytest.raises(InputError, match=r"expected pytorch_lora_weights.safetensors or .* found none"):
        load(sd_pipeline, lora=tmp_path)
    for name in "ab":
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="found 2 files that it could be"):
        load(sd_pipeline, lora=tmp_path)


def test_list_loras_accepts_every_form() -> None:
    assert lora.list_loras(None) == []
    assert lora.list_loras("a") == [("a", 1.0)]
    assert lora.list_loras(("a", 2)) == [("a", 2.0)]
    assert lora.list_loras(["a", ("b", 0.5)]) == [("a", 1.0), ("b", 0.5)]
    assert lora.list_loras(("a", "b")) == lora.list_loras([["a", 1], ["b", 1.0]]) == [("a", 1.0), ("b", 1.0)]


def test_alpha_with_rank_stabilisation() -> None:
    settings = {"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 2}, "use_rslora": True}
    assert lora_kinds.scaling({}, settings, "a.attn1.to_q")(4) == 2 / math.sqrt(4)
    assert lora_kinds.scaling({}, settings, "b")(4) == 3
    assert lora_kinds.scaling({}, {}, "b")(4) == 1
