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
from kineograph_lab.recipe import pool as feed
from kineograph_lab.recipe.image.text_encoder import captions_as_ids
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.image.unet import CELLS, THING
from kineograph_lab.recipe.loop import Batch, Draw
from kineograph_lab.recipe.networks import SIDE
from kineograph_lab.recipe.pool import CAPTIONS, Pool
from kineograph_lab.recipe.video import batches as screenings
from kineograph_lab.recipe.video import clips, motion_readout
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.world import captions, wide, world
from kineograph_lab.world import wide as wide_captions

SMALLEST = 0.7  # of the picture's side: a smaller window would show it blurred

Rng = np.random.Generator


def film(encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One film: scaled latents, float16 [16, c, 16, 16], and its facts, `windows` (first, last) in parts of the side."""
    return film_of(encode, world.draw_shot(rng, split=split), captions.of_picture, rng)


def wide_film(encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a film of the wider distribution."""
    return film_of(encode, wide.draw_shot(rng, split), wide_captions.say_image, rng)


def film_of(
    encode: Callable[[np.ndarray], torch.Tensor], shot: world.Shot, say: clips.Say, rng: Rng
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a film of this shot."""
    picture = Image.fromarray(world.render(shot))
    first, last = wandering(rng, picture, 1.0, SMALLEST)
    frames = panned(picture, first, last, FRAMES, SIDE, SIDE)
    told = [say(shot, rng) for _ in range(CAPTIONS)]
    windows = (np.array([first, last]) / SIDE).tolist()
    fps = float(rng.choice(clips.RATES, p=clips.SHARES))
    return encode(frames).half().numpy(), {
        **asdict(shot), "fps": fps, "time": 0.0, "captions": told, "windows": windows
    }  # fmt: skip


def pool(folder: Path, vae_folder: Path, count: int, *, seed: int, split: str, wider: bool = False) -> Pool:
    """The pool of this many, made into `folder` unless there."""
    encode = partial(clips.encoded, vae_folder, clips.as_they_are)
    return feed.pool(folder, count, seed=seed, split=split, paint=partial(wide_film if wider else film, encode))


def windows_of(fact: dict[str, Any]) -> list[Window]:
    """The window of each frame, in parts of the picture's side."""
    first, last = np.array(fact["windows"])
    return [Window(*(first + way * (last - first))) for way in np.linspace(0, 1, FRAMES)]


def moves_of(fact: dict[str, Any]) -> np.ndarray:
    """How the main thing stands in each frame to its mean over them, float32 [f, 4], as `asked.truth` has it."""
    thing = feed.shot_of(fact).things[0]
    _, (x, y) = world.placement(thing, 0.0, 0.0)
    seen = [(w.right - w.left, x - w.left, y - w.top) for w in windows_of(fact)]
    steps = np.array([(right / side, down / side, -np.log(side), 0.0) for side, right, down in seen], np.float32)
    return (steps - steps.mean(0)) / np.array(motion_readout.UNITS, np.float32)


def things_in(fact: dict[str, Any]) -> np.ndarray:
    """Which thing stands in each cell of each frame: its number, -1 for none. int8 [f, cells, cells]."""
    there, centres = feed.things_at(fact, SIDE), (np.arange(CELLS) + 0.5) / CELLS
    rows = [(w.top + centres * (w.bottom - w.top), w.left + centres * (w.right - w.left)) for w in windows_of(fact)]
    at = [tuple((SIDE * each).astype(int).clip(0, SIDE - 1) for each in both) for both in rows]
    return np.stack([there[np.ix_(down, across)] for down, across in at])


def batches(pool: Pool, batch: int, tokens: CLIPTokenizer) -> Draw:
    """Batches as `screenings.batches` has them, without single pictures."""
    words, blank = captions_as_ids(pool, tokens), ids(tokens, [""])[0]
    there = np.stack([things_in(fact) for fact in pool.facts])
    weights = np.where(there >= 0, np.float32(THING), np.float32(1))
    weights /= weights.mean((1, 2, 3), keepdims=True)
    moves, rates = np.stack([moves_of(fact) for fact in pool.facts]), np.array([fact["fps"] for fact in pool.facts])

    def draw(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < screenings.SHORT else FRAMES
        chosen, window = rng.integers(len(rates), size=batch * FRAMES // frames), screenings.window(rng, frames)
        moved = moves[chosen][:, window]
        return (
            *screenings.noised(rng, pool.pictures[chosen][:, window], weights[chosen][:, window]),
            screenings.said(rng, words[chosen], blank),
            torch.from_numpy((rates[chosen] / (window.step or 1)).astype(np.float32)),
            torch.from_numpy(moved - moved.mean(1, keepdims=True)),
            torch.from_numpy((there[chosen][:, window] == 0).astype(np.float32)),
        )

    return draw
