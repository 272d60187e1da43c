"""Cost of VideoElevator in evaluations and seconds: `python lab/benchmarks/video_elevator.py [--repeats 3]`.

The pocket model with the video model of degraded clips, as `kineograph generate --video-model` runs them, compared with
as many evaluations as the released code makes, the image model alone and the video model alone. Rows are written to
lab/benchmarks/video_elevator.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from kineograph import generate, load
from kineograph.denoise import Denoise
from kineograph.latents import Latents
from kineograph.media.files import replace_atomically
from kineograph.methods import video_elevator
from kineograph.methods.video_elevator import Correct, correct_drift
from kineograph.models.model import Model
from kineograph.samplers import Step
from kineograph_lab.studies.sample import GenerateVideo, count_evaluations

RELEASED = "released code's evaluations"
REQUEST = {"num_frames": 8, "num_inference_steps": 50, "seed": 0}


def correct_drift_as_released(denoise: Denoise) -> Correct:
    """Return a drift correction by predictions of both branches at every step, as in the released code."""
    corrected = correct_drift(denoise)

    def correct(path: Sequence[Step], sigma: float, to: float) -> Latents | float:
        if path and path[-1].sigma >= sigma:
            for _ in range(1 if path[-1].sigma - sigma < 1e-4 * sigma else 2):  # ours makes the second
                denoise(path[-1].x, sigma)
        return corrected(path, sigma, to)

    return correct


def variants(image: Model, video: Model) -> dict[str, GenerateVideo]:
    """Return the functions that generate a video, by name."""
    both = partial(generate, image, "a red fish", video_model=video, method="video-elevator", **REQUEST)
    corrected = partial(both, drift_correction=True)
    return {
        "image model alone": partial(both, refine_at=()),
        "video model alone": partial(generate, video, "a red fish", **REQUEST),
        "here": both,
        "here, inversion by all steps": partial(both, inversion_steps=0),
        "here, drift made up for": corrected,
        RELEASED: mock.patch.object(video_elevator, "correct_drift", correct_drift_as_released)(corrected),
    }


def time_videos(videos: Mapping[str, GenerateVideo], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each video, generated in turns."""
    times: dict[str, list[float]] = {name: [] for name in videos}
    for _ in range(repeats):
        for name, generate_video in videos.items():
            start = time.perf_counter()
            generate_video()
            times[name].append(time.perf_counter() - start)
    return times


class Row(NamedTuple):
    """Evaluations per frame and median seconds; share of the released code's seconds (median), and mean difference from
    its frames, in grey levels of 255."""

    way: str
    evaluations: float
    seconds: float
    share: float
    difference: float


def measure_rows(repeats: int) -> list[Row]:
    """Measure all variants."""
    image, video = load(), load("pocket-video-degraded")
    videos = variants(image, video)
    counts = {name: count_evaluations([image, video], generate_video) for name, generate_video in videos.items()}
    times = time_videos(videos, repeats)
    return [
        Row(
            way=name,
            evaluations=evaluations,
            seconds=statistics.median(times[name]),
            share=statistics.median(a / b for a, b in zip(times[name], times[RELEASED], strict=True)),
            difference=float(np.abs(np.subtract(frames, counts[RELEASED][1], dtype=float)).mean()),
        )
        for name, (evaluations, frames) in counts.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    rows = measure_rows(arguments.repeats)
    with replace_atomically(arguments.out) as part:
        part.write_text(
            json.dumps({**REQUEST, "repeats": arguments.repeats, "rows": [row._asdict() for row in rows]}, indent=2)
            + "\n"
        )
    for row in rows:
        print("{}: {:g} evaluations, {:.1f} s, {:.0%}, {:.1f} of 255".format(*row))
