"""Replay: a saved video is generated again from the settings in its file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kineograph.errors import InputError, InputWarning, is_memory_label
from kineograph.generation.check import check_prompts, complete, without_unused
from kineograph.generation.options import GenerateOptions, with_plugins
from kineograph.generation.resolve import open_inputs, resolve
from kineograph.generation.run import OnStep, run_all
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video
from kineograph.models.description import describe_model
from kineograph.models.loading.describe import unread_options
from kineograph.models.loading.load import RECORDED, load
from kineograph.models.loading.provenance import provenance_differences
from kineograph.models.model import Model
from kineograph.options import declared
from kineograph.request import migrate_settings

RENAMED_LOAD_OPTIONS = {"motion": "motion_module"}  # of settings of version 0 and 1


def replay(
    path: str | Path, *, model: Model | None = None, video_model: Model | None = None, on_step: OnStep | None = None
) -> Video:
    """Generate the video of a file again, from the settings in the file.

    model, video_model: models to use in place of the recorded ones; needed where that was a live pipeline.
    on_step: as for `generate`.

    The frames are equal bit for bit on the machine that generated the video. Where they differ, an InputWarning names
    what else differs: versions, machine, weights.
    Raises InputError when the file has no settings, its model cannot be loaded, or an input was not a file.

    >>> import kineograph as kg
    >>> again = kg.replay("fish.mp4")  # doctest: +SKIP
    """
    before = read_settings(path)
    prompt, options = recorded_request(before)
    if video_model is None and "video_model" in before:
        video_model = load_recorded_model({"model": before["video_model"]})
    model = model or load_recorded_model(before)
    second = None if video_model is None else describe_model(video_model)
    options = complete(without_unused(describe_model(model), second, options))
    (video,) = run_all(resolve(model, [prompt], options, open_inputs(options), video_model), on_step)
    if before["frames_sha256"] != video.settings["frames_sha256"]:
        causes = provenance_differences(before, video.settings) or ["although nothing that is recorded has changed"]
        warnings.warn(f"the frames differ from those of {path}: {'; '.join(causes)}", InputWarning, stacklevel=2)
    return video


def recorded_request(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the prompt and the complete options of a video, from its settings, of this version or an older one.

    Raises InputError for settings that no video has, with an invalid value, or of inputs that were in memory.
    """
    settings = migrate_settings(settings)
    if missing := {"prompt", "seed", "frames_sha256", "model"} - set(settings):
        raise InputError(f"these settings are not of a video that kineograph.generate made: missing {sorted(missing)}")
    _refuse_inputs_in_memory(settings)
    known = declared(*with_plugins(GenerateOptions))
    options = complete({name: value for name, value in settings.items() if name in known})
    (prompt,) = check_prompts([settings["prompt"]], options["prompt_weights"])
    return prompt, options


def _refuse_inputs_in_memory(settings: Mapping[str, Any]) -> None:
    controls = settings.get("control")
    given = {name: settings.get(name) for name in ("prompt", "negative_prompt", "latents", "image", "video")}
    given |= {f"control {kind}": each for kind, each in controls.items()} if isinstance(controls, Mapping) else {}
    if lost := [f"`{name}`, {label}" for name, label in given.items() if is_memory_label(label)]:
        raise InputError(
            f"this video was generated from {' and '.join(lost)}, which its settings do not hold: generate it again "
            "from Python, with the same input and seed; inputs that are files can be replayed"
        )


def load_recorded_model(settings: Mapping[str, Any], *, device: str | None = None) -> Model:
    """Load the model that generated a video, on the same device unless another is given.

    Raises InputError when it was a live pipeline, or no longer exists.
    """
    recorded = settings["model"]
    arguments = {RENAMED_LOAD_OPTIONS.get(name, name): value for name, value in recorded["load"].items()}
    if not arguments:
        raise InputError(
            f"this video was generated with {recorded['name']}, a live pipeline whose source is not recorded: open it "
            "again and call kineograph.replay(path, model=kineograph.load(pipeline))"
        )
    if unknown := set(arguments) - set(RECORDED):  # a file may come from anyone
        raise InputError(f"these settings would load a model with unknown arguments: {', '.join(sorted(unknown))}")
    for name in unread_options(arguments.get("source", "pocket")):  # which older versions accepted and recorded
        arguments.pop(name, None)
    lora = [tuple(pair) for pair in arguments.get("lora", [])]  # JSON turns pairs into lists
    return load(**{**arguments, "lora": lora, "device": device or recorded["device"], "dtype": recorded["dtype"]})
