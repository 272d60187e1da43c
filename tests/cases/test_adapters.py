"""What is put on a model beside LoRAs: textual inversion, motion modules, ControlNets, IP-Adapters."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import tiny_models
from cases.program import SMALL, run
from cases.tiny_models import Weights, far, ldm_unet_name, load, prefixed, tokens_of
from diffusers import ControlNetModel, SparseControlNetModel
from format_rows import refused
from numbered import movie
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import kineograph as kg


@pytest.fixture
def black(work) -> Path:
    return movie(work / "c.mp4", np.zeros((2, 16, 16, 3), np.uint8))


# --- textual inversion


@pytest.mark.slow
def test_word_of_an_embedding_is_its_file_name_or_is_told(work: Path, sd_folder: Path) -> None:
    """Case 19 (InvokeAI#3438, diffusers#3097): an A1111 .pt whose inner name differs; the file's name is published."""
    file, prompt = work / "charturnerv2.pt", "a charturnerv2 cat"
    about = {"name": "charturner-14000", "step": 14000, "sd_checkpoint": "x", "sd_checkpoint_name": "y"}
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.randn(3, 16)}, **about}, file)
    said = run("generate", prompt, "--model", sd_folder, "--textual-inversion", file, *SMALL, "-o", work / "x.mp4")
    learnt = tokens_of(load(sd_folder, textual_inversion=file), prompt)
    assert far(learnt, tokens_of(load(sd_folder), prompt)) > 0 or "charturner-14000" in said.text


def changes_the_encoding(folder: Path, file: Path, word: str) -> bool:
    prompt = f"a {word} cat"
    learnt = tokens_of(load(folder, textual_inversion=file), prompt)
    return far(learnt, tokens_of(load(folder), prompt)) > 0


def test_sdxl_embedding_of_several_vectors_is_learnt(work: Path, sdxl_folder: Path) -> None:
    """Case 20 (diffusers#8854): clip_l and clip_g."""
    file = work / "unaestheticXL.safetensors"
    save_file({"clip_l": torch.randn(4, 16), "clip_g": torch.randn(4, 24)}, file)
    assert changes_the_encoding(sdxl_folder, file, "unaestheticXL")


@pytest.mark.parametrize("kind", ["pivotal tuning", "several words"])
def test_embedding_of_several_words_is_learnt_or_refused(work: Path, sd_folder: Path, sdxl_folder: Path, kind) -> None:
    """Case 20 (diffusers#4903): <s0> and <s1> of pivotal tuning, a .bin of several words."""
    if kind == "pivotal tuning":
        folder, file, word = sdxl_folder, work / "pivotal.safetensors", "<s0><s1>"
        save_file({"text_encoders_0": torch.randn(2, 16), "text_encoders_1": torch.randn(2, 24)}, file)
    else:
        folder, file, word = sd_folder, work / "two.bin", "<dog-toy>"
        torch.save({"<cat-toy>": torch.randn(2, 16), "<dog-toy>": torch.randn(2, 16)}, file)
    with contextlib.suppress(kg.InputError):
        assert changes_the_encoding(folder, file, word)


# --- motion modules


def save_hotshot(path: Path) -> None:
    ends = ("norm.weight", "transformer_blocks.0.attn1.to_q.weight")
    ends += ("transformer_blocks.0.pos_encoder.positional_encoding",)
    names = [f"down_blocks.{level}.temporal_attentions.0.{end}" for level in range(3) for end in ends]
    save_file({name: torch.ones(8, 8) for name in names}, path)


