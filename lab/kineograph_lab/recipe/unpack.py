"""The shipped weights as outputs of stages, so that one stage can be trained without those before it."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel

from kineograph.media.files import replace_atomically
from kineograph.models.loading.video_folder import MOTION_ADAPTER_WEIGHTS, NETWORK_WEIGHTS, TEMPORAL_DECODER
from kineograph.models.pocket import WEIGHTS
from kineograph_lab import WEIGHTS as LABORATORY
from kineograph_lab.recipe.layer_stages import DECODER, MOTION_ADAPTER, SPACE_TIME, SPACE_TIME_MOTION, VIDRD
from kineograph_lab.recipe.outputs import TEXT_TO_VIDEO
from kineograph_lab.recipe.video_stages import DEGRADED, IMAGE_TO_VIDEO
from kineograph_lab.world.truth import CONTROL_MAPS

NETWORKS = {
    "vae/final": (AutoencoderKL, "vae"),
    "unet/final": (UNet2DConditionModel, "unet"),
    "text/final": (CLIPTextModel, "text_encoder"),
    "clip/final": (CLIPModel, "clip"),
    "moving_text/final": (CLIPTextModel, "video/text_encoder"),
}
TENSORS = {
    **{f"control/{kind}.safetensors": f"control/{kind}.safetensors" for kind in CONTROL_MAPS},
    "edit.safetensors": "edit/edit.safetensors",
    "judge.safetensors": "judge/judge.safetensors",
    "geometry.safetensors": "judge/geometry.safetensors",
    TEXT_TO_VIDEO: "video/video.safetensors",
    IMAGE_TO_VIDEO: "animate/animate.safetensors",
    DEGRADED: "video-degraded/degraded.safetensors",
    VIDRD: "vidrd/vidrd.safetensors",
    SPACE_TIME: "space-time/space-time.safetensors",
    DECODER: f"vidrd/{TEMPORAL_DECODER}/{NETWORK_WEIGHTS}",
}
COPIED = {
    **{f"text/tokenizer/{name}": f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")},
    # files whose header names their model
    MOTION_ADAPTER: f"video/{MOTION_ADAPTER_WEIGHTS}",
    SPACE_TIME_MOTION: f"space-time/{MOTION_ADAPTER_WEIGHTS}",
}


def unpack_shipped(
    out: Path, excluded: Collection[str] = (), weights: Path = WEIGHTS, laboratory: Path = LABORATORY
) -> None:
    """Write what ships into the recipe's folder `out`, in float32, as if its stages had just ended there.

    Files that exist are left unchanged, and what is not in the folders is passed over. What ships was rounded to float16
    once: stages that start from it start from what users have.

    excluded: results of stages that are to be trained, e.g. "vidrd.safetensors": they and what is in the same subfolder are
        left out.
    """
    trained = {Path(each).parts[0] for each in excluded}

    def is_wanted(result: str, source: Path) -> bool:
        return Path(result).parts[0] not in trained and not (out / result).exists() and source.exists()

    for result, (kind, source) in NETWORKS.items():
        if is_wanted(result, weights / source):
            kind.from_pretrained(weights / source).float().save_pretrained(out / result)
    for result, source in TENSORS.items():
        if is_wanted(result, file := _source(weights, laboratory, source)):
            with replace_atomically(out / result) as part:
                save_file({name: each.float() for name, each in load_file(file).items()}, part)
    for result, source in COPIED.items():
        if is_wanted(result, file := _source(weights, laboratory, source)):
            with replace_atomically(out / result) as part:
                shutil.copy(file, part)


def _source(weights: Path, laboratory: Path, source: str) -> Path:
    return (weights if (weights / source).exists() else laboratory) / source
