"""`kineograph bench`: speed and memory of this library against diffusers, with the same weights."""

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
from kineograph_lab.bench.text2video_zero import WARP_AFTER, GenerateFrames, save_random_pipeline

MIN_STEPS = WARP_AFTER + 2
FULL_SIZE = {"channels": 320, "side": 64, "text_layers": 12}
REDUCED = {"channels": 128, "side": 16, "text_layers": 2}  # minutes on two CPU cores
LONG_VIDEO_FACTOR = 8  # times the frames, for the memory of long videos
MATRIX_SIZE, MATRIX_REPEATS = 2048, 12
Log = Callable[[str], None]


class Setting(NamedTuple):
    """Size of the videos, repeats, and both sides' dtypes."""

    frames: int
    steps: int
    repeats: int
    dtype: str
    their_dtype: str


class Row(NamedTuple):
    """One comparison. Seconds are medians over the repeats; `speedup` is the median of the repeats' ratios.

    mode            "motion": Text2Video-Zero; "control": with a ControlNet; "video": with motion modules; "training":
                    training steps of motion modules
    slowest         least of the repeats' ratios; `fastest` the greatest
    difference      mean difference of both sides' frames, in grey levels of 255
    longer_peak_gb  our peak with LONG_VIDEO_FACTOR times the frames
    teraflops       TFLOP/s of ours, in matrix products and convolutions
    share_of_peak   of the rate that a large matrix product reaches in our dtype
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
    log: Log = print,
) -> list[Row]:
    """Compare both sides at equal dtype and, unless ours is float32 by default, with diffusers' default call as well.

    Args:
        network: "pocket", or "sd15": the architecture of Stable Diffusion 1.5 with random weights, full size on a GPU,
            reduced on a CPU, or of the given `size`.
        mode: "motion", against TextToVideoZeroPipeline; "control", against the ControlNet pipeline with cross-frame
            attention; "video", with motion modules, against AnimateDiffPipeline; or "training", of those, against a
            plain loop, where a step is a training step.
        size: parameters of `save_random_pipeline`.
        out: JSON file for the rows.
        log: called with a line for every timed video.

    Raises InputError for an unknown network or mode, or too few steps.
    """
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r} to compare: expected {' or '.join(MODES)}")
    if network not in ("pocket", "sd15"):
        raise InputError(f"there is no network {network!r} to compare on: expected pocket or sd15")
    if steps < MIN_STEPS or frames < 2 or repeats < 1:
        raise InputError(
            f"expected at least {MIN_STEPS} steps, 2 frames and 1 repeat, got {steps}, {frames} and {repeats}"
        )
    dtype = str(choose_placement().dtype).removeprefix("torch.")
    pairs = {"equal dtype": dtype} | ({"their default": "float32"} if dtype != "float32" else {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = POCKET if network == "pocket" else Path(temporary)
        if network == "sd15":
            save_random_pipeline(folder, **(size or (FULL_SIZE if torch.cuda.is_available() else REDUCED)))
        flops = _count_flops(MODES[mode]["ours"](folder, dtype), frames, steps)
        rows = [
            _compare(network, mode, folder, against, Setting(frames, steps, repeats, dtype, theirs), flops, log)
            for against, theirs in pairs.items()
        ]
    if out:
        with replace_atomically(Path(out)) as part:
            part.write_text(rows_to_json(rows))
    return rows


def _compare(network: str, mode: str, folder: Path, against: str, setting: Setting, flops: float, log: Log) -> Row:
    dtypes = {"ours": setting.dtype, "theirs": setting.their_dtype}
    sides = {side: make(folder, dtypes[side]) for side, make in MODES[mode].items()}
    frames = {side: generate(setting.frames, MIN_STEPS) for side, generate in sides.items()}  # warms up as well
    times = _time_alternating(
        sides, setting, lambda side, took: log(f"{network}, {mode}, {against}: {side} {took:.2f} s")
    )
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
        difference=float(np.abs(np.subtract(frames["ours"], frames["theirs"], dtype=float)).mean()),
        peak_gb=peaks["ours"],
        their_peak_gb=peaks["theirs"],
        longer_peak_gb=_peak_gb(mode, "ours", folder, setting.dtype, _long_video_factor(mode) * setting.frames),
        teraflops=rate / 1e12,
        share_of_peak=rate / matrix_peak(setting.dtype),
    )


def _time_alternating(
    sides: Mapping[str, GenerateFrames], setting: Setting, on_time: Callable[[str, float], None]
) -> dict[str, list[float]]:
    """Return the seconds of each side's videos; the side that starts alternates."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(setting.repeats):
        for side in sorted(sides, reverse=turn % 2 == 1):
            times[side].append(_time(partial(sides[side], setting.frames, setting.steps)))
            on_time(side, times[side][-1])
    return times


def _long_video_factor(mode: str) -> int:
    """Return the length of a long video in multiples of the frames: 1 for training, which stores all activations."""
    return 1 if mode == "training" else LONG_VIDEO_FACTOR


def rows_to_json(rows: Sequence[Row]) -> str:
    """Return the rows as JSON."""
    return json.dumps([{**row._asdict(), "setting": row.setting._asdict()} for row in rows], indent=2) + "\n"


def format_rows(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    return "\n".join(
        f"{row.network}, {row.mode}, {row.setting.frames} frames, {row.setting.steps} steps, {row.setting.dtype}, "
        f"against {row.against} ({row.setting.their_dtype})\n"
        f"  time     {row.seconds:.2f} s, theirs {row.their_seconds:.2f} s: {row.speedup:.2f} times as fast "
        f"({row.slowest:.2f} to {row.fastest:.2f} over {row.setting.repeats} repeats)\n"
        f"  memory   {row.peak_gb:.2f} GB, theirs {row.their_peak_gb:.2f} GB; "
        f"{_long_video_factor(row.mode) * row.setting.frames} frames take "
        f"{row.longer_peak_gb / row.peak_gb:.2f} times ours\n"
        f"  machine  {row.teraflops:.3f} TFLOP/s, {row.share_of_peak:.0%} of what a matrix product reaches\n"
        f"  frames   differ by {row.difference:.2f} of 255 on average"
        for row in rows
    )


def matrix_peak(dtype: str) -> float:
    """Return the FLOP/s of the fastest of several large matrix products."""
    device = choose_placement().device
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(parse_dtype(dtype)) for _ in range(2))
    times = [_time(lambda: a @ b) for _ in range(MATRIX_REPEATS)]
    return 2 * MATRIX_SIZE**3 / min(times)


def _time(run: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _count_flops(generate: GenerateFrames, frames: int, steps: int) -> float:
    """Return the FLOPs of a video, extrapolated from two short ones: each further step costs the same."""
    short, longer = (_run_flop_counter(generate, frames, count) for count in (MIN_STEPS, MIN_STEPS + 1))
    return short + (steps - MIN_STEPS) * (longer - short)


def _run_flop_counter(generate: GenerateFrames, frames: int, steps: int) -> int:
    # torch does not count its CPU attention; the counter wraps the formula itself, so it gets it unwrapped
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: inspect.unwrap(sdpa_flop)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter does not see other threads
    try:
        with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
            generate(frames, steps)
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops()


def _peak_gb(mode: str, side: str, folder: Path, dtype: str, frames: int) -> float:
    """Measure the peak memory of generating a video, in a process of its own."""
    command = [sys.executable, "-m", memory.__name__, mode, side, str(folder), dtype, str(frames), str(MIN_STEPS)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)["peak_gb"]
