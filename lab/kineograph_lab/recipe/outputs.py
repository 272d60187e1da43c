"""What earlier stages of the recipe left in its folder, opened for the stages of the video models."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from kineograph.models.pocket.networks import restore_video_unet
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.long import growing_pool
from kineograph_lab.recipe.loop import best_device
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.settings import STILL_SHARDS, RecipeSettings
from kineograph_lab.recipe.video import clips, text_to_video

IMAGE_POOL, CLIP_POOL = "images", "films"  # shards of the long training
TEXT_TO_VIDEO = "text_to_video.safetensors"


def video_pools(settings: RecipeSettings, out: Path) -> tuple[Pool, Pool]:
    """Films to train on, and pictures beside them, as latents; made unless they are there.

    Those of the wider distribution are read from the shards that the long training's painter makes.
    """
    if settings.wide:
        return growing_pool.load_clips(out / CLIP_POOL), growing_pool.load_stills(out / IMAGE_POOL, STILL_SHARDS)
    at, encoder = out / "video_films", out / "vae" / "final"
    return (
        clips.load_clip_pool(at, encoder, settings.screened, seed=settings.seed, split="train"),
        clips.load_still_pool(at / "stills", encoder, settings.beside, seed=settings.seed, split="train"),
    )


def load_text_to_video(out: Path) -> VideoUNet:
    """The text-to-video network."""
    unet = UNet2DConditionModel.from_pretrained(out / "unet" / "final")
    return restore_video_unet(unet, text_to_video.TEXT_TO_VIDEO, load_file(out / TEXT_TO_VIDEO))


def load_text_encoder(out: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(out / "moving_text" / "final")


def load_tokenizer(out: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")


def load_image_encoder(out: Path) -> CLIPVisionModel:
    return CLIPVisionModel.from_pretrained(out / "clip" / "final")


def load_vae(out: Path) -> AutoencoderKL:
    opened = AutoencoderKL.from_pretrained(out / "vae" / "final")
    return use_fast_group_norm(opened.to(best_device(), memory_format=torch.channels_last))
