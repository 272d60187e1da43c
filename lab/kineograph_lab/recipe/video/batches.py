"""Training batches of clips by a curriculum, with single images, noise and captions.

Rare frame rates are sampled more often (else the network ignores the frame rate), and so are the motions that are learnt
last.
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

LOG_SIGMA_MEAN, LOG_SIGMA_STD = 2.5, 0.9  # distribution of log(sigma) in training
UNIFORM_SHARE = 0.15  # share of clips at a uniform timestep
SHORT_SHARE = 0.4  # share of steps with twice as many clips of half the frames
KNOWN_SHARE = 0.3  # share of steps in which some first frames have no noise: a video is continued from such frames
SINGLE_KNOWN_SHARE = 0.5  # of those, the share of one frame; in the others it is up to half of the frames
IMAGE_SHARE = 0.125  # single images trained with the clips, as a share of the clips' frames
RATE_WEIGHTS = {6.0: 2, 8.0: 1, 12.0: 2, 16.0: 4}  # sampling weight of a clip by its frame rate
HARD_MOTIONS = ("left", "spinning", "swaying", "bouncing")  # sampled twice as often

Rng = np.random.Generator


def has_straight_motion(fact: dict[str, Any]) -> bool:
    """Return True if one subject alone moves, in a straight line."""
    return has_single_motion(fact) and fact["things"][0]["motion"] in ("left", "right", "up", "down")


def has_single_motion(fact: dict[str, Any]) -> bool:
    """Return True if there is one subject and a still camera: then the caption names all motion."""
    return len(fact["things"]) == 1 and fact["camera"] == "still"


def is_any_clip(fact: dict[str, Any]) -> bool:
    """Return True."""
    return True


# (end, filter): up to this progress, clips that pass the filter are sampled.
Curriculum = tuple[tuple[float, Callable[[dict[str, Any]], bool]], ...]
CURRICULUM: Curriculum = ((0.3, has_straight_motion), (0.8, has_single_motion), (inf, is_any_clip))
LATE_CURRICULUM: Curriculum = ((0.5, has_single_motion), (inf, is_any_clip))  # of a network that knows motions


def clip_cell_weights(fact: dict[str, Any]) -> np.ndarray:
    """Return the weight of each cell's error in each frame, float16 [frames, cells, cells], of mean 1."""
    times = world.frame_times(FRAMES, fact["fps"])
    subjects = np.stack([subject_cells({**fact, "time": time}, CELLS) for time in times])
    weights = np.where(subjects >= 0, np.float32(SUBJECT_WEIGHT), np.float32(1))
    return (weights / weights.mean()).astype(np.float16)


def weighted_indices(clip_pool: Pool, wanted: Callable[[dict[str, Any]], bool]) -> np.ndarray:
    """Return the indices of the selected clips, or of all if there is none, each repeated by its sampling weight."""
    indices = np.flatnonzero([wanted(fact) for fact in clip_pool.facts])
    indices = indices if len(indices) else np.arange(len(clip_pool.facts))
    return np.repeat(indices, [sampling_weight(clip_pool.facts[number]) for number in indices])


def sampling_weight(fact: dict[str, Any]) -> int:
    """Return the sampling weight of a clip; 1 for an easy motion at the usual frame rate."""
    return RATE_WEIGHTS[fact["fps"]] * (2 if fact["things"][0]["motion"] in HARD_MOTIONS else 1)


