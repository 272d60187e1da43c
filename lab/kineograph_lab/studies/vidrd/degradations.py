"""Known damage to videos, slight to severe: what a distance between videos must rise with.

Frames are uint8 [f h w 3]; degree 0 is the video itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageFilter

from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.features import Extractor, Frames

Damage = Callable[[Frames, float, int], Frames]


def blurred(frames: Frames, degree: float, seed: int) -> Frames:
    """By a Gaussian of so many pixels."""
    soft = ImageFilter.GaussianBlur(degree)
    return np.stack([np.asarray(Image.fromarray(frame).filter(soft)) for frame in frames])


def noisy(frames: Frames, degree: float, seed: int) -> Frames:
    """With Gaussian noise of so many grey levels on each frame."""
    grain = np.random.default_rng(seed).normal(0, degree, frames.shape)
    return (frames + grain).round().clip(0, 255).astype(np.uint8)


def frozen(frames: Frames, degree: float, seed: int) -> Frames:
    """Standing still for this part of its time, from the beginning: frame 0 until it goes on where it would be."""
    stands = round(degree * len(frames))
    return frames[np.where(np.arange(len(frames)) < stands, 0, np.arange(len(frames)))]


def shuffled(frames: Frames, degree: float, seed: int) -> Frames:
    """With this part of the frames in one another's places."""
    rng, order = np.random.default_rng(seed), np.arange(len(frames))
    moved = np.sort(rng.permutation(len(frames))[: round(degree * len(frames))])
    order[moved] = np.roll(moved, max(1, len(moved) // 2))
    return frames[order]


DAMAGES: Mapping[str, tuple[Damage, tuple[float, ...]]] = {
    "blur": (blurred, (0, 2, 4, 8)),
    "noise": (noisy, (0, 16, 32, 64)),
    "frozen frames": (frozen, (0, 0.25, 0.5, 1)),
    "shuffled frames": (shuffled, (0, 0.25, 0.5, 1)),
}
"""Each damage with degrees that an eye sees."""


def distances(
    extractor: Extractor, real: Sequence[Frames], others: Sequence[Frames], damage: Damage, degrees: Sequence[float]
) -> list[float]:
    """FVD of the others, damaged by each degree, against real videos."""
    known = moments(np.stack([extractor.extract(video).features for video in real]))
    found = []
    for degree in degrees:
        hurt = [extractor.extract(damage(video, degree, number)).features for number, video in enumerate(others)]
        found.append(frechet_distance(moments(np.stack(hurt)), known))
    return found
