"""VideoCrafter1's joint training on images and videos, on the pocket world: image quality after training.

Two networks are trained for the same number of steps on the same clips, one of them on images as well, by
`python -m kineograph_lab.recipe.run --from-shipped --stages joint,films_only`. The study compares images of both and of
the image model that they started from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kineograph.denoise import classifier_free_guidance
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.models.pocket.networks import restore_video_unet
from kineograph.noise import independent
from kineograph.samplers import ddim, final_latents
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import Claim, claim_better
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.sample import SCALE, STEPS, decode_frames
from kineograph_lab.studies.study import Analysis, Study, metric_values, not_trained_error

FOLDER = Path("runs/pocket")
STAGES = {"films and pictures": "joint", "films alone": "films_only"}


def joint_training_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of single images by both networks and by the image model."""
    steps = steps or STEPS
    models = {name: load_jointly_trained(model, FOLDER / f"{stage}.safetensors") for name, stage in STAGES.items()}
    models["image model"] = load("pocket")
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE,
            "networks": {name: fingerprint(each.net) for name, each in models.items()},
        },
        cases=held_out_cases(count),
        arms={name: partial(_generate, each, steps) for name, each in models.items()},
        measure=lambda frames, case: _measure(frames, case, judges),
    )  # fmt: skip


def load_jointly_trained(model: Model, file: Path) -> Model:
    """Load the video model with the weights of a stage of the recipe.

    Raises NotTrainedError if the file does not exist.
    """
    if not file.exists():
        raise not_trained_error(file, "joint", "films_only")
    assert model.temporal is not None, "the pocket video model"
    image_unet = load("pocket", dtype="float32").net.image_unet
    return replace(
        model, net=restore_video_unet(image_unet, model.temporal, load_file(file)).eval().to(model.device, model.dtype)
    )


def _generate(model: Model, steps: int, cases: Sequence[Case]) -> list[Frames]:
    return [_generate_image(model, steps, case) for case in cases]


@torch.no_grad()
def _generate_image(model: Model, steps: int, case: Case) -> Frames:
    """Generate an image, as a video of one frame."""
    sigmas = model.schedule.sampling_sigmas(steps)
    denoise_cond, denoise_uncond = (model.bind(model.prompt([text])) for text in (case.prompt, ""))
    shape = (1, *model.latent_shape(*model.default_size))
    denoise = classifier_free_guidance(denoise_cond, denoise_uncond, SCALE)
    x = sigmas[0] * model.schedule.initial_scale(sigmas[0]) * independent(case.seed, [0], shape)
    return decode_frames(model, final_latents(ddim(denoise, x, sigmas)))


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, float]:
    judged = judges.classify(frames)
    right = frame_metrics.prompt_agreement(judged, case)
    return {
        **right,
        "all": float(np.mean([right[name] for name in ("thing", "colour", "scene")])),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, case.prompt)),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """State the paper's claim: images beside the clips preserve the image model's quality."""
    both, alone = (partial(metric_values, records, name) for name in STAGES)
    return [
        claim_better(f"{name}, films and pictures - films alone", both(metric), alone(metric))
        for metric, name in (("all", "subject, colour and scene as the prompt says"), ("text", "CLIP score"))
    ]


ROWS = {
    "thing": "images with the prompt's subject",
    "colour": "images with its colour",
    "scene": "images with its scene",
    "all": "share of the three that are right",
    "text": "CLIP score (100 cos)",
}

ANALYSIS = Analysis(
    name="joint-training",
    title="Joint training on clips and images: single images generated afterwards",
    cases=held_out_cases,
    state_claims=_state_claims,
    rows=ROWS,
    models=("pocket", "recipe stage joint", "recipe stage films_only"),
)
