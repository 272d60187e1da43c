"""The video models: layers along time around the image network, on latents of films made once.

What is trained: the layers along time, and the image network's cross-attention, where the words for motion come in.
Single pictures train along, so that it still draws what it drew (VideoCrafter1's joint training). Where a thing goes is
decided at high noise levels, so those are looked at most; and a part of the noise is shared by all frames (PYoCo's
mixed noise): an image network draws alike from alike, so what is left to learn is how the frames differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.condition import Condition
from kineograph.denoise import guided
from kineograph.ladder import leading
from kineograph.latents import Latents
from kineograph.models.rooms import cross_attentions
from kineograph.models.schedule import Schedule
from kineograph.models.temporal_layers import TemporalConfig, TemporalLayers, TransformerConfig
from kineograph.models.unet import VideoUNet
from kineograph.noise import mixed, related
from kineograph.pocket import unet, vae, world
from kineograph.pocket.captions import MOTIONS
from kineograph.pocket.feed import Pool, things_at
from kineograph.pocket.films import FRAMES
from kineograph.pocket.fit import Batch, Figures, Plan, best_device, fit
from kineograph.pocket.judge import load_judge
from kineograph.pocket.networks import LATENT_CHANNELS
from kineograph.pocket.norms import with_quick_norms
from kineograph.pocket.sheets import as_pictures, save_sheet
from kineograph.pocket.text import captions_as_ids
from kineograph.pocket.unet import CELLS, HEAVIEST, SCHEDULER, THING, UNTOLD
from kineograph.pocket.words import ids
from kineograph.trajectory import dpmpp_2m, last

LEVEL, SPREAD, UNIFORM = 1.0, 1.0, 0.1
RATIO = 2.0  # parts of noise that all frames share to one of a frame's own: of its variance, four fifths
SHORT, LONG = 0.6, FRAMES  # until this progress clips of half the frames, twice as many of them; then whole ones
PICTURES = 0.125  # single pictures beside the films, as a part of their frames
TRANSFORMER = TransformerConfig(head_width=32, relative=FRAMES, widening=2)
TEXT_TO_VIDEO = TemporalConfig(
    num_frames=FRAMES, entry=TRANSFORMER, transformer=TRANSFORMER, frame_rate=True, noise_ratio=RATIO
)
LOOKS = tuple(
    f"a {colour} {thing} {words[0]} {scene}"
    for (motion, words), colour, thing, scene in zip(
        MOTIONS.items(),
        ("red", "blue", "green", "purple", "yellow", "orange", "pink", "brown", "red", "blue", "green"),
        ("fish", "car", "rabbit", "balloon", "turtle", "ball", "star", "mushroom", "rocket", "boat", "kite"),
        ("over the sea", "in a city", "in the snow", "in the desert", "at sea", "in a room", "in space", "in a forest",
         "in space", "at sea", "in a meadow"),
        strict=True,
    )
)  # fmt: skip

Rng = np.random.Generator
Ready = Callable[[VideoUNet], Any]


class Films(nn.Module):
    """The video network as `fit` trains it, its frozen parts frozen."""

    def __init__(self, image_unet: UNet2DConditionModel, config: TemporalConfig) -> None:
        super().__init__()
        image_unet.requires_grad_(requires_grad=False)
        for layer in cross_attentions(image_unet):
            layer.requires_grad_(requires_grad=True)
        self.net = VideoUNet(image_unet, TemporalLayers(image_unet, config))


def train(
    net: Films, plan: Plan, folder: Path, films: Pool, pictures: Pool,
    *, autoencoder: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, share: float = PICTURES,
) -> Films:  # fmt: skip
    """The averaged network. Single pictures are `share` of as many frames as the films have; 0 for none."""
    ready = with_quick_norms(net).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    draw = screenings(films, pictures, plan.batch, tokenizer, share)
    report = reporter(folder, autoencoder, text, tokenizer)
    return fit(ready, plan, folder, draw=draw, loss=partial(noise_loss, text), report=report)


def learnt(films: Films) -> dict[str, Tensor]:
    """The weights that are not those of the image network, by name: `temporal.*` and `image_unet.*`."""
    trained = {name for name, weight in films.net.named_parameters() if weight.requires_grad}
    along = {name for name in films.net.state_dict() if name.startswith("temporal.")}
    return {name: films.net.state_dict()[name].detach().cpu().contiguous() for name in sorted(trained | along)}


def weights_of(fact: dict[str, Any]) -> np.ndarray:
    """What the error of each cell of each frame weighs: float16 [frames, cells, cells], of mean 1."""
    times = world.clip_times(FRAMES, fact["fps"])
    there = np.stack([things_at({**fact, "time": time}, CELLS) for time in times])
    weights = np.where(there >= 0, np.float32(THING), np.float32(1))
    return (weights / weights.mean()).astype(np.float16)


def screenings(
    films: Pool, pictures: Pool, batch: int, tokens: CLIPTokenizer, share: float = PICTURES
) -> Callable[[Rng, float], Batch]:
    """Batches of (clips, their frame rates, weights, words, levels, and the same of single pictures)."""
    words, blank = captions_as_ids(films, tokens), ids(tokens, [""])[0]
    weights = np.stack([weights_of(fact) for fact in films.facts])
    rates = np.array([fact["fps"] for fact in films.facts], np.float32)
    of_pictures, heavy = captions_as_ids(pictures, tokens), unet.emphasis(pictures)[:, None]

    def draw(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if progress < SHORT else FRAMES
        count = batch * FRAMES // frames
        chosen, window = rng.integers(len(rates), size=count), _window(rng, frames)
        clips, fps = films.pictures[chosen][:, window], rates[chosen] / (window.step or 1)
        shown = (
            *noised(rng, clips, weights[chosen][:, window]),
            said(rng, words[chosen], blank),
            torch.from_numpy(fps.astype(np.float32)),
        )
        if not share:
            return shown
        stills = rng.integers(len(heavy), size=round(share * batch * FRAMES))
        return (
            *shown,
            *noised(rng, pictures.pictures[stills], heavy[stills]),
            said(rng, of_pictures[stills], blank),
        )

    return draw


def _window(rng: Rng, frames: int) -> slice:
    """All frames, every second one, or as many in a row."""
    if frames == FRAMES:
        return slice(0, FRAMES)
    start = int(rng.integers(FRAMES - frames + 1))
    return slice(0, FRAMES, 2) if rng.uniform() < 0.5 else slice(start, start + frames)


def said(rng: Rng, words: np.ndarray, blank: np.ndarray) -> Tensor:
    """One of the captions of each, int64 [n, words]; some are left out, for guidance."""
    told = words[np.arange(len(words)), rng.integers(words.shape[1], size=len(words))]
    told[rng.uniform(size=len(words)) < UNTOLD] = blank
    return torch.from_numpy(told.astype(np.int64))


def noised(rng: Rng, x0: np.ndarray, weights: np.ndarray) -> Batch:
    """Clean latents, noise, weights and timesteps, as tensors: all random numbers of a step are drawn here."""
    table = np.array(SCHEDULE.sigmas)
    near = np.searchsorted(table, np.exp(LEVEL + SPREAD * rng.standard_normal(len(x0)))).clip(0, len(table) - 1)
    t = np.where(rng.uniform(size=len(x0)) < UNIFORM, rng.integers(len(table), size=len(x0)), near)
    own, one = (torch.from_numpy(rng.standard_normal((len(x0), f, *x0.shape[2:]), np.float32)) for f in (x0.shape[1], 1))
    noise = mixed(one.expand_as(own), own, RATIO)
    return (torch.from_numpy(x0.astype(np.float32)), noise, torch.from_numpy(weights.astype(np.float32)),
            torch.from_numpy(t.astype(np.int64)))  # fmt: skip


SCHEDULE = Schedule.from_config(SCHEDULER)


def noise_loss(text: CLIPTextModel, films: Films, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise of films and of single pictures."""
    *clips, words, fps = batch[:6]
    losses = {"films": error(films.net, told_of(text, words, fps), *clips)}
    if len(batch) > 6:
        *stills, of_stills = batch[6:]
        losses["pictures"] = error(films.net, told_of(text, of_stills, 0 * of_stills[:, 0]), *stills)
    return losses


