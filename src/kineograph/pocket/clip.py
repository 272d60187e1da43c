"""Stage 2: a small CLIP, learnt from pictures, their captions, and captions that are wrong in one colour or thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPModel, CLIPTokenizer

from kineograph.pocket import captions
from kineograph.pocket.augment import soften
from kineograph.pocket.feed import Pool, shot_of
from kineograph.pocket.fit import Batch, Figures, Plan, best_device, fit
from kineograph.pocket.sheets import as_tensor
from kineograph.pocket.words import ids
from kineograph.pocket.world import COLOURS, THINGS, Shot

TESTED = 256


def train(net: CLIPModel, plan: Plan, folder: Path, pool: Pool, held_out: Pool, *, tokens: CLIPTokenizer) -> CLIPModel:
    """The averaged CLIP (Radford et al. 2021, figure 3). Nearly the same words apart only by whose colour is whose are
    what makes the text tower's states say which colour belongs to which thing."""
    draw = pairs(pool, tokens, plan.batch)
    net.set_attn_implementation("eager")  # torch's fused attention takes longer over so few tokens, half of the step
    return fit(net.to(best_device()), plan, folder, draw=draw, loss=losses, report=reporter(held_out, tokens))


def pairs(pool: Pool, tokens: CLIPTokenizer, batch: int) -> Callable[[np.random.Generator, float], Batch]:
    """Batches of (pictures, words of their captions, words of captions with a wrong colour or thing)."""
    right, wrong = right_and_wrong(pool, tokens)

    def draw(rng: np.random.Generator, progress: float) -> Batch:
        chosen = np.sort(rng.choice(len(right), size=batch, replace=False))
        rng.shuffle(chosen)
        version = rng.integers(right.shape[1], size=batch)
        pictures = soften(as_tensor(pool.pictures[chosen]), rng)
        return pictures, as_long(right[chosen, version]), as_long(wrong[chosen, version])

    return draw


def as_long(words: np.ndarray) -> Tensor:
    return torch.from_numpy(words.astype(np.int64))


def right_and_wrong(pool: Pool, tokens: CLIPTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all captions and of as many with a wrong colour or, every second one, a wrong thing: int16 [pictures, captions, words] each."""
    count = len(pool.facts[0]["captions"])
    right = ids(tokens, [caption for fact in pool.facts for caption in fact["captions"]])
    wrong = ids(tokens, [caption for number, fact in enumerate(pool.facts) for caption in _wrong(fact, number, count)])
    return right.reshape(len(pool.facts), count, -1), wrong.reshape(len(pool.facts), count, -1)


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


def losses(net: CLIPModel, batch: Batch) -> dict[str, Tensor]:
    """Each picture finds its caption among all and the wrong ones, each caption its picture."""
    pictures, right, wrong = batch
    logits = compare(net, pictures, torch.cat([right, wrong]))
    own = torch.arange(len(pictures), device=logits.device)
    return {"captions": cross_entropy(logits, own), "pictures": cross_entropy(logits[:, : len(pictures)].T, own)}


def compare(net: CLIPModel, pictures: Tensor, words: Tensor) -> Tensor:
    """Scaled cosines: [pictures, texts]."""
    return net(input_ids=words, pixel_values=pictures).logits_per_image.float()


def reporter(held_out: Pool, tokens: CLIPTokenizer) -> Callable[[CLIPModel], Figures]:
    """On held-out pictures: how often the caption is found among 256, and preferred to that with a wrong colour."""
    few = Pool(held_out.pictures[:TESTED], held_out.facts[:TESTED])
    count = len(few.facts)
    right, wrong = (as_long(words[:, 0]) for words in right_and_wrong(few, tokens))

    @torch.no_grad()
    def report(net: CLIPModel) -> Figures:
        device = next(net.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            logits = compare(net, as_tensor(few.pictures).to(device), torch.cat([right, wrong]).to(device)).cpu()
        right_one, wrong_one = logits[:, :count].diagonal(), logits[:, count:].diagonal()
        found = logits[:, :count].argmax(1) == torch.arange(count)
        return {"found": float(found.float().mean()), "bound": float((right_one > wrong_one).float().mean())}

    return report
