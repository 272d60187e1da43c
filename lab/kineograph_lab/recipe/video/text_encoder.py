"""The text tower of the video models: that of the image model, taught to tell how things and the camera move.

The image model's tower never read such words. It learns them from captions alone, as it learnt all others (`text.py`),
and what it says of captions of pictures stays as it was, since the image network was trained on that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph_lab.judge.training import labels_of
from kineograph_lab.recipe.image.text_encoder import FACTS, is_after_text
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import WIDTH, tokenize
from kineograph_lab.recipe.video import clips
from kineograph_lab.world import captions
from kineograph_lab.world.world import CAMERA_MOTIONS, MOTIONS, Shot

CLIP_FACTS = {**{name: choices for name, choices in FACTS.items() if name != "facing"},
        "motion": MOTIONS, "camera": CAMERA_MOTIONS}  # fmt: skip
NUM_TESTED = 256
PRESERVATION_WEIGHT = 12.0  # weight of what is to stay: a squared difference of states, whose own variance is about 1


class ClipFactsNet(nn.Module):
    """The tower, and a linear reading of each fact from its states."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text = text
        self.facts = nn.ModuleDict({name: nn.Linear(WIDTH, len(choices)) for name, choices in CLIP_FACTS.items()})


def train_video_text_encoder(
    text: CLIPTextModel, plan: StagePlan, folder: Path, shots: int, *, tokens: CLIPTokenizer
) -> CLIPTextModel:
    """The averaged tower, told so many shots."""
    text.set_attn_implementation("eager")
    before = copy.deepcopy(text).requires_grad_(requires_grad=False).to(best_device())
    net = ClipFactsNet(text).to(best_device())
    sample_batch, report = clip_caption_batches(tokens, shots, plan), clip_caption_report(tokens)
    return train_loop(
        net, plan, folder, sample_batch=sample_batch, loss=partial(clip_caption_losses, before, tokens), report=report
    ).text


def sample_clip_captions(
    seed: int, count: int, split: str, tokens: CLIPTokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Captions of clips and of pictures as tokens, int16 [count, words] each, and the facts, int64 [count, facts]."""
    rng = np.random.default_rng((seed, count))
    shots = [clips.sample_clip_shot(rng, split) for _ in range(count)]
    of_clips, of_pictures = (
        [of(shot, rng) for shot in shots] for of in (captions.caption_clip, captions.caption_image)
    )
    return (
        tokenize(tokens, of_clips),
        tokenize(tokens, of_pictures),
        np.array([list(_clip_fact_indices(shot)) for shot in shots]),
    )


def _clip_fact_indices(shot: Shot) -> Iterator[int]:
    true: dict[str, Any] = {**labels_of(shot), "motion": shot.things[0].motion, "camera": shot.camera}
    return (choices.index(true[name]) for name, choices in CLIP_FACTS.items())


def clip_caption_batches(tokens: CLIPTokenizer, shots: int, plan: StagePlan) -> SampleBatch:
    """Batches of (words of clips, words of pictures, facts of the clips)."""
    every = sample_clip_captions(plan.seed, shots, "train", tokens)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = rng.integers(shots, size=plan.batch)
        return tuple(torch.from_numpy(each[chosen].astype(np.int64)) for each in every)

    return sample_batch


def clip_caption_losses(
    before: CLIPTextModel, tokens: CLIPTokenizer, net: ClipFactsNet, batch: Batch
) -> dict[str, Tensor]:
    """The cross-entropy of every fact, from states that have seen the whole caption; and how far the others moved."""
    of_clips, of_pictures, facts = batch
    whole = is_after_text(of_clips, tokens)
    seen = net.text(of_clips).last_hidden_state[whole]
    rows = facts[:, None].expand(-1, of_clips.shape[1], -1)[whole]
    named = {name: cross_entropy(read(seen).float(), rows[:, k]) for k, (name, read) in enumerate(net.facts.items())}
    with torch.no_grad():
        was = before(of_pictures).last_hidden_state
    return {
        **named,
        "kept": PRESERVATION_WEIGHT * mse_loss(net.text(of_pictures).last_hidden_state.float(), was.float()),
    }


def clip_caption_report(tokens: CLIPTokenizer) -> Callable[[ClipFactsNet], Metrics]:
    """On captions of held-out clips: how often each fact is read right from the last state."""
    of_clips, _, facts = sample_clip_captions(1, NUM_TESTED, "held_out", tokens)
    words = torch.from_numpy(of_clips.astype(np.int64))

    @torch.no_grad()
    def report(net: ClipFactsNet) -> Metrics:
        last = net.text(words.to(best_device())).last_hidden_state[:, -1]
        read = {name: read(last).argmax(1).cpu().numpy() for name, read in net.facts.items()}
        return {name: float((read[name] == facts[:, k]).mean()) for k, name in enumerate(CLIP_FACTS)}

    return report
