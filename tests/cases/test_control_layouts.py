"""T2I-Adapters, Control-LoRAs and other layouts of ControlNets compute what diffusers or the definition does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases.public_layouts import Weights, load, normal, sd, sdxl, shake
from cases.test_adapter_layouts import controlnet, original, original_name, uniform, write_pth, write_safetensors
from cases.tiny_models import far
from diffusers import ControlNetModel, ControlNetUnionModel, ControlNetXSAdapter, StableDiffusionPipeline, T2IAdapter
from format_rows import loads, refused
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import kineograph as kg
from kineograph.models.conditioning.condition import Condition
from kineograph.models.formats import key_map, ldm
from kineograph.models.unet.t2i_adapter import bind_t2i_adapter

CLOSE, SIDE = 1e-4, 128
LATENTS, T = normal(1, 2, 4, 16, 16, seed=3), 501.0
MAPS = uniform(2, 3, SIDE, SIDE)
Make = Callable[[], StableDiffusionPipeline]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- T2I-Adapters


class Kind(NamedTuple):
    """A kind of T2I-Adapter, for a model."""

    make: Make
    channels: list[int]
    blocks: int = 2
    in_channels: int = 3


KINDS = {
    "full_adapter": Kind(sd, [32, 64, 64, 64]),
    "light_adapter": Kind(sd, [32, 64, 64], blocks=3),
    "full_adapter_xl": Kind(sdxl, [32, 64, 64, 64]),
    "full_adapter, 1 channel": Kind(sd, [32, 64, 64, 64], blocks=1, in_channels=1),
}


def adapter(name: str) -> T2IAdapter:
    kind, of_type = KINDS[name], name.partition(",")[0]
    torch.manual_seed(3)
    made = T2IAdapter(
        kind.in_channels, kind.channels, kind.blocks, 16 if of_type == "full_adapter_xl" else 8, of_type
    ).eval()  # fmt: skip
    shake(made)
    return made


def as_folder(folder: Path, made: T2IAdapter) -> Path:
    made.save_pretrained(folder / "t2i")
    return folder / "t2i"


def as_file(folder: Path, made: T2IAdapter) -> Path:
    return write_safetensors(folder, {name: each.clone() for name, each in made.state_dict().items()})


def released_name(name: str, blocks: int, *, light: bool) -> str:
    """Return the name in TencentARC's files of a tensor of diffusers' T2IAdapter."""
    part, *path = name.removeprefix("adapter.").split(".")
    if part != "body":
        return ".".join((part, *path))
    level, inner, *rest = path
    if light:
        return ".".join(("body", level, "body" if inner == "resnets" else inner, *rest))
    if inner == "resnets":
        return f"body.{int(level) * blocks + int(rest[0])}.{'.'.join(rest[1:])}"
    return f"body.{int(level) * blocks}.{inner}.{'.'.join(rest)}"


def as_released(folder: Path, made: T2IAdapter) -> Path:
    blocks, light = made.config.num_res_blocks, made.config.adapter_type == "light_adapter"
    return write_pth(
        folder, {released_name(name, blocks, light=light): each for name, each in made.state_dict().items()}
    )


def t2i_rows(name: str) -> Any:
    return loads("ControlNet", f"T2I-Adapter, `{name}`: folder, file, original layout", within=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=t2i_rows(name)) for name in KINDS])
def test_t2i_adapter_computes_what_diffusers_does(work: Path, name: str, within: float) -> None:
    make, made = KINDS[name].make, adapter(name)
    pipeline = make()
    grey = (MAPS * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    features = [0.7 * each for each in made(MAPS if KINDS[name].in_channels == 3 else grey)]
    theirs = None
    for write in (as_folder, as_file, as_released):
        model = load(make(), controlnet={"canny": write(work, made)})
        cond = model.prompt(["a fish"])
        if theirs is None:
            theirs = of_diffusers(pipeline, cond, features)
        bound = replace(cond, residuals=bind_t2i_adapter(model.control("canny").embed(MAPS), scale=0.7))
        assert far(model.net(LATENTS, T, bound)[0], theirs) < within
    assert far(model.net(LATENTS, T, cond)[0], theirs) > 0.1


def of_diffusers(pipeline: StableDiffusionPipeline, cond: kg.Condition, features: list[Tensor]) -> Tensor:
    added = None
    if cond.embedding is not None:
        sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
        added = {"text_embeds": cond.embedding[:, :32].repeat(2, 1), "time_ids": sizes.repeat(2, 1)}
    return pipeline.unet(
        LATENTS[0], int(T), cond.tokens.repeat(2, 1, 1), added_cond_kwargs=added,
        down_intrablock_additional_residuals=[each.clone() for each in features],
    ).sample  # fmt: skip


@refused("ControlNet", "a T2I-Adapter of another architecture", "its features do not fit the U-Net's blocks")
@pytest.mark.parametrize(("make", "name"), [(sdxl, "full_adapter"), (sd, "full_adapter_xl"), (sdxl, "light_adapter")])
def test_t2i_adapter_of_another_architecture_is_refused(make: Make, name: str) -> None:
    with pytest.raises(kg.InputError, match="T2I-Adapter is for another architecture: its features have 32, 64, 64"):
        load(make(), controlnet=adapter(name))


def test_size_that_an_adapter_cannot_divide_is_refused() -> None:
    net = load(sdxl(), controlnet=adapter("full_adapter_xl")).control("x")
    with pytest.raises(kg.InputError, match="multiples of 16, not 104 x 128"):
        net.embed(MAPS[:, :, :104])


@given(name=st.sampled_from(sorted(KINDS)))
def test_key_map_of_t2i_adapters_gives_the_file_back(name: str) -> None:
    made = adapter(name)
    exported = key_map.export_tensors(made.state_dict(), names := ldm.t2i_adapter_key_map(made))
    key_map.load_tensors(other := adapter(name), exported, names, "")
    assert all(torch.equal(each, other.state_dict()[key]) for key, each in made.state_dict().items())


# --- ControlNets


def residuals(model: kg.Model) -> list[Tensor]:
    control, cond = model.control("canny"), model.prompt(["a fish"])
    skips, middle = control(LATENTS, torch.tensor(T), cond, control.embed(MAPS))
    return [*skips, middle]


def far_apart(model: kg.Model, network: ControlNetModel, make: Make) -> float:
    wanted = residuals(load(make(), controlnet=network))
    return max(far(got, each) for got, each in zip(residuals(model), wanted, strict=True))


def unet_weights(make: Make, network: ControlNetModel) -> Weights:
    """Return the U-Net's weights that a ControlNet begins with, by the names of the original layout."""
    own = make().unet.state_dict()
    return {original_name(name, network): own[name] for name in network.state_dict() if name in own}


