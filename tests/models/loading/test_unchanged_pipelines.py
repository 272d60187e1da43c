"""Live pipelines and networks are the same after a model was loaded from them, whatever is added, and was used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from cases.public_layouts import estimate, normal, sd, sdxl, shake, vae
from cases.test_adapter_layouts import controlnet, ip_folder  # noqa: F401 (a fixture)
from cases.tiny_models import far, kohya, layers, low_rank
from diffusers import StableDiffusionPipeline
from format_rows import loads
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import kineograph as kg
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig, decoder_blocks

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers with numpy 2
Options = dict[str, Any]
Add = Callable[[Path, StableDiffusionPipeline], Options]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- the state of a pipeline


def prepare(network: nn.Module) -> None:
    """Set what others may need, and a library could change: gradients and the mode of training."""
    network.train()
    for number, weight in enumerate(network.parameters()):
        weight.requires_grad_(requires_grad=number % 2 == 0)


def state_of(network: nn.Module) -> dict[str, Any]:
    """Return a network's weights with their identity, and its modules."""
    weights = {path: each.clone() for path, each in network.state_dict().items()}
    about = [
        (path, id(each), each.dtype, each.requires_grad, each.stride()) for path, each in network.named_parameters()
    ]
    modules = [(path, id(each), type(each), each.training) for path, each in network.named_modules()]
    return weights | {"weights": about, "modules": modules, "config": str(getattr(network, "config", None))}


def state(pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            found |= {f"{name} {path}": each for path, each in state_of(part).items()}
        elif "tokenizer" in name:
            found[name] = dict(part.get_vocab())
        else:
            found[name] = str(getattr(part, "config", None))
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        name for name in before.keys() | after.keys()
        if name not in before or name not in after or not same(before[name], after[name])
    ]  # fmt: skip


def same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


def images(pipeline: StableDiffusionPipeline) -> Tensor:
    return pipeline(
        "a (cat)", num_inference_steps=1, height=64, width=64, output_type="pt", generator=Generator().manual_seed(0)
    ).images  # fmt: skip


# --- what is added to a pipeline


def lora(tmp_path: Path, pipeline: StableDiffusionPipeline, role: str = "") -> Options:
    """Write a LoRA of linear layers of the U-Net and the text encoders. role: "" or a part that is added in place."""
    generator, weights = Generator().manual_seed(0), dict[str, Tensor]()
    prefixes = {"lora_unet_": "unet", "lora_te1_text_model_": "text_encoder", "lora_te2_text_model_": "text_encoder_2"}
    for prefix, part in prefixes.items():
        for path, layer in layers(getattr(pipeline, part, nn.Module()), nn.Linear):
            if not path.endswith(("to_q", "to_out.0", "q_proj")):
                continue
            name = prefix + path.removeprefix("text_model.").replace(".", "_")
            weights |= kohya(name, *low_rank(layer, 2, generator), 2.0)
            if role == "dora_scale":
                weights[f"{name}.{role}"] = 1.5 * layer.weight.norm(dim=1, keepdim=True)
            elif role == "diff_b":
                weights[f"{name}.{role}"] = torch.ones(len(layer.weight))
    save_file(weights, tmp_path / "lora.safetensors")
    return {"lora": (tmp_path / "lora.safetensors", 0.8)}


def dora(tmp_path: Path, pipeline: StableDiffusionPipeline) -> Options:
    return lora(tmp_path, pipeline, "dora_scale")


def biases(tmp_path: Path, pipeline: StableDiffusionPipeline) -> Options:
    return lora(tmp_path, pipeline, "diff_b")


def beside_another(tmp_path: Path, pipeline: StableDiffusionPipeline) -> Options:
    """Put a LoRA on the pipeline, at another scale, and add one with Kineograph."""
    config = LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, "style")
    pipeline.set_adapters("style", 0.3)
    return lora(tmp_path, sd())


def words(tmp_path: Path, pipeline: StableDiffusionPipeline) -> Options:
    save_file({"fish": torch.randn(2, 32)}, tmp_path / "words.safetensors")
    return {"textual_inversion": tmp_path / "words.safetensors"}


def other_dtype(tmp_path: Path, pipeline: StableDiffusionPipeline) -> Options:
    return {"dtype": "bfloat16"}


def nothing(tmp_path: Path, pipeline: StableDiffusionPipeline) -> Options:
    return {}


def motion_module(tmp_path: Path, pipeline: StableDiffusionPipeline) -> Options:
    motion = diffusers.MotionAdapter(
        block_out_channels=(32, 64, 64, 64), motion_num_attention_heads=8, motion_norm_num_groups=4,
        use_motion_mid_block=False, motion_layers_per_block=1,
    )  # fmt: skip
    shake(motion, 0.2)
    return {"motion_module": motion}


