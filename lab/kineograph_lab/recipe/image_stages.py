"""The stages of the recipe: each reads what earlier ones left in the folder, trains one thing and leaves it there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.pocket.networks import trained_weights
from kineograph.training.norms import use_fast_group_norm
from kineograph_lab.judge import geometry, training
from kineograph_lab.judge.networks import Eye, Judge, MotionEye
from kineograph_lab.recipe import networks
from kineograph_lab.recipe import pool as feed
from kineograph_lab.recipe.image import clip, controlnets, edit, text_encoder, tokenizer, unet, vae
from kineograph_lab.recipe.image.initial_vae import start_from_shrinking
from kineograph_lab.recipe.long import growing_pool
from kineograph_lab.recipe.loop import best_device
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.settings import Settings
from kineograph_lab.world import edits
from kineograph_lab.world.truth import MAPS

Stage = Callable[[Settings, Path], None]


def pools(settings: Settings, out: Path) -> tuple[Pool, Pool]:
    """Pictures to train on and held-out ones."""
    at, paint, seed = out / "pool", growing_pool.image if settings.wide else feed.picture, settings.seed
    train = feed.pool(at, settings.pictures, seed=seed, split="train", paint=paint)
    return train, feed.pool(at, settings.held_out, seed=seed + 1, split="held_out", paint=paint)


def train_vae(settings: Settings, out: Path) -> None:
    train, held_out = pools(settings, out)
    torch.manual_seed(settings.seed)
    net = start_from_shrinking(networks.vae())
    vae.train(net, settings.vae, out / "vae", train, held_out).save_pretrained(out / "vae" / "final")


def train_text(settings: Settings, out: Path) -> None:
    train, held_out = pools(settings, out)
    tokens = tokenizer.tokenizer(told(train))
    tokens.save_pretrained(out / "text" / "tokenizer")
    torch.manual_seed(settings.seed)
    tower = networks.clip(tokens).text_model
    text_encoder.train(tower, settings.text, out / "text", train, held_out, tokens=tokens).save_pretrained(
        out / "text" / "final"
    )


def train_clip(settings: Settings, out: Path) -> None:
    train, held_out = pools(settings, out)
    tokens = CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")
    torch.manual_seed(settings.seed)
    start = networks.clip(tokens)
    start.text_model.load_state_dict(CLIPTextModel.from_pretrained(out / "text" / "final").state_dict())
    net = clip.train(start, settings.clip, out / "clip", train, held_out, tokens=tokens)
    net.save_pretrained(out / "clip" / "final")


def train_unet(settings: Settings, out: Path) -> None:
    train, _ = pools(settings, out)
    autoencoder, tower, tokens = _around_the_unet(out)
    torch.manual_seed(settings.seed)
    net = unet.train(networks.unet(), settings.unet, out / "unet", train, vae=autoencoder, text=tower, tokenizer=tokens)
    net.save_pretrained(out / "unet" / "final")


def _around_the_unet(out: Path) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    autoencoder = AutoencoderKL.from_pretrained(out / "vae" / "final")
    return (
        use_fast_group_norm(autoencoder.to(best_device(), memory_format=torch.channels_last)),
        CLIPTextModel.from_pretrained(out / "text" / "final"),
        CLIPTokenizer.from_pretrained(out / "text" / "tokenizer"),
    )


def train_control(settings: Settings, out: Path) -> None:
    train, held_out = pools(settings, out)
    autoencoder, tower, tokens = _around_the_unet(out)
    for kind in MAPS:
        kept = out / "control" / f"{kind}.safetensors"
        if kept.exists():
            continue
        torch.manual_seed(settings.seed)
        net = controlnets.train(
            kind, UNet2DConditionModel.from_pretrained(out / "unet" / "final"), settings.control, out / "control" / kind,
            train, held_out, latents=unet.cached_latents(out / "unet", autoencoder, train), vae=autoencoder, text=tower,
            tokenizer=tokens,
        )  # fmt: skip
        _keep_added(net, kept)


def train_edit(settings: Settings, out: Path) -> None:
    train, held_out = _judged(
        settings, out / "edits", settings.edits, edits.wide_family if settings.wide else edits.family
    )
    autoencoder, tower, tokens = _around_the_unet(out)
    torch.manual_seed(settings.seed)
    net = edit.train(
        UNet2DConditionModel.from_pretrained(out / "unet" / "final"), settings.edit, out / "edit", train, held_out,
        vae=autoencoder, text=tower, tokenizer=tokens,
    )  # fmt: skip
    _keep_added(net, out / "edit.safetensors")


def _keep_added(net: ControlNetModel | UNet2DConditionModel, path: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in trained_weights(net).items()}, path)


def train_judge(settings: Settings, out: Path) -> None:
    torch.manual_seed(settings.seed)
    judge = Judge()
    judge.eye.load_state_dict(_train_eye(judge.eye, settings, out).state_dict())
    judge.motion_eye.load_state_dict(_train_motion_eye(judge.motion_eye, settings, out).state_dict())
    save_file({name: weight.contiguous() for name, weight in judge.state_dict().items()}, out / "judge.safetensors")


def train_geometry(settings: Settings, out: Path) -> None:
    train, held_out = pools(settings, out)
    torch.manual_seed(settings.seed)
    eye = geometry.train(settings.geometry, out / "geometry", train, held_out)
    save_file({name: weight.contiguous() for name, weight in eye.state_dict().items()}, out / "geometry.safetensors")


def _train_eye(net: Eye, settings: Settings, out: Path) -> nn.Module:
    train, held_out = _judged(settings, out / "families", settings.families, training.family)
    # A judge that had never seen a pink car would doubt that one is a car; only the generator must not have seen it.
    seed, more = settings.seed + 2, settings.families // 3
    pairs = feed.pool(out / "families", more, seed=seed, split="held_out", paint=training.family)
    pictures = feed.joined(
        pools(settings, out)[0], feed.pool(out / "pool", settings.pairs, seed=seed, split="held_out")
    )
    return training.train_eye(net, settings.eye, out / "eye", feed.joined(train, pairs), pictures, held_out)


def _train_motion_eye(net: MotionEye, settings: Settings, out: Path) -> MotionEye:
    train, held_out = _judged(settings, out / "films", settings.films, training.film)
    return training.train_motion_eye(net, settings.motion, out / "motion", train, held_out)


def _judged(settings: Settings, folder: Path, count: int, paint: feed.Paint) -> tuple[Pool, Pool]:
    train = feed.pool(folder, count, seed=settings.seed, split="train", paint=paint)
    return train, feed.pool(folder, settings.judged, seed=settings.seed + 1, split="held_out", paint=paint)


def told(pool: Pool) -> list[str]:
    """All captions of the pool."""
    return [caption for fact in pool.facts for caption in fact["captions"]]
