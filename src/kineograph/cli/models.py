"""`kineograph models`: what can be passed to `--model`, and the example that goes with `--adapter`."""

from __future__ import annotations

import json as parse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from kineograph.cli import terminal
from kineograph.cli.options import MODEL, Json, MotionModule
from kineograph.models.pocket import WEIGHTS as POCKET

PIPELINES = {
    "StableDiffusionPipeline": "SD 1.x or 2.x",
    "StableDiffusionXLPipeline": "SD XL",
    "StableDiffusionInstructPix2PixPipeline": "InstructPix2Pix",
}
ON_POCKET = {
    "edit": "InstructPix2Pix, small",
    "video": "VideoCrafter1 (text to video), small",
    "animate": "VideoCrafter1 (image to video), small",
    "vidrd": "VidRD, small, with its temporal decoder",
    "fox": 'a subject of pocket-video, "sks cat": for --adapter',
}
HUB_EXAMPLES = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0")


class ListedModel(NamedTuple):
    """A model and where it is."""

    name: str
    family: str
    place: str
    megabytes: int | None


def models(json: Json = False) -> None:
    """List the models that are here: the one built in, and those in the cache of the Hugging Face Hub.

    Besides these, --model takes any folder in diffusers layout, any .safetensors or .ckpt file of Stable Diffusion
    1.x, 2.x or XL, and any hub id of those, which is downloaded on first use.
    """
    here = [*built_in_models(), *_cached()]
    if json:
        terminal.print_json({"models": [each._asdict() for each in here]})
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "family", "where", "MB"):
        table.add_column(heading, justify="right" if heading == "MB" else "left")
    for each in here:
        table.add_row(each.name, each.family, each.place, str(each.megabytes))
    terminal.console().print(table)
    absent = [name for name in HUB_EXAMPLES if name not in {each.name for each in here}]
    terminal.print_message(f"Downloaded when first asked for, for example: {', '.join(absent)}" if absent else "")


def built_in_models() -> Iterator[ListedModel]:
    """The pocket model, and what it becomes, when they were installed with their weights."""
    if (POCKET / "model_index.json").exists():
        yield ListedModel(
            "pocket", "SD 1.x, small; with ControlNets canny, depth, pose", "built in", _megabytes(POCKET)
        )
        for name, family in ON_POCKET.items():
            if (POCKET / name).is_dir():
                yield ListedModel(f"pocket-{name}", family, "built in, on pocket", _megabytes(POCKET / name))


def _megabytes(folder: Path) -> int:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6)


def _cached() -> Iterator[ListedModel]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda each: each.repo_id):
        for revision in repository.revisions:
            index = revision.snapshot_path / "model_index.json"
            kind = parse.loads(index.read_text()).get("_class_name") if index.exists() else None
            if kind in PIPELINES:
                size = round(revision.size_on_disk / 1e6)
                yield ListedModel(repository.repo_id, PIPELINES[kind], str(revision.snapshot_path), size)


FILES = (".ckpt", ".safetensors")


def convert(
    source: Annotated[str, typer.Argument(help="A model: a file, a folder, a hub id.", show_default=False)],
    target: Annotated[
        Path,
        typer.Argument(
            help="A new folder; or a name ending in .ckpt or .safetensors, for VideoCrafter's released layout.",
            show_default=False,
        ),
    ],
    motion_module: MotionModule = None,
    config: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MODEL,
            show_default=False,
            help="A diffusers folder with what a file does not hold: the tokenizer.",
        ),
    ] = None,
) -> None:
    """Write a model as a folder in diffusers layout, layers along time in temporal/; or such a folder as one file.

    A VideoCrafter checkpoint made a folder, and that a file again, is the same to the bit.
    """
    terminal.hide_loading_bars()
    print(_converted(source, target, motion_module, config))


def _converted(source: str, target: Path, motion: str | None, config: str | None) -> Path:
    from kineograph.models.loading.load import load
    from kineograph.models.loading.save import checkpoint_to_folder, folder_to_videocrafter, save

    if target.suffix in FILES:
        return folder_to_videocrafter(source, target)
    if motion is None and Path(source).expanduser().is_file():
        return checkpoint_to_folder(source, target, config=config)
    return save(load(source, motion=motion, config=config, device="cpu"), target)
