"""Stages of the video models; each reads earlier outputs in the folder, trains one network and saves it there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from kineograph.models.pocket.networks import load_float32
from kineograph_lab.recipe import outputs
from kineograph_lab.recipe.loop import SampleBatch, StagePlan
from kineograph_lab.recipe.outputs import TEXT_TO_VIDEO
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.recipe.video import batches, clips, degraded, image_to_video, samples, text_encoder, text_to_video

IMAGE_READING, IMAGE_TO_VIDEO, JOINT, FILMS_ONLY, CLASS_READING, CLASS_TOKEN, DEGRADED = (
    f"{name}.safetensors"
    for name in (
        "image_reading", "image_to_video", "joint", "films_only", "class_reading", "class_token", "degraded",
    )
)  # fmt: skip
ALL_TOKENS, CLASS_TOKEN_ONLY = None, 1  # number of the image encoder's tokens: all, or the class token alone


def moving_text_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the text encoder of the video models."""
    text_model = CLIPTextModel.from_pretrained(out / "text" / "final")
    torch.manual_seed(settings.seed)
    trained = text_encoder.train_video_text_encoder(
        text_model,
        settings.moving_text,
        out / "moving_text",
        settings.num_clip_captions,
        tokenizer=outputs.load_tokenizer(out),
    )
    trained.save_pretrained(out / "moving_text" / "final")


def text_to_video_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the text-to-video network."""
    initial = outputs.initial_weights(settings, out, TEXT_TO_VIDEO)
    trained = _train_video_unet(settings, settings.text_to_video, out, TEXT_TO_VIDEO, batches.IMAGE_SHARE, initial)
    text_to_video.amplify_frame_rates(trained.net)
    save_file(text_to_video.text_to_video_weights(trained), out / TEXT_TO_VIDEO)


def joint_stage(settings: RecipeSettings, out: Path) -> None:
    """Train shortly on clips and images, for the ablation of joint training."""
    trained = _train_video_unet(settings, settings.ablation, out, JOINT, batches.IMAGE_SHARE)
    save_file(text_to_video.text_to_video_weights(trained), out / JOINT)


def films_only_stage(settings: RecipeSettings, out: Path) -> None:
    """Train for as many steps on the same clips alone, for the same ablation."""
    trained = _train_video_unet(settings, settings.ablation, out, FILMS_ONLY, share=0)
    save_file(text_to_video.text_to_video_weights(trained), out / FILMS_ONLY)


def _train_video_unet(
    settings: RecipeSettings, plan: StagePlan, out: Path, result: str, share: float,
    initial: Mapping[str, Tensor] | None = None,
) -> text_to_video.TextToVideoUNet:  # fmt: skip
    clip_pool, stills = outputs.video_pools(settings, out)
    torch.manual_seed(settings.seed)
    image_unet = UNet2DConditionModel.from_pretrained(out / "unet" / "final")
    if initial:
        earlier = UNet2DConditionModel.from_pretrained(out / str(settings.initial) / "unet" / "final")
        initial = text_to_video.move_to_other_unet(initial, earlier.state_dict(), image_unet.state_dict())
    net = text_to_video.TextToVideoUNet(image_unet, text_to_video.TEXT_TO_VIDEO)
    if initial:
        load_float32(net.net, initial)
        text_to_video.amplify_frame_rates(net.net, 1 / text_to_video.FPS_GAIN)  # as it was before it was shipped
    folder, text_model, tokenizer = out / Path(result).stem, outputs.load_text_encoder(out), outputs.load_tokenizer(out)
    report = samples.video_report(folder, outputs.load_vae(out), text_model, tokenizer, settings.num_report_videos)
    curriculum = batches.LATE_CURRICULUM if initial else batches.CURRICULUM
    sample_batch = batches.video_batches(clip_pool, stills, plan.batch, tokenizer, share, curriculum)
    return text_to_video.train_text_to_video(net, plan, folder, sample_batch, report, text=text_model)


def image_reading_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the image layers on single images."""
    _train_on_stills(settings, out, IMAGE_READING, ALL_TOKENS)


