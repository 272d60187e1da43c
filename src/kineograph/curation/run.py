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

from kineograph.curation.captions import asker, captioned, captions_path, read_captions
from kineograph.curation.clips import cut
from kineograph.curation.packing import (
    MANIFEST,
    Choice,
    choose,
    is_packed,
    pack,
    plan,
    plan_path,
    told_of,
    write_manifest,
)
from kineograph.curation.parallel import Crew, Spread, Work, alone, on_ray
from kineograph.curation.records import WORK, read_json, record_path, write_text
from kineograph.curation.settings import Captions, DataSettings, Endpoint, decisive
from kineograph.curation.sources import Found, Unit, find
from kineograph.curation.watermarks import find_marks
from kineograph.errors import InputError
from kineograph.training.lock import lock_folder

MADE_OF = "settings.json"


class Reached(NamedTuple):
    """How far a run is: so many of all files cut, clips' files captioned, or shards packed."""

    stage: str
    done: int
    total: int


def check(settings: DataSettings) -> None:
    """Raises InputError when the output holds what is not of this run, or was made with other settings."""
    made_of = settings.output / WORK / MADE_OF
    if made_of.exists():
        other = _differing(dict(read_json(made_of)), decisive(settings))
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
            asker(model)  # whether there is a key


def run(settings: DataSettings, spread: Spread) -> Iterator[Reached]:
    """Cuts, captions and packs what is not yet cut, captioned and packed; ends with the manifest.

    Raises InputError for sources without pictures and videos, and for a model that is not there.
    """
    check(settings)
    found = find(settings)
    _clear(settings.output)
    write_text(settings.output / WORK / MADE_OF, json.dumps(decisive(settings)))
    find_marks(found.units, settings)
    yield from _spread("cutting", partial(cut, settings=settings), _uncut(found.units, settings), Crew(), spread)
    choice = choose(found.units, settings)
    if settings.captions is not None:
        tasks, crew = _uncaptioned(choice, settings.captions, settings.output), _crew(settings.captions)
        yield from _spread("captioning", partial(captioned, settings=settings), tasks, crew, spread)
    yield from _packed(found, *told_of(choice, settings), settings, spread)


def done_before(found: Found, settings: DataSettings) -> int:
    """How many files are cut already."""
    return len(found.units) - len(_uncut(found.units, settings))


def _packed(
    found: Found, choice: Choice, captions: dict[str, str], settings: DataSettings, spread: Spread
) -> Iterator[Reached]:
    planned = plan(choice, captions, settings)
    due = [name for name, told in planned.items() if not is_packed(settings.output, name, told)]
    stale = [file for file in settings.output.glob("clips-*.tar") if file.name not in planned]
    if due or stale:
        (settings.output / MANIFEST).unlink(missing_ok=True)  # it would speak of other shards
    for file in stale:
        file.unlink()
    for name in due:
        write_text(plan_path(settings.output, name), planned[name])
    yield from _spread("packing", partial(pack, settings=settings), due, Crew(), spread)
    write_manifest(settings, found, choice, planned)


def _spread(stage: str, work: Work, tasks: Sequence[str], crew: Crew, spread: Spread) -> Iterator[Reached]:
    for number, _ in enumerate(spread(work, tasks, crew), 1):
        yield Reached(stage, number, len(tasks))


def _uncut(units: Sequence[Unit], settings: DataSettings) -> list[str]:
    return [json.dumps(unit._asdict()) for unit in units if not record_path(settings.output, unit).exists()]


def _uncaptioned(choice: Choice, captions: Captions, output: Path) -> list[str]:
    tasks = []
    for unit, rows in groupby(sorted(choice.rows), key=lambda row: row.unit):
        names = [row.clip.name for row in rows]
        if not read_captions(captions_path(output, captions, unit)).captions.keys() >= set(names):
            tasks.append(json.dumps({"unit": unit._asdict(), "clips": names}))
    return tasks


def _crew(captions: Captions) -> Crew:
    return Crew(captions.processes, captions.cpus, captions.gpus)


def _clear(output: Path) -> None:
    """Takes away what a run that was killed had begun to write."""
    for part in [*output.glob(".*.part"), *(output / WORK).glob("**/.*.part")]:
        part.unlink(missing_ok=True)


def _differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


SPREADS: Mapping[str, Callable[[], AbstractContextManager[Spread]]] = MappingProxyType({"ray": on_ray, "alone": alone})


def prepare(settings: DataSettings) -> Generator[Reached, None, None]:
    """Makes what is not yet made; the manifest in `settings.output` is there once it ends.

    One run at a time in a folder. Whatever ends it, the same settings go on from there to the same shards.
    Raises InputError for what cannot be used: sources, settings, a folder with other things in it.
    """
    placed = settings.model_copy(update={"output": settings.output.expanduser().absolute()})
    check(placed)
    with lock_folder(placed.output / WORK), SPREADS[placed.run]() as spread:
        yield from run(placed, spread)
