"""Stage 6: training of the judge's two classifiers on renderings made for it: families of individuals, and clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.judge.networks import (
    DETAIL_LABELS,
    LABELS,
    NOTHING,
    NUM_FRAMES,
    SIDE,
    ImageClassifier,
    MotionClassifier,
)
from kineograph_lab.recipe.images import augment_images, shift_images, to_tensor
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.pool import Pool, shot_from_facts
from kineograph_lab.world import world
from kineograph_lab.world.individuals import sample_individual
from kineograph_lab.world.world import MOTIONS, ShotSpec

FAMILY_SIZE, RENDERINGS = 4, 2  # individuals of one kind, colour and style; renderings of each
FAMILY_IMAGES = FAMILY_SIZE * RENDERINGS
ALL_LABELS = LABELS | DETAIL_LABELS
CONTRAST_SCALE = 10.0  # of the contrastive loss between individuals: 1 / temperature
MAX_SHIFT = 22  # pixels: the shift of the default motion `pan:12,12` over eight frames
MARGIN = 0.1  # a subject whose centre is nearer to the frame's edge is not used
REVERSED_MOTION = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "growing": "shrinking",
    "shrinking": "growing",
}

Rng = np.random.Generator


def individual_family(rng: Rng, split: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return eight images, four individuals of one kind, colour and style, each in two scenes, and their labels."""
    template = world.sample_shot(rng, split=split)
    individuals = [int(rng.integers(1 << 30)) for _ in range(FAMILY_SIZE)]
    settings = [
        _render_setting(rng, split, template, individual) for individual in individuals for _ in range(RENDERINGS)
    ]
    return np.stack([world.render(shot, time) for shot, time in settings]), [labels_of(shot) for shot, _ in settings]


def _render_setting(rng: Rng, split: str, template: ShotSpec, individual: int) -> tuple[ShotSpec, float]:
    """Return another shot with this individual as main subject, and a time at which it is well inside the frame."""
    shot = world.sample_shot(rng, split=split)
    main = replace(
        shot.things[0], kind=template.things[0].kind, colour=template.things[0].colour, individual=individual
    )
    shot = replace(shot, style=template.style, things=(main, *shot.things[1:]))
    time = rng.uniform(-0.9, 0.9)
    return shot, time if all(_subject_is_inside(shot, k, time) for k in range(len(shot.things))) else 0.0


def _subject_is_inside(shot: ShotSpec, number: int, time: float) -> bool:
    _, centre = world.placement(shot.things[number], time, world.camera_shift(shot, time))
    return bool(min(centre) > MARGIN and max(centre) < 1 - MARGIN)


def labels_of(shot: ShotSpec) -> dict[str, str]:
    """Return the labels that the judge should give."""
    main, second = shot.things[0], shot.things[-1] if len(shot.things) > 1 else None
    return {
        "thing": main.kind, "colour": main.colour, "scene": shot.scene, "style": shot.style,
        "second": second.kind if second else NOTHING, "second_colour": second.colour if second else main.colour,
        **{name: getattr(sample_individual(main.individual), name) for name in DETAIL_LABELS},
    }  # fmt: skip


