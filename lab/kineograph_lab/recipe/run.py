"""How the pocket models are trained: `python -m kineograph_lab.recipe.run` makes all of them again from nothing.

A stage that was killed goes on from its last checkpoint when the command is given again, and one that ended is not
trained twice. Logs and sheets of samples lie in the output folder, a folder a stage.
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
    "temporal_decoder": (layer_stages.temporal_decoder_stage, layer_stages.TEMPORAL_DECODER),
}


def run_stages(chosen: list[str], settings: RecipeSettings, out: Path) -> None:
    """Train these stages, in the recipe's order, unless their result is there."""
    unknown = sorted(set(chosen) - set(STAGES))
    if unknown:
        raise InputError(f"the stages are {', '.join(STAGES)}, not {', '.join(unknown)}")
    for name, (train, result) in STAGES.items():
        if name in chosen and not (out / result).exists():
            train(settings, out)


def change_plans(settings: RecipeSettings, changes: dict[str, Any]) -> RecipeSettings:
    """The settings, these fields changed in the plan of every stage."""
    plans = {name: replace(plan, **changes) for name, plan in settings if isinstance(plan, StagePlan)}
    return settings.model_copy(update=plans)


def recipe_main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kineograph_lab.recipe.run", description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help="which, with commas between (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"), help="where checkpoints, logs and samples go")
    parser.add_argument("--minutes", type=float, help="for each stage, in place of its own")
    parser.add_argument("--steps", type=int, help="for each stage, in place of minutes")
    parser.add_argument("--from-shipped", action="store_true", help="other stages' results are the weights that ship")
    parser.add_argument("--export", action="store_true", help="then write the weights that are shipped")
    asked = parser.parse_args(words)
    changes = {name: value for name in ("minutes", "steps") if (value := getattr(asked, name)) is not None}
    settings = change_plans(RecipeSettings(), changes)
    chosen = [stage for stage in asked.stages.split(",") if stage]
    if asked.from_shipped:
        unpack_shipped(asked.out, [result for name, (_, result) in STAGES.items() if name in chosen])
    torch.set_num_threads(1)  # `fit` has a thread a core, and each works alone
    run_stages(chosen, settings, asked.out)
    if asked.export:
        export_image_models(settings, asked.out)
        export_video_models(settings, asked.out)


if __name__ == "__main__":
    recipe_main()
