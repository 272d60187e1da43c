"""LoRA files that are damaged, quantised or for other architectures: one clear line, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from cases import tiny_models
from format_rows import loads, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models.formats.test_lora_kinds import (
    LINEAR,
    POINT,
    SCALE,
    Roles,
    add,
    full,
    kohya_name,
    locon,
    loha,
    lokr,
    weight_of,
    write,
)
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.models.formats import lora
from kineograph.models.lora_layers import has_loras


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    """A network that all tests of refusals share, because nothing is changed."""
    torch.manual_seed(0)
    return tiny_models.unet()


@pytest.fixture
def generator() -> Generator:
    return Generator().manual_seed(0)


def low_rank(unet: nn.Module, generator: Generator) -> Roles:
    return locon(unet.get_submodule(LINEAR).weight.shape, generator)[0]


# --- single tensors

WRONG: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "a matrix of int8": ("lora_up.weight", lambda each: each.to(torch.int8), "up of .* holds int8"),
    "a matrix of bool": ("lora_down.weight", lambda each: each > 0, "down of .* holds bool"),
    "a complex matrix": ("lora_down.weight", lambda each: each.to(torch.complex64), "holds complex64"),
    "a bool as alpha": ("alpha", lambda each: each > 0, "alpha of .* holds bool"),
    "two numbers as alpha": ("alpha", lambda each: each.repeat(2), "alpha of .* holds 2 numbers where one is expected"),
    "no number as alpha": ("alpha", lambda _: torch.empty(0), "alpha of .* holds 0 numbers"),
    "rank 0": ("lora_down.weight", lambda each: each[:0], "down of .* is empty"),
    "one number as matrix": ("lora_up.weight", lambda _: torch.tensor(1.0), "up of .* is a single number"),
    "one number as magnitude": ("dora_scale", lambda _: torch.tensor(1.0), "dora_scale of .* is a single number"),
    "infinity": ("alpha", lambda each: each / 0, "no numbers, in .*alpha"),
    "numbers beyond float32": ("lora_up.weight", lambda each: each.double() * 1e300, "no numbers, in .*lora_up"),
    "another rank": ("lora_up.weight", lambda each: each[:, :1], r"another architecture: it changes .* to \(8, 1\)"),
}


@refused("LoRA", "quantised matrices, empty tensors, rank 0, an alpha that is not one number", "named, with its layer")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensor_is_refused_by_name(unet, generator, tmp_path: Path, name: str) -> None:
    role, change, message = WRONG[name]
    roles = low_rank(unet, generator) | {"dora_scale": torch.ones(8, 1)}
    file = write(tmp_path, {LINEAR: roles | {role: change(roles[role])}})
    with pytest.raises(InputError, match=message) as caught:
        add(unet, file)
    assert "\n" not in str(caught.value) and not has_loras(unet)


CONFLICTS = {
    "magnitudes by two names": {"dora_scale": torch.ones(8, 1), "lora_magnitude_vector": torch.ones(8)},
    "a factor and its products": {
        "lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(4, 4), "lokr_w2_a": torch.ones(4, 2)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFLICTS)
def test_tensors_for_the_same_part_are_refused(unet, generator, tmp_path: Path, name: str) -> None:
    file = write(tmp_path, {LINEAR: low_rank(unet, generator) | CONFLICTS[name]})
    with pytest.raises(InputError, match="several tensors for the same part of"):
        add(unet, file)
    assert not has_loras(unet)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
@loads("LoRA", "matrices in float8, bfloat16, float16 or float64", within=1e-6, reference="their values")
def test_floating_point_dtypes_are_read_by_value(unet, generator, tmp_path: Path, within: float, dtype) -> None:
    network, roles = deepcopy(unet), low_rank(unet, generator)
    roles = {role: each if role == "alpha" else each.to(dtype) for role, each in roles.items()}
    down, up = (roles[f"lora_{each}.weight"].double() for each in ("down", "up"))
    expected = network.get_submodule(LINEAR).weight + SCALE * roles["alpha"].item() / 3 * up @ down
    add(network, write(tmp_path, {LINEAR: roles}), SCALE)
    assert tiny_models.far(weight_of(network, LINEAR), expected) < within


@loads("LoRA", "an alpha of 0: changes nothing, with a warning that counts the layers")
def test_alpha_of_zero_changes_nothing_and_warns(unet, generator, tmp_path: Path) -> None:
    network, before = deepcopy(unet), tiny_models.unet_output(unet)
    none = low_rank(unet, generator) | {"alpha": torch.tensor(0.0)}
    silent, _ = loha(unet.get_submodule(POINT).weight.shape, generator)
    with pytest.warns(InputWarning, match="the alpha of 2 of 2 layers is 0, with which they change nothing"):
        add(network, write(tmp_path, {LINEAR: none, POINT: silent | {"alpha": torch.tensor(0)}}))
    assert torch.equal(tiny_models.unet_output(network), before)


# --- peft's settings

SETTINGS = [
    {"r": 0}, {"r": "8"}, {"r": True}, {"lora_alpha": "8"}, {"lora_alpha": [1]}, {"alpha": {"a": 1}},
    {"alpha_pattern": 3}, {"alpha_pattern": ["to_q"]}, {"alpha_pattern": {"[": 2}}, {"alpha_pattern": {"to_q": "2"}},
    {"alpha_pattern": {"(a+)+b": 2}}, {"rank_pattern": {"a*" * 9: 2}}, {"lora_alpha": float("nan")}, {"use_dora": True},
]  # fmt: skip


@refused("LoRA", "damaged settings of peft", "the setting is named with its value")
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("wrong", SETTINGS, ids=str)
def test_damaged_settings_are_refused(unet, generator, tmp_path: Path, wrong: dict[str, object], *, beside) -> None:
    ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    roles = low_rank(unet, generator)
    prefix = "base_model.model." if beside else "unet."
    tensors = {f"{prefix}{LINEAR}.{end}": roles[role] for end, role in ends.items()}
    header = json.dumps({f"unet.{name}": value for name, value in wrong.items()})
    save_file(tensors, tmp_path / "file.safetensors", {} if beside else {"lora_adapter_metadata": header})
    if beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(wrong))
    with pytest.raises(InputError, match=f"damaged.*({next(iter(wrong))}|fetch it again|DoRA)") as caught:
        add(unet, tmp_path / "file.safetensors")
    assert "\n" not in str(caught.value) and not has_loras(unet)


# --- other architectures


def pair(name: str, rows: int = 16, columns: int = 16, *, peft: bool = False) -> Roles:
    ends = ("lora_A.weight", "lora_B.weight") if peft else ("lora_down.weight", "lora_up.weight")
    return {f"{name}.{ends[0]}": torch.ones(2, columns), f"{name}.{ends[1]}": torch.ones(rows, 2)}


OTHERS = {
    "FLUX": ["lora_unet_double_blocks_0_img_attn_proj", "lora_unet_single_blocks_0_linear1",
             "transformer.single_transformer_blocks.0.attn.to_q", "diffusion_model.double_blocks.0.img_attn.qkv"],
    "Stable Diffusion 3": ["lora_unet_joint_blocks_0_x_block_attn_qkv", "transformer.transformer_blocks.0.attn.to_q",
                           "lora_te3_encoder_block_0_layer_0_SelfAttention_k"],
    "PixArt": ["base_model.model.transformer_blocks.0.attn1.to_q", "transformer.transformer_blocks.0.attn1.to_q",
               "lora_unet_transformer_blocks_0_attn1_to_q"],
    "Wan": ["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_0_cross_attn_k"],
    "Stable Cascade": ["lora_prior_unet_down_blocks_0_1_channelwise"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(
            kind, name, marks=refused("LoRA", f"a LoRA for {kind}", "named, beside a text encoder's that fits too")
        )
        for kind, names in OTHERS.items()
        for name in names
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside_text", [False, True])
def test_lora_of_a_transformer_is_refused_by_name(tmp_path: Path, kind: str, name: str, *, beside_text: bool) -> None:
    text = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 32) if beside_text else {}
    file = tmp_path / "file.safetensors"
    save_file(text | pair(name, peft="." in name), file)
    with pytest.raises(InputError, match=f"for another architecture, .*{kind}"):
        lora.check_kind(file)


@refused("LoRA", "an image network's LoRA of which nothing fits, beside a text encoder's", "for another architecture")
def test_lora_of_an_unknown_image_network_is_refused_whole(tmp_path: Path) -> None:
    networks = tiny_models.sd().components
    networks = {name: networks[name] for name in ("unet", "text_encoder")}
    text = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 32)
    save_file(text | pair("lora_unet_layers_0_attention_qkv"), tmp_path / "file.safetensors")
    with pytest.raises(InputError, match=r"none of its 2 tensors for the image network \(lora_unet_layers_0"):
        lora.load_lora(networks, tmp_path / "file.safetensors", 1.0, lora.HubOptions())
    assert not has_loras(networks["text_encoder"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("modelspec.architecture", "flux-1-dev/lora"), ("ss_base_model_version", "sd3_m"),
     ("modelspec.architecture", "stable-diffusion-3-medium/lora"), ("ss_base_model_version", "kolors")],
)  # fmt: skip
def test_architecture_in_the_header_counts(unet, generator, tmp_path: Path, name: str, value: str) -> None:
    file = write(tmp_path, {LINEAR: low_rank(unet, generator)}, **{name: value})
    with pytest.raises(InputError, match=f"for another architecture, '{value}': expected SD 1.x, 2.x or SDXL"):
        add(unet, file)


@refused("LoRA", "a ControlNet or Control-LoRA given as `lora`", "named, with advice")
@pytest.mark.parametrize("mark", ["lora_controlnet", "controlnet_down_blocks.0.weight"])
def test_controlnet_given_as_a_lora_is_named(unet, tmp_path: Path, mark: str) -> None:
    weights = {"input_blocks.1.0.in_layers.2.up": torch.ones(8, 2), "conv_in.weight": torch.ones(8, 4, 3, 3)}
    save_file(weights | {mark: torch.ones(1)}, tmp_path / "file.safetensors")
    with pytest.raises(InputError, match=r"no file for `lora`. It looks like a Control.*pass this as `controlnet`"):
        add(unet, tmp_path / "file.safetensors")


# --- properties

KINDS = (locon, loha, full, lokr("whole", "product"), lokr("product", "product"))
CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda each: each[:0] if each.ndim else each.reshape(1)[:0],
    lambda each: each[..., :1] if each.ndim else each,
    lambda each: each.flatten(),
    lambda each: each.transpose(0, -1) if each.ndim else each,
    lambda each: each.to(torch.int8),
    lambda each: each * float("nan"),
    lambda each: each.double() * 1e200,
    lambda each: each.unsqueeze(0),
    lambda _: torch.tensor(2.0),
)
NAMES = ("lora_up.weight", "lora_A.weight", "hada_t1", "lokr_w1", "dora_scale", "diff", "diff_b", "alpha", "other")


@pytest.mark.slow
@given(data=st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_file_gives_finite_weights_or_one_line(unet, tmp_path: Path, data: st.DataObject) -> None:
    """A file is applied whole, or refused, or what is left out is counted in a warning."""
    network, generator = deepcopy(unet), Generator().manual_seed(0)
    roles, _ = data.draw(st.sampled_from(KINDS))(network.get_submodule(LINEAR).weight.shape, generator)
    for _ in range(data.draw(st.integers(1, 2))):
        if roles and (role := data.draw(st.sampled_from(["", *sorted(roles)]))):
            change = data.draw(st.sampled_from([None, *CHANGES]))
            roles = {name: each for name, each in roles.items() if name != role or change is not None}
            roles |= {} if change is None else {role: change(roles[role])}
        else:
            roles |= {data.draw(st.sampled_from(NAMES)): torch.ones(data.draw(st.sampled_from([(), (8,), (8, 8)])))}
    file = write(tmp_path, {LINEAR: roles})
    refusal = None
    try:
        add(network, file)
    except InputError as error:
        refusal = str(error)
    assert has_loras(network) == (refusal is None)
    if refusal is None:
        assert weight_of(network, LINEAR).isfinite().all()
    else:
        assert "\n" not in refusal and str(file) in refusal


@pytest.mark.slow
def test_adding_a_lora_later_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = kg.load(tiny_models.sd())
    text = pair("lora_te_text_model_encoder_layers_0_mlp_fc1", 32)
    save_file(text | {f"{kohya_name(LINEAR)}.diff": torch.ones(8, 8)}, tmp_path / "file.safetensors")
    capfd.readouterr()
    model.load_lora_weights(tmp_path / "file.safetensors")
    assert capfd.readouterr() == ("", "")
