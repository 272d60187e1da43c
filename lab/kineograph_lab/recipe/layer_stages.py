"""Stages of other temporal layers, the temporal decoder and motion adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from kineograph.models.formats.adapter_files import save_motion_adapter
from kineograph.models.pocket.networks import load_float32, restore_vidrd_unet
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.unet.video_unet import VideoUNet
from kineograph_lab.recipe import outputs
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.recipe.video import (
    batches,
    motion_adapter,
    pan_and_zoom,
    samples,
    temporal_decoder,
    temporal_layers,
)

MOTION_ADAPTER, VIDRD, PANNED, UNPANNED, DECODER, SPACE_TIME, SPACE_TIME_MOTION = (
    f"{name}.safetensors"
    for name in (
        "motion_adapter", "vidrd", "vidrd_panned", "vidrd_unpanned", "temporal_decoder", "space_time",
        "space_time_motion",
    )
)  # fmt: skip


def motion_adapter_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the video network's motion adapter, for Still-Moving."""
    _train_adapter(settings, out, MOTION_ADAPTER, outputs.load_text_to_video(out), "pocket-video")


def space_time_motion_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the space-time network's motion adapter."""
    net = restore_vidrd_unet(
        outputs.load_text_to_video(out), temporal_layers.SPACE_TIME_CONFIG, load_file(out / SPACE_TIME)
    )
    _train_adapter(settings, out, SPACE_TIME_MOTION, net, "pocket-space-time")


def _train_adapter(settings: RecipeSettings, out: Path, result: str, video: VideoUNet, name: str) -> None:
    clip_pool, _ = outputs.video_pools(settings, out)
    torch.manual_seed(settings.seed)
    folder, text_model, tokenizer = out / Path(result).stem, outputs.load_text_encoder(out), outputs.load_tokenizer(out)
    net = motion_adapter.train_pocket_motion_adapter(
        video, settings.motion_adapter, folder, clip_pool, text=text_model, tokenizer=tokenizer
    )
    assert net.motion_adapter is not None and net.temporal is not None
    save_motion_adapter(net.motion_adapter, net.temporal, out / result, name=name)


def vidrd_stage(settings: RecipeSettings, out: Path) -> None:
    """Train VidRD's layers in place of the video network's own."""
    _train_temporal_layers(settings, settings.vidrd, out, VIDRD, temporal_layers.VIDRD_CONFIG, settings.panned_share)


def space_time_stage(settings: RecipeSettings, out: Path) -> None:
    """Train Lumiere's layers in place of the video network's own."""
    _train_temporal_layers(settings, settings.space_time, out, SPACE_TIME, temporal_layers.SPACE_TIME_CONFIG, share=0)


def panned_stage(settings: RecipeSettings, out: Path) -> None:
    """Train VidRD's layers shortly on clips and panned images, half and half, for the paper's ablation."""
    _train_temporal_layers(settings, settings.vidrd_ablation, out, PANNED, temporal_layers.VIDRD_CONFIG, share=0.5)


def unpanned_stage(settings: RecipeSettings, out: Path) -> None:
    """Train them for as many steps on clips alone, for the same ablation."""
    _train_temporal_layers(settings, settings.vidrd_ablation, out, UNPANNED, temporal_layers.VIDRD_CONFIG, share=0)


def _train_temporal_layers(
    settings: RecipeSettings, plan: StagePlan, out: Path, result: str, config: TemporalConfig, share: float
) -> None:
    clip_pool, stills = outputs.video_pools(settings, out)
    folder, text_model, tokenizer = out / Path(result).stem, outputs.load_text_encoder(out), outputs.load_tokenizer(out)
    curriculum = batches.LATE_CURRICULUM if settings.initial else batches.CURRICULUM
    sample_batch = batches.video_batches(clip_pool, stills, plan.batch, tokenizer, curriculum=curriculum)
    if share:
        folder_of_clips, encoder = out / "panned", out / "vae" / "final"
        render = pan_and_zoom.wide_panned_clip if settings.wide else pan_and_zoom.random_panned_clip
        panned_pool = pan_and_zoom.load_panned_pool(
            folder_of_clips, encoder, settings.num_panned_clips, seed=settings.seed, split="train", render=render
        )
        sample_batch = temporal_layers.mix_batches(
            sample_batch, pan_and_zoom.panned_batches(panned_pool, plan.batch, tokenizer), share
        )
    torch.manual_seed(settings.seed)
    net = temporal_layers.TemporalLayersUNet(outputs.load_text_to_video(out), config)
    if result in (VIDRD, SPACE_TIME):
        load_float32(net.net, outputs.initial_weights(settings, out, result))
    report = samples.video_report(folder, outputs.load_vae(out), text_model, tokenizer, settings.num_report_videos)
    trained = temporal_layers.train_temporal_layers(
        net,
        plan,
        folder,
        sample_batch,
        report,
        text=text_model,
    )
    save_file(temporal_layers.trained_layers(trained.net), out / result)


def temporal_decoder_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the temporal decoder."""
    clip_pool = temporal_decoder.load_pixel_clips(
        out / "decoded", settings.num_decoder_clips, seed=settings.seed, split="train"
    )
    held_out = temporal_decoder.load_pixel_clips(out / "decoded", 4, seed=settings.seed + 1, split="held_out")
    torch.manual_seed(settings.seed)
    vae_model = AutoencoderKL.from_pretrained(out / "vae" / "final")
    layers = temporal_decoder.train_temporal_decoder(
        vae_model, settings.temporal_decoder, out / "temporal_decoder", clip_pool, held_out
    )
    save_file({name: each.cpu().contiguous() for name, each in layers.state_dict().items()}, out / DECODER)
