"""Video models on the command line: generate, animate, convert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import Run
from models.conftest import sd, sd_folder  # noqa: F401
from PIL import Image

import kineograph as kg
from kineograph.media.metadata import read_settings
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

LAYERS = TransformerConfig(head_width=8, relative=4)
CONFIG = TemporalConfig(
    num_frames=4, layers=((Site("conv_in"), LAYERS), (Site("transformer"), LAYERS)), frame_rate=True
)
FEW = ["--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video model."""
    image = kg.load(sd())
    unet = image.net.image_unet
    model = replace(image, net=VideoUNet(unet, TemporalLayers(unet, CONFIG).eval()))
    return kg.save(model, tmp_path_factory.mktemp("models") / "video")


@pytest.mark.slow
def test_generate_with_a_video_model(run: Run, folder: Path, tmp_path: Path) -> None:
    result = run("generate", "a fish", "--model", folder, *FEW, "--seed", 3, "-o", "fish.gif")
    assert (result.status, result.out) == (0, "fish.gif\n"), result.err
    settings = read_settings(tmp_path / "fish.gif")
    assert (settings["method"], settings["num_frames"], settings["fps"]) == ("videocrafter", 4, 8.0)
    assert run("replay", "fish.gif", "--yes").status == 0
    longer = run(
        "generate", "a fish", "--model", folder, *FEW, "-n", 6, "--window", 4, "--overlap", 2, "-o", "long.gif"
    )
    assert longer.status == 0, longer.err


@pytest.mark.slow
def test_animate_takes_an_image(run: Run, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "fish.png")
    pinned = ["--first-frame", "pinned", "--model", folder, *FEW]
    result = run("animate", "fish.png", "swimming to the right", *pinned, "-o", "fish.gif")
    assert (result.status, result.out) == (0, "fish.gif\n"), result.err
    assert read_settings(tmp_path / "fish.gif")["image"] == "fish.png"
    assert run("replay", "fish.gif", "--yes").status == 0
    unseen = run("animate", "fish.png", "swimming", "--model", folder, *FEW)
    assert unseen.status == 2 and "takes no images" in unseen.err
    assert "there is no image nowhere.png" in run("animate", "nowhere.png", "swimming", *pinned).err
    assert "only 'fish.png'" in run("animate", "fish.png").err


@pytest.mark.slow
def test_a_converted_folder_generates_the_same_frames(run: Run, folder: Path, tmp_path: Path) -> None:
    result = run("convert", folder, "copy")
    assert (result.status, result.out) == (0, "copy\n"), result.err
    frames = [kg.generate(kg.load(each), "a fish", num_inference_steps=2, seed=1).frames for each in (folder, "copy")]
    assert np.array_equal(*frames)
    assert "is there already" in run("convert", folder, "copy").err


def test_a_motion_module_is_converted_with_an_image_model(run: Run, folder: Path, sd_folder: Path) -> None:  # noqa: F811
    result = run("convert", sd_folder, "moved", "--motion-module", folder)
    assert result.status == 0, result.err
    assert kg.load("moved").temporal == CONFIG


def test_options_of_a_missing_video_model_are_refused(run: Run) -> None:
    result = run("generate", "a fish", "--video-lora", "dog.safetensors", "--video-motion-adapter", "calm.safetensors")
    assert result.status == 2
    assert "--video-motion-adapter and --video-lora: expected the video model" in " ".join(result.err.split())
