"""Training of the judge of anatomy on renderings and corrupted renderings; labels say what is drawn, right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.judge.corruption import CORRUPTIONS, Corruption, corrupt, is_apart, part_group
from kineograph_lab.judge.parts import CELLS, NUM_LABELS, PartsNetwork, are_parts_right, find_peaks, locate_parts
from kineograph_lab.recipe.images import augment_images, to_tensor
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.world import wide, world
from kineograph_lab.world.anatomy import CELL, MIN_SPACING, Anatomy, coarsen, frame_anatomy, shot_anatomy
from kineograph_lab.world.shapes import PART_NAMES, Outline, Part
from kineograph_lab.world.world import ShotSpec, subject_parts

HELD_OUT_SHARE = 0.25  # of training images with pairs that are new to the generator: the judge must know them
MOVING_SHARE, MAX_TIME = 0.25, 0.9  # share of frames at a time other than 0, and the largest time in seconds
CORRUPTION_SHARES = (0.4, 0.4, 0.2)  # of training images with none, one and two corruptions
VARIED_SHARE = 0.6  # of training images with varied outlines: generated subjects are seldom drawn exactly
MAX_WARP, MAX_JITTER, MAX_RESIZE = 0.05, 0.05, 0.15  # of varied outlines, in units of the subject
SCENERY_WEIGHT, BODY_WEIGHT, PART_WEIGHT = 0.4, 1.0, 2.0  # of labels in their loss
SPREAD_SHARE, SPREAD_RANGE = 0.12, (0.6, 2.0)  # standard deviation of a centre's peak: share of its extent; cells
UNKNOWN = -1.0  # in heat maps: not part of the loss
MIN_BLUR, MAX_BLUR = 0.3, 1.2  # standard deviations, in pixels
THRESHOLDS = np.arange(0.15, 0.71, 0.05)
REPORT_BATCH = 64

Rng = np.random.Generator
Item = tuple[np.ndarray, dict[str, Any]]  # uint8 [128, 128, 4]: red, green, blue, label; and facts


def training_image(rng: Rng, split: str) -> Item:
    """Return a rendering of the wider distribution, often varied and corrupted, with the labels of what is drawn."""
    shot, time = _random_frame(rng, "held_out" if rng.uniform() < HELD_OUT_SHARE else split)
    parts = [subject_parts(subject) for subject in shot.things]
    if rng.uniform() < VARIED_SHARE:
        parts = [vary_parts(each, rng) for each in parts]
    for _ in range(rng.choice(len(CORRUPTION_SHARES), p=CORRUPTION_SHARES)):
        corrupted = corrupt(shot, rng, str(rng.choice(CORRUPTIONS)), time, parts)
        parts = corrupted[0] if corrupted else parts
    return _item(shot, parts, time, Corruption("", ""))


def evaluation_image(rng: Rng, split: str) -> Item:
    """Return a fresh rendering or, in half of the cases, one with a single corruption of a subject that is wholly known."""
    if rng.uniform() < 0.5:
        shot, time = _random_frame(rng, split)
        return _item(shot, [subject_parts(subject) for subject in shot.things], time, Corruption("", ""))
    way = str(rng.choice(CORRUPTIONS))
    while True:
        shot, time = _random_frame(rng, split)
        found = corrupt(shot, rng, way, time) if is_apart(shot_anatomy(shot, time)) else None
        if found is None:
            continue
        parts, corruption = found
        if is_apart(frame_anatomy(shot, parts, time)):
            return _item(shot, parts, time, corruption)


def _random_frame(rng: Rng, split: str) -> tuple[ShotSpec, float]:
    shot = wide.sample_wide_shot(rng, split)
    moves = rng.uniform() < MOVING_SHARE and not any(wide.is_cut_off(subject) for subject in shot.things)
    return shot, float(rng.uniform(-MAX_TIME, MAX_TIME)) if moves else 0.0


def _item(shot: ShotSpec, parts: Sequence[list[Part]], time: float, corruption: Corruption) -> Item:
    anatomy = frame_anatomy(shot, parts, time)
    image = world.render_parts(shot, parts, time)
    kinds = [subject.kind for subject in shot.things]
    facts = {"kinds": kinds, "way": corruption.way, "name": corruption.name, "centres": centres_of(anatomy)}
    return np.concatenate([image, anatomy.labels[..., None]], axis=-1), facts


def centres_of(anatomy: Anatomy) -> list[tuple[int, float, float, float, bool]]:
    """Return (index of the name, x, y, extent, is known) of each visible part, lengths in cells.

    Not known: too small, mostly hidden, or too near to another part of its name.
    """
    found = []
    for each in anatomy.instances:
        distances = [np.hypot(each.x - other.x, each.y - other.y) for other in anatomy.instances
                     if other is not each and other.name == each.name]  # fmt: skip
        known = each.is_clear and min(distances, default=np.inf) >= 0.9 * MIN_SPACING
        extent = each.area**0.5 / CELL
        found.append((PART_NAMES.index(each.name), each.x / CELL, each.y / CELL, extent, bool(known)))
    return found


def vary_parts(parts: list[Part], rng: Rng) -> list[Part]:
    """Return the parts with each one moved and resized a little, then all bent by one smooth displacement."""
    varied = list(parts)
    for chosen in [k for k, part in enumerate(parts) if part.name in PART_NAMES and part.name != "body"]:
        offset, factor = rng.uniform(-MAX_JITTER, MAX_JITTER, 2), 1 + rng.uniform(-MAX_RESIZE, MAX_RESIZE, 2)
        middle = parts[chosen].outline.mean(0)
        for k in [chosen, *(k for k in part_group(parts, chosen) if not parts[k].name)]:
            varied[k] = varied[k]._replace(outline=(varied[k].outline - middle) * factor + middle + offset)
    waves, phases = rng.uniform(-4, 4, (2, 2)), rng.uniform(0, 2 * np.pi, 2)
    amplitudes = rng.uniform(0, MAX_WARP, 2)

    def bend(outline: Outline) -> Outline:
        return outline + amplitudes * np.sin(outline @ waves + phases)

    return [part._replace(outline=bend(part.outline)) for part in varied]


def train_parts(plan: StagePlan, folder: Path, pool: Pool, development: Pool) -> PartsNetwork:
    """Train the network, then choose its thresholds on the development pool; return it with averaged weights."""
    ready = use_fast_group_norm(PartsNetwork()).to(best_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    trained = train_loop(
        ready,
        plan,
        folder,
        sample_batch=parts_batches(pool, plan.batch),
        loss=parts_losses,
        report=parts_report(development),
    )
    trained.thresholds.copy_(choose_thresholds(trained, development))
    return trained


def parts_batches(pool: Pool, batch: int) -> SampleBatch:
    """Return a sampler of (augmented images, labels of cells, heat maps of centres), half of them mirrored."""

    def sample_batch(rng: Rng, progress: float) -> Batch:
        chosen = rng.integers(len(pool.items), size=batch)
        mirrored = (rng.uniform(size=batch) < 0.5).tolist()
        items = [pool.items[k][:, ::-1] if flip else pool.items[k] for k, flip in zip(chosen, mirrored, strict=True)]
        centres = [pool.facts[k]["centres"] for k in chosen]
        heat = np.stack(
            [heat_maps(mirror_centres(each) if flip else each) for each, flip in zip(centres, mirrored, strict=True)]
        )
        labels = np.stack([coarsen(each[..., 3]) for each in items])
        images = to_tensor(soften_images(np.stack([each[..., :3] for each in items]), rng)).contiguous()
        return augment_images(images, rng), torch.from_numpy(labels), torch.from_numpy(heat)

    return sample_batch


def soften_images(images: np.ndarray, rng: Rng) -> np.ndarray:
    """Return uint8 images [n, h, w, 3], half of them blurred: generated images are softer than renderings."""
    radii = rng.uniform(-MAX_BLUR, MAX_BLUR, len(images))
    return np.stack([cv2.GaussianBlur(each, (0, 0), radius) if radius > MIN_BLUR else each
                     for each, radius in zip(images, radii, strict=True)])  # fmt: skip


def mirror_centres(centres: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return the centres of the image that is mirrored from left to right."""
    return [(name, CELLS - x, y, *rest) for name, x, y, *rest in centres]


