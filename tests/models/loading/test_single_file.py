"""Single-file checkpoints in the layout of Stable Diffusion's code, and the built-in configurations for them."""

import json

import pytest
import torch
from models.loading.conftest import assert_same, in_ldm, in_openclip, prefixed
from safetensors.torch import save_file

from kineograph.errors import InputError, InputWarning
from kineograph.models.formats import known_configurations
from kineograph.models.loading.load import load
from kineograph.models.loading.save import checkpoint_to_folder


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_single_file_loads(checkpoint, sd_folder, sd_pipeline, tmp_path, ending) -> None:
    path = tmp_path / f"merged.{ending}"
    if ending == "safetensors":
        save_file(checkpoint, path)
    else:
        torch.save({"state_dict": checkpoint, "epoch": 3}, path)
    model = load(path, config=sd_folder, dtype="float32")
    assert_same(model, load(sd_pipeline))
    assert model.settings == {"source": str(path), "config": str(sd_folder)}
    assert model.prompt(["a fish"]).tokens.shape == (1, 77, 32)


def test_single_file_of_sdxl_loads(sdxl_folder, sdxl_pipeline, tmp_path) -> None:
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


def test_single_file_of_another_size_requires_a_configuration(checkpoint, tmp_path) -> None:
    save_file(checkpoint, tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match=r"U-Net 8 wide that reads tokens 32 wide; built in are .*in `config`"):
        load(tmp_path / "tiny.safetensors")


def test_single_file_that_does_not_fit_its_configuration_is_refused(checkpoint, make_sd, sdxl_folder, tmp_path) -> None:
    save_file(checkpoint, tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match=r"tiny.safetensors does not fit its configuration"):
        load(tmp_path / "tiny.safetensors", config=sdxl_folder)
    make_sd().save_pretrained(tmp_path / "config")
    norm = checkpoint.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias")
    save_file(checkpoint, tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"in its text encoder: .* 1 are missing \(final_layer_norm.bias\)"):
        load(tmp_path / "cut.safetensors", config=tmp_path / "config", dtype="float32")
    checkpoint["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = norm
    del checkpoint["model.diffusion_model.out.2.bias"]
    save_file(checkpoint, tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"in its U-Net: .* 1 are missing \(out.2.bias\)"):
        load(tmp_path / "cut.safetensors", config=tmp_path / "config")


def test_marks_in_a_file_set_its_configuration(tmp_path) -> None:
    tensors = {known_configurations.FIRST_LAYER: torch.empty(320, 9, 3, 3, device="meta")}
    marks = known_configurations.scheduler_marks({"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, {})
    known_configurations.write_configuration(known_configurations.FAMILIES[2], tensors, marks, tmp_path)
    scheduler = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["in_channels"] == 9
    with pytest.warns(InputWarning, match="assuming v_prediction"):
        known_configurations.write_configuration(known_configurations.FAMILIES[1], tensors, {}, tmp_path)


def test_missing_tokenizer_is_named(checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_configurations.FAMILIES[0]
    monkeypatch.setattr(known_configurations, "match_family", lambda path, tensors: known)
    save_file(checkpoint, tmp_path / "offline.safetensors")
    with pytest.raises(InputError, match=r"holds no tokenizer.*in `config` the folder.*the Hub is not reached"):
        load(tmp_path / "offline.safetensors", cache_dir=tmp_path)


def test_single_file_converts_to_a_folder(checkpoint, sd_folder, tmp_path) -> None:
    save_file(checkpoint, tmp_path / "merged.safetensors")
    folder = checkpoint_to_folder(tmp_path / "merged.safetensors", tmp_path / "folder", config=sd_folder)
    assert_same(load(folder), load(tmp_path / "merged.safetensors", config=sd_folder))
