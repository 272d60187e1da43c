"""Jobs of customise: Still-Moving from uploaded images to an adapter file, resumed where its last attempt was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any, get_args

from kineograph.errors import InputError, shown
from kineograph.media.files import remove_path
from kineograph.models.loading.options import ModelSource
from kineograph.service.attempts import Attempt
from kineograph.service.limited import UPLOAD_LIMITS, check_uploads, run_limited
from kineograph.service.video_jobs import list_uploads
from kineograph.training.customise import default_video_settings, video_model
from kineograph.training.customise.phases import ADAPTER_FILE, Phase
from kineograph.training.settings_file import override_settings

OPTIONS = ("subject", "style", "previews", "settings", "motion_module")
PHASES: tuple[Phase, ...] = get_args(Phase)


def run_customisation(attempt: Attempt) -> dict[str, Any]:
    """Customise a video model to the job's uploaded images; the adapter is the job's result.

    The job's options: subject or style; previews, prompts; settings, numbers by their names in docs/customising.md;
    motion_module.
    """
    queue, job, started = attempt.queue, attempt.job, time.monotonic()
    options = job.options
    if unknown := options.keys() - OPTIONS:
        raise InputError(f"a customisation has the options {', '.join(OPTIONS)}, not {shown(min(unknown))}")
    images = list_uploads(queue, job)
    run_limited(check_uploads, {"files": images}, UPLOAD_LIMITS, attempt.check)
    module = options.get("motion_module")
    video, *image_model = attempt.models.get(
        *([ModelSource(job.model, {"motion_module": module})] if module else []), ModelSource(job.model, {})
    )
    changes = [f"{name}={json.dumps(value)}" for name, value in _flatten(options.get("settings", {}))]
    style = options.get("style")
    settings = override_settings(default_video_settings(video, "subject" if style is None else "style"), changes)
    if options.get("previews"):
        settings = settings.model_copy(update={"previews": tuple(options["previews"])})
    if settings.spatial is None or settings.image.lora is None:
        raise InputError(
            "`settings`: there is no adapter file without a LoRA and a spatial adapter: leave both as they are"
        )
    work = queue.files.clips(job.id)
    prepared = video_model.prepare_video_customisation(
        video, images, work, image_model=image_model[0] if image_model else None,
        subject=options.get("subject"), style=style, settings=settings,
    )  # fmt: skip
    watch = attempt.watch_steps()
    with closing(video_model.run_video_customisation(prepared)) as steps:
        for each in steps:
            watch((PHASES.index(each.phase) + each.done / each.total) / len(PHASES))
    part = attempt.make_part()
    shutil.copyfile(work / ADAPTER_FILE, part / ADAPTER_FILE)
    remove_path(work)  # the checkpoints
    return {
        "subject": prepared.image.words.name,
        "model": job.model,
        "seconds": round(time.monotonic() - started, 3),
    }


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return settings as pairs of a dotted name and a number. Raises InputError for texts, which may name files."""
    found = list[tuple[str, Any]]()
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) or value is None:
            found.append((f"{prefix}{name}", value))
        else:
            raise InputError(f"`settings` of a job are numbers, true or false: {prefix}{name} is {shown(value)}")
    return found
