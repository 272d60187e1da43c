"""A customising of milliseconds a step: what it is told, and a way to run it in another process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from kineograph.models.loading.load import load
from kineograph.training.customise import ImageCustomisationSettings, customise_image, with_changes

SUBJECT, SIDE = "sks dog", 16
LOOP = {
    "max_train_steps": 4, "train_batch_size": 2, "learning_rate": 0.01, "ema_decay": 0.0, "checkpointing_steps": 2,
    "validation_steps": 2, "log_every": 1,
}  # fmt: skip
TINY = {
    "prior_pictures": 3,
    "drawing": {"num_inference_steps": 2, "guidance_scale": 2.0, "at_once": 2},
    "caption_dropout": 0.3,
    "training": LOOP,
}


def settings(**given: object) -> ImageCustomisationSettings:
    """Of a tiny customising, with these in place of some."""
    return with_changes(ImageCustomisationSettings.model_validate(TINY), given)


def customise_until_killed(folder: Path, pictures: Path, output: Path, step: int) -> None:
    """For a process of its own, that is killed at this step."""
    torch.set_num_threads(1)
    model = load(folder, device="cpu", dtype="float32")
    for each in customise_image(model, pictures, output, subject=SUBJECT, settings=settings()):
        if (each.phase, each.done) == ("training", step):
            os.kill(os.getpid(), signal.SIGKILL)
