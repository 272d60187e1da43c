"""Rows of a whole run in a process of its own: from the command to the first video, and the memory of long videos."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from kineograph.generation.api import generate
from kineograph.models.loading.load import load
from kineograph_lab.bench.memory import measure_peak
from kineograph_lab.bench.setting import Setting
from kineograph_lab.bench.timing import time_run

PROMPT, SEED = "a red fish swimming over the sea", "7"
FEW, MANY, STEPS = 16, 1000, 2  # frames of both videos; steps, on which the peak does not depend


def time_first_video(setting: Setting) -> dict[str, Any]:
    """Return a row of `kineograph generate` with the built-in model, with its defaults: from command to file.

    A first run, which is not timed, fills the caches of the file system and of converted networks.
    """
    few = ["--num-frames", "2", "--num-inference-steps", "1"] if setting.quick else []
    with tempfile.TemporaryDirectory() as temporary:

        def run(number: int) -> None:
            out = str(Path(temporary) / f"{number}.mp4")
            command = [sys.executable, "-m", "kineograph", "generate", PROMPT, "--seed", SEED, "--output", out, *few]
            subprocess.run(command, check=True, capture_output=True)

        run(0)
        seconds = [time_run(partial(run, number)) for number in range(1, setting.repeats + 1)]
    return {
        "speedup": None, "low": None, "high": None, "difference": None, "repeats": len(seconds),
        "seconds": statistics.median(seconds), "least_seconds": min(seconds), "most_seconds": max(seconds),
        "command": f'kineograph generate "{PROMPT}" --seed {SEED} --output fish.mp4',
    }  # fmt: skip


def compare_memory(setting: Setting) -> dict[str, Any]:
    """Return a row of the peak memory of a long video, saved to a file, over that of a short one."""
    few, many, steps = (2, 4, 1) if setting.quick else (FEW, MANY, STEPS)
    short, long = (measure_peak(save_video, frames, steps, setting.engine) for frames in (few, many))
    return {
        "speedup": None, "low": None, "high": None, "difference": None, "memory_gb": long, "their_memory_gb": short,
        "memory_ratio": long / short, "frames": many, "steps": steps,
    }  # fmt: skip


def save_video(frames: int, steps: int, engine: Any) -> None:
    """Generate a video with the built-in model and save it, in a process whose memory is measured."""
    video = generate(
        load(), PROMPT, seed=int(SEED), num_frames=frames, num_inference_steps=steps, engine=engine
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        video.save(Path(temporary) / "video.mp4")
