"""VideoCrafter's released checkpoints as folders that `load` opens, and those folders as released checkpoints again."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from kineograph.errors import InputError
from kineograph.models import catalog, parts, tensor_files, videocrafter_file, videocrafter_layout
from kineograph.models.hub import Hub
from kineograph.models.parts import Parts
from kineograph.models.saving import UNUSED, save


def to_folder(
    file: str | Path, folder: str | Path, *, config: str | Path | None = None, ask: Hub | None = None
) -> Path:
    """A released checkpoint as a new folder in diffusers layout, which keeps all that the file holds.

    config: as for `load`, with the tokenizer at least, unless that is in reach on the Hub.
    Raises InputError for another kind of file, and where tensors are missing, left over or of another shape.
    """
    path = Path(file).expanduser()
    tensors = tensor_files.read(path)
    if not videocrafter_layout.is_one(tensors):
        raise InputError(f"{path} is no VideoCrafter checkpoint. {catalog.guess(tensors)}")
    opened = videocrafter_file.open_parts(path, tensors, config, None, torch.float32, Hub())
    placed = videocrafter_file.released(opened)
    return save(opened, folder, unused={name: each for name, each in tensors.items() if name not in placed})


def to_file(folder: str | Path, file: str | Path) -> Path:
    """A folder as a checkpoint in VideoCrafter's layout: safetensors, or what torch writes if the name is `*.ckpt`.

    Of a folder that `to_folder` made it is the same file again, bit for bit. Of another model it lacks what no network
    here has, such as the text tower's last layer.
    Raises InputError for a folder without VideoCrafter's layers along time.
    """
    folder, path = Path(folder).expanduser(), Path(file).expanduser()
    opened = parts.from_folder(folder, _dtype(folder))
    _refuse_others(folder, opened)
    tensors = videocrafter_file.released(opened)
    if (folder / UNUSED).is_file():
        tensors |= tensor_files.read(folder / UNUSED)
    beside = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".ckpt":
            torch.save({"state_dict": tensors}, beside)
        else:
            save_file(tensors, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _dtype(folder: Path) -> torch.dtype:
    weights = sorted((folder / "unet").glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder} has no unet/*.safetensors: expected a folder that Kineograph saved")
    return next(iter(tensor_files.read(weights[0]).values())).dtype


def _refuse_others(folder: Path, opened: Parts) -> None:
    config = opened.temporal and opened.temporal.config
    if config is None or config.entry is None or config.transformer is None or config.in_block is not None:
        raise InputError(f"{folder} has other layers along time than VideoCrafter's, or none: its layout has no place")
