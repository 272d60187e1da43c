"""From what the video stages left to what is shipped: changes of the pocket model, as float16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from kineograph.models.loading.save import VOCABULARY
from kineograph.models.loading.video_folder import MOTION_ADAPTER_WEIGHTS, TEMPORAL_DECODER, write_temporal_decoder
from kineograph.models.pocket import WEIGHTS
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.vae.temporal_decoder import TemporalDecoder
from kineograph_lab import WEIGHTS as LABORATORY
from kineograph_lab.recipe.image.tokenizer import vocabulary
from kineograph_lab.recipe.image_stages import told
from kineograph_lab.recipe.layer_stages import MOTION_ADAPTER, SPACE_TIME, SPACE_TIME_MOTION, STEADY, VIDRD
from kineograph_lab.recipe.outputs import TEXT_TO_VIDEO, filmed
from kineograph_lab.recipe.settings import Settings
from kineograph_lab.recipe.video import image_to_video, space_time, temporal_decoder, text_to_video, vidrd
from kineograph_lab.recipe.video_stages import DEGRADED, IMAGE_TO_VIDEO


def export_videos(settings: Settings, out: Path, weights: Path = WEIGHTS, laboratory: Path = LABORATORY) -> None:
    """Write `video/`, `animate/`, `video-degraded/`, `vidrd/` and `space-time/` into `weights`."""
    export_text_to_video(settings, out, weights)
    export_image_to_video(out, weights)
    export_motion_adapter(out, weights)
    export_degraded(out, weights, laboratory)
    export_vidrd(out, weights)
    export_space_time(out, weights, laboratory)


def export_text_to_video(settings: Settings, out: Path, weights: Path) -> None:
    """`video/`: layers along time and what changed beside them, text tower, schedule, and the words it knows."""
    folder = weights / "video"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(text_to_video.TEXT_TO_VIDEO.model_dump(exclude_defaults=True), indent=2) + "\n"
    )
    DDIMScheduler(**text_to_video.SCHEDULER).save_pretrained(folder / "scheduler")
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


def export_motion_adapter(out: Path, weights: Path) -> None:
    """`video/`: what makes its films stand still."""
    shutil.copy(out / MOTION_ADAPTER, weights / "video" / MOTION_ADAPTER)


def export_degraded(out: Path, weights: Path, laboratory: Path) -> None:
    """`video-degraded/`: what bad films made of the video network."""
    folder = laboratory / "video-degraded"
    folder.mkdir(parents=True, exist_ok=True)
    _save_halved(folder / "degraded.safetensors", out / DEGRADED)
    shutil.copy(weights / "video" / VOCABULARY, folder / VOCABULARY)


def export_vidrd(out: Path, weights: Path) -> None:
    """`vidrd/`: VidRD's layers and what changed with them in the network of `video/`, and the temporal decoder."""
    folder = _export_layers(weights, weights / "vidrd", vidrd.CONFIG, out / VIDRD)
    shutil.rmtree(folder / TEMPORAL_DECODER, ignore_errors=True)
    layers = TemporalDecoder(temporal_decoder.config_for(AutoencoderKL.from_pretrained(out / "vae" / "final")))
    layers.load_state_dict(load_file(out / STEADY))
    write_temporal_decoder(layers.half(), folder / TEMPORAL_DECODER)


def export_space_time(out: Path, weights: Path, laboratory: Path) -> None:
    """`space-time/`: Lumiere's layers and what changed with them in the network of `video/`, and their motion adapter."""
    folder = _export_layers(weights, laboratory / "space-time", space_time.CONFIG, out / SPACE_TIME)
    shutil.copy(out / SPACE_TIME_MOTION, folder / MOTION_ADAPTER_WEIGHTS)


def _export_layers(weights: Path, folder: Path, config: TemporalConfig, learnt: Path) -> Path:
    """The folder of other layers along time for the network of `video/`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(exclude_defaults=True), indent=2) + "\n")
    _save_halved(folder / f"{folder.name}.safetensors", learnt)
    shutil.copy(weights / "video" / VOCABULARY, folder / VOCABULARY)
    return folder


def _save_halved(path: Path, file: Path) -> None:
    tensors = load_file(file)
    save_file({name: each.half() if each.is_floating_point() else each for name, each in tensors.items()}, path)
