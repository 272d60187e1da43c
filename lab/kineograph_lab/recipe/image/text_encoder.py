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

from kineograph_lab.judge.networks import LABELS
from kineograph_lab.judge.training import labels_of
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import WIDTH, tokenize
from kineograph_lab.recipe.pool import Pool, shot_from_facts

FACTS = {**LABELS, "facing": ("left", "right")}
NUM_TESTED = 256


def fact_heads() -> nn.ModuleDict:
    """A linear reading of each fact from a state of either tower."""
    return nn.ModuleDict({name: nn.Linear(WIDTH, len(choices)) for name, choices in FACTS.items()})


class CaptionFactsNet(nn.Module):
    """The tower, and what is read from its states."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text, self.facts = text, fact_heads()

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        """Tokens [n, words] -> logits of every fact, [n, words, choices]."""
        states = self.text(words).last_hidden_state
        return {name: read(states).float() for name, read in self.facts.items()}


def train_image_text_encoder(text: CLIPTextModel, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool, *, tokens: CLIPTokenizer) -> CLIPTextModel:  # fmt: skip
    """The averaged tower."""
    text.set_attn_implementation("eager")
    net = CaptionFactsNet(text).to(best_device())
    sample_batch, report = caption_batches(pool, tokens, plan.batch), caption_report(held_out, tokens)
    return train_loop(net, plan, folder, sample_batch=sample_batch, loss=caption_losses, report=report).text


def tokenize_captions(pool: Pool, tokens: CLIPTokenizer) -> np.ndarray:
    """The tokens of all captions: int16 [pictures, captions, words]."""
    words = tokenize(tokens, [caption for fact in pool.facts for caption in fact["captions"]])
    return words.reshape(len(pool.facts), -1, words.shape[1])


def fact_indices(pool: Pool) -> np.ndarray:
    """What is true of each picture, as numbers of the choices in `ASKED`: int64 [pictures, facts]."""
    shots = [shot_from_facts(fact) for fact in pool.facts]
    told = [{**labels_of(shot), "facing": "left" if shot.things[0].facing < 0 else "right"} for shot in shots]
    return np.array([[choices.index(each[name]) for name, choices in FACTS.items()] for each in told])


def caption_batches(pool: Pool, tokens: CLIPTokenizer, batch: int) -> SampleBatch:
    """Batches of (words, whether they are at the end or behind it, facts)."""
    words, facts = tokenize_captions(pool, tokens), fact_indices(pool)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = rng.integers(len(words), size=batch)
        told = torch.from_numpy(words[chosen, rng.integers(words.shape[1], size=batch)].astype(np.int64))
        return told, is_after_text(told, tokens), torch.from_numpy(facts[chosen])

    return sample_batch


def is_after_text(words: Tensor, tokens: CLIPTokenizer) -> Tensor:
    """Which words are the end of the text or stand behind it: bool [n, words]. They alone have seen all of it."""
    return (words == tokens.eos_token_id).cumsum(1) > 0


def caption_losses(net: CaptionFactsNet, batch: Batch) -> dict[str, Tensor]:
    """The cross-entropy of every fact, read from every state that has seen the whole caption."""
    words, whole, facts = batch
    logits = net(words)
    told = facts[:, None].expand(-1, words.shape[1], -1)[whole]
    return {name: cross_entropy(logits[name][whole], told[:, k]) for k, name in enumerate(FACTS)}


def caption_report(held_out: Pool, tokens: CLIPTokenizer) -> Callable[[CaptionFactsNet], Metrics]:
    """On captions of held-out pictures: how often each fact is read right from the last state."""
    few = Pool(held_out.pictures[:NUM_TESTED], held_out.facts[:NUM_TESTED])
    words, facts = tokenize_captions(few, tokens), fact_indices(few)

    @torch.no_grad()
    def report(net: CaptionFactsNet) -> Metrics:
        device = next(net.parameters()).device
        logits = net(torch.from_numpy(words[:, 0].astype(np.int64)).to(device))
        read = {name: told[:, -1].argmax(1).cpu().numpy() for name, told in logits.items()}
        return {name: float((read[name] == facts[:, k]).mean()) for k, name in enumerate(FACTS)}

    return report
