"""Kinds of LoRA files: each changes a U-Net's weights by its formula, taken in float64, and is taken off again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from math import sqrt
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from cases import tiny_models
from format_rows import loads, refused
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from kineograph.errors import InputError, InputWarning
from kineograph.models.formats import lora, lora_kinds
from kineograph.models.lora_layers import has_loras, lora_names, remove_loras

pytestmark = pytest.mark.slow
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 8 x 8
WIDE = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"  # 128 x 16
CONV = "up_blocks.1.resnets.0.conv1"  # 16 x 32 x 3 x 3
POINT = "down_blocks.1.resnets.0.conv_shortcut"  # 16 x 8 x 1 x 1
NORM = "down_blocks.0.resnets.0.norm1"
LAYERS = (LINEAR, WIDE, CONV, POINT)
ALPHA, SCALE = 1.5, 0.6
Roles = dict[str, Tensor]  # tensors of a layer by the ends of their names


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def shared() -> nn.Module:
    torch.manual_seed(0)
    network = tiny_models.unet().eval()
    tiny = Generator().manual_seed(1)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=tiny)
    return network


@pytest.fixture
def unet(shared: nn.Module) -> nn.Module:
    return deepcopy(shared)


@pytest.fixture
def generator() -> Generator:
    return Generator().manual_seed(2)


def kohya_name(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


def write(folder: Path, layers: dict[str, Roles], name: Callable[[str], str] = kohya_name, **metadata: str) -> Path:
    """Write a file with the tensors of these layers."""
    file = folder / "file.safetensors"
    tensors = {f"{name(path)}.{end}": each for path, roles in layers.items() for end, each in roles.items()}
    save_file({key: each.clone().contiguous() for key, each in tensors.items()}, file, metadata)
    return file


def add(unet: nn.Module, file: Path, scale: float = 1.0) -> None:
    lora.add_lora(file, lora.tensor_files.read_tensors(file), {"unet": unet}, scale)


def weight_of(network: nn.Module, path: str) -> Tensor:
    """Return a layer's weight with its LoRAs, in float64."""
    layer = network.get_submodule(path)
    weight = layer.weight.double()
    if isinstance(layer, LoraLayer):
        for name in layer.active_adapters:
            weight = weight + layer.get_delta_weight(name).double()
    return weight


# --- the kinds, by their formulas


def normal(generator: Generator, *shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=generator)


def flat(shape: torch.Size) -> tuple[int, int]:
    return shape[0], shape[1:].numel()


def locon(shape: torch.Size, generator: Generator) -> tuple[Roles, Tensor]:
    down, up = normal(generator, 3, *shape[1:]), normal(generator, shape[0], 3, *[1] * (len(shape) - 2))
    change = ALPHA / 3 * (up.double().flatten(1) @ down.double().flatten(1))
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}, change


def tucker(shape: torch.Size, generator: Generator) -> tuple[Roles, Tensor]:
    ones = [1] * (len(shape) - 2)
    down, up = normal(generator, 3, shape[1], *ones), normal(generator, shape[0], 3, *ones)
    mid = normal(generator, 3, 3, *shape[2:])
    change = torch.einsum("oi,ij...,jk->ok...", *(each.double() for each in (up.flatten(1), mid, down.flatten(1))))
    roles = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}
    return roles, ALPHA / 3 * change


def loha(shape: torch.Size, generator: Generator) -> tuple[Roles, Tensor]:
    rows, columns = flat(shape)
    roles = {
        f"hada_w{n}_{side}": normal(generator, *size)
        for n in (1, 2)
        for side, size in (("a", (rows, 2)), ("b", (2, columns)))
    }
    one, other = (roles[f"hada_w{n}_a"].double() @ roles[f"hada_w{n}_b"].double() for n in (1, 2))
    return roles | {"alpha": torch.tensor(ALPHA)}, ALPHA / 2 * one * other


