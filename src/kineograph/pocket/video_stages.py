"""The recipe's stages for the video models; each reads what earlier ones left in the folder and leaves one thing there."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from kineograph.models.adapter_files import save_motion
from kineograph.models.unet import VideoUNet
from kineograph.pocket import (
    decoder,
    degraded,
    films,
    image_to_video,
    motion_adapter,
    moving_text,
    panned,
    video,
    video_sheets,
    vidrd,
)
from kineograph.pocket.feed import Pool
from kineograph.pocket.fit import Plan, best_device
from kineograph.pocket.norms import with_quick_norms
from kineograph.pocket.settings import Settings

TEXT_TO_VIDEO, READING, IMAGE_TO_VIDEO, JOINT, FILMS_ONLY, CLASS_READING, CLASS_TOKEN, DEGRADED, VIDRD, PANNED, UNPANNED, STEADY = (
    f"{name}.safetensors"
    for name in (
        "text_to_video", "image_reading", "image_to_video", "joint", "films_only", "class_reading", "class_token",
        "degraded", "vidrd", "vidrd_panned", "vidrd_unpanned", "temporal_decoder",
    )
)  # fmt: skip
MOTION_ADAPTER = "motion_adapter.safetensors"
PATCHES, CLASS = None, 1  # how many of the image encoder's states: all, or the class token alone


def filmed(settings: Settings, out: Path) -> tuple[Pool, Pool]:
    """Films to train on, and pictures beside them, as latents."""
    at, encoder = out / "video_films", out / "vae" / "final"
    return (
        films.pool(at, encoder, settings.screened, seed=settings.seed, split="train"),
        films.stills(at / "stills", encoder, settings.beside, seed=settings.seed, split="train"),
    )


def train_moving_text(settings: Settings, out: Path) -> None:
    tower = CLIPTextModel.from_pretrained(out / "text" / "final")
    torch.manual_seed(settings.seed)
    trained = moving_text.train(tower, settings.moving_text, out / "moving_text", settings.told, tokens=_tokens(out))
    trained.save_pretrained(out / "moving_text" / "final")


def train_text_to_video(settings: Settings, out: Path) -> None:
    _train_films(settings, settings.text_to_video, out, TEXT_TO_VIDEO, video.PICTURES)


def train_joint(settings: Settings, out: Path) -> None:
    """For the paper's ablation: a short training on films and pictures,"""
    _train_films(settings, settings.apart, out, JOINT, video.PICTURES)


def train_films_only(settings: Settings, out: Path) -> None:
    """and one of as many steps on the same films alone."""
    _train_films(settings, settings.apart, out, FILMS_ONLY, share=0)


def _train_films(settings: Settings, plan: Plan, out: Path, result: str, share: float) -> None:
    shown, stills = filmed(settings, out)
    torch.manual_seed(settings.seed)
    net = video.Films(UNet2DConditionModel.from_pretrained(out / "unet" / "final"), video.TEXT_TO_VIDEO)
    folder, tower, tokens = out / Path(result).stem, _tower(out), _tokens(out)
    report = video_sheets.reporter(folder, _autoencoder(out), tower, tokens, settings.sketched)
    trained = video.train(net, plan, folder, shown, stills, report, text=tower, tokenizer=tokens, share=share)
    save_file(video.learnt(trained), out / result)


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
    bad = films.pool(at, encoder, settings.spoilt, seed=settings.seed + 2, split="train", seen=degraded.spoilt)
    _, stills = filmed(settings, out)
    torch.manual_seed(settings.seed)
    folder = out / Path(DEGRADED).stem
    trained = degraded.train(
        _opened(out), settings.degraded, folder, bad, stills, text=_tower(out), tokenizer=_tokens(out)
    )
    save_file(trained, out / DEGRADED)


def train_motion_adapter(settings: Settings, out: Path) -> None:
    """For Still-Moving: what makes the video network's films stand still."""
    shown, _ = filmed(settings, out)
    torch.manual_seed(settings.seed)
    folder, tower, tokens = out / Path(MOTION_ADAPTER).stem, _tower(out), _tokens(out)
    net = motion_adapter.train(_opened(out), settings.motion_adapter, folder, shown, text=tower, tokenizer=tokens)
    assert net.motion_adapter is not None and net.temporal is not None
    save_motion(net.motion_adapter, net.temporal, out / MOTION_ADAPTER, name="pocket-video")


def train_vidrd(settings: Settings, out: Path) -> None:
    """VidRD's layers in place of the video network's own."""
    _train_vidrd(settings, settings.vidrd, out, VIDRD, settings.panned_share)


def train_panned(settings: Settings, out: Path) -> None:
    """For the paper's ablation: a short training on films and panned pictures, half and half,"""
    _train_vidrd(settings, settings.vidrd_apart, out, PANNED, share=0.5)


def train_unpanned(settings: Settings, out: Path) -> None:
    """and one of as many steps on films alone."""
    _train_vidrd(settings, settings.vidrd_apart, out, UNPANNED, share=0)


