"""Customisation: teach an image model (DreamBooth, StyleDrop) or a video model (Still-Moving) a subject or style.

image_model, video_model and the baseline interleaved are entry points; adapters, networks and batches hold what is
trained, image_data and natural_videos the data, phases the runner, dry_run the estimate.
"""

from kineograph.training.customise.adapters import run_motion_adapter_training, train_motion_adapter
from kineograph.training.customise.dry_run import PhaseEstimate, estimate_natural_videos, estimate_video_customisation
from kineograph.training.customise.image_data import generate_images, list_image_files, load_photos
from kineograph.training.customise.image_model import (
    ImageCustomisation,
    customise_image,
    prepare_image_customisation,
    run_image_customisation,
)
from kineograph.training.customise.interleaved import train_interleaved
from kineograph.training.customise.natural_videos import prepare_natural_videos
from kineograph.training.customise.networks import (
    inject_customised,
    load_customised,
    load_customised_video,
    lora_state_dict,
    read_description,
)
from kineograph.training.customise.phases import ADAPTER_FILE, MOTION_ADAPTER_FILE, PREVIEWS, PhaseProgress
from kineograph.training.customise.prompts import check_prompt_contains, rare_word, styled_caption
from kineograph.training.customise.settings import (
    ImageCustomisationSettings,
    VideoCustomisationSettings,
    default_settings,
    default_video_settings,
    with_changes,
)
from kineograph.training.customise.video_model import (
    VideoCustomisation,
    customise_video,
    needs_motion_adapter,
    prepare_video_customisation,
    run_video_customisation,
)
from kineograph.training.temporal_layers.run import FINAL

__all__ = [
    "ADAPTER_FILE",
    "FINAL",
    "MOTION_ADAPTER_FILE",
    "PREVIEWS",
    "ImageCustomisation",
    "ImageCustomisationSettings",
    "PhaseEstimate",
    "PhaseProgress",
    "VideoCustomisation",
    "VideoCustomisationSettings",
    "check_prompt_contains",
    "customise_image",
    "customise_video",
    "default_settings",
    "default_video_settings",
    "estimate_natural_videos",
    "estimate_video_customisation",
    "generate_images",
    "inject_customised",
    "list_image_files",
    "load_customised",
    "load_customised_video",
    "load_photos",
    "lora_state_dict",
    "needs_motion_adapter",
    "prepare_image_customisation",
    "prepare_natural_videos",
    "prepare_video_customisation",
    "rare_word",
    "read_description",
    "run_image_customisation",
    "run_motion_adapter_training",
    "run_video_customisation",
    "styled_caption",
    "train_interleaved",
    "train_motion_adapter",
    "with_changes",
]
