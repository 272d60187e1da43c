"""Checkpoints as people share them: single files, folders, variants, distilled models."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from cases import tiny_models
from cases.program import SMALL, run
from cases.tiny_models import far, image_unet, ldm, load, parameterisation, text_networks, tokens_of
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import kineograph as kg

fails = partial(pytest.mark.xfail, strict=True, raises=AssertionError)


def saved(weights: tiny_models.Weights, path: Path) -> Path:
    save_file(weights, path)
    return path


# --- single files


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
def test_ema_weights_are_chosen_as_diffusers_does(work: Path, sd_folder: Path) -> None:
    """Case 1 (diffusers#1818): a full checkpoint holds trained and averaged weights."""
    trained = ldm(tiny_models.sd())
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): weight + 1
        for name, weight in trained.items()
        if name.startswith("model.diffusion_model.")
    }
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1)}
    both = {name: w.half() if w.is_floating_point() else w for name, w in (trained | averaged | counters).items()}
    file = saved(both, work / "full.safetensors")
    ours = image_unet(load(file, config=sd_folder)).state_dict()
    theirs = StableDiffusionPipeline.from_single_file(str(file), config=str(sd_folder), torch_dtype=torch.float32)
    assert [name for name, w in theirs.unet.state_dict().items() if not torch.equal(ours[name], w)] == []


@pytest.mark.parametrize("position_ids", [False, True])
def test_text_encoder_loads_with_and_without_position_ids(work: Path, sd_folder: Path, position_ids) -> None:
    """Case 2 (diffusers#8228): OneTrainer and EveryDream2 leave the position ids out."""
    pipeline = tiny_models.sd()
    weights = ldm(pipeline)
    if position_ids:
        weights["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    model = load(saved(weights, work / "model.safetensors"), config=sd_folder)
    ours = tiny_models.bare(text_networks(model)[0].state_dict())
    theirs = tiny_models.bare(pipeline.text_encoder.state_dict())
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="v_pred mark: ignored where config= is given, without a warning"
)
def test_v_pred_mark_counts_with_a_configuration_given(work: Path, sdxl_folder: Path) -> None:
    """Case 3 (InvokeAI#7495, diffusers#9171): the error message advises config= for the tokenizer."""
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    file = saved(ldm(tiny_models.sdxl()) | marks, work / "noob.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(file, config=sdxl_folder)
    assert parameterisation(model) == "v_prediction" or any("predict" in str(each.message) for each in caught)


def test_command_line_takes_what_a_single_file_does_not_say() -> None:
    """Case 4 (diffusers#9171): SD 1.5 with v-prediction, and where a file's tokenizer is."""
    assert re.search("--prediction-type|--config", run("generate", "--help").text, re.IGNORECASE)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory) -> Path:
    """A folder with a model that reads a mask and a masked image beside the latents, and the same as a file."""
    folder = tmp_path_factory.mktemp("inpainting")
    pipeline = tiny_models.sd(in_channels=9)
    pipeline.save_pretrained(folder / "model")
    save_file(ldm(pipeline), folder / "model.safetensors")
    return folder


CHANNELS = re.compile(r"\b9\b|inpaint|channels", re.IGNORECASE)


@pytest.mark.parametrize("config", ["its own", "of four channels"])
def test_inpainting_file_is_refused_by_its_channels(inpainting, sd_folder: Path, config) -> None:
    """Case 5 (diffusers#6964, sd-scripts#2309): nine channels in where a text-to-image model is wanted."""
    folder = inpainting / "model" if config == "its own" else sd_folder

    def generate() -> kg.Video:
        model = load(inpainting / "model.safetensors", config=folder)
        return kg.generate(model, "a cat", num_frames=2, num_inference_steps=2, height=16, width=16)

    with pytest.raises(kg.InputError) as error:
        generate()
    assert CHANNELS.search(str(error.value).replace(str(inpainting), ""))


def test_command_line_refuses_an_inpainting_model_by_its_channels(inpainting, work: Path) -> None:
    """Case 5 (diffusers#6964, sd-scripts#2309)."""
    said = run("generate", "a cat", "--model", inpainting / "model", *SMALL, "-o", work / "x.mp4")
    assert CHANNELS.search(said.text.replace(str(inpainting), "")) and not said.crashed