def assert_unchanged(pipeline: StableDiffusionPipeline, options: Options) -> None:
    """Assert that a pipeline is what it was, with the same images, and that the options change the model."""
    pipeline.set_progress_bar_config(disable=True)
    for network in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        prepare(network)
    pictures, before, plain = images(pipeline), state(pipeline), estimate(kg.load(pipeline))
    model = kg.load(pipeline, **options)
    estimated = estimate(model)
    model.decode(normal(1, 1, 4, 8, 8, seed=0))
    assert differences(before, state(pipeline)) == []
    assert torch.equal(images(pipeline), pictures)
    assert (far(estimated, plain) > 1e-3) == bool(options)


@pytest.mark.slow
@loads("Live pipeline", "the pipeline itself after `load` with any option: images, weights, modules, words", within=0,
       reference="those before")  # fmt: skip
@pytest.mark.parametrize(
    "add",
    [nothing, lora, dora, biases, beside_another, words, other_dtype, motion_module],
    ids=lambda add: add.__name__,
)
@pytest.mark.filterwarnings("ignore:this pipeline has a scheduler:kineograph.errors.InputWarning")
@pytest.mark.filterwarnings("ignore:the pipeline has a scheduler:kineograph.errors.InputWarning")
def test_pipeline_stays_as_it_is(tmp_path: Path, add: Add) -> None:
    pipeline = sd()
    assert_unchanged(pipeline, add(tmp_path, pipeline))


@pytest.mark.slow
@pytest.mark.parametrize("add", [lora, dora, other_dtype], ids=lambda add: add.__name__)
def test_pipeline_of_sdxl_stays_as_it_is(tmp_path: Path, add: Add) -> None:
    pipeline = sdxl()
    assert_unchanged(pipeline, add(tmp_path, pipeline))


def test_weights_are_shared_but_those_that_a_lora_changes(tmp_path: Path) -> None:
    pipeline = sd()
    before = state_of(pipeline.unet)
    model = kg.load(pipeline, **dora(tmp_path, pipeline))
    ours, theirs = (dict(each.named_parameters()) for each in (model.net.image_unet, pipeline.unet))
    own = {name for name, weight in ours.items() if weight is not theirs[name]}
    assert own == {name for name in theirs if name.endswith((".to_q.weight", ".to_out.0.weight"))}
    assert differences(before, state_of(pipeline.unet)) == []


@pytest.mark.slow
def test_ip_adapter_leaves_the_pipeline_as_it_is(ip_folder: Path) -> None:  # noqa: F811
    pipeline = sd()
    prepare(pipeline.unet)
    before, processors = state(pipeline), pipeline.unet.attn_processors
    model = kg.load(pipeline, ip_adapter=ip_folder / "plain" / "models" / "ip.safetensors")
    assert model.image_encoder is not None
    assert differences(before, state(pipeline)) == []
    assert pipeline.unet.attn_processors == processors


def test_text_encoder_of_another_dtype_keeps_it() -> None:
    pipeline = sd()
    pipeline.unet.bfloat16()
    before = state(pipeline)
    model = kg.load(pipeline)
    assert model.text_encoders[0].network.dtype == model.dtype == torch.bfloat16
    assert differences(before, state(pipeline)) == []


# --- live networks beside a model


def temporal_decoder(of: nn.Module) -> TemporalDecoder:
    return TemporalDecoder(TemporalDecoderConfig(blocks=decoder_blocks(of), groups=4))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_live_networks_stay_as_they_are(dtype: str | None) -> None:
    pipeline = sd()
    live = {"controlnet": controlnet(pipeline.unet), "vae": vae(), "decoder": temporal_decoder(pipeline.vae)}
    for each in live.values():
        prepare(each)
    before = {name: state_of(each) for name, each in live.items()}
    model = kg.load(pipeline, dtype=dtype, **live)
    for name, network in live.items():
        assert differences(before[name], state_of(network)) == [], name
    used = {"controlnet": model.control("any").controlnet, "vae": model.vae, "decoder": model.temporal_decoder}
    for name, network in used.items():
        assert (network is live[name]) == (dtype is None), name
        assert next(network.parameters()).dtype == model.dtype


def test_lora_on_a_layer_with_another_forward_pass_is_refused(tmp_path: Path) -> None:
    pipeline = sd()
    layer = next(each for path, each in layers(pipeline.unet, nn.Linear) if path.endswith("to_q"))
    layer.forward = lambda x, forward=layer.forward: forward(x)
    with pytest.raises(kg.InputError, match="has another forward pass, and this kind of LoRA changes weights"):
        kg.load(pipeline, **dora(tmp_path, pipeline))


def test_hooks_that_a_copy_in_another_dtype_would_lose_are_named() -> None:
    pipeline = sd()
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(kg.InputError, match="a UNet2DConditionModel with hooks, such as layerwise casting"):
        kg.load(pipeline, dtype="bfloat16")
