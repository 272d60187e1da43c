"""Stages of the image models: each reads earlier outputs in the folder, trains one network and saves it there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.pocket.networks import trained_weights
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.judge import geometry, parts_training, training
from kineograph_lab.judge.networks import ImageClassifier, Judge, MotionClassifier
from kineograph_lab.recipe import networks, outputs, pool
from kineograph_lab.recipe.image import clip, controlnets, edit, text_encoder, unet, vae
from kineograph_lab.recipe.image.vae import initialise_as_resizing
from kineograph_lab.recipe.long import growing_pool
from kineograph_lab.recipe.loop import best_device, log_metrics
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.world import edits
from kineograph_lab.world.truth import CONTROL_MAPS

Stage = Callable[[RecipeSettings, Path], None]
EDIT = "edit.safetensors"


def image_pools(settings: RecipeSettings, out: Path) -> tuple[Pool, Pool]:
    """Return the pools of training and held-out images."""
    folder, render, seed = out / "pool", growing_pool.wide_image if settings.wide else pool.random_image, settings.seed
    train = pool.load_pool(folder, settings.num_images, seed=seed, split="train", render=render)
    return train, pool.load_pool(folder, settings.num_held_out_images, seed=seed + 1, split="held_out", render=render)


def vae_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the VAE."""
    train, held_out = image_pools(settings, out)
    torch.manual_seed(settings.seed)
    net = initialise_as_resizing(networks.build_vae())
    vae.train_vae(net, settings.vae, out / "vae", train, held_out).save_pretrained(out / "vae" / "final")


def text_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the tokenizer and the text encoder."""
    train, held_out = image_pools(settings, out)
    tokenizer = networks.build_tokenizer(pool_captions(train))
    tokenizer.save_pretrained(out / "text" / "tokenizer")
    torch.manual_seed(settings.seed)
    text_encoder_model = networks.build_clip(tokenizer).text_model
    text_encoder.train_image_text_encoder(
        text_encoder_model, settings.text, out / "text", train, held_out, tokenizer=tokenizer
    ).save_pretrained(out / "text" / "final")


def clip_stage(settings: RecipeSettings, out: Path) -> None:
    """Train CLIP."""
    train, held_out = image_pools(settings, out)
    tokenizer = CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")
    torch.manual_seed(settings.seed)
    initial = networks.build_clip(tokenizer)
    initial.text_model.load_state_dict(CLIPTextModel.from_pretrained(out / "text" / "final").state_dict())
    net = clip.train_clip(initial, settings.clip, out / "clip", train, held_out, tokenizer=tokenizer)
    net.save_pretrained(out / "clip" / "final")


def unet_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the U-Net."""
    train, _ = image_pools(settings, out)
    vae_model, text_model, tokenizer_model = _frozen_models(out)
    torch.manual_seed(settings.seed)
    net = unet.train_unet(
        networks.build_unet(),
        settings.unet,
        out / "unet",
        train,
        vae=vae_model,
        text=text_model,
        tokenizer=tokenizer_model,
    )
    net.save_pretrained(out / "unet" / "final")


def _frozen_models(out: Path) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    autoencoder = AutoencoderKL.from_pretrained(out / "vae" / "final")
    return (
        use_fast_group_norm(autoencoder.to(best_device(), memory_format=torch.channels_last)),
        CLIPTextModel.from_pretrained(out / "text" / "final"),
        CLIPTokenizer.from_pretrained(out / "text" / "tokenizer"),
    )


def control_stage(settings: RecipeSettings, out: Path) -> None:
    """Train a ControlNet for each kind of control map."""
    train, held_out = image_pools(settings, out)
    vae_model, text_model, tokenizer_model = _frozen_models(out)
    for kind in CONTROL_MAPS:
        file = out / "control" / f"{kind}.safetensors"
        if file.exists():
            continue
        torch.manual_seed(settings.seed)
        net = controlnets.train_controlnet(
            kind, UNet2DConditionModel.from_pretrained(out / "unet" / "final"), settings.control, out / "control" / kind,
            train, held_out, latents=unet.load_latents(out / "unet", vae_model, train), vae=vae_model, text=text_model,
            tokenizer=tokenizer_model, initial=outputs.initial_weights(settings, out, f"control/{kind}.safetensors"),
        )  # fmt: skip
        _save_added(net, file)


