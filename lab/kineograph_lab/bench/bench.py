"""`kineograph bench`: our videos and diffusers', side by side on the same weights."""

from __future__ import annotations

import inspect
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from kineograph.errors import InputError
from kineograph.media.files import replace_atomically
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab.bench import memory
from kineograph_lab.bench.memory import MODES
from kineograph_lab.bench.text2video_zero import MOVE_AFTER, Draw, save_stand_in

LEAST_STEPS = MOVE_AFTER + 2
FULL_SIZE = {"channels": 320, "side": 64, "text_layers": 12}
REDUCED = {"channels": 128, "side": 16, "text_layers": 2}  # some minutes on two CPU cores
LONGER = 8  # times the frames, for the memory of long videos
MATRIX, TRIES = 2048, 12
Say = Callable[[str], None]


class Setting(NamedTuple):
    """What is drawn, how often, and in which dtypes."""

    frames: int
    steps: int
    repeats: int
    dtype: str
    their_dtype: str


class Row(NamedTuple):
    """One comparison. Seconds are medians over the repeats; `speedup` is the median of the repeats' ratios.

    mode            "motion": moved by a camera; "control": guided by control pictures; "video": by motion modules;
                    "training": steps of training those
    difference      between both sides' frames, on average, in grey levels of 255
    longer_peak_gb  our peak with `LONGER` times the frames
    teraflops       a second, in matrix products and convolutions
    share_of_peak   of what a large matrix product reaches in our dtype
    """

    network: str
    mode: str
    against: str
    setting: Setting
    seconds: float
    their_seconds: float
    speedup: float
    slowest: float
    fastest: float
    difference: float
    peak_gb: float
    their_peak_gb: float
    longer_peak_gb: float
    teraflops: float
    share_of_peak: float


def bench(
    network: str = "pocket",
    mode: str = "motion",
    *,
    frames: int = 8,
    steps: int = 50,
    repeats: int = 3,
    size: Mapping[str, int] | None = None,
    out: str | Path | None = None,
    say: Say = print,
) -> list[Row]:
    """Compares at equal dtype and, where ours is not float32 by default, with their default call.

    network: "pocket", or "sd15" for one in the shape of Stable Diffusion 1.5 with random weights: full size on a
        GPU, reduced on a CPU, or of the `size` given.
    mode: "motion", against TextToVideoZeroPipeline; "control", against the ControlNet pipeline with cross-frame
        attention; "video", with motion modules, against AnimateDiffPipeline; or "training", of those, against a plain
        loop, where a step is one of training.
    out: a JSON file for the rows.
    Raises InputError for an unknown network or mode, or too few steps.
    """
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r} to compare: expected {' or '.join(MODES)}")
    if network not in ("pocket", "sd15"):
        raise InputError(f"there is no network {network!r} to compare on: expected pocket or sd15")
    if steps < LEAST_STEPS or frames < 2 or repeats < 1:
        raise InputError(
            f"expected at least {LEAST_STEPS} steps, 2 frames and 1 repeat, got {steps}, {frames} and {repeats}"
        )
    dtype = str(choose_placement().dtype).removeprefix("torch.")
    pairs = {"equal dtype": dtype} | ({"their default": "float32"} if dtype != "float32" else {})
    with tempfile.TemporaryDirectory() as made:
        folder = POCKET if network == "pocket" else Path(made)
        if network == "sd15":
            save_stand_in(folder, **(size or (FULL_SIZE if torch.cuda.is_available() else REDUCED)))
        flops = _flops(MODES[mode]["ours"](folder, dtype), frames, steps)
        rows = [
            _compared(network, mode, folder, against, Setting(frames, steps, repeats, dtype, theirs), flops, say)
            for against, theirs in pairs.items()
        ]
    if out:
        with replace_atomically(Path(out)) as part:
            part.write_text(as_json(rows))
    return rows


