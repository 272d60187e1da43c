"""Text2Video-Zero's background smoothing, on the pocket world: a steadier background, and the same foreground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from kineograph.denoise import classifier_free_guidance
from kineograph.media.video import Video
from kineograph.methods.text2video_zero import paper_sigmas, sample
from kineograph.metrics.features import Frames
from kineograph.models.foreground import bind_foreground_mask
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import first
from kineograph.motion import camera_offset, frame_warp, parse
from kineograph.noise import independent
from kineograph.request import MOTION, NUM_FRAMES, Request
from kineograph.samplers import ddim, final_latents, smooth_background
from kineograph.sigmas import leading
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.report import Claim, claim_at_least, claim_better, claim_unchanged
from kineograph_lab.studies.study import COMMON_ROWS, Study, metric_values
from kineograph_lab.world.painting import SIDE
from kineograph_lab.world.truth import ground_truth
from kineograph_lab.world.world import render

STEPS, STRENGTH = 25, 0.6
SCALE = Request(prompt="any").guidance_scale
PAN_PIXELS = np.rint(np.array(camera_offset(parse(MOTION), 1, NUM_FRAMES)) * SIDE).astype(
    int
)  # the camera, in pixels a frame


def smoothing_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """The same videos without and with smoothing."""
    steps = steps or STEPS
    return Study(
        name="smoothing",
        title="Background smoothing",
        settings={
            "num_inference_steps": steps, "strength": STRENGTH, "guidance_scale": SCALE, "motion": MOTION,
            "num_frames": NUM_FRAMES,
        },
        cases=held_out_cases(count),
        arms={"off": partial(_generate, model, 0.0, steps), "on": partial(_generate, model, STRENGTH, steps)},
        measure=lambda frames, case: _measure(frames, case, model, judges),
        state_claims=_state_claims,
        rows=ROWS,
    )  # fmt: skip


def _generate(model: Model, strength: float, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases, as `kineograph generate --smooth-background` makes them."""
    return [_generate_case(model, strength, steps, case) for case in cases]


def _generate_case(model: Model, strength: float, steps: int, case: Case) -> Frames:
    shape = (1, *model.latent_shape(*model.default_size))
    sigmas = leading(model.schedule.sigmas, steps)
    warp = frame_warp(parse(MOTION), frames=NUM_FRAMES, seed=case.seed)
    denoise_cond, denoise_uncond = (model.bind(model.prompt([text]), frame_attention=first) for text in (case.prompt, ""))
    renoise_to, warp_at = paper_sigmas(shape, highest=sigmas[0])
    noise = independent(case.seed, range(NUM_FRAMES), shape).to(model.device)
    sampler = smooth_background(ddim, warp, bind_foreground_mask(model, [case.prompt]), strength) if strength else ddim
    steps_ = sample(
        classifier_free_guidance(denoise_cond, denoise_uncond, SCALE),
        noise,
        sigmas,
        warp=warp,
        warp_at=warp_at,
        renoise_to=renoise_to,
        sampler=sampler,
    )
    return Video.from_tensor(model.decode(final_latents(steps_))[0]).frames


def _measure(frames: Frames, case: Case, model: Model, judges: Judges) -> Mapping[str, float]:
    """The background is what neither frame's mask covers once the camera's way is undone; the masks are the model's."""
    judged = judges.classify(frames)
    rendered, known = render(case.shot), ground_truth(case.shot).mask > 0
    return {
        "background": frame_metrics.background_psnr(frames, foreground_masks(model, frames, case.prompt), PAN_PIXELS),
        "iou": frame_metrics.mask_iou(foreground_masks(model, rendered[None], case.prompt)[0], known),
        **dict(frame_metrics.prompt_agreement(judged, subject=case.subject, colour=case.colour, scene=case.scene)),
        **dict(frame_metrics.identity_consistency(judged)),
        **dict(frame_metrics.clip_score(judges.text_similarity(frames, case.prompt))),
    }


def foreground_masks(model: Model, frames: Frames, prompt: str) -> np.ndarray:
    """Where the foreground of each frame is, as the model's attention has it: bool [f h w]."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
    mask = bind_foreground_mask(model, [prompt])(model.encode(images), 0.0)[0, :, 0].cpu().numpy() > 0
    return mask.repeat(frames.shape[1] // mask.shape[1], 1).repeat(frames.shape[2] // mask.shape[2], 2)


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """What the issue claims."""
    on, off = (lambda metric, arm=arm: metric_values(records, arm, metric) for arm in ("on", "off"))
    return [
        claim_better("background PSNR between frames, on - off", on("background"), off("background")),
        claim_unchanged("foreground: frames with the thing, on - off", on("thing"), off("thing")),
        claim_unchanged("foreground: frames with its colour, on - off", on("colour"), off("colour")),
        claim_unchanged("foreground: likeness of the individual, on - off", on("individual"), off("individual")),
        claim_at_least("masks by attention, of renderings: IoU with the world's", off("iou"), 0.6),
    ]


ROWS = {
    "background": "background PSNR between neighbouring frames (dB)",
    **COMMON_ROWS,
}
