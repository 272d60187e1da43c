"""Scales of a LoRA for each network, as diffusers' `set_adapters` and A1111's prompts have them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cases import tiny_models
from cases.tiny_models import far, layers, low_rank, text_output, unet_output
from format_rows import loads, refused
from models.formats.test_lora_kinds import weight_of
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import kineograph as kg
from kineograph.cli.options import parse_lora
from kineograph.errors import InputError
from kineograph.models.conditioning.prompt_weights import take_loras
from kineograph.models.formats.lora import list_loras

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "encoder.layers.0.mlp.fc1"
BOTH = {"unet": 0.8, "text_encoder": 0.5}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def diffusers_lora(folder: Path, pipeline) -> Path:
    """Write a LoRA of a pipeline's U-Net and text encoders in diffusers' layout."""
    generator, weights = Generator().manual_seed(0), dict[str, Tensor]()
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for path, layer in layers(getattr(pipeline, part, nn.Module()), nn.Linear):
            if path.endswith(("to_q", "q_proj")):
                down, up = low_rank(layer, 2, generator)
                weights |= {f"{part}.{path}.lora_A.weight": down, f"{part}.{path}.lora_B.weight": up}
    save_file(weights, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@pytest.mark.slow
@loads("LoRA", 'scales of each network: `{"unet": 0.8, "text_encoder": 0.5}`', within=1e-5)
@pytest.mark.parametrize(
    "scale", [BOTH, {"unet": 0.5}, {"text_encoder": 0.0, "text_encoder_2": 2}], ids=["both", "unet", "text"]
)
@pytest.mark.parametrize("make", [tiny_models.sd, tiny_models.sdxl])
@pytest.mark.filterwarnings("ignore")
def test_scales_are_those_of_set_adapters(tmp_path: Path, make, scale: dict[str, float], within: float) -> None:
    pipeline, file = make(), diffusers_lora(tmp_path, make())
    model = kg.load(make(), lora=(file, scale))
    pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="style")
    pipeline.set_adapters("style", dict(scale))
    assert far(unet_output(model.net.image_unet), unet_output(pipeline.unet)) < within
    for part in model.networks.keys() - {"unet"}:
        assert far(text_output(model.networks[part]), text_output(getattr(pipeline, part))) < within


def test_scales_of_changes_in_place(tmp_path: Path) -> None:
    generator, pipeline, weights = Generator().manual_seed(0), tiny_models.sd(), dict[str, Tensor]()
    expected = {}
    for prefix, part, path in (("lora_unet_", "unet", LAYER), ("lora_te_text_model_", "text_encoder", TEXT_LAYER)):
        layer = getattr(pipeline, part).get_submodule(path)
        change = torch.randn(layer.weight.shape, generator=generator)
        weights[f"{prefix}{path.replace('.', '_')}.diff"] = change
        expected[part, path] = layer.weight.double() + BOTH[part] * change.double()
    save_file(weights, tmp_path / "lora.safetensors")
    model = kg.load(pipeline).load_lora_weights(tmp_path / "lora.safetensors", BOTH)
    for (part, path), weight in expected.items():
        assert far(weight_of(model.networks[part], path), weight) < 1e-6


def test_temporal_layers_have_the_scale_of_the_unet(tmp_path: Path) -> None:
    model = kg.load("pocket-video", dtype="float32")
    path, layer = next(each for each in layers(model.net.temporal, nn.Linear) if each[0].endswith("to_q"))
    change = torch.ones_like(layer.weight)
    save_file({f"unet.{path}.diff": change}, tmp_path / "lora.safetensors")
    changed = model.load_lora_weights(tmp_path / "lora.safetensors", {"unet": 0.25})
    assert torch.equal(changed.net.temporal.get_submodule(path).weight, layer.weight + 0.25 * change)


def test_list_loras_with_scales_by_network() -> None:
    assert list_loras(("a", BOTH)) == list_loras([("a", BOTH)]) == [("a", BOTH)]
    assert list_loras(["a", ("b", {"unet": 1})]) == [("a", 1.0), ("b", {"unet": 1.0})]
    for wrong, message in (({"te": 1}, "unet, text_encoder, text_encoder_2, not of 'te'"), (math.nan, "not nan")):
        with pytest.raises(InputError, match=message):
            list_loras(("a", wrong))
    for several in (["a", 0.5, 0.4], (0.5, "a"), [("a", 1), {"unet": 1}]):
        with pytest.raises(InputError, match="is beside no file"):
            list_loras(several)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b.safetensors=0.8", ("a=b.safetensors", 0.8)),
        ("a.safetensors=unet:0.8,text_encoder:0.5", ("a.safetensors", BOTH)),
        ("a.safetensors=text_encoder:-1", ("a.safetensors", {"text_encoder": -1.0})),
    ],
)
def test_scales_on_the_command_line(text: str, expected: tuple[str, object]) -> None:
    assert parse_lora(text) == expected


@pytest.mark.parametrize("scale", ["unet:", "0.8,0.5", "0.5,unet:1", "unet:1,unet:2", "unet:nan", "inf", ":1,unet:2"])
def test_other_texts_are_no_scales(scale: str) -> None:
    with pytest.raises(InputError, match=r"no FILE=SCALE with a number for the scale, or one for each network"):
        parse_lora(f"a.safetensors={scale}")


@loads("Prompt", "`<lora:name:0.5:0.8>`, `<lora:name:te=0.5:unet=0.8>`: the text encoders' scale and the U-Net's")
@pytest.mark.parametrize("text", ["0.5:0.8", "te=0.5:unet=0.8", "unet=0.8:te=0.5", "0.5:unet=0.8"])
def test_scales_in_a_prompt_are_in_the_order_of_a1111(text: str) -> None:
    assert take_loras(f"<lora:ink:{text}>")[1] == [("ink", BOTH | {"text_encoder_2": 0.5})]
    assert take_loras("<lora:ink:unet=0.8>")[1] == [("ink", {"unet": 0.8, "text_encoder": 1, "text_encoder_2": 1})]
    assert take_loras("<lora:ink:te=0.5>")[1] == [("ink", 0.5)]


@refused("Prompt", "`<lora:name:1:1:8>`, `lbw=`, `dyn=`", "numbers of ranks and of blocks are not supported")
@pytest.mark.parametrize("text", ["1:1:8", "1:lbw=MIDD", "1:dyn=8"])
def test_other_values_of_a_lora_in_a_prompt_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected <lora:NAME:SCALE>, with one number, or two"):
        take_loras(f"<lora:ink:{text}>")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scales_are_recorded_and_replayed(tmp_path: Path) -> None:
    tiny_models.sd().save_pretrained(tmp_path / "model")
    file = diffusers_lora(tmp_path, tiny_models.sd())
    model = kg.load(tmp_path / "model", dtype="float32", lora=(file, BOTH))
    small = {"num_frames": 2, "num_inference_steps": 2, "height": 16, "width": 16, "seed": 0}
    video = kg.generate(model, "a cat", **small)
    video.save(tmp_path / "cat.mp4")
    assert kg.open_video(tmp_path / "cat.mp4").settings["model"]["load"]["lora"] == [[str(file), BOTH]]
    assert kg.replay(tmp_path / "cat.mp4", trust=True).digest == video.digest
    plain = kg.generate(kg.load(tmp_path / "model", dtype="float32", lora=(file, 0.8)), "a cat", **small)
    assert plain.digest != video.digest
