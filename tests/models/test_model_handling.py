"""A loaded model in a session: its short name, another device or dtype, LoRAs put on and taken off, quiet loading."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled
from models.formats.test_lora import TEXT, UNET, deltas, kohya
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.models.changes import move
from kineograph.models.formats.adapter_files import weight_signature
from kineograph.models.formats.layer_names import motion_module_name, target_layers
from kineograph.models.loading.components import quiet_loading

FEW = {"num_frames": 2, "num_inference_steps": 2, "seed": 3}
SMALL = FEW | {"height": 32, "width": 32, "guidance_scale": 1}


def frames(model: kg.Model, **more: Any) -> np.ndarray:
    return kg.generate(model, "a red fish", **{**SMALL, **more}).frames


def lora_file(path: Path, model: kg.Model, seed: int = 0, size: float = 0.3) -> Path:
    """Write a LoRA with random weights for three layers of the image network."""
    names = [name for name in target_layers(model.net.image_unet) if "attn1.to_q" in name][:3]
    torch.manual_seed(seed)
    layers = {
        name: (size * torch.randn_like(down), torch.randn_like(up))
        for name, (down, up) in deltas(model.net.image_unet, names).items()
    }
    save_file(kohya("lora_unet", layers, 2.0), path)
    return path


def motion_lora_file(path: Path, model: kg.Model) -> Path:
    """Write a LoRA for the first two attention layers of the temporal layers."""
    layers = target_layers(model.net.temporal)
    names = [name for name in layers if "attentions" in name and name.endswith("attn1.to_q")][:2]
    save_file(
        {
            f"unet.{motion_module_name(name)}.lora_{letter}.weight": each.clone()
            for name, pair in deltas(model.net.temporal, names).items()
            for letter, each in zip("AB", pair, strict=True)
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def pocket() -> kg.Model:
    return kg.load("pocket", dtype="float32")


@pytest.fixture(scope="module")
def pocket_video() -> kg.Model:
    return kg.load("pocket-video", dtype="float32")


# --- repr


def test_a_model_is_shown_in_two_lines(pocket: kg.Model, pocket_video: kg.Model, tmp_path: Path) -> None:
    assert repr(pocket) == (
        "Model pocket: image model, 128 x 128, 14.1 million parameters, cpu, float32\n"
        "    with ControlNet canny, depth, pose"
    )
    assert repr(pocket_video).startswith("Model pocket-video: video model of 16 frames, 128 x 128, 1")
    changed = pocket_video.load_lora_weights(lora_file(tmp_path / "style.safetensors", pocket_video))
    assert repr(changed).splitlines()[1] == "    with LoRA style, motion adapter, ControlNet canny, depth, pose"


def test_a_pipelines_model_is_shown_in_one_line(sd_pipeline) -> None:
    assert repr(kg.load(sd_pipeline)).startswith("Model StableDiffusionPipeline: image model, 16 x 16, 0.")
    assert "\n" not in repr(kg.load(sd_pipeline))


# --- to


def networks(model: kg.Model) -> list[nn.Module]:
    encoders = [each.network for each in model.text_encoders]
    others = [model.temporal_decoder, model.image_encoder and model.image_encoder.network]
    controls = [model.control(kind) for kind in model.controls]
    return [model.net, model.vae, *encoders, *controls, *(each for each in others if each is not None)]


def dtypes(model: kg.Model) -> set[torch.dtype]:
    return {weight.dtype for network in networks(model) for weight in network.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pocket-animate", "pocket-video"])
def test_every_network_moves(name: str) -> None:
    options = {"decoder": "pocket-vidrd", "adapter": "pocket-fox"} if name == "pocket-video" else {}
    model = kg.load(name, dtype="float32", **options)
    opened = model.control("canny")
    half = model.to("cpu", torch.bfloat16)
    assert (half.device, half.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert half.control("canny") is opened
    assert dtypes(half) == {torch.bfloat16}  # with ControlNets that are opened only now
    assert half.net is model.net and half.settings == model.settings


@pytest.mark.parametrize(
    ("place", "named"),
    [((torch.bfloat16,), {}), (("bf16",), {}), (("torch.bfloat16", "cpu"), {}), ((), {"dtype": "bfloat16"})],
)
def test_a_dtype_is_given_as_in_torch_or_by_name(sd_folder: Path, place: tuple[Any, ...], named: Any) -> None:
    model = kg.load(sd_folder, dtype="float32")
    assert model.to(*place, **named).dtype == torch.bfloat16
    assert dtypes(model) == {torch.bfloat16}


@pytest.mark.slow
def test_a_moved_model_generates_what_one_loaded_there_does() -> None:
    there = kg.load("pocket", dtype="bfloat16")
    assert np.array_equal(frames(kg.load("pocket", dtype="float32").to(torch.bfloat16)), frames(there))


@pytest.mark.slow
def test_the_model_before_a_move_is_refused(sd_folder: Path) -> None:
    model = kg.load(sd_folder, dtype="float32")
    assert model.to("cpu").dtype == torch.float32
    kg.generate(model, "a fish", **FEW)  # nothing moved
    moved = model.to(torch.bfloat16)
    with pytest.raises(InputError, match="were moved to cpu, bfloat16: use the model that `to` returned"):
        kg.generate(model, "a fish", **FEW)
    kg.generate(moved, "a fish", **FEW)
    kg.generate(moved.to(torch.float32), "a fish", **FEW)


def test_a_place_that_is_none_is_refused(sd_folder: Path) -> None:
    model = kg.load(sd_folder)
    for wrong in (3, None):
        with pytest.raises(InputError, match="a device, a dtype or both"):
            move(model, [wrong], None, None)  # types are checked in tests before `to` is called
    with pytest.raises(InputError, match="available are"):
        model.to("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="cuda is not available"):
            model.to("cuda")


def test_the_vae_that_overflows_stays_in_float32(sdxl_folder: Path) -> None:
    model = kg.load(sdxl_folder, dtype="float32")
    with pytest.warns(InputWarning, match="float16 is slow on a CPU"):
        half = model.to(torch.float16)
    assert (half.net.image_unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)


@pytest.mark.gpu
def test_a_model_moves_to_a_gpu_and_back(pocket_video: kg.Model) -> None:
    model = kg.load("pocket-video", device="cpu", dtype="float32")
    model.control("canny")
    there = model.to("cuda")
    assert {weight.device.type for each in networks(there) for weight in each.parameters()} == {"cuda"}
    assert np.abs(frames(there).astype(int) - frames(pocket_video)).mean() < 1
    with pytest.raises(InputError, match="were moved to cuda"):
        frames(model)
    assert np.array_equal(frames(there.to("cpu")), frames(pocket_video))


# --- LoRAs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lora_after_load_equals_one_of_load(tmp_path: Path, dtype: str) -> None:
    plain = kg.load("pocket", dtype=dtype)
    before = frames(plain)
    file = lora_file(tmp_path / "style.safetensors", plain)
    changed = plain.load_lora_weights(file, 0.7)
    loaded = kg.load("pocket", dtype=dtype, lora=(file, 0.7))
    assert np.array_equal(frames(changed), frames(loaded)) and changed.settings == loaded.settings
    assert np.array_equal(frames(plain), before) and not np.array_equal(frames(changed), before)
    for each in (changed, loaded):
        without = each.unload_lora_weights()
        assert np.array_equal(frames(without), before) and without.settings == plain.settings
    assert np.array_equal(frames(changed), frames(loaded))  # taking it off left them as they were


def test_the_weights_are_shared(sd_folder: Path, tmp_path: Path) -> None:
    plain = kg.load(sd_folder)
    weights = deltas(plain.net.image_unet, UNET), deltas(plain.text_encoders[0].network, TEXT)
    tensors: dict[str, Tensor] = kohya("lora_unet", weights[0], 2.0) | kohya("lora_te_text_model", weights[1], 2.0)
    save_file(tensors, tmp_path / "style.safetensors")
    changed = plain.load_lora_weights(tmp_path / "style.safetensors")
    assert not torch.equal(changed.prompt(["a fish"]).tokens, plain.prompt(["a fish"]).tokens)
    own = {weight.data_ptr() for network in networks(plain) for weight in network.parameters()}
    added = [w for network in networks(changed) for w in network.parameters() if w.data_ptr() not in own]
    assert len(added) == 2 * (len(UNET) + len(TEXT))
    without = changed.unload_lora_weights()
    assert {name: id(each) for name, each in without.net.state_dict(keep_vars=True).items()} == {
        name: id(each) for name, each in plain.net.state_dict(keep_vars=True).items()
    }
    kg.save(without, tmp_path / "saved")  # which refuses a model with LoRAs


def changes_file(path: Path, model: kg.Model) -> Path:
    """Write a file whose changes are of all kinds but plain LoRA: a LoHa, DoRA, a difference with bias, and a norm."""
    torch.manual_seed(4)
    shapes = {name: model.net.image_unet.get_submodule(name).weight.shape for name in UNET[:4]}
    one, other, third, fourth = (f"lora_unet_{name.replace('.', '_')}" for name in shapes)
    rows, columns = shapes[UNET[0]]
    tensors = {f"{one}.hada_w{n}_{side}": torch.randn(*size) / 2 for n in (1, 2) for side, size in (
        ("a", (rows, 2)), ("b", (2, columns)))}  # fmt: skip
    tensors |= kohya("lora_unet", deltas(model.net.image_unet, UNET[1:2]), 2.0)
    tensors[f"{other}.dora_scale"] = torch.rand(shapes[UNET[1]][0], 1)
    tensors |= {f"{third}.diff": 0.1 * torch.randn(shapes[UNET[2]]), f"{third}.diff_b": torch.randn(shapes[UNET[2]][0])}
    tensors |= {"lora_unet_conv_norm_out.w_norm": torch.rand(len(model.net.image_unet.conv_norm_out.weight))}
    tensors |= {f"{fourth}.diff_b": torch.randn(shapes[UNET[3]][0])}
    save_file(tensors, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changes_of_weights_are_put_on_and_taken_off(tmp_path: Path, dtype: str) -> None:
    plain = kg.load("pocket", dtype=dtype)
    before, state = frames(plain), plain.net.state_dict(keep_vars=True)
    signature = weight_signature(plain.net.image_unet, "pocket")
    file = changes_file(tmp_path / "style.safetensors", plain)
    changed, loaded = plain.load_lora_weights(file, 0.7), kg.load("pocket", dtype=dtype, lora=(file, 0.7))
    after = frames(changed)
    assert not np.array_equal(after, before) and np.array_equal(after, frames(loaded))
    assert np.array_equal(frames(plain), before)
    assert changed.settings == loaded.settings
    assert "with LoRA style" in repr(changed)
    assert changed.net.state_dict().keys() == state.keys()
    assert weight_signature(changed.net.image_unet, "pocket") == signature
    with pytest.raises(InputError, match="unet has LoRAs on it"):
        kg.save(changed, tmp_path / "saved")
    assert np.array_equal(frames(loaded.unload_lora_weights()), before)
    without = changed.unload_lora_weights().net.state_dict(keep_vars=True)
    assert {name: id(each) for name, each in without.items()} == {name: id(each) for name, each in state.items()}
    moved = changed.to(torch.float32).unload_lora_weights()
    assert all(isinstance(each, nn.Parameter) for each in moved.net.state_dict(keep_vars=True).values())
    kg.save(moved, tmp_path / "saved")


@pytest.mark.slow
def test_changes_of_weights_beside_a_customised_adapter(tmp_path: Path) -> None:
    options = {"dtype": "float32", "adapter": "pocket-fox"}
    fox = kg.load("pocket-video", **options)
    file = changes_file(tmp_path / "style.safetensors", fox)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        changed, loaded = fox.load_lora_weights(file), kg.load("pocket-video", lora=file, **options)
        plain = frames(fox, num_frames=4)
        for each in (changed, loaded):
            assert not np.array_equal(frames(each, num_frames=4), plain)
            assert np.array_equal(frames(each.unload_lora_weights(), num_frames=4), plain)
        assert np.array_equal(frames(changed, num_frames=4), frames(loaded, num_frames=4))


@pytest.mark.slow
def test_several_loras_and_a_customised_adapter(tmp_path: Path) -> None:
    options = {"dtype": "float32", "adapter": "pocket-fox"}
    fox = kg.load("pocket-video", **options)
    files = [lora_file(tmp_path / f"{name}.safetensors", fox, number) for number, name in enumerate(("one", "two"))]
    changed = fox.load_lora_weights(files[0], 0.5).load_lora_weights(str(files[1]))
    loaded = kg.load("pocket-video", lora=[(files[0], 0.5), files[1]], **options)
    asked = {"num_frames": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # the prompt does not name the fox
        assert changed.settings == loaded.settings
        assert np.array_equal(frames(changed, **asked), frames(loaded, **asked))
        plain = frames(fox, **asked)
        assert not np.array_equal(frames(changed, **asked), plain)
        for each in (changed, loaded):
            assert np.array_equal(frames(each.unload_lora_weights(), **asked), plain)  # with the fox
    assert changed.unload_lora_weights().subject == "sks cat"


@pytest.mark.slow
def test_a_motion_lora_after_load(pocket_video: kg.Model, tmp_path: Path) -> None:
    file = motion_lora_file(tmp_path / "zoom.safetensors", pocket_video)
    changed = pocket_video.load_lora_weights(file)
    assert np.array_equal(frames(changed), frames(kg.load("pocket-video", dtype="float32", lora=file)))
    plain = frames(pocket_video)
    assert not np.array_equal(frames(changed), plain)
    assert np.array_equal(frames(changed.unload_lora_weights()), plain)


@pytest.mark.slow
def test_a_video_with_such_a_lora_is_replayed(pocket: kg.Model, tmp_path: Path) -> None:
    file = lora_file(tmp_path / "style.safetensors", pocket)
    video = kg.generate(pocket.load_lora_weights(file, 0.7), "a red fish", **SMALL)
    again = kg.replay(video.save(tmp_path / "fish"), trust=True)  # a warning, which is an error, if the frames differ
    assert again.settings["model"]["load"] == {"source": "pocket", "lora": [[str(file), 0.7]]}


def test_a_file_that_is_no_lora_changes_nothing(sd_folder: Path, tmp_path: Path) -> None:
    model = kg.load(sd_folder)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is no LoRA"):
        model.load_lora_weights(tmp_path / "other.safetensors")
    assert model.unload_lora_weights().settings == model.settings


def test_the_words_of_a_lora_are_known_while_it_is_on(pocket: kg.Model, tmp_path: Path) -> None:
    file = lora_file(tmp_path / "plain.safetensors", pocket)
    save_file(load_file(file), tmp_path / "sks.safetensors", metadata={"kineograph": '{"words": ["sks"]}'})
    assert pocket.unknown_words("a sks fish") == ["sks"]
    changed = pocket.load_lora_weights(tmp_path / "sks.safetensors")
    assert changed.unknown_words("a sks fish") == []
    assert changed.unload_lora_weights().unknown_words("a sks fish") == ["sks"]
    assert kg.load(lora=tmp_path / "sks.safetensors").unload_lora_weights().unknown_words("a sks fish") == ["sks"]


# --- loading


def test_float16_on_a_cpu_is_warned_about_once(sd_folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kg.load(sd_folder, device="cpu", dtype="fp16")
    (warning,) = caught
    assert "float16 is slow on a CPU" in str(warning.message) and "bfloat16" in str(warning.message)


def test_loading_prints_nothing_and_restores_what_the_user_set(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers_logging.enable_progress_bar()
    levels = transformers_logging.get_verbosity(), diffusers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    diffusers_logging.set_verbosity_info()
    try:
        kg.load("pocket-animate", dtype="bfloat16")
        assert capfd.readouterr() == ("", "")
        assert transformers_logging.is_progress_bar_enabled() and diffusers_logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()
        assert transformers_logging.get_verbosity() == logging.WARNING
        assert diffusers_logging.get_verbosity() == logging.INFO
    finally:
        transformers_logging.set_verbosity(levels[0])
        diffusers_logging.set_verbosity(levels[1])


def test_downloads_keep_their_bars_and_users_who_hid_all_keep_none() -> None:
    transformers_logging.enable_progress_bar()
    with pytest.raises(InputError, match="there is no"):
        kg.load("nothing.safetensors")
    assert transformers_logging.is_progress_bar_enabled()
    with quiet_loading():
        assert not transformers_logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet_loading():
            assert are_progress_bars_disabled()
        assert not transformers_logging.is_progress_bar_enabled() and are_progress_bars_disabled()
    finally:
        transformers_logging.enable_progress_bar()


@pytest.mark.parametrize("part", ["text_encoder", "vae", "unet"])
def test_missing_weights_are_an_error_and_not_random_numbers(sd_folder: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(sd_folder, tmp_path / "m")
    (file,) = (tmp_path / "m" / part).glob("*.safetensors")
    weights = load_file(file)
    lost = sorted(weights)[5]
    save_file({name: each for name, each in weights.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{part} has no weights for .*{lost[-10:]}"):
        kg.load(tmp_path / "m")
