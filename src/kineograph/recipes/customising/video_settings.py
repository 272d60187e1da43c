"""What a customising of a video model can be told, and what it is told unless one says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, Field

from kineograph.methods.still_moving import STILL
from kineograph.models.branches import MOTION, SPATIAL, BranchConfig
from kineograph.models.model import FPS, Model
from kineograph.recipes.customising.settings import Customising, Drawing, is_small, over, precision, usual
from kineograph.recipes.training.settings import STRICT, LogNormal
from kineograph.training import TrainingSettings

# What may change between a run and its resumption without changing the weights that come out. What the pictures and
# the videos are is told by their hashes.
FREE = {"image", "training", "motion_training", "previews", "natural_folder", "gradient_checkpointing"}


class VideoCustomising(BaseModel):
    """How a video model learns a subject or a style from a few pictures; see docs/customising.md.

    image           how its image network learns it
    stills, prompts how many pictures the customised image network draws, and of what, in turn; what suits unless told
    natural_videos, natural_prompts, drawing, natural_folder
                    how many videos keep what the model knew; of what and how it draws them, and where they are kept,
                    for several customisings to share
    num_frames, fps of all videos; as many as the model was trained on unless told
    spatial         the spatial adapter; None trains all weights of image network and layers along time
    still_scale     of the motion adapter in the frozen videos; 0 trains without it
    natural_weight  of the natural videos; 0 for none of them
    motion          the motion adapter that is trained for a model that has none
    previews        prompts of videos drawn on the way, every `training.validation_steps`
    training, motion_training
                    of the spatial adapter, and of the motion adapter
    """

    model_config = STRICT

    image: Customising
    stills: int = Field(40, ge=1)
    prompts: tuple[str, ...] = ()
    natural_videos: int = Field(40, ge=1)
    natural_prompts: tuple[str, ...] = ()
    natural_folder: Path | None = None
    drawing: Drawing = Drawing.model_validate({"at_once": 1})
    num_frames: int | None = Field(None, ge=2)
    fps: float = Field(FPS, gt=0, allow_inf_nan=False)
    spatial: BranchConfig | None = SPATIAL
    still_scale: float = Field(STILL, allow_inf_nan=False)
    natural_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    motion: BranchConfig = MOTION
    caption_dropout: float = Field(0.1, ge=0, le=1)
    levels: Literal["uniform"] | LogNormal = "uniform"
    error: Literal["predicted", "v"] = "predicted"
    gradient_checkpointing: bool = False
    previews: tuple[str, ...] = ()
    training: TrainingSettings
    motion_training: TrainingSettings

    def decisive(self) -> dict[str, Any]:
        """What decides, beside the settings of the loops, which weights come out, as JSON values."""
        return self.model_dump(mode="json", exclude=FREE)


LOOP: Mapping[str, Any] = MappingProxyType(
    {
        "ema_decay": 0.0, "checkpointing_steps": 100, "checkpoints_total_limit": 2, "validation_steps": 200,
        "lr_scheduler": "linear", "lr_warmup_steps": 20,
    }
)  # fmt: skip
# The paper's numbers are not known, but for the 40 natural videos.
LARGE: Mapping[str, Any] = {
    "gradient_checkpointing": True,
    "training": {"learning_rate": 1e-4, "max_train_steps": 1000},
    "motion_training": {"learning_rate": 1e-4, "max_train_steps": 2000},
}
# Within 20 minutes on two cores: a step of either loop takes about 0.8 seconds there.
OF_SMALL: Mapping[str, Any] = {
    "stills": 160,
    "drawing": {"num_inference_steps": 15, "guidance_scale": 5.0},
    "num_frames": 8,
    "levels": {"mean": 0.7, "spread": 1.1},
    "error": "v",
    "training": {"learning_rate": 1e-3, "max_train_steps": 400, "train_batch_size": 2},
    "motion_training": {"learning_rate": 1e-3, "max_train_steps": 600, "train_batch_size": 4},
}


def usual_video(
    video: Model, what: Literal["subject", "style"], how: Literal["lora", "whole"] = "lora"
) -> VideoCustomising:
    """What suits a video model of this size that is to learn a subject or a style.

    how: what the image network learns by; a spatial adapter comes before the layers along time in both cases.
    """
    loop = {**LOOP, "mixed_precision": precision(video.device)}
    told: dict[str, Any] = {"image": usual(video, what, how).model_dump(), "training": loop, "motion_training": loop}
    return VideoCustomising.model_validate(over(told, OF_SMALL if is_small(video) else LARGE))
