"""Customisation: teach an image model (DreamBooth, StyleDrop) or a video model (Still-Moving) a subject or style.

image_model, video_model and the baseline interleaved are entry points; adapters, networks and batches hold what is
trained, image_data and natural_videos the data, phases the runner, dry_run the estimate.
"""

from kineograph.training.customise.adapters import train_motion_adapter
from kineograph.training.customise.image_model import customise_image
from kineograph.training.customise.interleaved import train_interleaved
from kineograph.training.customise.networks import inject_customised, load_customised, load_customised_video
from kineograph.training.customise.phases import PhaseProgress
from kineograph.training.customise.settings import (
    ImageCustomisationSettings,
    VideoCustomisationSettings,
    default_settings,
    default_video_settings,
    with_changes,
)
from kineograph.training.customise.video_model import customise_video

__all__ = [
    "ImageCustomisationSettings",
    "PhaseProgress",
    "VideoCustomisationSettings",
    "customise_image",
    "customise_video",
    "default_settings",
    "default_video_settings",
    "inject_customised",
    "load_customised",
    "load_customised_video",
    "train_interleaved",
    "train_motion_adapter",
    "with_changes",
]
