"""The judge: what a picture of the pocket world shows, who it is, and how a video moves.

Trained on the world's own renderings alone (`judging.py`), never on generated pictures, so that its word about them
is an outsider's.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from kineograph_lab import WEIGHTS as LABORATORY_WEIGHTS
from kineograph_lab.recipe.images import to_tensor
from kineograph_lab.world.individuals import ACCENTS, ACCESSORIES, EYES, PATTERNS
from kineograph_lab.world.world import COLOURS, MOTIONS, SCENES, STYLES, SUBJECTS

WEIGHTS = LABORATORY_WEIGHTS / "judge" / "judge.safetensors"
SIDE, CLIP_SIDE, NUM_FRAMES = 128, 64, 16  # pixels of a picture and of a frame in motion, frames of a video
EMBEDDING_WIDTH = 32
NOTHING = "nothing"
LABELS: dict[str, tuple[str, ...]] = {
    "thing": SUBJECTS, "colour": COLOURS, "scene": SCENES, "style": STYLES,
    "second": (*SUBJECTS, NOTHING), "second_colour": COLOURS,
}  # fmt: skip

# What makes an individual, where it shows. Asked in training only: it teaches the embedding what to look at.
DETAIL_LABELS: dict[str, tuple[str, ...]] = {
    "pattern": PATTERNS, "eyes": EYES, "accessory": tuple(dict.fromkeys(ACCESSORIES)), "accent": ACCENTS,
}  # fmt: skip


class ImageLabels(NamedTuple):
    """What each picture shows: the main thing (of two, the left one), and an embedding of who it is, of unit length.

    Two renderings of one individual have embeddings of a high cosine, whatever the place, the size and the scene;
    another individual of the same kind and colour has a lower one. `second` is "nothing" where there is one thing.
    """

    thing: list[str]
    colour: list[str]
    scene: list[str]
    style: list[str]
    second: list[str]
    second_colour: list[str]
    individual: Float[np.ndarray, "n d"]


class ResidualBlock(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def conv_block(into: int, out: int, stride: int) -> list[nn.Module]:
    """A convolution, normed and bent."""
    return [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.GroupNorm(8, out), nn.SiLU()]


def _downsampling_block(into: int, out: int) -> nn.Module:
    return nn.Sequential(*conv_block(into, out, 2), ResidualBlock(*conv_block(out, out, 1)))


class ImageClassifier(nn.Module):
    """Pictures [n, 3, 128, 128] in -1..1 -> logits of every answer, and the embedding."""

    def __init__(self) -> None:
        super().__init__()
        stages = [
            nn.Sequential(*conv_block(3, 16, 2)),
            nn.Sequential(*conv_block(16, 32, 2)),
            _downsampling_block(32, 64),
            _downsampling_block(64, 128),
            _downsampling_block(128, 128),
        ]
        self.stages = nn.Sequential(*stages, nn.Conv2d(128, 32, 1), nn.Flatten(), nn.Linear(32 * 16, 160), nn.SiLU())
        self.answers = nn.ModuleDict(
            {name: nn.Linear(160, len(words)) for name, words in (LABELS | DETAIL_LABELS).items()}
        )
        self.identity = nn.Linear(160, EMBEDDING_WIDTH)

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        seen = self.stages(pictures)
        return {name: answer(seen).float() for name, answer in self.answers.items()}, normalize(
            self.identity(seen).float(), dim=1
        )


class MotionClassifier(nn.Module):
    """Videos [n, 3, 16, 64, 64] in -1..1 -> logits of the main thing's motion."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 16, 32, 48, 64, 64), ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 1, 1))
        layers: list[nn.Module] = []
        for into, out, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [nn.Conv3d(into, out, 3, stride, 1, bias=False), nn.GroupNorm(8, out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, len(MOTIONS)))

    def forward(self, videos: Tensor) -> Tensor:
        return self.layers(videos).float()


class Judge(nn.Module):
    """Two eyes, one for pictures and one for videos."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.motion_eye = ImageClassifier(), MotionClassifier()

    @torch.no_grad()
    def look(self, frames: UInt8[np.ndarray, "n h w 3"]) -> ImageLabels:
        """What each picture shows; other sizes than 128 x 128 are resampled."""
        told, identity = self.eye(resize_images(to_tensor(frames), SIDE))
        named = {name: [words[k] for k in told[name].argmax(1).tolist()] for name, words in LABELS.items()}
        return ImageLabels(**named, individual=identity.numpy())

    @torch.no_grad()
    def motion(self, video: UInt8[np.ndarray, "f h w 3"]) -> str:
        """How the main thing moves, one of the world's motions; made for two seconds at 8 frames a second."""
        chosen = np.linspace(0, len(video) - 1, NUM_FRAMES).round().astype(int)
        frames = resize_images(to_tensor(video[chosen]), CLIP_SIDE)
        return MOTIONS[int(self.motion_eye(frames.transpose(0, 1)[None]).argmax())]


def resize_images(pictures: Tensor, side: int) -> Tensor:
    """Pictures [n, 3, h, w] as [n, 3, side, side], every pixel a mean."""
    return (
        pictures
        if pictures.shape[-2:] == (side, side)
        else interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    )


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The judge with these weights (safetensors); by default with those that come with the package."""
    judge = Judge()
    judge.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return judge.eval()
