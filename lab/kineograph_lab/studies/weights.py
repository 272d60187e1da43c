"""Weight files of the models that studies declare, and their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from kineograph.errors import InputError, expand_user
from kineograph.media.files import file_sha256
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab import WEIGHTS

SUFFIXES = (".safetensors", ".bin", ".pt", ".ckpt")  # of weights in a model's folder

# Networks of the pocket model, which built-in models share: text encoder, VAE and image U-Net.
IMAGE = ("text_encoder", "vae", "unet")
CONTROLNETS = ("controlnet canny", "controlnet depth", "controlnet pose")
JUDGES = ("judge", "geometry", "clip")  # the judge's file has the image and the motion classifier
RECIPE = Path("runs/pocket")  # of networks that are trained, and do not ship

# name of a model -> its files, or folders of them
MODEL_FILES: Mapping[str, Sequence[Path]] = {
    "pocket": [POCKET / part for part in IMAGE],
    "pocket-edit": [POCKET / part for part in (*IMAGE, "edit")],
    "pocket-video": [POCKET / part for part in (*IMAGE, "video")],
    "pocket-animate": [POCKET / part for part in (*IMAGE, "video", "animate", "clip")],
    "pocket-vidrd": [POCKET / part for part in (*IMAGE, "video", "vidrd")],
    "pocket-video-degraded": [*(POCKET / part for part in (*IMAGE, "video")), WEIGHTS / "video-degraded"],
    "pocket-space-time": [*(POCKET / part for part in (*IMAGE, "video")), WEIGHTS / "space-time"],
    **{name: [POCKET / "control" / f"{name.split()[1]}.safetensors"] for name in CONTROLNETS},
    "judge": [WEIGHTS / "judge" / "judge.safetensors"],
    "geometry": [WEIGHTS / "judge" / "geometry.safetensors"],
    "clip": [POCKET / "clip"],
    **{
        f"recipe stage {stage}": [RECIPE / f"{stage}.safetensors"]
        for stage in ("joint", "films_only", "vidrd_panned", "vidrd_unpanned", "class_token")
    },
}


def hash_models(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of every weight file of some models: model -> file -> hash.

    names: of `MODEL_FILES`, or folders and files of weights. A model that was not trained on this machine has no files.
    Raises InputError for another name.
    """
    return {
        _shown(name): {shown: _hash(file, file.stat().st_mtime_ns) for shown, file in _files(name)} for name in names
    }


def _shown(name: str) -> str:
    return name if name in MODEL_FILES else expand_user(name).name


def _files(name: str) -> list[tuple[str, Path]]:
    """Return the weight files of a model in order, each with its path below the folder that holds them all."""
    if name not in MODEL_FILES and not expand_user(name).exists():
        raise InputError(f"no weights are known of {name}: expected {', '.join(MODEL_FILES)}, or an existing path")
    roots = [path for path in MODEL_FILES.get(name, [expand_user(name)]) if path.exists()]
    found = [(file.relative_to(root.parent).as_posix(), file) for root in roots for file in _weights_below(root)]
    return sorted(found)


def _weights_below(root: Path) -> list[Path]:
    return [root] if root.is_file() else [file for file in root.rglob("*") if file.suffix in SUFFIXES]


@lru_cache(maxsize=1024)
def _hash(file: Path, modified: int) -> str:
    """Return the hash of a file's content; `modified` is the time of its last change, so that no old one is returned."""
    return file_sha256(file)
