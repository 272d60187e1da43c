"""Pictures as tensors and back, and sheets of them for the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in -1..1, `channels_last`."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def as_pictures(pictures: Tensor) -> np.ndarray:
    """[n, 3, h, w] in -1..1 -> uint8 [n, h, w, 3]."""
    return pictures.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def save_sheet(path: Path, *rows: np.ndarray) -> None:
    """Rows of pictures, uint8 [n, h, w, 3] each, one under another."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)
