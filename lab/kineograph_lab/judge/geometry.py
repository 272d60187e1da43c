"""How far away each part of a picture of the pocket world is, and where its main thing's ends are: a judge of control.

Trained on the world's own renderings alone, as the judge is, so that what it says of generated frames is an outsider's
word. It is to the pocket world what Depth-Anything and ViTPose are to photographs.
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
DEPTH_SIDE = 32  # rows and columns of what is said
POINTS_WEIGHT = 8.0  # weight of a point's distance beside that of a cell's depth


class Geometry(NamedTuple):
    """Of each picture: how far each cell is (0 at the camera, 1 at the horizon), and where KEYPOINTS are, as parts of
    the picture's width and height."""

    depth: Float[np.ndarray, "n 32 32"]
    points: Float[np.ndarray, "n 5 2"]


class GeometryNetwork(nn.Module):
    """Pictures [n, 3, 128, 128] in -1..1 -> depth [n, 32, 32] and heat of each point [n, 5, 32, 32], as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(*conv_block(3, 16, 2), *conv_block(16, 64, 2), ResidualBlock(*conv_block(64, 64, 1)))
        self.middle = nn.Sequential(*conv_block(64, 96, 2), ResidualBlock(*conv_block(96, 96, 1)))
        self.coarse = nn.Sequential(
            *conv_block(96, 128, 2), *(ResidualBlock(*conv_block(128, 128, 1)) for _ in range(2))
        )
        self.up = nn.Sequential(*conv_block(128 + 96, 96, 1))
        self.last = nn.Sequential(*conv_block(96 + 64, 64, 1), nn.Conv2d(64, 1 + len(KEYPOINTS), 1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(pictures)
        middle = self.middle(fine)
        coarse = self.up(torch.cat([_upsample(self.coarse(middle)), middle], dim=1))
        told = self.last(torch.cat([_upsample(coarse), fine], dim=1)).float()
        return told[:, 0], told[:, 1:]

    @torch.no_grad()
    def look(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Geometry:
        """What each picture shows; other sizes than 128 x 128 are resampled."""
        depth, heat = self(resize_images(to_tensor(frames), SIDE))
        return Geometry(depth.sigmoid().numpy(), soft_argmax(heat).numpy())


def _upsample(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0)


def soft_argmax(heat: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k 2"]:
    """Where each point is: the mean place under its heat, (x, y) as parts of the width and height."""
    height, width = heat.shape[-2:]
    weight = heat.flatten(2).softmax(-1).view_as(heat)
    x = (torch.arange(width, device=heat.device) + 0.5) / width
    y = (torch.arange(height, device=heat.device) + 0.5) / height
    return torch.stack([(weight.sum(2) * x).sum(-1), (weight.sum(3) * y).sum(-1)], dim=-1)


def ground_truth_geometry(pool: Pool) -> Geometry:
    """The truth of all pictures."""
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
    """The averaged eye."""
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
    """Batches of softened pictures whose things are well inside the frame, their depths and points."""
    usable = np.array([number for number, fact in enumerate(pool.facts) if is_inside_frame(fact)])
    known = ground_truth_geometry(pool)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = usable[rng.integers(len(usable), size=batch)]
        pictures = augment_images(to_tensor(pool.pictures[chosen]), rng)
        return pictures, torch.from_numpy(known.depth[chosen]), torch.from_numpy(known.points[chosen])

    return sample_batch


def geometry_losses(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The mean error of the depth, of the points' places, and the cross-entropy of the cells that they are in."""
    pictures, depth, points = batch
    far, heat = net(pictures)
    cell = (points * DEPTH_SIDE).long().clamp(0, DEPTH_SIDE - 1)
    place = cell[..., 1] * DEPTH_SIDE + cell[..., 0]
    return {
        "depth": (far.sigmoid() - depth).abs().mean(),
        "points": POINTS_WEIGHT * (soft_argmax(heat) - points).abs().mean(),
        "heat": 0.1 * cross_entropy(heat.flatten(2).flatten(0, 1), place.flatten()),
    }


def geometry_report(pool: Pool) -> Callable[[GeometryNetwork], Metrics]:
    """On held-out pictures: the mean error of the depth, and the mean distance of the points in parts of the picture."""
    usable = [number for number, fact in enumerate(pool.facts) if is_inside_frame(fact)]
    chosen = Pool(pool.pictures[usable], [pool.facts[number] for number in usable])
    known = ground_truth_geometry(chosen)

    @torch.no_grad()
    def report(net: GeometryNetwork) -> Metrics:
        device = next(net.parameters()).device
        parts = [chosen.pictures[k : k + 64] for k in range(0, len(chosen.pictures), 64)]
        told = [net(to_tensor(part).to(device)) for part in parts]
        depth = torch.cat([far.sigmoid().cpu() for far, _ in told]).numpy()
        points = torch.cat([soft_argmax(heat).cpu() for _, heat in told]).numpy()
        off = np.linalg.norm(points - known.points, axis=-1)
        return {"depth": float(np.abs(depth - known.depth).mean()), "points": float(off.mean())}

    return report


def load_geometry_network(path: Path = WEIGHTS) -> GeometryNetwork:
    """The eye with these weights (safetensors); by default with those that come with the package."""
    eye = GeometryNetwork()
    eye.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return eye.eval()
