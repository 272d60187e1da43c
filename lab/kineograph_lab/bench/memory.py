"""Draws one video in a process of its own and prints the memory that this took.

python -m kineograph_lab.bench.memory MODE SIDE FOLDER DTYPE FRAMES STEPS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from kineograph_lab.bench import animatediff, controlnet, text2video_zero, training

MODES = {
    "motion": text2video_zero.SIDES,
    "control": controlnet.SIDES,
    "video": animatediff.SIDES,
    "training": training.SIDES,
}


def main(mode: str, side: str, folder: str, dtype: str, frames: str, steps: str) -> None:
    """Prints {"peak_gb": ...}: of the GPU where there is one, else of the whole process."""
    MODES[mode][side](Path(folder), dtype)(int(frames), int(steps))
    sys.stdout.write(json.dumps({"peak_gb": peak() / 1e9}) + "\n")


def peak() -> int:
    """The most bytes that were in use at once so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # not on every system

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    main(*sys.argv[1:])
