"""The video models: layers along time around the image network, on latents of films made once.

What is trained: the layers along time, and the image network's transformers, where the words for motion come in and
where what they mean can reach the places beside. With cross-attention alone in place of whole transformers the network
did not know left from right after 6,000 clips.
Single pictures train along, so that it still draws what it drew (VideoCrafter1's joint training). Where a thing goes is
decided at high noise levels, so those are looked at most. Each frame's noise is its own: what frames have in common is
then seen before what differs between them, which is when words for motion are worth something (decision 8).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.condition import Condition
from kineograph.latents import Latents
from kineograph.models.schedule import Schedule
from kineograph.models.temporal_layers import TemporalConfig, TemporalLayers, TransformerConfig
from kineograph.models.unet import VideoUNet
from kineograph.noise import mixed
from kineograph.pocket import asked, unet, world
from kineograph.pocket.asked import Questions
from kineograph.pocket.feed import Pool, things_at
from kineograph.pocket.films import FRAMES
from kineograph.pocket.fit import Batch, Figures, Plan, best_device, fit
from kineograph.pocket.low_rank import lend, merge
from kineograph.pocket.norms import with_quick_norms
from kineograph.pocket.text import captions_as_ids
from kineograph.pocket.unet import CELLS, THING, UNTOLD
from kineograph.pocket.words import ids

LEVEL, SPREAD, UNIFORM = 2.5, 0.9, 0.15  # of log(sigma) in training; and the share of steps at any timestep
HEAVIEST = 24.0**2  # weight of a level: an error of the picture weighs alike up to a sigma of 24
RATIO = 0.0  # parts of noise that all frames share to one of a frame's own
APART = 4.0  # weight of an error in which frames differ beside one that they share: the latter is the image network's
SHORT = 0.4  # share of steps with clips of half the frames, twice as many of them
ASKED = 0.3  # weight of what is asked about the thing's motion beside the error of the noise
PICTURES = 0.125  # single pictures beside the films, as a part of their frames
# Sixteen frames tell together what one does not: at the image network's highest level, a sigma of 15, which way a thing
# goes is still to be read from them, and words for it are worth little. So the table goes on to a sigma of 59, its
# timesteps to 1199, and below that nothing changes. (VideoCrafter1 takes away the signal instead, `signal_scale`.)
TIMESTEPS = 1200
SCHEDULER = {**unet.SCHEDULER, "num_train_timesteps": TIMESTEPS, "beta_end": unet.beta(TIMESTEPS - 1)}
SCHEDULE = Schedule.from_config(SCHEDULER)
RESNETS = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj|downsamplers\.0\.conv|upsamplers\.0\.conv)"
RANK = 16  # of what is learnt beside the resnets' layers: they are what moves things from place to place
TRANSFORMER = TransformerConfig(head_width=32, relative=FRAMES, positions=4 * FRAMES, widening=2)
TEXT_TO_VIDEO = TemporalConfig(
    num_frames=FRAMES, entry=TRANSFORMER, transformer=TRANSFORMER, frame_rate=True, noise_ratio=RATIO
)


def goes_straight(fact: dict[str, Any]) -> bool:
    """Whether all that moves is one thing, straight on."""
    return is_plain(fact) and fact["things"][0]["motion"] in ("left", "right", "up", "down")


def is_plain(fact: dict[str, Any]) -> bool:
    """Whether there is one thing, before a camera that stands still: then all that moves is told."""
    return len(fact["things"]) == 1 and fact["camera"] == "still"


def is_any(fact: dict[str, Any]) -> bool:
    return True


LESSONS = ((0.3, goes_straight), (0.8, is_plain), (inf, is_any))  # until which progress there are which films

Rng = np.random.Generator


class Films(nn.Module):
    """The video network as `fit` trains it, its frozen parts frozen, and what it is asked on the way."""

    def __init__(self, image_unet: UNet2DConditionModel, config: TemporalConfig) -> None:
        super().__init__()
        self.net = network(image_unet, config)
        assert self.net.temporal is not None
        self.questions = Questions(self.net.temporal)


def network(image_unet: UNet2DConditionModel, config: TemporalConfig) -> VideoUNet:
    """The video network around an image network, frozen but for what learns."""
    lend(image_unet, RESNETS, RANK)  # which freezes all else
    for layer in image_unet.modules():
        if isinstance(layer, Transformer2DModel):
            layer.requires_grad_(requires_grad=True)
    return VideoUNet(image_unet, TemporalLayers(image_unet, config))


def train(
    net: Films, plan: Plan, folder: Path, films: Pool, pictures: Pool,
    report: Callable[[Films], Figures], *, text: CLIPTextModel, tokenizer: CLIPTokenizer, share: float,
) -> Films:  # fmt: skip
    """The averaged network. Single pictures are `share` of as many frames as the films have; 0 for none."""
    ready = with_quick_norms(net).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    draw = screenings(films, pictures, plan.batch, tokenizer, share)
    return fit(ready, plan, folder, draw=draw, loss=partial(noise_loss, text), report=report)


def learnt(films: Films) -> dict[str, Tensor]:
    """The weights that are not those of the image network, by name: `temporal.*` and `image_unet.*`."""
    whole = [name for name, layer in films.net.named_modules() if isinstance(layer, Transformer2DModel)]
    state = films.net.state_dict()
    learns = [name for name in state if "lora_" in name or name.startswith(("temporal.", *(f"{at}." for at in whole)))]
    return {name: state[name].detach().cpu().contiguous() for name in sorted(learns)}


def restored(image_unet: UNet2DConditionModel, config: TemporalConfig, weights: dict[str, Tensor]) -> VideoUNet:
    """The network that these `learnt` weights make of an image network, whose own they replace."""
    net = network(image_unet, config)
    unknown = net.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
    merge(image_unet)
    return net


def weights_of(fact: dict[str, Any]) -> np.ndarray:
    """What the error of each cell of each frame weighs: float16 [frames, cells, cells], of mean 1."""
    times = world.clip_times(FRAMES, fact["fps"])
    there = np.stack([things_at({**fact, "time": time}, CELLS) for time in times])
    weights = np.where(there >= 0, np.float32(THING), np.float32(1))
    return (weights / weights.mean()).astype(np.float16)


def numbers_of(films: Pool, wanted: Callable[[dict[str, Any]], bool]) -> np.ndarray:
    """The films that are wanted; all, where there is none."""
    found = np.flatnonzero([wanted(fact) for fact in films.facts])
    return found if len(found) else np.arange(len(films.facts))


def screenings(
    films: Pool, pictures: Pool, batch: int, tokens: CLIPTokenizer, share: float = PICTURES
) -> Callable[[Rng, float], Batch]:
    """Batches of (clips, noise, weights, levels, words, frame rates, how things move, where they are), and without the
    last three the same of single pictures."""
    words, blank = captions_as_ids(films, tokens), ids(tokens, [""])[0]
    weights = np.stack([weights_of(fact) for fact in films.facts])
    lessons = [(until, numbers_of(films, wanted)) for until, wanted in LESSONS]
    rates = np.array([fact["fps"] for fact in films.facts], np.float32)
    moves, there = _asked(films)
    of_pictures, heavy = captions_as_ids(pictures, tokens), unet.emphasis(pictures)[:, None]

    def draw(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < SHORT else FRAMES
        count = batch * FRAMES // frames
        pool = next(numbers for until, numbers in lessons if progress <= until)
        chosen, span = rng.choice(pool, size=count), window(rng, frames)
        clips, fps = films.pictures[chosen][:, span], rates[chosen] / (span.step or 1)
        shown = (
            *noised(rng, clips, weights[chosen][:, span]),
            said(rng, words[chosen], blank),
            torch.from_numpy(fps.astype(np.float32)),
            torch.from_numpy(moves[chosen][:, span] - moves[chosen][:, span].mean(1, keepdims=True)),
            torch.from_numpy(there[chosen][:, span].astype(np.float32)),
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


def _asked(films: Pool) -> tuple[np.ndarray, np.ndarray]:
    """How the main things of all films move, [n f 4], and where they are, [n f h w]."""
    known = [asked.truth(fact, world.clip_times(FRAMES, fact["fps"]), CELLS) for fact in films.facts]
    return np.stack([moves for moves, _ in known]), np.stack([there for _, there in known])


def window(rng: Rng, frames: int) -> slice:
    """All frames, every second one, or as many in a row."""
    if frames == FRAMES:
        return slice(0, FRAMES)
    start = int(rng.integers(FRAMES - frames + 1))
    return slice(0, FRAMES, 2) if rng.uniform() < 0.75 else slice(start, start + frames)


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
    own, one = (
        torch.from_numpy(rng.standard_normal((len(x0), f, *x0.shape[2:]), np.float32)) for f in (x0.shape[1], 1)
    )
    noise = mixed(one.expand_as(own), own, RATIO)
    return (torch.from_numpy(x0.astype(np.float32)), noise, torch.from_numpy(weights.astype(np.float32)),
            torch.from_numpy(t.astype(np.int64)))  # fmt: skip


def noise_loss(text: CLIPTextModel, films: asked.Asked, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise of films and of single pictures, and of what is asked about films."""
    *clips, words, fps, moves, there = batch[:8]
    films.questions.listen()
    losses = {"films": error(films.net, told_of(text, words, fps), *clips)}
    losses["asked"] = ASKED * films.questions.error(moves, there)
    if len(batch) > 8:
        *stills, of_stills = batch[8:]
        losses["pictures"] = error(films.net, told_of(text, of_stills, 0 * of_stills[:, 0]), *stills)
    return losses


def told_of(text: CLIPTextModel, words: Tensor, fps: Tensor) -> Condition:
    """What the network is told in training; the tower learns no more."""
    with torch.no_grad():
        return Condition(text(words).last_hidden_state, embedding=fps.float()[:, None])


def error(
    net: Callable[..., Latents], told: Condition, x0: Latents, noise: Latents, weight: Float[Tensor, "b f h w"], t: Tensor
) -> Tensor:  # fmt: skip
    """The squared error of the noise that a network predicts, weighted as the image network's (`unet.noise_loss`)."""
    z, sigma = SCHEDULE.noised(x0, noise, t)
    off = weighed(net(z, t, told).float() - noise, weight)
    return ((1 + sigma**2).clamp(max=HEAVIEST) * off).mean()


def weighed(off: Latents, weight: Float[Tensor, "b f h w"]) -> Float[Tensor, " b"]:
    """The squared error of each video. What is wrong in all frames alike counts less than what is wrong in some: the
    mean of the posterior minimises both, so this changes what is learnt first, not what is learnt."""
    common = off.mean(1, keepdim=True)
    squared = (common.square() + APART * (off - common).square()).mean(2)
    return (squared * weight).mean((1, 2, 3))