def image_to_video_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the image layers further on clips, conditioned on their first frame."""
    initial = f"{settings.initial}/{IMAGE_TO_VIDEO}" if settings.initial else IMAGE_READING
    _train_on_clips(settings, out, initial, IMAGE_TO_VIDEO, ALL_TOKENS)


def class_reading_stage(settings: RecipeSettings, out: Path) -> None:
    """Train image layers that read the class token alone on single images, for the ablation of image tokens."""
    _train_on_stills(settings, out, CLASS_READING, CLASS_TOKEN_ONLY)


def class_token_stage(settings: RecipeSettings, out: Path) -> None:
    """Train those further on clips, for the same ablation."""
    _train_on_clips(settings, out, CLASS_READING, CLASS_TOKEN, CLASS_TOKEN_ONLY)


def degraded_stage(settings: RecipeSettings, out: Path) -> None:
    """Train the video network further on degraded clips, for VideoElevator's comparison."""
    folder_of_clips, encoder = out / "spoilt_films", out / "vae" / "final"
    degraded_pool = clips.load_clip_pool(
        folder_of_clips,
        encoder,
        settings.num_degraded_clips,
        seed=settings.seed + 2,
        split="train",
        transform=degraded.degrade_frames,
    )
    _, stills = outputs.video_pools(settings, out)
    torch.manual_seed(settings.seed)
    folder = out / Path(DEGRADED).stem
    trained = degraded.train_degraded(
        outputs.load_text_to_video(out),
        settings.degraded,
        folder,
        degraded_pool,
        stills,
        text=outputs.load_text_encoder(out),
        tokenizer=outputs.load_tokenizer(out),
    )
    save_file(trained, out / DEGRADED)


def _train_on_stills(settings: RecipeSettings, out: Path, result: str, num_tokens: int | None) -> None:
    _, stills = outputs.video_pools(settings, out)
    states = image_to_video.load_image_states(
        outputs.load_image_encoder(out), out / "video_films" / "stills_seen.npy", image_to_video.image_times(stills)
    )
    torch.manual_seed(settings.seed)
    net = image_to_video.ImageToVideoUNet(image_to_video.add_image_attention(outputs.load_text_to_video(out)))
    sample_batch = image_to_video.image_batches(
        stills,
        states[:, :num_tokens],
        _grey_states(out)[:num_tokens],
        settings.image_reading.batch,
        outputs.load_tokenizer(out),
    )
    _train_image_layers(settings, settings.image_reading, out, result, net, sample_batch, num_tokens)


def _train_on_clips(settings: RecipeSettings, out: Path, initial: str, result: str, num_tokens: int | None) -> None:
    clip_pool, _ = outputs.video_pools(settings, out)
    states = image_to_video.load_image_states(
        outputs.load_image_encoder(out),
        out / "video_films" / "films_seen.npy",
        image_to_video.first_frame_times(clip_pool),
    )
    net = image_to_video.add_image_attention(outputs.load_text_to_video(out))
    net.load_state_dict(load_file(out / initial), strict=False)
    sample_batch = image_to_video.first_frame_batches(
        clip_pool,
        states[:, :num_tokens],
        _grey_states(out)[:num_tokens],
        settings.image_to_video.batch,
        outputs.load_tokenizer(out),
    )
    _train_image_layers(
        settings, settings.image_to_video, out, result, image_to_video.ImageToVideoUNet(net), sample_batch, num_tokens
    )


def _train_image_layers(
    settings: RecipeSettings, plan: StagePlan, out: Path, result: str, net_with_image: image_to_video.ImageToVideoUNet,
    sample_batch: SampleBatch, num_tokens: int | None,
) -> None:  # fmt: skip
    """Train the image layers and save them."""
    folder, text_model = out / Path(result).stem, outputs.load_text_encoder(out)
    report = _reporter(settings, out, folder, text_model, num_tokens)
    net = image_to_video.train_image_to_video(net_with_image, plan, folder, sample_batch, report, text=text_model)
    weights = {name: weight for name, weight in net.state_dict().items() if image_to_video.is_image_layer(name)}
    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, out / result)


def _reporter(
    settings: RecipeSettings, out: Path, folder: Path, text_model: CLIPTextModel, num_tokens: int | None
) -> image_to_video.Report:
    if not settings.num_report_videos:
        return lambda net: {}
    held_out = clips.load_clip_pool(
        out / "video_films",
        out / "vae" / "final",
        settings.num_held_out_clips,
        seed=settings.seed + 1,
        split="held_out",
    )
    few = Pool(held_out.items, held_out.facts[: settings.num_report_videos])
    states = image_to_video.load_image_states(
        outputs.load_image_encoder(out),
        out / "video_films" / "held_out_seen.npy",
        image_to_video.first_frame_times(few),
    )
    return image_to_video.image_to_video_report(
        folder, few, states[:, :num_tokens], _grey_states(out)[:num_tokens], vae_model=outputs.load_vae(out), text=text_model,
        tokenizer=outputs.load_tokenizer(out),
    )  # fmt: skip


def _grey_states(out: Path) -> image_to_video.ImageStates:
    return image_to_video.grey_image_states(outputs.load_image_encoder(out))