@pytest.mark.parametrize("source", ["refiner.safetensors", "refiner"])
def test_sdxl_refiner_is_refused(work: Path, source) -> None:
    """Case 6: an SDXL refiner has the second text encoder alone."""
    if source == "refiner":
        tiny_models.sdxl().save_pretrained(work / source)
        index = work / source / "model_index.json"
        gone = {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
        index.write_text(json.dumps(json.loads(index.read_text()) | gone))
        shutil.rmtree(work / source / "text_encoder")
    else:
        network, block = "model.diffusion_model.input_blocks.", "4.1.transformer_blocks.0.attn2.to_k.weight"
        weights = {network + "0.0.weight": torch.zeros(384, 4, 3, 3), network + block: torch.zeros(768, 1280)}
        encoder = {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(1280)}
        save_file(weights | encoder | {"first_stage_model.decoder.conv_in.bias": torch.zeros(1)}, work / source)
    said = run("generate", "a cat", "--model", work / source, "-o", work / "x.mp4")
    assert "error" in said.text and not said.crashed


def test_sd2_file_gives_the_numbers_of_its_pipeline(work: Path) -> None:
    """Case 57: an OpenCLIP text encoder in ldm layout, linear projections, v-prediction."""
    noise = tiny_models.scheduler(prediction_type="v_prediction")
    pipeline = tiny_models.sd(act="gelu", use_linear_projection=True, noise=noise)
    pipeline.save_pretrained(work / "config")
    model = load(saved(ldm(pipeline), work / "sd2.safetensors"), config=work / "config")
    assert far(tokens_of(model, "a cat"), pipeline.encode_prompt("a cat", "cpu", 1, False)[0]) < 1e-5
    ours = image_unet(model).state_dict()
    assert max(far(ours[name], weight) for name, weight in pipeline.unet.state_dict().items()) < 1e-5
    assert parameterisation(model) == "v_prediction"


def test_fp8_file_keeps_its_numbers_in_the_dtype_asked_for(work: Path, sd_folder: Path) -> None:
    """Case 58: a single file in float8_e4m3fn, as ComfyUI writes it."""
    pipeline = tiny_models.sd()
    weights = {name: weight.to(torch.float8_e4m3fn) for name, weight in ldm(pipeline).items()}
    model = load(saved(weights, work / "fp8.safetensors"), config=sd_folder)
    ours, theirs = image_unet(model).state_dict(), pipeline.unet.state_dict()
    assert max(far(ours[name], w.to(torch.float8_e4m3fn).float()) for name, w in theirs.items()) == 0
    kg.generate(model, "a cat", num_frames=2, num_inference_steps=2, height=16, width=16)


# --- folders


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a folder with fp16 files alone: refused without a word of variants"
)
def test_folder_of_fp16_files_alone_loads_or_names_the_variant(work: Path) -> None:
    """Case 8 (diffusers#10928)."""
    tiny_models.sd().to(torch.float16).save_pretrained(work / "m", variant="fp16")
    said = run("generate", "a cat", "--model", work / "m", *SMALL, "-o", work / "x.mp4")
    assert said.status == 0 or "variant" in said.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "file", "gone"),
    [
        ("text_encoder", "model", "encoder.layers.1.mlp.fc1.weight"),
        ("unet", "diffusion_pytorch_model", "mid_block.resnets.0.conv1.weight"),
        ("vae", "diffusion_pytorch_model", "decoder.conv_in.weight"),
    ],
    ids=["text_encoder", "unet", "vae"],
)
def test_folder_that_lacks_tensors_is_refused(work: Path, sd_folder: Path, part, file, gone) -> None:
    """Case 59 (diffusers#7506, #8228): a tensor that is missing must not become random numbers."""
    folder = shutil.copytree(sd_folder, work / "m")
    path = folder / part / f"{file}.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if name.endswith(gone))]
    save_file(weights, path, metadata={"format": "pt"})
    said = run("generate", "a cat", "--model", folder, *SMALL, "--seed", 1, "-o", work / "x.mp4")
    assert said.status == 2 and not said.crashed


# --- distilled models


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="timestep_spacing='trailing': ignored, one step starts at timestep 1"
)
def test_one_step_of_a_turbo_model_starts_at_the_last_timestep(work: Path) -> None:
    """Case 10 (diffusers#6112): SD-Turbo and SDXL-Turbo ship timestep_spacing="trailing"."""
    pipeline = tiny_models.sd()
    pipeline.scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1
    )
    pipeline.save_pretrained(work / "turbo")
    model, timesteps = load(work / "turbo"), []
    image_unet(model).time_proj.register_forward_pre_hook(lambda _, args: timesteps.append(float(args[0].flatten()[0])))
    kg.generate(
        model, "a cat", num_frames=2, num_inference_steps=1, guidance_scale=0, height=16, width=16, seed=1,
        camera="none", sampler="euler-ancestral",
    )  # fmt: skip
    assert timesteps[0] > 990


def test_network_that_reads_the_guidance_scale_is_refused_by_name(work: Path) -> None:
    """Case 11 (latent-consistency-model#58, #81): LCM networks with time_cond_proj_dim."""
    tiny_models.sd(time_cond_proj_dim=16).save_pretrained(work / "lcm")
    said = run("generate", "a cat", "--model", work / "lcm", *SMALL, "--sampler", "lcm", "-o", work / "x.mp4")
    assert said.status == 2 and not said.crashed and "time_cond_proj_dim" in said.text
