"""The page of `kineograph bench`, from the rows of its file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

INTRODUCTION = """# Speed and memory

Written by `kineograph bench` from [speed.json](speed.json), which has all figures.

Speedups are medians of the ratios of paired runs, theirs over ours, the side that starts alternating; behind them the
interval of the median by order statistics: 95 % from six pairs on, of fewer from the least ratio to the greatest. Runs
are warm: what is converted or compiled was so before. Memory is the peak of a process of its own, VmHWM as it reads it
from /proc/self/status (on a GPU torch's counter). Differences are of the timed videos, mean grey levels of 255 (of
networks: relative to the mean absolute output), to diffusers in float32; in brackets diffusers' own at that dtype, in
the same run. Output is equal if ours is at most 1.2 times that; in float32, if it is rounding.
"""
HEADER = (
    "row",
    "against",
    "engine, dtype",
    "speedup",
    "bar",
    "seconds",
    "theirs",
    "difference",
    "equal",
    "GB",
    "theirs",
)
NOT_MEASURED = "not measured"


def format_report(rows: Sequence[Mapping[str, Any]], missing: Mapping[str, tuple[str, str]]) -> str:
    """Return the page. missing: both sides of what has not been measured, by row."""
    lines = [
        INTRODUCTION,
        *_table(
            HEADER, [_cells(row) for row in rows] + [_missing_cells(name, *each) for name, each in missing.items()]
        ),
    ]
    for row in rows:
        if "quality" in row:
            lines += ["", *_quality(row)]
    lines += ["", "## What was tried of the other side", ""]
    lines += ["Seconds of a short run of each variant; the fastest was taken.", ""]
    lines += [f"- {_name(row)}: {'; '.join(map(_trial, row['tried']))}." for row in rows if row.get("tried")]
    lines += ["", "## Machines and commands", "", *_machines(rows)]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    equal = row.get("equal_output", row.get("equal_quality"))
    return [
        f"`{row['name']}`",
        row["what"],
        row["against"] or "-",
        ", ".join(each for each in (row["engine"], row.get("dtype")) if each),
        _speedup(row),
        row["bar"] or "-",
        _number(row.get("seconds"), 3),
        _number(row.get("their_seconds"), 3),
        _difference(row),
        "-" if equal is None else "yes" if equal else "no",
        _number(row.get("memory_gb"), 3),
        _number(row.get("their_memory_gb"), 3),
    ]


def _missing_cells(name: str, what: str, against: str) -> list[str]:
    return [f"`{name}`", what, against or "-", "-", NOT_MEASURED, *["-"] * (len(HEADER) - 5)]


def _speedup(row: Mapping[str, Any]) -> str:
    if "memory_ratio" in row:
        return f"{row['memory_ratio']:.2f} times the memory"
    if row["speedup"] is None:
        return f"{row['least_seconds']:.2f} to {row['most_seconds']:.2f} s"
    return f"{row['speedup']:.2f} ({row['low']:.2f} to {row['high']:.2f}, {row['repeats']} pairs)"


def _difference(row: Mapping[str, Any]) -> str:
    if "quality" in row:
        return f"{row['difference']:+.1f} points"
    if row.get("difference") is None:
        return "-"
    return f"{_number(row['difference'], 2)} ({_number(row['their_difference'], 2)})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _name(row: Mapping[str, Any]) -> str:
    return f"`{row['name']}`"


def _trial(trial: Mapping[str, Any]) -> str:
    if "variant" in trial:
        return f"{trial['variant']} {trial['seconds']:.2f} s"
    order = "channels last" if trial["channels_last"] else "contiguous"
    return f"{trial['dtype']}, {trial['attention']}, {trial['threads']} threads, {order} {trial['seconds']:.2f} s"


def _quality(row: Mapping[str, Any]) -> list[str]:
    """Return the table of a row's measures in points, with the lower one-sided 95 % bound of each difference."""
    title = f"## {row['what'].capitalize()}: quality"
    which = f"`--preset {row['preset']}`, {row['prompts']} prompts with {row['seeds']} seeds each, {row['engine']}."
    cells = [
        [name, f"{each['ours']:.1f}", f"{each['theirs']:.1f}", _signed(each["difference"]), _number(each["error"], 2),
         _signed(each["lower_bound"])]
        for name, each in row["quality"].items()
    ]  # fmt: skip
    header = ("measure", "ours", row["against"], "difference", "error over prompts", "lower 95 % bound (aim: -3)")
    return [title, "", which, "", *_table(header, cells)]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def _machines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each machine with its versions, and one for each row with its date, command and load."""
    machines = [json.loads(each) for each in dict.fromkeys(json.dumps(row["machine"]) for row in rows)]
    lines = list[str]()
    for number, machine in enumerate(machines, 1):
        found = [machine["processor"], ", ".join(machine["instructions"]), machine["gpu"]]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        where = "; ".join(each for each in found if each)
        lines.append(f"{number}. {where}; {machine['cores']} cores, {machine['threads']} threads; {versions}.")
    own = [[_name(row), row["engine"], str(machines.index(row["machine"]) + 1), row["date"], _number(row["load"], 2),
            _number(row["minutes"], 2), f"`{row['run']}`"] for row in rows]  # fmt: skip
    header = ("row", "engine", "machine", "date", "load average before", "minutes", "command")
    return [*lines, "", *_table(header, own)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(each)} |" for each in (header, ["---"] * len(header), *rows)]
