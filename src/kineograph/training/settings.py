"""Settings of a training run, with the names of diffusers' training scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Learning rate after the warm-up, relative to its maximum, as a function of the fraction of the steps done.
LR_SCHEDULES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1.0 - done,
        "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    }
)
# Fields that may change when a run is resumed, without an effect on the resulting weights.
MAY_CHANGE = {
    "checkpointing_steps",
    "checkpoints_total_limit",
    "dataloader_num_workers",
    "gradient_accumulation_steps",  # with train_batch_size it counts as the number of samples a step
    "log_every",
    "train_batch_size",
    "validation_steps",
}


class TrainingSettings(BaseModel):
    """Settings of one run. `train_batch_size` is that of one process and one of its `gradient_accumulation_steps`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, lt=2**63)
    max_train_steps: int = Field(1000, ge=1)
    train_batch_size: int = Field(1, ge=1, le=65_536)
    gradient_accumulation_steps: int = Field(1, ge=1)

    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = Field(0, ge=0)

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices and filters by Muon, the rest by AdamW
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    adam_weight_decay: float = Field(0.01, ge=0)  # muon's too
    max_grad_norm: float = Field(1.0, gt=0)  # .inf: no clipping

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0: no averages

    checkpointing_steps: int = Field(500, ge=1)
    checkpoints_total_limit: int | None = Field(None, ge=1)
    validation_steps: int = Field(500, ge=1)  # read by the consumer of the loop
    log_every: int = Field(10, ge=1)
    dataloader_num_workers: int = Field(2, ge=1, le=256)  # threads that load batches ahead

    @field_validator("*", mode="before")
    @classmethod
    def _as_word(cls, value: Any) -> Any:
        """Turn what YAML 1.1 reads as a boolean, such as the no of mixed_precision, back into a word."""
        return ("yes" if value else "no") if isinstance(value, bool) else value


def samples_per_step(settings: TrainingSettings, processes: int) -> int:
    """Return the number of samples in one optimiser step, over all processes."""
    return settings.train_batch_size * settings.gradient_accumulation_steps * processes


def learning_rate_at(settings: TrainingSettings, step: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then the schedule to the last step."""
    warmup = settings.lr_warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.max_train_steps - warmup)
    return settings.learning_rate * LR_SCHEDULES[settings.lr_scheduler](done)


def resume_settings(settings: TrainingSettings, processes: int) -> dict[str, Any]:
    """Return the settings that decide the resulting weights, which must be equal when a run is resumed."""
    chosen = settings.model_dump(mode="json", exclude=MAY_CHANGE)
    if settings.lr_scheduler == "constant":  # then more steps may be added to a run
        del chosen["max_train_steps"]
    return chosen | {"samples_per_step": samples_per_step(settings, processes)}
