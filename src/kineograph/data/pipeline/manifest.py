"""What a run came to: counts, each clip, and each thing that was dropped and why. Written last, when all is done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kineograph.data.pipeline.packing import Choice, Drop
from kineograph.data.pipeline.records import read_json, write_text
from kineograph.data.pipeline.settings import DataSettings
from kineograph.data.pipeline.sources import Found

MANIFEST, CLIPS, DROPPED = "manifest.json", "clips.jsonl", "dropped.jsonl"


def write_manifest(settings: DataSettings, found: Found, choice: Choice, plan: Mapping[str, str]) -> None:
    """manifest.json with the counts, clips.jsonl, and dropped.jsonl, which names each file and says why."""
    output, drops = settings.output, [*_left_out(found), *choice.drops]
    shards = {name: json.loads(told) for name, told in plan.items()}
    rows = [{"shard": name, **_public(row)} for name, part in shards.items() for row in part]
    write_text(output / CLIPS, _lines(rows))
    write_text(output / DROPPED, _lines(drop._asdict() for drop in sorted(drops)))
    told = {
        "made_with": f"kineograph {version('kineograph')}",
        "files": _files(found, drops),
        "clips": len(choice.rows),
        "seconds": round(sum(clip.frames / clip.fps for _, clip in choice.rows), 3),
        "without_caption": sum(not row["caption"] for row in rows),
        "dropped": dict(sorted(Counter(drop.why for drop in drops).items())),
        "shards": [{"name": name, "clips": len(part)} for name, part in shards.items()],
        "settings": settings.model_dump(mode="json", exclude={"output", "run"}),
    }
    write_text(output / MANIFEST, json.dumps(told, indent=1))


def read_manifest(output: Path) -> Mapping[str, Any]:
    """The manifest of a run that is done; an empty one before."""
    return read_json(output / MANIFEST)


def read_dropped(output: Path) -> list[Drop]:
    """What a run that is done has dropped."""
    lines = (output / DROPPED).read_text(encoding="utf-8").splitlines()
    return [Drop(**json.loads(line)) for line in lines]


def _files(found: Found, drops: Sequence[Drop]) -> dict[str, int]:
    kinds = Counter(unit.kind for unit in found.units)
    broken = sum(drop.why == "broken" for drop in drops)
    return {"videos": kinds["video"], "pictures": kinds["image"], "broken": broken, "left_out": len(found.problems)}


def _left_out(found: Found) -> list[Drop]:
    return [Drop(name, 0.0, "left out", reason) for name, reason in found.problems]


def _public(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "tar"}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)
