"""A customisation of a video model of milliseconds a step: model, settings, and running it in another process."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_customising import LOOP, SUBJECT, TINY
from tiny_videos import shaken

import kineograph as kg
from kineograph.models.model import Model
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise import VideoCustomisationSettings, customise_video, with_changes

LAYERS = TransformerConfig(head_width=8, relative=4)
CONFIG = TemporalConfig(
    num_frames=4, layers=((Site("conv_in"), LAYERS), (Site("transformer"), LAYERS)), frame_rate=True
)
FEW = {**LOOP, "max_train_steps": 3, "checkpointing_steps": 1}
OF_VIDEO = {
    "image": TINY | {"training": LOOP | {"max_train_steps": 2}},
    "stills": 3,
    "natural_videos": 2,
    "num_frames": 3,
    "drawing": {"num_inference_steps": 2, "guidance_scale": 2.0, "at_once": 1},
    "spatial": {"rank": 2, "layers": ("conv_in", "attentions")},
    "motion": {"rank": 2, "layers": ("to_q", "to_v")},
    "caption_dropout": 0.3,
    "training": FEW,
    "motion_training": FEW,
}


def settings(**given: object) -> VideoCustomisationSettings:
    """Return the settings of a tiny customisation, with these changes."""
    return with_changes(VideoCustomisationSettings.model_validate(OF_VIDEO), given)


def pictures(folder: Path) -> Path:
    """Write three images of noise."""
    folder.mkdir(exist_ok=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(255, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def save_waves(image: Model, folder: Path) -> Path:
    """Save a video model made of an image model and random temporal layers."""
    unet = image.net.image_unet
    return kg.save(replace(image, net=VideoUNet(unet, shaken(TemporalLayers(unet, CONFIG)))), folder)


def opened(folder: Path, **given: object) -> Model:
    return kg.load(folder, device="cpu", dtype="float32", **given)


def customise_until_killed(folder: Path, photos: Path, output: Path, phase: str, done: int) -> None:
    """Customise, and kill this process when so much of a phase is done."""
    torch.set_num_threads(1)
    for each in customise_video(opened(folder), photos, output, subject=SUBJECT, settings=settings()):
        if (each.phase, each.done) == (phase, done):
            os.kill(os.getpid(), signal.SIGKILL)
