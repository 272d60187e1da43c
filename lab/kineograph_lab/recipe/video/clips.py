"""Films to train video models on: clips of the world at several frame rates, kept as the VAE's latents.

A film's frames go through the VAE where they are painted, in the same worker: as pixels 5,000 films would be four
gigabytes, as latents they are a third of one.
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
FRAME_RATES, FRAME_RATE_SHARES = (6.0, 8.0, 12.0, 16.0), (0.15, 0.45, 0.2, 0.2)  # frames a second, and how often each
ONE_SUBJECT_SHARE = (
    0.5  # of the shots of two things, as many are drawn again: what a caption tells is how the main thing moves
)

Rng = np.random.Generator
FrameTransform = Callable[[np.ndarray], np.ndarray]


def same_frames(frames: np.ndarray) -> np.ndarray:
    return frames


def sample_clip_shot(rng: Rng, split: str) -> world.Shot:
    """A shot for a film. A second thing stands still, since no caption says how it moves."""
    drawn = world.sample_shot(rng, split=split)
    if len(drawn.things) > 1 and rng.uniform() < ONE_SUBJECT_SHARE:
        return sample_clip_shot(rng, split)
    main, *others = drawn.things
    return replace(drawn, things=(main, *(replace(other, motion="still") for other in others)))


CaptionShot = Callable[[world.Shot, Rng], str]


def clip_facts(shot: world.Shot, fps: float, rng: Rng, say: CaptionShot = captions.caption_clip) -> dict[str, Any]:
    """What is known of a film: the shot, the frame rate, and captions."""
    told = [say(shot, rng) for _ in range(CAPTIONS)]
    return {**asdict(shot), "fps": fps, "time": 0.0, "captions": told}


def random_clip(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """One film: scaled latents, float16 [16, c, 16, 16], and its facts."""
    drawn, fps = sample_clip_shot(rng, split), float(rng.choice(FRAME_RATES, p=FRAME_RATE_SHARES))
    return encode(world.render_clip(drawn, FRAMES, fps)).half().numpy(), clip_facts(drawn, fps, rng)


def random_still(
    encode: Callable[[np.ndarray], torch.Tensor], rng: Rng, split: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """One picture: scaled latents, float16 [1, c, 16, 16], and its facts."""
    picture, told = pool.random_image(rng, split)
    return encode(picture[None]).half().numpy(), told


def load_clip_pool(
    folder: Path, vae_folder: Path, count: int, *, seed: int, split: str, seen: FrameTransform = same_frames
) -> Pool:
    """The pool of this many films, made into `folder` unless there.

    seen: what becomes of a film's frames before they are encoded.
    """
    return pool.load_pool(
        folder, count, seed=seed, split=split, paint=partial(random_clip, partial(encode_frames, vae_folder, seen))
    )


def load_still_pool(folder: Path, vae_folder: Path, count: int, *, seed: int, split: str) -> Pool:
    """The pool of this many pictures, made into `folder` unless there."""
    encode = partial(encode_frames, vae_folder, same_frames)
    return pool.load_pool(folder, count, seed=seed, split=split, paint=partial(random_still, encode))


def encode_frames(vae_folder: Path, seen: FrameTransform, frames: np.ndarray) -> torch.Tensor:
    """The scaled latents of frames uint8 [f h w 3], after what becomes of them, on one thread."""
    net = _open_vae(vae_folder)
    return net.config["scaling_factor"] * vae.encode_images(net, seen(frames))


@lru_cache(maxsize=1)
def _open_vae(folder: Path) -> AutoencoderKL:
    torch.set_num_threads(1)  # a worker a core
    return AutoencoderKL.from_pretrained(folder).to(memory_format=torch.channels_last)
