"""Settings of `kineograph train`: the model, its trained parameters, the data and the stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from kineograph.methods import videocrafter
from kineograph.models.temporal.config import STRICT, TemporalConfig
from kineograph.training import TrainingSettings

POCKET = "pocket"
LAYER_PRESETS: Mapping[str, TemporalConfig] = MappingProxyType(
    {
        "videocrafter": videocrafter.TEXT_TO_VIDEO_1024,
        "videocrafter-512": videocrafter.TEXT_TO_VIDEO_512,
        "videocrafter-i2v": videocrafter.IMAGE_TO_VIDEO_512,
    }
)
# Fields that may change when a training is resumed, without an effect on the resulting weights.
STAGES_MAY_CHANGE = {"training", "validation", "output", "latent_cache", "gradient_checkpointing", "stages"}


class DataSource(BaseModel):
    """Source of images or videos: what `open_dataset` opens, or "pocket" for the pocket world.

    weight: how often it is used, relative to the other sources.
    count: number of different items of the pocket world; None for no limit.
    """

    model_config = STRICT

    source: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    count: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, given: Any) -> Any:
        return {"source": given} if isinstance(given, str) else given

    @field_validator("count")
    @classmethod
    def _only_for_pocket(cls, count: int | None, others: Any) -> int | None:
        if count is not None and others.data.get("source") != POCKET:
            raise ValueError("expected no count for a data set: only the pocket world takes one")
        return count


class LogNormalSigmas(BaseModel):
    """Log-normal sigmas: exp(mean + spread * n), clamped to the range of the model's schedule."""

    model_config = STRICT

    mean: float = Field(allow_inf_nan=False)
    spread: float = Field(gt=0, allow_inf_nan=False)


class Stage(BaseModel):
    """A part of the training at one size. fps: frame rates to choose from; None for the videos' own."""

    model_config = STRICT

    steps: int = Field(ge=1)
    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)
    num_frames: int = Field(16, ge=2, le=4096)
    fps: tuple[float, ...] | None = (8.0,)
    train_batch_size: int | None = Field(None, ge=1, le=65_536)

    @field_validator("fps")
    @classmethod
    def _check_rates(cls, fps: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if fps is not None and not (fps and all(0 < rate < 1000 for rate in fps)):
            raise ValueError("expected frame rates above 0, such as [8] or [4, 8, 16]; null is the videos' own")
        return fps


class Validation(BaseModel):
    """Videos generated every `training.validation_steps`, one for each prompt, always from the same noise.

    images: paths of the images to animate, for a model with an image encoder.
    fps: frame rate of the videos; None for the first of the stage's.
    """

    model_config = STRICT

    prompts: tuple[str, ...] = Field(min_length=1)
    images: tuple[str, ...] = ()
    num_inference_steps: int = Field(25, ge=1, le=999)
    guidance_scale: float = Field(7.5, allow_inf_nan=False)
    fps: float | None = Field(None, ge=0.01, le=240)
    seed: int = Field(0, ge=0, lt=2**63)

    @field_validator("images")
    @classmethod
    def _one_each(cls, images: tuple[str, ...], others: Any) -> tuple[str, ...]:
        if images and len(images) != len(others.data.get("prompts", images)):
            raise ValueError("expected one for each prompt, or none")
        return images


class VideoTrainingSettings(BaseModel):
    """Settings of a training of new temporal layers for an image model, or of a video model; see docs/training.md."""

    model_config = STRICT

    model: str = POCKET
    motion: str | None = None
    layers: str | TemporalConfig | None = None
    trained: tuple[str, ...] = ("temporal.*",)
    frozen: tuple[str, ...] = ()

    videos: tuple[DataSource, ...] = ()
    images: tuple[DataSource, ...] = ()
    image_share: float = Field(0.0, ge=0, le=1, validate_default=True)
    caption_dropout: float = Field(0.1, ge=0, le=1)
    noise_ratio: float | None = Field(None, ge=0)
    levels: Literal["uniform"] | LogNormalSigmas = "uniform"
    latent_cache: Path | None = None
    clips_per_video: int = Field(4, ge=1)

    stages: tuple[Stage, ...] = Field(min_length=1)
    gradient_checkpointing: bool = False
    training: TrainingSettings = Field(default_factory=lambda: TrainingSettings.model_validate({}))
    validation: Validation | None = None
    output: Path

    @field_validator("trained", "frozen", "videos", "images", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str | dict) else given

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str | TemporalConfig | None, others: Any) -> str | TemporalConfig | None:
        if isinstance(layers, str) and layers not in LAYER_PRESETS:
            raise ValueError(
                f"expected {', '.join(LAYER_PRESETS)}, or a mapping with an entry, a transformer and so on"
            )
        if layers is not None and others.data.get("motion") is not None:
            raise ValueError("expected none where motion names the temporal layers")
        return layers

    @field_validator("image_share")
    @classmethod
    def _check_image_share(cls, share: float, others: Any) -> float:
        if share < 1 and others.data.get("videos") == ():
            raise ValueError("expected 1 where there are no videos (folders, shards, or pocket for the pocket world)")
        if share > 0 and others.data.get("images") == ():
            raise ValueError("expected 0 where there are no images")
        if share == 0 and others.data.get("images"):
            raise ValueError("expected the share of the steps that are of images, such as 0.2")
        return share

    @field_validator("latent_cache")
    @classmethod
    def _check_cache(cls, folder: Path | None, others: Any) -> Path | None:
        sources = (*others.data.get("videos", ()), *others.data.get("images", ()))
        if folder is not None and any(each.source == POCKET and each.count is None for each in sources):
            raise ValueError("expected a count for the pocket world, which repeats nothing without one")
        return folder

    @field_validator("training")
    @classmethod
    def _check_steps(cls, training: TrainingSettings) -> TrainingSettings:
        if training.max_train_steps != TrainingSettings.model_fields["max_train_steps"].default:
            raise ValueError("expected no max_train_steps: each stage has its steps")
        return training

    def loop_settings(self, number: int) -> TrainingSettings:
        """Return the settings of a stage's loop; stages are counted from 0, and each has a seed of its own."""
        stage = self.stages[number]
        changes = {
            "max_train_steps": stage.steps,
            "seed": self.training.seed + number,
            "train_batch_size": stage.train_batch_size or self.training.train_batch_size,
        }
        return self.training.model_copy(update=changes)

    def resume_settings(self, number: int) -> dict[str, Any]:
        """Return what decides the weights after a stage, besides the settings of its loop, as JSON values."""
        chosen = self.model_dump(mode="json", exclude=STAGES_MAY_CHANGE) | {"cached": self.latent_cache is not None}
        stages = [stage.model_dump(mode="json", exclude={"train_batch_size"}) for stage in self.stages[: number + 1]]
        del stages[-1]["steps"]  # its loop knows whether more steps may be added
        return chosen | {"stages": stages}
