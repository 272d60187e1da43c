"""Training of the pocket models from scratch: `python -m kineograph_lab.recipe.run`.

Given again, the command resumes an interrupted stage from its last checkpoint and skips finished stages. Logs and contact
sheets are in the output folder, one folder a stage.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kineograph.errors import InputError
from kineograph_lab.recipe import image_stages, layer_stages, outputs, video_stages
from kineograph_lab.recipe.export import export_image_models, export_video_models
from kineograph_lab.recipe.image_stages import Stage
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.recipe.unpack import unpack_shipped

STAGES: dict[str, tuple[Stage, str]] = {
    "vae": (image_stages.vae_stage, "vae/final"),
    "text": (image_stages.text_stage, "text/final"),
    "unet": (image_stages.unet_stage, "unet/final"),
    "clip": (image_stages.clip_stage, "clip/final"),
    "control": (image_stages.control_stage, "control/pose.safetensors"),
    "edit": (image_stages.edit_stage, "edit.safetensors"),
    "judge": (image_stages.judge_stage, "judge.safetensors"),
    "geometry": (image_stages.geometry_stage, "geometry.safetensors"),
    "parts": (image_stages.parts_stage, "parts.safetensors"),
    "moving_text": (video_stages.moving_text_stage, "moving_text/final"),
    "text_to_video": (video_stages.text_to_video_stage, outputs.TEXT_TO_VIDEO),
    "image_reading": (video_stages.image_reading_stage, video_stages.IMAGE_READING),
    "joint": (video_stages.joint_stage, video_stages.JOINT),
    "films_only": (video_stages.films_only_stage, video_stages.FILMS_ONLY),
    "image_to_video": (video_stages.image_to_video_stage, video_stages.IMAGE_TO_VIDEO),
    "class_reading": (video_stages.class_reading_stage, video_stages.CLASS_READING),
    "class_token": (video_stages.class_token_stage, video_stages.CLASS_TOKEN),
    "degraded": (video_stages.degraded_stage, video_stages.DEGRADED),
    "motion_adapter": (layer_stages.motion_adapter_stage, layer_stages.MOTION_ADAPTER),
    "vidrd": (layer_stages.vidrd_stage, layer_stages.VIDRD),
    "space_time": (layer_stages.space_time_stage, layer_stages.SPACE_TIME),
    "space_time_motion": (layer_stages.space_time_motion_stage, layer_stages.SPACE_TIME_MOTION),
    "vidrd_panned": (layer_stages.panned_stage, layer_stages.PANNED),
    "vidrd_unpanned": (layer_stages.unpanned_stage, layer_stages.UNPANNED),
    "temporal_decoder": (layer_stages.temporal_decoder_stage, layer_stages.DECODER),
}


def train_stages(chosen: list[str], settings: RecipeSettings, out: Path) -> None:
    """Train these stages in the recipe's order, except those whose result exists."""
    unknown = sorted(set(chosen) - set(STAGES))
    if unknown:
        raise InputError(f"the stages are {', '.join(STAGES)}, not {', '.join(unknown)}")
    for name, (train, result) in STAGES.items():
        if name in chosen and not (out / result).exists():
            train(settings, out)


def change_plans(settings: RecipeSettings, changes: dict[str, Any]) -> RecipeSettings:
    """Return the settings with these fields changed in every stage's plan."""
    plans = {name: replace(plan, **changes) for name, plan in settings if isinstance(plan, StagePlan)}
    return settings.model_copy(update=plans)


def recipe_main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m kineograph_lab.recipe.run", description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help="stages, comma-separated (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"), help="folder of checkpoints, logs and samples")
    parser.add_argument("--minutes", type=float, help="minutes of each stage, instead of its own")
    parser.add_argument("--steps", type=int, help="steps of each stage, instead of minutes")
    parser.add_argument(
        "--from-shipped", action="store_true", help="take the shipped weights as results of the other stages"
    )
    parser.add_argument("--export", action="store_true", help="write the weights to ship afterwards")
    options = parser.parse_args(arguments)
    changes = {name: value for name in ("minutes", "steps") if (value := getattr(options, name)) is not None}
    settings = change_plans(RecipeSettings(), changes)
    chosen = [stage for stage in options.stages.split(",") if stage]
    if options.from_shipped:
        unpack_shipped(options.out, [result for name, (_, result) in STAGES.items() if name in chosen])
    torch.set_num_threads(1)  # the training loop has a thread a core, each of which computes alone
    train_stages(chosen, settings, options.out)
    if options.export:
        export_image_models(settings, options.out)
        export_video_models(settings, options.out)


if __name__ == "__main__":
    recipe_main()
