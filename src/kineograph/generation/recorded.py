"""Replay: a saved video is generated again from the settings in its file.

Settings may come from anyone: every value is checked, and what they name is loaded only for those who trust the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Required

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from kineograph.errors import InputError, InputWarning, in_one_line, is_memory_label, shown
from kineograph.generation.check import check, check_prompts, complete, without_unused
from kineograph.generation.options import GenerateOptions, with_plugins
from kineograph.generation.resolve import decide, open_inputs, resolve
from kineograph.generation.run import OnStep, run_all
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video
from kineograph.models.description import Description, describe_model
from kineograph.models.loading.describe import describe, unread_options
from kineograph.models.loading.load import POCKETS, RECORDED, load
from kineograph.models.loading.provenance import provenance_differences
from kineograph.models.model import Model
from kineograph.models.pocket.models import ADAPTERS, DECODERS
from kineograph.options import Text, declared
from kineograph.request import migrate_settings, release

RENAMED_LOAD_OPTIONS = {"motion": "motion_module"}  # of settings of version 0 and 1
# options of `load` that open nothing
NO_SOURCES = ("prediction_type", "clip_skip", "revision", "variant")
INPUTS = ("image", "video", "control", "annotators")  # options of a video that open a file or a network
MAX_LISTED = 8


class _RecordedModel(TypedDict, total=False):
    name: Required[Text]
    load: Required[Mapping[Text, Any]]
    device: Required[Text]
    dtype: Required[Text]
    weights: Required[Mapping[Text, Text]]


class _RecordedSettings(TypedDict, total=False):
    """Settings that `replay` reads, beside the options of the video."""

    prompt: Required[Text]
    frames_sha256: Required[Text]
    model: Required[_RecordedModel]
    video_model: _RecordedModel
    versions: Required[Mapping[Text, Any]]
    machine: Required[Mapping[Text, Any]]
    read: Mapping[Text, Text]


SETTINGS_ADAPTER: TypeAdapter[_RecordedSettings] = TypeAdapter(_RecordedSettings)


class RecordedVideo(NamedTuple):
    """Settings of a file that can be replayed, and the request in them: the prompt and the complete options."""

    path: Path
    settings: Mapping[str, Any]
    prompt: str
    options: Mapping[str, Any]


def replay(
    path: str | Path,
    *,
    model: Model | None = None,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    trust: bool = False,
) -> Video:
    """Generate the video of a file again, from the settings in the file.

    model, video_model: models to use in place of the recorded ones; needed where that was a live pipeline.
    on_step: as for `generate`.
    trust: load the models, adapters, images and videos that the file names. Files may come from anyone: without it
        they are listed in the error, and only built-in models and those given are used.

    The frames are equal bit for bit on the machine that generated the video. Where they differ, an InputWarning names
    what else differs: versions, machine, weights.
    Raises InputError when the file has no settings, its model cannot be loaded, or an input was not a file.

    >>> import kineograph as kg
    >>> again = kg.replay("fish.mp4")  # doctest: +SKIP
    """
    video = read_recorded_video(path)
    own = {name for name, each in (("model", model), ("video_model", video_model)) if each is not None}
    sources = list_named_sources(video, own)
    if sources and not trust:
        raise InputError(
            f"{path} names what replay would load: {join_sources(sources)}. If you trust whoever made it, pass "
            "trust=True; or pass your own `model`"
        )
    return generate_again(video, model=model, video_model=video_model, on_step=on_step)


def generate_again(
    video: RecordedVideo,
    *,
    model: Model | None = None,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
) -> Video:
    """Generate a recorded video again, with all that its settings name; see `replay`."""
    before = video.settings
    if model is None:
        check_recorded_options(video, video_model)
    if video_model is None and "video_model" in before:
        video_model = load_recorded_model({"model": before["video_model"]})
    model = model or load_recorded_model(before)
    second = None if video_model is None else describe_model(video_model)
    options = _used_options(describe_model(model), second, video.options)
    (again,) = run_all(resolve(model, [video.prompt], options, open_inputs(options), video_model), on_step)
    if before["frames_sha256"] != again.settings["frames_sha256"]:
        causes = provenance_differences(before, again.settings) or ["although nothing that is recorded has changed"]
        warnings.warn(f"the frames differ from those of {video.path}: {'; '.join(causes)}", InputWarning, stacklevel=3)
    return again


def _used_options(model: Description, video_model: Description | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return complete(without_unused(model, video_model, options))


def check_recorded_options(video: RecordedVideo, video_model: Model | None = None) -> None:
    """Raise what `generate` would for the options of a recorded video, before weights are loaded."""
    first = describe(**_load_arguments(video.settings["model"]))
    second = None if video_model is None else describe_model(video_model)
    if video_model is None and "video_model" in video.settings:
        second = describe(**_load_arguments(video.settings["video_model"]))
        if second is None:
            return
    if first is not None:
        options = _used_options(first, second, video.options)
        decide(check(first, second, options), open_inputs(options))


def read_recorded_video(path: str | Path) -> RecordedVideo:
    """Return the settings of a file and the request in them. Raises InputError as `replay` does."""
    settings = read_settings(path)
    return RecordedVideo(Path(path), settings, *recorded_request(settings))


def recorded_request(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the prompt and the complete options of a video, from its settings, of this version or an older one.

    Raises InputError for settings that no video has, with an invalid value, or of inputs that were in memory.
    """
    if missing := {"prompt", "seed", "frames_sha256", "model"} - set(settings):
        raise InputError(f"these settings are not of a video that kineograph.generate made: missing {sorted(missing)}")
    try:
        SETTINGS_ADAPTER.validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise InputError(
            f"{place} in these settings cannot be used: {in_one_line(first['msg'])}, not {shown(first['input'])}"
        ) from None
    settings = migrate_settings(settings)
    _refuse_inputs_in_memory(settings)
    recorded = {name for name, each in declared(*with_plugins(GenerateOptions)).items() if each.recorded}
    options = complete({name: value for name, value in settings.items() if name in recorded})
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