def told_of(text: CLIPTextModel, words: Tensor, fps: Tensor) -> Condition:
    """What the network is told in training; the tower learns no more."""
    with torch.no_grad():
        return Condition(text(words).last_hidden_state, embedding=fps.float()[:, None])


def error(
    net: VideoUNet, told: Condition, x0: Latents, noise: Latents, weight: Float[Tensor, "b f h w"], t: Tensor
) -> Tensor:
    """The squared error of the predicted noise, weighted as the image network's was (`unet.noise_loss`)."""
    z, sigma = SCHEDULE.noised(x0, noise, t)
    predicted = net(z, t, told)
    off = ((predicted.float() - noise).square().mean(2) * weight).mean((1, 2, 3))
    return ((1 + sigma**2).clamp(max=HEAVIEST) * off).mean()


def reporter(
    folder: Path, autoencoder: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> Callable[[Films], Figures]:
    """A sheet of videos, one for every second motion, always from the same noise; and what the judge says of them."""
    judge = load_judge()
    shown = list(zip(LOOKS, MOTIONS, strict=True))[1::2]

    @torch.no_grad()
    def report(films: Films) -> Figures:
        told, untold = (condition(text, ids(tokenizer, texts)) for texts in ([look for look, _ in shown], [""] * len(shown)))
        drawn = draw_videos(films.net, told, untold)
        scale = autoencoder.config["scaling_factor"]
        videos = [as_pictures(vae.decode(autoencoder, each / scale)) for each in drawn]
        save_sheet(folder / "sheet.png", *(video[::2] for video in videos))
        right = [judge.motion(video) == motion for video, (_, motion) in zip(videos, shown, strict=True)]
        seen = [judge.look(video).thing for video in videos]
        named = [np.mean([thing in look for thing in things]) for things, (look, _) in zip(seen, shown, strict=True)]
        return {"motion": float(np.mean(right)), "thing": float(np.mean(named)),
                "moved": float(np.mean([np.abs(np.diff(v.astype(float), axis=0)).mean() for v in videos]))}  # fmt: skip

    return report


@torch.no_grad()
def draw_videos(net: VideoUNet, told: Condition, untold: Condition, *, steps: int = 10, scale: float = 5.0) -> Latents:
    """Latents [b f c h w] of videos, by guided steps of DPM-Solver++."""
    device = next(net.parameters()).device

    def bound(conditions: list[Condition]) -> Callable[[Latents, Tensor], Latents]:
        def network(z: Latents, t: Tensor) -> Latents:
            with torch.autocast(device.type, torch.bfloat16):
                return torch.cat([net(z[k : k + 1], t, each).float() for k, each in enumerate(conditions)])

        return network

    look = guided(SCHEDULE.denoise(bound(one_by_one(told))), SCHEDULE.denoise(bound(one_by_one(untold))), scale)
    sigmas = leading(SCHEDULE.sigmas, steps)
    noise = related(RATIO, 0, range(FRAMES), (len(told.tokens), LATENT_CHANNELS, CELLS, CELLS))
    return last(dpmpp_2m(look, sigmas[0] * noise, sigmas))


def condition(text: CLIPTextModel, words: np.ndarray, fps: float = 8.0) -> Condition:
    """What the network is told of these words at this frame rate."""
    device = next(text.parameters()).device
    states = text(torch.from_numpy(words.astype(np.int64)).to(device)).last_hidden_state
    return Condition(states, embedding=torch.full((len(words), 1), fps, device=device))


def one_by_one(told: Condition) -> list[Condition]:
    """The condition of each video alone."""
    parts = [
        [None] * len(told.tokens) if each is None else list(each.split(1))
        for each in (told.tokens, told.image_tokens, told.embedding)
    ]
    return [
        Condition(tokens, image_tokens=image, embedding=rate)
        for tokens, image, rate in zip(*parts, strict=True)
        if tokens is not None
    ]
