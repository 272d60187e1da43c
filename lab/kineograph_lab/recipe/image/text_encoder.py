"""Stage 2: the text tower, learnt from captions alone: from its states one can read what the caption says.

A CLIP this small learns from 38,000 pictures to tell colours and scenes, and of the thing next to nothing; a U-Net told
by it draws things as blots. The facts of a caption are known here, so they are asked for: four minutes, all right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph_lab.judge.networks import ANSWERS
from kineograph_lab.judge.training import answers
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.loop import Batch, Draw, Figures, Plan, best_device, fit
from kineograph_lab.recipe.networks import WIDTH
from kineograph_lab.recipe.pool import Pool, shot_of

ASKED = {**ANSWERS, "facing": ("left", "right")}
TESTED = 256


def readings() -> nn.ModuleDict:
    """A linear reading of each fact from a state of either tower."""
    return nn.ModuleDict({name: nn.Linear(WIDTH, len(choices)) for name, choices in ASKED.items()})


class Teller(nn.Module):
    """The tower, and what is read from its states."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text, self.facts = text, readings()

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        """Tokens [n, words] -> logits of every fact, [n, words, choices]."""
        states = self.text(words).last_hidden_state
        return {name: read(states).float() for name, read in self.facts.items()}


def train(text: CLIPTextModel, plan: Plan, folder: Path, pool: Pool, held_out: Pool, *, tokens: CLIPTokenizer) -> CLIPTextModel:  # fmt: skip
    """The averaged tower."""
    text.set_attn_implementation("eager")
    net = Teller(text).to(best_device())
    draw, report = captions(pool, tokens, plan.batch), reporter(held_out, tokens)
    return fit(net, plan, folder, draw=draw, loss=losses, report=report).text


def captions_as_ids(pool: Pool, tokens: CLIPTokenizer) -> np.ndarray:
    """The tokens of all captions: int16 [pictures, captions, words]."""
    words = ids(tokens, [caption for fact in pool.facts for caption in fact["captions"]])
    return words.reshape(len(pool.facts), -1, words.shape[1])


def facts_as_numbers(pool: Pool) -> np.ndarray:
    """What is true of each picture, as numbers of the choices in `ASKED`: int64 [pictures, facts]."""
    shots = [shot_of(fact) for fact in pool.facts]
    told = [{**answers(shot), "facing": "left" if shot.things[0].facing < 0 else "right"} for shot in shots]
    return np.array([[choices.index(each[name]) for name, choices in ASKED.items()] for each in told])


def captions(pool: Pool, tokens: CLIPTokenizer, batch: int) -> Draw:
    """Batches of (words, whether they are at the end or behind it, facts)."""
    words, facts = captions_as_ids(pool, tokens), facts_as_numbers(pool)

    def draw(rng: np.random.Generator, progress: float) -> Batch:
        chosen = rng.integers(len(words), size=batch)
        told = torch.from_numpy(words[chosen, rng.integers(words.shape[1], size=batch)].astype(np.int64))
        return told, ended(told, tokens), torch.from_numpy(facts[chosen])

    return draw


def ended(words: Tensor, tokens: CLIPTokenizer) -> Tensor:
    """Which words are the end of the text or stand behind it: bool [n, words]. They alone have seen all of it."""
    return (words == tokens.eos_token_id).cumsum(1) > 0


def losses(net: Teller, batch: Batch) -> dict[str, Tensor]:
    """The cross-entropy of every fact, read from every state that has seen the whole caption."""
    words, whole, facts = batch
    logits = net(words)
    told = facts[:, None].expand(-1, words.shape[1], -1)[whole]
    return {name: cross_entropy(logits[name][whole], told[:, k]) for k, name in enumerate(ASKED)}


def reporter(held_out: Pool, tokens: CLIPTokenizer) -> Callable[[Teller], Figures]:
    """On captions of held-out pictures: how often each fact is read right from the last state."""
    few = Pool(held_out.pictures[:TESTED], held_out.facts[:TESTED])
    words, facts = captions_as_ids(few, tokens), facts_as_numbers(few)

    @torch.no_grad()
    def report(net: Teller) -> Figures:
        device = next(net.parameters()).device
        logits = net(torch.from_numpy(words[:, 0].astype(np.int64)).to(device))
        read = {name: told[:, -1].argmax(1).cpu().numpy() for name, told in logits.items()}
        return {name: float((read[name] == facts[:, k]).mean()) for k, name in enumerate(ASKED)}

    return report
