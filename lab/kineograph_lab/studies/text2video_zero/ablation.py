"""Text2Video-Zero on the pocket world: the paper's ablation, and what this library claims.

The paper takes its two inventions away one by one and shows, in pictures, what is left: motion in the latents, and
attention to the first frame. Here the same is measured, on prompts that the pocket model was not trained on, with
what `kineograph generate` does by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from kineograph.denoise import Denoise, classifier_free_guidance
from kineograph.latents import Latents
from kineograph.methods.text2video_zero import paper_sigmas, sample
from kineograph.metrics.features import Frames
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import FrameAttention, first, own
from kineograph.motion import Warp, camera_offset, frame_warp, parse
from kineograph.noise import independent
from kineograph.request import MOTION, NUM_FRAMES, Request
from kineograph.samplers import Step, ddim, final_latents
from kineograph.sigmas import leading
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.report import Claim, at_least, better, within
from kineograph_lab.studies.study import Study, column

Walk = Callable[[Denoise, Latents, Sequence[float], Warp], Iterator[Step]]

DEFAULT = Request(prompt="any", num_frames=NUM_FRAMES, motion=MOTION)
USED = ("num_frames", "num_inference_steps", "guidance_scale", "negative_prompt", "motion")
AT_ONCE = 4  # videos


class Arm(NamedTuple):
    """One way to draw the frames: which frames they see, and how they walk."""

    see: FrameAttention
    walk: Walk


def apart(look: Denoise, noise: Latents, sigmas: Sequence[float], warp: Warp) -> Iterator[Step]:
    """Every frame from its own noise."""
    return ddim(look, sigmas[0] * noise, sigmas)


def moved(look: Denoise, noise: Latents, sigmas: Sequence[float], warp: Warp) -> Iterator[Step]:
    """Every frame from the first, as the camera sees it."""
    renoise_to, warp_at = paper_sigmas(noise.shape, highest=sigmas[0])
    return sample(look, noise, sigmas, warp=warp, warp_at=warp_at, renoise_to=renoise_to)


ARMS = {
    "neither": Arm(own, apart),
    "motion": Arm(own, moved),
    "attention": Arm(first, apart),
    "both": Arm(first, moved),
}


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The paper's ablation."""
    asked = replace(DEFAULT, num_inference_steps=steps or DEFAULT.num_inference_steps)
    return Study(
        name="cases",
        title="Moved by a camera: what each of the two inventions does",
        settings={name: getattr(asked, name) for name in USED},
        cases=held_out_cases(count),
        arms={name: partial(filmed, model, name, asked=asked) for name in ARMS},
        measured=lambda frames, case: measured(frames, case, witnesses, asked),
        claims=claims,
        rows=ROWS,
        at_once=AT_ONCE,
    )


def filmed(model: Model, name: str, cases: Sequence[Case], asked: Request) -> list[Frames]:
    """The videos of consecutive cases, drawn in one of the ways and else as asked."""
    arm = ARMS[name]
    count = asked.num_frames or NUM_FRAMES
    seed, shape = cases[0].seed, (len(cases), *model.latent_shape(*model.default_size))
    sigmas = leading(model.schedule.sigmas, asked.num_inference_steps)
    noise = independent(seed, range(count), shape).to(model.device)
    warp = frame_warp(parse(asked.motion or MOTION), frames=count, seed=seed)
    texts = [case.prompt for case in cases], [asked.negative_prompt] * len(cases)
    told, blank = (model.bind(model.prompt(each), frame_attention=arm.see) for each in texts)
    x0 = final_latents(arm.walk(classifier_free_guidance(told, blank, asked.guidance_scale), noise, sigmas, warp))
    return list((model.decode(x0) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy())


def measured(frames: Frames, case: Case, witnesses: Witnesses, asked: Request) -> dict[str, float]:
    """All that is measured of one video."""
    seen, shifts = witnesses.look(frames), frame_metrics.frame_shifts(frames)
    found = {
        **dict(frame_metrics.prompt_agreement(seen, thing=case.thing, colour=case.colour, scene=case.scene)),
        **dict(frame_metrics.identity_consistency(seen)),
        **dict(frame_metrics.background_difference(frames, shifts)),
        **dict(frame_metrics.global_motion(frames, shifts)),
        **dict(frame_metrics.clip_score(witnesses.alike(frames, case.prompt))),
    }
    wanted: np.ndarray = -np.array(
        camera_offset(parse(asked.motion or MOTION), 1, len(frames))
    )  # the content goes against the camera
    got = np.array([found["right"], found["down"]])
    found["motion"] = float(got @ wanted / (wanted @ wanted))
    found["off course"] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    return found


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the issue and the paper claim, each with its bar."""
    right = [each for each in made if each["first right"]]
    return [
        at_least("pictures show the thing", column(made, "neither", "thing"), 0.90),
        at_least("pictures show the colour", column(made, "neither", "colour"), 0.95),
        at_least("pictures show the scene", column(made, "neither", "scene"), 0.97),
        at_least(
            "same thing and colour in every frame, first frame right", column(right, "both", "always the same"), 0.95
        ),
        within("measured motion over the one asked for", column(made, "both", "motion"), 0.85, 1.15),
        _ablation("individual", "attention keeps the individual", made, "attention", "neither"),
        _ablation("individual", "attention keeps the individual, with motion", made, "both", "motion"),
        _ablation(
            "background", "motion in the latents steadies the background, with attention", made, "attention", "both"
        ),
        _ablation(
            "off course", "motion in the latents makes the asked motion, with attention", made, "attention", "both"
        ),
    ]


def _ablation(metric: str, name: str, made: Sequence[Record], more: str, less: str) -> Claim:
    return better(f"{name}: {metric}, {more} - {less}", column(made, more, metric), column(made, less, metric))


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
