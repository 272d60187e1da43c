"""Stage 6: the judge's two eyes, learnt from renderings made for it: families of individuals, and clips."""

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
from kineograph_lab.world.world import MOTIONS, Shot

FAMILY_SIZE, RENDERINGS = 4, 2  # individuals of one kind, colour and style; renderings of each
FAMILY_IMAGES = FAMILY_SIZE * RENDERINGS
ALL_LABELS = LABELS | DETAIL_LABELS
CONTRAST_SCALE = 10.0  # of the contrast between individuals: 1 / temperature
MAX_SHIFT = 22  # pixels: as far as `pan:12,12`, the default, goes in eight frames
MARGIN = 0.1  # a thing whose centre is nearer to the frame's edge is not asked about
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
    """Eight pictures: four individuals of one kind, colour and style, each in two scenes, and what they show."""
    one = world.sample_shot(rng, split=split)
    individuals = [int(rng.integers(1 << 30)) for _ in range(FAMILY_SIZE)]
    chosen = [_render_setting(rng, split, one, individual) for individual in individuals for _ in range(RENDERINGS)]
    return np.stack([world.render(shot, time) for shot, time in chosen]), [labels_of(shot) for shot, _ in chosen]


def _render_setting(rng: Rng, split: str, one: Shot, individual: int) -> tuple[Shot, float]:
    """Another shot with this individual for its main thing, and a time at which that is well inside the frame."""
    shot = world.sample_shot(rng, split=split)
    main = replace(shot.things[0], kind=one.things[0].kind, colour=one.things[0].colour, individual=individual)
    shot = replace(shot, style=one.style, things=(main, *shot.things[1:]))
    time = rng.uniform(-0.9, 0.9)
    return shot, time if all(_subject_is_inside(shot, k, time) for k in range(len(shot.things))) else 0.0


def _subject_is_inside(shot: Shot, number: int, time: float) -> bool:
    _, centre = world.placement(shot.things[number], time, world.camera_shift(shot, time))
    return bool(min(centre) > MARGIN and max(centre) < 1 - MARGIN)


def labels_of(shot: Shot) -> dict[str, str]:
    """What the judge should say."""
    main, second = shot.things[0], shot.things[-1] if len(shot.things) > 1 else None
    return {
        "thing": main.kind, "colour": main.colour, "scene": shot.scene, "style": shot.style,
        "second": second.kind if second else NOTHING, "second_colour": second.colour if second else main.colour,
        **{name: getattr(sample_individual(main.individual), name) for name in DETAIL_LABELS},
    }  # fmt: skip


