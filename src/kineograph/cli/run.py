"""Runs of generate, animate and edit: options from a file and the command line, and the steps to saved videos."""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import TypedDict

from kineograph.cli import quick_imports, terminal
from kineograph.cli.options import load_flags, load_options, save_options, second_model_options
from kineograph.cli.output import choose_writer, report_video
from kineograph.errors import InputError, check_text, expand_user, shown
from kineograph.generation.check import check, check_order, check_prompts, complete
from kineograph.generation.schema import DECLARATIONS
from kineograph.models.conditioning.prompt_weights import take_loras
from kineograph.models.loading.options import LoadOptions, ModelSource, model_sources
from kineograph.options import Option, Text, declared, option
from kineograph.request import NUM_FRAMES

if TYPE_CHECKING:
    from kineograph.plan import Plan

MODELS = {"generate": "pocket", "animate": "pocket-animate", "edit": "pocket-edit"}  # defaults
MODEL_CONFIG = declared(LoadOptions)["config"].help
OF_ONE_PROMPT = {"seed": int, "negative_prompt": str}  # options that are lists for several prompts, in a run file
EXAMPLES = {
    "generate": "a prompt, as in kineograph generate 'a red fish swimming over the sea'",
    "animate": "an image and how it moves, as in kineograph animate fish.png 'a fish swimming to the right'",
    "edit": "a video and what to change in it, as in kineograph edit in.mp4 'make it snow'",
}
RUN_FILES = (".yaml", ".yml", ".json")


class RunOptions(TypedDict, total=False):
    """Options of a run, beside those of its video and of `load`."""

    model: Annotated[
        Text,
        option(
            "",
            "Model: a folder in diffusers layout, a hub id, a .safetensors or .ckpt file, or one of the small built-in "
            "models, which kineograph models lists.",
            group="Model",
            flags=("--model", "-m"),
        ),
    ]
    video_model: Annotated[
        Text | None,
        option(
            None,
            "Second model: a video model that samples together with the first, an image model (VideoElevator).",
            group="Second model",
        ),
    ]
    lora_folder: Annotated[
        Text | None,
        option(
            None,
            "Folder of the LoRAs that the prompt names, as in <lora:style:0.8>, with all folders in it.",
            group="Model",
        ),
    ]
    config: Annotated[
        tuple[Text, ...],
        option(
            (),
            "A .yaml or .json file of options, which those on the command line replace; or, for the model, "
            f"{MODEL_CONFIG[0].lower()}{MODEL_CONFIG[1:]}",
            group="File",
        ),
    ]
    set: Annotated[
        tuple[Text, ...],
        option((), "An option as NAME=VALUE, the value in YAML; also a part: control.canny=in.mp4.", group="File"),
    ]


def run_options(command: str) -> dict[str, Option]:
    """Return the options of a command by parameter."""
    run = {**declared(RunOptions), **save_options()}
    run["model"] = run["model"]._replace(shown_default=MODELS[command])
    others = {**second_model_options(), **load_options(), **declared(*DECLARATIONS[command]())}
    others |= {name: others[name]._replace(type=kind) for name, kind in OF_ONE_PROMPT.items()}
    return {"model": run.pop("model"), "video_model": run.pop("video_model"), **others, **run}


def run_and_save(
    command: str,
    arguments: Mapping[str, str | None],
    given: Mapping[str, Any],
    output: Path | None,
    json: bool,
) -> None:
    """Generate the requested videos, write them and report their paths. Invalid options fail before weights load.

    arguments: of the command, None for one that is missing.
    """
    values = _read_values(command, {**arguments, "output": output and str(output)}, given)
    missing = [name for name in arguments if name not in values]
    if missing:
        raise InputError(_explain_missing(command, [str(values[name]) for name in arguments if name in values]))
    for name in ("model", "video_model", "output", "lora_folder"):
        check_text(name, values.get(name, ""))
    check_order(values[next(iter(arguments))], values["prompt"], EXAMPLES[command].partition(", as in ")[2])
    prompt, file = values["prompt"], values.get("output")
    options = complete({name: values[name] for name in declared(*DECLARATIONS["generate"]()) if name in values})
    texts = prompt if isinstance(prompt, list) else [prompt]
    if options["prompt_weights"] != "off":
        texts, loras = _take_loras(texts, values)
        values |= loras
    elif values.get("lora_folder") is not None:
        raise InputError("`lora_folder` does nothing here: with `prompt_weights` off the prompt is text alone")
    prompts = check_prompts(texts, options["prompt_weights"])
    if file and len(prompts) > 1:
        raise InputError(f"{len(prompts)} videos cannot be written to one file, {file}: give no `output`")
    sources = model_sources(values.get("model") or MODELS[command], values)
    saved = {name: values[name] for name in save_options() if name in values}
    write = choose_writer(Path(file) if file else None, options["num_frames"] or NUM_FRAMES, saved)
    if options["seed"] is None and options["keep_clips"] is None:  # finished clips have a seed
        options["seed"] = secrets.randbelow(2**31)
    started = time.monotonic()
    plan = _resolve(sources, prompts, options)
    if options["seed"] is not None:
        terminal.print_message(f"seed {options['seed']}")
    if plan.engine.engine != "torch":
        terminal.print_message(f"engine {plan.engine.engine}: {plan.engine.reason}")
    from kineograph.generation.run import run_all

    with terminal.progress_bar("generating") as show:
        videos = run_all(plan, lambda step: show(step.done, step.total))
    if options["seed"] is None:
        terminal.print_message(f"seed {videos[0].settings['seed']}")
    if options["camera"] is None and (camera := videos[0].settings.get("camera", "none")) != "none":
        terminal.print_message(f"camera motion {camera}, the default with an image model: --camera none turns it off")
    for video in videos:
        report_video(video, write(video), json, {"seconds": round(time.monotonic() - started, 1)})