def motion_clip(rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a clip of two seconds, uint8 [16, 64, 64, 3] (means of 2 x 2 pixels), and its shot."""
    shot = world.sample_shot(rng, split=split)
    frames = world.render_clip(shot, NUM_FRAMES).reshape(NUM_FRAMES, SIDE // 2, 2, SIDE // 2, 2, 3)
    return frames.mean((2, 4)).round().astype(np.uint8), asdict(shot)


def train_image_classifier(
    net: ImageClassifier, plan: StagePlan, folder: Path, families: Pool, images: Pool, held_out: Pool
) -> nn.Module:
    """Train the image classifier on families of individuals and unrelated images; return its average."""
    prepared = use_fast_group_norm(net).to(best_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    sample_batch = image_classifier_batches(families, images, plan.batch)
    return train_loop(
        prepared,
        plan,
        folder,
        sample_batch=sample_batch,
        loss=image_classifier_losses,
        report=image_classifier_report(held_out),
    )


def train_motion_classifier(
    net: MotionClassifier, plan: StagePlan, folder: Path, clip_pool: Pool, held_out: Pool
) -> MotionClassifier:
    """Train the motion classifier; return it with averaged weights."""
    return train_loop(
        net.to(best_device()),
        plan,
        folder,
        sample_batch=motion_batches(clip_pool, plan.batch),
        loss=motion_losses,
        report=motion_report(held_out),
    )


def label_indices(facts: list[list[dict[str, str]]]) -> np.ndarray:
    """Return the labels as indices, int64 [families, members, labels]."""
    return np.array(
        [[[words.index(fact[name]) for name, words in ALL_LABELS.items()] for fact in family] for family in facts]
    )


def image_classifier_batches(families: Pool, images: Pool, batch: int) -> SampleBatch:
    """Return a sampler of augmented (images of whole families, labels, as many unrelated images, labels)."""
    family_labels = label_indices(families.facts)
    usable_images = [k for k, fact in enumerate(images.facts) if is_inside_frame(fact)]
    single_labels = label_indices([[labels_of(shot_from_facts(images.facts[k])) for k in usable_images]])[0]

    def sample_batch(rng: Rng, progress: float) -> Batch:
        chosen = rng.choice(len(family_labels), size=batch // 2 // FAMILY_IMAGES, replace=False)
        family_images = np.concatenate([families.items[k] for k in chosen])
        chosen_singles = rng.choice(len(usable_images), size=len(family_images), replace=False)
        single_images = np.stack([images.items[usable_images[k]] for k in chosen_singles])
        of_family, of_singles = family_labels[chosen].reshape(len(family_images), -1), single_labels[chosen_singles]
        return (
            augment_images(_shift_some(family_images, of_family, rng), rng), torch.from_numpy(of_family),
            augment_images(_shift_some(single_images, of_singles, rng), rng), torch.from_numpy(of_singles),
        )  # fmt: skip

    return sample_batch


def _shift_some(images: np.ndarray, labels: np.ndarray, rng: Rng) -> Tensor:
    """Shift half of the images of a single subject: videos show it where images seldom do."""
    single = labels[:, list(ALL_LABELS).index("second")] == LABELS["second"].index(NOTHING)
    return shift_images(to_tensor(images), rng, MAX_SHIFT * (single & (rng.uniform(size=len(labels)) < 0.5)))


def is_inside_frame(fact: dict[str, Any]) -> bool:
    """Return True if all subjects of an image are well inside the frame."""
    shot = shot_from_facts(fact)
    return all(_subject_is_inside(shot, k, fact["time"]) for k in range(len(shot.things)))


def image_classifier_losses(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the cross-entropies of all labels, and of each family image's twin among all family images."""
    family_images, family_labels, single_images, single_labels = batch
    logits, embedding = net(torch.cat([family_images, single_images]))
    labels = torch.cat([family_labels, single_labels])
    losses = {name: cross_entropy(logits[name], labels[:, k]) for k, name in enumerate(ALL_LABELS)}
    embedding = embedding[: len(family_images)]
    similarity = CONTRAST_SCALE * embedding @ embedding.T - 1e4 * torch.eye(len(family_images), device=embedding.device)
    return {**losses, "individual": cross_entropy(similarity, twin_indices(len(family_images)).to(similarity.device))}


def twin_indices(count: int) -> Tensor:
    """Return the index of each image's twin: 1 0 3 2 5 4 ..."""
    return torch.arange(count) ^ 1


def image_classifier_report(pool: Pool) -> Callable[[ImageClassifier], Metrics]:
    """Return a report on held-out families: accuracy of each label, and of individuals among the four of a family."""
    images, labels = pool.items.reshape(-1, SIDE, SIDE, 3), torch.from_numpy(label_indices(pool.facts)).flatten(0, 1)

    @torch.no_grad()
    def report(net: ImageClassifier) -> Metrics:
        device = next(net.parameters()).device
        outputs = [net(to_tensor(images[k : k + 64]).to(device)) for k in range(0, len(images), 64)]
        correct = {
            name: torch.cat([logits[name].argmax(1).cpu() for logits, _ in outputs]) == labels[:, k]
            for k, name in enumerate(ALL_LABELS)
        }
        return {
            **{name: float(r.float().mean()) for name, r in correct.items()},
            "individual": identification_rate(torch.cat([i for _, i in outputs]).cpu()),
        }

    return report


def identification_rate(embedding: Tensor) -> float:
    """Return the share of images whose nearest neighbour in the family of eight is their twin (by chance 1/7)."""
    families = embedding.reshape(-1, FAMILY_IMAGES, embedding.shape[1])
    similarity = families @ families.transpose(1, 2) - 1e4 * torch.eye(FAMILY_IMAGES)
    return float((similarity.argmax(2) == twin_indices(FAMILY_IMAGES)).float().mean())


def motion_batches(pool: Pool, batch: int) -> SampleBatch:
    """Return a sampler of (clips, motions); half of the clips are reversed, so that facing does not reveal motion."""

    def sample_batch(rng: Rng, progress: float) -> Batch:
        chosen = [_play(pool, int(k), rng) for k in rng.choice(len(pool.facts), size=batch, replace=False)]
        clips = torch.stack([augment_images(to_tensor(frames), rng) for frames, _ in chosen])
        return clips.transpose(1, 2), torch.tensor([MOTIONS.index(motion) for _, motion in chosen])

    return sample_batch


def _play(pool: Pool, number: int, rng: Rng) -> tuple[np.ndarray, str]:
    frames, motion = pool.items[number], pool.facts[number]["things"][0]["motion"]
    return (frames, motion) if rng.uniform() < 0.5 else (frames[::-1], REVERSED_MOTION.get(motion, motion))


def motion_losses(net: MotionClassifier, batch: Batch) -> dict[str, Tensor]:
    """Return the cross-entropy of the motion."""
    clips, motions = batch
    return {"motion": cross_entropy(net(clips), motions)}


def motion_report(pool: Pool) -> Callable[[MotionClassifier], Metrics]:
    """Return a report on held-out clips: accuracy."""
    motions = torch.tensor([MOTIONS.index(fact["things"][0]["motion"]) for fact in pool.facts])

    @torch.no_grad()
    def report(net: MotionClassifier) -> Metrics:
        device = next(net.parameters()).device
        clips = [
            torch.stack([to_tensor(f) for f in pool.items[k : k + 16]]).transpose(1, 2)
            for k in range(0, len(motions), 16)
        ]
        predicted = torch.cat([net(clip.to(device)).argmax(1).cpu() for clip in clips])
        return {"motion": float((predicted == motions).float().mean())}

    return report
