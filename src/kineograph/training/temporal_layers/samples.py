"""Videos drawn while a model is trained, for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kineograph.generate.run import run_request
from kineograph.media.files import instead_of, slug
from kineograph.models.model import Model
from kineograph.request import Request
from kineograph.training import Progress, use_averages
from kineograph.training.gradients import autocast
from kineograph.training.temporal_layers.settings import Stage, Validation


class ValidationVideos(NamedTuple):
    """With what is drawn what, in which precision, and where to. name: of the stage, for the files' names."""

    model: Model
    requests: list[Request]
    precision: str
    folder: Path
    name: str


def validation_requests(validation: Validation, stage: Stage) -> list[Request]:
    """What is drawn at this stage. Raises InputError for what cannot be."""
    return [
        Request(
            prompt=prompt,
            num_frames=stage.num_frames,
            num_inference_steps=validation.num_inference_steps,
            guidance_scale=validation.guidance_scale,
            height=stage.height,
            width=stage.width,
            seed=validation.seed + number,
            fps=validation.fps or (stage.fps[0] if stage.fps else None),
            window=stage.num_frames,
            image=validation.images[number] if validation.images else None,
        )
        for number, prompt in enumerate(validation.prompts)
    ]


def save_validation_videos(studio: ValidationVideos, progress: Progress) -> list[Path]:
    """The files of the videos, drawn with the averaged weights; beside each stands a sheet of its frames.

    Raises OSError when one cannot be written.
    """
    with use_averages(studio.model.net, progress.average), autocast(studio.model.device, studio.precision):
        return [_drawn(studio, progress, *each) for each in enumerate(studio.requests, 1)]


def _drawn(studio: ValidationVideos, progress: Progress, number: int, request: Request) -> Path:
    video = run_request(studio.model, request)
    name = f"{studio.name}_step-{progress.step:06d}_{number}-{slug(request.prompt)}"
    path = video.overwrite(studio.folder / f"{name}.mp4")
    sheet = video.contact_sheet()
    with instead_of(path.with_suffix(".png")) as part:
        sheet.save(part, "PNG")
    progress.log.show(progress.step, f"samples/{request.prompt}", np.asarray(sheet))
    return path
