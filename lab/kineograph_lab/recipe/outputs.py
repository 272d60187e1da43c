"""Outputs of finished stages in the recipe's folder, loaded for the stages that follow."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from kineograph.models.pocket.networks import restore_video_unet
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.long import growing_pool
from kineograph_lab.recipe.loop import best_device
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.settings import STILL_SHARDS, RecipeSettings
from kineograph_lab.recipe.video import clips, text_to_video

IMAGE_POOL, CLIP_POOL = "images", "films"  # folders of the long training's shards
TEXT_TO_VIDEO = "text_to_video.safetensors"


def video_pools(settings: RecipeSettings, out: Path) -> tuple[Pool, Pool]:
    """Return the pools of training clips and of stills, as latents, made if missing.

    Those of the wider distribution are read from the shards that the long training renders.
    """
    if settings.wide:
        return growing_pool.load_clips(out / CLIP_POOL), growing_pool.load_stills(out / IMAGE_POOL, STILL_SHARDS)
    folder, encoder = out / "video_films", out / "vae" / "final"
    return (
        clips.load_clip_pool(folder, encoder, settings.num_clips, seed=settings.seed, split="train"),
        clips.load_still_pool(folder / "stills", encoder, settings.num_stills, seed=settings.seed, split="train"),
    )


def initial_weights(settings: RecipeSettings, out: Path, result: str) -> dict[str, Tensor]:
    """Return the earlier result of a stage, from which its training goes on; empty if it starts anew."""
    return load_file(out / settings.initial / result) if settings.initial else {}


def load_text_to_video(out: Path) -> VideoUNet:
    """Return the text-to-video network."""
    unet = UNet2DConditionModel.from_pretrained(out / "unet" / "final")
    return restore_video_unet(unet, text_to_video.TEXT_TO_VIDEO, load_file(out / TEXT_TO_VIDEO))


def load_text_encoder(out: Path) -> CLIPTextModel:
    """Return the text encoder of the video models."""
    return CLIPTextModel.from_pretrained(out / "moving_text" / "final")


def load_tokenizer(out: Path) -> CLIPTokenizer:
    """Return the tokenizer."""
    return CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")


def load_image_encoder(out: Path) -> CLIPVisionModel:
    """Return CLIP's image encoder."""
    return CLIPVisionModel.from_pretrained(out / "clip" / "final")


def load_vae(out: Path) -> AutoencoderKL:
    """Return the VAE, prepared for this machine."""
    vae = AutoencoderKL.from_pretrained(out / "vae" / "final")
    return use_fast_group_norm(vae.to(best_device(), memory_format=torch.channels_last))
