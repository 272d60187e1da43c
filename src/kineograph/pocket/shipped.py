"""From the folder that is shipped back to what the stages left: one stage can be trained without those before it."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel

from kineograph.pocket.export import WEIGHTS
from kineograph.pocket.layer_stages import MOTION_ADAPTER

NETWORKS = {
    "vae/final": (AutoencoderKL, "vae"),
    "unet/final": (UNet2DConditionModel, "unet"),
    "text/final": (CLIPTextModel, "text_encoder"),
    "clip/final": (CLIPModel, "clip"),
    "moving_text/final": (CLIPTextModel, "video/text_encoder"),
}
TENSORS = {
    **{f"control/{kind}.safetensors": f"control/{kind}.safetensors" for kind in ("canny", "depth", "pose")},
    "edit.safetensors": "edit/edit.safetensors",
    "judge.safetensors": "judge/judge.safetensors",
    "geometry.safetensors": "judge/geometry.safetensors",
    "text_to_video.safetensors": "video/video.safetensors",
    "image_to_video.safetensors": "animate/animate.safetensors",
    "degraded.safetensors": "video-degraded/degraded.safetensors",
    "vidrd.safetensors": "vidrd/vidrd.safetensors",
    "temporal_decoder.safetensors": "vidrd/temporal_decoder/diffusion_pytorch_model.safetensors",
}


def unpack(out: Path, weights: Path = WEIGHTS) -> None:
    """Write what ships into the recipe's folder `out`, in float32, as if its stages had just ended there.

    What is in the folder already stays. What ships was rounded to float16 once: stages that go on from it go on from
    what users have.
    """
    for result, (kind, source) in NETWORKS.items():
        if not (out / result).exists():
            kind.from_pretrained(weights / source).float().save_pretrained(out / result)
    shutil.copytree(weights / "tokenizer", out / "text" / "tokenizer", dirs_exist_ok=True)
    for result, source in TENSORS.items():
        if (weights / source).exists() and not (out / result).exists():
            (out / result).parent.mkdir(exist_ok=True)
            save_file({name: each.float() for name, each in load_file(weights / source).items()}, out / result)
    for file in weights.glob(f"video/{MOTION_ADAPTER}"):  # as it is: it says which model it is of
        shutil.copy(file, out / MOTION_ADAPTER)
