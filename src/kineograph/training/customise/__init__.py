"""An image model learns a subject or a style from a few pictures: DreamBooth, and an adapter in StyleDrop's manner.

And with it a video model: Still-Moving.
"""

from kineograph.training.customise.dry_run import PhaseEstimate, estimate_natural_videos, estimate_video_customisation
from kineograph.training.customise.image import (
    FINAL,
    ImageCustomisation,
    PhaseProgress,
    customise_image,
    prepare_image_customisation,
    run_image_customisation,
)
from kineograph.training.customise.inject import ADAPTER, inject_customised, load_customised_video
from kineograph.training.customise.interleaved import train_interleaved
from kineograph.training.customise.motion_adapter import (
    MOTION_ADAPTER,
    run_motion_adapter_training,
    train_motion_adapter,
)
from kineograph.training.customise.natural_videos import prepare_natural_videos
from kineograph.training.customise.networks import load_customised, lora_state_dict, read_description
from kineograph.training.customise.photos import list_image_files, load_photos
from kineograph.training.customise.prompts import check_prompt_contains, rare_word, styled_caption
from kineograph.training.customise.settings import (
    ImageCustomisationSettings,
    LoraSettings,
    SamplingSettings,
    VideoCustomisationSettings,
    default_settings,
    default_video_settings,
    with_changes,
)
from kineograph.training.customise.stills import generate_images, generate_missing_images
from kineograph.training.customise.video import customise_video, run_video_customisation
from kineograph.training.customise.video_inputs import (
    VideoCustomisation,
    needs_motion_adapter,
    prepare_video_customisation,
)

__all__ = [
    "ADAPTER",
    "FINAL",
    "MOTION_ADAPTER",
    "Customising",
    "Drawing",
    "Lora",
    "Piece",
    "Reached",
    "Ready",
    "VideoCustomising",
    "VideoReady",
    "changed",
    "customise",
    "customise_image",
    "customise_ready",
    "customise_video",
    "customised",
    "customised_video",
    "in_style",
    "injected",
    "interleave",
    "kept_stills",
    "listed",
    "lora_of",
    "motion_adapter_ready",
    "needs_motion_adapter",
    "of_videos",
    "photos",
    "planned",
    "rare_word",
    "read_card",
    "ready",
    "ready_video",
    "refuse_without",
    "stills",
    "train_motion_adapter",
    "usual",
    "usual_video",
    "wanted_of",
]