def control_lora(make: Make) -> tuple[Weights, ControlNetModel]:
    """Return a Control-LoRA, and the ControlNet that it stands for."""
    network = controlnet(make().unet)
    base, file, merged = unet_weights(make, network), dict[str, Tensor](), dict[str, Tensor]()
    for seed, (name, weight) in enumerate(original(network, "").items()):
        if name in base and name.endswith(".weight") and weight.ndim > 1 and "0.0" not in name:
            layer = name.removesuffix(".weight")
            down, up = 0.1 * normal(2, *weight.shape[1:], seed=seed), 0.1 * normal(len(weight), 2, seed=seed + 1)
            file |= {f"{layer}.down": down, f"{layer}.up": up.view(-1, 2, *[1] * (weight.ndim - 2))}
            merged[name] = base[name] + (up @ down.flatten(1)).view(weight.shape)
        elif name not in base or seed % 3:  # others are left out: the U-Net's own
            file[name] = merged[name] = weight
        else:
            merged[name] = base[name]
    names = {name: original_name(name, network) for name in network.state_dict()}
    network.load_state_dict({name: merged[key] for name, key in names.items()})
    return file | {"lora_controlnet": torch.zeros(1)}, network


@pytest.mark.slow
@pytest.mark.parametrize("make", [sd, sdxl])
@loads("ControlNet", "Control-LoRA", within=CLOSE, reference="the definition")
def test_control_lora_computes_what_its_sum_with_the_unet_does(work: Path, make: Make, within: float) -> None:
    file, network = control_lora(make)
    model = load(make(), controlnet={"canny": write_safetensors(work, file)})
    assert far_apart(model, network, make) < within


@loads("ControlNet", "Control-LoRA beside LoRAs of all kinds: made from the U-Net without them", within=0,
       reference="that without LoRAs, in both orders")  # fmt: skip
@pytest.mark.parametrize("kind", ["lora_down", "dora_scale", "diff"])
@pytest.mark.slow
def test_control_lora_is_made_from_the_unet_without_loras(work: Path, kind: str, within: float) -> None:
    file, _ = control_lora(sd)
    control = {"canny": write_safetensors(work, file)}
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = sd().unet.get_submodule(layer).weight
    roles = {"lora_down.weight": normal(2, weight.shape[1], seed=1), "lora_up.weight": normal(len(weight), 2, seed=2)}
    roles |= {"dora_scale": weight.norm(dim=1, keepdim=True)} if kind == "dora_scale" else {}
    roles = {"diff": normal(*weight.shape, seed=3), "diff_b": torch.ones(len(weight))} if kind == "diff" else roles
    lora = work / "lora.safetensors"
    save_file({f"lora_unet_{layer.replace('.', '_')}.{role}": each for role, each in roles.items()}, lora)
    plain, together = load(sd(), controlnet=control), load(sd(), controlnet=control, lora=lora)
    of_plain, *others = (each.control("canny").controlnet.state_dict() for each in (plain, together))
    for own in others:
        assert max(far(own[name], each) for name, each in of_plain.items()) == within
    cond = Condition(normal(1, 7, 32, seed=4))
    afterwards = plain.load_lora_weights(lora)
    assert torch.equal(together.net(LATENTS, T, cond), afterwards.net(LATENTS, T, cond))


