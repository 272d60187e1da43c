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

from kineograph_lab.recipe import image_stages, layer_stages, outputs, video_stages
from kineograph_lab.recipe.export import export
from kineograph_lab.recipe.export_videos import export_videos
from kineograph_lab.recipe.image_stages import Stage
from kineograph_lab.recipe.loop import Plan
from kineograph_lab.recipe.settings import Settings
from kineograph_lab.recipe.unpack import unpack

STAGES: dict[str, tuple[Stage, str]] = {
    "vae": (image_stages.train_vae, "vae/final"),
    "text": (image_stages.train_text, "text/final"),
    "unet": (image_stages.train_unet, "unet/final"),
    "clip": (image_stages.train_clip, "clip/final"),
    "control": (image_stages.train_control, "control/pose.safetensors"),
    "edit": (image_stages.train_edit, "edit.safetensors"),
    "judge": (image_stages.train_judge, "judge.safetensors"),
    "geometry": (image_stages.train_geometry, "geometry.safetensors"),
    "moving_text": (video_stages.train_moving_text, "moving_text/final"),
    "text_to_video": (video_stages.train_text_to_video, outputs.TEXT_TO_VIDEO),
    "image_reading": (video_stages.train_image_reading, video_stages.READING),
    "joint": (video_stages.train_joint, video_stages.JOINT),
    "films_only": (video_stages.train_films_only, video_stages.FILMS_ONLY),
    "image_to_video": (video_stages.train_image_to_video, video_stages.IMAGE_TO_VIDEO),
    "class_reading": (video_stages.train_class_reading, video_stages.CLASS_READING),
    "class_token": (video_stages.train_class_token, video_stages.CLASS_TOKEN),
    "degraded": (video_stages.train_degraded, video_stages.DEGRADED),
    "motion_adapter": (layer_stages.train_motion_adapter, layer_stages.MOTION_ADAPTER),
    "vidrd": (layer_stages.train_vidrd, layer_stages.VIDRD),
    "space_time": (layer_stages.train_space_time, layer_stages.SPACE_TIME),
    "space_time_motion": (layer_stages.train_space_time_motion, layer_stages.SPACE_TIME_MOTION),
    "vidrd_panned": (layer_stages.train_panned, layer_stages.PANNED),
    "vidrd_unpanned": (layer_stages.train_unpanned, layer_stages.UNPANNED),
    "temporal_decoder": (layer_stages.train_temporal_decoder, layer_stages.STEADY),
}


def run(chosen: list[str], settings: Settings, out: Path) -> None:
    """Train these stages, in the recipe's order, unless their result is there."""
    unknown = sorted(set(chosen) - set(STAGES))
    if unknown:
        raise ValueError(f"the stages are {', '.join(STAGES)}, not {', '.join(unknown)}")
    for name, (train, result) in STAGES.items():
        if name in chosen and not (out / result).exists():
            train(settings, out)


def with_plans(settings: Settings, changes: dict[str, Any]) -> Settings:
    """The settings, these fields changed in the plan of every stage."""
    plans = {name: replace(plan, **changes) for name, plan in settings if isinstance(plan, Plan)}
    return settings.model_copy(update=plans)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kineograph_lab.recipe.run", description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help="which, with commas between (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"), help="where checkpoints, logs and samples go")
    parser.add_argument("--minutes", type=float, help="for each stage, in place of its own")
    parser.add_argument("--steps", type=int, help="for each stage, in place of minutes")
    parser.add_argument("--from-shipped", action="store_true", help="other stages' results are the weights that ship")
    parser.add_argument("--export", action="store_true", help="then write the weights that are shipped")
    asked = parser.parse_args(words)
    changes = {name: value for name in ("minutes", "steps") if (value := getattr(asked, name)) is not None}
    settings = with_plans(Settings(), changes)
    chosen = [stage for stage in asked.stages.split(",") if stage]
    if asked.from_shipped:
        unpack(asked.out, [result for name, (_, result) in STAGES.items() if name in chosen])
    torch.set_num_threads(1)  # `fit` has a thread a core, and each works alone
    run(chosen, settings, asked.out)
    if asked.export:
        export(settings, asked.out)
        export_videos(settings, asked.out)


if __name__ == "__main__":
    main()
