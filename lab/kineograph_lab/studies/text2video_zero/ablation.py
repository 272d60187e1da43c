"""Text2Video-Zero's ablation on the pocket world: motion in the latents, and attention to the first frame.

The paper removes each of the two and shows the frames. This study measures the effect, on prompts that the pocket
model was not trained on, with the defaults of `kineograph generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from kineograph.denoise import Denoise, classifier_free_guidance
from kineograph.latents import Latents
from kineograph.media.video import Video
from kineograph.methods.text2video_zero import DEFAULT_CAMERA, paper_sigmas, sample
from kineograph.methods.text2video_zero import METHOD as TEXT2VIDEO_ZERO
from kineograph.metrics.features import Frames
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import FrameAttention, first, own
from kineograph.motion import Warp, camera_offset, frame_warp, parse
from kineograph.noise import independent
from kineograph.options import defaults
from kineograph.request import NUM_FRAMES, USUAL_GUIDANCE, SharedOptions
from kineograph.samplers import Step, ddim, final_latents
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import (
    CLIP_MARGIN,
    Claim,
    claim_as_sharp,
    claim_at_least,
    claim_better,
    claim_not_below,
    claim_within,
)
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.study import PROMPT_ROWS, Analysis, Study, metric_values
from kineograph_lab.world.world import render

SampleSteps = Callable[[Denoise, Latents, Latents, Sequence[float], Warp], Iterator[Step]]

DEFAULTS = {**defaults(SharedOptions), **USUAL_GUIDANCE, "num_frames": NUM_FRAMES, "motion": DEFAULT_CAMERA}
RECORDED_OPTIONS = ("num_frames", "num_inference_steps", "guidance_scale", "negative_prompt", "motion")
BATCH_SIZE = 4  # videos


class Arm(NamedTuple):
    """Frame attention and sampling of one arm."""

    frame_attention: FrameAttention
    sample: SampleSteps


def sample_independently(
    denoise: Denoise, start: Latents, noise: Latents, sigmas: Sequence[float], warp: Warp
) -> Iterator[Step]:
    """Sample every frame from noise of its own. start: the noise, scaled as the scheduler scales initial noise."""
    return ddim(denoise, sigmas[0] * start, sigmas)


def sample_warped(
    denoise: Denoise, start: Latents, noise: Latents, sigmas: Sequence[float], warp: Warp
) -> Iterator[Step]:
    """Sample every frame from the first frame's latents, warped by the camera motion."""
    noise = torch.cat([start[:, :1], noise[:, 1:]], dim=1)
    renoise_to, warp_at = paper_sigmas(noise.shape, highest=sigmas[0])
    return sample(denoise, noise, sigmas, warp=warp, warp_at=warp_at, renoise_to=renoise_to)


ARMS = {
    "neither": Arm(own, sample_independently),
    "motion": Arm(own, sample_warped),
    "attention": Arm(first, sample_independently),
    "both": Arm(first, sample_warped),
}


