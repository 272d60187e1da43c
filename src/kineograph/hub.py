"""Files and folders on disk or on the Hugging Face Hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import huggingface_hub as hf
from huggingface_hub import errors

from kineograph.errors import InputError, expand_user, is_present, shown_path

CONFIGS = ["*.json", "*.txt"]
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "temporal": "diffusion_pytorch_model",
    "temporal_decoder": "diffusion_pytorch_model",
    "image_adapter": "ip_adapter",
    "motion_adapter": "motion_adapter",
}
IMAGE_ENCODER = {"image_encoder": "model"}  # read of models with an image adapter
FLOAT16 = ".fp16"
OLD_WEIGHTS = {"text_encoder": "pytorch_model", "text_encoder_2": "pytorch_model"}
FILE_ENDINGS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}


class HubOptions(NamedTuple):
    """Options of downloads, named as in `from_pretrained`."""

    revision: str | None = None
    variant: str | None = None
    token: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


def local_path(source: str | Path, built_in: Iterable[str] = ()) -> Path | None:
    """Return the path if it exists, or None if it can only be the name of a repository.

    Raises InputError for a path that does not exist, with a hint when a similar path or built-in name does.
    """
    path = expand_user(source)
    if is_present(path):
        return path
    if isinstance(source, str) and _is_repository(source) and not _is_folder(path.parent):
        return None
    name = repr(shown_path(source)) if " " in str(source) else shown_path(source)
    raise InputError(f"there is no {name}: expected a file, a folder or a hub id, owner/name{_hint(path, built_in)}")


def find_file(source: str | Path, names: list[str], options: HubOptions) -> Path:
    """Return the file of a known name in a folder or repository, or its only safetensors file; or the file itself.

    Raises InputError when there is none, or more than one.
    """
    options = options._replace(revision=None, variant=None)  # these are the model's, not this file's
    path = local_path(source) or fetch_folder(str(source), [*names, "adapter_config.json"], options)
    if path.is_file():
        return path
    files = [path / name for name in names if (path / name).exists()] or sorted(path.glob("*.safetensors"))
    if not files or (len(files) > 1 and files[0].name not in names):
        there = f"{len(files)} files that it could be" if files else "none"
        raise InputError(f"expected {' or '.join(names)} in {source}, found {there}: pass the path of the file itself")
    return files[0]


def fetch_pipeline(name: str, options: HubOptions) -> Path:
    """Download a repository's diffusers pipeline: settings, and each network's weights once. Returns the folder.

    Of a network without weights of the given variant the plain ones are downloaded, as diffusers does; of one that has
    neither, those in float16.
    """
    folder = _fetch_weights(name, WEIGHTS, options)
    return _fetch_weights(name, IMAGE_ENCODER, options) if (folder / "image_adapter").is_dir() else folder


def _fetch_weights(name: str, parts: Mapping[str, str], options: HubOptions) -> Path:
    """Download the weights of these networks of a pipeline, and its settings; see `fetch_pipeline`."""
    variants, missing = [f".{options.variant}", ""] if options.variant else ["", FLOAT16], parts
    for ending in ("safetensors", "bin"):  # ZeroScope's networks have none of the first kind
        for variant in variants:
            stems = {part: OLD_WEIGHTS.get(part, stem) if ending == "bin" else stem for part, stem in missing.items()}
            folder = fetch_folder(name, [*CONFIGS, *_weights(stems, variant, ending)], options)
            missing = {part: stem for part, stem in parts.items() if _lacks_weights(folder / part)}
            if not missing:
                return folder
    return folder


def _lacks_weights(folder: Path) -> bool:
    return folder.is_dir() and not any(each.suffix in (".safetensors", ".bin") for each in folder.iterdir())


def _weights(stems: Mapping[str, str], variant: str, ending: str) -> list[str]:
    """Return the patterns of weights and of their shards, whose numbers stand before the variant or after it."""
    names = ("{stem}{variant}", "{stem}{variant}-*-of-*", "{stem}-*-of-*{variant}")
    patterns = [
        f"{part}/{each.format(stem=stem, variant=variant)}.{ending}" for part, stem in stems.items() for each in names
    ]
    return list(dict.fromkeys(patterns))


def fetch_folder(name: str, patterns: list[str], options: HubOptions) -> Path:
    """Download the files of a repository that match the patterns. Returns the folder."""
    arguments = options._asdict() | {"allow_patterns": patterns}
    del arguments["variant"]  # already in the patterns
    return _fetch(name, lambda: hf.snapshot_download(name, **arguments))


def _fetch(name: str, fetch: Callable[[], str | Path]) -> Path:
    try:
        return Path(fetch())
    except errors.GatedRepoError as error:
        raise InputError(f"{name} is gated: accept its terms on https://hf.co/{name} and pass token=...") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(f"the Hub has no {name} that you can access: check the name, or pass token=...") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name} has no such revision: look at https://hf.co/{name}/commits/main") from error
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise InputError(f"{name} on the Hub is not laid out as expected ({error})") from error
        raise InputError(
            f"{name} is neither a path here nor in the cache of the Hub, and the Hub is not reached "
            f"({type(error).__name__}): go online (HF_HUB_OFFLINE unset, local_files_only not given) or pass a folder"
        ) from error


def _is_repository(source: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None and Path(source).suffix not in FILE_ENDINGS


def _is_folder(path: Path) -> bool:
    return is_present(path) and path.is_dir()


def _hint(path: Path, built_in: Iterable[str]) -> str:
    if meant := difflib.get_close_matches(str(path), list(built_in), n=1, cutoff=0.8):
        return f"; did you mean {meant[0]}, which is built in?"
    if not _is_folder(path.parent):
        return f"; there is no folder {shown_path(path.parent)} either"
    beside = [each.name for each in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, beside, n=1) or [each for each in beside if path.name in each][:1]
    return f"; did you mean {path.parent / near[0]}?" if near else ""
