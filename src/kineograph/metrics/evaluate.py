"""Evaluation of folders of videos: the program behind `kineograph evaluate`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from kineograph.errors import InputError, InputWarning, expand_user
from kineograph.media.files import replace_atomically, slug
from kineograph.metrics.collection import VideoCollection, collect_videos
from kineograph.metrics.extractors import BUILT_IN
from kineograph.metrics.features import Extractor, check_video_lengths
from kineograph.metrics.report import Evaluation, html_page, markdown_table
from kineograph.metrics.scores import OnVideo, compute_scores, measure_videos
from kineograph.metrics.video_metrics import VideoMetric

POCKET_SIDE = 128  # pixels of the pocket world's frames


def evaluate(
    folders: Sequence[str | Path],
    *,
    extractors: Sequence[Extractor],
    metrics: Sequence[VideoMetric],
    against: str | Path | None = None,
    prompts: Mapping[str, str] | None = None,
    clusters: Mapping[str, str] | None = None,
    fps: float | None = None,
    on_video: OnVideo | None = None,
) -> list[Evaluation]:
    """Compute the scores of each folder of videos.

    Args:
        extractors, metrics: as `load_metrics` returns them.
        against: a folder of real videos, for FVD and KVD.
        prompts, clusters, fps: see `collect_videos`.
        on_video: called with (videos measured, all videos) of a folder.

    Raises InputError when a folder holds no videos, two have one name, or a video is too short for an extractor.
    """
    names = _evaluation_names(folders)
    collections = [collect_videos(folder, prompts, fps, clusters) for folder in folders]
    references = [collect_videos(against, fps=fps)] if against is not None else []
    for extractor in extractors:  # refuse before hours are spent on other videos
        for videos in (*collections, *references):
            check_video_lengths(videos.lengths, extractor)
    if built_in := [extractor.name for extractor in extractors if extractor.name in BUILT_IN]:
        _warn_of_other_sizes(collections, built_in)
    real = measure_videos(references[0], extractors, on_video=on_video) if references else None
    evaluations = []
    for name, videos in zip(names, collections, strict=True):
        measurements = measure_videos(videos, extractors, metrics, on_video)
        scores = tuple(compute_scores(measurements, extractors, metrics, real))
        evaluations.append(Evaluation(name, measurements, scores, real))
    return evaluations


def _warn_of_other_sizes(collections: Sequence[VideoCollection], extractors: Sequence[str]) -> None:
    """Warn that the built-in extractors know the pocket world only, when videos have another size."""
    sizes = [(entry.footage.height, entry.footage.width) for videos in collections for entry in videos.entries]
    others = sum(size != (POCKET_SIDE, POCKET_SIDE) for size in sizes)
    if others:
        text = (
            f"{others} of {len(sizes)} videos are not {POCKET_SIDE} x {POCKET_SIDE}: {' and '.join(extractors)} and "
            "the built-in CLIP were trained on the pocket world alone, and their scores mean little for other videos; "
            "name an extractor for yours, such as clip:openai/clip-vit-base-patch32"
        )
        warnings.warn(text, InputWarning, stacklevel=3)


def write_reports(evaluations: Sequence[Evaluation], folder: Path) -> Path:
    """Write NAME.json of each evaluation, `report.md` and `index.html`; return the path of the last."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{each.name}.json": json.dumps(each.as_json(), indent=2, allow_nan=False) + "\n" for each in evaluations}
    files |= {"report.md": markdown_table(evaluations), "index.html": html_page(evaluations)}
    for name, text in files.items():
        with replace_atomically(folder / name) as part:
            part.write_text(text)
    return folder / "index.html"


def _evaluation_names(folders: Sequence[str | Path]) -> list[str]:
    """Return a name for each folder: its own, with -2 appended to the second of the same name."""
    paths = [expand_user(folder).resolve() for folder in folders]
    own = [slug(path.name) for path in paths]
    before = [own[:place].count(name) for place, name in enumerate(own)]
    names = [f"{name}-{count + 1}" if count else name for name, count in zip(own, before, strict=True)]
    if min(len({*paths}), len({*names})) < len(names):
        raise InputError(f"two of the folders are the same or have one name ({', '.join(names)}): give each once")
    return names
