"""Pictures made into films by pan and zoom, as VidRD makes them of its images: the caption says nothing of it.

What `asked` asks is known of these too: where the main thing is in the window at every moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPTokenizer

from kineograph.curation.clips import Window, panned, wandering
from kineograph_lab.recipe import pool
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.image.unet import CELLS, SUBJECT_WEIGHT
from kineograph_lab.recipe.loop import Batch, SampleBatch
from kineograph_lab.recipe.networks import SIDE, tokenize
from kineograph_lab.recipe.pool import CAPTIONS, Pool
from kineograph_lab.recipe.video import batches, clips, motion_readout
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.world import captions, wide, world

MIN_WINDOW = 0.7  # of the picture's side: a smaller window would show it blurred

Rng = np.random.Generator


def random_panned_clip(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """One film: scaled latents, float16 [16, c, 16, 16], and its facts, `windows` (first, last) in parts of the side."""
    return pan_over_image(encode, world.sample_shot(rng, split=split), captions.caption_image, rng)


def wide_panned_clip(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a film of the wider distribution."""
    return pan_over_image(encode, wide.sample_wide_shot(rng, split), wide.wide_image_text, rng)


def pan_over_image(
    encode: Callable[[np.ndarray], torch.Tensor], shot: world.Shot, say: clips.CaptionShot, rng: Rng
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a film of this shot."""
    picture = Image.fromarray(world.render(shot))
    first, last = wandering(rng, picture, 1.0, MIN_WINDOW)
    frames = panned(picture, first, last, FRAMES, SIDE, SIDE)
    told = [say(shot, rng) for _ in range(CAPTIONS)]
    windows = (np.array([first, last]) / SIDE).tolist()
    fps = float(rng.choice(clips.FRAME_RATES, p=clips.FRAME_RATE_SHARES))
    return encode(frames).half().numpy(), {
        **asdict(shot), "fps": fps, "time": 0.0, "captions": told, "windows": windows
    }  # fmt: skip


def load_panned_pool(folder: Path, vae_folder: Path, count: int, *, seed: int, split: str, wider: bool = False) -> Pool:
    """The pool of this many, made into `folder` unless there."""
    encode = partial(clips.encode_frames, vae_folder, clips.same_frames)
    return pool.load_pool(
        folder, count, seed=seed, split=split, paint=partial(wide_panned_clip if wider else random_panned_clip, encode)
    )


def frame_windows(fact: dict[str, Any]) -> list[Window]:
    """The window of each frame, in parts of the picture's side."""
    first, last = np.array(fact["windows"])
    return [Window(*(first + way * (last - first))) for way in np.linspace(0, 1, FRAMES)]


def panned_motion(fact: dict[str, Any]) -> np.ndarray:
    """How the main thing stands in each frame to its mean over them, float32 [f, 4], as `asked.truth` has it."""
    thing = pool.shot_from_facts(fact).things[0]
    _, (x, y) = world.placement(thing, 0.0, 0.0)
    seen = [(w.right - w.left, x - w.left, y - w.top) for w in frame_windows(fact)]
    steps = np.array([(right / side, down / side, -np.log(side), 0.0) for side, right, down in seen], np.float32)
    return (steps - steps.mean(0)) / np.array(motion_readout.UNITS, np.float32)


def panned_subject_cells(fact: dict[str, Any]) -> np.ndarray:
    """Which thing stands in each cell of each frame: its number, -1 for none. int8 [f, cells, cells]."""
    there, centres = pool.subject_cells(fact, SIDE), (np.arange(CELLS) + 0.5) / CELLS
    rows = [(w.top + centres * (w.bottom - w.top), w.left + centres * (w.right - w.left)) for w in frame_windows(fact)]
    at = [tuple((SIDE * each).astype(int).clip(0, SIDE - 1) for each in both) for both in rows]
    return np.stack([there[np.ix_(down, across)] for down, across in at])


def panned_batches(pool: Pool, batch: int, tokens: CLIPTokenizer) -> SampleBatch:
    """Batches as `batches.batches` has them, without single pictures."""
    words, blank = tokenize_captions(pool, tokens), tokenize(tokens, [""])[0]
    there = np.stack([panned_subject_cells(fact) for fact in pool.facts])
    weights = np.where(there >= 0, np.float32(SUBJECT_WEIGHT), np.float32(1))
    weights /= weights.mean((1, 2, 3), keepdims=True)
    moves, rates = (
        np.stack([panned_motion(fact) for fact in pool.facts]),
        np.array([fact["fps"] for fact in pool.facts]),
    )

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < batches.SHORT_SHARE else FRAMES
        chosen, window = (
            rng.integers(len(rates), size=batch * FRAMES // frames),
            batches.random_frame_window(rng, frames),
        )
        moved = moves[chosen][:, window]
        return (
            *batches.sample_noised(rng, pool.items[chosen][:, window], weights[chosen][:, window]),
            batches.sample_captions(rng, words[chosen], blank),
            torch.from_numpy((rates[chosen] / (window.step or 1)).astype(np.float32)),
            torch.from_numpy(moved - moved.mean(1, keepdims=True)),
            torch.from_numpy((there[chosen][:, window] == 0).astype(np.float32)),
        )

    return sample_batch
