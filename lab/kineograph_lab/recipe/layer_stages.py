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
from kineograph_lab.recipe.loop import Plan
from kineograph_lab.recipe.settings import Settings
from kineograph_lab.recipe.video import batches, motion_adapter, pan_and_zoom, samples, space_time, temporal_decoder, vidrd

MOTION_ADAPTER, VIDRD, PANNED, UNPANNED, STEADY, SPACE_TIME, SPACE_TIME_MOTION = (
    f"{name}.safetensors"
    for name in (
        "motion_adapter", "vidrd", "vidrd_panned", "vidrd_unpanned", "temporal_decoder", "space_time",
        "space_time_motion",
    )
)  # fmt: skip


def train_motion_adapter(settings: Settings, out: Path) -> None:
    """For Still-Moving: what makes the video network's films stand still,"""
    _train_to_stand_still(settings, out, MOTION_ADAPTER, outputs.video_net(out), "pocket-video")


def train_space_time_motion(settings: Settings, out: Path) -> None:
    """and those of the space-time network."""
    net = restore_vidrd_unet(outputs.video_net(out), space_time.CONFIG, load_file(out / SPACE_TIME))
    _train_to_stand_still(settings, out, SPACE_TIME_MOTION, net, "pocket-space-time")


def _train_to_stand_still(settings: Settings, out: Path, result: str, video: VideoUNet, name: str) -> None:
    shown, _ = outputs.filmed(settings, out)
    torch.manual_seed(settings.seed)
    folder, tower, tokens = out / Path(result).stem, outputs.tower(out), outputs.tokens(out)
    net = motion_adapter.train(video, settings.motion_adapter, folder, shown, text=tower, tokenizer=tokens)
    assert net.motion_adapter is not None and net.temporal is not None
    save_motion_adapter(net.motion_adapter, net.temporal, out / result, name=name)


def train_vidrd(settings: Settings, out: Path) -> None:
    """VidRD's layers in place of the video network's own."""
    _train_layers(settings, settings.vidrd, out, VIDRD, vidrd.CONFIG, settings.panned_share)


def train_space_time(settings: Settings, out: Path) -> None:
    """Lumiere's layers."""
    _train_layers(settings, settings.space_time, out, SPACE_TIME, space_time.CONFIG, share=0)


def train_panned(settings: Settings, out: Path) -> None:
    """For the paper's ablation: a short training on films and panned pictures, half and half,"""
    _train_layers(settings, settings.vidrd_apart, out, PANNED, vidrd.CONFIG, share=0.5)


def train_unpanned(settings: Settings, out: Path) -> None:
    """and one of as many steps on films alone."""
    _train_layers(settings, settings.vidrd_apart, out, UNPANNED, vidrd.CONFIG, share=0)


def _train_layers(settings: Settings, plan: Plan, out: Path, result: str, config: TemporalConfig, share: float) -> None:
    shown, stills = outputs.filmed(settings, out)
    folder, tower, tokens = out / Path(result).stem, outputs.tower(out), outputs.tokens(out)
    draw = batches.batches(shown, stills, plan.batch, tokens)
    if share:
        at, encoder = out / "panned", out / "vae" / "final"
        wandered = pan_and_zoom.pool(
            at, encoder, settings.panned, seed=settings.seed, split="train", wider=settings.wide
        )
        draw = vidrd.in_turn(draw, pan_and_zoom.batches(wandered, plan.batch, tokens), share)
    torch.manual_seed(settings.seed)
    report = samples.reporter(folder, outputs.autoencoder(out), tower, tokens, settings.sketched)
    trained = vidrd.train(vidrd.Reused(outputs.video_net(out), config), plan, folder, draw, report, text=tower)
    save_file(vidrd.learnt(trained.net), out / result)


def train_temporal_decoder(settings: Settings, out: Path) -> None:
    shown = temporal_decoder.pool(out / "decoded", settings.decoded, seed=settings.seed, split="train")
    held_out = temporal_decoder.pool(out / "decoded", 4, seed=settings.seed + 1, split="held_out")
    torch.manual_seed(settings.seed)
    autoencoder = AutoencoderKL.from_pretrained(out / "vae" / "final")
    layers = temporal_decoder.train(autoencoder, settings.temporal_decoder, out / "temporal_decoder", shown, held_out)
    save_file({name: each.cpu().contiguous() for name, each in layers.state_dict().items()}, out / STEADY)
