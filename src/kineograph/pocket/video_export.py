"""From what the video stages left to what is shipped: changes of the pocket model, as float16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from kineograph.models.saving import VOCABULARY
from kineograph.pocket import image_to_video, video
from kineograph.pocket.export import WEIGHTS
from kineograph.pocket.settings import Settings
from kineograph.pocket.stages import told
from kineograph.pocket.video_stages import DEGRADED, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, filmed
from kineograph.pocket.words import vocabulary


def export_videos(settings: Settings, out: Path, weights: Path = WEIGHTS) -> None:
    """Write `video/`, `animate/` and `video-degraded/` into `weights`."""
    export_text_to_video(settings, out, weights)
    export_image_to_video(out, weights)
    export_degraded(out, weights)


def export_text_to_video(settings: Settings, out: Path, weights: Path) -> None:
    """`video/`: layers along time and what changed beside them, text tower, schedule, and the words it knows."""
    folder = weights / "video"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(video.TEXT_TO_VIDEO.model_dump(exclude_defaults=True), indent=2) + "\n"
    )
    DDIMScheduler(**video.SCHEDULER).save_pretrained(folder / "scheduler")
    _save_halved(folder / "video.safetensors", out / TEXT_TO_VIDEO)
    CLIPTextModel.from_pretrained(out / "moving_text" / "final").half().save_pretrained(folder / "text_encoder")
    words = vocabulary(told(filmed(settings, out)[0]))
    (folder / VOCABULARY).write_text(json.dumps(words, indent=0) + "\n")


def export_image_to_video(out: Path, weights: Path) -> None:
    """`animate/`: the reading of pictures."""
    folder = weights / "animate"
    folder.mkdir(exist_ok=True)
    (folder / "resampler.json").write_text(image_to_video.RESAMPLER.model_dump_json(indent=2) + "\n")
    _save_halved(folder / "animate.safetensors", out / IMAGE_TO_VIDEO)


def export_degraded(out: Path, weights: Path) -> None:
    """`video-degraded/`: what bad films made of the video network."""
    folder = weights / "video-degraded"
    folder.mkdir(exist_ok=True)
    _save_halved(folder / "degraded.safetensors", out / DEGRADED)
    shutil.copy(weights / "video" / VOCABULARY, folder / VOCABULARY)


def _save_halved(path: Path, file: Path) -> None:
    tensors = load_file(file)
    save_file({name: each.half() if each.is_floating_point() else each for name, each in tensors.items()}, path)
