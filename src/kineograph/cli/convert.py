"""`kineograph convert`: a model's file becomes a folder, or the folder a file again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kineograph.cli import speaking
from kineograph.cli.options import MODEL, MotionModule

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
    speaking.quiet_loading()
    print(_converted(source, target, motion_module, config))


def _converted(source: str, target: Path, motion: str | None, config: str | None) -> Path:
    from kineograph.models import conversion, saving, tensor_files, videocrafter_layout
    from kineograph.models.checkpoints import load

    if target.suffix in FILES:
        return conversion.to_file(source, target)
    path = Path(source).expanduser()
    if motion is None and path.is_file() and videocrafter_layout.is_one(tensor_files.read(path)):
        return conversion.to_folder(path, target, config=config)
    return saving.save(load(source, motion=motion, config=config, device="cpu"), target)