def loha_tucker(shape: torch.Size, generator: Generator) -> tuple[Roles, Tensor]:
    roles = {}
    for n in (1, 2):
        roles |= {f"hada_t{n}": normal(generator, 2, 2, *shape[2:])}
        roles |= {f"hada_w{n}_a": normal(generator, 2, shape[0]), f"hada_w{n}_b": normal(generator, 2, shape[1])}
    one, other = (
        torch.einsum(
            "ij...,io,jk->ok...", *(roles[name].double() for name in (f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b"))
        )
        for n in (1, 2)
    )
    return roles | {"alpha": torch.tensor(ALPHA)}, ALPHA / 2 * one * other


def lokr(first: str, second: str) -> Callable[[torch.Size, Generator], tuple[Roles, Tensor]]:
    """Return the maker of a LoKr whose factors are whole, products or (the second one) Tucker-decomposed."""

    def make(shape: torch.Size, generator: Generator) -> tuple[Roles, Tensor]:
        one, roles_1 = _factor("lokr_w1", first, (4, 2), generator)
        other, roles_2 = _factor("lokr_w2", second, (shape[0] // 4, shape[1] // 2, *shape[2:]), generator)
        # blocks: row of w1, row of w2; column of w1, column of w2; kernel
        change = torch.einsum("ac,bdk->abcdk", one.flatten(1), other.reshape(*other.shape[:2], -1)).reshape(flat(shape))
        whole = first == second == "whole"
        return roles_1 | roles_2 | {"alpha": torch.tensor(ALPHA)}, (1.0 if whole else ALPHA / 2) * change

    return make


def _factor(name: str, kind: str, shape: tuple[int, ...], generator: Generator) -> tuple[Tensor, Roles]:
    rows, columns, *kernel = shape
    if kind == "whole":
        whole = normal(generator, *shape)
        return whole.double(), {name: whole}
    if kind == "product":
        a, b = normal(generator, rows, 2), normal(generator, 2, columns * torch.Size(kernel).numel())
        return (a.double() @ b.double()).reshape(shape), {f"{name}_a": a, f"{name}_b": b}
    core, a, b = normal(generator, 2, 2, *kernel), normal(generator, 2, rows), normal(generator, 2, columns)
    value = torch.einsum("ij...,io,jk->ok...", core.double(), a.double(), b.double())
    return value, {f"{name[:-2]}t{name[-1]}": core, f"{name}_a": a, f"{name}_b": b}


def full(shape: torch.Size, generator: Generator) -> tuple[Roles, Tensor]:
    change = normal(generator, *shape)
    return {"diff": change}, change.double()


KINDS = {
    "LoRA and LoCon: `lora_down`, `lora_up`, `alpha`": (locon, LAYERS),
    "LoCon with `lora_mid` (Tucker decomposition)": (tucker, (CONV,)),
    "LoHa: `hada_w1_a` ... `hada_w2_b`": (loha, LAYERS),
    "LoHa with `hada_t1`, `hada_t2`": (loha_tucker, (CONV,)),
    "LoKr: `lokr_w1`, `lokr_w2` (alpha does not count)": (lokr("whole", "whole"), LAYERS),
    "LoKr: `lokr_w1`, `lokr_w2_a`, `lokr_w2_b`": (lokr("whole", "product"), LAYERS),
    "LoKr: `lokr_w1_a`, `lokr_w1_b`, `lokr_w2`": (lokr("product", "whole"), LAYERS),
    "LoKr: `lokr_w1_a`, `lokr_w1_b`, `lokr_w2_a`, `lokr_w2_b`": (lokr("product", "product"), LAYERS),
    "LoKr with `lokr_t2`": (lokr("whole", "tucker"), (CONV,)),
    "Differences of whole weights: `diff`": (full, LAYERS),
}


def cases(name: str) -> Iterator[ParameterSet]:
    """Yield the cases of a kind, with their row of docs/formats.md."""
    kind, paths = KINDS[name]
    row = loads("LoRA", name, within=1e-6, reference="the formula")
    return (pytest.param(kind, path, marks=row, id=f"{name.split(':')[0]}-{path}") for path in paths)


@pytest.mark.parametrize(("kind", "path"), [case for name in KINDS for case in cases(name)])
def test_kind_changes_the_weight_by_its_formula(unet, generator, tmp_path, within, kind, path) -> None:
    before = unet.get_submodule(path).weight
    roles, change = kind(before.shape, generator)
    add(unet, write(tmp_path, {path: roles}), SCALE)
    expected = before.double() + SCALE * change.reshape(before.shape)
    assert (weight_of(unet, path) - expected).abs().max() < within
    assert (expected - before).abs().max() > 1e-3
    assert lora_names(unet) == ["file"] and has_loras(unet)
    remove_loras({"unet": unet})
    assert unet.get_submodule(path).weight is before and not has_loras(unet)


BY_OUTPUT = (
    "DoRA by output: `dora_scale` of shape out x 1 (x 1 x 1); the norm is that of the weight with the LoRA at its scale"
)
BY_INPUT = "DoRA by input: `dora_scale` of shape 1 x in (x 1 x 1), LyCORIS without `wd_on_output`"


@loads("LoRA", BY_OUTPUT, within=1e-6, reference="the formula")
@pytest.mark.parametrize("kind", [locon, loha, lokr("whole", "product"), full])
@pytest.mark.parametrize("path", LAYERS)
def test_dora_by_output(unet, generator, tmp_path, within, kind, path) -> None:
    _assert_dora(unet, generator, tmp_path, within, kind, path, 0)


@loads("LoRA", BY_INPUT, within=1e-6, reference="the formula")
@pytest.mark.parametrize("kind", [locon, tucker, loha, lokr("whole", "product"), full])
@pytest.mark.parametrize("path", LAYERS)
def test_dora_by_input(unet, generator, tmp_path, within, kind, path) -> None:
    if kind is not tucker or path == CONV:
        _assert_dora(unet, generator, tmp_path, within, kind, path, 1)


def _assert_dora(unet, generator, tmp_path, within, kind, path, axis) -> None:
    before = unet.get_submodule(path).weight
    roles, change = kind(before.shape, generator)
    others = [n for n in range(before.ndim) if n != axis]
    magnitude = torch.linalg.vector_norm(before, dim=others, keepdim=True) * (
        1 + torch.rand(before.shape[axis], generator=generator)
    ).reshape([-1 if n == axis else 1 for n in range(before.ndim)])
    add(unet, write(tmp_path, {path: roles | {"dora_scale": magnitude}}), SCALE)
    moved = before.double() + SCALE * change.reshape(before.shape)
    expected = magnitude.double() * moved / torch.linalg.vector_norm(moved, dim=others, keepdim=True)
    assert (weight_of(unet, path) - expected).abs().max() < within
    remove_loras({"unet": unet})
    assert unet.get_submodule(path).weight is before


@loads("LoRA", "biases: `diff_b`, `lora_up.bias`", within=1e-6, reference="the formula")
@pytest.mark.parametrize("path", LAYERS)
def test_biases(unet, generator, tmp_path, within, path) -> None:
    """A layer without bias (to_q) gets one."""
    layer = unet.get_submodule(path)
    before = layer.bias
    one, other = (normal(generator, len(layer.weight)) for _ in range(2))
    roles, change = locon(layer.weight.shape, generator)
    weight = layer.weight.double() + SCALE * change.reshape(layer.weight.shape)
    add(unet, write(tmp_path, {path: roles | {"diff_b": one, "lora_up.bias": other}}), SCALE)
    expected = SCALE * (one.double() + ALPHA / 3 * other.double()) + (0 if before is None else before.double())
    assert (unet.get_submodule(path).bias - expected).abs().max() < within
    assert (weight_of(unet, path) - weight).abs().max() < within
    remove_loras({"unet": unet})
    assert unet.get_submodule(path).bias is before


@loads("LoRA", "norms: `w_norm`, `b_norm`; `diff`, `diff_b` too", within=1e-6, reference="the formula")
@pytest.mark.parametrize("names", [("w_norm", "b_norm"), ("diff", "diff_b")])
@pytest.mark.parametrize("path", [NORM, "conv_norm_out", "mid_block.attentions.0.transformer_blocks.0.norm2"])
def test_norms(unet, generator, tmp_path, within, names, path) -> None:
    layer = unet.get_submodule(path)
    before = layer.weight, layer.bias
    changes = [normal(generator, len(layer.weight)) for _ in names]
    add(unet, write(tmp_path, {path: dict(zip(names, changes, strict=True))}), SCALE)
    for after, old, change in zip((layer.weight, layer.bias), before, changes, strict=True):
        assert (after - (old.double() + SCALE * change.double())).abs().max() < within
    remove_loras({"unet": unet})
    assert (layer.weight, layer.bias) == before


# --- several together


def test_several_files_add_up_in_any_order(shared, generator, tmp_path) -> None:
    """Each changes the original weight, DoRA too; a scale of 0 changes nothing."""
    files = []
    for number, kind in enumerate((locon, loha, lokr("whole", "product"), full)):
        (tmp_path / str(number)).mkdir()
        roles, _ = kind(shared.get_submodule(LINEAR).weight.shape, generator)
        if kind is loha:
            roles["dora_scale"] = torch.full((8, 1), 0.7)
        files.append(write(tmp_path / str(number), {LINEAR: roles}))
    results = []
    for order in (files, files[::-1]):
        unet = deepcopy(shared)
        for file in order:
            add(unet, file, 0.5)
        results.append(weight_of(unet, LINEAR))
        assert sorted(lora_names(unet)) == ["file", "file_2", "file_3", "file_4"]
        remove_loras({"unet": unet})
        assert torch.equal(unet.get_submodule(LINEAR).weight, shared.get_submodule(LINEAR).weight)
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
    silent = deepcopy(shared)
    for file in (files[0], files[2], files[3]):
        add(silent, file, 0.0)
    assert torch.equal(weight_of(silent, LINEAR), shared.get_submodule(LINEAR).weight.double())


def test_change_survives_a_move_and_is_taken_off_after_it(unet, generator, tmp_path) -> None:
    before = unet.get_submodule(CONV).weight.clone()
    add(unet, write(tmp_path, {CONV: loha(before.shape, generator)[0]}))
    state = set(unet.state_dict())
    unet.to(torch.bfloat16)
    assert set(unet.state_dict()) == state == set(tiny_models.unet().state_dict())
    remove_loras({"unet": unet})
    assert torch.equal(unet.get_submodule(CONV).weight, before.bfloat16())


# --- files of peft


@pytest.fixture
def peft_file(shared, tmp_path) -> Callable:
    """Save an adapter of peft's with random weights; return the network that has it, and the folder."""

    def save(config) -> tuple[PeftModel, Path]:
        torch.manual_seed(5)
        network = get_peft_model(deepcopy(shared), config)
        for name, weight in network.named_parameters():
            if weight.requires_grad:
                magnitude = "magnitude" in name
                weight.copy_(weight * (1 + torch.rand_like(weight)) if magnitude else 0.3 * torch.randn_like(weight))
        network.save_pretrained(tmp_path / "saved")
        return network.eval(), tmp_path / "saved"

    return save


ATTENTION = ["to_q", "to_k", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv_shortcut"]
PATTERNS = {"rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"attn2.to_k": 7}}
PLAIN = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
PEFT = {
    "peft: LoRA, `rank_pattern`, `alpha_pattern`": LoraConfig(
        target_modules=ATTENTION + CONVOLUTIONS, **PLAIN, **PATTERNS
    ),
    "peft: rsLoRA (`use_rslora`)": LoraConfig(target_modules=ATTENTION, use_rslora=True, **PLAIN, **PATTERNS),
    "peft: DoRA (`lora_magnitude_vector`)": LoraConfig(target_modules=ATTENTION, use_dora=True, **PLAIN),
    "peft: DoRA of convolutions": LoraConfig(target_modules=CONVOLUTIONS, use_dora=True, **PLAIN),
    "peft: biases (`lora_B.bias`)": LoraConfig(target_modules=["to_out.0", *CONVOLUTIONS], lora_bias=True, **PLAIN),
    "peft: LoHa": LoHaConfig(r=4, alpha=6, target_modules=ATTENTION + CONVOLUTIONS, init_weights=False, **PATTERNS),
    "peft: LoHa, `use_effective_conv2d`": LoHaConfig(
        r=4, alpha=6, target_modules=CONVOLUTIONS, init_weights=False, use_effective_conv2d=True
    ),
    "peft: LoKr": LoKrConfig(r=2, alpha=3, target_modules=ATTENTION + CONVOLUTIONS, init_weights=False, **PATTERNS),
    "peft: LoKr, `decompose_both`": LoKrConfig(
        r=1, alpha=3, target_modules=ATTENTION, init_weights=False, decompose_both=True
    ),
    "peft: LoKr, `use_effective_conv2d`": LoKrConfig(
        r=1, alpha=3, target_modules=CONVOLUTIONS, init_weights=False, use_effective_conv2d=True
    ),
    "peft: LoKr of whole matrices, which peft multiplies by alpha / r": LoKrConfig(
        r=16, alpha=3, target_modules=ATTENTION, init_weights=False
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [pytest.param(PEFT[name], marks=loads("LoRA", name, within=1e-5, reference="peft"), id=name) for name in PEFT],
)
@pytest.mark.filterwarnings("ignore")
def test_adapter_of_peft(unet, peft_file, within, config) -> None:
    network, folder = peft_file(config)
    plain = tiny_models.unet_output(unet)
    lora.load_lora({"unet": unet}, folder, 1.0, lora.HubOptions())
    theirs = tiny_models.unet_output(network.base_model.model)
    assert tiny_models.far(tiny_models.unet_output(unet), theirs) < within
    assert tiny_models.far(plain, theirs) > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [ATTENTION, CONVOLUTIONS])
def test_dora_at_another_scale_is_as_in_peft(unet, peft_file, targets) -> None:
    network, folder = peft_file(LoraConfig(target_modules=targets, use_dora=True, **PLAIN))
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 0.4)
    lora.load_lora({"unet": unet}, folder, 0.4, lora.HubOptions())
    ours, theirs = tiny_models.unet_output(unet), tiny_models.unet_output(network.base_model.model)
    assert tiny_models.far(ours, theirs) < 1e-5


# --- what is refused

EXAMPLES = {
    "OFT or BOFT": ["oft_blocks", "oft_R.weight", "oft_diag", "boft_R"],
    "GLoRA": ["a1.weight", "b2.weight"],
    "(IA)^3": ["on_input", "ia3_l"],
    "DyLoRA in training": ["up_list.0", "down_list.3"],
    "AdaLoRA": ["lora_E", "ranknum"],
    "VeRA": ["vera_lambda_b"],
    "weights of ComfyUI": ["set_weight", "reshape_weight"],
    "a sparse residual of LyCORIS": ["bias_indices", "bias_values", "bias_size"],
    "a LoRA of cloneofsimo's scripts": [],
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=refused("LoRA", kind.name, kind.reason), id=kind.name)
        for kind in lora_kinds.UNSUPPORTED
    ],
)
def test_other_kind_is_refused_by_name_with_all_of_its_file(unet, generator, tmp_path, kind) -> None:
    fitting, _ = locon(unet.get_submodule(LINEAR).weight.shape, generator)
    names = [f"{kohya_name(WIDE)}.{end}" for end in EXAMPLES[kind.name]] or ["unet:0:up", "text_encoder:12:down"]
    for name in names:
        file = write(tmp_path, {LINEAR: fitting})
        tensors = lora.tensor_files.read_tensors(file) | {name: torch.ones(2, 2)}
        with pytest.raises(InputError) as caught:
            lora.add_lora(file, tensors, {"unet": unet}, 1.0)
        assert kind.name in str(caught.value) and kind.reason in str(caught.value) and name in str(caught.value)
    assert not has_loras(unet)


@refused("LoRA", "other kinds of peft, by `peft_type`", "peft's LoRA, LoHa and LoKr are supported")
@pytest.mark.parametrize("kind", ["OFT", "BOFT", "VERA", "XLORA", "HRA", "FOURIERFT"])
def test_other_kinds_of_peft_are_refused(unet, generator, tmp_path, kind) -> None:
    _assert_refused_by_settings(unet, generator, tmp_path, {"peft_type": kind}, kind)


@refused(
    "LoRA", "PiSSA, OLoRA, CorDA, LoftQ", "they changed the network's own weights too; peft saves them as plain LoRAs"
)
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_initialisations_that_change_the_network_are_refused(unet, generator, tmp_path, start) -> None:
    _assert_refused_by_settings(unet, generator, tmp_path, {"init_lora_weights": start}, start)


def _assert_refused_by_settings(unet, generator, tmp_path, settings, word) -> None:
    roles, _ = locon(unet.get_submodule(LINEAR).weight.shape, generator)
    file = write(tmp_path, {LINEAR: roles}, lambda path: f"base_model.model.{path}")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=word):
        add(unet, file)
    (tmp_path / "adapter_config.json").unlink()
    header = json.dumps({f"unet.{name}": value for name, value in settings.items()})
    with pytest.raises(InputError, match=word):
        add(unet, write(tmp_path, {LINEAR: roles}, lambda path: f"unet.{path}", lora_adapter_metadata=header))
    assert not has_loras(unet)


@refused("LoRA", "whole weights: a checkpoint, or peft's `modules_to_save`", "a LoRA holds changes of weights")
def test_whole_weights_are_refused(unet, generator, tmp_path) -> None:
    fitting, _ = locon(unet.get_submodule(LINEAR).weight.shape, generator)
    whole = {"weight": torch.ones(3), "bias": torch.ones(3)}
    with pytest.raises(InputError, match="whole weights of 2 layers"):
        add(unet, write(tmp_path, {LINEAR: fitting, "conv_out": whole}, lambda path: f"base_model.model.{path}"))


@refused("LoRA", "tensors of an unknown kind on a layer of the model", "they could change the result")
@pytest.mark.parametrize("name", [kohya_name, lambda path: f"unet.{path}", lambda path: f"diffusion_model.{path}"])
def test_unknown_kind_on_a_known_layer_is_refused(unet, generator, tmp_path, name) -> None:
    fitting, _ = locon(unet.get_submodule(LINEAR).weight.shape, generator)
    with pytest.raises(InputError, match=r"of a kind that is not known: .*mystery"):
        add(unet, write(tmp_path, {LINEAR: fitting, CONV: {"mystery": torch.ones(2)}}, name))
    assert not has_loras(unet)


@refused("LoRA", "the same part of a layer by two names", "one of them would be lost")
def test_layer_by_two_names_is_refused(unet, generator, tmp_path) -> None:
    roles, _ = locon(unet.get_submodule(LINEAR).weight.shape, generator)
    tensors = {f"{name}.{end}": each for name in (kohya_name(LINEAR), f"unet.{LINEAR}") for end, each in roles.items()}
    save_file({name: each.clone() for name, each in tensors.items()}, tmp_path / "file.safetensors")
    with pytest.raises(InputError, match="several tensors for the same part"):
        add(unet, tmp_path / "file.safetensors")


@refused("LoRA", "layers that lack a tensor, or hold NaN", "the file is damaged, or its training diverged")
@pytest.mark.parametrize("kind", [locon, loha, lokr("product", "product")])
def test_incomplete_layers_are_refused(unet, generator, tmp_path, kind) -> None:
    roles, _ = kind(unet.get_submodule(LINEAR).weight.shape, generator)
    for missing in [name for name in roles if name != "alpha"]:
        with pytest.raises(InputError, match="damaged"):
            add(unet, write(tmp_path, {LINEAR: {name: each for name, each in roles.items() if name != missing}}))
    for given in ("alpha", "dora_scale"):
        with pytest.raises(InputError, match="damaged"):
            add(unet, write(tmp_path, {LINEAR: {given: torch.tensor(1.0)}}))
    broken = {name: each * float("nan") for name, each in roles.items()}
    with pytest.raises(InputError, match="no numbers"):
        add(unet, write(tmp_path, {LINEAR: broken}))
    assert not has_loras(unet)


@pytest.mark.parametrize("kind", [locon, loha, lokr("whole", "whole"), full])
def test_shapes_of_another_architecture_are_refused(unet, generator, tmp_path, kind) -> None:
    fitting, _ = locon(unet.get_submodule(WIDE).weight.shape, generator)
    roles, _ = kind(torch.Size((16, 24)), generator)
    with pytest.raises(InputError, match="another architecture"):
        add(unet, write(tmp_path, {WIDE: fitting, LINEAR: roles}))
    with pytest.raises(InputError, match="another architecture"):
        add(unet, write(tmp_path, {WIDE: fitting | {"dora_scale": torch.ones(5, 1)}}))
    with pytest.raises(InputError, match="another architecture"):
        add(unet, write(tmp_path, {WIDE: fitting | {"diff_b": torch.ones(5)}}))
    assert not has_loras(unet)


@pytest.mark.parametrize("name", ["ss_base_model_version", "modelspec.architecture"])
def test_family_in_the_header_counts(unet, generator, tmp_path, name) -> None:
    roles, _ = locon(unet.get_submodule(LINEAR).weight.shape, generator)
    values = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    with pytest.raises(InputError, match="another architecture: for s"):
        add(unet, write(tmp_path, {LINEAR: roles}, **{name: values[name]}))
    add(unet, write(tmp_path, {LINEAR: roles}, **{name: values[name].replace("sdxl_base", "sd").replace("-xl", "")}))


def test_offloaded_and_quantised_layers_are_not_changed_in_place(unet, generator, tmp_path) -> None:
    roles, _ = loha(unet.get_submodule(LINEAR).weight.shape, generator)
    file = write(tmp_path, {LINEAR: roles})
    unet.get_submodule(LINEAR)._hf_hook = object()
    with pytest.raises(InputError, match="offloaded"):
        add(unet, file)
    del unet.get_submodule(LINEAR)._hf_hook
    whole = torch.ones(8, 8, dtype=torch.int8)
    unet.get_submodule(LINEAR).weight = nn.Parameter(whole, requires_grad=False)
    with pytest.raises(InputError, match="quantised"):
        add(unet, file)


# --- what is left out


@loads("LoRA", "textual inversions bundled by OneTrainer (`bundle_emb`): left out with a warning")
def test_warning_counts_what_is_left_out_and_says_why(unet, generator, tmp_path) -> None:
    roles, _ = loha(unet.get_submodule(LINEAR).weight.shape, generator)
    tensors = lora.tensor_files.read_tensors(write(tmp_path, {LINEAR: roles}))
    tensors |= {"lora_te_text_model_x.lora_up.weight": torch.ones(1, 1), "bundle_emb.dog.clip_l": torch.ones(1, 1)}
    with pytest.warns(InputWarning) as caught:
        lora.add_lora(tmp_path / "file.safetensors", tensors, {"unet": unet}, 1.0)
    said = str(caught[0].message)
    assert "2 of 7 tensors are left out: 1 belong to no layer of this model (lora_te_text_model_x" in said
    assert "1 are textual inversions (dog), which `textual_inversion` takes" in said


def test_alpha_of_a_pickled_file_may_be_a_plain_number(unet, generator, tmp_path) -> None:
    roles, change = locon(unet.get_submodule(LINEAR).weight.shape, generator)
    expected = unet.get_submodule(LINEAR).weight.double() + change
    tensors = {f"{kohya_name(LINEAR)}.{end}": each.item() if end == "alpha" else each for end, each in roles.items()}
    torch.save(tensors, tmp_path / "lora.pt")
    add(unet, tmp_path / "lora.pt")
    torch.testing.assert_close(weight_of(unet, LINEAR), expected, rtol=0, atol=1e-6)


def test_rank_stabilisation_by_hand(unet, tmp_path) -> None:
    roles = {"lora_A.weight": torch.ones(4, 8), "lora_B.weight": torch.ones(8, 4)}
    header = '{"unet.r": 4, "unet.lora_alpha": 3, "unet.use_rslora": true}'
    before = unet.get_submodule(LINEAR).weight.double()
    add(unet, write(tmp_path, {LINEAR: roles}, lambda path: f"unet.{path}", lora_adapter_metadata=header))
    torch.testing.assert_close(weight_of(unet, LINEAR) - before, torch.full((8, 8), 4 * 3 / sqrt(4)).double())
