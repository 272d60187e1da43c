"""Text2Video-Zero on the pocket world: the paper's ablation, and what this library claims.

The paper takes its two inventions away one by one and shows, in pictures, what is left: motion in the latents, and
attention to the first frame. Here the same is measured, on prompts that the pocket model was not trained on, with
what `kineograph generate` does by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from kineograph.data.request import Request
from kineograph.denoise import Denoise, guided
from kineograph.evaluation import metrics
from kineograph.evaluation.metrics import Frames
from kineograph.evaluation.protocol import Case, Record, keep, kept
from kineograph.evaluation.report import Claim, Mean, at_least, better, mean, within
from kineograph.evaluation.witnesses import Witnesses
from kineograph.ladder import leading
from kineograph.latents import Latents
from kineograph.methods.text2video_zero import levels, sample
from kineograph.models.attention import See, first, own
from kineograph.models.model import Model
from kineograph.motion import Warp, along, parse, shift
from kineograph.noise import independent
from kineograph.trajectory import Step, ddim, last

Walk = Callable[[Denoise, Latents, Sequence[float], Warp], Iterator[Step]]

DEFAULT = Request(prompt="any")
AT_ONCE = 4  # videos
SHOWN = 3  # cases whose frames go into the report


class Arm(NamedTuple):
    """One way to draw the frames: which frames they see, and how they walk."""

    see: See
    walk: Walk


def apart(look: Denoise, noise: Latents, sigmas: Sequence[float], warp: Warp) -> Iterator[Step]:
    """Every frame from its own noise."""
    return ddim(look, sigmas[0] * noise, sigmas)


def moved(look: Denoise, noise: Latents, sigmas: Sequence[float], warp: Warp) -> Iterator[Step]:
    """Every frame from the first, as the camera sees it."""
    spread_to, move_at = levels(noise.shape, highest=sigmas[0])
    return sample(look, noise, sigmas, warp=warp, move_at=move_at, spread_to=spread_to)


ARMS = {
    "neither": Arm(own, apart),
    "motion": Arm(own, moved),
    "attention": Arm(first, apart),
    "both": Arm(first, moved),
}


def filmed(model: Model, arm: Arm, cases: Sequence[Case], asked: Request) -> UInt8[np.ndarray, "b f h w 3"]:
    """The videos of consecutive cases, drawn in one of the ways and else as asked."""
    seed, shape = cases[0].seed, (len(cases), *model.latent_shape(*model.default_size))
    sigmas = leading(model.schedule.sigmas, asked.num_inference_steps)
    noise = independent(seed, range(asked.num_frames), shape).to(model.device)
    warp = along(parse(asked.motion), frames=asked.num_frames, seed=seed)
    texts = [case.prompt for case in cases], [asked.negative_prompt] * len(cases)
    told, blank = (model.bind(model.prompt(each), see=arm.see) for each in texts)
    x0 = last(arm.walk(guided(told, blank, asked.guidance_scale), noise, sigmas, warp))
    return (model.decode(x0) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()


def measured(frames: Frames, case: Case, witnesses: Witnesses, asked: Request) -> dict[str, float]:
    """All that is measured of one video."""
    seen, shifts = witnesses.look(frames), metrics.displacements(frames)
    found = {
        **dict(metrics.prompted(seen, thing=case.thing, colour=case.colour, scene=case.scene)),
        **dict(metrics.identity(seen)),
        **dict(metrics.background(frames, shifts)),
        **dict(metrics.motion(frames, shifts)),
        **dict(metrics.text_alignment(witnesses.alike(frames, case.prompt))),
    }
    wanted = -np.array(shift(parse(asked.motion), 1, asked.num_frames))  # the content goes against the camera
    got = np.array([found["right"], found["down"]])
    found["motion"] = float(got @ wanted / (wanted @ wanted))
    found["off course"] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    return found


def records(
    model: Model, witnesses: Witnesses, cases: Sequence[Case], asked: Request, folder: Path, stamp: Record
) -> Iterator[Record]:
    """A record of every case and arm, those of an earlier run first; the others are kept as they are made.

    stamp: what every record says besides; records of an earlier run count when their "protocol" is the same.
    """
    file = folder / "cases.jsonl"
    wanted = {(arm, case.number) for arm in ARMS for case in cases}
    earlier = {(each["arm"], each["case"]): each for each in kept(file, stamp["protocol"])}
    yield from (record for key, record in earlier.items() if key in wanted)
    for start in range(0, len(cases), AT_ONCE):
        batch = cases[start : start + AT_ONCE]
        for name, arm in ARMS.items():
            if all((name, case.number) in earlier for case in batch):
                continue
            for case, frames in zip(batch, filmed(model, arm, batch, asked), strict=True):
                if (name, case.number) in earlier:
                    continue
                record = {**stamp, "arm": name, "case": case.number, "prompt": case.prompt}
                record |= measured(frames, case, witnesses, asked)
                if case.number < SHOWN:
                    Image.fromarray(np.concatenate(list(frames), axis=1)).save(folder / strip(case.number, name))
                keep(file, record)
                yield record


def strip(number: int, arm: str) -> str:
    """The file name of the frames of a case side by side."""
    return f"{number}-{arm}.png"


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the issue and the paper claim, each with its bar."""
    of = {name: _by_case(made, name) for name in ARMS}
    right = [each for each in of["both"] if each["first right"]]
    return [
        at_least("pictures show the thing", _column(of["neither"], "thing"), 0.90),
        at_least("pictures show the colour", _column(of["neither"], "colour"), 0.95),
        at_least("pictures show the scene", _column(of["neither"], "scene"), 0.97),
        at_least("same thing and colour in every frame, first frame right", _column(right, "always the same"), 0.95),
        within("measured motion over the one asked for", _column(of["both"], "motion"), 0.85, 1.15),
        _ablation("individual", "attention keeps the individual", of, "attention", "neither"),
        _ablation("individual", "attention keeps the individual, with motion", of, "both", "motion"),
        _ablation(
            "background", "motion in the latents steadies the background, with attention", of, "attention", "both"
        ),
        _ablation(
            "off course", "motion in the latents makes the asked motion, with attention", of, "attention", "both"
        ),
    ]


def _ablation(metric: str, name: str, of: Mapping[str, Sequence[Record]], more: str, less: str) -> Claim:
    return better(f"{name}: {metric}, {more} - {less}", _column(of[more], metric), _column(of[less], metric))


ROWS = {
    "thing": "frames with the prompt's thing",
    "colour": "frames with its colour",
    "scene": "frames with its scene",
    "same thing": "frames with the first frame's thing",
    "same colour": "frames with the first frame's colour",
    "always the same": "videos with one thing and colour throughout",
    "individual": "likeness of the individual to the first frame's",
    "background": "background's difference from the first frame's (of 255, less is better)",
    "text": "CLIP score (100 cos)",
    "motion": "motion over the one asked for",
    "off course": "motion's distance from the one asked for (0 is as asked)",
}


def table(made: Sequence[Record]) -> dict[str, dict[str, Mean]]:
    """Every metric of every arm."""
    return {row: {name: mean(_column(_by_case(made, name), metric)) for name in ARMS} for metric, row in ROWS.items()}


def _by_case(made: Sequence[Record], arm: str) -> list[Record]:
    return sorted((record for record in made if record["arm"] == arm), key=lambda record: record["case"])


def _column(made: Sequence[Record], metric: str) -> list[float]:
    return [record[metric] for record in made]
