"""A run from sources to shards. What is done is never done again: a run that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from kineograph.curation.captions import caption_file, captions_path, load_caption_model, read_captions
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
from kineograph.curation.records import WORK, read_json_file, record_path, write_text
from kineograph.curation.settings import Captions, CurationSettings, Endpoint, content_settings
from kineograph.curation.sources import SourceFile, SourceListing, list_sources
from kineograph.curation.watermarks import find_source_watermarks
from kineograph.errors import InputError
from kineograph.training.lock import lock_folder

MADE_OF = "settings.json"


class CurationProgress(NamedTuple):
    """How far a run is: so many of all files cut, clips' files captioned, or shards packed."""

    stage: str
    done: int
    total: int


def check_output(settings: CurationSettings) -> None:
    """Raises InputError when the output holds what is not of this run, or was made with other settings."""
    made_of = settings.output / WORK / MADE_OF
    if made_of.exists():
        other = _differing(dict(read_json_file(made_of)), content_settings(settings))
        if other:
            raise InputError(
                f"{settings.output} holds clips that were made with other settings ({', '.join(other)}): name another "
                f"folder, or remove this one"
            )
    elif settings.output.exists() and any(file.name != WORK for file in settings.output.iterdir()):
        raise InputError(
            f"{settings.output} has files in it that this program did not make, such as "
            f"{min(file.name for file in settings.output.iterdir())}: name a new folder"
        )
    models = [settings.captions.asked, settings.captions.merged_by] if settings.captions else []
    for model in models:
        if isinstance(model, Endpoint):
            load_caption_model(model)  # whether there is a key


def run_stages(settings: CurationSettings, spread: ParallelMap) -> Iterator[CurationProgress]:
    """Cuts, captions and packs what is not yet cut, captioned and packed; ends with the manifest.

    Raises InputError for sources without pictures and videos, and for a model that is not there.
    """
    check_output(settings)
    found = list_sources(settings)
    _clear(settings.output)
    write_text(settings.output / WORK / MADE_OF, json.dumps(content_settings(settings)))
    find_source_watermarks(found.units, settings)
    yield from _spread(
        "cutting", partial(make_clips, settings=settings), _uncut(found.units, settings), Workers(), spread
    )
    choice = select_clips(found.units, settings)
    if settings.captions is not None:
        tasks, crew = _uncaptioned(choice, settings.captions, settings.output), _crew(settings.captions)
        yield from _spread("captioning", partial(caption_file, settings=settings), tasks, crew, spread)
    yield from _packed(found, *attach_captions(choice, settings), settings, spread)


def count_finished(found: SourceListing, settings: CurationSettings) -> int:
    """How many files are cut already."""
    return len(found.units) - len(_uncut(found.units, settings))


def _packed(
    found: SourceListing, choice: Selection, captions: dict[str, str], settings: CurationSettings, spread: ParallelMap
) -> Iterator[CurationProgress]:
    planned = plan_shards(choice, captions, settings)
    due = [name for name, told in planned.items() if not is_shard_current(settings.output, name, told)]
    stale = [file for file in settings.output.glob("clips-*.tar") if file.name not in planned]
    if due or stale:
        (settings.output / MANIFEST).unlink(missing_ok=True)  # it would speak of other shards
    for file in stale:
        file.unlink()
    for name in due:
        write_text(shard_plan_path(settings.output, name), planned[name])
    yield from _spread("packing", partial(write_shard, settings=settings), due, Workers(), spread)
    write_manifest(settings, found, choice, planned)


def _spread(
    stage: str, work: Work, tasks: Sequence[str], crew: Workers, spread: ParallelMap
) -> Iterator[CurationProgress]:
    for number, _ in enumerate(spread(work, tasks, crew), 1):
        yield CurationProgress(stage, number, len(tasks))


def _uncut(units: Sequence[SourceFile], settings: CurationSettings) -> list[str]:
    return [json.dumps(unit._asdict()) for unit in units if not record_path(settings.output, unit).exists()]


def _uncaptioned(choice: Selection, captions: Captions, output: Path) -> list[str]:
    tasks = []
    for unit, rows in groupby(sorted(choice.rows), key=lambda row: row.unit):
        names = [row.clip.name for row in rows]
        if not read_captions(captions_path(output, captions, unit)).captions.keys() >= set(names):
            tasks.append(json.dumps({"unit": unit._asdict(), "clips": names}))
    return tasks


def _crew(captions: Captions) -> Workers:
    return Workers(captions.processes, captions.cpus, captions.gpus)


def _clear(output: Path) -> None:
    """Takes away what a run that was killed had begun to write."""
    for part in [*output.glob(".*.part"), *(output / WORK).glob("**/.*.part")]:
        part.unlink(missing_ok=True)


def _differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


SPREADS: Mapping[str, Callable[[], AbstractContextManager[ParallelMap]]] = MappingProxyType(
    {"ray": ray_map, "alone": sequential_map}
)


def curate_dataset(settings: CurationSettings) -> Generator[CurationProgress, None, None]:
    """Makes what is not yet made; the manifest in `settings.output` is there once it ends.

    One run at a time in a folder. Whatever ends it, the same settings go on from there to the same shards.
    Raises InputError for what cannot be used: sources, settings, a folder with other things in it.
    """
    placed = settings.model_copy(update={"output": settings.output.expanduser().absolute()})
    check_output(placed)
    with lock_folder(placed.output / WORK), SPREADS[placed.run]() as spread:
        yield from run_stages(placed, spread)