def _read_values(command: str, own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run by parameter: those of its file, replaced by those of the command line."""
    typed = {name: value for name, value in {**own, **given}.items() if value is not None}
    overrides, configs = typed.pop("set", ()), typed.pop("config", ())
    files = [each for each in configs if Path(each).suffix.lower() in RUN_FILES]
    values: dict[str, Any] = {}
    if files or overrides:  # the import takes as long as torch's and accelerate's
        from kineograph.training.settings_file import apply_override, read_yaml
    if files:
        values = read_yaml(expand_user(_only(files)))
    if others := [each for each in configs if each not in files]:
        values["config"] = _only(others)
    values |= typed
    for text in overrides:
        values = apply_override(values, text)
    known = {*own, *run_options(command), *declared(LoadOptions)} - {"set"}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:100], known, n=1)
            raise InputError(f"there is no option {shown(name)}{f': did you mean {near[0]!r}?' if near else ''}")
    return {name: value for name, value in values.items() if value is not None}


def _take_loras(prompts: Sequence[Any], values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the prompts without the LoRAs that they name, and the option `lora` with them, if there are any."""
    taken = [take_loras(each) if isinstance(each, str) else (each, []) for each in prompts]
    texts, (first, *others) = [text for text, _ in taken], [loras for _, loras in taken] or [[]]
    if any(each != first for each in others):
        raise InputError("the prompts name different LoRAs, and one model makes all videos: generate them in turn")
    folder = values.get("lora_folder")
    if not first and folder is not None:
        raise InputError("`lora_folder` does nothing here: no prompt names a LoRA, as in <lora:style:0.8>")
    if not first:
        return texts, {}
    if folder is None:
        raise InputError(
            f"the prompt names the LoRA {shown(first[0][0])}: say which folder it is in, `lora_folder`; or take it "
            "out of the prompt and give its file, `lora`"
        )
    from kineograph.models.formats.lora import list_loras

    named = [(_find_lora(expand_user(folder), name), scale) for name, scale in first]
    return texts, {"lora": [*list_loras(values.get("lora")), *named]}


def _find_lora(folder: Path, name: str) -> str:
    """Return the LoRA in a folder whose file has this name, or whose header has it, as in A1111's web interface."""
    from kineograph.hub import FILE_ENDINGS
    from kineograph.models.formats.tensor_files import read_metadata

    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}, in which the prompt's LoRA {shown(name)} would be: `lora_folder`"
        )
    files = sorted(each for each in folder.rglob("*") if each.suffix in FILE_ENDINGS)
    found = [each for each in files if name in (each.stem, each.relative_to(folder).with_suffix("").as_posix())]
    found = found or [each for each in files if read_metadata(each).get("ss_output_name") == name]
    if len(found) > 1:
        raise InputError(f"{folder} has several LoRAs {shown(name)} ({', '.join(map(str, found))}): rename all but one")
    if not found:
        near = difflib.get_close_matches(name, [each.stem for each in files], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "expected a file of this name"
        raise InputError(f"{folder} has no LoRA {shown(name)}, which the prompt names: {hint}")
    return str(found[0])


def _only(configs: list[str]) -> str:
    if len(configs) > 1:
        raise InputError(f"`config` is one file of options, and one configuration of a model, not {configs}")
    return configs[0]


def _explain_missing(command: str, given: list[str]) -> str:
    return f"give {EXAMPLES[command]}{f'; got only {shown(given[0])}' if given else ''}"


def _resolve(sources: Sequence[ModelSource], prompts: Sequence[str], options: Mapping[str, Any]) -> Plan:
    """Load the models, after all checks that need no weights, and return the plan."""
    with quick_imports():
        from kineograph.generation.resolve import decide, open_inputs, resolve
        from kineograph.models.loading.describe import describe
        from kineograph.models.loading.load import load

    inputs = open_inputs(options)
    descriptions = [_call(describe, each) for each in sources]
    if None not in descriptions:
        decided = decide(check(*_pair(descriptions), options), inputs)
        if decided.offload is not None:
            sources = [each._replace(options={**each.options, "offload": decided.offload}) for each in sources]
    terminal.print_message(f"loading {' and '.join(each.name for each in sources)}")
    terminal.hide_loading_bars()
    model, video_model = _pair([_call(load, each) for each in sources])
    return resolve(model, prompts, options, inputs, video_model)


def _call(function: Callable[..., Any], source: ModelSource) -> Any:
    with terminal.flags_in_messages(load_flags(source.prefix)):
        return function(source.name, **source.options)


def _pair(items: Sequence[Any]) -> tuple[Any, Any]:
    return items[0], items[1] if len(items) > 1 else None
