"""LoRA files in every layout change the network as their trainer's formula says, or are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from cases.public_layouts import Weights, estimate, load, sd, sdxl
from cases.tiny_models import far, kohya, layers, low_rank, product
from diffusers import StableDiffusionPipeline
from format_rows import loads
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

CLOSE = 1e-4
FILE = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def generator() -> Generator:
    return Generator().manual_seed(0)


def attention(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a U-Net's attention."""
    return {name: layer for name, layer in layers(network, nn.Linear) if ".attn" in name and name.endswith(ATTENTION)}


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in layers(network, nn.Conv2d) if "resnets.0.conv1" in name}


def key(name: str) -> str:
    """Return the kohya name of a layer of a U-Net."""
    return "lora_unet_" + name.replace(".", "_")


def random(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator) * 0.1


def add(network: nn.Module, changes: Mapping[str, Tensor], scale: float = 1.0) -> None:
    """Add changes of layers' weights, and of biases where the name says so."""
    for name, change in changes.items():
        parameter = network.get_parameter(name if name.endswith(".bias") else f"{name}.weight")
        parameter += scale * change


def kohya_attention(network: nn.Module, generator: Generator) -> tuple[Weights, dict[str, Tensor]]:
    """Return a LoRA of the attention layers, each with its own rank and alpha, and the change of each weight."""
    weights, changes = {}, {}
    for number, (name, layer) in enumerate(attention(network).items()):
        rank, alpha = 2 + number % 3, 1.0 + number % 4
        down, up = low_rank(layer, rank, generator)
        weights |= kohya(key(name), down, up, alpha)
        changes[name] = alpha / rank * product(down, up)
    return weights, changes


def kohya_text(encoder: nn.Module, generator: Generator) -> tuple[Weights, dict[str, Tensor]]:
    weights, changes = {}, {}
    for number, (name, layer) in enumerate(layers(encoder, nn.Linear)):
        alpha = 1.0 + number % 2
        down, up = low_rank(layer, 2, generator)
        named = "lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_")
        weights |= kohya(named, down, up, alpha)
        changes[name] = alpha / 2 * product(down, up)
    return weights, changes


def assert_lora_gives(pipeline: StableDiffusionPipeline, file: Path, scale: float = 1.0) -> None:
    """Assert that the plain pipeline with this LoRA estimates what a pipeline with merged weights does."""
    assert far(estimate(load(sd(), lora=(file, scale))), estimate(load(pipeline))) < CLOSE


# --- formats/14-lora: (a) kohya


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "scale"),
    [(["unet"], 1.0), (["unet", "text_encoder"], 1.0), (["unet", "text_encoder"], 0.5)],
    ids=["unet", "unet-and-text-encoder", "at-scale-0.5"],
)
def test_kohya_layers_have_their_own_ranks_and_alphas(
    work: Path, generator: Generator, parts: list[str], scale: float
) -> None:
    pipeline, weights = sd(), {}
    for part in parts:
        network = getattr(pipeline, part)
        more, changes = {"unet": kohya_attention, "text_encoder": kohya_text}[part](network, generator)
        add(network, changes, scale)
        weights |= more
    save_file(weights, work / FILE)
    assert_lora_gives(pipeline, work / FILE, scale)


# --- (b, c) DoRA


def peft_dora(folder: Path, generator: Generator) -> StableDiffusionPipeline:
    """Write a DoRA of peft's as diffusers saves it; return the pipeline that has it."""
    pipeline = sd()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(ATTENTION), use_dora=True, init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    for name, weight in pipeline.unet.named_parameters():
        if "magnitude" in name:
            weight *= 1 + 0.5 * torch.rand(weight.shape, generator=generator)
    save_with_diffusers(folder, pipeline, config)
    return pipeline


