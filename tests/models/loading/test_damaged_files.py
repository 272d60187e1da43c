"""Models whose files were changed: loaded, or refused in one line that names the file."""

from __future__ import annotations

import json
import random
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from tiny_model_files import ModelFile, list_files, mutate, write_model_files
from transformers import CLIPTextModel

import kineograph as kg
from kineograph.errors import InputError
from kineograph.models import schedulers
from kineograph.models.formats import tensor_files
from kineograph.models.loading import components, load
from kineograph.models.network_folders import check_config


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFile]:
    return write_model_files(tmp_path_factory.mktemp("damaged"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_mutated_file_is_loaded_or_refused(model_files: Mapping[str, ModelFile], seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(40):
        of_kind = generator.choice(list(model_files.values()))
        file = generator.choice(list_files(of_kind))
        content = file.read_bytes()
        file.write_bytes(mutate(content, file.suffix, generator))
        with warnings.catch_warnings(), suppress(InputError):
            warnings.simplefilter("ignore")
            of_kind.load()
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("model_index.json", {"unet": 3}, r"model_index.json is damaged: expected unet to be a library and a class"),
        ("unet/config.json", {"block_out_channels": 3}, r"unet/config.json is damaged: .* block_out_channels .* got 3"),
        ("text_encoder/config.json", {"eos_token_id": None}, "expected eos_token_id to be an integer, got None"),
        ("model_index.json", {"text_encoder": ["transformers", "a" * 5000]}, r"of the kind a{100}\.\.\. expected CLIP"),
        ("unet/config.json", {"norm_eps": "x"}, r"unet/config.json is damaged: expected norm_eps to be float, got 'x'"),
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block is 1000000000, which is more than 100"),
        ("unet/config.json", {"norm_num_groups": -4}, "norm_num_groups is -4, which is negative"),
        ("unet/config.json", {"norm_num_groups": 3}, "unet is incomplete or damaged, or no UNet2DConditionModel"),
        ("vae/config.json", {"latents_mean": "x"}, "vae/config.json is damaged: expected latents_mean to be"),
        ("text_encoder/config.json", {"layer_norm_eps": None}, "expected layer_norm_eps to be"),
        ("text_encoder/config.json", {"clip_skip": "x"}, "`clip_skip` is a whole number"),
        ("tokenizer/tokenizer.json", {"normalizer": 3}, "tokenizer holds no tokenizer of CLIP, or is damaged"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": -1}, "damaged tokenizer: its model_max_length is -1"),
        (
            "tokenizer/tokenizer_config.json",
            {"model_max_length": 7.5},
            "its model_max_length is 7.5",
        ),
        ("scheduler/scheduler_config.json", {"beta_start": -1.0}, "expected betas between 0 and 1"),
        ("scheduler/scheduler_config.json", {"_class_name": [1]}, "_class_name in .* is a text"),
        ("scheduler/scheduler_config.json", {"prediction_type": [1]}, "expected prediction_type to be str, got"),
        ("scheduler/scheduler_config.json", {"steps_offset": {}}, "expected steps_offset to be int, got {}"),
    ],
)
def test_damaged_setting_is_named(sd_folder: Path, tmp_path: Path, file: str, settings: dict, message: str) -> None:
    shutil.copytree(sd_folder, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(InputError, match=message):
        load.load(tmp_path / "model")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "", "{" + '"a":{' * 100])
def test_file_that_is_no_mapping_of_settings_is_refused(sd_folder: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(sd_folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"unet/config.json is (missing or )?damaged"):
        load.load(tmp_path / "model")


def test_settings_of_published_configurations_are_accepted() -> None:
    sdxl = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "upcast_attention": None,
        "class_embed_type": None, "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
        "norm_eps": 1e-05, "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1], "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10], "another_setting": {"of": "someone"},
    }  # fmt: skip
    check_config(sdxl, [UNet2DConditionModel], Path("config.json"))
    text = {"architectures": ["CLIPTextModel"], "eos_token_id": 2, "torch_dtype": "float16", "dropout": 0.0}
    check_config(text | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-05}, [CLIPTextModel], Path("config.json"))


@pytest.mark.filterwarnings("ignore:__array__")  # of LMS, with NumPy 2
@pytest.mark.parametrize("name", sorted(set(schedulers.SAMPLERS) - {"DPMSolverSDEScheduler"}))
def test_configurations_of_schedulers_are_accepted(tmp_path: Path, name: str) -> None:
    getattr(diffusers, name)().save_pretrained(tmp_path / "scheduler")
    assert components.read_scheduler(tmp_path)["_class_name"] == name


def test_programming_errors_are_not_hidden(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((components, "read_unet"), (components, "read_scheduler"), (load, "place")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, lambda *_, **__: len(3))
            with pytest.raises(TypeError, match="has no len"):
                load.load(sd_folder)


def test_weights_of_another_type_are_refused(model_files: Mapping[str, ModelFile], tmp_path: Path) -> None:
    file = model_files["motion module"].path
    tensors = tensor_files.read_tensors(file)
    integers = {
        name: each.view(torch.int32) if name.endswith("norm.weight") else each for name, each in tensors.items()
    }
    save_file(integers, tmp_path / "integers.safetensors")
    with pytest.raises(InputError, match="are of another type"):
        load.load(model_files["folder"].path, motion_module=tmp_path / "integers.safetensors")


def test_archive_that_unpacks_to_many_times_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(InputError, match="bomb.ckpt unpacks to 10,000,000 bytes, many times its own size"):
        tensor_files.read_tensors(tmp_path / "bomb.ckpt")


def test_token_that_the_text_encoder_does_not_know_is_refused(sd_pipeline) -> None:
    sd_pipeline.tokenizer.add_tokens(["<new>"])
    model = kg.load(sd_pipeline)
    with pytest.raises(InputError, match="a token with the number 190, and the text encoder knows 190"):
        model.prompt(["a <new>"])


def test_written_tensors_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        f"tensor {number}": torch.arange(6).reshape(3, 2).to(dtype)
        for number, dtype in enumerate(tensor_files.DTYPE_NAMES)
        if dtype != torch.bool
    } | {"number": torch.tensor(2.5), "empty": torch.zeros(0, 3), "bits": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    tensor_files.write_tensors(tensors, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    tensor_files.write_tensors({"x": torch.eye(3)[:, :2]}, tmp_path / "view", {"made": "here"})
    assert torch.equal(tensor_files.read_content(tmp_path / "view")["x"], torch.eye(3)[:, :2])
    assert tensor_files.read_metadata(tmp_path / "view") == {"format": "pt", "made": "here"}
