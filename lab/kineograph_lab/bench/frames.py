"""Rows whose two sides make the same frames: this library and diffusers, with equal weights, noise, sigmas and dtype."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kineograph.metrics.features import Frames
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab.bench import animatediff, controlnet, text2video_zero, training
from kineograph_lab.bench.memory import measure_peak
from kineograph_lab.bench.setting import Setting
from kineograph_lab.bench.text2video_zero import TINY, WARP_AFTER, Sides, save_random_pipeline
from kineograph_lab.bench.timing import Variant, find_fastest, is_equal_output, summarise_pairs, time_pairs, time_run

MIN_STEPS = WARP_AFTER + 2  # of trials, and of the runs whose memory is measured
MAX_ROUNDING = 0.5  # grey levels: mean difference of equal output in float32


class Mode(NamedTuple):
    """Both sides, and the size of what they make."""

    sides: Sides
    frames: int
    steps: int


MODES: Mapping[str, Mode] = {
    "text2video-zero": Mode(text2video_zero.SIDES, 8, 50),
    "controlnet": Mode(controlnet.SIDES, 8, 50),
    "animatediff": Mode(animatediff.SIDES, 8, 50),
    "training": Mode(training.SIDES, 8, 20),
}


def compare_frames(mode: str, dtype: str, setting: Setting) -> dict[str, Any]:
    """Return a row of a mode in a dtype: speed, memory, and the differences to diffusers' frames in float32.

    Differences are of the timed videos, in grey levels of 255.
    """
    sides, frames, steps = MODES[mode]
    if setting.quick:
        frames, steps = 2, MIN_STEPS
    with _folder(setting) as folder:

        def measure(variant: Variant) -> float:
            setting.log(f"trying {variant}")
            return time_short(sides, folder, variant, frames)

        # torch 2.13 crashes in the backward pass of tiny networks with plain attention, bfloat16 and channels_last
        trials = find_fastest(measure, [dtype], formats=(False,) if setting.quick else (False, True))
        variant = trials[0].variant
        setting.log(f"diffusers is fastest with {variant}")
        reference = sides.load_theirs(folder, Variant("float32", torch.get_num_threads()))(frames, steps)
        ours = partial(sides.load_ours(folder, dtype, setting.engine), frames, steps)
        theirs = partial(sides.load_theirs(folder, variant), frames, steps)
        own, their_own = (
            mean_grey_difference(ours(), reference),
            mean_grey_difference(theirs(), reference),
        )  # warms up as well
        pairs = time_pairs(partial(time_run, ours), partial(time_run, theirs), setting.repeats)
        size = (str(folder), frames, MIN_STEPS)
        return {
            **summarise_pairs(pairs),
            "difference": own,
            "their_difference": their_own,
            "equal_output": is_equal_output(own, their_own, dtype, MAX_ROUNDING),
            "memory_gb": measure_peak(run_ours, mode, dtype, setting.engine, *size),
            "their_memory_gb": measure_peak(run_theirs, mode, list(variant), *size),
            "dtype": dtype,
            "frames": frames,
            "steps": steps,
            "tried": [{**trial.variant._asdict(), "seconds": trial.seconds} for trial in trials],
        }


def time_short(sides: Sides, folder: Path, variant: Variant, frames: int) -> float:
    """Return the seconds of a second video of diffusers with few steps."""
    generate = partial(sides.load_theirs(folder, variant), frames, MIN_STEPS)
    generate()
    return time_run(generate)


def mean_grey_difference(ours: Frames, theirs: Frames) -> float:
    """Return the mean difference of two videos in grey levels."""
    return float(np.abs(np.subtract(ours, theirs, dtype=float)).mean())


def run_ours(mode: str, dtype: str, engine: Any, folder: str, frames: int, steps: int) -> None:
    """Make a video with this library, in a process whose memory is measured."""
    MODES[mode].sides.load_ours(Path(folder), dtype, engine)(frames, steps)


def run_theirs(mode: str, variant: list[Any], folder: str, frames: int, steps: int) -> None:
    """Make a video with diffusers, in a process whose memory is measured."""
    MODES[mode].sides.load_theirs(Path(folder), Variant(*variant))(frames, steps)


@contextmanager
def _folder(setting: Setting) -> Iterator[Path]:
    """Yield the folder of the weights: the pocket model's, or a tiny random pipeline's."""
    if not setting.quick:
        yield POCKET
        return
    with tempfile.TemporaryDirectory() as temporary:
        save_random_pipeline(Path(temporary), **TINY)
        yield Path(temporary)
