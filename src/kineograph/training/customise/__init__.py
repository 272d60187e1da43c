"""An image model learns a subject or a style from a few pictures: DreamBooth, and an adapter in StyleDrop's manner.

And with it a video model: Still-Moving.
"""

from kineograph.training.customise.dry_run import Piece, of_videos, planned
from kineograph.training.customise.image import FINAL, Reached, Ready, customise, customise_image, ready
from kineograph.training.customise.inject import ADAPTER, customised_video, injected
from kineograph.training.customise.interleaved import interleave
from kineograph.training.customise.motion_adapter import MOTION_ADAPTER, motion_adapter_ready, train_motion_adapter
from kineograph.training.customise.natural_videos import wanted_of
from kineograph.training.customise.networks import customised, lora_of, read_card
from kineograph.training.customise.photos import listed, photos
from kineograph.training.customise.prompts import in_style, rare_word, refuse_without
from kineograph.training.customise.settings import Customising, Drawing, Lora, VideoCustomising, changed, usual, usual_video
from kineograph.training.customise.stills import kept_stills, stills
from kineograph.training.customise.video import customise_ready, customise_video
from kineograph.training.customise.video_inputs import VideoReady, needs_motion_adapter, ready_video

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
