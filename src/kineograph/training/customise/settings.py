"""What a customising can be told, and what it is told unless one says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, Field, field_validator

from kineograph.methods.still_moving import STILL
from kineograph.models.model import VIDEO_MODEL_FPS, Model
from kineograph.models.placement import choose_placement
from kineograph.models.temporal.adapters import MOTION_ADAPTER, SPATIAL_ADAPTER, AdapterConfig
from kineograph.training import TrainingSettings
from kineograph.training.temporal_layers.settings import STRICT, LogNormalSigmas

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMERS = (*ATTENTION, "net.0.proj", "net.2")
LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": ATTENTION,
        "transformers": TRANSFORMERS,  # and feed-forward
        "all": (*TRANSFORMERS, "conv1", "conv2"),  # and the filters of the resnets
    }
)
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}
SMALL = 50_000_000  # parameters: the pocket model has 10 million, Stable Diffusion 860 and more
# What may change between a run and its resumption without changing the weights that come out.
IMAGE_MAY_CHANGE = {"training", "previews", "prior_folder", "gradient_checkpointing"}

Settings = TypeVar("Settings", bound=BaseModel)


class LoraSettings(BaseModel):
    """Matrices of low rank beside the layers of the image network whose names end so, or that a word stands for.

    alpha: what they count is alpha / rank; as much as the rank unless given.
    text_rank: of matrices beside the attention of the text encoder, which learns nothing unless given.
    """

    model_config = STRICT

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, allow_inf_nan=False)
    layers: str | tuple[str, ...] = "attention"
    text_rank: int | None = Field(None, ge=1)

    @field_validator("layers")
    @classmethod
    def _known(cls, layers: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(layers, str) and layers not in LAYERS:
            raise ValueError(f"expected {', '.join(LAYERS)}, or a list of the ends of layers' names, such as [to_k]")
        if not layers:
            raise ValueError("expected one at least")
        return layers

    @property
    def targets(self) -> tuple[str, ...]:
        """How the names of the layers end."""
        return LAYERS[self.layers] if isinstance(self.layers, str) else self.layers


class SamplingSettings(BaseModel):
    """How stills are drawn, so many at once, by DPM-Solver++ (2M)."""

    model_config = STRICT

    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(7.5, allow_inf_nan=False)
    at_once: int = Field(4, ge=1)


class ImageCustomisationSettings(BaseModel):
    """How an image model learns a subject or a style from a few pictures; see docs/customising.md.

    lora          what is trained; None trains the whole image network
    prior_weight  of the prior's pictures, which the model draws itself; 0 for none of them
    prior_folder  where they are kept, for several customisings to share; a folder of the output unless given
    height, width in pixels; the model's own unless given
    crops, crop_share
                  1 and 1 cut the middle of each picture; else it is so many random cuts of this share of the sides at
                  least: what is in the middle of a few pictures is then not always there
    flips         whether pictures are seen in the mirror too, which asymmetric subjects do not survive
    error         what is squared: what the network "predicted", or that told as "v", which weighs high levels more
    previews      prompts of pictures drawn on the way, every `training.validation_steps`
    """

    model_config = STRICT

    lora: LoraSettings | None = LoraSettings.model_validate({})
    prior_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    prior_pictures: int = Field(100, ge=1)
    prior_folder: Path | None = None
    drawing: SamplingSettings = SamplingSettings.model_validate({})
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    crops: int = Field(1, ge=1)
    crop_share: float = Field(1.0, gt=0, le=1)
    flips: bool = False
    caption_dropout: float = Field(0.0, ge=0, le=1)
    levels: Literal["uniform"] | LogNormalSigmas = "uniform"
    error: Literal["predicted", "v"] = "predicted"
    gradient_checkpointing: bool = False
    previews: tuple[str, ...] = ()
    training: TrainingSettings

    def decisive(self) -> dict[str, Any]:
        """What decides, beside the settings of the loop, which weights come out, as JSON values."""
        return self.model_dump(mode="json", exclude=IMAGE_MAY_CHANGE)


USUAL: Mapping[str, Any] = {
    "training": {"ema_decay": 0.0, "checkpointing_steps": 100, "checkpoints_total_limit": 2, "validation_steps": 100}
}
# What Stable Diffusion's users have come to, and DreamBooth's and StyleDrop's own numbers where they carry over.
LARGE: Mapping[str, Mapping[str, Any]] = {
    "subject": {"lora": {}, "training": {"learning_rate": 1e-4, "max_train_steps": 800}},
    "subject, whole": {"lora": None, "training": {"learning_rate": 5e-6, "max_train_steps": 1000}},
    "style": {"lora": {"layers": "transformers"}, "training": {"learning_rate": 1e-4, "max_train_steps": 500}},
    "style, whole": {"lora": None, "training": {"learning_rate": 5e-6, "max_train_steps": 500}},
}
# The pocket model learns at the levels that it was taught at, and its filters learn too (kineograph/pocket/unet.py).
OF_SMALL: Mapping[str, Any] = {
    "prior_pictures": 64,
    "drawing": {"num_inference_steps": 20, "guidance_scale": 2.5, "at_once": 8},
    "caption_dropout": 0.1,
    "levels": {"mean": 0.7, "spread": 1.1},
    "error": "v",
    "training": {
        "train_batch_size": 8, "max_train_steps": 800, "learning_rate": 1e-3, "lr_scheduler": "linear",
        "lr_warmup_steps": 20,
    },
}  # fmt: skip
SMALLER: Mapping[str, Mapping[str, Any]] = {
    "subject": {"lora": {"layers": "all"}},
    "subject, whole": {"lora": None, "training": {"learning_rate": 1e-4}},
    # Without text_rank the style's words say too little beside others; without cuts things stay where they are on the
    # pictures.
    "style": {
        "lora": {"layers": "transformers", "text_rank": 4},
        "crops": 12,
        "crop_share": 0.6,
        "training": {"max_train_steps": 400},
    },
    "style, whole": {"lora": None, "training": {"learning_rate": 1e-4}},
}


def default_settings(
    model: Model, what: Literal["subject", "style"], how: Literal["lora", "whole"] = "lora"
) -> ImageCustomisationSettings:
    """What suits a model of this size that is to learn a subject or a style, by a LoRA or as a whole.

    Whether it computes in half precision is what `kineograph.load` would choose on this device.
    """
    name = what if how == "lora" else f"{what}, whole"
    computes = training_precision(model.device)
    own = (OF_SMALL, SMALLER[name]) if is_small_model(model) else (LARGE[name],)
    told: dict[str, Any] = {}
    for each in (USUAL, {"training": {"mixed_precision": computes}}, *own):
        told = merge_mappings(told, each)
    return ImageCustomisationSettings.model_validate(told)


def is_small_model(model: Model) -> bool:
    """Whether its image network is more like the pocket model's than like Stable Diffusion's."""
    return sum(weight.numel() for weight in model.net.image_unet.parameters()) < SMALL


def training_precision(device: torch.device) -> str:
    """Of the loop; Apple's GPUs train in float32, since nothing scales their losses."""
    return "no" if device.type == "mps" else PRECISIONS.get(choose_placement(device).dtype, "no")