def kohya_dora(folder: Path, generator: Generator) -> StableDiffusionPipeline:
    """Write a DoRA with kohya's dora_scale; return a pipeline with W' = m (W + change) / |W + change| by rows."""
    pipeline = sd()
    weights, changes = kohya_attention(pipeline.unet, generator)
    for name, change in changes.items():
        weight = pipeline.unet.get_submodule(name).weight
        magnitude = weight.norm(dim=1, keepdim=True) * 1.5
        weights[f"{key(name)}.dora_scale"] = magnitude
        weight.copy_(magnitude * (weight + change) / (weight + change).norm(dim=1, keepdim=True))
    save_file(weights, folder / FILE)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize("write", [peft_dora, kohya_dora])
def test_dora_magnitudes_are_applied(
    work: Path, generator: Generator, write: Callable[[Path, Generator], StableDiffusionPipeline]
) -> None:
    assert_lora_gives(write(work, generator), work / FILE)


@pytest.mark.slow
@loads("LoRA", "a DoRA that diffusers put on a live pipeline", within=CLOSE)
def test_dora_that_diffusers_put_on_a_live_pipeline_stays(work: Path, generator: Generator) -> None:
    saved, live = peft_dora(work, generator), sd()
    live.load_lora_weights(work, weight_name=FILE)
    assert far(estimate(load(live)), estimate(load(saved))) < CLOSE


# --- (d, e, f) convolutions, and weights that are no LoRA's


def locon(network: nn.Module, generator: Generator) -> tuple[Weights, dict[str, Tensor]]:
    """Return a LoRA of rank 3 and alpha 1.5 of convolutions."""
    weights, changes = {}, {}
    for name, layer in convolutions(network).items():
        down, up = low_rank(layer, 3, generator)
        weights |= kohya(key(name), down, up, 1.5)
        changes[name] = 0.5 * product(down, up)
    return weights, changes


def tucker(network: nn.Module, generator: Generator) -> tuple[Weights, dict[str, Tensor]]:
    """Return Tucker-decomposed convolutions (LyCORIS, lora_mid)."""
    weights, changes = {}, {}
    for name, layer in convolutions(network).items():
        down, up = random(generator, 3, layer.in_channels, 1, 1), random(generator, layer.out_channels, 3, 1, 1)
        middle = 3 * random(generator, 3, 3, 3, 3)
        weights |= kohya(key(name), down, up, 1.5) | {f"{key(name)}.lora_mid.weight": middle}
        changes[name] = 0.5 * torch.einsum("os,srhw,ri->oihw", up.flatten(1), middle, down.flatten(1))
    return weights, changes


def loha(network: nn.Module, generator: Generator) -> tuple[Weights, dict[str, Tensor]]:
    """Return Hadamard products of two low-rank matrices (LyCORIS) of rank 2 and alpha 1."""
    weights, changes = {}, {}
    for name, layer in attention(network).items():
        rows, columns = layer.weight.shape
        one, other = ((random(generator, rows, 2), random(generator, 2, columns)) for _ in range(2))
        parts = {"hada_w1_a": one[0], "hada_w1_b": one[1], "hada_w2_a": other[0], "hada_w2_b": other[1]}
        weights |= {f"{key(name)}.{part}": value for part, value in parts.items()}
        weights[f"{key(name)}.alpha"] = torch.tensor(1.0)
        changes[name] = 0.5 * (one[0] @ one[1]) * (other[0] @ other[1])
    return weights, changes


