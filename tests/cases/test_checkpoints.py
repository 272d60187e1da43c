"""Checkpoints as people share them: single files, folders, variants, distilled models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from cases import tiny_models
from cases.program import SMALL, run
from cases.tiny_models import (
    far,
    image_unet,
    ldm,
    ldm_unet_name,
    load,
    parameterisation,
    text_networks,
    tokens_of,
)
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from format_rows import loads, refused
from safetensors.torch import load_file, save_file

import kineograph as kg
from kineograph.errors import InputWarning


def saved(weights: tiny_models.Weights, path: Path) -> Path:
    save_file(weights, path)
    return path


# --- single files


@loads("Checkpoint", "single file with EMA weights too (the trained ones are read)", within=0)
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


@loads("Checkpoint", "marks of v-prediction and zero terminal SNR (`v_pred`, `ztsnr`)")
def test_v_pred_mark_counts_with_a_configuration_given(work: Path, sdxl_folder: Path) -> None:
    """Case 3 (InvokeAI#7495, diffusers#9171): the error message advises config= for the tokenizer."""
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    file = saved(ldm(tiny_models.sdxl()) | marks, work / "noob.safetensors")
    with pytest.warns(InputWarning, match="states prediction_type=v_prediction, rescale_betas_zero_snr=True"):
        model = load(file, config=sdxl_folder)
    assert parameterisation(model) == "v_prediction" and model.schedule.sigmas[-1] > 1000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")
@pytest.mark.parametrize(
    ("marks", "stated", "option", "expected"),
    [
        (["v_pred"], None, None, "v_prediction"),
        (["v_pred"], "epsilon", None, "v_prediction"),
        ([], "v", None, "v_prediction"),
        ([], "epsilon", None, "epsilon"),
        ([], None, None, "epsilon"),
        (["v_pred"], "v", "epsilon", "epsilon"),
    ],
)
def test_prediction_type_is_the_one_given_then_stated_then_configured(
    work: Path, sd_folder: Path, marks, stated, option, expected
) -> None:
    """Files in Stability's format state `modelspec.prediction_type` in their metadata."""
    weights = ldm(tiny_models.sd()) | {name: torch.empty(0) for name in marks}
    save_file(weights, work / "m.safetensors", metadata={} if stated is None else {"modelspec.prediction_type": stated})
    options = {} if option is None else {"prediction_type": option}
    assert parameterisation(load(work / "m.safetensors", config=sd_folder, **options)) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")
@pytest.mark.parametrize("name", ["playground", "cosxl"])
def test_numbers_of_edm_in_a_file_set_its_schedule_and_vae(work: Path, sdxl_folder: Path, name: str) -> None:
    weights = ldm(tiny_models.sdxl())
    mean, std = [0.1, -0.2, 0.3, 0.4], [2.0, 3.0, 0.5, 1.5]
    if name == "playground":
        weights |= {"edm_mean": torch.tensor(mean).view(1, 4, 1, 1), "edm_std": torch.tensor(std).view(1, 4, 1, 1)}
    else:
        weights |= {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    model = load(saved(weights, work / "m.safetensors"), config=sdxl_folder)
    assert parameterisation(model) == ("edm_epsilon" if name == "playground" else "edm_v_prediction")
    assert abs(model.schedule.sigmas[-1] - (80 if name == "playground" else 120)) < 1e-3
    if name == "playground":
        assert far(torch.tensor(model.vae.config.latents_mean), torch.tensor(mean)) < 1e-6
        assert (model.vae.config.scaling_factor, len(model.vae.config.latents_std)) == (0.5, 4)


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


@refused("Checkpoint", "inpainting model (9 channels)", "it reads a mask and a masked image")
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


@refused("Checkpoint", "SDXL refiner", "it improves images and generates none from a prompt")
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
    assert "error" in said.text and not said.crashed and "refiner, which" in said.text


@loads("Checkpoint", "SD 2.x single file (OpenCLIP text encoder)", within=1e-5)
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


@pytest.mark.slow
@loads("Checkpoint", "single file in float8", within=0, reference="its own numbers")
def test_fp8_file_keeps_its_numbers_in_the_dtype_asked_for(work: Path, sd_folder: Path) -> None:
    """Case 58: a single file in float8_e4m3fn, as ComfyUI writes it."""
    pipeline = tiny_models.sd()
    weights = {name: weight.to(torch.float8_e4m3fn) for name, weight in ldm(pipeline).items()}
    model = load(saved(weights, work / "fp8.safetensors"), config=sd_folder)
    ours, theirs = image_unet(model).state_dict(), pipeline.unet.state_dict()
    assert max(far(ours[name], w.to(torch.float8_e4m3fn).float()) for name, w in theirs.items()) == 0
    kg.generate(model, "a cat", num_frames=2, num_inference_steps=2, height=16, width=16)


@pytest.mark.slow
@loads("Checkpoint", "single file in float8 with scales, of ComfyUI", within=0, reference="weight times scale")
@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
def test_fp8_file_with_scales_is_restored(work: Path, sd_folder: Path, ending: str, within: float) -> None:
    pipeline, scale = tiny_models.sd(), torch.tensor(0.03)
    weights = ldm(pipeline)
    scaled = [name for name, weight in weights.items() if "transformer_blocks" in name and weight.ndim == 2]
    whole = {name: (weights[name] / scale).to(torch.float8_e4m3fn) for name in scaled}
    marks = {f"{name.removesuffix('.weight')}{ending}": scale.clone() for name in scaled}
    file = saved(weights | whole | marks | {"scaled_fp8": torch.empty(2)}, work / "fp8.safetensors")
    unet = image_unet(load(file, config=sd_folder))
    ours = {f"model.diffusion_model.{ldm_unet_name(name, unet)}": w for name, w in unet.state_dict().items()}
    wanted = {name: whole[name].float() * scale if name in whole else weight for name, weight in weights.items()}
    assert max(far(ours[name], wanted[name]) for name in ours) <= within


@pytest.mark.slow
@refused("Checkpoint", "weights quantised to integers (NF4, int8, GGUF)", "take float16, bfloat16 or float8")
@pytest.mark.parametrize("kind", ["nf4", "gguf"])
def test_quantised_file_is_refused_by_its_kind(work: Path, sd_folder: Path, kind: str) -> None:
    weights, file = ldm(tiny_models.sd()), work / "m.safetensors"
    name = next(each for each in weights if each.endswith("attn1.to_q.weight"))
    saved(weights | {name: torch.zeros(32, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(4)}, file)
    if kind == "gguf":
        file.write_bytes(b"GGUF\x03" + bytes(100))
    with pytest.raises(kg.InputError, match="quantised"):
        load(file, config=sd_folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("U-Net", "model.diffusion_model.middle_block.1.proj_in.weight"),
        ("VAE", "first_stage_model.decoder.conv_in.weight"),
        ("text encoder", "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight"),
    ],
)
def test_single_file_that_lacks_tensors_is_refused_by_their_names(work: Path, sd_folder: Path, part, gone) -> None:
    weights = ldm(tiny_models.sd())
    del weights[gone]
    with pytest.raises(kg.InputError, match=rf"in its {part}: .* 1 are missing \(.*{gone.rpartition('.')[0][-8:]}"):
        load(saved(weights, work / "m.safetensors"), config=sd_folder)


@pytest.mark.slow
@loads("Checkpoint", "text encoder of OpenCLIP in SDXL files", within=0, reference="the pipeline's weights")
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_sdxl_load_by_every_name(work: Path, sdxl_folder: Path, prefix: str, within: float) -> None:
    pipeline = tiny_models.sdxl()
    first = "conditioner.embedders.0.transformer."
    weights = {name.replace(f"{first}text_model.", first + prefix): w for name, w in ldm(pipeline).items()}
    weights |= {
        f"{first}{prefix}embeddings.position_ids": torch.zeros(1, 77),
        "conditioner.embedders.1.model.logit_scale": torch.ones(()),
    }
    model = load(saved(weights, work / "m.safetensors"), config=sdxl_folder)
    for ours, theirs in zip(text_networks(model), (pipeline.text_encoder, pipeline.text_encoder_2), strict=True):
        mine, wanted = (tiny_models.bare(each.state_dict()) for each in (ours, theirs))
        assert max(far(mine[name], weight) for name, weight in wanted.items()) <= within


@pytest.mark.slow
def test_file_without_the_sdxl_projection_is_refused(work: Path, sdxl_folder: Path) -> None:
    weights = ldm(tiny_models.sdxl())
    del weights["conditioner.embedders.1.model.text_projection"]
    with pytest.raises(kg.InputError, match=r"in its text encoder 2: .*missing \(text_projection\)"):
        load(saved(weights, work / "m.safetensors"), config=sdxl_folder)


@pytest.mark.slow
def test_linear_layers_stored_as_convolutions_load(work: Path, sd_folder: Path) -> None:
    pipeline = tiny_models.sd()
    weights = {
        name: w.flatten(1) if name.endswith(("proj_in.weight", "proj_out.weight", "attn_1.q.weight")) else w
        for name, w in ldm(pipeline).items()
    }
    ours = image_unet(load(saved(weights, work / "m.safetensors"), config=sd_folder)).state_dict()
    assert max(far(ours[name], weight) for name, weight in pipeline.unet.state_dict().items()) == 0


# --- folders


@pytest.mark.slow
@loads("Checkpoint", "folder with fp16 files alone")
def test_folder_of_fp16_files_alone_loads_or_names_the_variant(work: Path) -> None:
    """Case 8 (diffusers#10928)."""
    tiny_models.sd().to(torch.float16).save_pretrained(work / "m", variant="fp16")
    said = run("generate", "a cat", "--model", work / "m", *SMALL, "-o", work / "x.mp4")
    assert said.status == 0 or "variant" in said.text


@pytest.mark.slow
def test_variants_are_chosen_for_each_network(work: Path) -> None:
    """As in diffusers: a network without the variant is read from its plain files."""
    pipeline = tiny_models.sd()
    pipeline.save_pretrained(work / "m")
    with torch.no_grad():
        pipeline.unet.conv_in.bias.fill_(5)
    pipeline.unet.save_pretrained(work / "m" / "unet", variant="ema")
    assert float(image_unet(load(work / "m", variant="ema")).conv_in.bias.detach()[0]) == 5
    assert float(image_unet(load(work / "m")).conv_in.bias.detach()[0]) != 5
    with pytest.raises(kg.InputError, match="no weights of the variant fp16: expected ema in `variant`"):
        load(work / "m", variant="fp16")
    (work / "m" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipeline.unet.save_pretrained(work / "m" / "unet", variant="other")
    with pytest.raises(kg.InputError, match="weights of ema or other only"):
        load(work / "m")


@pytest.mark.slow
@loads("Checkpoint", "folder with sharded weights", within=0, reference="the pipeline's weights")
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_folder_loads_and_misses_no_shard(work: Path, variant, within: float) -> None:
    pipeline = tiny_models.sd()
    pipeline.save_pretrained(work / "m")
    for part in (pipeline.unet, pipeline.text_encoder):
        folder = work / "m" / ("unet" if part is pipeline.unet else "text_encoder")
        next(folder.glob("*.safetensors")).unlink()
        part.save_pretrained(folder, max_shard_size="30KB", variant=variant)
    assert len(list((work / "m" / "unet").glob("*.safetensors"))) > 1
    ours = image_unet(load(work / "m")).state_dict()
    assert max(far(ours[name], weight) for name, weight in pipeline.unet.state_dict().items()) <= within
    sorted((work / "m" / "unet").glob("*.safetensors"))[1].unlink()
    with pytest.raises(kg.InputError, match="incomplete or damaged"):
        load(work / "m")


@pytest.mark.slow
def test_folder_with_more_tensors_than_its_configuration_says_so(work: Path, sd_folder: Path) -> None:
    folder = shutil.copytree(sd_folder, work / "m")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"mid_block.attentions.1.proj_in.weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.warns(InputWarning, match="1 tensors that its configuration does not know.*mid_block.attentions.1"):
        load(folder)


@pytest.mark.slow
@refused("Checkpoint", "folder that lacks tensors", "they would be random numbers")
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


class Code:
    """An object whose unpickling would call a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.slow
@loads("Checkpoint", "folder with pickled weights (`.bin`) that hold tensors alone")
@refused("Checkpoint", "folder with pickled weights (`.bin`) that hold code", "it could be anything: convert them")
@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_pickled_weights_of_a_folder_never_run_code(work: Path, sd_folder: Path, part, capsys) -> None:
    folder = shutil.copytree(sd_folder, work / "m") / part
    file = next(folder.glob("*.safetensors"))
    weights, pickled = load_file(file), "pytorch_model.bin" if part == "text_encoder" else f"{file.stem}.bin"
    file.unlink()
    torch.save(weights | {"x": Code()}, folder / pickled)
    with pytest.raises(kg.InputError, match=f"{part} has pickled weights that want to run code.* convert them"):
        load(work / "m")
    assert "unpickled" not in capsys.readouterr().out
    torch.save(weights, folder / pickled)
    load(work / "m")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_folder_keeps_the_numbers_of_its_dtype(work: Path, sd_folder: Path, dtype) -> None:
    folder = shutil.copytree(sd_folder, work / "m")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: weight.to(dtype) for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    ours = image_unet(load(folder)).state_dict()
    assert max(far(ours[name], weight.float()) for name, weight in weights.items()) == 0


# --- distilled models


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
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


@pytest.mark.slow
def test_network_that_reads_the_guidance_scale_is_told_it(work: Path) -> None:
    """Case 11 (latent-consistency-model#58, #81): LCM networks with time_cond_proj_dim."""
    tiny_models.sd(time_cond_proj_dim=16).save_pretrained(work / "lcm")
    videos = []
    for scale in (2, 12):
        file = work / f"{scale}.mp4"
        given = ("--sampler", "lcm", "--guidance-scale", scale, "--seed", 1, "-o", file)
        assert run("generate", "a cat", "--model", work / "lcm", *SMALL, *given).status == 0
        videos.append(kg.open_video(file).settings["frames_sha256"])
    assert videos[0] != videos[1]
