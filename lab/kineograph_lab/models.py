"""Built-in models that only the studies load: a video model of degraded data and a space-time U-Net."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from kineograph.models.loading.components import Components
from kineograph.models.pocket.models import BuiltInModel, open_pocket_video, open_with_temporal_layers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph_lab import WEIGHTS
from kineograph_lab.recipe.video.degraded import apply_degradation

DEGRADED, SPACE_TIME = WEIGHTS / "video-degraded", WEIGHTS / "space-time"


def open_degraded_video(folder: Path, changes: Path = DEGRADED) -> Components:
    """Return the video model fine-tuned on few, blurred, watermarked clips, for VideoElevator's comparison."""
    opened = open_pocket_video(folder)
    apply_degradation(VideoUNet(opened.unet, opened.temporal), load_file(changes / "degraded.safetensors"))
    return opened


def open_space_time(folder: Path, changes: Path = SPACE_TIME) -> Components:
    """Return the video model with the temporal layers of a space-time U-Net, after Lumiere."""
    return open_with_temporal_layers(folder, changes)


degraded_video = BuiltInModel("VideoCrafter1 (text to video), small, of degraded data", DEGRADED, open_degraded_video)
space_time = BuiltInModel("Lumiere's space-time U-Net, small", SPACE_TIME, open_space_time)