def motion_clip(rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """A clip of two seconds, uint8 [16, 64, 64, 3] (means of 2 x 2 pixels), and its shot."""
    shot = world.sample_shot(rng, split=split)
    frames = world.render_clip(shot, NUM_FRAMES).reshape(NUM_FRAMES, SIDE // 2, 2, SIDE // 2, 2, 3)
    return frames.mean((2, 4)).round().astype(np.uint8), asdict(shot)


def train_image_classifier(
    net: ImageClassifier, plan: StagePlan, folder: Path, families: Pool, pictures: Pool, held_out: Pool
) -> nn.Module:
    """The averaged eye for pictures: individuals are told apart by families, kinds by many unrelated pictures."""
    ready = use_fast_group_norm(net).to(best_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    sample_batch = image_classifier_batches(families, pictures, plan.batch)
    return train_loop(
        ready,
        plan,
        folder,
        sample_batch=sample_batch,
        loss=image_classifier_losses,
        report=image_classifier_report(held_out),
    )


def train_motion_classifier(
    net: MotionClassifier, plan: StagePlan, folder: Path, films: Pool, held_out: Pool
) -> MotionClassifier:
    """The averaged eye for videos."""
    return train_loop(
        net.to(best_device()),
        plan,
        folder,
        sample_batch=motion_batches(films, plan.batch),
        loss=motion_losses,
        report=motion_report(held_out),
    )


def label_indices(facts: list[list[dict[str, str]]]) -> np.ndarray:
    """The answers as numbers: int64 [families, members, answers]."""
    return np.array(
        [[[words.index(fact[name]) for name, words in ALL_LABELS.items()] for fact in family] for family in facts]
    )


def image_classifier_batches(families: Pool, pictures: Pool, batch: int) -> SampleBatch:
    """Batches, softened, of (pictures of whole families, answers, as many unrelated pictures, answers)."""
    told, usable = label_indices(families.facts), [k for k, fact in enumerate(pictures.facts) if is_inside_frame(fact)]
    others = label_indices([[labels_of(shot_from_facts(pictures.facts[k])) for k in usable]])[0]

    def sample_batch(rng: Rng, progress: float) -> Batch:
        chosen = rng.choice(len(told), size=batch // 2 // FAMILY_IMAGES, replace=False)
        kin = np.concatenate([families.pictures[k] for k in chosen])
        other = rng.choice(len(usable), size=len(kin), replace=False)
        strangers = np.stack([pictures.pictures[usable[k]] for k in other])
        of_kin, of_strangers = told[chosen].reshape(len(kin), -1), others[other]
        return (
            augment_images(_shift_some(kin, of_kin, rng), rng), torch.from_numpy(of_kin),
            augment_images(_shift_some(strangers, of_strangers, rng), rng), torch.from_numpy(of_strangers),
        )  # fmt: skip

    return sample_batch


def _shift_some(pictures: np.ndarray, told: np.ndarray, rng: Rng) -> Tensor:
    """Every second picture of a single thing is moved: videos show it where pictures seldom do."""
    alone = told[:, list(ALL_LABELS).index("second")] == LABELS["second"].index(NOTHING)
    return shift_images(to_tensor(pictures), rng, MAX_SHIFT * (alone & (rng.uniform(size=len(told)) < 0.5)))


def is_inside_frame(fact: dict[str, Any]) -> bool:
    """Whether all things of a picture are well inside the frame."""
    shot = shot_from_facts(fact)
    return all(_subject_is_inside(shot, k, fact["time"]) for k in range(len(shot.things)))


def image_classifier_losses(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The cross-entropy of every answer, and of whom each picture of a family shows among all of its share."""
    kin, told, strangers, others = batch
    logits, identity = net(torch.cat([kin, strangers]))
    both = torch.cat([told, others])
    losses = {name: cross_entropy(logits[name], both[:, k]) for k, name in enumerate(ALL_LABELS)}
    identity = identity[: len(kin)]
    alike = CONTRAST_SCALE * identity @ identity.T - 1e4 * torch.eye(len(kin), device=identity.device)
    return {**losses, "individual": cross_entropy(alike, twin_indices(len(kin)).to(alike.device))}


def twin_indices(count: int) -> Tensor:
    """The number of each picture's twin: 1 0 3 2 5 4 ..."""
    return torch.arange(count) ^ 1


def image_classifier_report(pool: Pool) -> Callable[[ImageClassifier], Metrics]:
    """On held-out families: the share of right answers, and of individuals told from the three others of the family."""
    pictures, told = pool.pictures.reshape(-1, SIDE, SIDE, 3), torch.from_numpy(label_indices(pool.facts)).flatten(0, 1)

    @torch.no_grad()
    def report(net: ImageClassifier) -> Metrics:
        device = next(net.parameters()).device
        seen = [net(to_tensor(pictures[k : k + 64]).to(device)) for k in range(0, len(pictures), 64)]
        right = {
            name: torch.cat([logits[name].argmax(1).cpu() for logits, _ in seen]) == told[:, k]
            for k, name in enumerate(ALL_LABELS)
        }
        return {
            **{name: float(r.float().mean()) for name, r in right.items()},
            "individual": identification_rate(torch.cat([i for _, i in seen]).cpu()),
        }

    return report


def identification_rate(identity: Tensor) -> float:
    """How often a picture's nearest in its own family of eight is its twin (by chance one in seven)."""
    families = identity.reshape(-1, FAMILY_IMAGES, identity.shape[1])
    alike = families @ families.transpose(1, 2) - 1e4 * torch.eye(FAMILY_IMAGES)
    return float((alike.argmax(2) == twin_indices(FAMILY_IMAGES)).float().mean())


def motion_batches(pool: Pool, batch: int) -> SampleBatch:
    """Batches of (clips, motions), half of them played backwards, so that which way a thing faces gives nothing away."""

    def sample_batch(rng: Rng, progress: float) -> Batch:
        films = [_play(pool, int(k), rng) for k in rng.choice(len(pool.facts), size=batch, replace=False)]
        clips = torch.stack([augment_images(to_tensor(frames), rng) for frames, _ in films])
        return clips.transpose(1, 2), torch.tensor([MOTIONS.index(motion) for _, motion in films])

    return sample_batch


def _play(pool: Pool, number: int, rng: Rng) -> tuple[np.ndarray, str]:
    frames, motion = pool.pictures[number], pool.facts[number]["things"][0]["motion"]
    return (frames, motion) if rng.uniform() < 0.5 else (frames[::-1], REVERSED_MOTION.get(motion, motion))


def motion_losses(net: MotionClassifier, batch: Batch) -> dict[str, Tensor]:
    """The cross-entropy of the motion."""
    clips, motions = batch
    return {"motion": cross_entropy(net(clips), motions)}


def motion_report(pool: Pool) -> Callable[[MotionClassifier], Metrics]:
    """On held-out clips: the share of right answers."""
    motions = torch.tensor([MOTIONS.index(fact["things"][0]["motion"]) for fact in pool.facts])

    @torch.no_grad()
    def report(net: MotionClassifier) -> Metrics:
        device = next(net.parameters()).device
        clips = [
            torch.stack([to_tensor(f) for f in pool.pictures[k : k + 16]]).transpose(1, 2)
            for k in range(0, len(motions), 16)
        ]
        told = torch.cat([net(clip.to(device)).argmax(1).cpu() for clip in clips])
        return {"motion": float((told == motions).float().mean())}

    return report
