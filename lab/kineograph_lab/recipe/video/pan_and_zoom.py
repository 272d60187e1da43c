"""Clips made of images by pan and zoom, as VidRD makes them of its image data; the caption names no motion.

The motion readout's truth is known of these too: the main subject's position in the window at every frame.
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

from kineograph.media.images import Window, pan_and_zoom, random_windows
from kineograph_lab.recipe import pool
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.image.unet import CELLS, SUBJECT_WEIGHT
from kineograph_lab.recipe.loop import Batch, SampleBatch
from kineograph_lab.recipe.networks import SIDE, tokenize
from kineograph_lab.recipe.pool import CAPTIONS, Pool
from kineograph_lab.recipe.video import batches, clips, motion_readout
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.world import captions, wide, world

MIN_WINDOW = 0.7  # least side of a window, of the image's side: a smaller one would be blurred

Rng = np.random.Generator
RenderClip = Callable[[Callable[[np.ndarray], torch.Tensor], Rng, str], tuple[np.ndarray, dict[str, Any]]]


def random_panned_clip(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a clip as scaled latents, float16 [16, c, 16, 16], and its facts with `windows` (first, last) in parts of the side."""
    return pan_over_image(encode, world.sample_shot(rng, split=split), captions.caption_image, rng)


def wide_panned_clip(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return such a clip of the wider distribution."""
    return pan_over_image(encode, wide.sample_wide_shot(rng, split), wide.wide_image_text, rng)


def pan_over_image(
    encode: Callable[[np.ndarray], torch.Tensor], shot: world.ShotSpec, caption_shot: clips.CaptionShot, rng: Rng
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return such a clip of this shot."""
    image = Image.fromarray(world.render(shot))
    first, last = random_windows(rng, image, 1.0, MIN_WINDOW)
    frames = pan_and_zoom(image, first, last, FRAMES, SIDE, SIDE)
    texts = [caption_shot(shot, rng) for _ in range(CAPTIONS)]
    windows = (np.array([first, last]) / SIDE).tolist()
    fps = float(rng.choice(clips.FRAME_RATES, p=clips.FRAME_RATE_SHARES))
    return encode(frames).half().numpy(), {
        **asdict(shot), "fps": fps, "time": 0.0, "captions": texts, "windows": windows
    }  # fmt: skip


def load_panned_pool(
    folder: Path, vae_folder: Path, count: int, *, seed: int, split: str, render: RenderClip | None = None
) -> Pool:
    """Return the pool of this many clips, made into `folder` if missing.

    render: `random_panned_clip` (if not given) or `wide_panned_clip`.
    """
    encode = partial(clips.encode_clip_frames, vae_folder, clips.same_frames)
    return pool.load_pool(folder, count, seed=seed, split=split, render=partial(render or random_panned_clip, encode))


def frame_windows(fact: dict[str, Any]) -> list[Window]:
    """Return the window of each frame, in parts of the image's side."""
    first, last = np.array(fact["windows"])
    return [Window(*(first + position * (last - first))) for position in np.linspace(0, 1, FRAMES)]


def panned_motion(fact: dict[str, Any]) -> np.ndarray:
    """Return the main subject's motion in each frame, relative to its mean, float32 [f, 4], as `motion_truth`."""
    subject = pool.shot_from_facts(fact).things[0]
    _, (x, y) = world.placement(subject, 0.0, 0.0)
    windows = [(w.right - w.left, x - w.left, y - w.top) for w in frame_windows(fact)]
    motion = np.array([(right / side, down / side, -np.log(side), 0.0) for side, right, down in windows], np.float32)
    return (motion - motion.mean(0)) / np.array(motion_readout.UNITS, np.float32)


def panned_subject_cells(fact: dict[str, Any]) -> np.ndarray:
    """Return the index of the subject in each cell of each frame, -1 for none, int8 [f, cells, cells]."""
    subjects, centres = pool.subject_cells(fact, SIDE), (np.arange(CELLS) + 0.5) / CELLS
    rows = [(w.top + centres * (w.bottom - w.top), w.left + centres * (w.right - w.left)) for w in frame_windows(fact)]
    cells_of_frames = [tuple((SIDE * each).astype(int).clip(0, SIDE - 1) for each in axes) for axes in rows]
    return np.stack([subjects[np.ix_(down, across)] for down, across in cells_of_frames])


def panned_batches(data: Pool, batch: int, tokenizer: CLIPTokenizer) -> SampleBatch:
    """Return a sampler of batches as `video_batches` has them, without single images."""
    clip_tokens, empty_caption = tokenize_captions(data, tokenizer), tokenize(tokenizer, [""])[0]
    subjects = np.stack([panned_subject_cells(fact) for fact in data.facts])
    weights = np.where(subjects >= 0, np.float32(SUBJECT_WEIGHT), np.float32(1))
    weights /= weights.mean((1, 2, 3), keepdims=True)
    motion, rates = (
        np.stack([panned_motion(fact) for fact in data.facts]),
        np.array([fact["fps"] for fact in data.facts]),
    )

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < batches.SHORT_SHARE else FRAMES
        chosen, window = (
            rng.integers(len(rates), size=batch * FRAMES // frames),
            batches.random_frame_window(rng, frames),
        )
        motion_of_batch = motion[chosen][:, window]
        return (
            *batches.sample_noised(rng, data.items[chosen][:, window], weights[chosen][:, window]),
            batches.sample_captions(rng, clip_tokens[chosen], empty_caption),
            torch.from_numpy((rates[chosen] / (window.step or 1)).astype(np.float32)),
            torch.from_numpy(motion_of_batch - motion_of_batch.mean(1, keepdims=True)),
            torch.from_numpy((subjects[chosen][:, window] == 0).astype(np.float32)),
        )

    return sample_batch
