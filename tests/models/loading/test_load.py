"""Loading from folders, the Hub, live pipelines and files, and the errors for what cannot be loaded."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from models.formats.test_lora import TEXT, UNET, deltas, kohya
from models.loading.conftest import assert_same, hub_of
from safetensors.torch import load_file, save_file

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.models.loading import load as load_module
from kineograph.models.loading.load import load
from kineograph.models.loading.options import LoadOptions
from kineograph.options import declared, validate

# --- folders, the Hub, live pipelines


def test_folder_loads(sd_folder: Path, sd_pipeline) -> None:
    model = load(sd_folder, device="cpu", dtype="float32")
    assert_same(model, load(sd_pipeline))
    assert (model.name, model.device, model.dtype) == ("tiny-sd", torch.device("cpu"), torch.float32)
    assert model.settings == {"source": str(sd_folder)}
    assert load(str(sd_folder), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert len(load(sd_folder, dtype="fp32", prediction_type="v_prediction").schedule.sigmas) == 1000


def test_settings_of_a_model_load_it_again(sd_folder: Path) -> None:
    model = load(sd_folder, vae=sd_folder / "vae", prediction_type="v_prediction", dtype="float32")
    again = load(**json.loads(json.dumps(model.settings)), dtype="float32")
    assert again.settings == model.settings
    assert again.schedule == model.schedule
    assert_same(again, model)


def test_settings_with_a_lora_and_a_textual_inversion_load_the_model_again(sd_folder: Path, tmp_path: Path) -> None:
    plain = load(sd_folder, dtype="float32")
    text = deltas(plain.text_encoders[0].network, TEXT)
    tensors = kohya("lora_unet", deltas(plain.net.image_unet, UNET), alpha=1.0)
    tensors |= kohya("lora_te", {f"text_model.{path}": pair for path, pair in text.items()}, alpha=1.0)
    save_file(tensors, tmp_path / "style.safetensors")
    save_file({"emb_params": torch.ones(2, 32)}, tmp_path / "dog.safetensors")
    model = load(
        sd_folder,
        lora=(tmp_path / "style.safetensors", 0.5),
        textual_inversion={"<dog>": tmp_path / "dog.safetensors"},
        dtype="float32",
    )
    again = load(**json.loads(json.dumps(model.settings)), dtype="float32")
    assert model.settings == {
        "source": str(sd_folder),
        "lora": [[str(tmp_path / "style.safetensors"), 0.5]],
        "textual_inversion": {"<dog>": str(tmp_path / "dog.safetensors")},
    }
    assert again.settings == model.settings
    assert_same(again, model)
    told, expected = (each.prompt(["a <dog>"]).tokens for each in (again, model))
    assert torch.equal(told, expected)
    assert not torch.equal(told, plain.prompt(["a <dog>"]).tokens)


RECORDED_BEFORE = {
    "source", "motion_module", "motion_adapter", "adapter", "ip_adapter", "lora", "controlnet", "textual_inversion",
    "vae", "decoder", "config", "prediction_type", "revision", "variant",
}  # fmt: skip


def test_every_recorded_option_is_in_the_settings() -> None:
    values = {"prediction_type": "sample", "clip_skip": 1, "lora": [["there", 1.0]]}
    given = {name: values.get(name, "there") for name, each in declared(LoadOptions).items() if each.recorded}
    others = {"device": "cpu", "dtype": "float32", "token": "t", "cache_dir": "there", "local_files_only": True}
    request = load_module.Request("there", validate({**given, **others}, LoadOptions))
    assert request.settings == {"source": "there", **given}
    assert set(load_module.RECORDED) >= RECORDED_BEFORE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loras": "a"}, "there is no option `loras`; did you mean `lora`"),
        ({"motion_modul": "a"}, "there is no option `motion_modul`; did you mean `motion_module`"),
        ({"motion_module": 3}, "`motion_module` is .*, not 3"),
        ({"lora": 0.5}, "`lora` is .*, not 0.5"),
        ({"controlnet": {"canny": 1}}, "`controlnet` is .*, not {'canny': 1}"),
        ({"prediction_type": "v"}, "`prediction_type` is epsilon or v_prediction or sample, not 'v'"),
        ({"clip_skip": -1}, "`clip_skip` is a whole number at least 0, not -1"),
        ({"variant": 16}, "`variant` is a text, not 16"),
        ({"dtype": "int8"}, "dtype .* 'int8'"),
    ],
)
def test_invalid_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("nowhere/nothing", **options)


def test_options_are_in_the_signature_and_the_documentation() -> None:
    assert {*inspect.signature(load).parameters} == {"source", *declared(kg.LoadOptions)}
    assert "clip_skip: Number of the text encoder's last layers" in (load.__doc__ or "")


def test_options_import_no_networks() -> None:
    code = "import sys, kineograph; kineograph.LoadOptions; print({'torch', 'diffusers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_clip_skip_changes_prompts_and_is_replayed(sd_folder: Path, tmp_path: Path) -> None:
    plain, model = (load(sd_folder, clip_skip=skipped, dtype="float32") for skipped in (0, 1))
    assert model.settings == {"source": str(sd_folder), "clip_skip": 1}
    tokens = model.prompt(["a fish"]).tokens
    assert torch.equal(tokens, plain.prompt(["a fish"], clip_skip=1).tokens)
    assert torch.equal(plain.prompt(["a fish"]).tokens, model.prompt(["a fish"], clip_skip=0).tokens)
    assert not torch.equal(tokens, plain.prompt(["a fish"]).tokens)
    video, other = (kg.generate(each, "a fish", num_frames=1, num_inference_steps=1, seed=1) for each in (model, plain))
    again = kg.replay(video.save(tmp_path / "fish.mp4"), trust=True)
    assert (again.frames == video.frames).all()
    assert (again.frames != other.frames).any()
    assert again.settings == video.settings


def test_default_is_the_pocket_model(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "POCKET", tmp_path / "weights")
    with pytest.raises(InputError, match="pocket model is not in this installation"):
        load()
    shutil.copytree(sd_folder, tmp_path / "weights")
    (tmp_path / "weights" / "vocabulary.json").write_text('["red", "fish"]')
    model = load(dtype="float32")
    assert model.name == "pocket"
    assert model.settings == {"source": "pocket"}
    assert model.unknown_words("a red fish") == ["a"]
    (tmp_path / "weights" / "vocabulary.json").write_text('{"subjects": ["a fish"], "colours": ["red"]}')
    assert load(dtype="float32").unknown_words("a red fish swimming") == ["swimming"]


def test_live_pipeline_is_shared_and_unchanged(sdxl_pipeline) -> None:
    model = load(sdxl_pipeline)
    assert model.net.image_unet is sdxl_pipeline.unet
    assert model.vae is sdxl_pipeline.vae
    assert model.settings == {}
    assert load(sdxl_pipeline.to(torch.bfloat16)).dtype == torch.bfloat16
    with pytest.warns(InputWarning, match="slow on a CPU"):
        half = load(sdxl_pipeline.to(torch.float16))
    assert (half.vae.dtype, sdxl_pipeline.vae.dtype) == (torch.float32, torch.float16)  # it would overflow


def test_repository_is_downloaded_by_name(sd_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_repository_of_several_variants_is_downloaded_once(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: str | None
) -> None:
    """The U-Net has both files, the VAE one in float16, the text encoder one in float32."""
    repository, cache = shutil.copytree(sd_folder, tmp_path / "repository"), tmp_path / "cache"
    for part in ("unet", "vae"):
        stem = repository / part / "diffusion_pytorch_model"
        halved = {name: each.half() for name, each in load_file(f"{stem}.safetensors").items()}
        save_file(halved, f"{stem}.fp16.safetensors", metadata={"format": "pt"})
    (repository / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub_of(repository, cache, []))
    load("someone/some-model", variant=variant, dtype="float32")
    downloaded = {str(each.relative_to(cache)) for each in cache.rglob("*.safetensors")}
    assert downloaded == {
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        f"unet/diffusion_pytorch_model.{'fp16.' if variant else ''}safetensors",
    }


def test_unreachable_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"neither a path here nor in the cache of the Hub, and the Hub is not reached"
    ):
        load("someone/some-model", cache_dir=tmp_path)


# --- another VAE


def test_other_vae_from_a_folder_a_pipeline_a_file_or_memory(
    sd_folder: Path, make_sd, checkpoint, tmp_path: Path
) -> None:
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


def test_vae_that_does_not_fit_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="latents of 8 channels, and the model 4"):
        load(sd_folder, vae=AutoencoderKL(latent_channels=8, block_out_channels=(4,), norm_num_groups=4))
    save_file({"something.else": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match=r"not a VAE like the model's own.*1 are not known \(something.else\)"):
        load(sd_folder, vae=tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match="no VAE in diffusers layout"):
        load(sd_folder, vae=tmp_path)


def test_float16_vae_of_sdxl_is_converted_to_float32(sdxl_folder: Path) -> None:
    with pytest.warns(InputWarning, match="float16 is slow on a CPU.* bfloat16, or float32"):
        model = load(sdxl_folder, device="cpu", dtype="float16")
    assert (model.dtype, model.vae.dtype) == (torch.float16, torch.float32)


# --- bad sources


def test_missing_path_is_refused_with_a_suggestion(sd_folder: Path) -> None:
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


@pytest.mark.slow
def test_built_in_parts_are_known_to_their_own_argument_alone() -> None:
    with pytest.raises(InputError, match="pocket-vidrd, which is built in, is not for `adapter`"):
        load("pocket-video", adapter="pocket-vidrd")
    with pytest.raises(InputError, match="pocket-fox, which is built in, is not for `decoder`"):
        load("pocket-video", decoder="pocket-fox")


def test_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(InputError, match=r"has no model_index.json.*It holds weights.safetensors"):
        load(tmp_path)


def test_pipeline_of_another_family_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd_folder, tmp_path / "other")
    index = json.loads((sd_folder / "model_index.json").read_text())
    del index["unet"]
    (tmp_path / "other" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"has a unet of the kind None: expected UNet2DConditionModel"):
        load(tmp_path / "other")
    (tmp_path / "other" / "model_index.json").write_text("{")
    with pytest.raises(InputError, match=r"model_index.json is missing or damaged"):
        load(tmp_path / "other")


def test_damaged_folder_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd_folder, tmp_path / "cut")
    file = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"safetensors \(5000 bytes\) is a damaged or truncated safetensors file"):
        load(tmp_path / "cut")
    (tmp_path / "cut" / "tokenizer" / "tokenizer.json").unlink()
    shutil.copy(sd_folder / "unet" / file.name, file)
    with pytest.raises(InputError, match=r"has no tokenizer/tokenizer.json"):
        load(tmp_path / "cut")
    file.unlink()
    with pytest.raises(InputError, match=r"cut/unet is incomplete or damaged"):
        load(tmp_path / "cut")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_damaged_file_is_refused(checkpoint, tmp_path: Path) -> None:
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


def test_other_kind_of_file_is_refused_with_its_probable_kind(checkpoint, tmp_path: Path) -> None:
    for tensors, said in (
        ({"lora_unet_mid_block.lora_down.weight": torch.zeros(1)}, "It looks like a LoRA.*pass this as `lora`"),
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
def test_pickled_code_is_refused_and_named(tmp_path: Path, new) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"wants to run code \((posix|os)\.system\)"):
        load(tmp_path / "bad.ckpt")
    assert not Path("/tmp/kineograph-was-here").exists()


def test_torch_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(InputError, match="holds no named tensors"):
        load(tmp_path / "empty.ckpt")


def test_safety_checker_of_a_pipeline_is_named(sd_pipeline) -> None:
    sd_pipeline.safety_checker = torch.nn.Identity()
    with pytest.warns(InputWarning, match="the safety checker of this pipeline is not used"):
        load(sd_pipeline)


def test_networks_of_different_models_are_refused(sd_folder: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd_folder, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "text_encoder")
    shutil.copytree(sdxl_folder / "text_encoder", tmp_path / "mixed" / "text_encoder")
    with pytest.raises(InputError, match="cross_attention_dim is 32, and its text encoders give 16"):
        load(tmp_path / "mixed")
