"""Models load from wherever they live, and what is wrong with a source is said in the user's words."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from kineograph.errors import InputError, InputWarning
from kineograph.models import placement
from kineograph.models.loading import components, known_configurations
from kineograph.models.loading import load as checkpoints
from kineograph.models.loading.load import load


def weights(model) -> dict[str, Tensor]:
    networks = {"unet": model.net.image_unet, "vae": model.vae, "text": model.text_encoders[0].network}
    return {f"{part}.{name}": value for part, net in networks.items() for name, value in net.state_dict().items()}


def assert_same(model, other) -> None:
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- folders, the Hub, live pipelines


def test_a_folder_becomes_a_model(sd_folder, sd_pipeline):
    model = load(sd_folder, device="cpu", dtype="float32")
    assert_same(model, load(sd_pipeline))
    assert (model.name, model.device, model.dtype) == ("tiny-sd", torch.device("cpu"), torch.float32)
    assert model.settings == {"source": str(sd_folder)}
    assert load(str(sd_folder), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert len(load(sd_folder, dtype="fp32", prediction_type="v_prediction").schedule.sigmas) == 1000


def test_the_settings_of_a_model_make_it_again(sd_folder):
    model = load(sd_folder, vae=sd_folder / "vae", prediction_type="v_prediction", dtype="float32")
    again = load(**json.loads(json.dumps(model.settings)), dtype="float32")
    assert again.settings == model.settings
    assert again.schedule == model.schedule
    assert_same(again, model)


def test_nothing_given_is_the_pocket_model(sd_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "POCKET", tmp_path / "weights")
    with pytest.raises(InputError, match="pocket model is not in this installation"):
        load()
    shutil.copytree(sd_folder, tmp_path / "weights")
    (tmp_path / "weights" / "vocabulary.json").write_text('["red", "fish"]')
    model = load(dtype="float32")
    assert model.name == "pocket"
    assert model.settings == {"source": "pocket"}
    assert model.unknown_words("a red fish") == ["a"]


def test_a_live_pipeline_is_shared_and_left_as_it_is(sdxl_pipeline):
    model = load(sdxl_pipeline)
    assert model.net.image_unet is sdxl_pipeline.unet
    assert model.vae is sdxl_pipeline.vae
    assert model.settings == {}
    assert load(sdxl_pipeline.to(torch.bfloat16)).dtype == torch.bfloat16
    half = load(sdxl_pipeline.to(torch.float16))
    assert (half.vae.dtype, sdxl_pipeline.vae.dtype) == (torch.float32, torch.float16)  # it would overflow


def test_a_repository_is_asked_for_by_name(sd_folder, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.update(name=name, **options) or str(sd_folder),
    )
    model = load("someone/some-model", revision="v2", token="t", cache_dir=tmp_path, dtype="float32")
    assert model.name == "someone/some-model"
    assert model.settings == {"source": "someone/some-model", "revision": "v2"}
    assert (asked["name"], asked["revision"], asked["token"], asked["cache_dir"]) == (
        "someone/some-model", "v2", "t", tmp_path,
    )  # fmt: skip
    assert "unet/diffusion_pytorch_model.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".ckpt", ".py")) for pattern in asked["allow_patterns"])


def test_a_repository_out_of_reach_is_said_to_be(tmp_path):
    with pytest.raises(
        InputError, match=r"neither a path here nor in the cache of the Hub, and the Hub is not reached"
    ):
        load("someone/some-model", cache_dir=tmp_path)


# --- single files


def in_ldm(pipeline) -> dict[str, Tensor]:
    """The U-Net and VAE of a pipeline under the names of Stable Diffusion's own code, written here a second time."""
    tensors = {f"model.diffusion_model.{unet_in_ldm(name)}": v for name, v in pipeline.unet.state_dict().items()}
    tensors |= {f"first_stage_model.{vae_in_ldm(name)}": v for name, v in pipeline.vae.state_dict().items()}
    return {name: value.clone() for name, value in tensors.items()}


def prefixed(prefix: str, network) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value.clone() for name, value in network.state_dict().items()}


