"""Raw footage and pictures become shards of captioned clips: what `kineograph data` does."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType

from kineograph.data.pipeline.records import WORK
from kineograph.data.pipeline.run import Reached, check, run
from kineograph.data.pipeline.settings import DataSettings
from kineograph.data.pipeline.spreading import Spread, alone, on_ray
from kineograph.training.lock import claimed

SPREADS: Mapping[str, Callable[[], AbstractContextManager[Spread]]] = MappingProxyType({"ray": on_ray, "alone": alone})


def prepare(settings: DataSettings) -> Generator[Reached, None, None]:
    """Makes what is not yet made; the manifest in `settings.output` is there once it ends.

    One run at a time in a folder. Whatever ends it, the same settings go on from there to the same shards.
    Raises InputError for what cannot be used: sources, settings, a folder with other things in it.
    """
    placed = settings.model_copy(update={"output": settings.output.expanduser().absolute()})
    check(placed)
    with claimed(placed.output / WORK), SPREADS[placed.run]() as spread:
        yield from run(placed, spread)