@pytest.mark.slow
@loads("ControlNet", "difference to the U-Net (key `difference`)", within=CLOSE, reference="the definition")
def test_difference_computes_what_its_sum_with_the_unet_does(work: Path, within: float) -> None:
    network = controlnet(sd().unet)
    base = unet_weights(sd, network)
    file = {name: weight - base.get(name, 0) for name, weight in original(network, "").items()}
    marked = {f"control_model.{name}": each for name, each in file.items()} | {"difference": torch.zeros(1)}
    model = load(sd(), controlnet={"canny": write_safetensors(work, marked)})
    assert far_apart(model, network, sd) < within


@pytest.mark.slow
@loads("ControlNet", "beside a whole checkpoint in one file (`control_sd15_*.pth`)", within=0)
def test_controlnet_beside_a_checkpoint_loads(work: Path, within: float) -> None:
    network = controlnet(sd().unet)
    others = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1), "first_stage_model.x": torch.zeros(1)}
    model = load(sd(), controlnet={"canny": write_pth(work, original(network, "control_model.") | others)})
    ours = model.control("canny").controlnet.state_dict()
    assert max(far(ours[name], weight) for name, weight in network.state_dict().items()) == within


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "file"])
@loads("ControlNet", "with fewer transformers than the U-Net (SDXL small, mid)", within=CLOSE)
def test_smaller_controlnet_computes_what_diffusers_does(work: Path, layout: str, within: float) -> None:
    config = dict(ControlNetModel.from_unet(sdxl().unet).config) | {
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"), "transformer_layers_per_block": 1,
    }  # fmt: skip
    network = ControlNetModel.from_config(config).eval()
    shake(network)
    network.save_pretrained(work / "small")
    source = work / "small" if layout == "folder" else work / "small" / "diffusion_pytorch_model.safetensors"
    assert far_apart(load(sdxl(), controlnet={"canny": source}), network, sdxl) < within


@pytest.mark.slow
@loads("ControlNet", "folder with fp16 files alone")
def test_controlnet_folder_of_half_precision_alone_loads(work: Path) -> None:
    controlnet(sd().unet).half().save_pretrained(work, variant="fp16")
    assert load(sd(), controlnet=work).control("canny").controlnet.dtype == torch.float32


# --- refusals

OTHERS = {
    "ControlLLLite": {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.down.0.weight": (8, 8)},
    "ControlNet-XS": {"control_model.zero_convs.0.0.weight": (8,), "control_model.enc_zero_convs_out.0.0.weight": (8,)},
    "ControlNet-Union": {"control_add_embedding.linear_1.weight": (8, 8), "controlnet_down_blocks.0.weight": (8,)},
    "SparseCtrl": {"down_blocks.0.motion_modules.0.proj_in.weight": (8, 8), "controlnet_down_blocks.0.weight": (8,)},
    "ControlNet for Flux": {"controlnet_x_embedder.weight": (8, 8), "transformer_blocks.0.attn.to_q.weight": (8, 8)},
    "T2I style adapter": {"style_embedding": (1, 8, 8), "transformer_layes.0.ln_1.weight": (8,)},
    "LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)},
    "IP-Adapter": {"image_proj.proj.weight": (8, 8), "ip_adapter.1.to_k_ip.weight": (8, 8)},
    "VAE": {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)},
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=refused("ControlNet", each, "named, with advice")) for each in OTHERS]
)
def test_file_of_another_kind_is_named(work: Path, name: str) -> None:
    file = write_safetensors(work, {each: torch.zeros(shape) for each, shape in OTHERS[name].items()})
    with pytest.raises(kg.InputError, match=f"It looks like an? {name}"):
        load(sd(), controlnet={"canny": file})


@refused(
    "ControlNet", "for shuffled images (`global_pool_conditions`)", "its control is pooled, and not for each place"
)
def test_controlnet_for_shuffled_images_is_refused(work: Path) -> None:
    network = controlnet(sd().unet)
    file = write_safetensors(work, original(network, "control_model.")).rename(work / "control_v11e_sd15_shuffle.pth")
    with pytest.raises(kg.InputError, match="by its name a ControlNet for shuffled images"):
        load(sd(), controlnet=file)
    network.register_to_config(global_pool_conditions=True)
    with pytest.raises(kg.InputError, match="shuffle"):
        load(sd(), controlnet=network)


def test_live_network_of_another_kind_is_named() -> None:
    with pytest.raises(kg.InputError, match="is a ControlNetXSAdapter, which is not supported"):
        load(sd(), controlnet=ControlNetXSAdapter.from_unet(sd().unet, size_ratio=1))
    with pytest.raises(kg.InputError, match="is a ControlNetUnionModel, which is not supported"):
        load(sdxl(), controlnet=ControlNetUnionModel.from_unet(sdxl().unet))


def test_controlnet_file_of_another_architecture_is_refused(work: Path) -> None:
    file = write_safetensors(work, original(controlnet(sd().unet), "control_model."))
    with pytest.raises(kg.InputError, match=r"a ControlNet for another architecture.*SD 1\.x, SD 2\.x or SDXL"):
        load(sdxl(), controlnet={"canny": file})
