"""Stages of a curation run, from sources to shards. Finished work is never repeated: a killed run resumes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from kineograph.curation.captions import caption_clips, captions_path, load_caption_model, read_captions
from kineograph.curation.clips import make_clips
from kineograph.curation.packing import (
    MANIFEST,
    Selection,
    attach_captions,
    is_shard_current,
    plan_shards,
    select_clips,
    shard_plan_path,
    write_manifest,
    write_shard,
)
from kineograph.curation.parallel import ParallelMap, Work, Workers, ray_map, sequential_map
from kineograph.curation.records import WORK, load_record, read_json_file, record_path, write_text
from kineograph.curation.settings import Captions, CurationSettings, Endpoint, content_settings
from kineograph.curation.sources import SourceFile, SourceListing, list_sources
from kineograph.curation.watermarks import find_source_watermarks
from kineograph.errors import InputError, InputWarning, expand_user
from kineograph.media.files import remove_leftovers
from kineograph.training.lock import lock_folder

SETTINGS_FILE = "settings.json"
PARALLEL_MAPS: Mapping[str, Callable[[], AbstractContextManager[ParallelMap]]] = MappingProxyType(
    {"ray": ray_map, "alone": sequential_map}
)


class CurationProgress(NamedTuple):
    """Progress of a stage: number of files cut, of files whose clips have captions, or of shards packed."""

    stage: str
    done: int
    total: int


def curate_dataset(settings: CurationSettings) -> Generator[CurationProgress, None, None]:
    """Run all stages, skipping finished work; the manifest in `settings.output` exists once the generator ends.

    One run at a time in a folder. Whatever interrupts it, the same settings resume it and give the same shards.
    Raises InputError for invalid input: sources, settings, a folder with other files in it.
    """
    resolved = settings.model_copy(update={"output": expand_user(settings.output).absolute()})
    check_output(resolved)
    with lock_folder(resolved.output / WORK), PARALLEL_MAPS[resolved.run]() as parallel_map:
        yield from run_stages(resolved, parallel_map)


def check_output(settings: CurationSettings) -> None:
    """Raise InputError when the output has files of another program, or clips made with other settings."""
    recorded = settings.output / WORK / SETTINGS_FILE
    if recorded.exists():
        before, now = read_json_file(recorded), content_settings(settings)
        if not before:
            warnings.warn(InputWarning(f"{recorded} is damaged: it is written again"), stacklevel=2)
        different = sorted(name for name in {*before, *now} if before and before.get(name) != now.get(name))
        if different:
            raise InputError(
                f"{settings.output} holds clips that were made with other settings ({', '.join(different)}): name "
                f"another folder, or remove this one"
            )
    elif settings.output.exists() and any(file.name != WORK for file in settings.output.iterdir()):
        raise InputError(
            f"{settings.output} has files in it that this program did not make, such as "
            f"{min(file.name for file in settings.output.iterdir())}: name a new folder"
        )
    models = [settings.captions.asked, settings.captions.merged_by] if settings.captions else []
    for model in models:
        if isinstance(model, Endpoint):
            load_caption_model(model)  # raises when its key is missing


def run_stages(settings: CurationSettings, parallel_map: ParallelMap) -> Iterator[CurationProgress]:
    """Cut, caption and pack what is not yet cut, captioned and packed; write the manifest at the end.

    Raises InputError for sources without images and videos, and for a model that cannot be loaded.
    """
    check_output(settings)
    listing = list_sources(settings)
    _remove_temporary_files(settings.output)
    write_text(settings.output / WORK / SETTINGS_FILE, json.dumps(content_settings(settings)))
    find_source_watermarks(listing.files, settings)
    cut = partial(make_clips, settings=settings)
    yield from _run_stage("cutting", cut, _cutting_tasks(listing.files, settings), Workers(), parallel_map)
    selection = select_clips(listing.files, settings)
    if settings.captions is not None:
        captions = settings.captions
        workers = Workers(captions.processes, captions.cpus, captions.gpus)
        caption = partial(caption_clips, settings=settings)
        tasks = _captioning_tasks(selection, captions, settings.output)
        yield from _run_stage("captioning", caption, tasks, workers, parallel_map)
    selection, texts = attach_captions(selection, settings)
    plans = plan_shards(selection, texts, settings)
    pack = partial(write_shard, settings=settings)
    yield from _run_stage("packing", pack, _packing_tasks(plans, settings.output), Workers(), parallel_map)
    write_manifest(settings, listing, selection, plans)


def count_finished(listing: SourceListing, settings: CurationSettings) -> int:
    """Return the number of files that are cut already."""
    return len(listing.files) - len(_cutting_tasks(listing.files, settings))


def _run_stage(
    stage: str, work: Work, tasks: Sequence[str], workers: Workers, parallel_map: ParallelMap
) -> Iterator[CurationProgress]:
    for number, _ in enumerate(parallel_map(work, tasks, workers), 1):
        yield CurationProgress(stage, number, len(tasks))


def _cutting_tasks(files: Sequence[SourceFile], settings: CurationSettings) -> list[str]:
    return [json.dumps(file._asdict()) for file in files if load_record(record_path(settings.output, file)) is None]


def _captioning_tasks(selection: Selection, captions: Captions, output: Path) -> list[str]:
    tasks = []
    for file, clips in groupby(sorted(selection.clips), key=lambda each: each.file):
        names = [each.clip.name for each in clips]
        if not read_captions(captions_path(output, captions, file)).captions.keys() >= set(names):
            tasks.append(json.dumps({"file": file._asdict(), "clips": names}))
    return tasks


def _packing_tasks(plans: Mapping[str, str], output: Path) -> list[str]:
    """Return the shards to write. Removes those that are in no plan, and writes the plans of the others."""
    due = [name for name, plan in plans.items() if not is_shard_current(output, name, plan)]
    stale = [file for file in output.glob("clips-*.tar") if file.name not in plans]
    if due or stale:
        (output / MANIFEST).unlink(missing_ok=True)  # it describes other shards
    for file in stale:
        file.unlink()
    for name in due:
        write_text(shard_plan_path(output, name), plans[name])
    return due


def _remove_temporary_files(output: Path) -> None:
    """Remove what a killed run had begun to write."""
    for part in [*output.glob(".*.part"), *(output / WORK).glob("**/.*.part")]:
        remove_leftovers(part.parent)
