"""Peak memory of one side of a benchmark; its own process, since a process never releases its peak.

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


def print_peak_memory(mode: str, side: str, folder: str, dtype: str, frames: str, steps: str) -> None:
    """Generate one video and print {"peak_gb": ...}: of the GPU if there is one, else of the process."""
    MODES[mode][side](Path(folder), dtype)(int(frames), int(steps))
    sys.stdout.write(json.dumps({"peak_gb": peak_memory() / 1e9}) + "\n")


def peak_memory() -> int:
    """Return the peak memory so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    print_peak_memory(*sys.argv[1:])
