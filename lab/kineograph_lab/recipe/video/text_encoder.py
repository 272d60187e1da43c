"""The text encoder of the video models: the image model's, fine-tuned on words for motion and camera.

The image model's encoder was never trained on such words. It learns them from captions alone, as it learnt all others
(`recipe/image/text_encoder.py`), and its states of image captions stay as they were, since the image network was trained
on those.
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
from kineograph_lab.world.world import CAMERA_MOTIONS, MOTIONS, ShotSpec

CLIP_FACTS = {**{name: choices for name, choices in FACTS.items() if name != "facing"},
        "motion": MOTIONS, "camera": CAMERA_MOTIONS}  # fmt: skip
NUM_TESTED = 256
PRESERVATION_WEIGHT = 12.0  # weight of the squared change of states of image captions, whose own variance is about 1


class ClipFactsNet(nn.Module):
    """The text encoder and heads that predict each fact from its states."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text = text
        self.facts = nn.ModuleDict({name: nn.Linear(WIDTH, len(choices)) for name, choices in CLIP_FACTS.items()})


def train_video_text_encoder(
    text: CLIPTextModel, plan: StagePlan, folder: Path, shots: int, *, tokenizer: CLIPTokenizer
) -> CLIPTextModel:
    """Train the text encoder on captions of `shots` shots; return it with averaged weights."""
    text.set_attn_implementation("eager")
    frozen = copy.deepcopy(text).requires_grad_(requires_grad=False).to(best_device())
    net = ClipFactsNet(text).to(best_device())
    sample_batch, report = clip_caption_batches(tokenizer, shots, plan), clip_caption_report(tokenizer)
    return train_loop(
        net,
        plan,
        folder,
        sample_batch=sample_batch,
        loss=partial(clip_caption_losses, frozen, tokenizer),
        report=report,
    ).text


def sample_clip_captions(
    seed: int, count: int, split: str, tokenizer: CLIPTokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return captions of clips and of images as tokens, int16 [count, tokens] each, and the facts, int64 [count, facts]."""
    rng = np.random.default_rng((seed, count))
    shots = [clips.sample_clip_shot(rng, split) for _ in range(count)]
    clip_texts, image_texts = (
        [caption_shot(shot, rng) for shot in shots] for caption_shot in (captions.caption_clip, captions.caption_image)
    )
    return (
        tokenize(tokenizer, clip_texts),
        tokenize(tokenizer, image_texts),
        np.array([list(_clip_fact_indices(shot)) for shot in shots]),
    )


def _clip_fact_indices(shot: ShotSpec) -> Iterator[int]:
    facts: dict[str, Any] = {**labels_of(shot), "motion": shot.things[0].motion, "camera": shot.camera}
    return (choices.index(facts[name]) for name, choices in CLIP_FACTS.items())


def clip_caption_batches(tokenizer: CLIPTokenizer, shots: int, plan: StagePlan) -> SampleBatch:
    """Return a sampler of (tokens of clip captions, tokens of image captions, facts of the clips)."""
    data = sample_clip_captions(plan.seed, shots, "train", tokenizer)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        chosen = rng.integers(shots, size=plan.batch)
        return tuple(torch.from_numpy(each[chosen].astype(np.int64)) for each in data)

    return sample_batch


def clip_caption_losses(
    before: CLIPTextModel, tokenizer: CLIPTokenizer, net: ClipFactsNet, batch: Batch
) -> dict[str, Tensor]:
    """Return the cross-entropy of every fact, over states after the whole caption, and the change of image captions' states."""
    clip_tokens, image_tokens, facts = batch
    is_after_end = is_after_text(clip_tokens, tokenizer)
    clip_states = net.text(clip_tokens).last_hidden_state[is_after_end]
    targets = facts[:, None].expand(-1, clip_tokens.shape[1], -1)[is_after_end]
    fact_losses = {
        name: cross_entropy(head(clip_states).float(), targets[:, k])
        for k, (name, head) in enumerate(net.facts.items())
    }
    return {**fact_losses, "preservation": PRESERVATION_WEIGHT * squared_change(before, net.text, image_tokens)}


def squared_change(before: CLIPTextModel, text: CLIPTextModel, tokens: Tensor) -> Tensor:
    """Return the mean squared change of the states of tokens [n, tokens], whose own variance is about 1."""
    with torch.no_grad():
        states_before = before(tokens).last_hidden_state
    return mse_loss(text(tokens).last_hidden_state.float(), states_before.float())


def clip_caption_report(tokenizer: CLIPTokenizer) -> Callable[[ClipFactsNet], Metrics]:
    """Return a report on captions of held-out clips: accuracy of each fact, from the last state."""
    clip_tokens, _, facts = sample_clip_captions(1, NUM_TESTED, "held_out", tokenizer)
    token_ids = torch.from_numpy(clip_tokens.astype(np.int64))

    @torch.no_grad()
    def report(net: ClipFactsNet) -> Metrics:
        last_state = net.text(token_ids.to(best_device())).last_hidden_state[:, -1]
        head = {name: head(last_state).argmax(1).cpu().numpy() for name, head in net.facts.items()}
        return {name: float((head[name] == facts[:, k]).mean()) for k, name in enumerate(CLIP_FACTS)}

    return report