def lokr(network: nn.Module, generator: Generator) -> tuple[Weights, dict[str, Tensor]]:
    """Return Kronecker products of whole matrices (LyCORIS), which have no rank: alpha does not count."""
    weights, changes = {}, {}
    for name, layer in attention(network).items():
        rows, columns = layer.weight.shape
        one, other = random(generator, 2, 2), random(generator, rows // 2, columns // 2)
        weights |= {f"{key(name)}.lokr_w1": one, f"{key(name)}.lokr_w2": other}
        weights[f"{key(name)}.alpha"] = torch.tensor(1.0)
        changes[name] = torch.kron(one, other)
    return weights, changes


def whole_difference(network: nn.Module, generator: Generator) -> tuple[Weights, dict[str, Tensor]]:
    """Return the whole change of one convolution and of its bias."""
    name, layer = next(iter(convolutions(network).items()))
    change, of_bias = random(generator, *layer.weight.shape), random(generator, *layer.bias.shape)
    weights = {f"{key(name)}.diff": change, f"{key(name)}.diff_b": of_bias}
    return weights, {name: change, f"{name}.bias": of_bias}


Kind = Callable[[nn.Module, Generator], tuple[Weights, dict[str, Tensor]]]


def test_convolutions_of_a_locon_are_changed(work: Path, generator: Generator) -> None:
    pipeline = sd()
    weights, changes = locon(pipeline.unet, generator)
    save_file(weights, work / FILE)
    add(pipeline.unet, changes)
    assert_lora_gives(pipeline, work / FILE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param([tucker], id="tucker"),
        pytest.param([tucker, kohya_attention], id="tucker-beside-lora"),
        pytest.param([loha], id="loha"),
        pytest.param([lokr], id="lokr"),
        pytest.param([loha, locon], id="loha-beside-lora"),
        pytest.param([whole_difference, kohya_attention], id="whole-difference-beside-lora"),
    ],
)
def test_other_kinds_of_changes_are_applied_exactly(work: Path, generator: Generator, kinds: list[Kind]) -> None:
    pipeline, weights = sd(), {}
    for kind in kinds:
        more, changes = kind(pipeline.unet, generator)
        add(pipeline.unet, changes)
        weights |= more
    save_file(weights, work / FILE)
    assert_lora_gives(pipeline, work / FILE)


# --- (h, i) peft's settings in the header


def save_with_diffusers(
    folder: Path, pipeline: StableDiffusionPipeline, config: LoraConfig, text: LoraConfig | None = None
) -> None:
    """Write the adapters that a pipeline has, with their settings in the file's header."""
    more = {}
    if text is not None:
        layers_of_text = get_peft_model_state_dict(pipeline.text_encoder)
        more = {"text_encoder_lora_layers": layers_of_text, "text_encoder_lora_adapter_metadata": as_json(text)}
    pipeline.save_lora_weights(
        folder, get_peft_model_state_dict(pipeline.unet), unet_lora_adapter_metadata=as_json(config), **more
    )


def as_json(config: LoraConfig) -> dict[str, object]:
    return config.to_dict() | {"target_modules": list(config.target_modules)}


@loads("LoRA", "diffusers: settings of peft in the header (alpha, rank and alpha patterns, `use_rslora`)", within=CLOSE)
def test_peft_patterns_of_rank_and_alpha_with_rslora_are_applied(work: Path) -> None:
    pipeline = sd()
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k", "to_v"], rank_pattern={"attn1.to_q": 2},
        alpha_pattern={"attn2.to_k": 16}, use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    pipeline.unet.add_adapter(config)
    save_with_diffusers(work, pipeline, config)
    assert_lora_gives(pipeline, work / FILE)


@loads("LoRA", "diffusers: settings of each network in the header", within=CLOSE)
def test_unet_and_text_encoder_have_their_own_alphas_in_the_header(work: Path) -> None:
    pipeline = sd()
    unet = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False)
    text = LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipeline.unet.add_adapter(unet)
    pipeline.text_encoder.add_adapter(text)
    save_with_diffusers(work, pipeline, unet, text)
    assert_lora_gives(pipeline, work / FILE)


# --- formats/33-adapters: LCM-LoRA


@pytest.mark.slow
@loads("LoRA", "LCM-LoRAs of SD 1.5 and SDXL", within=CLOSE, reference="merged weights")
@pytest.mark.parametrize("make", [sd, sdxl])
def test_lcm_lora_of_all_layers_equals_merged_weights(
    work: Path, generator: Generator, make: Callable[[], StableDiffusionPipeline]
) -> None:
    pipeline, weights, changes = make(), {}, {}
    for name, layer in layers(pipeline.unet):
        if name not in ("conv_in", "conv_out"):
            down, up = (each / 2 for each in low_rank(layer, 4, generator))
            weights |= kohya(key(name), down, up, 2.0)
            changes[name] = 0.5 * product(down, up)
    save_file(weights, work / FILE)
    add(pipeline.unet, changes)
    assert far(estimate(load(make(), lora=work / FILE)), estimate(load(pipeline))) < CLOSE
