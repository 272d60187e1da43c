"""The recipe's stages for what goes with the video model: other layers along time, a temporal decoder, adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from kineograph.models.loading.adapter_files import save_motion_adapter
from kineograph.models.pocket.networks import restore_vidrd_unet
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
    """For Still-Moving: what makes the video network's films stand still,"""
    _train_adapter(settings, out, MOTION_ADAPTER, outputs.load_text_to_video(out), "pocket-video")


def space_time_motion_stage(settings: RecipeSettings, out: Path) -> None:
    """and those of the space-time network."""
    net = restore_vidrd_unet(
        outputs.load_text_to_video(out), temporal_layers.SPACE_TIME_CONFIG, load_file(out / SPACE_TIME)
    )
    _train_adapter(settings, out, SPACE_TIME_MOTION, net, "pocket-space-time")


def _train_adapter(settings: RecipeSettings, out: Path, result: str, video: VideoUNet, name: str) -> None:
    shown, _ = outputs.video_pools(settings, out)
    torch.manual_seed(settings.seed)
    folder, tower, tokens = out / Path(result).stem, outputs.load_text_encoder(out), outputs.load_tokenizer(out)
    net = motion_adapter.train_pocket_motion_adapter(
        video, settings.motion_adapter, folder, shown, text=tower, tokenizer=tokens
    )
    assert net.motion_adapter is not None and net.temporal is not None
    save_motion_adapter(net.motion_adapter, net.temporal, out / result, name=name)


def vidrd_stage(settings: RecipeSettings, out: Path) -> None:
    """VidRD's layers in place of the video network's own."""
    _train_temporal_layers(settings, settings.vidrd, out, VIDRD, temporal_layers.VIDRD_CONFIG, settings.panned_share)


def space_time_stage(settings: RecipeSettings, out: Path) -> None:
    """Lumiere's layers."""
    _train_temporal_layers(settings, settings.space_time, out, SPACE_TIME, temporal_layers.SPACE_TIME_CONFIG, share=0)


def panned_stage(settings: RecipeSettings, out: Path) -> None:
    """For the paper's ablation: a short training on films and panned pictures, half and half,"""
    _train_temporal_layers(settings, settings.vidrd_ablation, out, PANNED, temporal_layers.VIDRD_CONFIG, share=0.5)


def unpanned_stage(settings: RecipeSettings, out: Path) -> None:
    """and one of as many steps on films alone."""
    _train_temporal_layers(settings, settings.vidrd_ablation, out, UNPANNED, temporal_layers.VIDRD_CONFIG, share=0)


def _train_temporal_layers(
    settings: RecipeSettings, plan: StagePlan, out: Path, result: str, config: TemporalConfig, share: float
) -> None:
    shown, stills = outputs.video_pools(settings, out)
    folder, tower, tokens = out / Path(result).stem, outputs.load_text_encoder(out), outputs.load_tokenizer(out)
    sample_batch = batches.video_batches(shown, stills, plan.batch, tokens)
    if share:
        at, encoder = out / "panned", out / "vae" / "final"
        wandered = pan_and_zoom.load_panned_pool(
            at, encoder, settings.num_panned_clips, seed=settings.seed, split="train", wider=settings.wide
        )
        sample_batch = temporal_layers.mix_batches(
            sample_batch, pan_and_zoom.panned_batches(wandered, plan.batch, tokens), share
        )
    torch.manual_seed(settings.seed)
    report = samples.video_report(folder, outputs.load_vae(out), tower, tokens, settings.num_report_videos)
    trained = temporal_layers.train_temporal_layers(
        temporal_layers.TemporalLayersUNet(outputs.load_text_to_video(out), config),
        plan,
        folder,
        sample_batch,
        report,
        text=tower,
    )
    save_file(temporal_layers.trained_layers(trained.net), out / result)


def temporal_decoder_stage(settings: RecipeSettings, out: Path) -> None:
    shown = temporal_decoder.load_pixel_clips(
        out / "decoded", settings.num_decoder_clips, seed=settings.seed, split="train"
    )
    held_out = temporal_decoder.load_pixel_clips(out / "decoded", 4, seed=settings.seed + 1, split="held_out")
    torch.manual_seed(settings.seed)
    autoencoder = AutoencoderKL.from_pretrained(out / "vae" / "final")
    layers = temporal_decoder.train_temporal_decoder(
        autoencoder, settings.temporal_decoder, out / "temporal_decoder", shown, held_out
    )
    save_file({name: each.cpu().contiguous() for name, each in layers.state_dict().items()}, out / DECODER)