def video_batches(
    clip_pool: Pool, image_pool: Pool, batch: int, tokenizer: CLIPTokenizer, share: float = IMAGE_SHARE,
    curriculum: Curriculum = CURRICULUM, known_share: float = KNOWN_SHARE,
) -> SampleBatch:  # fmt: skip
    """Return a sampler of training batches.

    A batch is (clips, noise, weights, timesteps, tokens, frame rates, motion, subject cells), and for single images the first
    five again.

    share: single images as a share of the clips' frames; 0 for clips alone.
    known_share: share of the steps in which some first frames have no noise.
    """
    clip_tokens, empty_caption = tokenize_captions(clip_pool, tokenizer), tokenize(tokenizer, [""])[0]
    weights = np.stack([clip_cell_weights(fact) for fact in clip_pool.facts])
    lessons = [(until, weighted_indices(clip_pool, is_selected)) for until, is_selected in curriculum]
    rates = np.array([fact["fps"] for fact in clip_pool.facts], np.float32)
    motion, is_subject = _motion_truths(clip_pool)
    image_tokens, image_weights = tokenize_captions(image_pool, tokenizer), unet.cell_weights(image_pool)[:, None]

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < SHORT_SHARE else FRAMES
        count = batch * FRAMES // frames
        candidates = next(indices for until, indices in lessons if progress <= until)
        chosen, window = rng.choice(candidates, size=count), random_frame_window(rng, frames)
        clips, fps = clip_pool.items[chosen][:, window], rates[chosen] / (window.step or 1)
        noised = sample_noised(rng, clips, weights[chosen][:, window])
        clip_inputs = (
            *(clear_first_frames(noised, count_known_frames(rng, frames)) if known_share > rng.uniform() else noised),
            sample_captions(rng, clip_tokens[chosen], empty_caption),
            torch.from_numpy(fps.astype(np.float32)),
            torch.from_numpy(motion[chosen][:, window] - motion[chosen][:, window].mean(1, keepdims=True)),
            torch.from_numpy(is_subject[chosen][:, window].astype(np.float32)),
        )
        if not share:
            return clip_inputs
        still_indices = rng.integers(len(image_weights), size=round(share * batch * FRAMES))
        return (
            *clip_inputs,
            *sample_noised(rng, image_pool.items[still_indices], image_weights[still_indices]),
            sample_captions(rng, image_tokens[still_indices], empty_caption),
        )

    return sample_batch


def _motion_truths(clip_pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Return the main subjects' motion in all clips, [n f 4], and their cells, [n f h w]."""
    truths = [
        motion_readout.motion_truth(fact, world.frame_times(FRAMES, fact["fps"]), CELLS) for fact in clip_pool.facts
    ]
    return np.stack([motion for motion, _ in truths]), np.stack([is_subject for _, is_subject in truths])


def random_frame_window(rng: Rng, frames: int) -> slice:
    """Return all frames, every second one, or as many consecutive ones."""
    if frames == FRAMES:
        return slice(0, FRAMES)
    start = int(rng.integers(FRAMES - frames + 1))
    return slice(0, FRAMES, 2) if rng.uniform() < 0.75 else slice(start, start + frames)


def sample_captions(rng: Rng, tokens: np.ndarray, empty_caption: np.ndarray) -> Tensor:
    """Return one caption of each item as tokens, int64 [n, tokens], a share of them empty, for guidance."""
    chosen = tokens[np.arange(len(tokens)), rng.integers(tokens.shape[1], size=len(tokens))]
    chosen[rng.uniform(size=len(tokens)) < CAPTION_DROPOUT] = empty_caption
    return torch.from_numpy(chosen.astype(np.int64))


def count_known_frames(rng: Rng, frames: int) -> int:
    """Return a random number of first frames without noise."""
    return 1 if rng.uniform() < SINGLE_KNOWN_SHARE else int(rng.integers(2, frames // 2 + 1))


def clear_first_frames(noised: Batch, count: int) -> Batch:
    """Return the result of `sample_noised` without noise in the first frames, whose error has no weight."""
    x0, noise, weights, t = noised
    noise[:, :count], weights[:, :count] = 0, 0
    return x0, noise, weights, t


def sample_noised(rng: Rng, x0: np.ndarray, weights: np.ndarray) -> Batch:
    """Return clean latents, noise, weights and timesteps; all random numbers of a step come from this generator."""
    table = np.array(SCHEDULE.sigmas)
    nearest = np.searchsorted(table, np.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * rng.standard_normal(len(x0)))).clip(
        0, len(table) - 1
    )
    t = np.where(rng.uniform(size=len(x0)) < UNIFORM_SHARE, rng.integers(len(table), size=len(x0)), nearest)
    independent_noise, shared_noise = (
        torch.from_numpy(rng.standard_normal((len(x0), f, *x0.shape[2:]), np.float32)) for f in (x0.shape[1], 1)
    )
    noise = mix(shared_noise.expand_as(independent_noise), independent_noise, NOISE_RATIO)
    return (torch.from_numpy(x0.astype(np.float32)), noise, torch.from_numpy(weights.astype(np.float32)),
            torch.from_numpy(t.astype(np.int64)))  # fmt: skip
