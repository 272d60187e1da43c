"""What VideoElevator costs, in evaluations and in seconds: `python benchmarks/video_elevator.py [--repeats 3]`.

The pocket model with the video model of bad films, as `kineograph generate --video-model` has them, beside as many
evaluations as the released code makes, the image model alone and the video model alone. Rows go to
benchmarks/video_elevator.json.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from kineograph import Video, generate, load
from kineograph.denoise import Denoise
from kineograph.latents import Latents
from kineograph.media.files import replace_atomically
from kineograph.methods import video_elevator
from kineograph.methods.video_elevator import Correct, correct_drift
from kineograph.models.model import Model
from kineograph.request import ElevatorOptions
from kineograph.samplers import Step

RELEASED = "released code's evaluations"
ASKED = {"num_frames": 8, "num_inference_steps": 50, "seed": 0}
Draw = Callable[[], Video]


def wasteful(look: Denoise) -> Correct:
    """Drift that is corrected by predictions of both branches at every step, as the released code does."""
    corrected = correct_drift(look)

    def correct(path: Sequence[Step], sigma: float, to: float) -> Latents | float:
        if path and path[-1].sigma >= sigma:
            for _ in range(1 if path[-1].sigma - sigma < 1e-4 * sigma else 2):  # ours makes the other
                look(path[-1].x, sigma)
        return corrected(path, sigma, to)

    return correct


def ways(image: Model, video: Model) -> dict[str, Draw]:
    both = partial(generate, image, "a red fish", video_model=video, method="video-elevator", **ASKED)
    corrected = partial(both, elevation=ElevatorOptions(drift_correction=True))
    return {
        "image model alone": partial(both, elevation=ElevatorOptions(refine_at=())),
        "video model alone": partial(generate, video, "a red fish", **ASKED),
        "here": both,
        "here, inversion by all steps": partial(both, elevation=ElevatorOptions(inversion_steps=None)),
        "here, drift made up for": corrected,
        RELEASED: mock.patch.object(video_elevator, "correct_drift", wasteful)(corrected),
    }


def counted(models: Sequence[Model], draw: Draw) -> tuple[float, np.ndarray]:
    """Evaluations of each frame by all of the models, where a guided one counts twice, and the frames."""
    seen = Counter[str]()
    hooks = [
        model.net.image_unet.conv_in.register_forward_pre_hook(lambda _, given: seen.update(frames=len(given[0])))
        for model in models
    ]
    frames = draw().frames.astype(float)
    for hook in hooks:
        hook.remove()
    return seen["frames"] / len(frames), frames


def timed(draws: Mapping[str, Draw], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(repeats):
        for name, draw in draws.items():
            began = time.perf_counter()
            draw()
            taken[name].append(time.perf_counter() - began)
    return taken


class Row(NamedTuple):
    """`evaluations` of each frame, median `seconds`, and beside the released code's evaluations: the median `share` of
    their seconds, and the mean `difference` from the frames that they draw, in grey levels of 255."""

    way: str
    evaluations: float
    seconds: float
    share: float
    difference: float


def rows(repeats: int) -> list[Row]:
    image, video = load(), load("pocket-video-degraded")
    draws = ways(image, video)
    drawn = {name: counted([image, video], draw) for name, draw in draws.items()}
    taken = timed(draws, repeats)
    return [
        Row(
            way=name,
            evaluations=evaluations,
            seconds=statistics.median(taken[name]),
            share=statistics.median(a / b for a, b in zip(taken[name], taken[RELEASED], strict=True)),
            difference=float(np.abs(frames - drawn[RELEASED][1]).mean()),
        )
        for name, (evaluations, frames) in drawn.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    made = rows(asked.repeats)
    with replace_atomically(asked.out) as part:
        part.write_text(
            json.dumps({**ASKED, "repeats": asked.repeats, "rows": [row._asdict() for row in made]}, indent=2) + "\n"
        )
    for row in made:
        print("{}: {:g} evaluations, {:.1f} s, {:.0%}, {:.1f} of 255".format(*row))
