"""The recipe's stages for the video models; each reads what earlier ones left in the folder and leaves one thing there."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

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
ALL_TOKENS, CLASS_TOKEN_ONLY = None, 1  # how many of the image encoder's states: all, or the class token alone


def moving_text_stage(settings: RecipeSettings, out: Path) -> None:
    tower = CLIPTextModel.from_pretrained(out / "text" / "final")
    torch.manual_seed(settings.seed)
    trained = text_encoder.train_video_text_encoder(
        tower, settings.moving_text, out / "moving_text", settings.num_clip_captions, tokens=outputs.load_tokenizer(out)
    )
    trained.save_pretrained(out / "moving_text" / "final")


def text_to_video_stage(settings: RecipeSettings, out: Path) -> None:
    trained = _train_video_unet(settings, settings.text_to_video, out, TEXT_TO_VIDEO, batches.IMAGE_SHARE)
    text_to_video.amplify_frame_rates(trained.net)
    save_file(text_to_video.trained_weights(trained), out / TEXT_TO_VIDEO)


def joint_stage(settings: RecipeSettings, out: Path) -> None:
    """For the paper's ablation: a short training on films and pictures,"""
    trained = _train_video_unet(settings, settings.ablation, out, JOINT, batches.IMAGE_SHARE)
    save_file(text_to_video.trained_weights(trained), out / JOINT)


def films_only_stage(settings: RecipeSettings, out: Path) -> None:
    """and one of as many steps on the same films alone."""
    trained = _train_video_unet(settings, settings.ablation, out, FILMS_ONLY, share=0)
    save_file(text_to_video.trained_weights(trained), out / FILMS_ONLY)


def _train_video_unet(
    settings: RecipeSettings, plan: StagePlan, out: Path, result: str, share: float
) -> text_to_video.TextToVideoUNet:
    shown, stills = outputs.video_pools(settings, out)
    torch.manual_seed(settings.seed)
    net = text_to_video.TextToVideoUNet(
        UNet2DConditionModel.from_pretrained(out / "unet" / "final"), text_to_video.TEXT_TO_VIDEO
    )
    folder, tower, tokens = out / Path(result).stem, outputs.load_text_encoder(out), outputs.load_tokenizer(out)
    report = samples.video_report(folder, outputs.load_vae(out), tower, tokens, settings.num_report_videos)
    sample_batch = batches.video_batches(shown, stills, plan.batch, tokens, share)
    return text_to_video.train_text_to_video(net, plan, folder, sample_batch, report, text=tower)


def image_reading_stage(settings: RecipeSettings, out: Path) -> None:
    """Single pictures teach to read pictures,"""
    _train_on_stills(settings, out, IMAGE_READING, ALL_TOKENS)


def image_to_video_stage(settings: RecipeSettings, out: Path) -> None:
    """and films to carry on from their first frame."""
    _train_on_clips(settings, out, IMAGE_READING, IMAGE_TO_VIDEO, ALL_TOKENS)


def class_reading_stage(settings: RecipeSettings, out: Path) -> None:
    """For the paper's ablation, the same of the class token alone,"""
    _train_on_stills(settings, out, CLASS_READING, CLASS_TOKEN_ONLY)


def class_token_stage(settings: RecipeSettings, out: Path) -> None:
    """in two stages of as many minutes."""
    _train_on_clips(settings, out, CLASS_READING, CLASS_TOKEN, CLASS_TOKEN_ONLY)


def degraded_stage(settings: RecipeSettings, out: Path) -> None:
    """For VideoElevator: what bad films make of the video network."""
    at, encoder = out / "spoilt_films", out / "vae" / "final"
    bad = clips.load_clip_pool(
        at, encoder, settings.num_degraded_clips, seed=settings.seed + 2, split="train", seen=degraded.degrade_frames
    )
    _, stills = outputs.video_pools(settings, out)
    torch.manual_seed(settings.seed)
    folder = out / Path(DEGRADED).stem
    trained = degraded.train_degraded(
        outputs.load_text_to_video(out),
        settings.degraded,
        folder,
        bad,
        stills,
        text=outputs.load_text_encoder(out),
        tokenizer=outputs.load_tokenizer(out),
    )
    save_file(trained, out / DEGRADED)


def _train_on_stills(settings: RecipeSettings, out: Path, result: str, states: int | None) -> None:
    _, stills = outputs.video_pools(settings, out)
    seen = image_to_video.load_image_states(
        outputs.load_image_encoder(out), out / "video_films" / "stills_seen.npy", image_to_video.image_times(stills)
    )
    torch.manual_seed(settings.seed)
    animator = image_to_video.ImageToVideoUNet(image_to_video.add_image_attention(outputs.load_text_to_video(out)))
    sample_batch = image_to_video.image_batches(
        stills, seen[:, :states], _grey_states(out)[:states], settings.image_reading.batch, outputs.load_tokenizer(out)
    )
    _train_image_layers(settings, settings.image_reading, out, result, animator, sample_batch, states)


def _train_on_clips(settings: RecipeSettings, out: Path, begun: str, result: str, states: int | None) -> None:
    shown, _ = outputs.video_pools(settings, out)
    seen = image_to_video.load_image_states(
        outputs.load_image_encoder(out), out / "video_films" / "films_seen.npy", image_to_video.first_frame_times(shown)
    )
    net = image_to_video.add_image_attention(outputs.load_text_to_video(out))
    net.load_state_dict(load_file(out / begun), strict=False)
    sample_batch = image_to_video.first_frame_batches(
        shown, seen[:, :states], _grey_states(out)[:states], settings.image_to_video.batch, outputs.load_tokenizer(out)
    )
    _train_image_layers(
        settings, settings.image_to_video, out, result, image_to_video.ImageToVideoUNet(net), sample_batch, states
    )


def _train_image_layers(
    settings: RecipeSettings, plan: StagePlan, out: Path, result: str, animator: image_to_video.ImageToVideoUNet,
    sample_batch: SampleBatch, states: int | None,
) -> None:  # fmt: skip
    """Train what reads pictures, and keep it."""
    folder, tower = out / Path(result).stem, outputs.load_text_encoder(out)
    report = _reporter(settings, out, folder, tower, states)
    net = image_to_video.train_image_to_video(animator, plan, folder, sample_batch, report, text=tower)
    read = {name: weight for name, weight in net.state_dict().items() if image_to_video.is_image_layer(name)}
    save_file({name: weight.detach().cpu().contiguous() for name, weight in read.items()}, out / result)


def _reporter(
    settings: RecipeSettings, out: Path, folder: Path, tower: CLIPTextModel, states: int | None
) -> image_to_video.Report:
    if not settings.num_report_videos:
        return lambda animator: {}
    held_out = clips.load_clip_pool(
        out / "video_films",
        out / "vae" / "final",
        settings.num_held_out_clips,
        seed=settings.seed + 1,
        split="held_out",
    )
    few = Pool(held_out.items, held_out.facts[: settings.num_report_videos])
    seen = image_to_video.load_image_states(
        outputs.load_image_encoder(out),
        out / "video_films" / "held_out_seen.npy",
        image_to_video.first_frame_times(few),
    )
    return image_to_video.image_to_video_report(
        folder, few, seen[:, :states], _grey_states(out)[:states], autoencoder=outputs.load_vae(out), text=tower,
        tokenizer=outputs.load_tokenizer(out),
    )  # fmt: skip


def _grey_states(out: Path) -> image_to_video.ImageStates:
    return image_to_video.grey_image_states(outputs.load_image_encoder(out))