def edit_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the editing U-Net."""
    train, held_out = _judge_pools(
        settings,
        out / "edits",
        settings.num_edit_families,
        edits.wide_edit_family if settings.wide else edits.edit_family,
    )
    vae_model, text_model, tokenizer_model = _frozen_models(out)
    torch.manual_seed(settings.seed)
    net = edit.train_editing_unet(
        UNet2DConditionModel.from_pretrained(out / "unet" / "final"), settings.edit, out / "edit", train, held_out,
        vae=vae_model, text=text_model, tokenizer=tokenizer_model,
        initial=outputs.initial_weights(settings, out, EDIT),
    )  # fmt: skip
    _save_added(net, out / EDIT)


def _save_added(net: ControlNetModel | UNet2DConditionModel, path: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in trained_weights(net).items()}, path)


def judge_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the judge."""
    torch.manual_seed(settings.seed)
    judge = Judge()
    judge.eye.load_state_dict(_image_classifier(judge.eye, settings, out).state_dict())
    judge.motion_eye.load_state_dict(_motion_classifier(judge.motion_eye, settings, out).state_dict())
    save_file({name: weight.contiguous() for name, weight in judge.state_dict().items()}, out / "judge.safetensors")


def geometry_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the judge of geometry."""
    train, held_out = image_pools(settings, out)
    torch.manual_seed(settings.seed)
    network = geometry.train_geometry(settings.geometry, out / "geometry", train, held_out)
    save_file(
        {name: weight.contiguous() for name, weight in network.state_dict().items()}, out / "geometry.safetensors"
    )


def parts_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the judge of anatomy, choose its thresholds on development images and report on other ones."""
    train, development, held_out = (
        pool.load_pool(out / "anatomy", count, seed=settings.seed + k, split=split, render=render)
        for k, (count, split, render) in enumerate(
            (
                (settings.num_part_images, "train", parts_training.training_image),
                (settings.num_part_held_out, "held_out", parts_training.evaluation_image),
                (settings.num_part_held_out, "held_out", parts_training.evaluation_image),
            )
        )
    )
    torch.manual_seed(settings.seed)
    network = parts_training.train_parts(settings.parts, out / "parts", train, development)
    log_metrics(out / "parts", {"held_out": 1.0, **parts_training.parts_report(held_out)(network)})
    save_file({name: weight.contiguous() for name, weight in network.state_dict().items()}, out / "parts.safetensors")


def _image_classifier(net: ImageClassifier, settings: RecipeSettings, out: Path) -> nn.Module:
    train, held_out = _judge_pools(settings, out / "families", settings.num_families, training.individual_family)
    # Held-out pairs are in the judge's training set: they must be new to the generator only, and the judge must know them.
    seed, more = settings.seed + 2, settings.num_families // 3
    pairs = pool.load_pool(out / "families", more, seed=seed, split="held_out", render=training.individual_family)
    images = pool.join_pools(
        image_pools(settings, out)[0],
        pool.load_pool(out / "pool", settings.num_held_out_pairs, seed=seed, split="held_out"),
    )
    return training.train_image_classifier(
        net, settings.image_classifier, out / "eye", pool.join_pools(train, pairs), images, held_out
    )


def _motion_classifier(net: MotionClassifier, settings: RecipeSettings, out: Path) -> MotionClassifier:
    train, held_out = _judge_pools(settings, out / "films", settings.num_motion_clips, training.motion_clip)
    return training.train_motion_classifier(net, settings.motion_classifier, out / "motion", train, held_out)


def _judge_pools(settings: RecipeSettings, folder: Path, count: int, render: pool.RenderItem) -> tuple[Pool, Pool]:
    train = pool.load_pool(folder, count, seed=settings.seed, split="train", render=render)
    return train, pool.load_pool(
        folder, settings.num_judge_held_out, seed=settings.seed + 1, split="held_out", render=render
    )


def pool_captions(pool: Pool) -> list[str]:
    """Return all captions of the pool."""
    return [caption for fact in pool.facts for caption in fact["captions"]]
