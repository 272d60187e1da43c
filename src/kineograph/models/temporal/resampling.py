"""Fewer frames where the picture is small: a space-time U-Net, after Lumiere (Bar-Tal et al. 2024, section 3).

The image network halves the picture on its way down and doubles it on its way up. These layers do the same with the
number of frames, so that attention along time, at the coarsest level alone, sees the whole video at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from kineograph.models.temporal.layers import ApplyProjection, apply_projection, as_plane


class TemporalDownsample(nn.Module):
    """The means of so many frames in a row, `(b f) c h w` -> `(b ceil(f / factor)) c h w`, filtered along time before.

    It begins without the filter; what is missing of the last row is its last frame again.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        self.filter = _silent_filter(channels)

    def forward(self, x: Tensor, frames: int, project: ApplyProjection = apply_projection) -> Tensor:
        plane = as_plane(x, frames)
        plane = plane + self.filter(plane)
        whole = pad(plane, (0, 0, 0, -frames % self.factor), mode="replicate")
        return as_pictures(avg_pool2d(whole, (self.factor, 1)), x.shape[2:])


class TemporalUpsample(nn.Module):
    """Every frame so many times, `(b f) c h w` -> `(b f*factor) c h w`, filtered along time afterwards.

    It begins without the filter.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        self.filter = _silent_filter(channels)

    def forward(self, x: Tensor, frames: int, project: ApplyProjection = apply_projection) -> Tensor:
        plane = as_plane(x, frames).repeat_interleave(self.factor, dim=2)
        return as_pictures(plane + self.filter(plane), x.shape[2:])


def as_pictures(plane: Tensor, size: torch.Size) -> Tensor:
    """`b c f (h w)` -> `(b f) c h w`."""
    return plane.unflatten(3, size).transpose(1, 2).flatten(0, 1)


def _silent_filter(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
