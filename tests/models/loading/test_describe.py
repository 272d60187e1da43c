"""Descriptions from configurations and headers, compared with those of the models that they load."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline
from models.loading import test_ip_adapter, test_motion_modules, test_video_checkpoints
from safetensors.torch import save_file
from tiny_videos import adapter, animatediff, modelscope, shaken, two_levels, videocrafter, vidrd

from kineograph.errors import InputError
from kineograph.models.description import Description, describe_model
from kineograph.models.formats import known_configurations, tensor_files
from kineograph.models.formats import videocrafter as videocrafter_format
from kineograph.models.formats import vidrd as vidrd_format
from kineograph.models.loading import controlnets
from kineograph.models.loading.describe import describe
from kineograph.models.loading.load import load
from kineograph.models.loading.save import save
from kineograph.models.pocket import models as pocket
from kineograph.models.pocket.models import LABORATORY_MODELS, built_in_names

SLOW = {name: pytest.param(name, marks=pytest.mark.slow) for name in LABORATORY_MODELS}
BUILT_IN = (None, "pocket", *(SLOW.get(name, name) for name in built_in_names()))


def read(*_: object, **__: object) -> None:
    raise AssertionError("weights are read")


@contextmanager
def weights_forbidden() -> Iterator[None]:
    torch_load = torch.load

    def load_shapes(*arguments: object, **options: object) -> object:
        assert options["map_location"] == "meta" and options["mmap"], "weights are read"
        return torch_load(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (tensor_files, "read_tensors"), (tensor_files, "read_content"), (pocket, "read_tensors"),
            (diffusers.ModelMixin, "from_pretrained"),
            (transformers.PreTrainedModel, "from_pretrained"),
        ):  # fmt: skip
            patch.setattr(owner, name, read)
        patch.setattr(torch, "load", load_shapes)
        yield


def described(source: object = None, **options: object) -> Description:
    """Return the description, after comparing it with that of the loaded model."""
    with weights_forbidden():
        found = describe(source, **options)
    assert found == describe_model(load(source, dtype="float32", **options))
    assert found is not None
    return found


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models(name: str | None) -> None:
    found = described(name)
    assert found.name == (name or "pocket")
    assert found.controls == ("canny", "depth", "pose")
    assert found.edits == (name == "pocket-edit")
    assert found.is_video == (name not in (None, "pocket", "pocket-edit"))
    assert found.takes_images == (name == "pocket-animate")


def test_module_of_descriptions_imports_no_networks() -> None:
    code = "import sys, kineograph.models.description; print({'torch', 'diffusers', 'pydantic'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_built_in_motion_modules() -> None:
    assert described(motion_module="pocket-video") == replace(describe("pocket-video"), name="pocket")
    assert describe(motion_module="pocket-edit") is None, "an image model has no temporal layers"
    with pytest.raises(InputError, match="did you mean pocket-video"):
        describe(motion_module="pocket-vido")


# --- folders and pipelines


def test_folders_and_pipelines_of_image_models(sd_folder: Path, sdxl_folder: Path, sd_pipeline, make_sd) -> None:
    found = described(sd_folder)
    assert (found.in_channels, found.latent_channels, found.default_size, found.vae_scale_factor) == (4, 4, (16, 16), 2)
    assert found == described(str(sd_folder)) and not found.is_video and not found.edits
    described(sdxl_folder)
    described(sd_pipeline)
    assert described(make_sd(in_channels=8)).edits


def test_default_settings_may_be_left_out_of_a_folder(sd_folder: Path, make_sd, tmp_path: Path) -> None:
    make_sd().save_pretrained(tmp_path / "short")
    for part, setting in (("unet", "in_channels"), ("vae", "latent_channels")):
        file = tmp_path / "short" / part / "config.json"
        config = json.loads(file.read_text())
        del config[setting]
        file.write_text(json.dumps(config))
    assert described(tmp_path / "short").in_channels == 4
    file = tmp_path / "short" / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": None}))
    assert describe(tmp_path / "short") is None


def pipeline_with(unet: object, sd_folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipeline.register_modules(unet=unet)
    return pipeline


@pytest.mark.parametrize("make", [pytest.param(modelscope, marks=pytest.mark.slow), animatediff])
def test_video_networks_of_diffusers(make: Callable, sd_folder: Path, tmp_path: Path) -> None:
    pipeline = pipeline_with(make(cross_attention_dim=32), sd_folder)
    pipeline.save_pretrained(tmp_path / "video")
    from_folder, from_pipeline = described(tmp_path / "video"), described(pipeline)
    assert from_folder.is_video and from_folder.temporal == from_pipeline.temporal
    assert described(sd_folder).temporal is None


def test_repository(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.append((name, options)) or str(sd_folder),
    )
    found = describe("someone/some-model", revision="v2", token="t", cache_dir=tmp_path)
    [(name, options)] = asked
    assert (name, options["revision"], options["token"], options["cache_dir"]) == (
        "someone/some-model", "v2", "t", tmp_path,
    )  # fmt: skip
    assert options["allow_patterns"] == ["*.json", "*.txt"]
    assert found == describe_model(load("someone/some-model", dtype="float32"))


# --- single files


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_single_file_of_an_image_model(checkpoint, sd_folder: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"merged.{ending}"
    if ending == "safetensors":
        save_file(checkpoint, path)
    else:
        torch.save({"state_dict": checkpoint, "epoch": 3}, path)
    assert described(path, config=sd_folder).name == path.name


@pytest.mark.parametrize(
    ("family", "size", "skips"),
    list(zip(known_configurations.FAMILIES, (512, 768, 1024, 1024, 1024), (12, 12, 9, 9, 9), strict=True)),
)
@pytest.mark.parametrize("channels", [4, 8])
def test_single_file_of_a_built_in_family(family, size: int, skips: int, channels: int, tmp_path: Path) -> None:
    tensors = {
        known_configurations.FIRST_LAYER: torch.zeros(320, channels, 1, 1),
        "model.diffusion_model.attn2.to_k.weight": torch.zeros(1, family.cross_attention),
        "first_stage_model.x": torch.zeros(1),
        "cond_stage_model.x": torch.zeros(1),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = describe(tmp_path / "model.safetensors")
    expected = Description("model.safetensors", None, channels, 4, False, False, (), (size, size), 8, skips=skips)
    assert found == expected
    assert found.edits == (channels == 8)


@pytest.fixture(scope="module", params=["text_to_video", "image_to_video"])
def release(request, tmp_path_factory, sd_folder) -> test_video_checkpoints.Release:
    images = request.param == "image_to_video"
    made = test_video_checkpoints.components(sd_folder, images=images, frame_rate=True, convolution=images)
    return test_video_checkpoints.release(tmp_path_factory.mktemp(request.param), made)


@pytest.mark.slow
def test_videocrafter_file_and_its_folder(release, tmp_path: Path) -> None:
    found = described(release.file, config=release.config)
    assert found.is_video
    assert found.takes_images == (release.file.parent.name.startswith("image_to_video"))
    assert replace(found, name="config", default_size=(16, 16)) == described(release.config), "files have no size"
    torch.save({"state_dict": {f"module.{name}": each for name, each in release.tensors.items()}}, tmp_path / "a.ckpt")
    assert described(tmp_path / "a.ckpt", config=release.config).temporal == found.temporal


def test_vidrd_file(sd_folder: Path, tmp_path: Path) -> None:
    shape = {"block_out_channels": (32, 64), "norm_num_groups": 8}
    pipeline_with(two_levels(**shape), sd_folder).save_pretrained(tmp_path / "sd")
    save_file(vidrd_format.to_vidrd(vidrd(shaken(two_levels(**shape)))), tmp_path / "vidrd.safetensors")
    assert described(tmp_path / "vidrd.safetensors", config=tmp_path / "sd").temporal.joint_norms
    assert describe(tmp_path / "vidrd.safetensors") is None, "it has no VAE"


def test_files_that_load_refuses(checkpoint, tmp_path: Path) -> None:
    unet = {name: each for name, each in checkpoint.items() if "diffusion_model" in name}
    for name, tensors in {"unet": unet, "other": {"fc.weight": torch.zeros(1)}, "tiny": checkpoint}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        assert_same_error(tmp_path / f"{name}.safetensors")
    content = (tmp_path / "tiny.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    assert_same_error(tmp_path / "cut.safetensors")
    torch.save({"state_dict": Path}, tmp_path / "code.ckpt")
    assert describe(tmp_path / "code.ckpt") is None


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_torch_file_whose_header_cannot_be_read_alone(checkpoint, sd_folder: Path, tmp_path: Path, ending: str) -> None:
    torch.save(checkpoint, tmp_path / f"old.{ending}", _use_new_zipfile_serialization=False)
    assert describe(tmp_path / f"old.{ending}", config=sd_folder) is None
    torch.save(checkpoint, tmp_path / f"new.{ending}")
    found = describe(tmp_path / f"new.{ending}", config=sd_folder)
    assert (found is None) == (ending == "safetensors"), "torch would take it for what its name says"


def assert_same_error(source: object, **options: object) -> None:
    with pytest.raises(InputError) as expected:
        load(source, **options)
    with pytest.raises(InputError) as raised, weights_forbidden():
        describe(source, **options)
    assert str(raised.value) == str(expected.value)


# --- parts


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"use_motion_mid_block": False}])
def test_motion_modules_from_everywhere(sd_folder: Path, tmp_path: Path, settings: dict) -> None:
    motion = adapter(**settings)
    motion.save_pretrained(tmp_path / "adapter")
    save_file(test_motion_modules.released(motion.state_dict()), tmp_path / "mm.safetensors")
    torch.save(test_motion_modules.wrapped(test_motion_modules.released(motion.state_dict())), tmp_path / "mm.ckpt")
    for source in (tmp_path / "adapter", tmp_path / "mm.safetensors", tmp_path / "mm.ckpt", motion):
        assert described(sd_folder, motion_module=source).is_video
    saved = save(load(sd_folder, motion_module=motion, dtype="float32"), tmp_path / "saved")
    for source in (saved, saved / "temporal"):
        assert described(sd_folder, motion_module=source) == replace(described(saved), name=sd_folder.name)
    with weights_forbidden():
        assert describe(sd_folder, motion_module=sd_folder) is None, "it has no temporal layers"


def test_motion_module_from_a_repository(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter().save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path / "adapter"))
    found = describe(sd_folder, motion_module="someone/motion")
    assert found == replace(described(sd_folder, motion_module=adapter()), controls=())


def test_temporal_layers_of_a_video_checkpoint(sd_folder: Path, tmp_path: Path) -> None:
    shape = {"block_out_channels": (64, 64), "attention_head_dim": (1, 1), "norm_num_groups": 32}
    net = videocrafter(shaken(two_levels(**shape)), head_width=64, frame_rate=True)
    save_file(videocrafter_format.to_videocrafter(net), tmp_path / "videocrafter.safetensors")
    pipeline_with(two_levels(**shape), sd_folder).save_pretrained(tmp_path / "wide")
    assert (
        described(tmp_path / "wide", motion_module=tmp_path / "videocrafter.safetensors").temporal
        == net.temporal.config
    )


@pytest.mark.slow
def test_a_motion_module_brings_its_motion_adapter(tmp_path: Path) -> None:
    saved = save(load("pocket-video", dtype="float32"), tmp_path / "saved")
    assert described(saved).has_motion_adapter
    assert described(saved, motion_module=saved).has_motion_adapter
    own = saved / "motion_adapter" / "motion_adapter.safetensors"
    assert described(saved, motion_module=saved, motion_adapter=own).has_motion_adapter
    assert describe(motion_adapter=own) is None, "an image model has no use for it"


@pytest.mark.slow
def test_ip_adapter_controlnets_and_vae(sd_folder: Path, make_sd, tmp_path: Path) -> None:
    file = test_ip_adapter.saved(tmp_path, 32) / "ip-adapter.safetensors"
    assert described(sd_folder, ip_adapter=file).takes_images
    net = ControlNetModel.from_unet(make_sd().unet, conditioning_embedding_out_channels=(4, 8))
    net.save_pretrained(tmp_path / "canny")
    assert described(sd_folder, controlnet={"canny": tmp_path / "canny", "depth": net}).controls == ("canny", "depth")
    assert described(sd_folder, controlnet=net).controls == (controlnets.ANY_CONTROL,)
    coarse = AutoencoderKL(
        block_out_channels=(8, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    coarse.save_pretrained(tmp_path / "vae")
    for vae in (coarse, tmp_path / "vae", tmp_path):
        assert_same_error(sd_folder, vae=vae)
    shutil.copytree(sd_folder, tmp_path / "pruned", ignore=shutil.ignore_patterns("vae"))
    for vae in (coarse, tmp_path / "vae"):
        assert described(tmp_path / "pruned", vae=vae).default_size == (32, 32)
    assert described("pocket-video", adapter="pocket-fox") == describe("pocket-video")


# --- sources that do not exist


def test_error_for_a_missing_source_is_that_of_load(sd_folder: Path, tmp_path: Path) -> None:
    for source in (sd_folder.with_name("tiny-sq"), "/nowhere/at/all.safetensors", "pocket-vido", tmp_path):
        assert_same_error(source)
    assert_same_error("someone/some-model", cache_dir=tmp_path)
    missing = tmp_path / "missing"
    for option in ("motion_module", "ip_adapter", "controlnet", "vae"):
        assert_same_error(sd_folder, **{option: missing})
    for option in ("adapter", "motion_adapter"):
        assert_same_error("pocket-video", **{option: missing})
    index = json.loads((sd_folder / "model_index.json").read_text())
    del index["unet"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert_same_error(tmp_path)
