"""`kineograph models` and `kineograph convert`: list and convert models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table

from kineograph.cli import terminal
from kineograph.cli.options import Json, load_flags
from kineograph.errors import InputError, expand_user, load_json
from kineograph.models.pocket import WEIGHTS

PIPELINES = {
    "StableDiffusionPipeline": "SD 1.x or 2.x",
    "StableDiffusionXLPipeline": "SD XL",
    "StableDiffusionInstructPix2PixPipeline": "InstructPix2Pix",
}
POCKET_FAMILY = "SD 1.x, small; with ControlNets canny, depth, pose"
HUB_EXAMPLES = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0")


class ListedModel(NamedTuple):
    """A row of the list. place: "built in" or a folder."""

    name: str
    family: str
    place: str
    megabytes: int | None


def models(
    name: Annotated[str | None, typer.Argument(help="With --words: the model.", show_default=False)] = None,
    words: Annotated[bool, typer.Option("--words", help="List the words that a small model was trained on.")] = False,
    json: Json = False,
) -> None:
    """List the built-in models, and those in the cache of the Hugging Face Hub.

    --model also takes any folder in diffusers layout, any .safetensors or .ckpt file of Stable Diffusion 1.x, 2.x or
    XL, and any hub id of such a model, which is downloaded on first use.
    """
    if words:
        _list_words(name or "pocket", json=json)
        return
    if name is not None:
        raise InputError(f"a model is named for its words alone: kineograph models {name} --words")
    listed = [*built_in_models(), *_cached_models()]
    if json:
        terminal.print_json({"models": [each._asdict() for each in listed]})
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "family", "where", "MB"):
        table.add_column(heading, justify="right" if heading == "MB" else "left")
    for each in listed:
        table.add_row(*(terminal.one_line(str(value)) for value in each))
    terminal.console().print(table)
    others = [name for name in HUB_EXAMPLES if name not in {each.name for each in listed}]
    terminal.print_message(f"Downloaded on first use, for example: {', '.join(others)}" if others else "")


def _list_words(name: str, *, json: bool) -> None:
    """Print the words and phrases that a model was trained on."""
    from kineograph.models.loading.load import POCKETS, read_vocabulary

    if name not in POCKETS and not expand_user(name).is_dir():
        raise InputError(f"{name} is no built-in model and no folder: kineograph models lists the built-in ones")
    phrases = read_vocabulary(name)
    if not phrases:
        raise InputError(f"{name} comes with no list of words: models of the size of Stable Diffusion know most words")
    if json:
        terminal.print_json({"model": name, "words": phrases})
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for heading, each in phrases.items():
        table.add_row(heading, terminal.one_line(" | ".join(each)))
    terminal.console().print(table)


def built_in_models() -> Iterator[ListedModel]:
    """Yield the pocket model, the models and adapters based on it, and models of other installed packages."""
    from kineograph.models.pocket.models import ADAPTERS, MODELS, built_in_model
    from kineograph.plugins import find_plugins

    if not (WEIGHTS / "model_index.json").exists():
        return
    yield ListedModel("pocket", POCKET_FAMILY, "built in", _megabytes(WEIGHTS))
    for name in (*MODELS, *find_plugins("models")):
        model = built_in_model(name)
        if (WEIGHTS / model.folder).is_dir():
            yield ListedModel(name, model.description, "built in, on pocket", _megabytes(WEIGHTS / model.folder))
    for name, adapter in ADAPTERS.items():
        if (WEIGHTS / adapter.folder).is_dir():
            yield ListedModel(name, adapter.description, "built in, on pocket", _megabytes(WEIGHTS / adapter.folder))


def _megabytes(folder: Path) -> int:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6)


def _cached_models() -> Iterator[ListedModel]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda each: each.repo_id):
        for revision in repository.revisions:
            index = revision.snapshot_path / "model_index.json"
            kind = _read_class_name(index)
            if kind in PIPELINES:
                size = round(revision.size_on_disk / 1e6)
                yield ListedModel(repository.repo_id, PIPELINES[kind], str(revision.snapshot_path), size)


def _read_class_name(index: Path) -> str:
    """Return the class of a pipeline in the cache; "" for what is no pipeline, or damaged."""
    try:
        content = load_json(index)
    except (InputError, OSError):
        return ""
    return str(content.get("_class_name")) if isinstance(content, dict) else ""


def convert(
    source: Annotated[str, typer.Argument(help="A model: a file, a folder or a hub id.", show_default=False)],
    target: Annotated[
        Path,
        typer.Argument(
            help="A new folder; or a name ending in .ckpt or .safetensors, for VideoCrafter's released layout.",
            show_default=False,
        ),
    ],
    **given: Any,
) -> None:
    """Convert a model to a folder in diffusers layout (temporal layers in temporal/), or such a folder to one file.

    A VideoCrafter checkpoint that is converted to a folder and back has the same tensors, bit for bit.
    """
    terminal.hide_loading_bars()
    from kineograph.models.loading.load import load
    from kineograph.models.loading.options import load_arguments
    from kineograph.models.loading.save import checkpoint_to_folder, folder_to_videocrafter, save

    arguments = load_arguments(given)
    with terminal.flags_in_messages(load_flags()):
        if target.suffix in (".ckpt", ".safetensors"):
            if arguments:
                raise InputError(f"{' and '.join(f'`{name}`' for name in arguments)}: expected a folder as target")
            terminal.print_path(folder_to_videocrafter(source, target))
        elif arguments.keys() <= {"config"} and expand_user(source).is_file():
            terminal.print_path(checkpoint_to_folder(source, target, **arguments))
        else:
            terminal.print_path(save(load(source, **arguments, device="cpu"), target))
