"""Settings of a customisation, and their defaults for a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, field_validator

from kineograph.methods.still_moving import STILL
from kineograph.models.model import Model
from kineograph.models.placement import choose_placement
from kineograph.models.temporal.adapters import MOTION_ADAPTER, SPATIAL_ADAPTER, AdapterConfig
from kineograph.models.temporal.config import STRICT
from kineograph.request import VIDEO_MODEL_FPS
from kineograph.training import TrainingSettings
from kineograph.training.settings_file import SettingsT
from kineograph.training.temporal_layers.settings import LogNormalSigmas

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER_BLOCKS = (*ATTENTION, "net.0.proj", "net.2")
LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": ATTENTION,
        "transformers": TRANSFORMER_BLOCKS,  # and feed-forward
        "all": (*TRANSFORMER_BLOCKS, "conv1", "conv2"),  # and the convolutions of the ResNet blocks
    }
)
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# Parameters of an image network: the pocket model has 10 million, Stable Diffusion 860 million and more.
MAX_SMALL = 50_000_000
# Fields that may change when a training is resumed, without an effect on the resulting weights.
IMAGE_MAY_CHANGE = {"training", "previews", "prior_folder", "gradient_checkpointing"}

ErrorKind = Literal["predicted", "v"]


class LoraSettings(BaseModel):
    """Settings of a LoRA on the image network.

    alpha: the LoRA's scale is alpha / rank; equal to the rank unless given.
    layers: the ends of layers' names, or a name of `LAYERS`.
    text_rank: rank of a LoRA on the text encoder's attention; without it the text encoder is frozen.
    """

    model_config = STRICT

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, allow_inf_nan=False)
    layers: str | tuple[str, ...] = "attention"
    text_rank: int | None = Field(None, ge=1)

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(layers, str) and layers not in LAYERS:
            raise ValueError(f"expected {', '.join(LAYERS)}, or a list of the ends of layers' names, such as [to_k]")
        if not layers:
            raise ValueError("expected at least one")
        return layers

    @property
    def targets(self) -> tuple[str, ...]:
        """Ends of the names of the layers."""
        return LAYERS[self.layers] if isinstance(self.layers, str) else self.layers


class SamplingSettings(BaseModel):
    """Settings of generating images or videos by DPM-Solver++ (2M). at_once: batch size."""

    model_config = STRICT

    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(7.5, allow_inf_nan=False)
    at_once: int = Field(4, ge=1)


class ImageCustomisationSettings(BaseModel):
    """Settings by which an image model learns a subject or a style from a few images; see docs/customising.md.

    lora            the trained LoRA; None trains the whole image network
    prior_weight    weight of the loss on the prior's images, which the model generates; 0 for no prior
    prior_pictures  number of the prior's images
    prior_folder    folder of those, to be shared by several customisations; inside the output folder unless given
    drawing         how the prior and the previews are generated
    height, width   in pixels; the model's own unless given
    crops, crop_share
                    number of random crops of each image, and their least side as a share of the image's; 1 and 1 crop
                    the centre. With random crops a subject is not always in the middle
    flips           mirror images too; not for asymmetric subjects
    levels          distribution of sigma: uniform over the timesteps, or log-normal
    error           squared error of what the network "predicted", or of "v", which gives high sigmas more weight
    previews        prompts of images that are generated every `training.validation_steps`
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
    error: ErrorKind = "predicted"
    gradient_checkpointing: bool = False
    previews: tuple[str, ...] = ()
    training: TrainingSettings

    def resume_settings(self) -> dict[str, Any]:
        """Return what decides the resulting weights, besides the settings of the loop, as JSON values."""
        return self.model_dump(mode="json", exclude=IMAGE_MAY_CHANGE)


