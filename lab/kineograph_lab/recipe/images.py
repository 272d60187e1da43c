"""Images as tensors, contact sheets, and augmentation for classifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


def to_tensor(images: np.ndarray) -> Tensor:
    """Return uint8 [n, h, w, 3] as float32 [n, 3, h, w] in -1..1, `channels_last`."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> np.ndarray:
    """Return [n, 3, h, w] in -1..1 as uint8 [n, h, w, 3]."""
    return images.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def save_contact_sheet(path: Path, *rows: np.ndarray) -> None:
    """Save rows of images, uint8 [n, h, w, 3] each, one below another."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)


def augment_images(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images [n, 3, h, w] in -1..1, each blurred, tinted and noised by its own random amounts."""
    n = len(images)

    def random_amounts(high: float, *shape: int) -> Tensor:
        return torch.from_numpy((high * rng.uniform(-1, 1, size=(n, *shape))).astype(np.float32))

    blurred = avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    partly_blurred = images.lerp(blurred, random_amounts(1.0, 1, 1, 1).clamp(min=0))
    tinted = partly_blurred * (1 + random_amounts(0.06, 3, 1, 1)) + random_amounts(0.06, 3, 1, 1)
    noise = torch.from_numpy(rng.standard_normal((n, 1, *images.shape[2:]), np.float32))
    return tinted + noise * random_amounts(0.06, 1, 1, 1)


def shift_images(images: Tensor, rng: np.random.Generator, max_shift: np.ndarray) -> Tensor:
    """Return images [n, 3, h, w], each shifted by up to `max_shift` pixels along both axes, edges mirrored."""
    margin, (height, width) = int(max_shift.max()), images.shape[2:]
    padded = pad(images, (margin,) * 4, "reflect")
    offsets = margin + np.rint(max_shift[:, None] * rng.uniform(-1, 1, size=(len(images), 2))).astype(int)
    return torch.stack([each[:, y : y + height, x : x + width] for each, (y, x) in zip(padded, offsets, strict=True)])
