"""What a training run can be told, in the words of diffusers' training scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

# How the learning rate falls after the warm-up: its part of the highest, by the part of the way from 0 to 1.
LR_SCHEDULES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "constant": lambda way: 1.0,
        "linear": lambda way: 1.0 - way,
        "cosine": lambda way: 0.5 + 0.5 * math.cos(math.pi * way),
    }
)
# What may change between a run and its resumption without changing the weights that come out.
MAY_CHANGE = {
    "checkpointing_steps",
    "checkpoints_total_limit",
    "dataloader_num_workers",
    "gradient_accumulation_steps",  # these two count as the samples of a step
    "log_every",
    "train_batch_size",
    "validation_steps",
}


class TrainingSettings(BaseModel):
    """One run's numbers. `train_batch_size` is of one process, between two of its `gradient_accumulation_steps`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, lt=2**63)
    max_train_steps: int = Field(1000, ge=1)
    train_batch_size: int = Field(1, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)

    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = Field(0, ge=0)

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for matrices and filters, with adamw for the rest
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    adam_weight_decay: float = Field(0.01, ge=0)  # muon's too
    max_grad_norm: float = Field(1.0, gt=0)  # .inf does not clip

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0 keeps no average

    checkpointing_steps: int = Field(500, ge=1)
    checkpoints_total_limit: int | None = Field(None, ge=1)
    validation_steps: int = Field(500, ge=1)  # read by whoever consumes the loop
    log_every: int = Field(10, ge=1)
    dataloader_num_workers: int = Field(2, ge=1)  # threads that draw batches ahead

    @field_validator("*", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """The word for what YAML 1.1 reads as a truth value, as the no of mixed_precision; no field here is one."""
        return ("yes" if value else "no") if isinstance(value, bool) else value


def samples_per_step(settings: TrainingSettings, processes: int) -> int:
    """How many samples one step of the optimiser sees, over all processes."""
    return settings.train_batch_size * settings.gradient_accumulation_steps * processes


def learning_rate_at(settings: TrainingSettings, step: int) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then the schedule to the last step."""
    warmup = settings.lr_warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    way = (step - warmup) / max(1, settings.max_train_steps - warmup)
    return settings.learning_rate * LR_SCHEDULES[settings.lr_scheduler](way)


def resume_settings(settings: TrainingSettings, processes: int) -> dict[str, Any]:
    """The settings that decide which weights come out: those of a run and of its resumption must be equal."""
    chosen = settings.model_dump(mode="json", exclude=MAY_CHANGE)
    if settings.lr_scheduler == "constant":  # then a run may be made longer
        del chosen["max_train_steps"]
    return chosen | {"samples_per_step": samples_per_step(settings, processes)}