def save_sparse_control(path: Path) -> None:
    """Write a SparseCtrl in AnimateDiff's layout."""
    network = SparseControlNetModel(
        in_channels=4, conditioning_channels=4, block_out_channels=(8, 16, 16, 16), layers_per_block=2,
        norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2, motion_num_attention_heads=8,
        transformer_layers_per_block=1, down_block_types=("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
    )  # fmt: skip
    released = {
        ".motion_modules.0.": ".motion_modules.0.temporal_transformer.",
        ".motion_modules.1.": ".motion_modules.1.temporal_transformer.",
        ".attn1.": ".attention_blocks.0.", ".pos_embed.pe": ".attention_blocks.0.pos_encoder.pe",
    }  # fmt: skip
    weights = {}
    for name, weight in network.state_dict().items():
        if "motion_modules" in name:
            for ours, theirs in released.items():
                name = name.replace(ours, theirs)
        weights["module." + name] = weight
    torch.save({"epoch": 1, "state_dict": weights}, path)


def save_domain_adapter(path: Path) -> None:
    named = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    save_file({f"{named}.down.weight": torch.ones(4, 8), f"{named}.up.weight": torch.ones(8, 4)}, path)


def save_motion_module(path: Path) -> None:
    tiny_models.motion_module().save_pretrained(path)


@pytest.mark.parametrize(
    ("model", "save", "name", "kind"),
    [
        pytest.param(
            "xl", save_hotshot, "hsxl_temporal_layers.safetensors", "otshot",
            marks=refused("Motion module", "Hotshot-XL", "named, with advice"),
        ),
        pytest.param(
            "sd", save_sparse_control, "v3_sd15_sparsectrl_rgb.ckpt", "parse",
            marks=refused("Motion module", "SparseCtrl", "named, with advice"),
        ),
        ("sd", save_domain_adapter, "v3_sd15_adapter.safetensors", "LoRA"),
        ("xl", save_motion_module, "mm", "blocks 8, 16, 16"),
    ],
    ids=["Hotshot-XL", "SparseCtrl", "domain adapter", "of SD 1.5"],
)  # fmt: skip
def test_motion_module_of_another_kind_is_refused_by_its_kind(
    work: Path, sd_folder: Path, sdxl_folder: Path, model, save, name, kind
) -> None:
    """Case 21 (ADE#182, #76, sd-webui-animatediff#405): Hotshot-XL, SparseCtrl, domain adapter, SD 1.5's on SDXL."""
    save(work / name)
    folder = sd_folder if model == "sd" else sdxl_folder
    said = run("generate", "a cat", "--model", folder, "--motion-module", work / name, *SMALL, "-o", work / "x.mp4")
    assert said.status == 2 and not said.crashed
    assert kind in said.text.replace("sparsectrl", "")


def test_sparse_control_as_a_controlnet_is_refused_by_its_kind(work: Path, sd_folder: Path, black) -> None:
    """Case 21 (sd-webui-animatediff#405)."""
    file = work / "v3_sd15_sparsectrl_rgb.ckpt"
    save_sparse_control(file)
    control = ["--controlnet", f"rgb={file}", "--control", f"rgb-map={black}"]
    said = run("generate", "a cat", "--model", sd_folder, *control, *SMALL, "-o", work / "x.mp4")
    assert said.status == 2 and not said.crashed
    assert "parse" in said.text.replace("sparsectrl", "")


# --- ControlNets


@pytest.fixture(scope="module")
def controlnet() -> ControlNetModel:
    torch.manual_seed(7)
    network = ControlNetModel.from_unet(tiny_models.sd().unet)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return network


def original(network: ControlNetModel) -> Weights:
    """Return a ControlNet's weights by the names of lllyasviel's files."""
    hint = "controlnet_cond_embedding."
    last = 2 * (len(network.controlnet_cond_embedding.blocks) + 1)
    renamed = {}
    for name, weight in network.state_dict().items():
        match name.removeprefix(hint).split("."):
            case ["controlnet_down_blocks", number, end]:
                renamed[f"zero_convs.{number}.0.{end}"] = weight
            case ["controlnet_mid_block", end]:
                renamed[f"middle_block_out.0.{end}"] = weight
            case ["conv_in", end] if name.startswith(hint):
                renamed[f"input_hint_block.0.{end}"] = weight
            case ["conv_out", end] if name.startswith(hint):
                renamed[f"input_hint_block.{last}.{end}"] = weight
            case ["blocks", number, end]:
                renamed[f"input_hint_block.{2 * (int(number) + 1)}.{end}"] = weight
            case _:
                renamed[ldm_unet_name(name, network)] = weight
    return prefixed("control_model.", renamed)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "diffusers", "original"])
def test_controlnet_loads_from_a_folder_and_from_one_file(work: Path, sd_folder: Path, controlnet, layout) -> None:
    """Case 27 (diffusers#9976, #9208): diffusers' layout as one file, the original layout in fp16."""
    controlnet.save_pretrained(work / "canny")
    source = work / "canny"
    if layout == "diffusers":
        source = shutil.copy(source / "diffusion_pytorch_model.safetensors", work / "diffusers_canny_full.safetensors")
    elif layout == "original":
        source = work / "control_v11p_sd15_canny_fp16.safetensors"
        save_file({name: weight.clone().half() for name, weight in original(controlnet).items()}, source)
    ours = load(sd_folder, controlnet={"canny": source}).control("canny").controlnet.state_dict()
    assert max(far(ours[name], weight) for name, weight in controlnet.state_dict().items()) < 1e-3


