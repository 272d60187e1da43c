"""Every example runs, on small models and with few steps."""

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kineograph.media.video import open_video
from kineograph.methods import still_moving, videocrafter
from kineograph.models.loading.load import load
from kineograph.models.temporal.adapters import MOTION_ADAPTER
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph_lab.bench.text2video_zero import save_random_pipeline
from kineograph_lab.world.world import render_clip

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-in")
    save_random_pipeline(folder, channels=32, side=8, text_layers=1)
    return load(folder, dtype="float32")


@pytest.fixture(scope="module")
def video_model(model):
    layers = TransformerConfig(head_width=8, relative=4)
    config = TemporalConfig(
        num_frames=4, layers=((Site("conv_in"), layers), (Site("transformer"), layers)), frame_rate=True
    )
    return replace(model, net=videocrafter.attach(model.net.image_unet, config).eval())


@pytest.mark.slow
def test_text2video_zero(model, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "text2video_zero.py"))
    video = example["generate"](model, "a red fish", num_frames=3, steps=4)
    assert video.frames.shape == (3, 64, 64, 3)
    assert "3 frames at sigma 0.00" in capsys.readouterr().out


@pytest.mark.slow
def test_controlnet(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "controlnet.py"))
    clip = render_clip(example["SHOT"], 3, 4.0)
    video = example["generate"](load(), "a purple fish in a city", clip, steps=2)
    assert video.frames.shape == (3, 128, 128, 3)
    assert "sigma 0.00" in capsys.readouterr().out


@pytest.mark.slow
def test_freenoise(video_model, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "freenoise.py"))
    video = example["generate"](
        video_model, {0: "a red fish", 6: "a blue fish"}, num_frames=7, window=4, stride=2, steps=2
    )
    assert video.frames.shape == (7, 64, 64, 3)
    assert "7 frames at sigma 0.00" in capsys.readouterr().out


def test_videocrafter(video_model, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "videocrafter.py"))
    video = example["generate"](video_model, "a red fish", num_frames=3, steps=2)
    assert video.frames.shape == (3, 64, 64, 3) and video.fps == 8.0
    assert "3 frames at sigma 0.00" in capsys.readouterr().out


@pytest.mark.slow
def test_video_elevator(model, video_model, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "video_elevator.py"))
    video = example["generate"](model, video_model, "a red fish", "a red fish swims", num_frames=3, steps=8)
    assert video.frames.shape == (3, 64, 64, 3)
    assert "3 frames at sigma 0.00" in capsys.readouterr().out


@pytest.mark.slow
def test_still_moving(video_model) -> None:
    example = runpy.run_path(str(EXAMPLES / "still_moving.py"))
    adapted = replace(video_model, net=still_moving.attach(video_model.net, motion=MOTION_ADAPTER).eval())
    for weight in adapted.net.motion_adapter.parameters():
        torch.nn.init.normal_(weight)
    videos = [example["generate"](adapted, "a red fish", scale, num_frames=3, steps=2) for scale in (0.0, 1.0)]
    assert example["side_by_side"](videos).frames.shape == (3, 64, 128, 3)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_everything(tmp_path: Path) -> None:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "STEPS": "2", "FRAMES": "3"}
    subprocess.run(["bash", str(EXAMPLES / "everything.sh")], cwd=tmp_path, env=environment, check=True)
    followed, video = (open_video(tmp_path / name) for name in ("in.mp4", "everything.mp4"))
    assert followed.frames.shape == video.frames.shape == (9, 128, 128, 3)
    used = [video.settings[name] for name in ("method", "control", "clips", "num_frames", "num_inference_steps")]
    assert used == ["video-elevator", {"canny": "in.mp4"}, 3, 3, 2]
    assert video.settings["video_model"]["load"] == {"source": "pocket-video", "adapter": "pocket-fox"}
