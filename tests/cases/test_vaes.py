"""VAEs given beside a checkpoint: files in every layout, TAESD, and other kinds of autoencoders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from cases import public_layouts, tiny_models
from cases.tiny_models import far, ldm, ldm_vae, load, prefixed
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny
from format_rows import loads, refused
from safetensors.torch import load_file, save_file
from torch import Tensor

import kineograph as kg


@loads("Checkpoint", "single file without a VAE, with `vae`")
def test_checkpoint_without_a_vae_loads_with_a_vae_beside(work: Path, sd_folder: Path) -> None:
    """Case 7 (stable-diffusion-webui-forge#512): a pruned checkpoint."""
    weights = ldm(tiny_models.sd())
    pruned = {name: weight for name, weight in weights.items() if not name.startswith("first_stage_model.")}
    save_file(pruned, work / "pruned.safetensors")
    model = load(work / "pruned.safetensors", config=sd_folder, vae=sd_folder / "vae")
    assert not any(weight.is_meta for weight in model.vae.parameters())
    kg.generate(model, "a cat", num_frames=2, num_inference_steps=2, height=16, width=16)
    with pytest.raises(kg.InputError, match="it has no VAE. load it with one, `vae`"):
        load(work / "pruned.safetensors", config=sd_folder)


@pytest.mark.slow
def test_folder_without_a_vae_loads_with_a_vae_beside(work: Path, sd_folder: Path) -> None:
    shutil.copytree(sd_folder, work / "m", ignore=shutil.ignore_patterns("vae"))
    model = load(work / "m", vae=sd_folder / "vae")
    ours, theirs = model.vae.state_dict(), load(sd_folder).vae.state_dict()
    assert max(far(ours[name], weight) for name, weight in theirs.items()) == 0
    with pytest.raises(kg.InputError, match="vae"):
        load(work / "m")


@pytest.fixture(scope="module")
def other_vaes(tmp_path_factory) -> Path:
    """A folder with autoencoders that are no AutoencoderKL."""
    folder = tmp_path_factory.mktemp("vaes")
    AutoencoderTiny().save_pretrained(folder / "taesd")
    weights = folder / "taesd" / "diffusion_pytorch_model.safetensors"
    (folder / "taesd_decoder.safetensors").write_bytes(weights.read_bytes())
    AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, down_block_out_channels=(8, 16),
        up_block_types=("UpDecoderBlock2D",) * 2, up_block_out_channels=(16, 32), norm_num_groups=4,
    ).save_pretrained(folder / "asymmetric")  # fmt: skip
    return folder


@refused("VAE", "`AsymmetricAutoencoderKL`", "its decoder reads a mask and an image too")
@pytest.mark.parametrize("name", ["taesd", "asymmetric", "taesd_decoder.safetensors"])
def test_other_kind_of_autoencoder_is_refused(other_vaes, sd_folder: Path, name) -> None:
    """Case 37 (diffusers#4233, InvokeAI#4316): a VAE for other latents must not become one with random weights.

    The tiny model's latents are half as large as images, those of TAESD an eighth.
    """
    kind = "AsymmetricAutoencoderKL" if name == "asymmetric" else "8 times smaller than images"
    with pytest.raises(kg.InputError, match=kind):
        load(sd_folder, vae=other_vaes / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["AutoencoderKLTemporalDecoder", "AutoencoderKLWan", "ConsistencyDecoderVAE", "VQModel", "AutoencoderDC"]
)
def test_folder_of_another_kind_is_refused_by_its_name(work: Path, sd_folder: Path, kind: str) -> None:
    shutil.copytree(sd_folder, work / "m")
    for file in (work / "m" / "vae" / "config.json", work / "m" / "model_index.json"):
        file.write_text(file.read_text().replace("AutoencoderKL", kind))
    for source, options in ((sd_folder, {"vae": work / "m" / "vae"}), (work / "m", {})):
        with pytest.raises(kg.InputError, match=rf"of the kind {kind}: expected AutoencoderKL or AutoencoderTiny"):
            load(source, **options)