def _train_vidrd(settings: Settings, plan: Plan, out: Path, result: str, share: float) -> None:
    shown, stills = filmed(settings, out)
    folder, tower, tokens = out / Path(result).stem, _tower(out), _tokens(out)
    draw = video.screenings(shown, stills, plan.batch, tokens)
    if share:
        at, encoder = out / "panned", out / "vae" / "final"
        wandered = panned.pool(at, encoder, settings.panned, seed=settings.seed, split="train")
        draw = vidrd.in_turn(draw, panned.screenings(wandered, plan.batch, tokens), share)
    torch.manual_seed(settings.seed)
    report = video_sheets.reporter(folder, _autoencoder(out), tower, tokens, settings.sketched)
    trained = vidrd.train(vidrd.Reused(_opened(out), vidrd.CONFIG), plan, folder, draw, report, text=tower)
    save_file(vidrd.learnt(trained.net), out / result)


def train_temporal_decoder(settings: Settings, out: Path) -> None:
    shown = decoder.pool(out / "decoded", settings.decoded, seed=settings.seed, split="train")
    held_out = decoder.pool(out / "decoded", 4, seed=settings.seed + 1, split="held_out")
    torch.manual_seed(settings.seed)
    autoencoder = AutoencoderKL.from_pretrained(out / "vae" / "final")
    layers = decoder.train(autoencoder, settings.temporal_decoder, out / "temporal_decoder", shown, held_out)
    save_file({name: each.cpu().contiguous() for name, each in layers.state_dict().items()}, out / STEADY)


def _read_pictures(settings: Settings, out: Path, result: str, states: int | None) -> None:
    _, stills = filmed(settings, out)
    seen = image_to_video.looks(
        _encoder(out), out / "video_films" / "stills_seen.npy", image_to_video.of_pictures(stills)
    )
    torch.manual_seed(settings.seed)
    animator = image_to_video.Animator(image_to_video.with_reading(_opened(out)))
    draw = image_to_video.stills(
        stills, seen[:, :states], _blank(out)[:states], settings.image_reading.batch, _tokens(out)
    )
    _read(settings, settings.image_reading, out, result, animator, draw, states)


def _read_films(settings: Settings, out: Path, begun: str, result: str, states: int | None) -> None:
    shown, _ = filmed(settings, out)
    seen = image_to_video.looks(_encoder(out), out / "video_films" / "films_seen.npy", image_to_video.of_films(shown))
    net = image_to_video.with_reading(_opened(out))
    net.load_state_dict(load_file(out / begun), strict=False)
    draw = image_to_video.films(
        shown, seen[:, :states], _blank(out)[:states], settings.image_to_video.batch, _tokens(out)
    )
    _read(settings, settings.image_to_video, out, result, image_to_video.Animator(net), draw, states)


def _read(
    settings: Settings, plan: Plan, out: Path, result: str, animator: image_to_video.Animator,
    draw: image_to_video.Draw, states: int | None,
) -> None:  # fmt: skip
    """Train what reads pictures, and keep it."""
    folder, tower = out / Path(result).stem, _tower(out)
    report = _reporter(settings, out, folder, tower, states)
    net = image_to_video.train(animator, plan, folder, draw, report, text=tower)
    read = {name: weight for name, weight in net.state_dict().items() if image_to_video.reads(name)}
    save_file({name: weight.detach().cpu().contiguous() for name, weight in read.items()}, out / result)


def _reporter(
    settings: Settings, out: Path, folder: Path, tower: CLIPTextModel, states: int | None
) -> image_to_video.Report:
    if not settings.sketched:
        return lambda animator: {}
    held_out = films.pool(
        out / "video_films", out / "vae" / "final", settings.shown, seed=settings.seed + 1, split="held_out"
    )
    few = Pool(held_out.pictures, held_out.facts[: settings.sketched])
    seen = image_to_video.looks(_encoder(out), out / "video_films" / "held_out_seen.npy", image_to_video.of_films(few))
    return image_to_video.reporter(
        folder, few, seen[:, :states], _blank(out)[:states], autoencoder=_autoencoder(out), text=tower,
        tokenizer=_tokens(out),
    )  # fmt: skip


def _opened(out: Path) -> VideoUNet:
    """The text-to-video network."""
    unet = UNet2DConditionModel.from_pretrained(out / "unet" / "final")
    return video.restored(unet, video.TEXT_TO_VIDEO, load_file(out / TEXT_TO_VIDEO))


def _tower(out: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(out / "moving_text" / "final")


def _tokens(out: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")


def _encoder(out: Path) -> CLIPVisionModel:
    return CLIPVisionModel.from_pretrained(out / "clip" / "final")


def _blank(out: Path) -> image_to_video.Seen:
    return image_to_video.blank(_encoder(out))


def _autoencoder(out: Path) -> AutoencoderKL:
    autoencoder = AutoencoderKL.from_pretrained(out / "vae" / "final")
    return with_quick_norms(autoencoder.to(best_device(), memory_format=torch.channels_last))
