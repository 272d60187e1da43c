"""Stage 4: a small CLIP, trained on images, their captions, and captions with one wrong colour or subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPModel, CLIPTokenizer

from kineograph_lab.recipe.image.text_encoder import FACTS, fact_heads, fact_indices, tokenize_captions
from kineograph_lab.recipe.images import augment_images, to_tensor
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, bf16_autocast, train_loop
from kineograph_lab.recipe.networks import PATCH, SIDE, WIDTH, tokenize
from kineograph_lab.recipe.pool import Pool, shot_from_facts, subject_cells
from kineograph_lab.world import captions
from kineograph_lab.world.world import COLOURS, SUBJECTS, ShotSpec

NUM_TESTED = 256
PATCHES = SIDE // PATCH


class CLIPWithHeads(nn.Module):
    """A CLIP, and heads on its image encoder: the facts, and the kind of subject in each patch."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip, self.facts, self.here = clip, fact_heads(), nn.Linear(WIDTH, len(SUBJECTS) + 1)


def train_clip(
    net: CLIPModel, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool, *, tokenizer: CLIPTokenizer
) -> CLIPModel:
    """Train CLIP (Radford et al. 2021, figure 3), text encoder frozen (Zhai et al. 2022, "LiT"); return its average.

    There are too few images for the image encoder to learn subjects by contrast alone, so it also predicts the facts,
    and the kind of subject in each patch.
    """
    net.set_attn_implementation("eager")  # torch's fused attention takes longer over so few tokens, half of the step
    net.text_model.requires_grad_(requires_grad=False)
    trained_net = CLIPWithHeads(net.to(best_device())).to(best_device())
    sample_batch, report = image_caption_batches(pool, tokenizer, plan.batch), clip_report(held_out, tokenizer)
    return train_loop(trained_net, plan, folder, sample_batch=sample_batch, loss=clip_losses, report=report).clip


def image_caption_batches(pool: Pool, tokenizer: CLIPTokenizer, batch: int) -> SampleBatch:
    """Return a sampler of (images, caption tokens, wrong captions' tokens, fact classes, subject kind per patch)."""
    tokens_right, tokens_wrong = tokenize_captions(pool, tokenizer), tokenize_wrong_captions(pool, tokenizer)
    facts, kinds = fact_indices(pool), np.stack([patch_kinds(fact) for fact in pool.facts])

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = np.sort(rng.choice(len(tokens_right), size=batch, replace=False))
        rng.shuffle(chosen)
        version = rng.integers(tokens_right.shape[1], size=batch)
        images = augment_images(to_tensor(pool.items[chosen]), rng)
        captions_of_batch = (to_long(tokens_right[chosen, version]), to_long(tokens_wrong[chosen, version]))
        return images, *captions_of_batch, torch.from_numpy(facts[chosen]), to_long(kinds[chosen])

    return sample_batch


def patch_kinds(fact: dict[str, Any]) -> np.ndarray:
    """Return the index of the kind of subject in each patch, the index after the last for none, int8 [patches]."""
    kinds = [SUBJECTS.index(thing["kind"]) for thing in fact["things"]]
    kinds_or_none = np.array([*kinds, len(SUBJECTS)], np.int8)  # no subject is index -1, the last
    return kinds_or_none[subject_cells(fact, PATCHES).ravel()]


def to_long(words: np.ndarray) -> Tensor:
    """Return token ids as an int64 tensor."""
    return torch.from_numpy(words.astype(np.int64))


def tokenize_wrong_captions(pool: Pool, tokenizer: CLIPTokenizer) -> np.ndarray:
    """Return tokens of captions with a wrong colour or, every second one, a wrong subject.

    int16 [images, captions, tokens], as many as the pool has.
    """
    count = len(pool.facts[0]["captions"])
    wrong = tokenize(
        tokenizer,
        [caption for number, fact in enumerate(pool.facts) for caption in _wrong_captions(fact, number, count)],
    )
    return wrong.reshape(len(pool.facts), count, -1)


def _wrong_captions(fact: dict[str, Any], number: int, count: int) -> list[str]:
    rng = np.random.default_rng((7, number))
    shot = shot_from_facts(fact)
    changed = (mistake(shot, rng) for mistake in islice(cycle((change_colours, change_kind)), count))
    return [captions.caption_image(wrong_shot, rng) for wrong_shot in changed]


def change_kind(shot: ShotSpec, rng: np.random.Generator) -> ShotSpec:
    """Return the shot with another kind of main subject."""
    main, *others = shot.things
    kind = str(rng.choice([k for k in SUBJECTS if k != main.kind]))
    return replace(shot, things=(replace(main, kind=kind), *others))


def change_colours(shot: ShotSpec, rng: np.random.Generator) -> ShotSpec:
    """Return the shot with its two colours swapped, or with another colour if they are the same or one."""
    colours = [thing.colour for thing in shot.things][::-1]
    if len(set(colours)) < 2:
        colours[0] = str(rng.choice([colour for colour in COLOURS if colour != colours[0]]))
    return replace(
        shot,
        things=tuple(replace(subject, colour=colour) for subject, colour in zip(shot.things, colours, strict=True)),
    )


def clip_losses(net: CLIPWithHeads, batch: Batch) -> dict[str, Tensor]:
    """Return the contrastive losses of images over all and wrong captions and of captions over images, and the heads'."""
    images, right, wrong, facts, kinds = batch
    out = net.clip(input_ids=torch.cat([right, wrong]), pixel_values=images)
    logits, vision_output = out.logits_per_image.float(), out.vision_model_output
    targets = torch.arange(len(images), device=logits.device)
    fact_losses = [
        cross_entropy(net.facts[name](vision_output.last_hidden_state[:, 0]).float(), facts[:, k])
        for k, name in enumerate(FACTS)
    ]
    patch_logits = net.here(vision_output.last_hidden_state[:, 1:]).float()
    return {
        "captions": cross_entropy(logits, targets), "images": cross_entropy(logits[:, : len(images)].T, targets),
        "facts": torch.stack(fact_losses).mean(), "patches": cross_entropy(patch_logits.flatten(0, 1), kinds.flatten()),
    }  # fmt: skip


def clip_report(held_out: Pool, tokenizer: CLIPTokenizer) -> Callable[[CLIPWithHeads], Metrics]:
    """Return a report on held-out images: accuracy of the caption among 256, and its preference over wrong captions."""
    few = Pool(held_out.items[:NUM_TESTED], held_out.facts[:NUM_TESTED])
    count = len(few.facts)
    right, wrong = tokenize_captions(few, tokenizer)[:, 0], tokenize_wrong_captions(few, tokenizer)
    words = to_long(np.concatenate([right, wrong[:, 0], wrong[:, 1]]))

    @torch.no_grad()
    def report(net: CLIPWithHeads) -> Metrics:
        device = next(net.parameters()).device
        with bf16_autocast(device):
            out = net.clip(input_ids=words.to(device), pixel_values=to_tensor(few.items).to(device))
        right_logits, *wrong_logits = out.logits_per_image.float().cpu().split(count, dim=1)
        found = right_logits.argmax(1) == torch.arange(count)
        return {
            "found": float(found.float().mean()),
            **{
                name: float((right_logits.diagonal() > logits.diagonal()).float().mean())
                for name, logits in zip(("colour", "subject"), wrong_logits, strict=True)
            },
        }

    return report
