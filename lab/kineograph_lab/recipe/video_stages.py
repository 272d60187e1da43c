"""The recipe's stages for the video models; each reads what earlier ones left in the folder and leaves one thing there."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from kineograph_lab.recipe import outputs
from kineograph_lab.recipe.loop import Draw, Plan
from kineograph_lab.recipe.outputs import TEXT_TO_VIDEO
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.settings import Settings
from kineograph_lab.recipe.video import batches, clips, degraded, image_to_video, samples, text_encoder, text_to_video

READING, IMAGE_TO_VIDEO, JOINT, FILMS_ONLY, CLASS_READING, CLASS_TOKEN, DEGRADED = (
    f"{name}.safetensors"
    for name in (
        "image_reading", "image_to_video", "joint", "films_only", "class_reading", "class_token", "degraded",
    )
)  # fmt: skip
PATCHES, CLASS = None, 1  # how many of the image encoder's states: all, or the class token alone


def train_moving_text(settings: Settings, out: Path) -> None:
    tower = CLIPTextModel.from_pretrained(out / "text" / "final")
    torch.manual_seed(settings.seed)
    trained = text_encoder.train(
        tower, settings.moving_text, out / "moving_text", settings.told, tokens=outputs.tokens(out)
    )
    trained.save_pretrained(out / "moving_text" / "final")


def train_text_to_video(settings: Settings, out: Path) -> None:
    trained = _train_films(settings, settings.text_to_video, out, TEXT_TO_VIDEO, batches.PICTURES)
    text_to_video.say_rates_louder(trained.net)
    save_file(text_to_video.learnt(trained), out / TEXT_TO_VIDEO)


def train_joint(settings: Settings, out: Path) -> None:
    """For the paper's ablation: a short training on films and pictures,"""
    trained = _train_films(settings, settings.apart, out, JOINT, batches.PICTURES)
    save_file(text_to_video.learnt(trained), out / JOINT)


def train_films_only(settings: Settings, out: Path) -> None:
    """and one of as many steps on the same films alone."""
    trained = _train_films(settings, settings.apart, out, FILMS_ONLY, share=0)
    save_file(text_to_video.learnt(trained), out / FILMS_ONLY)


def _train_films(settings: Settings, plan: Plan, out: Path, result: str, share: float) -> text_to_video.Films:
    shown, stills = outputs.filmed(settings, out)
    torch.manual_seed(settings.seed)
    net = text_to_video.Films(UNet2DConditionModel.from_pretrained(out / "unet" / "final"), text_to_video.TEXT_TO_VIDEO)
    folder, tower, tokens = out / Path(result).stem, outputs.tower(out), outputs.tokens(out)
    report = samples.reporter(folder, outputs.autoencoder(out), tower, tokens, settings.sketched)
    draw = batches.batches(shown, stills, plan.batch, tokens, share)
    return text_to_video.train(net, plan, folder, draw, report, text=tower)


def train_image_reading(settings: Settings, out: Path) -> None:
    """Single pictures teach to read pictures,"""
    _read_pictures(settings, out, READING, PATCHES)


def train_image_to_video(settings: Settings, out: Path) -> None:
    """and films to carry on from their first frame."""
    _read_films(settings, out, READING, IMAGE_TO_VIDEO, PATCHES)


def train_class_reading(settings: Settings, out: Path) -> None:
    """For the paper's ablation, the same of the class token alone,"""
    _read_pictures(settings, out, CLASS_READING, CLASS)


def train_class_token(settings: Settings, out: Path) -> None:
    """in two stages of as many minutes."""
    _read_films(settings, out, CLASS_READING, CLASS_TOKEN, CLASS)


def train_degraded(settings: Settings, out: Path) -> None:
    """For VideoElevator: what bad films make of the video network."""
    at, encoder = out / "spoilt_films", out / "vae" / "final"
    bad = clips.pool(at, encoder, settings.spoilt, seed=settings.seed + 2, split="train", seen=degraded.spoilt)
    _, stills = outputs.filmed(settings, out)
    torch.manual_seed(settings.seed)
    folder = out / Path(DEGRADED).stem
    trained = degraded.train(
        outputs.video_net(out),
        settings.degraded,
        folder,
        bad,
        stills,
        text=outputs.tower(out),
        tokenizer=outputs.tokens(out),
    )
    save_file(trained, out / DEGRADED)


def _read_pictures(settings: Settings, out: Path, result: str, states: int | None) -> None:
    _, stills = outputs.filmed(settings, out)
    seen = image_to_video.looks(
        outputs.image_encoder(out), out / "video_films" / "stills_seen.npy", image_to_video.of_pictures(stills)
    )
    torch.manual_seed(settings.seed)
    animator = image_to_video.Animator(image_to_video.with_reading(outputs.video_net(out)))
    draw = image_to_video.stills(
        stills, seen[:, :states], _blank(out)[:states], settings.image_reading.batch, outputs.tokens(out)
    )
    _read(settings, settings.image_reading, out, result, animator, draw, states)


def _read_films(settings: Settings, out: Path, begun: str, result: str, states: int | None) -> None:
    shown, _ = outputs.filmed(settings, out)
    seen = image_to_video.looks(
        outputs.image_encoder(out), out / "video_films" / "films_seen.npy", image_to_video.of_films(shown)
    )
    net = image_to_video.with_reading(outputs.video_net(out))
    net.load_state_dict(load_file(out / begun), strict=False)
    draw = image_to_video.films(
        shown, seen[:, :states], _blank(out)[:states], settings.image_to_video.batch, outputs.tokens(out)
    )
    _read(settings, settings.image_to_video, out, result, image_to_video.Animator(net), draw, states)


def _read(
    settings: Settings, plan: Plan, out: Path, result: str, animator: image_to_video.Animator,
    draw: Draw, states: int | None,
) -> None:  # fmt: skip
    """Train what reads pictures, and keep it."""
    folder, tower = out / Path(result).stem, outputs.tower(out)
    report = _reporter(settings, out, folder, tower, states)
    net = image_to_video.train(animator, plan, folder, draw, report, text=tower)
    read = {name: weight for name, weight in net.state_dict().items() if image_to_video.reads(name)}
    save_file({name: weight.detach().cpu().contiguous() for name, weight in read.items()}, out / result)


def _reporter(
    settings: Settings, out: Path, folder: Path, tower: CLIPTextModel, states: int | None
) -> image_to_video.Report:
    if not settings.sketched:
        return lambda animator: {}
    held_out = clips.pool(
        out / "video_films", out / "vae" / "final", settings.shown, seed=settings.seed + 1, split="held_out"
    )
    few = Pool(held_out.pictures, held_out.facts[: settings.sketched])
    seen = image_to_video.looks(
        outputs.image_encoder(out), out / "video_films" / "held_out_seen.npy", image_to_video.of_films(few)
    )
    return image_to_video.reporter(
        folder, few, seen[:, :states], _blank(out)[:states], autoencoder=outputs.autoencoder(out), text=tower,
        tokenizer=outputs.tokens(out),
    )  # fmt: skip


def _blank(out: Path) -> image_to_video.Seen:
    return image_to_video.blank(outputs.image_encoder(out))
