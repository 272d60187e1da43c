"""What blurs, stains, recolours and shifts a picture a little, so that classifiers lean on neither decimals nor places."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


def soften(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [n, 3, h, w] in -1..1, each blurred, tinted and grained by its own random amounts."""
    n = len(pictures)

    def amount(high: float, *shape: int) -> Tensor:
        return torch.from_numpy((high * rng.uniform(-1, 1, size=(n, *shape))).astype(np.float32))

    blurred = avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    mixed = pictures.lerp(blurred, amount(1.0, 1, 1, 1).clamp(min=0))
    tinted = mixed * (1 + amount(0.06, 3, 1, 1)) + amount(0.06, 3, 1, 1)
    grain = torch.from_numpy(rng.standard_normal((n, 1, *pictures.shape[2:]), np.float32))
    return tinted + grain * amount(0.06, 1, 1, 1)


def shifted(pictures: Tensor, rng: np.random.Generator, farthest: np.ndarray) -> Tensor:
    """Pictures [n, 3, h, w], each moved by up to so many pixels up or down and left or right, its edges mirrored."""
    margin, (height, width) = int(farthest.max()), pictures.shape[2:]
    wide = pad(pictures, (margin,) * 4, "reflect")
    offsets = margin + np.rint(farthest[:, None] * rng.uniform(-1, 1, size=(len(pictures), 2))).astype(int)
    return torch.stack([each[:, y : y + height, x : x + width] for each, (y, x) in zip(wide, offsets, strict=True)])
