"""The judge: classifiers of a rendered image's content, of individuals, and of a video's motion.

Trained on the world's own renderings alone (`training.py`), never on generated images, so that its verdict about those
is independent of the generator. Names of layers and of labels are names of weights in its file.
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
SIDE, CLIP_SIDE, NUM_FRAMES = 128, 64, 16  # pixels of an image and of a clip's frame, frames of a clip
EMBEDDING_WIDTH = 32
NOTHING = "nothing"
LABELS: dict[str, tuple[str, ...]] = {
    "thing": SUBJECTS, "colour": COLOURS, "scene": SCENES, "style": STYLES,
    "second": (*SUBJECTS, NOTHING), "second_colour": COLOURS,
}  # fmt: skip

# Visible details of an individual. Predicted in training only, where they teach the embedding which details matter.
DETAIL_LABELS: dict[str, tuple[str, ...]] = {
    "pattern": PATTERNS, "eyes": EYES, "accessory": tuple(dict.fromkeys(ACCESSORIES)), "accent": ACCENTS,
}  # fmt: skip


class ImageLabels(NamedTuple):
    """The recognised content of each image: the main subject (of two, the left one) and an embedding of its identity.

    Embeddings have unit length. Two renderings of one individual have a high cosine, whatever the position, size and scene;
    another individual of the same kind and colour has a lower one. `second` is "nothing" with a single subject.
    """

    subject: list[str]
    colour: list[str]
    scene: list[str]
    style: list[str]
    second: list[str]
    second_colour: list[str]
    identity: Float[np.ndarray, "n d"]


class ResidualBlock(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def conv_block(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    """Return a 3 x 3 convolution, group norm and SiLU."""
    return [nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.GroupNorm(8, out_channels), nn.SiLU()]


def _downsampling_block(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        *conv_block(in_channels, out_channels, 2), ResidualBlock(*conv_block(out_channels, out_channels, 1))
    )


class ImageClassifier(nn.Module):
    """Images [n, 3, 128, 128] in -1..1 -> logits of every label, and the identity embedding."""

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

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.stages(images)
        return {name: head(features).float() for name, head in self.answers.items()}, normalize(
            self.identity(features).float(), dim=1
        )


class MotionClassifier(nn.Module):
    """Videos [n, 3, 16, 64, 64] in -1..1 -> logits of the main subject's motion."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 16, 32, 48, 64, 64), ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 1, 1))
        layers: list[nn.Module] = []
        for in_channels, out_channels, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [
                nn.Conv3d(in_channels, out_channels, 3, stride, 1, bias=False),
                nn.GroupNorm(8, out_channels),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, len(MOTIONS)))

    def forward(self, videos: Tensor) -> Tensor:
        return self.layers(videos).float()


class Judge(nn.Module):
    """A classifier of images and one of videos."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.motion_eye = ImageClassifier(), MotionClassifier()

    @torch.no_grad()
    def classify(self, frames: UInt8[np.ndarray, "n h w 3"]) -> ImageLabels:
        """Return the labels of each image; other sizes than 128 x 128 are resampled."""
        logits, identity = self.eye(resize_images(to_tensor(frames), SIDE))
        labels = {name: [words[k] for k in logits[name].argmax(1).tolist()] for name, words in LABELS.items()}
        return ImageLabels(
            labels["thing"], labels["colour"], labels["scene"], labels["style"], labels["second"],
            labels["second_colour"], identity.numpy(),
        )  # fmt: skip

    @torch.no_grad()
    def classify_motion(self, video: UInt8[np.ndarray, "f h w 3"]) -> str:
        """Return the main subject's motion, one of the world's; trained on two seconds at 8 frames a second."""
        chosen = np.linspace(0, len(video) - 1, NUM_FRAMES).round().astype(int)
        frames = resize_images(to_tensor(video[chosen]), CLIP_SIDE)
        return MOTIONS[int(self.motion_eye(frames.transpose(0, 1)[None]).argmax())]


def resize_images(images: Tensor, side: int) -> Tensor:
    """Return images [n, 3, h, w] as [n, 3, side, side], antialiased."""
    return (
        images
        if images.shape[-2:] == (side, side)
        else interpolate(images, (side, side), mode="bilinear", antialias=True)
    )


def load_judge(path: Path = WEIGHTS) -> Judge:
    """Return the judge with these weights (safetensors), by default those that ship with the laboratory."""
    judge = Judge()
    judge.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return judge.eval()