def in_openclip(prefix: str, network) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names: queries, keys and values are one matrix, the projection is transposed."""
    state = {name.removeprefix("text_model."): value.clone() for name, value in network.state_dict().items()}
    tensors = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    for layer in range(network.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            attention = [state[f"{ours}self_attn.{each}_proj.{kind}"] for each in "qkv"]
            tensors[f"{theirs}attn.in_proj_{kind}"] = torch.cat(attention)
            for here, there in {
                "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            }.items():  # fmt: skip
                tensors[f"{theirs}{there}.{kind}"] = state[f"{ours}{here}.{kind}"]
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def renamed(name: str, pairs: Mapping[str, str]) -> str:
    for ours, theirs in pairs.items():
        name = name.replace(ours, theirs)
    return name


def unet_in_ldm(name: str) -> str:
    """For two levels of one resnet each, with attention in the first (SD) or in the second (SDXL)."""
    return renamed(
        name,
        {
            "conv_in.": "input_blocks.0.0.", "down_blocks.0.resnets.0": "input_blocks.1.0",
            "down_blocks.0.attentions.0": "input_blocks.1.1",
            "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
            "down_blocks.1.resnets.0": "input_blocks.3.0", "mid_block.resnets.0": "middle_block.0",
            "down_blocks.1.attentions.0": "input_blocks.3.1", "mid_block.attentions.0": "middle_block.1",
            "mid_block.resnets.1": "middle_block.2", "add_embedding.linear_1": "label_emb.0.0",
            "add_embedding.linear_2": "label_emb.0.2", "up_blocks.0.attentions.0": "output_blocks.0.1",
            "up_blocks.0.attentions.1": "output_blocks.1.1",
            "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
            "up_blocks.0.upsamplers.0": "output_blocks.1.1", "up_blocks.1.resnets.0": "output_blocks.2.0",
            "up_blocks.1.attentions.0": "output_blocks.2.1", "up_blocks.1.resnets.1": "output_blocks.3.0",
            "up_blocks.1.attentions.1": "output_blocks.3.1", "conv_norm_out": "out.0", "conv_out": "out.2",
            "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "norm1.": "in_layers.0." if "resnets" in name else "norm1.", "conv1": "in_layers.2",
            "time_emb_proj": "emb_layers.1", "norm2.": "out_layers.0." if "resnets" in name else "norm2.",
            "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
        },
    )  # fmt: skip


def vae_in_ldm(name: str) -> str:
    return renamed(
        name,
        {
            "encoder.down_blocks.0.resnets.0": "encoder.down.0.block.0",
            "encoder.down_blocks.1.resnets.0": "encoder.down.1.block.0",
            "encoder.down_blocks.0.downsamplers.0": "encoder.down.0.downsample",
            "decoder.up_blocks.0.resnets": "decoder.up.1.block", "decoder.up_blocks.1.resnets": "decoder.up.0.block",
            "decoder.up_blocks.0.upsamplers.0": "decoder.up.1.upsample",
            "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
            "mid_block.attentions.0": "mid.attn_1",
            "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
            "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
        },
    )  # fmt: skip


@pytest.fixture
def checkpoint(sd_pipeline) -> dict[str, Tensor]:
    return in_ldm(sd_pipeline) | prefixed("cond_stage_model.transformer.text_model.", sd_pipeline.text_encoder)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_becomes_a_model(checkpoint, sd_folder, sd_pipeline, tmp_path, ending):
    path = tmp_path / f"merged.{ending}"
    if ending == "safetensors":
        save_file(checkpoint, path)
    else:
        torch.save({"state_dict": checkpoint, "epoch": 3}, path)
    model = load(path, config=sd_folder, dtype="float32")
    assert_same(model, load(sd_pipeline))
    assert model.settings == {"source": str(path), "config": str(sd_folder)}
    assert model.prompt(["a fish"]).tokens.shape == (1, 77, 32)


def test_a_single_file_of_sdxl_becomes_a_model(sdxl_folder, sdxl_pipeline, tmp_path):
    upsampler = "model.diffusion_model.output_blocks.1."  # is behind the attention
    tensors = {
        name.replace(f"{upsampler}1.conv.", f"{upsampler}2.conv."): v for name, v in in_ldm(sdxl_pipeline).items()
    }
    tensors |= prefixed("conditioner.embedders.0.transformer.text_model.", sdxl_pipeline.text_encoder)
    tensors |= in_openclip("conditioner.embedders.1.model.", sdxl_pipeline.text_encoder_2)
    save_file(tensors, tmp_path / "xl.safetensors")
    model, expected = load(tmp_path / "xl.safetensors", config=sdxl_folder, dtype="float32"), load(sdxl_pipeline)
    assert_same(model, expected)
    assert model.force_zeros_for_empty_prompt
    assert torch.equal(model.prompt(["a fish"]).embedding, expected.prompt(["a fish"]).embedding)


def test_a_single_file_of_another_size_needs_its_configuration(checkpoint, tmp_path):
    save_file(checkpoint, tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match=r"U-Net 8 wide that reads tokens 32 wide; built in are .*pass config="):
        load(tmp_path / "tiny.safetensors")


def test_a_single_file_that_does_not_fit_its_configuration_is_refused(checkpoint, make_sd, sdxl_folder, tmp_path):
    save_file(checkpoint, tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match=r"tiny.safetensors does not fit its configuration"):
        load(tmp_path / "tiny.safetensors", config=sdxl_folder)
    make_sd().save_pretrained(tmp_path / "config")
    norm = checkpoint.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias")
    save_file(checkpoint, tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="lacks 1 tensors of the text_encoder: final_layer_norm.bias"):
        load(tmp_path / "cut.safetensors", config=tmp_path / "config", dtype="float32")
    checkpoint["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = norm
    del checkpoint["model.diffusion_model.out.2.bias"]
    save_file(checkpoint, tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"does not fit its configuration: it lacks tensors"):
        load(tmp_path / "cut.safetensors", config=tmp_path / "config")


PARAMETERS = {  # published sizes of the U-Net and of each text encoder
    "Stable Diffusion 1.x": (859_520_964, 123_060_480),
    "Stable Diffusion 2.x": (865_910_724, 340_387_840),
    "Stable Diffusion XL": (2_567_463_684, 123_060_480, 694_659_840),
}


@pytest.mark.parametrize("known", known_configurations.FAMILIES, ids=lambda known: known.name)
@pytest.mark.filterwarnings("ignore:a file of Stable Diffusion 2.x does not state")
def test_the_catalogue_describes_the_released_networks(known, tmp_path):
    cross_attention = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    tensors = {
        known_configurations.FIRST_LAYER: torch.empty(320, 4, 3, 3, device="meta"),
        cross_attention: torch.empty(1280, known.cross_attention, device="meta"),
    }
    assert known_configurations.match_family(tmp_path, tensors) is known
    known_configurations.write_configuration(known, tensors, None, tmp_path)
    with torch.device("meta"):
        nets = [UNet2DConditionModel.from_config(components.read_json(tmp_path / "unet" / "config.json"))]
        for end, kind in components.text_encoder_classes(components.read_index(tmp_path)):
            nets.append(kind(kind.config_class.from_pretrained(tmp_path / f"text_encoder{end}")))
        vae = AutoencoderKL.from_config(components.read_json(tmp_path / "vae" / "config.json"))
    assert tuple(sum(each.numel() for each in net.parameters()) for net in nets) == PARAMETERS[known.name]
    assert sum(each.numel() for each in vae.parameters()) == 83_653_863


def test_what_a_file_says_of_its_network_is_heard(tmp_path):
    tensors = {known_configurations.FIRST_LAYER: torch.empty(320, 9, 3, 3, device="meta")}
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    known_configurations.write_configuration(known_configurations.FAMILIES[2], tensors | marks, None, tmp_path)
    scheduler = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["in_channels"] == 9
    with pytest.warns(InputWarning, match="assuming v_prediction"):
        known_configurations.write_configuration(known_configurations.FAMILIES[1], tensors, None, tmp_path)


def test_a_tokenizer_out_of_reach_is_said_to_be_what_is_missing(checkpoint, tmp_path, monkeypatch):
    known = known_configurations.FAMILIES[0]
    monkeypatch.setattr(known_configurations, "match_family", lambda path, tensors: known)
    save_file(checkpoint, tmp_path / "offline.safetensors")
    with pytest.raises(InputError, match=r"holds no tokenizer.*pass config=.*the Hub is not reached"):
        load(tmp_path / "offline.safetensors", cache_dir=tmp_path)


# --- another VAE


def test_another_vae_comes_from_a_folder_a_pipeline_a_file_or_memory(sd_folder, make_sd, checkpoint, tmp_path):
    model = load(sd_folder, dtype="float32")
    other = make_sd().vae
    torch.nn.init.zeros_(other.decoder.conv_out.bias)
    other.save_pretrained(tmp_path / "vae")
    changed = {name: v for name, v in checkpoint.items() if name.startswith("first_stage_model.")}
    changed["first_stage_model.decoder.conv_out.bias"] = torch.zeros(3)
    save_file(changed, tmp_path / "vae.safetensors")
    for vae in (tmp_path / "vae", tmp_path, tmp_path / "vae.safetensors", other):
        opened = load(sd_folder, vae=vae, dtype="float32")
        assert not opened.vae.decoder.conv_out.bias.any()
        assert torch.equal(opened.vae.encoder.conv_in.weight, model.vae.encoder.conv_in.weight)
        assert bool(opened.settings) == (vae is not other)


def test_a_vae_that_does_not_fit_is_refused(sd_folder, tmp_path):
    with pytest.raises(InputError, match="latents of 8 channels, and the model 4"):
        load(sd_folder, vae=AutoencoderKL(latent_channels=8, block_out_channels=(4,), norm_num_groups=4))
    save_file({"something.else": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match=r"not a VAE like the model's own.*1 tensors are called something.else"):
        load(sd_folder, vae=tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match="no VAE in diffusers layout"):
        load(sd_folder, vae=tmp_path)


# --- bad sources


def test_a_missing_path_comes_with_a_hint(sd_folder):
    with pytest.raises(InputError, match=r"there is no .*tiny-sq: expected a .*hub id.*; did you mean .*tiny-sd\?"):
        load(sd_folder.with_name("tiny-sq"))
    with pytest.raises(
        InputError, match=r"there is no /nowhere/at/all.safetensors: .*; there is no folder /nowhere/at"
    ):
        load("/nowhere/at/all.safetensors")
    with pytest.raises(
        InputError, match=r"there is no pocket-vido: .*; did you mean pocket-video, which is built in\?"
    ):
        load("pocket-vido")


def test_a_built_in_part_serves_in_its_own_place_alone():
    with pytest.raises(InputError, match="there is no pocket-vidrd"):
        load("pocket-video", adapter="pocket-vidrd")
    with pytest.raises(InputError, match="there is no pocket-fox"):
        load("pocket-video", decoder="pocket-fox")


def test_a_folder_without_an_index_is_refused(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(InputError, match=r"has no model_index.json.*It holds weights.safetensors"):
        load(tmp_path)


def test_a_pipeline_of_another_family_is_refused(sd_folder, tmp_path):
    shutil.copytree(sd_folder, tmp_path / "other")
    index = json.loads((sd_folder / "model_index.json").read_text())
    del index["unet"]
    (tmp_path / "other" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"has a unet of the kind None: expected UNet2DConditionModel"):
        load(tmp_path / "other")
    (tmp_path / "other" / "model_index.json").write_text("{")
    with pytest.raises(InputError, match=r"model_index.json is missing or damaged"):
        load(tmp_path / "other")


def test_a_damaged_folder_is_refused(sd_folder, tmp_path):
    shutil.copytree(sd_folder, tmp_path / "cut")
    file = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut is incomplete or damaged"):
        load(tmp_path / "cut")
    (tmp_path / "cut" / "tokenizer" / "tokenizer.json").unlink()
    shutil.copy(sd_folder / "unet" / file.name, file)
    with pytest.raises(InputError, match=r"has no tokenizer/tokenizer.json"):
        load(tmp_path / "cut")
    file.unlink()
    with pytest.raises(InputError, match=r"cut is incomplete or damaged"):
        load(tmp_path / "cut")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_damaged_file_is_refused(checkpoint, tmp_path):
    save_file(checkpoint, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    torch.save(checkpoint, tmp_path / "whole.ckpt")
    for content, said in {
        whole[: len(whole) // 2]: "damaged or truncated safetensors file",
        (tmp_path / "whole.ckpt").read_bytes()[:9000]: "damaged or truncated torch file",
        b"": "0 bytes",
        b"version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer",
        b"<!DOCTYPE html><html>": "a web page",
        b"something else entirely": "neither a safetensors nor a torch file",
    }.items():
        with pytest.raises(InputError, match=said):
            load(written(tmp_path / "bad.safetensors", content))


def test_a_foreign_file_is_refused_with_what_it_looks_like(checkpoint, tmp_path):
    for tensors, said in (
        ({"lora_unet_mid_block.lora_down.weight": torch.zeros(1)}, "It looks like a LoRA.*pass this as lora="),
        ({"double_blocks.0.img_attn": torch.zeros(1)}, "a transformer"),
        ({"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "Its 2 tensors are called fc.*bias, fc.weight"),
        (
            {name: v for name, v in checkpoint.items() if "diffusion_model" in name},
            "no VAE and no text encoder.*U-Net alone",
        ),
    ):
        save_file(tensors, tmp_path / "foreign.safetensors")
        with pytest.raises(InputError, match=said):
            load(tmp_path / "foreign.safetensors")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/kineograph-was-here",)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickled_file_with_code_is_refused_and_the_code_named(tmp_path, new):
    torch.save({"state_dict": Bomb()}, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"wants to run code \((posix|os)\.system\)"):
        load(tmp_path / "bad.ckpt")
    assert not Path("/tmp/kineograph-was-here").exists()


def test_a_torch_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(InputError, match="holds no named tensors"):
        load(tmp_path / "empty.ckpt")


# --- where to


@pytest.mark.parametrize(
    ("capabilities", "dtype", "reason"),
    [
        ({"cpu_name": "Xeon", "amx_bf16": True}, torch.bfloat16, r"Xeon multiplies bfloat16 matrices \(amx_bf16\)"),
        ({"cpu_name": "EPYC", "avx512_bf16": True}, torch.bfloat16, r"\(avx512_bf16\)"),
        ({"architecture": "x86_64", "avx2": True}, torch.float32, "x86_64 has no bfloat16 matrix units"),
    ],
)
def test_a_cpu_computes_in_what_its_units_can(monkeypatch, capabilities, dtype, reason):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    place = placement.choose_placement("cpu")
    assert place.dtype == dtype
    assert place.memory_format == torch.channels_last
    assert re.search(reason, place.reason)


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_a_gpu_computes_in_what_its_units_can(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    place = placement.choose_placement()
    assert (place.device.type, place.dtype) == ("cuda", dtype)
    assert "Some GPU" in place.reason


def test_what_is_asked_for_is_done_or_refused():
    place = placement.choose_placement("cpu", "bf16")
    assert place.dtype == placement.choose_placement("cpu", torch.bfloat16).dtype == torch.bfloat16
    assert "as asked" in place.reason
    with pytest.raises(InputError, match="float32, bfloat16 or float16, got 'int8'"):
        placement.choose_placement(dtype="int8")
    with pytest.raises(InputError, match="there is no device 'gpu'; available are: "):
        placement.choose_placement("gpu")
    with pytest.raises(InputError, match="device cuda:7 is not available; available are: "):
        placement.choose_placement("cuda:7")


def test_a_float16_vae_of_sdxl_is_kept_in_float32(sdxl_folder):
    model = load(sdxl_folder, device="cpu", dtype="float16")
    assert (model.dtype, model.vae.dtype) == (torch.float16, torch.float32)
