"""Pictures as tensors and back, and sheets of them for the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in -1..1, `channels_last`."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(pictures: Tensor) -> np.ndarray:
    """[n, 3, h, w] in -1..1 -> uint8 [n, h, w, 3]."""
    return pictures.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def save_contact_sheet(path: Path, *rows: np.ndarray) -> None:
    """Rows of pictures, uint8 [n, h, w, 3] each, one under another."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)


def augment_images(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [n, 3, h, w] in -1..1, each blurred, tinted and grained by its own random amounts."""
    n = len(pictures)

    def amount(high: float, *shape: int) -> Tensor:
        return torch.from_numpy((high * rng.uniform(-1, 1, size=(n, *shape))).astype(np.float32))

    blurred = avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    mixed = pictures.lerp(blurred, amount(1.0, 1, 1, 1).clamp(min=0))
    tinted = mixed * (1 + amount(0.06, 3, 1, 1)) + amount(0.06, 3, 1, 1)
    grain = torch.from_numpy(rng.standard_normal((n, 1, *pictures.shape[2:]), np.float32))
    return tinted + grain * amount(0.06, 1, 1, 1)


def shift_images(pictures: Tensor, rng: np.random.Generator, farthest: np.ndarray) -> Tensor:
    """Pictures [n, 3, h, w], each moved by up to so many pixels up or down and left or right, its edges mirrored."""
    margin, (height, width) = int(farthest.max()), pictures.shape[2:]
    wide = pad(pictures, (margin,) * 4, "reflect")
    offsets = margin + np.rint(farthest[:, None] * rng.uniform(-1, 1, size=(len(pictures), 2))).astype(int)
    return torch.stack([each[:, y : y + height, x : x + width] for each, (y, x) in zip(wide, offsets, strict=True)])
