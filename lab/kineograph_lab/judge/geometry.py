"""Depth and keypoints of images of the pocket world: the judge of spatial control.

Trained on the world's own renderings alone, as `Judge` is, so that its verdict on generated frames is independent of the
generator. It is to the pocket world what Depth-Anything and ViTPose are to photographs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab import WEIGHTS as LABORATORY_WEIGHTS
from kineograph_lab.judge.networks import SIDE, ResidualBlock, conv_block, resize_images
from kineograph_lab.judge.training import is_inside_frame
from kineograph_lab.recipe.images import augment_images, to_tensor
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.pool import Pool, shot_from_facts
from kineograph_lab.world.truth import KEYPOINTS, ground_truth

WEIGHTS = LABORATORY_WEIGHTS / "judge" / "geometry.safetensors"
DEPTH_SIDE = 32  # rows and columns of the predicted maps
POINTS_WEIGHT = 8.0  # weight of the keypoints' error relative to the depth's


class Geometry(NamedTuple):
    """Geometry of each image: depth of each cell (0 at the camera, 1 at the horizon), and positions of KEYPOINTS as parts
    of the image's width and height.
    """

    depth: Float[np.ndarray, "n 32 32"]
    points: Float[np.ndarray, "n 5 2"]


class GeometryNetwork(nn.Module):
    """Images [n, 3, 128, 128] in -1..1 -> depth [n, 32, 32] and keypoint heatmaps [n, 5, 32, 32], as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(*conv_block(3, 16, 2), *conv_block(16, 64, 2), ResidualBlock(*conv_block(64, 64, 1)))
        self.middle = nn.Sequential(*conv_block(64, 96, 2), ResidualBlock(*conv_block(96, 96, 1)))
        self.coarse = nn.Sequential(
            *conv_block(96, 128, 2), *(ResidualBlock(*conv_block(128, 128, 1)) for _ in range(2))
        )
        self.up = nn.Sequential(*conv_block(128 + 96, 96, 1))
        self.last = nn.Sequential(*conv_block(96 + 64, 64, 1), nn.Conv2d(64, 1 + len(KEYPOINTS), 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images)
        middle = self.middle(fine)
        coarse = self.up(torch.cat([_upsample(self.coarse(middle)), middle], dim=1))
        maps = self.last(torch.cat([_upsample(coarse), fine], dim=1)).float()
        return maps[:, 0], maps[:, 1:]

    @torch.no_grad()
    def predict(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Geometry:
        """Return the geometry of each image; other sizes than 128 x 128 are resampled."""
        depth, heat = self(resize_images(to_tensor(frames), SIDE))
        return Geometry(depth.sigmoid().numpy(), soft_argmax(heat).numpy())


def _upsample(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0)


def soft_argmax(heat: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k 2"]:
    """Return each heatmap's mean position, (x, y) as parts of the width and height."""
    height, width = heat.shape[-2:]
    weight = heat.flatten(2).softmax(-1).view_as(heat)
    x = (torch.arange(width, device=heat.device) + 0.5) / width
    y = (torch.arange(height, device=heat.device) + 0.5) / height
    return torch.stack([(weight.sum(2) * x).sum(-1), (weight.sum(3) * y).sum(-1)], dim=-1)


def ground_truth_geometry(pool: Pool) -> Geometry:
    """Return the true geometry of all images."""
    known = [ground_truth(shot_from_facts(fact), fact["time"]) for fact in pool.facts]
    depth = np.stack(
        [
            each.depth.reshape(DEPTH_SIDE, SIDE // DEPTH_SIDE, DEPTH_SIDE, SIDE // DEPTH_SIDE).mean((1, 3))
            for each in known
        ]
    )
    points = [[each.keypoints[0][name] for name in KEYPOINTS] for each in known]
    return Geometry(depth, np.array(points, np.float32) / SIDE)


def train_geometry(plan: StagePlan, folder: Path, pool: Pool, held_out: Pool) -> GeometryNetwork:
    """Train the network; return it with averaged weights."""
    ready = use_fast_group_norm(GeometryNetwork()).to(best_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    return train_loop(
        ready,
        plan,
        folder,
        sample_batch=geometry_batches(pool, plan.batch),
        loss=geometry_losses,
        report=geometry_report(held_out),
    )


def geometry_batches(pool: Pool, batch: int) -> SampleBatch:
    """Return a sampler of augmented images whose subjects are well inside the frame, with depths and keypoints."""
    usable_images = np.array([number for number, fact in enumerate(pool.facts) if is_inside_frame(fact)])
    geometry = ground_truth_geometry(pool)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = usable_images[rng.integers(len(usable_images), size=batch)]
        images = augment_images(to_tensor(pool.items[chosen]), rng)
        return images, torch.from_numpy(geometry.depth[chosen]), torch.from_numpy(geometry.points[chosen])

    return sample_batch


def geometry_losses(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the mean errors of depth and of keypoint positions, and the cross-entropy of the keypoints' cells."""
    images, depth, points = batch
    depth_logits, heatmaps = net(images)
    cell = (points * DEPTH_SIDE).long().clamp(0, DEPTH_SIDE - 1)
    cell_index = cell[..., 1] * DEPTH_SIDE + cell[..., 0]
    return {
        "depth": (depth_logits.sigmoid() - depth).abs().mean(),
        "points": POINTS_WEIGHT * (soft_argmax(heatmaps) - points).abs().mean(),
        "heat": 0.1 * cross_entropy(heatmaps.flatten(2).flatten(0, 1), cell_index.flatten()),
    }


def geometry_report(pool: Pool) -> Callable[[GeometryNetwork], Metrics]:
    """Return a report on held-out images: mean error of depth, mean distance of keypoints in parts of the image."""
    numbers = [number for number, fact in enumerate(pool.facts) if is_inside_frame(fact)]
    chosen = Pool(pool.items[numbers], [pool.facts[number] for number in numbers])
    geometry = ground_truth_geometry(chosen)

    @torch.no_grad()
    def report(net: GeometryNetwork) -> Metrics:
        device = next(net.parameters()).device
        batches = [chosen.items[k : k + 64] for k in range(0, len(chosen.items), 64)]
        outputs = [net(to_tensor(part).to(device)) for part in batches]
        depth = torch.cat([depth_logits.sigmoid().cpu() for depth_logits, _ in outputs]).numpy()
        points = torch.cat([soft_argmax(heatmaps).cpu() for _, heatmaps in outputs]).numpy()
        distances = np.linalg.norm(points - geometry.points, axis=-1)
        return {"depth": float(np.abs(depth - geometry.depth).mean()), "points": float(distances.mean())}

    return report


def load_geometry_network(path: Path = WEIGHTS) -> GeometryNetwork:
    """Return the network with these weights (safetensors), by default those that ship with the laboratory."""
    network = GeometryNetwork()
    network.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return network.eval()
