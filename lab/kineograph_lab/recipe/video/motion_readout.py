"""What layers along time are asked while they learn, and no longer: how the main thing has moved, and where it is.

Words for motion reach the picture by a long way: cross-attention, a temporal layer that knows which frame it is in,
and filters that move what is there. The error of the noise says little about it, since most of that error is about
other things. A question whose answer is the motion itself does, to every temporal transformer.
"""

from __future__ import annotations

from functools import partial
from math import isqrt
from threading import get_ident
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits

from kineograph.models.temporal.layers import AttentionInBlock, TemporalTransformer
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph_lab.recipe.pool import shot_from_facts, subject_cells
from kineograph_lab.world import world

NUM_MOTIONS = 4  # shift to the right, shift down, log of the size, turn
UNITS = (0.15, 0.15, 0.4, 1.0)  # parts of the picture, the same, 1, radians: about what happens within a film


class MotionReadout(nn.Module):
    """A linear answer from the tokens that each temporal attention gives, and what they were in this thread."""

    def __init__(self, temporal: TemporalLayers) -> None:
        super().__init__()
        self.answers = nn.ModuleList()
        self.heard: dict[int, list[tuple[int, Tensor]]] = {}  # fit walks the network in several threads at once
        for layer in temporal.modules():
            if isinstance(layer, TemporalTransformer | AttentionInBlock):
                layer.register_forward_hook(partial(self._hear, len(self.answers)))
                width = layer.channels
                self.answers.append(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, NUM_MOTIONS + 1)))

    def _hear(self, number: int, layer: nn.Module, given: Any, output: Tensor) -> None:
        if get_ident() in self.heard:
            self.heard[get_ident()].append((number, output))

    def listen(self) -> None:
        """Remember what the transformers give in this thread from now on."""
        self.heard[get_ident()] = []

    def error(self, moves: Float[Tensor, "b f m"], there: Float[Tensor, "b f h w"]) -> Float[Tensor, ""]:
        """How wrong the answers are to what was heard, all layers alike; it is forgotten then."""
        heard = self.heard.pop(get_ident())
        return torch.stack([self._wrong(number, output, moves, there) for number, output in heard]).mean()

    def _wrong(self, number: int, output: Tensor, moves: Tensor, there: Tensor) -> Tensor:
        told = self.answers[number](_to_cells(output)).float()  # (b f) h w m
        frames = len(told) // len(moves)  # fewer at the coarsest level of a space-time network
        moves, there = (truth.unflatten(1, (frames, -1)).mean(2) for truth in (moves, there))
        moved = told[..., :NUM_MOTIONS].mean((1, 2)).view_as(moves)
        seen = adaptive_avg_pool2d(there.flatten(0, 1)[:, None], told.shape[1:3])[:, 0]
        return (moved - moves).square().mean() + binary_cross_entropy_with_logits(told[..., NUM_MOTIONS], seen)


@runtime_checkable
class HasMotionReadout(Protocol):
    """A network that is asked while it learns."""

    net: VideoUNet
    questions: MotionReadout


def _to_cells(output: Tensor) -> Tensor:
    """A layer's output, `(b f) c h w` or the tokens of square pictures, as `(b f) h w c`."""
    return output.permute(0, 2, 3, 1) if output.ndim == 4 else output.unflatten(1, (isqrt(output.shape[1]), -1))


def motion_truth(fact: dict[str, Any], times: list[float], cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame: how the main thing stands to its mean over the frames, [f, 4], and where it is, [f, cells, cells]."""
    shot = shot_from_facts(fact)
    poses = [world.POSES[shot.things[0].motion](time) for time in times]
    moved = [
        (pose.dx - world.camera_shift(shot, time), pose.dy, np.log(pose.zoom), pose.turn)
        for pose, time in zip(poses, times, strict=True)
    ]
    there = np.stack([subject_cells({**fact, "time": time}, cells) == 0 for time in times])
    steps = np.array(moved, np.float32)
    return (steps - steps.mean(0)) / np.array(UNITS, np.float32), there.astype(np.float16)
