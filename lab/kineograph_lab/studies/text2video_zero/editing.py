"""Video Instruct-Pix2Pix on the pocket world: what is asked changes, what is not asked stays, and the frames agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from kineograph.condition import Condition
from kineograph.denoise import Denoise, text_and_image_guidance
from kineograph.latents import Latents
from kineograph.media.video import Video
from kineograph.metrics import video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import POCKET_EDIT, load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import FrameAttention, first, own
from kineograph.noise import per_sigma, shared
from kineograph.request import Request
from kineograph.samplers import euler_ancestral, final_latents
from kineograph.sigmas import leading
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.report import Claim, at_least, better
from kineograph_lab.studies.study import Study, column
from kineograph_lab.studies.text2video_zero.controlled import FPS, FRAMES, rendering, truths
from kineograph_lab.world.edits import ASPECTS, Edit, edit_instruction, sample_edit

STEPS = 20
SCALE, IMAGE_SCALE = 3.0, Request(prompt="any").image_guidance_scale
OF_THE_THING = ("colour", "thing")  # edits that leave the background as it is


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """Edited with first-frame attention, frame by frame, and as the world paints what was asked."""
    editor, steps = load(POCKET_EDIT, device=model.device, dtype=model.dtype), steps or STEPS
    return Study(
        name="editing",
        title="Video Instruct-Pix2Pix: edited by an instruction",
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "image_guidance_scale": IMAGE_SCALE,
            "num_frames": FRAMES, "fps": FPS, "unet": fingerprint(editor.net),
        },
        cases=[replace(case, prompt=_instruction(case)) for case in held_out_cases(count)],
        arms={
            "first-frame attention": partial(filmed, editor, first, steps),
            "per frame": partial(filmed, editor, own, steps),
            "rendering": lambda cases: [rendering(edit_of(case).after) for case in cases],
        },
        measured=lambda frames, case: measured(frames, case, witnesses),
        claims=claims,
        rows=ROWS,
    )  # fmt: skip


def edit_of(case: Case) -> Edit:
    """What is changed in a case: colours, scenes, styles and things in turn."""
    aspect = ASPECTS[case.number % len(ASPECTS)]
    return sample_edit(np.random.default_rng((case.number, 0)), aspect, case.shot, split="held_out")


def _instruction(case: Case) -> str:
    return edit_instruction(edit_of(case), np.random.default_rng((case.number, 1)))


def filmed(editor: Model, see: FrameAttention, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases, as `kineograph edit` makes them."""
    return [_filmed(editor, see, steps, case) for case in cases]


def _filmed(editor: Model, see: FrameAttention, steps: int, case: Case) -> Frames:
    pictures = torch.from_numpy(rendering(case.shot)).permute(0, 3, 1, 2)[None].float() / 255
    shown = editor.encode(pictures) / editor.vae.config.scaling_factor
    said, nothing = (editor.prompt([text]) for text in (case.prompt, ""))

    def bound(told: Condition, channels: Latents) -> Denoise:
        return editor.bind(replace(told, channels=channels), frame_attention=see)

    look = text_and_image_guidance(
        bound(said, shown), bound(nothing, shown), bound(nothing, torch.zeros_like(shown)), SCALE, IMAGE_SCALE
    )
    sigmas, shape = leading(editor.schedule.sigmas, steps), (1, *shown.shape[2:])
    noise = shared(case.seed, range(FRAMES), shape).to(editor.device)
    sampler = euler_ancestral(per_sigma(case.seed, [0] * FRAMES, shape))
    x0 = final_latents(sampler(look, sigmas[0] * noise, sigmas))
    return Video.from_tensor(editor.decode(x0)[0]).frames


def measured(frames: Frames, case: Case, witnesses: Witnesses) -> Mapping[str, float]:
    """All that is measured of one video."""
    edit, seen = edit_of(case), witnesses.look(frames)
    main, scene, style = edit.after.things[0], edit.after.scene, edit.after.style
    right = {
        "thing": np.mean([each == main.kind for each in seen.things]),
        "colour": np.mean([each == main.colour for each in seen.colours]),
        "scene": np.mean([each == scene for each in seen.scenes]),
        "style": np.mean([each == style for each in seen.styles]),
    }
    known = truths(edit.after)
    found = {
        "asked": float(right[edit.aspect]),
        f"asked {edit.aspect}": float(right[edit.aspect]),
        "kept": float(np.mean([share for aspect, share in right.items() if aspect != edit.aspect])),
        "steady": video_metrics.frame_consistency(witnesses.embed(frames)),
        "warp error": frame_metrics.warp_error(frames, [each.flow for each in truths(edit.after)]),
    }
    if edit.aspect in OF_THE_THING:
        things = [(one.mask > 0) | (other.mask > 0) for one, other in zip(truths(edit.before), known, strict=True)]
        masks = [
            ~frame_metrics.dilate(frame_metrics.dilate(thing)) for thing in things
        ]  # outlines and shadows lie outside of them
        pairs = zip(rendering(edit.before), frames, masks, strict=True)
        found["background"] = float(np.mean([frame_metrics.psnr(*each) for each in pairs]))
    return found


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the issue claims, with bars set before anything was measured."""
    ours, theirs = "first-frame attention", "per frame"
    return [
        at_least("frames show what was asked", column(made, ours, "asked"), 0.80),
        at_least("frames keep the other attributes", column(made, ours, "kept"), 0.90),
        at_least("background's PSNR with the input's (colour and thing edits)", column(made, ours, "background"), 20.0),
        better(
            "temporal consistency (CLIP), first-frame attention - per frame",
            column(made, ours, "steady"), column(made, theirs, "steady"), errors=3,
        ),
        better(
            "warp error, per frame - first-frame attention",
            column(made, theirs, "warp error"), column(made, ours, "warp error"), errors=3,
        ),
    ]  # fmt: skip


ROWS = {
    "asked": "frames that show what was asked",
    **{f"asked {aspect}": f"of {aspect} edits" for aspect in ASPECTS},
    "kept": "other attributes kept",
    "background": "background's PSNR with the input's (dB; colour and thing edits)",
    "steady": "cosine of neighbouring frames' CLIP embeddings",
    "warp error": "change along the true flow (of 255, less is better)",
}