SHARED: Mapping[str, Any] = {
    "training": {"ema_decay": 0.0, "checkpointing_steps": 100, "checkpoints_total_limit": 2, "validation_steps": 100}
}
# Usual values for Stable Diffusion, and DreamBooth's and StyleDrop's own where they apply to it.
LARGE_MODEL: Mapping[str, Mapping[str, Any]] = {
    "subject": {"lora": {}, "training": {"learning_rate": 1e-4, "max_train_steps": 800}},
    "subject, whole": {"lora": None, "training": {"learning_rate": 5e-6, "max_train_steps": 1000}},
    "style": {"lora": {"layers": "transformers"}, "training": {"learning_rate": 1e-4, "max_train_steps": 500}},
    "style, whole": {"lora": None, "training": {"learning_rate": 5e-6, "max_train_steps": 500}},
}
# The pocket model is trained at the sigmas of its first training, and its convolutions have a LoRA too.
SMALL_SHARED: Mapping[str, Any] = {
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
SMALL_MODEL: Mapping[str, Mapping[str, Any]] = {
    "subject": {"lora": {"layers": "all"}},
    "subject, whole": {"lora": None, "training": {"learning_rate": 1e-4}},
    # Without text_rank the style's words have too little effect beside others; without crops subjects stay where
    # they are in the images.
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
    """Return the default settings for a subject or a style, by the model's size, for a LoRA or the whole network.

    The precision is that which `kineograph.load` would choose on this device.
    """
    name = what if how == "lora" else f"{what}, whole"
    own = (SMALL_SHARED, SMALL_MODEL[name]) if is_small_model(model) else (LARGE_MODEL[name],)
    values: dict[str, Any] = {}
    for each in (SHARED, {"training": {"mixed_precision": training_precision(model.device)}}, *own):
        values = merge_mappings(values, each)
    return ImageCustomisationSettings.model_validate(values)


def is_small_model(model: Model) -> bool:
    """Return True if the image network is nearer in size to the pocket model's than to Stable Diffusion's."""
    return sum(weight.numel() for weight in model.net.image_unet.parameters()) < MAX_SMALL


def training_precision(device: torch.device) -> str:
    """Return the loop's mixed precision on a device; "no" on Apple's GPUs, which have no loss scaling."""
    return "no" if device.type == "mps" else PRECISIONS.get(choose_placement(device).dtype, "no")


def with_changes(settings: SettingsT, changes: Mapping[str, Any]) -> SettingsT:
    """Return the settings with some changed, also nested ones: {"lora": {"rank": 4}}.

    Raises pydantic's ValidationError, a ValueError, for unknown names and invalid values.
    """
    return type(settings).model_validate(merge_mappings(settings.model_dump(), changes))


def merge_mappings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `changes`; values that are mappings in both are merged in the same way."""
    both = {name for name in changes if isinstance(changes[name], Mapping) and isinstance(base.get(name), Mapping)}
    return {**base, **changes, **{name: merge_mappings(base[name], changes[name]) for name in both}}


# Fields that may change when a training is resumed, without an effect on the resulting weights; a change of the images
# and videos is found by their hashes.
VIDEO_MAY_CHANGE = {"image", "training", "motion_training", "previews", "natural_folder", "gradient_checkpointing"}


class VideoCustomisationSettings(BaseModel):
    """Settings by which a video model learns a subject or a style from a few images; see docs/customising.md.

    image           settings of its image network
    stills, prompts number of images that the customised image network generates, and their prompts, used in turn;
                    chosen for the subject or style unless given
    natural_videos, natural_prompts, drawing, natural_folder
                    number of natural videos; prompts and sampling of generated ones, and their folder, to be shared by
                    several customisations
    num_frames, fps of all videos; the number that the model was trained on unless given
    spatial         the spatial adapter; None trains all weights of image network and temporal layers
    still_scale     motion adapter's scale for frozen videos; 0 trains without one
    natural_weight  weight of the loss on natural videos; 0 for none of them
    motion          the motion adapter that is trained for a model without one
    previews        prompts of videos that are generated every `training.validation_steps`
    training, motion_training
                    loops of the spatial adapter and of the motion adapter
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
    error: ErrorKind = "predicted"
    gradient_checkpointing: bool = False
    previews: tuple[str, ...] = ()
    training: TrainingSettings
    motion_training: TrainingSettings

    def resume_settings(self) -> dict[str, Any]:
        """Return what decides the resulting weights, besides the settings of the loops, as JSON values."""
        return self.model_dump(mode="json", exclude=VIDEO_MAY_CHANGE)


VIDEO_SHARED: Mapping[str, Any] = MappingProxyType(
    {
        "ema_decay": 0.0, "checkpointing_steps": 100, "checkpoints_total_limit": 2, "validation_steps": 200,
        "lr_scheduler": "linear", "lr_warmup_steps": 20,
    }
)  # fmt: skip
# The paper states only the 40 natural videos.
VIDEO_LARGE: Mapping[str, Any] = {
    "gradient_checkpointing": True,
    "training": {"learning_rate": 1e-4, "max_train_steps": 1000},
    "motion_training": {"learning_rate": 1e-4, "max_train_steps": 2000},
}
# Less than 20 minutes on two cores, where a step of either loop takes about 0.8 seconds.
VIDEO_SMALL: Mapping[str, Any] = {
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
    """Return the default settings for a subject or a style, by the video model's size.

    how: a LoRA on the image network is trained, or the whole of it; then in both cases the spatial adapter.
    """
    loop = {**VIDEO_SHARED, "mixed_precision": training_precision(video.device)}
    values: dict[str, Any] = {
        "image": default_settings(video, what, how).model_dump(),
        "training": loop,
        "motion_training": loop,
    }
    return VideoCustomisationSettings.model_validate(
        merge_mappings(values, VIDEO_SMALL if is_small_model(video) else VIDEO_LARGE)
    )
