"""What is screened in training: batches of films, in lessons, with single pictures beside them, noise and captions.

What is hard is drawn more often: frame rates that few films have (or the network takes all for the usual one), and the
motions that are learnt last.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from kineograph.noise import mix
from kineograph_lab.recipe.image import unet
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.image.unet import CAPTION_DROPOUT, CELLS, SUBJECT_WEIGHT
from kineograph_lab.recipe.loop import Batch, SampleBatch
from kineograph_lab.recipe.networks import tokenize
from kineograph_lab.recipe.pool import Pool, subject_cells
from kineograph_lab.recipe.video import motion_readout
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.recipe.video.text_to_video import NOISE_RATIO, SCHEDULE
from kineograph_lab.world import world

LOG_SIGMA_MEAN, LOG_SIGMA_STD, UNIFORM_SHARE = (
    2.5,
    0.9,
    0.15,
)  # of log(sigma) in training; and the share of steps at any timestep
SHORT_SHARE = 0.4  # share of steps with clips of half the frames, twice as many of them
IMAGE_SHARE = 0.125  # single pictures beside the films, as a part of their frames
RATE_WEIGHTS = {6.0: 2, 8.0: 1, 12.0: 2, 16.0: 4}  # how often a film is drawn for one of the usual frame rate
HARD_MOTIONS = ("left", "spinning", "swaying", "bouncing")  # drawn twice as often

Rng = np.random.Generator


def has_straight_motion(fact: dict[str, Any]) -> bool:
    """Whether all that moves is one thing, straight on."""
    return has_single_motion(fact) and fact["things"][0]["motion"] in ("left", "right", "up", "down")


def has_single_motion(fact: dict[str, Any]) -> bool:
    """Whether there is one thing, before a camera that stands still: then all that moves is told."""
    return len(fact["things"]) == 1 and fact["camera"] == "still"


def is_any_clip(fact: dict[str, Any]) -> bool:
    return True


CURRICULUM = (
    (0.3, has_straight_motion),
    (0.8, has_single_motion),
    (inf, is_any_clip),
)  # until which progress there are which films


def clip_cell_weights(fact: dict[str, Any]) -> np.ndarray:
    """What the error of each cell of each frame weighs: float16 [frames, cells, cells], of mean 1."""
    times = world.frame_times(FRAMES, fact["fps"])
    there = np.stack([subject_cells({**fact, "time": time}, CELLS) for time in times])
    weights = np.where(there >= 0, np.float32(SUBJECT_WEIGHT), np.float32(1))
    return (weights / weights.mean()).astype(np.float16)


def weighted_indices(films: Pool, wanted: Callable[[dict[str, Any]], bool]) -> np.ndarray:
    """The films that are wanted, or all where there is none, each as often as it is to be drawn."""
    found = np.flatnonzero([wanted(fact) for fact in films.facts])
    found = found if len(found) else np.arange(len(films.facts))
    return np.repeat(found, [sampling_weight(films.facts[number]) for number in found])


def sampling_weight(fact: dict[str, Any]) -> int:
    """How often a film is drawn for an easy one of the usual frame rate."""
    return RATE_WEIGHTS[fact["fps"]] * (2 if fact["things"][0]["motion"] in HARD_MOTIONS else 1)


def video_batches(
    films: Pool, pictures: Pool, batch: int, tokens: CLIPTokenizer, share: float = IMAGE_SHARE
) -> SampleBatch:
    """Batches of (clips, noise, weights, levels, words, frame rates, how things move, where they are), and without the
    last three the same of single pictures."""
    words, blank = tokenize_captions(films, tokens), tokenize(tokens, [""])[0]
    weights = np.stack([clip_cell_weights(fact) for fact in films.facts])
    lessons = [(until, weighted_indices(films, wanted)) for until, wanted in CURRICULUM]
    rates = np.array([fact["fps"] for fact in films.facts], np.float32)
    moves, there = _motion_truths(films)
    of_pictures, heavy = tokenize_captions(pictures, tokens), unet.cell_weights(pictures)[:, None]

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < SHORT_SHARE else FRAMES
        count = batch * FRAMES // frames
        pool = next(numbers for until, numbers in lessons if progress <= until)
        chosen, span = rng.choice(pool, size=count), random_frame_window(rng, frames)
        clips, fps = films.items[chosen][:, span], rates[chosen] / (span.step or 1)
        shown = (
            *sample_noised(rng, clips, weights[chosen][:, span]),
            sample_captions(rng, words[chosen], blank),
            torch.from_numpy(fps.astype(np.float32)),
            torch.from_numpy(moves[chosen][:, span] - moves[chosen][:, span].mean(1, keepdims=True)),
            torch.from_numpy(there[chosen][:, span].astype(np.float32)),
        )
        if not share:
            return shown
        stills = rng.integers(len(heavy), size=round(share * batch * FRAMES))
        return (
            *shown,
            *sample_noised(rng, pictures.items[stills], heavy[stills]),
            sample_captions(rng, of_pictures[stills], blank),
        )

    return sample_batch


def _motion_truths(films: Pool) -> tuple[np.ndarray, np.ndarray]:
    """How the main things of all films move, [n f 4], and where they are, [n f h w]."""
    known = [motion_readout.motion_truth(fact, world.frame_times(FRAMES, fact["fps"]), CELLS) for fact in films.facts]
    return np.stack([moves for moves, _ in known]), np.stack([there for _, there in known])


def random_frame_window(rng: Rng, frames: int) -> slice:
    """All frames, every second one, or as many in a row."""
    if frames == FRAMES:
        return slice(0, FRAMES)
    start = int(rng.integers(FRAMES - frames + 1))
    return slice(0, FRAMES, 2) if rng.uniform() < 0.75 else slice(start, start + frames)


def sample_captions(rng: Rng, words: np.ndarray, blank: np.ndarray) -> Tensor:
    """One of the captions of each, int64 [n, words]; some are left out, for guidance."""
    told = words[np.arange(len(words)), rng.integers(words.shape[1], size=len(words))]
    told[rng.uniform(size=len(words)) < CAPTION_DROPOUT] = blank
    return torch.from_numpy(told.astype(np.int64))


def sample_noised(rng: Rng, x0: np.ndarray, weights: np.ndarray) -> Batch:
    """Clean latents, noise, weights and timesteps, as tensors: all random numbers of a step are drawn here."""
    table = np.array(SCHEDULE.sigmas)
    near = np.searchsorted(table, np.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * rng.standard_normal(len(x0)))).clip(
        0, len(table) - 1
    )
    t = np.where(rng.uniform(size=len(x0)) < UNIFORM_SHARE, rng.integers(len(table), size=len(x0)), near)
    own, one = (
        torch.from_numpy(rng.standard_normal((len(x0), f, *x0.shape[2:]), np.float32)) for f in (x0.shape[1], 1)
    )
    noise = mix(one.expand_as(own), own, NOISE_RATIO)
    return (torch.from_numpy(x0.astype(np.float32)), noise, torch.from_numpy(weights.astype(np.float32)),
            torch.from_numpy(t.astype(np.int64)))  # fmt: skip