def ablation_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of neither, either and both of the two parts."""
    options = {**DEFAULTS, "num_inference_steps": steps or DEFAULTS["num_inference_steps"]}
    return Study(
        ANALYSIS,
        settings={name: options[name] for name in RECORDED_OPTIONS},
        cases=held_out_cases(count),
        arms={name: partial(generate_ablation_arm, model, name, options=options) for name in ARMS},
        measure=lambda frames, case: _measure(frames, case, judges, options),
        batch_size=BATCH_SIZE,
    )


@torch.no_grad()
def generate_ablation_arm(model: Model, name: str, cases: Sequence[Case], options: Mapping[str, Any]) -> list[Frames]:
    """Generate the videos of consecutive cases, as one batch with one seed, in one of the arms.

    options: the RECORDED_OPTIONS. The arm "both" equals `generate` for the first case of the batch.
    """
    arm = ARMS[name]
    seed, shape = cases[0].seed, (len(cases), *model.latent_shape(*model.default_size))
    sigmas = model.schedule.sampling_sigmas(options["num_inference_steps"])
    noise = independent(seed, range(options["num_frames"]), shape).to(model.device)
    warp = frame_warp(parse(options["motion"]), frames=options["num_frames"], seed=seed)
    texts = [case.prompt for case in cases], [options["negative_prompt"]] * len(cases)
    denoise_cond, denoise_uncond = (
        model.bind(model.prompt(each), frame_attention=arm.frame_attention) for each in texts
    )
    denoise = classifier_free_guidance(denoise_cond, denoise_uncond, options["guidance_scale"])
    x0 = final_latents(arm.sample(denoise, noise * model.schedule.initial_scale(sigmas[0]), noise, sigmas, warp))
    return [Video.from_tensor(frames).frames for frames in model.decode(x0)]


def _measure(frames: Frames, case: Case, judges: Judges, options: Mapping[str, Any]) -> dict[str, float]:
    judged, shifts = judges.classify(frames), frame_metrics.frame_shifts(frames)
    metrics = {
        **frame_metrics.prompt_agreement(judged, case),
        **frame_metrics.identity_consistency(judged),
        "background": frame_metrics.background_difference(frames, shifts),
        **frame_metrics.global_motion(frames, shifts),
        "sharp": frame_metrics.relative_sharpness(frames, render(case.shot)[None]),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, case.prompt)),
    }
    # the content moves against the camera
    wanted: np.ndarray = -np.array(camera_offset(parse(options["motion"]), 1, len(frames)))
    got = np.array([metrics["right"], metrics["down"]])
    metrics["motion"] = float(got @ wanted / (wanted @ wanted))
    metrics["off course"] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    return metrics


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """State what this library and the paper claim, each with its bar."""
    right = [each for each in records if each["first right"]]
    shown = (("thing", "subject", 0.90), ("colour", "colour", 0.95), ("scene", "scene", 0.97))
    return [
        *(
            claim_at_least(f"{what} show the {name}", metric_values(records, arm, metric), bar)
            for arm, what in (("neither", "images"), ("both", "the method's frames"))
            for metric, name, bar in shown
        ),
        claim_not_below(
            "CLIP score, both - neither",
            metric_values(records, "both", "text"),
            metric_values(records, "neither", "text"),
            CLIP_MARGIN,
        ),
        claim_at_least(
            "same subject and colour in every frame, if right in the first",
            metric_values(right, "both", "always the same"),
            0.95,
        ),
        claim_within(
            "measured motion, relative to the requested one", metric_values(records, "both", "motion"), 0.85, 1.15
        ),
        _claim_part_helps("individual", "attention keeps the individual", records, "attention", "neither"),
        _claim_part_helps("individual", "attention keeps the individual, with motion", records, "both", "motion"),
        _claim_part_helps(
            "background", "motion in the latents steadies the background, with attention", records, "attention", "both"
        ),
        claim_as_sharp(
            metric_values(records, "both", "sharp"), metric_values(records, "attention", "sharp"), "both over attention"
        ),
        _claim_part_helps(
            "off course",
            "motion in the latents makes the requested motion, with attention",
            records,
            "attention",
            "both",
        ),
    ]


def _claim_part_helps(metric: str, name: str, records: Sequence[Record], more: str, less: str) -> Claim:
    return claim_better(
        f"{name}: {metric}, {more} - {less}", metric_values(records, more, metric), metric_values(records, less, metric)
    )


ROWS = {
    **PROMPT_ROWS,
    "same thing": "frames with the first frame's subject",
    "same colour": "frames with the first frame's colour",
    "always the same": "videos with one subject and colour throughout",
    "individual": "similarity of the individual to the first frame's",
    "background": "background's difference from the first frame's (of 255, less is better)",
    "sharp": "sharpness, over that of the world's own rendering",
    "text": "CLIP score (100 cos)",
    "motion": "motion, relative to the requested one",
    "off course": "error of the motion, relative to the requested one",
}

ANALYSIS = Analysis(
    name="cases",
    title="Camera motion: ablation of motion in the latents and first-frame attention",
    cases=held_out_cases,
    state_claims=_state_claims,
    rows=ROWS,
    options=TEXT2VIDEO_ZERO.options,
)
