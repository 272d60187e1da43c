"""Stage 2: the text encoder, trained on captions alone so that the facts of a caption can be read from its states.

A CLIP this small learns colours and scenes from 38,000 images but next to nothing of the subject, and a U-Net conditioned
on it renders subjects as blots. The facts of a caption are known here, so linear heads predict them: after four minutes
all are right.
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
    """Return a linear head for each fact, on a state of either tower."""
    return nn.ModuleDict({name: nn.Linear(WIDTH, len(choices)) for name, choices in FACTS.items()})


class CaptionFactsNet(nn.Module):
    """The text encoder and heads that predict the caption's facts from its states."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text, self.facts = text, fact_heads()

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        """Return the logits of every fact, [n, tokens, choices], from tokens [n, tokens]."""
        states = self.text(words).last_hidden_state
        return {name: head(states).float() for name, head in self.facts.items()}


def train_image_text_encoder(text: CLIPTextModel, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool, *, tokenizer: CLIPTokenizer) -> CLIPTextModel:  # fmt: skip
    """Train the text encoder; return it with averaged weights."""
    text.set_attn_implementation("eager")
    net = CaptionFactsNet(text).to(best_device())
    sample_batch, report = caption_batches(pool, tokenizer, plan.batch), caption_report(held_out, tokenizer)
    return train_loop(net, plan, folder, sample_batch=sample_batch, loss=caption_losses, report=report).text


def tokenize_captions(pool: Pool, tokenizer: CLIPTokenizer) -> np.ndarray:
    """Return the tokens of all captions, int16 [images, captions, tokens]."""
    words = tokenize(tokenizer, [caption for fact in pool.facts for caption in fact["captions"]])
    return words.reshape(len(pool.facts), -1, words.shape[1])


def fact_indices(pool: Pool) -> np.ndarray:
    """Return each image's facts as indices of the choices in `FACTS`, int64 [images, facts]."""
    shots = [shot_from_facts(fact) for fact in pool.facts]
    facts = [{**labels_of(shot), "facing": "left" if shot.things[0].facing < 0 else "right"} for shot in shots]
    return np.array([[choices.index(each[name]) for name, choices in FACTS.items()] for each in facts])


def caption_batches(pool: Pool, tokenizer: CLIPTokenizer, batch: int) -> SampleBatch:
    """Return a sampler of (tokens, True at and after the end of text, facts)."""
    words, facts = tokenize_captions(pool, tokenizer), fact_indices(pool)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = rng.integers(len(words), size=batch)
        words_of_batch = torch.from_numpy(words[chosen, rng.integers(words.shape[1], size=batch)].astype(np.int64))
        return words_of_batch, is_after_text(words_of_batch, tokenizer), torch.from_numpy(facts[chosen])

    return sample_batch


def is_after_text(words: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """Return True at the end-of-text token and after it, bool [n, tokens]: those states depend on the whole text."""
    return (words == tokenizer.eos_token_id).cumsum(1) > 0


def caption_losses(net: CaptionFactsNet, batch: Batch) -> dict[str, Tensor]:
    """Return the cross-entropy of every fact, over all states at or after the end of the caption."""
    words, is_after_end, facts = batch
    logits = net(words)
    targets = facts[:, None].expand(-1, words.shape[1], -1)[is_after_end]
    return {name: cross_entropy(logits[name][is_after_end], targets[:, k]) for k, name in enumerate(FACTS)}


def caption_report(held_out: Pool, tokenizer: CLIPTokenizer) -> Callable[[CaptionFactsNet], Metrics]:
    """Return a report on captions of held-out images: accuracy of each fact, from the last state."""
    few = Pool(held_out.items[:NUM_TESTED], held_out.facts[:NUM_TESTED])
    words, facts = tokenize_captions(few, tokenizer), fact_indices(few)

    @torch.no_grad()
    def report(net: CaptionFactsNet) -> Metrics:
        device = next(net.parameters()).device
        logits = net(torch.from_numpy(words[:, 0].astype(np.int64)).to(device))
        predicted = {name: fact_logits[:, -1].argmax(1).cpu().numpy() for name, fact_logits in logits.items()}
        return {name: float((predicted[name] == facts[:, k]).mean()) for k, name in enumerate(FACTS)}

    return report