def with_changes(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings with some of them in place of theirs, also inside of a part: {"lora": {"rank": 4}}.

    Raises pydantic's ValidationError, a ValueError, for what is none or cannot be.
    """
    return type(settings).model_validate(merge_mappings(settings.model_dump(), given))


def merge_mappings(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping with another over it, and what are mappings in both alike."""
    both = {name for name in above if isinstance(above[name], Mapping) and isinstance(below.get(name), Mapping)}
    return {**below, **above, **{name: merge_mappings(below[name], above[name]) for name in both}}


# What may change between a run and its resumption without changing the weights that come out. What the pictures and
# the videos are is told by their hashes.
VIDEO_MAY_CHANGE = {"image", "training", "motion_training", "previews", "natural_folder", "gradient_checkpointing"}


class VideoCustomisationSettings(BaseModel):
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

    image: ImageCustomisationSettings
    stills: int = Field(40, ge=1)
    prompts: tuple[str, ...] = ()
    natural_videos: int = Field(40, ge=1)
    natural_prompts: tuple[str, ...] = ()
    natural_folder: Path | None = None
    drawing: SamplingSettings = SamplingSettings.model_validate({"at_once": 1})
    num_frames: int | None = Field(None, ge=2)
    fps: float = Field(VIDEO_MODEL_FPS, gt=0, allow_inf_nan=False)
    spatial: AdapterConfig | None = SPATIAL_ADAPTER
    still_scale: float = Field(STILL, allow_inf_nan=False)
    natural_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    motion: AdapterConfig = MOTION_ADAPTER
    caption_dropout: float = Field(0.1, ge=0, le=1)
    levels: Literal["uniform"] | LogNormalSigmas = "uniform"
    error: Literal["predicted", "v"] = "predicted"
    gradient_checkpointing: bool = False
    previews: tuple[str, ...] = ()
    training: TrainingSettings
    motion_training: TrainingSettings

    def decisive(self) -> dict[str, Any]:
        """What decides, beside the settings of the loops, which weights come out, as JSON values."""
        return self.model_dump(mode="json", exclude=VIDEO_MAY_CHANGE)


LOOP: Mapping[str, Any] = MappingProxyType(
    {
        "ema_decay": 0.0, "checkpointing_steps": 100, "checkpoints_total_limit": 2, "validation_steps": 200,
        "lr_scheduler": "linear", "lr_warmup_steps": 20,
    }
)  # fmt: skip
# The paper's numbers are not known, but for the 40 natural videos.
VIDEO_LARGE: Mapping[str, Any] = {
    "gradient_checkpointing": True,
    "training": {"learning_rate": 1e-4, "max_train_steps": 1000},
    "motion_training": {"learning_rate": 1e-4, "max_train_steps": 2000},
}
# Within 20 minutes on two cores: a step of either loop takes about 0.8 seconds there.
VIDEO_OF_SMALL: Mapping[str, Any] = {
    "stills": 160,
    "drawing": {"num_inference_steps": 15, "guidance_scale": 5.0},
    "num_frames": 8,
    "levels": {"mean": 0.7, "spread": 1.1},
    "error": "v",
    "training": {"learning_rate": 1e-3, "max_train_steps": 400, "train_batch_size": 2},
    "motion_training": {"learning_rate": 1e-3, "max_train_steps": 600, "train_batch_size": 4},
}


def default_video_settings(
    video: Model, what: Literal["subject", "style"], how: Literal["lora", "whole"] = "lora"
) -> VideoCustomisationSettings:
    """What suits a video model of this size that is to learn a subject or a style.

    how: what the image network learns by; a spatial adapter comes before the layers along time in both cases.
    """
    loop = {**LOOP, "mixed_precision": training_precision(video.device)}
    told: dict[str, Any] = {
        "image": default_settings(video, what, how).model_dump(),
        "training": loop,
        "motion_training": loop,
    }
    return VideoCustomisationSettings.model_validate(
        merge_mappings(told, VIDEO_OF_SMALL if is_small_model(video) else VIDEO_LARGE)
    )
