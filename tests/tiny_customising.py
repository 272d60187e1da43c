"""A customisation of milliseconds a step: its settings, and a function that runs it in another process."""

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
    """Return the settings of a tiny customisation, with these changes."""
    return with_changes(ImageCustomisationSettings.model_validate(TINY), given)


def customise_until_killed(folder: Path, pictures: Path, output: Path, step: int) -> None:
    """Customise, and kill this process at a step."""
    torch.set_num_threads(1)
    model = load(folder, device="cpu", dtype="float32")
    for each in customise_image(model, pictures, output, subject=SUBJECT, settings=settings()):
        if (each.phase, each.done) == ("training", step):
            os.kill(os.getpid(), signal.SIGKILL)