LLLITE = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"
NOT_CONTROLNETS = {
    "t2iadapter_depth_sd15v2": {
        "body.0.block1.weight": (8, 8, 3, 3), "body.0.block1.bias": (8,),
        "conv_in.weight": (8, 192, 3, 3), "conv_in.bias": (8,),
    },
    "kohya_controllllite_xl_blur": {
        f"{LLLITE}.conditioning1.0.weight": (8, 3, 4, 4), f"{LLLITE}.down.0.weight": (8, 8),
    },
    "control-lora-canny-rank128": {
        "lora_controlnet": (1,), "input_blocks.0.0.weight": (8, 4, 3, 3),
        "input_blocks.1.0.in_layers.2.up": (8, 4, 1, 1), "input_blocks.1.0.in_layers.2.down": (4, 8, 3, 3),
        "input_hint_block.0.weight": (4, 3, 3, 3), "zero_convs.0.0.weight": (8, 8, 1, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_CONTROLNETS)
def test_file_of_another_kind_as_a_controlnet_is_refused(work: Path, sd_folder: Path, black, name) -> None:
    """Case 28 (sd-webui-controlnet#427, diffusers#9208, #4679): T2I-Adapter, ControlLLLite, Control-LoRA."""
    file = work / f"{name}.safetensors"
    save_file({weight: torch.ones(shape) for weight, shape in NOT_CONTROLNETS[name].items()}, file)
    control = ["--controlnet", f"depth={file}", "--control", f"depth-map={black}"]
    said = run("generate", "a cat", "--model", sd_folder, *control, *SMALL, "-o", work / "x.mp4")
    assert said.status == 2 and "NoneType" not in said.text


# --- IP-Adapters


def save_image_encoder(folder: Path, width: int, projection: int) -> None:
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=32, projection_dim=projection, num_hidden_layers=3,
        num_attention_heads=2, image_size=32, patch_size=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)


def resampler(width: int, generator: torch.Generator) -> Weights:
    """Return the image projection of IP-Adapter plus: four blocks that read tokens 16 wide, one head of 64."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    def norm(name: str, channels: int) -> Weights:
        return {f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)}

    weights = {
        "latents": 10 * noise(1, 4, width), "proj_in.weight": 10 * noise(width, 16), "proj_in.bias": torch.zeros(width),
        "proj_out.weight": noise(16, width), "proj_out.bias": torch.zeros(16),
    } | norm("norm_out", 16)  # fmt: skip
    for block in range(4):
        attention, mlp = f"layers.{block}.0", f"layers.{block}.1"
        weights |= norm(f"{attention}.norm1", width) | norm(f"{attention}.norm2", width)
        weights |= {
            f"{attention}.to_q.weight": noise(64, width), f"{attention}.to_kv.weight": noise(128, width),
            f"{attention}.to_out.weight": noise(width, 64), f"{mlp}.0.weight": torch.ones(width),
            f"{mlp}.0.bias": torch.zeros(width), f"{mlp}.1.weight": noise(4 * width, width),
            f"{mlp}.3.weight": noise(width, 4 * width),
        }  # fmt: skip
    return weights


def face_id() -> Weights:
    return {
        "proj.0.weight": torch.randn(1024, 512), "proj.0.bias": torch.zeros(1024),
        "proj.2.weight": torch.randn(64, 1024), "proj.2.bias": torch.zeros(64),
        "norm.weight": torch.ones(16), "norm.bias": torch.zeros(16),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ip_adapters(tmp_path_factory) -> Path:
    """IP-Adapter plus and FaceID in ip/, and plus in other/, beside an image encoder of another width."""
    folder = tmp_path_factory.mktemp("adapters")
    save_image_encoder(folder / "ip" / "image_encoder", 16, 12)
    save_image_encoder(folder / "other" / "image_encoder", 20, 14)
    unet, generator = tiny_models.sd().unet, torch.Generator().manual_seed(2)
    cross = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors if "attn2" in name]
    layers = {
        f"ip_adapter.{2 * number + 1}.to_{which}_ip.weight": torch.randn(
            layer.to_k.out_features, 16, generator=generator
        )
        for number, layer in enumerate(cross)
        for which in "kv"
    }
    plus = prefixed("image_proj.", resampler(64, generator)) | layers
    save_file(plus, folder / "ip" / "ip-adapter-plus_sd15.safetensors")
    save_file(plus, folder / "other" / "ip-adapter-plus_sd15.safetensors")
    lora = {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(4, 8)}
    face = prefixed("image_proj.", face_id()) | layers | lora
    save_file(face, folder / "ip" / "ip-adapter-faceid_sd15.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_ip_adapter_plus_gives_the_tokens_that_diffusers_gives(ip_adapters, sd_folder: Path) -> None:
    """Case 29 (IP-Adapter#470, diffusers#6162): the plus variant's Resampler."""
    name = "ip-adapter-plus_sd15.safetensors"
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    ours = load(sd_folder, ip_adapter=ip_adapters / "ip" / name).image_tokens(image)
    pipeline, encoder = tiny_models.sd(), ip_adapters / "ip" / "image_encoder"
    pipeline.load_ip_adapter(
        str(ip_adapters / "ip"), subfolder=None, weight_name=name, image_encoder_folder=str(encoder)
    )
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    with torch.no_grad():
        hidden = pipeline.image_encoder((image - mean) / std, output_hidden_states=True).hidden_states[-2]
        theirs = pipeline.unet.encoder_hid_proj.image_projection_layers[0](hidden)
    assert far(ours.flatten(), theirs.flatten()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["other/ip-adapter-plus_sd15.safetensors", "ip/ip-adapter-faceid_sd15.safetensors"])
def test_ip_adapter_that_does_not_fit_is_refused(work: Path, ip_adapters, sd_folder: Path, name) -> None:
    """Case 29 (diffusers#7766): an image encoder of another width, FaceID."""
    Image.new("RGB", (32, 32), "grey").save(work / "a.png")
    tiny_models.motion_module().save_pretrained(work / "mm")
    said = run(
        "animate", work / "a.png", "a cat", "--model", sd_folder, "--motion-module", work / "mm",
        "--ip-adapter", ip_adapters / name, *SMALL, "-o", work / "x.mp4",
    )  # fmt: skip
    assert said.status == 2 and not said.crashed
