"""An image model learns a subject or a style from a few pictures: DreamBooth, and an adapter in StyleDrop's manner.

And with it a video model: Still-Moving.
"""

from kineograph.recipes.customising.injected import ADAPTER, customised_video, injected
from kineograph.recipes.customising.interleaved import interleave
from kineograph.recipes.customising.motion_adapter import MOTION_ADAPTER, motion_adapter_ready, train_motion_adapter
from kineograph.recipes.customising.natural import wanted_of
from kineograph.recipes.customising.photos import listed, photos
from kineograph.recipes.customising.plan import Piece, of_videos, planned
from kineograph.recipes.customising.run import FINAL, Reached, Ready, customise, customise_image, ready
from kineograph.recipes.customising.settings import Customising, Drawing, Lora, changed, usual
from kineograph.recipes.customising.stills import kept_stills, stills
from kineograph.recipes.customising.trainee import customised, lora_of, read_card
from kineograph.recipes.customising.video import customise_ready, customise_video
from kineograph.recipes.customising.video_ready import VideoReady, needs_motion_adapter, ready_video
from kineograph.recipes.customising.video_settings import VideoCustomising, usual_video
from kineograph.recipes.customising.words import in_style, rare_word, refuse_without

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
