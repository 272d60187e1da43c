"""`kineograph evaluate`: the scores of folders of videos, each with its protocol, as JSON, a table and a page."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kineograph.errors import InputError, InputWarning
from kineograph.media.dataset_layouts import IMAGES
from kineograph.media.files import instead_of, slug
from kineograph.metrics.collection import Collection, collect
from kineograph.metrics.encoders import open_clip
from kineograph.metrics.extractors import POCKET, clip_of, open_extractors
from kineograph.metrics.features import Extractor, check_lengths
from kineograph.metrics.report import Evaluation, page, table
from kineograph.metrics.scores import OnVideo, scores, survey
from kineograph.metrics.video_metrics import Gauge, clip_gauge, flow_gauge, likeness_gauge
from kineograph.models.pocket import WEIGHTS as POCKET_FOLDER
from kineograph.plugins import load_plugin

SIDE = 128  # of the pocket world's images


def evaluate(
    folders: Sequence[str | Path],
    *,
    extractors: Sequence[Extractor],
    gauges: Sequence[Gauge],
    against: str | Path | None = None,
    prompts: Mapping[str, str] | None = None,
    fps: float | None = None,
    on_video: OnVideo | None = None,
) -> list[Evaluation]:
    """The scores of each folder of videos; with a folder of real ones, its distances from those too.

    prompts, fps: as `collect` takes them. on_video: called with (videos measured, videos in all) of a folder.
    Raises InputError for folders without videos, and for videos that are too short for an extractor.
    """
    names = _names(folders)
    collections = [collect(folder, prompts, fps) for folder in folders]
    references = [collect(against, fps=fps)] if against is not None else []
    for extractor in extractors:  # before hours are spent on the others
        for videos in (*collections, *references):
            check_lengths(videos.lengths, extractor)
    if POCKET in [extractor.name for extractor in extractors]:
        _doubt(collections)
    real = survey(references[0], extractors, on_video=on_video) if references else None
    found = []
    for name, videos in zip(names, collections, strict=True):
        seen = survey(videos, extractors, gauges, on_video)
        told = tuple(scores(seen, extractors, gauges, real))
        found.append(Evaluation(name, seen, told, real))
    return found


def _doubt(collections: Sequence[Collection]) -> None:
    """Says so when videos cannot be of the pocket world, the only one that its judge and its CLIP know."""
    sizes = [(reel.footage.height, reel.footage.width) for each in collections for reel in each.reels]
    strange = sum(size != (SIDE, SIDE) for size in sizes)
    if strange:
        text = (
            f"{strange} of {len(sizes)} videos are not {SIDE} x {SIDE}: what is measured by the pocket world's judge "
            "and CLIP says nothing of other worlds; name an extractor for yours"
        )
        warnings.warn(text, InputWarning, stacklevel=3)


def instruments(
    texts: Sequence[str] = (POCKET,),
    *,
    pictures: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[list[Extractor], list[Gauge]]:
    """What to measure with: the extractors named (`open_extractor`), and the gauges that go with them.

    The first CLIP among them tells CLIP-T, frame consistency and, with a folder of pictures of a subject or style,
    CLIP-I; with "pocket" the pocket world's own does, and its judge says whether the prompt is seen.
    """
    opened = open_extractors(texts, device)
    gauges = [flow_gauge()]
    source = clip_of(texts, POCKET_FOLDER / "clip")
    if source is None and pictures is not None:
        raise InputError("likeness to pictures takes a CLIP: name one by clip:PATH, or pocket")
    if source is not None:
        tower = open_clip(source, device)
        gauges.append(clip_gauge(tower))
        if pictures is not None:
            gauges.append(likeness_gauge(tower, *_pictures(Path(pictures).expanduser())))
    if POCKET in texts:
        gauges.append(load_plugin("metrics", POCKET)())
    return opened, gauges


def write(found: Sequence[Evaluation], folder: Path) -> Path:
    """NAME.json of each folder, `report.md`, and `index.html` with the videos side by side, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{each.name}.json": json.dumps(each.as_json(), indent=2, allow_nan=False) + "\n" for each in found}
    files |= {"report.md": table(found), "index.html": page(found)}
    for name, text in files.items():
        with instead_of(folder / name) as part:
            part.write_text(text)
    return folder / "index.html"


def _names(folders: Sequence[str | Path]) -> list[str]:
    """What each folder is called, by its own name; the second of the same name with a 2 behind it."""
    paths = [Path(folder).expanduser().resolve() for folder in folders]
    own = [slug(path.name) for path in paths]
    before = [own[:place].count(name) for place, name in enumerate(own)]
    names = [f"{name}-{count + 1}" if count else name for name, count in zip(own, before, strict=True)]
    if min(len({*paths}), len({*names})) < len(names):
        raise InputError(f"two of the folders are the same or called alike ({', '.join(names)}): give each once")
    return names


def _pictures(folder: Path) -> tuple[list[np.ndarray], str]:
    """Pictures of a folder, uint8 [1 h w 3] each, and what stands for them."""
    files = sorted(each for each in folder.glob("*") if each.suffix.lower() in IMAGES)
    if not files:
        raise InputError(f"{folder} holds no pictures: expected files that end in {' '.join(sorted(IMAGES))}")
    whole, found = hashlib.sha256(), []
    for file in files:
        try:
            found.append(np.asarray(Image.open(file).convert("RGB"))[None])
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{file} is no picture that can be read ({error})") from error
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return found, whole.hexdigest()
