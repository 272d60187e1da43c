"""Objects that other installed packages register by entry points: commands, models, extractors, training sources."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from kineograph.errors import InputError

INSTALL_LABORATORY = "pip install kineograph-lab (in a clone: pip install -e lab)"


def find_plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of the group `kineograph.<group>` by name, without loading them."""
    return {point.name: point for point in entry_points(group=f"kineograph.{group}")}


def load_plugin(group: str, name: str) -> Any:
    """Load the object registered under this name by a package. Raises InputError if there is none."""
    found = find_plugins(group).get(name)
    if found is None:
        raise InputError(f"{name!r} comes with Kineograph's laboratory, which is not installed: {INSTALL_LABORATORY}")
    return found.load()
