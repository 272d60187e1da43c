"""A video training of milliseconds a step: settings, data, and a function that runs it in another process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from threading import Timer

import numpy as np
import torch
from numbered import movie
from PIL import Image

from kineograph.training.temporal_layers import StageProgress, VideoTrainingSettings, prepare_training, train

TRANSFORMER = {"head_width": 4, "relative": 4, "ff_mult": 2}
LAYERS = {
    "layers": [[{"after": after}, {"kind": "transformer", **TRANSFORMER}] for after in ("conv_in", "transformer")],
    "frame_rate": True,
}
STAGES = [
    {"steps": 3, "height": 16, "width": 16, "num_frames": 3, "fps": [5, 10]},
    {"steps": 2, "height": 16, "width": 24, "num_frames": 4, "fps": [10], "train_batch_size": 1},
]
ONE = [STAGES[0] | {"steps": 2}]
LOOP = {"train_batch_size": 2, "learning_rate": 0.01, "checkpointing_steps": 100, "log_every": 2, "ema_decay": 0.9}


def films(folder: Path, count: int = 3, frames: int = 14) -> Path:
    """Write different videos with captions, in which every pixel changes."""
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.stack([rng.integers(255, size=(20, 28, 3))] * frames) + 9 * np.arange(frames)[:, None, None, None]
        movie(folder / f"{number}.mp4", (pixels % 256).astype(np.uint8))
        (folder / f"{number}.txt").write_text(f"film {number}")
    return folder


def pictures(folder: Path, count: int = 4) -> Path:
    """Write images with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(100 + number).integers(255, size=(21, 33, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def both(folder: Path) -> Path:
    """Write videos and images to train on."""
    films(folder / "films")
    pictures(folder / "pictures")
    return folder


def told(model: Path, data: Path, output: Path, **given: object) -> VideoTrainingSettings:
    """Return the settings of a training on a folder of `both`, with these changes."""
    usual = {
        "model": str(model),
        "layers": LAYERS,
        "trained": ["temporal.*", "image_unet.*attn2*"],
        "videos": [str(data / "films")],
        "images": [str(data / "pictures")],
        "image_share": 0.5,
        "noise_ratio": 1.0,
        "caption_dropout": 0.3,
        "levels": {"mean": 0.5, "spread": 1.0},
        "stages": STAGES,
        "training": LOOP,
        "output": str(output),
    }
    return VideoTrainingSettings.model_validate(usual | given)


def trained(settings: VideoTrainingSettings) -> list[StageProgress]:
    """Run a training on one thread."""
    torch.set_num_threads(1)
    return list(train(prepare_training(settings)))


def train_until_killed(settings: dict[str, object]) -> None:
    """Run a training, and kill this process a moment after the first step of the second stage."""
    torch.set_num_threads(1)
    for each in train(prepare_training(VideoTrainingSettings.model_validate(settings))):
        if each.stage == 2:
            Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
