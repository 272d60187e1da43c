"""VAEs given beside a checkpoint: files in every layout, and other kinds of autoencoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import tiny_models
from cases.tiny_models import far, ldm, ldm_vae, load, prefixed
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file

import kineograph as kg


@pytest.mark.xfail(strict=True, raises=kg.InputError, reason="a checkpoint without a VAE: refused though vae= is given")
def test_checkpoint_without_a_vae_loads_with_a_vae_beside(work: Path, sd_folder: Path) -> None:
    """Case 7 (stable-diffusion-webui-forge#512): a pruned checkpoint."""
    weights = ldm(tiny_models.sd())
    pruned = {name: weight for name, weight in weights.items() if not name.startswith("first_stage_model.")}
    save_file(pruned, work / "pruned.safetensors")
    load(work / "pruned.safetensors", config=sd_folder, vae=sd_folder / "vae")


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


TAESD = pytest.param(
    "taesd",
    marks=pytest.mark.xfail(strict=True, raises=NotImplementedError, reason="TAESD folder: NotImplementedError (meta)"),
)


@pytest.mark.parametrize("name", [TAESD, "asymmetric", "taesd_decoder.safetensors"])
def test_other_kind_of_autoencoder_is_refused(other_vaes, sd_folder: Path, name) -> None:
    """Case 37 (diffusers#4233, InvokeAI#4316): TAESD and others must not become a VAE with random weights."""
    with pytest.raises(kg.InputError):
        load(sd_folder, vae=other_vaes / name)


@pytest.mark.parametrize("layout", ["vae-ft-mse.ckpt", "bare.safetensors", "prefixed.safetensors", "diffusers"])
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
        file = file.with_suffix(".safetensors")
        save_file(vae.state_dict(), file)
    ours = load(sd_folder, vae=file).vae.state_dict()
    assert max(far(ours[name], weight) for name, weight in vae.state_dict().items()) == 0
