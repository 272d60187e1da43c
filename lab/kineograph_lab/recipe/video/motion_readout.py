"""An auxiliary loss on temporal layers, in training only: the main subject's motion and position, read from their output.

Words for motion reach the frames by a long way: cross-attention, a temporal layer that knows frame positions, and filters
that move what is there. The error of the noise says little about motion, since most of it has other causes. A target that
is the motion itself trains every temporal transformer directly.
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

NUM_MOTIONS = 4  # shift to the right, shift down, log of the size, rotation
UNITS = (0.15, 0.15, 0.4, 1.0)  # parts of the image, the same, 1, radians: typical values within a clip


class MotionReadout(nn.Module):
    """A linear prediction from the output of each temporal attention, recorded per thread."""

    def __init__(self, temporal: TemporalLayers) -> None:
        super().__init__()
        self.answers = nn.ModuleList()
        # By thread: the training loop runs the network in several at once.
        self.outputs: dict[int, list[tuple[int, Tensor]]] = {}
        for layer in temporal.modules():
            if isinstance(layer, TemporalTransformer | AttentionInBlock):
                layer.register_forward_hook(partial(self._record_output, len(self.answers)))
                width = layer.channels
                self.answers.append(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, NUM_MOTIONS + 1)))

    def _record_output(self, number: int, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if get_ident() in self.outputs:
            self.outputs[get_ident()].append((number, output))

    def record(self) -> None:
        """Record the outputs of the temporal attentions in this thread from now on."""
        self.outputs[get_ident()] = []

    def error(self, motion: Float[Tensor, "b f m"], is_subject: Float[Tensor, "b f h w"]) -> Float[Tensor, ""]:
        """Return the error of the predictions from the recorded outputs, averaged over layers; the record is cleared."""
        outputs = self.outputs.pop(get_ident())
        return torch.stack([self._layer_error(number, output, motion, is_subject) for number, output in outputs]).mean()

    def _layer_error(self, number: int, output: Tensor, motion: Tensor, is_subject: Tensor) -> Tensor:
        prediction = self.answers[number](_to_cells(output)).float()  # (b f) h w m
        frames = len(prediction) // len(motion)  # fewer at the lowest resolution of a space-time network
        motion, is_subject = (truth.unflatten(1, (frames, -1)).mean(2) for truth in (motion, is_subject))
        predicted_motion = prediction[..., :NUM_MOTIONS].mean((1, 2)).view_as(motion)
        is_subject_pooled = adaptive_avg_pool2d(is_subject.flatten(0, 1)[:, None], prediction.shape[1:3])[:, 0]
        return (predicted_motion - motion).square().mean() + binary_cross_entropy_with_logits(
            prediction[..., NUM_MOTIONS], is_subject_pooled
        )


@runtime_checkable
class HasMotionReadout(Protocol):
    """A network with a motion readout in training."""

    net: VideoUNet
    questions: MotionReadout


def _to_cells(output: Tensor) -> Tensor:
    """Return a layer's output, `(b f) c h w` or the tokens of square images, as `(b f) h w c`."""
    return output.permute(0, 2, 3, 1) if output.ndim == 4 else output.unflatten(1, (isqrt(output.shape[1]), -1))


def motion_truth(fact: dict[str, Any], times: list[float], cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the main subject's motion relative to its mean over the frames, [f, 4], and its cells, [f, cells, cells]."""
    shot = shot_from_facts(fact)
    poses = [world.POSES[shot.things[0].motion](time) for time in times]
    motion = [
        (pose.dx - world.camera_shift(shot, time), pose.dy, np.log(pose.zoom), pose.turn)
        for pose, time in zip(poses, times, strict=True)
    ]
    is_subject = np.stack([subject_cells({**fact, "time": time}, cells) == 0 for time in times])
    motion_array = np.array(motion, np.float32)
    return (motion_array - motion_array.mean(0)) / np.array(UNITS, np.float32), is_subject.astype(np.float16)
