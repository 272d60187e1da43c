"""Single files and folders with the tensor names of public checkpoints give the networks they were written from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from cases.public_layouts import (
    BETAS,
    Weights,
    load,
    networks,
    normal,
    sd,
    sd2,
    sdxl,
    shake,
    single_file,
    unet,
    vae,
    with_ema,
)
from cases.tiny_models import far, parameterisation
from diffusers import DiffusionPipeline
from format_rows import loads
from safetensors.torch import load_file, save_file
from torch import Tensor

import kineograph as kg

PROMPT = "a fish swims, fast."
LATENTS = normal(1, 4, 16, 16, seed=3)
CLOSE, CLOSE_IN_FP16 = 1e-4, 3e-2


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def outputs(model: kg.Model) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of a prompt, what the U-Net predicts with them, and a decoded image from -1 to 1."""
    cond = model.prompt([PROMPT])
    return cond.tokens, model.net(LATENTS[:, None], 501.0, cond)[:, 0], 2 * model.decode(LATENTS[:, None])[:, 0] - 1


def outputs_of_diffusers(pipeline: DiffusionPipeline) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of a diffusers pipeline."""
    image = pipeline.vae.decode(LATENTS / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1)
    if not hasattr(pipeline, "text_encoder_2"):
        tokens, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
        return tokens, pipeline.unet(LATENTS, 501, tokens).sample, image
    tokens, _, pooled, _ = pipeline.encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])}
    return tokens, pipeline.unet(LATENTS, 501, tokens, added_cond_kwargs=added).sample, image


# --- formats/30-single-file


def sd15() -> DiffusionPipeline:
    return sd(network=unet(layers_per_block=2))


class Checkpoint(NamedTuple):
    """A folder with configurations and tokenizers, weights by their single-file names, and what they compute."""

    config: Path
    weights: Weights
    prediction_type: str
    outputs: tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    pipeline = request.param()
    pipeline.vae = vae(pipeline.vae.config.scaling_factor, widths=(8, 16, 16, 16), layers=2)
    for network in networks(pipeline):
        shake(network)
    config = tmp_path_factory.mktemp("checkpoint")
    pipeline.save_pretrained(config)
    for file in config.rglob("*.safetensors"):
        file.unlink()
    with torch.no_grad():
        wanted = outputs_of_diffusers(pipeline)
    return Checkpoint(config, single_file(pipeline), pipeline.scheduler.config.prediction_type, wanted)


def write_safetensors(folder: Path, weights: Weights) -> Path:
    save_file(weights, folder / "model.safetensors")
    return folder / "model.safetensors"


def write_fp16(folder: Path, weights: Weights) -> Path:
    halved = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    return write_safetensors(folder, halved)


def write_ckpt_with_ema(folder: Path, weights: Weights) -> Path:
    whole = {"state_dict": with_ema(weights), "epoch": 3, "global_step": 10, "pytorch-lightning_version": "1.7.7"}
    torch.save(whole, folder / "model.ckpt")
    return folder / "model.ckpt"


each_family = pytest.mark.parametrize("checkpoint", [sd15, sd2, sdxl], ids=["sd15", "sd2", "sdxl"], indirect=True)


@pytest.mark.slow
@loads("Checkpoint", "single file of SD 1.x, SD 2.x and SDXL (`.safetensors`, `.ckpt`)", within=CLOSE)
@each_family
@pytest.mark.parametrize(
    ("write", "bar"),
    [(write_safetensors, CLOSE), (write_ckpt_with_ema, CLOSE), (write_fp16, CLOSE_IN_FP16)],
    ids=["safetensors", "ckpt-with-ema", "fp16-safetensors"],
)
def test_single_file_gives_the_pipeline_it_was_written_from(
    work: Path, checkpoint: Checkpoint, write: Callable[[Path, Weights], Path], bar: float
) -> None:
    model = load(write(work, checkpoint.weights), config=checkpoint.config)
    assert parameterisation(model) == checkpoint.prediction_type
    for got, wanted in zip(outputs(model), checkpoint.outputs, strict=True):
        assert far(got, wanted) < bar


@pytest.mark.parametrize("checkpoint", [sd15], ids=["sd15"], indirect=True)
def test_lightning_file_with_a_callback_in_it_is_opened_or_refused(
    work: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sd-v1-4.ckpt holds a class of pytorch_lightning, which is not installed."""
    packages = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    callback = type("ModelCheckpoint", (), {"__module__": packages[-1]})
    with monkeypatch.context() as patch:
        for name in packages:
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[packages[-1]].ModelCheckpoint = callback
        torch.save({"state_dict": checkpoint.weights, "callbacks": {callback: {"best": 1}}}, work / "model.ckpt")
    with suppress(kg.InputError):
        assert outputs(load(work / "model.ckpt", config=checkpoint.config))


# --- formats/31-public-folder


def rename_text_encoder(folder: Path) -> None:
    """Give a text encoder's files the names that transformers 4 wrote."""
    weights = {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"transformers_version": "4.22.0", "torch_dtype": config.pop("dtype", "float32")}
    (folder / "config.json").write_text(json.dumps(config))


def rename_vae_attention(folder: Path) -> None:
    """Give a VAE's attention the names that diffusers wrote before 0.15."""
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): weights[name] for name in weights}
    save_file(weights, file, metadata={"format": "pt"})


OLD_PNDM = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "skip_prk_steps": True, "set_alpha_to_one": False,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


@pytest.fixture(params=[sd, sdxl])
def shaken(request: pytest.FixtureRequest) -> DiffusionPipeline:
    pipeline = request.param()
    for network in networks(pipeline):
        shake(network)
    return pipeline


@loads("Checkpoint", "folder with names of old versions of diffusers and transformers", within=CLOSE)
@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
def test_folder_with_the_names_of_old_versions_gives_the_same_model(work: Path, shaken: DiffusionPipeline) -> None:
    wanted = outputs(load(shaken))
    shaken.save_pretrained(work)
    for encoder in work.glob("text_encoder*"):
        rename_text_encoder(encoder)
    rename_vae_attention(work / "vae")
    if isinstance(shaken, type(sd())):
        (work / "scheduler" / "scheduler_config.json").write_text(json.dumps(OLD_PNDM | BETAS))
    for got, each in zip(outputs(load(work)), wanted, strict=True):
        assert far(got, each) < CLOSE


def test_folder_of_fp16_files_only_opens_as_the_variant(work: Path, shaken: DiffusionPipeline) -> None:
    wanted = outputs(load(shaken))
    shaken.to(torch.float16).save_pretrained(work, variant="fp16")
    for got, each in zip(outputs(load(work, variant="fp16")), wanted, strict=True):
        assert far(got, each) < 2e-2


def test_folder_of_fp16_files_only_opens_or_is_refused_without_the_variant(
    work: Path, shaken: DiffusionPipeline
) -> None:
    wanted = outputs(load(shaken))
    shaken.to(torch.float16).save_pretrained(work, variant="fp16")
    try:
        model = load(work)
    except kg.InputError:
        return
    for got, each in zip(outputs(model), wanted, strict=True):
        assert far(got, each) < 2e-2
