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

from kineograph_lab.judge.augment import soften
from kineograph_lab.recipe.contact_sheets import as_tensor
from kineograph_lab.recipe.image.text_encoder import ASKED, captions_as_ids, facts_as_numbers, readings
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.loop import Batch, Draw, Figures, Plan, best_device, fast, fit
from kineograph_lab.recipe.networks import PATCH, SIDE, WIDTH
from kineograph_lab.recipe.pool import Pool, shot_of, things_at
from kineograph_lab.world import captions
from kineograph_lab.world.world import COLOURS, THINGS, Shot

TESTED = 256
PATCHES = SIDE // PATCH


class Taught(nn.Module):
    """A CLIP, and what is read from its picture tower: the facts, and which kind of thing stands in each patch."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip, self.facts, self.here = clip, readings(), nn.Linear(WIDTH, len(THINGS) + 1)


def train(net: CLIPModel, plan: Plan, folder: Path, pool: Pool, held_out: Pool, *, tokens: CLIPTokenizer) -> CLIPModel:
    """The averaged CLIP (Radford et al. 2021, figure 3), its text tower as it was given (Zhai et al. 2022, "LiT").

    A picture tower sees too few pictures here to find by contrast alone what things are, so it is also asked for the
    facts, and for the thing in each patch.
    """
    net.set_attn_implementation("eager")  # torch's fused attention takes longer over so few tokens, half of the step
    net.text_model.requires_grad_(requires_grad=False)
    taught = Taught(net.to(best_device())).to(best_device())
    draw, report = pairs(pool, tokens, plan.batch), reporter(held_out, tokens)
    return fit(taught, plan, folder, draw=draw, loss=losses, report=report).clip


def pairs(pool: Pool, tokens: CLIPTokenizer, batch: int) -> Draw:
    """Batches of (pictures, words of their captions, words of captions with a wrong colour or thing, facts, the kind of
    thing in each patch)."""
    right, wrong = captions_as_ids(pool, tokens), mistaken_as_ids(pool, tokens)
    facts, kinds = facts_as_numbers(pool), np.stack([kinds_at(fact) for fact in pool.facts])

    def draw(rng: np.random.Generator, progress: float) -> Batch:
        chosen = np.sort(rng.choice(len(right), size=batch, replace=False))
        rng.shuffle(chosen)
        version = rng.integers(right.shape[1], size=batch)
        pictures = soften(as_tensor(pool.pictures[chosen]), rng)
        words = (as_long(right[chosen, version]), as_long(wrong[chosen, version]))
        return pictures, *words, torch.from_numpy(facts[chosen]), as_long(kinds[chosen])

    return draw


def kinds_at(fact: dict[str, Any]) -> np.ndarray:
    """The kind of thing in each patch, as its number in the world's list, one more for none: int8 [patches]."""
    kinds = [THINGS.index(thing["kind"]) for thing in fact["things"]]
    return np.array([*kinds, len(THINGS)], np.int8)[things_at(fact, PATCHES).ravel()]  # -1 is the last


def as_long(words: np.ndarray) -> Tensor:
    return torch.from_numpy(words.astype(np.int64))


def mistaken_as_ids(pool: Pool, tokens: CLIPTokenizer) -> np.ndarray:
    """Tokens of as many captions as the pool has, with a wrong colour or, every second one, a wrong thing:
    int16 [pictures, captions, words]."""
    count = len(pool.facts[0]["captions"])
    wrong = ids(tokens, [caption for number, fact in enumerate(pool.facts) for caption in _wrong(fact, number, count)])
    return wrong.reshape(len(pool.facts), count, -1)


def _wrong(fact: dict[str, Any], number: int, count: int) -> list[str]:
    rng = np.random.default_rng((7, number))
    shot = shot_of(fact)
    mistaken = (mistake(shot, rng) for mistake in islice(cycle((recoloured, exchanged)), count))
    return [captions.of_picture(each, rng) for each in mistaken]


def exchanged(shot: Shot, rng: np.random.Generator) -> Shot:
    """The main thing is of another kind."""
    main, *others = shot.things
    kind = str(rng.choice([k for k in THINGS if k != main.kind]))
    return replace(shot, things=(replace(main, kind=kind), *others))


def recoloured(shot: Shot, rng: np.random.Generator) -> Shot:
    """Two things swap their colours; one thing, or two of a colour, take another."""
    colours = [thing.colour for thing in shot.things][::-1]
    if len(set(colours)) < 2:
        colours[0] = str(rng.choice([c for c in COLOURS if c != colours[0]]))
    return replace(shot, things=tuple(replace(t, colour=c) for t, c in zip(shot.things, colours, strict=True)))


def losses(net: Taught, batch: Batch) -> dict[str, Tensor]:
    """Each picture finds its caption among all and the wrong ones, each caption its picture, and the facts are read."""
    pictures, right, wrong, facts, kinds = batch
    out = net.clip(input_ids=torch.cat([right, wrong]), pixel_values=pictures)
    logits, seen = out.logits_per_image.float(), out.vision_model_output
    own = torch.arange(len(pictures), device=logits.device)
    read = [
        cross_entropy(net.facts[name](seen.last_hidden_state[:, 0]).float(), facts[:, k])
        for k, name in enumerate(ASKED)
    ]
    here = net.here(seen.last_hidden_state[:, 1:]).float()
    return {
        "captions": cross_entropy(logits, own), "pictures": cross_entropy(logits[:, : len(pictures)].T, own),
        "facts": torch.stack(read).mean(), "patches": cross_entropy(here.flatten(0, 1), kinds.flatten()),
    }  # fmt: skip


def reporter(held_out: Pool, tokens: CLIPTokenizer) -> Callable[[Taught], Figures]:
    """On held-out pictures: how often the caption is found among 256, preferred to one with a wrong colour, and
    to one with a wrong thing."""
    few = Pool(held_out.pictures[:TESTED], held_out.facts[:TESTED])
    count = len(few.facts)
    right, wrong = captions_as_ids(few, tokens)[:, 0], mistaken_as_ids(few, tokens)
    words = as_long(np.concatenate([right, wrong[:, 0], wrong[:, 1]]))

    @torch.no_grad()
    def report(net: Taught) -> Figures:
        device = next(net.parameters()).device
        with fast(device):
            out = net.clip(input_ids=words.to(device), pixel_values=as_tensor(few.pictures).to(device))
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
