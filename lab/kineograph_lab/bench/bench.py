"""`kineograph bench`: speed and memory of this library beside diffusers and others, row by row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from kineograph.errors import InputError, parse_json
from kineograph.media.files import replace_atomically
from kineograph_lab.bench import frames, quality, start
from kineograph_lab.bench.networks import network
from kineograph_lab.bench.report import format_report
from kineograph_lab.bench.setting import Engine, Setting, default_engine, describe_machine, load_average

EQUAL_DTYPE = "equal dtype"  # diffusers at the dtype of ours, its fastest attention, threads and memory format
FILE, PAGE = "speed.json", "speed.md"


@dataclass(frozen=True)
class Row:
    """A comparison.

    what, against  both sides in words
    measure        returns the figures
    bar            what issue 28 asks for, on a CPU with avx512_bf16 or AMX
    engine         of our side where it cannot be chosen: torch's, or what a run chooses by itself
    on_gpu         True for a row that needs a GPU; the others are for a CPU, and run on a GPU too
    """

    what: str
    against: str
    measure: Callable[[Setting], dict[str, Any]]
    bar: str = ""
    engine: Literal["torch", "auto"] | None = None
    on_gpu: bool = False


def _frames(mode: str, dtype: str) -> Callable[[Setting], dict[str, Any]]:
    return partial(frames.compare_frames, mode, dtype)


def _network(shape: str, dtype: str) -> Row:
    name = {"sd15": "SD-1.5-shaped network at 512x512", "sdxl": "SDXL-shaped network at 1024x1024"}[shape]
    measure = partial(network.compare_with_diffusers, shape, 16, dtype)
    return Row(f"{name}, 16 frames, {dtype}", EQUAL_DTYPE, measure, engine="torch", on_gpu=True)


SD15 = "SD-1.5-shaped network at 512x512"
ROWS: Mapping[str, Row] = {
    "text2video-zero-bfloat16": Row("Text2Video-Zero", EQUAL_DTYPE, _frames("text2video-zero", "bfloat16"), ">= 1.7"),
    "text2video-zero-float32": Row("Text2Video-Zero", EQUAL_DTYPE, _frames("text2video-zero", "float32"), ">= 1.7"),
    "controlnet-bfloat16": Row("ControlNet-guided", EQUAL_DTYPE, _frames("controlnet", "bfloat16"), ">= 1.7"),
    "controlnet-float32": Row("ControlNet-guided", EQUAL_DTYPE, _frames("controlnet", "float32"), ">= 1.7"),
    "animatediff-bfloat16": Row("AnimateDiff layers", EQUAL_DTYPE, _frames("animatediff", "bfloat16"), ">= 1.7"),
    "animatediff-float32": Row("AnimateDiff layers", EQUAL_DTYPE, _frames("animatediff", "float32"), ">= 1.7"),
    "training-bfloat16": Row(
        "training step", EQUAL_DTYPE, _frames("training", "bfloat16"), ">= 1.5", engine="torch"
    ),
    "end-to-end-image": Row(
        "image-model video, end to end at equal quality", "diffusers at 50 steps",
        partial(quality.compare_quality, "image"), ">= 5",
    ),
    "end-to-end-video": Row(
        "video model, end to end at equal quality", "50 steps by torch",
        partial(quality.compare_quality, "video"), ">= 5",
    ),
    "network-peak": Row(SD15, "torch's bfloat16 matrix product", network.measure_share_of_peak, ">= 0.7"),
    "network-diffusers": Row(SD15, EQUAL_DTYPE, partial(network.compare_with_diffusers, "sd15", 2, "bfloat16")),
    "network-openvino": Row(SD15, "OpenVINO's conversion of diffusers", network.compare_with_openvino, ">= 1"),
    "network-optimum": Row(SD15, "optimum-intel", network.compare_with_optimum, ">= 1"),
    "network-cpp": Row(SD15, "stable-diffusion.cpp", network.compare_with_cpp, ">= 1"),
    "memory": Row("peak memory of 1000 frames", "16 frames", start.compare_memory, "<= 1.1"),
    "first-video": Row(
        "from command to first video", "", start.time_first_video, "<= 5 s", engine="auto"
    ),
    **{f"gpu-{shape}-{dtype}": _network(shape, dtype) for shape in ("sd15", "sdxl") for dtype in ("float16", "bfloat16")},
}  # fmt: skip


def choose_rows(names: Sequence[str]) -> list[str]:
    """Return the rows that start with these names, in their order; without names, all of this machine's kind.

    Raises InputError for a name that no row starts with.
    """
    for name in names:
        if not any(each.startswith(name) for each in ROWS):
            raise InputError(f"there is no row {name!r}: expected {', '.join(ROWS)}, or the start of one or several")
    if not names:
        return [name for name, row in ROWS.items() if row.on_gpu == torch.cuda.is_available()]
    return [*dict.fromkeys(each for name in names for each in ROWS if each.startswith(name))]


def bench(
    names: Sequence[str] = (),
    *,
    engine: Engine | None = None,
    repeats: int = 6,
    prompts: int = 40,
    seeds: int = 1,
    preset: str = "quality",
    minutes: float | None = None,
    quick: bool = False,
    resume: bool = False,
    out: str | Path | None = None,
    command: str = "kineograph bench",
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure rows, and write each when it is finished; return those that were measured.

    Args:
        names: rows, see `choose_rows`.
        engine: of our side; by default OpenVINO where it is installed and there is no GPU.
        repeats: pairs of timed runs.
        prompts, seeds, preset: of the rows of equal quality.
        minutes: no row, and no prompt, is begun after so many minutes.
        quick: tiny sizes, which only show that a row works.
        resume: True to pass over rows that the file has, of the same settings and machine.
        out: folder of `FILE` and `PAGE`, whose other rows stay.
        command: stated in the file.
        log: called with a line on each stage.

    Raises InputError for an unknown row, and for numbers that are too small.
    """
    chosen = choose_rows(names)
    if min(repeats, prompts, seeds) < 1:
        raise InputError(f"expected 1 or more repeats, prompts and seeds, got {repeats}, {prompts} and {seeds}")
    deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    setting = Setting(engine or default_engine(), repeats, prompts, seeds, preset, quick, deadline, log)
    file = None if out is None else Path(out) / FILE
    known = [] if file is None or not file.exists() else write_rows(load_rows(file), file)  # with today's page
    machine, measured = describe_machine(), []
    for name in chosen:
        row = ROWS[name]
        fixed = "torch" if row.engine == "torch" else engine or default_engine()
        setting, used = replace(setting, engine=fixed), row.engine or fixed
        identity = {"name": name, "engine": used, "settings": setting.as_json(), "machine": machine}
        if resume and any(all(each[key] == value for key, value in identity.items()) for each in known):
            log(f"{name}: there already")
            continue
        if setting.is_over:
            log(f"{name}: no time left")
            continue
        log(f"{name}, {used}")
        began, load = time.monotonic(), load_average()
        figures = row.measure(setting)
        measured.append(
            {
                **identity, "what": row.what, "against": row.against, "bar": row.bar, **figures,
                "date": datetime.now(UTC).isoformat(timespec="minutes"), "load": load,
                "minutes": (time.monotonic() - began) / 60, "run": command,
            }
        )  # fmt: skip
        if file is not None:
            known = [each for each in known if each["name"] != name or (each["engine"] != used and not row.engine)]
            known = write_rows([*known, measured[-1]], file)
    return measured


def load_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file. Raises InputError if it holds something else."""
    found = parse_json(file.read_text(), str(file))
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise InputError(f"{file} is not a file of this benchmark: expected an object with `rows`")
    return found["rows"]


def write_rows(rows: Sequence[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Write rows, in the table's order, to a file, and the page beside it; return them."""
    order = list(ROWS)
    ordered = sorted(rows, key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(file) as part:
        part.write_text(json.dumps({"rows": ordered}, indent=1) + "\n")
    write_page(file)
    return ordered


def write_page(file: Path) -> Path:
    """Write the page beside a file of rows, from that file alone, and return its path."""
    rows, page = load_rows(file), file.with_name(PAGE)
    measured = {row["name"] for row in rows}
    missing = {name: (row.what, row.against) for name, row in ROWS.items() if name not in measured}
    with replace_atomically(page) as part:
        part.write_text(format_report(rows, missing))
    return page