def _compared(network: str, mode: str, folder: Path, against: str, setting: Setting, flops: float, say: Say) -> Row:
    dtypes = {"ours": setting.dtype, "theirs": setting.their_dtype}
    draws = {side: make(folder, dtypes[side]) for side, make in MODES[mode].items()}
    shown = {side: draw(setting.frames, LEAST_STEPS) for side, draw in draws.items()}  # and warms up
    times = _alternated(draws, setting, lambda side, took: say(f"{network}, {mode}, {against}: {side} {took:.2f} s"))
    ratios = [their / our for our, their in zip(times["ours"], times["theirs"], strict=True)]
    seconds = statistics.median(times["ours"])
    rate = flops / seconds
    peaks = {side: _peak_gb(mode, side, folder, dtypes[side], setting.frames) for side in MODES[mode]}
    return Row(
        network=network,
        mode=mode,
        against=against,
        setting=setting,
        seconds=seconds,
        their_seconds=statistics.median(times["theirs"]),
        speedup=statistics.median(ratios),
        slowest=min(ratios),
        fastest=max(ratios),
        difference=float(np.abs(np.subtract(shown["ours"], shown["theirs"], dtype=float)).mean()),
        peak_gb=peaks["ours"],
        their_peak_gb=peaks["theirs"],
        longer_peak_gb=_peak_gb(mode, "ours", folder, setting.dtype, _longer(mode) * setting.frames),
        teraflops=rate / 1e12,
        share_of_peak=rate / matrix_peak(setting.dtype),
    )


def _alternated(
    draws: Mapping[str, Draw], setting: Setting, tell: Callable[[str, float], None]
) -> dict[str, list[float]]:
    """Seconds of each side's videos; who begins changes from turn to turn."""
    times: dict[str, list[float]] = {side: [] for side in draws}
    for turn in range(setting.repeats):
        for side in sorted(draws, reverse=turn % 2 == 1):
            times[side].append(_seconds(partial(draws[side], setting.frames, setting.steps)))
            tell(side, times[side][-1])
    return times


def _longer(mode: str) -> int:
    """How many times the frames a long video has: training holds what all its frames left, so it has none."""
    return 1 if mode == "training" else LONGER


def as_json(rows: Sequence[Row]) -> str:
    """The rows for programs."""
    return json.dumps([{**row._asdict(), "setting": row.setting._asdict()} for row in rows], indent=2) + "\n"


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    return "\n".join(
        f"{row.network}, {row.mode}, {row.setting.frames} frames, {row.setting.steps} steps, {row.setting.dtype}, "
        f"against {row.against} ({row.setting.their_dtype})\n"
        f"  time     {row.seconds:.2f} s, theirs {row.their_seconds:.2f} s: {row.speedup:.2f} times as fast "
        f"({row.slowest:.2f} to {row.fastest:.2f} over {row.setting.repeats} repeats)\n"
        f"  memory   {row.peak_gb:.2f} GB, theirs {row.their_peak_gb:.2f} GB; "
        f"{_longer(row.mode) * row.setting.frames} frames take {row.longer_peak_gb / row.peak_gb:.2f} times ours\n"
        f"  machine  {row.teraflops:.3f} TFLOP/s, {row.share_of_peak:.0%} of what a matrix product reaches\n"
        f"  frames   differ by {row.difference:.2f} of 255 on average"
        for row in rows
    )


def matrix_peak(dtype: str) -> float:
    """Operations a second of the fastest of several large matrix products."""
    device = choose_placement().device
    a, b = (torch.randn(MATRIX, MATRIX, device=device).to(parse_dtype(dtype)) for _ in range(2))
    times = [_seconds(lambda: a @ b) for _ in range(TRIES)]
    return 2 * MATRIX**3 / min(times)


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    began = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _flops(draw: Draw, frames: int, steps: int) -> float:
    """Of a whole video. Two short ones are counted: each further step of all frames costs the same."""
    short, longer = (_counted(draw, frames, count) for count in (LEAST_STEPS, LEAST_STEPS + 1))
    return short + (steps - LEAST_STEPS) * (longer - short)


def _counted(draw: Draw, frames: int, steps: int) -> int:
    # torch leaves its CPU attention out; the counter wraps the formula anew, so it is given bare
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: inspect.unwrap(sdpa_flop)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads do escapes the counter, so nothing is evaluated at once
    try:
        with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
            draw(frames, steps)
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops()


def _peak_gb(mode: str, side: str, folder: Path, dtype: str, frames: int) -> float:
    """The peak memory of drawing a video, in a process of its own: a process never forgets its peak."""
    command = [sys.executable, "-m", memory.__name__, mode, side, str(folder), dtype, str(frames), str(LEAST_STEPS)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)["peak_gb"]