@pytest.mark.slow
def test_live_network_of_another_kind_is_refused_by_its_name(other_vaes, sd_folder: Path) -> None:
    network = AsymmetricAutoencoderKL.from_pretrained(other_vaes / "asymmetric")
    with pytest.raises(kg.InputError, match="of the kind AsymmetricAutoencoderKL"):
        load(sd_folder, vae=network)
    pipeline = tiny_models.sd()
    pipeline.vae = network
    with pytest.raises(kg.InputError, match="of the kind AsymmetricAutoencoderKL"):
        load(pipeline)


# --- TAESD


@pytest.fixture(scope="module")
def taesd() -> AutoencoderTiny:
    torch.manual_seed(6)
    return AutoencoderTiny().eval()


@pytest.fixture(scope="module")
def eightfold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose latents are an eighth as large as images, as those of SD."""
    folder = tmp_path_factory.mktemp("eightfold") / "m"
    public_layouts.sd().save_pretrained(folder)
    return folder


def as_folder(taesd: AutoencoderTiny, work: Path) -> Path:
    taesd.save_pretrained(work / "taesd")
    return work / "taesd"


def as_file(taesd: AutoencoderTiny, work: Path) -> Path:
    return as_folder(taesd, work) / "diffusion_pytorch_model.safetensors"


def as_two_files(taesd: AutoencoderTiny, work: Path) -> Path:
    """Write the two files of TAESD's authors: the decoder's first layer is a clamp, which diffusers leaves out."""
    for side, first in (("encoder", 0), ("decoder", 1)):
        network = getattr(taesd, side).layers.state_dict()
        numbered = {f"{int(n.split('.')[0]) + first}.{n.split('.', 1)[1]}": w for n, w in network.items()}
        save_file(numbered, work / f"taesd_{side}.safetensors")
    return work / "taesd_decoder.safetensors"


def as_live_network(taesd: AutoencoderTiny, work: Path) -> AutoencoderTiny:
    return taesd


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(as_folder, marks=loads("VAE", "TAESD, TAESDXL: folder", within=1e-6)),
        pytest.param(as_file, marks=loads("VAE", "TAESD, TAESDXL: single file of diffusers", within=1e-6)),
        pytest.param(as_two_files, marks=loads("VAE", "TAESD, TAESDXL: encoder and decoder in two files", within=1e-6)),
        pytest.param(as_live_network, marks=loads("VAE", "TAESD, TAESDXL: live network", within=1e-6)),
    ],
)
def test_taesd_encodes_and_decodes_as_in_diffusers(
    taesd, eightfold: Path, work: Path, write: Callable[[AutoencoderTiny, Path], Path], within: float
) -> None:
    model = load(eightfold, vae=write(taesd, work))
    frames, latents = torch.rand(1, 2, 3, 64, 64), public_layouts.normal(1, 2, 4, 8, 8, seed=3)
    assert far(model.encode(frames)[0], taesd.encode(2 * frames[0] - 1).latents) < within
    assert far(model.decode(latents)[0], (taesd.decode(latents[0]).sample / 2 + 0.5).clamp(0, 1)) < within


@pytest.mark.slow
def test_taesd_of_a_live_pipeline_is_used_and_saved(taesd, eightfold: Path, work: Path) -> None:
    pipeline = public_layouts.sd()
    pipeline.vae = taesd
    model = load(pipeline)
    pipeline.save_pretrained(work / "m")
    latents = public_layouts.normal(1, 2, 4, 8, 8, seed=3)
    for other in (load(work / "m"), load(eightfold, vae=taesd)):
        assert far(other.decode(latents), model.decode(latents)) < 1e-6


@pytest.mark.slow
def test_half_of_taesd_is_refused_by_its_name(taesd, eightfold: Path, work: Path) -> None:
    decoder = as_two_files(taesd, work)
    (work / "taesd_encoder.safetensors").unlink()
    with pytest.raises(kg.InputError, match=r"the decoder of TAESD alone: put its encoder beside it as taesd_encoder"):
        load(eightfold, vae=decoder)
    weights = taesd.state_dict()
    del weights["decoder.layers.3.conv.0.weight"]
    save_file(weights, work / "cut.safetensors")
    with pytest.raises(kg.InputError, match=r"1 are missing \(decoder.layers.3.conv.0.weight\)"):
        load(eightfold, vae=work / "cut.safetensors")


@pytest.mark.slow
def test_taesd_for_latents_of_sd3_is_refused(eightfold: Path, work: Path) -> None:
    AutoencoderTiny(latent_channels=16).save_pretrained(work)
    for source in (work, work / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(kg.InputError, match="latents of 16 channels, and the model 4"):
            load(eightfold, vae=source)


# --- AutoencoderKL


@pytest.mark.parametrize("layout", ["vae-ft-mse.ckpt", "bare.safetensors", "prefixed.safetensors", "diffusers", "old"])
def test_vae_file_loads_in_every_layout(work: Path, sd_folder: Path, layout) -> None:
    """Case 56 (diffusers#4898, #6950)."""
    torch.manual_seed(9)
    vae = tiny_models.vae()
    weights, file = ldm_vae(vae), work / layout
    if layout == "vae-ft-mse.ckpt":
        extra = {
            "loss.perceptual_loss.net.slice1.0.weight": torch.ones(4), "model_ema.decay": torch.tensor(0.9),
            "model_ema.encoderconv_inweight": torch.ones(8, 3, 3, 3),
        }  # fmt: skip
        torch.save({"state_dict": weights | extra, "epoch": 1}, file)
    elif layout == "bare.safetensors":
        save_file(weights, file)
    elif layout == "prefixed.safetensors":
        save_file(prefixed("first_stage_model.", weights), file)
    else:
        file, weights = file.with_suffix(".safetensors"), vae.state_dict()
        if layout == "old":
            names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
            for new, old in names.items():
                weights = {
                    name.replace(f"attentions.0.{new}", f"attentions.0.{old}"): weights[name] for name in weights
                }
        save_file(weights, file)
    ours = load(sd_folder, vae=file).vae.state_dict()
    assert max(far(ours[name], weight) for name, weight in vae.state_dict().items()) == 0


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"scaling_factor": 0.7}, marks=loads("VAE", "`scaling_factor`", within=1e-6)),
        pytest.param({"shift_factor": 0.3}, marks=loads("VAE", "`shift_factor`", within=1e-6)),
        pytest.param(
            {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [2.0, 3.0, 0.5, 1.5], "scaling_factor": 0.5},
            marks=loads("VAE", "`latents_mean` and `latents_std`", within=1e-5),
        ),
    ],
)
def test_numbers_of_the_configuration_are_those_of_diffusers(work: Path, settings, within: float) -> None:
    """Compare with the sums in diffusers' pipelines, of Playground v2.5 for mean and standard deviation."""
    pipeline = tiny_models.sdxl()
    pipeline.vae.register_to_config(**settings)
    pipeline.save_pretrained(work)
    model, scale = load(work), pipeline.vae.config.scaling_factor
    mean, std = settings.get("latents_mean", [0.0] * 4), settings.get("latents_std", [1.0] * 4)
    shift = torch.tensor(mean).view(4, 1, 1) + settings.get("shift_factor", 0.0)
    spread: Tensor = torch.tensor(std).view(4, 1, 1)
    frames, latents = torch.rand(1, 2, 3, 16, 16), public_layouts.normal(1, 2, 4, 8, 8, seed=1)
    wanted = (pipeline.vae.encode(2 * frames[0] - 1).latent_dist.mode() - shift) * scale / spread
    assert far(model.encode(frames)[0], wanted) < within
    image = pipeline.vae.decode(latents[0] * spread / scale + shift).sample
    assert far(model.decode(latents)[0], (image / 2 + 0.5).clamp(0, 1)) < within


def test_wrong_number_of_means_is_refused(work: Path) -> None:
    pipeline = tiny_models.sd()
    pipeline.vae.register_to_config(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
    pipeline.save_pretrained(work)
    with pytest.raises(kg.InputError, match="16 values of latents_mean"):
        load(work).decode(torch.zeros(1, 1, 4, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["all", "without one"])
def test_vae_folder_of_fp16_files_loads_and_misses_nothing(work: Path, sd_folder: Path, kept: str) -> None:
    tiny_models.vae().half().save_pretrained(work, variant="fp16")
    if kept == "all":
        assert isinstance(load(sd_folder, vae=work).vae, AutoencoderKL)
        return
    file = work / "diffusion_pytorch_model.fp16.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(kg.InputError, match="no weights for decoder.conv_in.weight"):
        load(sd_folder, vae=work)


def test_kinds_are_classes_of_diffusers() -> None:
    from kineograph.models.vae.autoencoder import VAES

    assert all(getattr(diffusers, name) is kind for name, kind in VAES.items())
