"""Video Instruct-Pix2Pix on the pocket world: edits as instructed, the rest unchanged, consistent frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from kineograph.denoise import Denoise, text_and_image_guidance
from kineograph.latents import Latents
from kineograph.media.video import Video
from kineograph.methods.instruct_pix2pix import InstructPix2PixOptions
from kineograph.metrics import video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.conditioning.condition import Condition
from kineograph.models.loading.load import POCKET_EDIT, load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import FrameAttention, first, own
from kineograph.noise import per_sigma, shared
from kineograph.options import defaults
from kineograph.samplers import euler_ancestral, final_latents
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import Claim, claim_as_sharp, claim_at_least, claim_better
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.splits import DEVELOPMENT, Split, seed_offset
from kineograph_lab.studies.study import Analysis, Study, metric_values
from kineograph_lab.studies.text2video_zero.controlnet import FPS, FRAMES, ground_truths, render_shot
from kineograph_lab.world.edits import ASPECTS, Edit, edit_instruction, sample_edit

STEPS = 20
SCALE, IMAGE_SCALE = 3.0, defaults(InstructPix2PixOptions)["image_guidance_scale"]
SUBJECT_EDITS = ("colour", "thing")  # edits that leave the background as it is


def editing_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of edits with first-frame attention, frame by frame, and the rendering of the edited shot."""
    editor, steps = load(POCKET_EDIT, device=model.device, dtype=model.dtype), steps or STEPS
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "image_guidance_scale": IMAGE_SCALE,
            "num_frames": FRAMES, "fps": FPS, "unet": fingerprint(editor.net),
        },
        cases=editing_cases(count),
        arms={
            "first-frame attention": partial(_generate, editor, first, steps),
            "per frame": partial(_generate, editor, own, steps),
            "rendering": lambda cases: [render_shot(edit_of(case).after) for case in cases],
        },
        measure=lambda frames, case: _measure(frames, case, judges),
    )  # fmt: skip


def editing_cases(count: int, split: Split = DEVELOPMENT) -> list[Case]:
    """Return the held-out cases with instructions as prompts."""
    return [replace(case, prompt=_instruction(case)) for case in held_out_cases(count, split)]


def edit_of(case: Case) -> Edit:
    """Return the edit of a case: of colour, scene, style and subject in turn."""
    aspect = ASPECTS[case.number % len(ASPECTS)]
    return sample_edit(
        np.random.default_rng((seed_offset(case.split) + case.number, 0)), aspect, case.shot, split="held_out"
    )


def _instruction(case: Case) -> str:
    return edit_instruction(edit_of(case), np.random.default_rng((seed_offset(case.split) + case.number, 1)))


def _generate(editor: Model, frame_attention: FrameAttention, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """Edit the renderings of some cases; with first-frame attention, the frames equal those of `kineograph edit`."""
    return [_edit_case(editor, frame_attention, steps, case) for case in cases]


@torch.no_grad()
def _edit_case(editor: Model, frame_attention: FrameAttention, steps: int, case: Case) -> Frames:
    images = torch.from_numpy(render_shot(case.shot)).permute(0, 3, 1, 2)[None].float() / 255
    channels = editor.encode(images) / editor.vae.config.scaling_factor
    cond, uncond = (editor.prompt([text]) for text in (case.prompt, ""))

    def bind(condition: Condition, channels: Latents) -> Denoise:
        return editor.bind(replace(condition, channels=channels), frame_attention=frame_attention)

    denoise = text_and_image_guidance(
        bind(cond, channels), bind(uncond, channels), bind(uncond, torch.zeros_like(channels)), SCALE, IMAGE_SCALE
    )
    sigmas, shape = editor.schedule.sampling_sigmas(steps), (1, *channels.shape[2:])
    noise = editor.schedule.initial_scale(sigmas[0]) * shared(case.seed, range(FRAMES), shape).to(editor.device)
    sampler = euler_ancestral(per_sigma(case.seed, [0] * FRAMES, shape))
    x0 = final_latents(sampler(denoise, sigmas[0] * noise, sigmas))
    return Video.from_tensor(editor.decode(x0)[0]).frames


def _measure(frames: Frames, case: Case, judges: Judges) -> Mapping[str, float]:
    edit, judged = edit_of(case), judges.classify(frames)
    main = edit.after.things[0]
    right = {
        "thing": frame_metrics.share_equal(judged.subjects, main.kind),
        "colour": frame_metrics.share_equal(judged.colours, main.colour),
        "scene": frame_metrics.share_equal(judged.scenes, edit.after.scene),
        "style": frame_metrics.share_equal(judged.styles, edit.after.style),
    }
    known = ground_truths(edit.after)
    metrics = {
        "asked": right[edit.aspect],
        f"asked {edit.aspect}": right[edit.aspect],
        "kept": float(np.mean([share for aspect, share in right.items() if aspect != edit.aspect])),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
        "warp error": frame_metrics.warp_error(frames, [each.flow for each in known]),
        "sharp": frame_metrics.relative_sharpness(frames, render_shot(edit.after)),
    }
    if edit.aspect in SUBJECT_EDITS:
        before = ground_truths(edit.before)
        subjects = [(one.mask > 0) | (other.mask > 0) for one, other in zip(before, known, strict=True)]
        # outlines and shadows lie outside of the masks
        masks = [~frame_metrics.dilate(frame_metrics.dilate(subject)) for subject in subjects]
        pairs = zip(render_shot(edit.before), frames, masks, strict=True)
        metrics["background"] = float(np.mean([frame_metrics.psnr(*each) for each in pairs]))
    return metrics


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """State the study's claims, with bars set before anything was measured."""
    ours, theirs = "first-frame attention", "per frame"
    return [
        claim_at_least("frames show the requested edit", metric_values(records, ours, "asked"), 0.80),
        claim_at_least("frames keep the other attributes", metric_values(records, ours, "kept"), 0.90),
        claim_at_least(
            "background's PSNR with the input's (colour and subject edits)",
            metric_values(records, ours, "background"),
            20.0,
        ),
        claim_better(
            "temporal consistency (CLIP), first-frame attention - per frame",
            metric_values(records, ours, "steady"),
            metric_values(records, theirs, "steady"),
        ),
        claim_better(
            "warp error, per frame - first-frame attention",
            metric_values(records, theirs, "warp error"),
            metric_values(records, ours, "warp error"),
        ),
        claim_as_sharp(
            metric_values(records, ours, "sharp"),
            metric_values(records, theirs, "sharp"),
            f"{ours} over {theirs}",
        ),
    ]


ROWS = {
    "asked": "frames with the requested edit",
    **{f"asked {aspect}": f"of {'subject' if aspect == 'thing' else aspect} edits" for aspect in ASPECTS},
    "kept": "other attributes kept",
    "background": "background's PSNR with the input's (dB; colour and subject edits)",
    "steady": "cosine of neighbouring frames' CLIP embeddings",
    "warp error": "change along the true flow (of 255, less is better)",
    "sharp": "sharpness, over that of the world's own rendering",
}

ANALYSIS = Analysis(
    name="editing",
    title="Video Instruct-Pix2Pix: edited by an instruction",
    cases=editing_cases,
    state_claims=_state_claims,
    rows=ROWS,
    models=("pocket-edit",),
    options=(InstructPix2PixOptions,),
)
