"""Stage 4: a small CLIP, learnt from pictures, their captions, and captions that are wrong in one colour or thing."""

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
from kineograph_lab.world.world import COLOURS, SUBJECTS, Shot

NUM_TESTED = 256
PATCHES = SIDE // PATCH


class CLIPWithHeads(nn.Module):
    """A CLIP, and what is read from its picture tower: the facts, and which kind of thing stands in each patch."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip, self.facts, self.here = clip, fact_heads(), nn.Linear(WIDTH, len(SUBJECTS) + 1)


def train_clip(
    net: CLIPModel, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool, *, tokens: CLIPTokenizer
) -> CLIPModel:
    """The averaged CLIP (Radford et al. 2021, figure 3), its text tower as it was given (Zhai et al. 2022, "LiT").

    A picture tower sees too few pictures here to find by contrast alone what things are, so it is also asked for the
    facts, and for the thing in each patch.
    """
    net.set_attn_implementation("eager")  # torch's fused attention takes longer over so few tokens, half of the step
    net.text_model.requires_grad_(requires_grad=False)
    taught = CLIPWithHeads(net.to(best_device())).to(best_device())
    sample_batch, report = image_caption_batches(pool, tokens, plan.batch), clip_report(held_out, tokens)
    return train_loop(taught, plan, folder, sample_batch=sample_batch, loss=clip_losses, report=report).clip


def image_caption_batches(pool: Pool, tokens: CLIPTokenizer, batch: int) -> SampleBatch:
    """Batches of (pictures, words of their captions, words of captions with a wrong colour or thing, facts, the kind of
    thing in each patch)."""
    right, wrong = tokenize_captions(pool, tokens), tokenize_wrong_captions(pool, tokens)
    facts, kinds = fact_indices(pool), np.stack([patch_kinds(fact) for fact in pool.facts])

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = np.sort(rng.choice(len(right), size=batch, replace=False))
        rng.shuffle(chosen)
        version = rng.integers(right.shape[1], size=batch)
        pictures = augment_images(to_tensor(pool.pictures[chosen]), rng)
        words = (to_long(right[chosen, version]), to_long(wrong[chosen, version]))
        return pictures, *words, torch.from_numpy(facts[chosen]), to_long(kinds[chosen])

    return sample_batch


def patch_kinds(fact: dict[str, Any]) -> np.ndarray:
    """The kind of thing in each patch, as its number in the world's list, one more for none: int8 [patches]."""
    kinds = [SUBJECTS.index(thing["kind"]) for thing in fact["things"]]
    return np.array([*kinds, len(SUBJECTS)], np.int8)[subject_cells(fact, PATCHES).ravel()]  # -1 is the last


def to_long(words: np.ndarray) -> Tensor:
    return torch.from_numpy(words.astype(np.int64))


def tokenize_wrong_captions(pool: Pool, tokens: CLIPTokenizer) -> np.ndarray:
    """Tokens of as many captions as the pool has, with a wrong colour or, every second one, a wrong thing:
    int16 [pictures, captions, words]."""
    count = len(pool.facts[0]["captions"])
    wrong = tokenize(
        tokens, [caption for number, fact in enumerate(pool.facts) for caption in _wrong_captions(fact, number, count)]
    )
    return wrong.reshape(len(pool.facts), count, -1)


def _wrong_captions(fact: dict[str, Any], number: int, count: int) -> list[str]:
    rng = np.random.default_rng((7, number))
    shot = shot_from_facts(fact)
    mistaken = (mistake(shot, rng) for mistake in islice(cycle((change_colours, change_kind)), count))
    return [captions.caption_image(each, rng) for each in mistaken]


def change_kind(shot: Shot, rng: np.random.Generator) -> Shot:
    """The main thing is of another kind."""
    main, *others = shot.things
    kind = str(rng.choice([k for k in SUBJECTS if k != main.kind]))
    return replace(shot, things=(replace(main, kind=kind), *others))


def change_colours(shot: Shot, rng: np.random.Generator) -> Shot:
    """Two things swap their colours; one thing, or two of a colour, take another."""
    colours = [thing.colour for thing in shot.things][::-1]
    if len(set(colours)) < 2:
        colours[0] = str(rng.choice([c for c in COLOURS if c != colours[0]]))
    return replace(shot, things=tuple(replace(t, colour=c) for t, c in zip(shot.things, colours, strict=True)))


def clip_losses(net: CLIPWithHeads, batch: Batch) -> dict[str, Tensor]:
    """Each picture finds its caption among all and the wrong ones, each caption its picture, and the facts are read."""
    pictures, right, wrong, facts, kinds = batch
    out = net.clip(input_ids=torch.cat([right, wrong]), pixel_values=pictures)
    logits, seen = out.logits_per_image.float(), out.vision_model_output
    own = torch.arange(len(pictures), device=logits.device)
    read = [
        cross_entropy(net.facts[name](seen.last_hidden_state[:, 0]).float(), facts[:, k])
        for k, name in enumerate(FACTS)
    ]
    here = net.here(seen.last_hidden_state[:, 1:]).float()
    return {
        "captions": cross_entropy(logits, own), "pictures": cross_entropy(logits[:, : len(pictures)].T, own),
        "facts": torch.stack(read).mean(), "patches": cross_entropy(here.flatten(0, 1), kinds.flatten()),
    }  # fmt: skip


def clip_report(held_out: Pool, tokens: CLIPTokenizer) -> Callable[[CLIPWithHeads], Metrics]:
    """On held-out pictures: how often the caption is found among 256, preferred to one with a wrong colour, and
    to one with a wrong thing."""
    few = Pool(held_out.pictures[:NUM_TESTED], held_out.facts[:NUM_TESTED])
    count = len(few.facts)
    right, wrong = tokenize_captions(few, tokens)[:, 0], tokenize_wrong_captions(few, tokens)
    words = to_long(np.concatenate([right, wrong[:, 0], wrong[:, 1]]))

    @torch.no_grad()
    def report(net: CLIPWithHeads) -> Metrics:
        device = next(net.parameters()).device
        with bf16_autocast(device):
            out = net.clip(input_ids=words.to(device), pixel_values=to_tensor(few.pictures).to(device))
        right, colour, thing = out.logits_per_image.float().cpu().split(count, dim=1)
        found = right.argmax(1) == torch.arange(count)
        return {
            "found": float(found.float().mean()),
            **{
                name: float((right.diagonal() > wrong.diagonal()).float().mean())
                for name, wrong in (("colour", colour), ("thing", thing))
            },
        }

    return report
