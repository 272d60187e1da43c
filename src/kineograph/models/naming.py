"""What a model is called, and how the arguments that it was loaded with are written down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def name_of(source: Any) -> str:
    """What people call a path, a repository or an open pipeline."""
    if not isinstance(source, str | Path):
        config = getattr(source, "config", None) or {}
        return str(config.get("_name_or_path") or type(source).__name__)
    path = Path(source).expanduser()
    return path.name if path.exists() else str(source)


def as_json(value: Any) -> Any:
    """A value as JSON would bring it back."""
    if isinstance(value, Mapping):
        return {word: as_json(each) for word, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value