def list_named_sources(video: RecordedVideo, own: Collection[str] = ()) -> list[str]:
    """Return the files, folders and repositories that the settings of a video name; nothing that is built in.

    own: "model" or "video_model", where another one is used than the recorded one.
    """
    models = [video.settings[name] for name in ("model", "video_model") if name in video.settings and name not in own]
    arguments = [_recorded_arguments(each) for each in models if each["load"]]
    values = [value for each in arguments for name, value in each.items() if name not in NO_SOURCES]
    built_in = {*POCKETS, *ADAPTERS, *DECODERS}
    named = [text for text in _texts(values) if text not in built_in]
    return list(dict.fromkeys([*named, *_texts([video.options[name] for name in INPUTS])]))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts and paths in a value, and in the items of lists and mappings."""
    value = release(value)
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping | Sequence):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def join_sources(sources: Sequence[str]) -> str:
    """Return the first of these sources for a message, and the number of the others."""
    more = f" and {len(sources) - MAX_LISTED} more" if len(sources) > MAX_LISTED else ""
    return ", ".join(each[:200] for each in sources[:MAX_LISTED]) + more


def load_recorded_model(settings: Mapping[str, Any], *, device: str | None = None) -> Model:
    """Load the model that generated a video, on the same device unless another is given.

    Raises InputError when it was a live pipeline, or no longer exists.
    """
    arguments = _load_arguments(settings["model"])
    return load(**{**arguments, "device": device or arguments["device"]})


def _load_arguments(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load` for a recorded model, without those that nothing reads."""
    arguments = _recorded_arguments(recorded)
    for name in unread_options(arguments.get("source", "pocket")):  # which older versions accepted and recorded
        arguments.pop(name, None)
    return arguments | {"device": recorded["device"], "dtype": recorded["dtype"]}


def _recorded_arguments(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load` in a recorded model. Raises InputError for those that `load` does not record."""
    arguments = {RENAMED_LOAD_OPTIONS.get(name, name): value for name, value in recorded["load"].items()}
    if not arguments:
        raise InputError(
            f"this video was generated with {recorded['name']}, a live pipeline whose source is not recorded: open it "
            "again and call kineograph.replay(path, model=kineograph.load(pipeline))"
        )
    if unknown := set(arguments) - set(RECORDED):  # a file may come from anyone
        raise InputError(
            f"these settings would load a model with unknown arguments: {', '.join(sorted(unknown))[:200]}"
        )
    source, lora = arguments.get("source", "pocket"), arguments.get("lora", [])
    if not isinstance(source, str):
        raise InputError(f"the source of the model in these settings is a text, not {shown(source)}")
    if not isinstance(lora, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in lora):
        raise InputError(f"lora in these settings is a list of pairs of a file and a scale, not {shown(lora)}")
    return {**arguments, "lora": [tuple(pair) for pair in lora]}  # JSON turns pairs into lists
