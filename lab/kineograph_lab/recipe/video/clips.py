"""Training clips for the video models: rendered at several frame rates and kept as the VAE's latents.

A clip is encoded by the worker that renders it: 5,000 clips take four gigabytes as pixels, and a third of one as latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from kineograph_lab.recipe import pool
from kineograph_lab.recipe.image import vae
from kineograph_lab.recipe.pool import CAPTIONS, Pool
from kineograph_lab.world import captions, world

FRAMES = 16
FRAME_RATES, FRAME_RATE_SHARES = (6.0, 8.0, 12.0, 16.0), (0.15, 0.45, 0.2, 0.2)
# Share of two-subject shots that are sampled again: captions name the main subject's motion only.
ONE_SUBJECT_SHARE = 0.5

Rng = np.random.Generator
FrameTransform = Callable[[np.ndarray], np.ndarray]


def same_frames(frames: np.ndarray) -> np.ndarray:
    """Return the frames unchanged."""
    return frames


def sample_clip_shot(rng: Rng, split: str) -> world.ShotSpec:
    """Return a shot for a clip. A second subject stands still, since no caption names its motion."""
    shot = world.sample_shot(rng, split=split)
    if len(shot.things) > 1 and rng.uniform() < ONE_SUBJECT_SHARE:
        return sample_clip_shot(rng, split)
    main, *others = shot.things
    return replace(shot, things=(main, *(replace(other, motion="still") for other in others)))


CaptionShot = Callable[[world.ShotSpec, Rng], str]


def clip_facts(
    shot: world.ShotSpec, fps: float, rng: Rng, caption_shot: CaptionShot = captions.caption_clip
) -> dict[str, Any]:
    """Return the facts of a clip: the shot, the frame rate, and captions."""
    texts = [caption_shot(shot, rng) for _ in range(CAPTIONS)]
    return {**asdict(shot), "fps": fps, "time": 0.0, "captions": texts}


def random_clip(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a clip as scaled latents, float16 [16, c, 16, 16], and its facts."""
    shot, fps = sample_clip_shot(rng, split), float(rng.choice(FRAME_RATES, p=FRAME_RATE_SHARES))
    return encode(world.render_clip(shot, FRAMES, fps)).half().numpy(), clip_facts(shot, fps, rng)


def random_still(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return an image as scaled latents, float16 [1, c, 16, 16], and its facts."""
    image, facts = pool.random_image(rng, split)
    return encode(image[None]).half().numpy(), facts


def load_clip_pool(
    folder: Path, vae_folder: Path, count: int, *, seed: int, split: str, transform: FrameTransform = same_frames
) -> Pool:
    """Return the pool of this many clips, made into `folder` if missing.

    transform: applied to a clip's frames before they are encoded.
    """
    return pool.load_pool(
        folder,
        count,
        seed=seed,
        split=split,
        render=partial(random_clip, partial(encode_clip_frames, vae_folder, transform)),
    )


def load_still_pool(folder: Path, vae_folder: Path, count: int, *, seed: int, split: str) -> Pool:
    """Return the pool of this many images, made into `folder` if missing."""
    encode = partial(encode_clip_frames, vae_folder, same_frames)
    return pool.load_pool(folder, count, seed=seed, split=split, render=partial(random_still, encode))


def encode_clip_frames(vae_folder: Path, transform: FrameTransform, frames: np.ndarray) -> torch.Tensor:
    """Return the scaled latents of transformed frames, uint8 [f h w 3], computed on one thread."""
    net = _open_vae(vae_folder)
    return net.config["scaling_factor"] * vae.encode_images(net, transform(frames))


@lru_cache(maxsize=1)
def _open_vae(folder: Path) -> AutoencoderKL:
    torch.set_num_threads(1)  # one worker process a core
    return AutoencoderKL.from_pretrained(folder).to(memory_format=torch.channels_last)