def heat_maps(centres: Sequence[Sequence[float]]) -> np.ndarray:
    """Return maps with a Gaussian of height 1 at each known centre, UNKNOWN around others, float16 [18, 64, 64]."""
    heat = np.zeros((len(PART_NAMES), CELLS, CELLS), np.float16)
    for name, x, y, extent, known in sorted(centres, key=lambda each: each[4]):
        across, down = int(x), int(y)
        spread = float(np.clip(SPREAD_SHARE * extent, *SPREAD_RANGE))
        radius = int(np.ceil(3 * spread)) if known else int(max(2, extent / 2))
        rows = np.arange(max(down - radius, 0), min(down + radius + 1, CELLS))
        columns = np.arange(max(across - radius, 0), min(across + radius + 1, CELLS))
        square = np.ix_(np.array([int(name)]), rows, columns)
        if known:
            distances = (rows[:, None] - down) ** 2 + (columns[None, :] - across) ** 2
            heat[square] = np.maximum(heat[square], np.exp(-distances / (2 * spread**2)))
        else:
            heat[square] = UNKNOWN
    return heat


def parts_losses(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the cross-entropy of the cells' labels and the penalty-reduced focal loss of centres (CornerNet, eq. 1)."""
    images, labels, heat = batch
    label_logits, logits = net(images)
    weights = torch.full((NUM_LABELS,), PART_WEIGHT, device=images.device)
    weights[0], weights[1] = SCENERY_WEIGHT, BODY_WEIGHT
    heat, probability = heat.float(), logits.sigmoid()
    is_centre = heat == 1
    # One logarithm for both: of the probability at centres, and of its complement elsewhere.
    share = torch.where(is_centre, 1 - probability, (1 - heat).square() * probability) * (heat >= 0)
    logarithm = softplus(torch.where(is_centre, -logits, logits))
    return {
        "labels": cross_entropy(label_logits, labels.long(), weights),
        "centres": (share.square() * logarithm).sum() / is_centre.sum().clamp(min=1),
    }


def parts_report(pool: Pool) -> Callable[[PartsNetwork], Metrics]:
    """Return a report of the shares that are judged right: fresh renderings, and corrupted ones of each way."""

    def report(net: PartsNetwork) -> Metrics:
        covered, heat = _predict(net, pool)
        peaks = find_peaks(heat, net.thresholds.cpu())
        found = [locate_parts(mask, each) for mask, each in zip(covered, peaks, strict=True)]
        right = np.array([are_parts_right(each, fact["kinds"]) for each, fact in zip(found, pool.facts, strict=True)])
        ways = np.array([fact["way"] for fact in pool.facts])
        return {way or "fresh": float(right[ways == way].mean()) for way in ("", *CORRUPTIONS) if (ways == way).any()}

    return report


@torch.no_grad()
def _predict(net: PartsNetwork, pool: Pool) -> tuple[np.ndarray, Tensor]:
    """Return the cells that are no scenery, bool [n, 64, 64], and heat maps of centres [n, 18, 64, 64]."""
    device = next(net.parameters()).device
    covered, heat = [], []
    for first in range(0, len(pool.items), REPORT_BATCH):
        labels, centres = net(to_tensor(pool.items[first : first + REPORT_BATCH, ..., :3]).to(device))
        covered.append((labels.argmax(1) > 0).cpu().numpy())
        heat.append(centres.sigmoid().cpu())
    return np.concatenate(covered), torch.cat(heat)


def choose_thresholds(net: PartsNetwork, pool: Pool) -> Tensor:
    """Return the threshold of each part at which its number is right in the most images."""
    _, heat = _predict(net, pool)
    expected, known = _count_centres(pool)
    scores = []
    for threshold in THRESHOLDS:
        peaks = find_peaks(heat, torch.full((len(PART_NAMES),), float(threshold)))
        counts = np.array([[[peak.name for peak in each].count(name) for name in PART_NAMES] for each in peaks])
        scores.append(((counts == expected) & known).sum(0))
    best = np.array([_middle_of_best(column) for column in np.array(scores).T])
    return torch.from_numpy(THRESHOLDS[best].astype(np.float32))


def _middle_of_best(scores: np.ndarray) -> int:
    best = np.flatnonzero(scores == scores.max())
    return int(best[len(best) // 2])


def _count_centres(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each part in each image, and True where all of them are known, both [n, 18]."""
    counts = np.zeros((len(pool.facts), len(PART_NAMES)), int)
    known = np.ones(counts.shape, bool)
    for number, fact in enumerate(pool.facts):
        for name, *_, is_known in fact["centres"]:
            counts[number, name] += 1
            known[number, name] &= is_known
    return counts, known
