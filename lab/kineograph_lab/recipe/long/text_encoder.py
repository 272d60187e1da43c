"""The one text encoder of all pocket models, trained on captions of images and clips and on editing instructions.

Linear heads predict from its states what a text names and what it omits: every fact has the further choice "not named".
The states of captions of the narrower grammar, on which the shipped models were trained, stay what they were, so that each
model's training can go on from its shipped weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph_lab.recipe.image.text_encoder import is_after_text
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import WIDTH, tokenize
from kineograph_lab.recipe.video.text_encoder import PRESERVATION_WEIGHT, sample_clip_captions, squared_change
from kineograph_lab.world import edits, wide, world
from kineograph_lab.world.captions import KINDS
from kineograph_lab.world.wide import Caption

CHOICES: dict[str, tuple[str, ...]] = {
    "thing": world.SUBJECTS, "colour": world.COLOURS, "scene": world.SCENES, "style": world.STYLES,
    "second": world.SUBJECTS, "second_colour": world.COLOURS, "facing": ("left", "right"),
    "motion": world.MOTIONS, "camera": world.CAMERA_MOTIONS[1:], "edit": edits.ASPECTS,
}  # fmt: skip
INSTRUCTION_SHARE = 0.2  # share of instructions among the texts
CLIP_CAPTION_SHARE = 0.4  # share of captions of clips; all others are captions of images
NUM_TESTED = 512
NUM_PRESERVED = 10_000  # captions of clips, and as many of images, whose states are preserved
PRESERVED_SHARE = 0.5  # of them in a batch, relative to the training texts

Rng = np.random.Generator


class TextFactsNet(nn.Module):
    """The text encoder and heads that predict each fact from its states."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text = text
        self.facts = nn.ModuleDict({name: nn.Linear(WIDTH, len(choices) + 1) for name, choices in CHOICES.items()})


def train_text_encoder(
    text: CLIPTextModel, plan: StagePlan, folder: Path, count: int, *, tokenizer: CLIPTokenizer
) -> CLIPTextModel:
    """Train the text encoder on `count` texts; return it with averaged weights."""
    text.set_attn_implementation("eager")
    before = copy.deepcopy(text).requires_grad_(requires_grad=False).to(best_device())
    clip_tokens, image_tokens, _ = sample_clip_captions(plan.seed, NUM_PRESERVED, "train", tokenizer)
    texts = load_texts(folder / "texts.npz", plan.seed, count, tokenizer)
    sample_batch = text_batches(texts, np.concatenate([clip_tokens, image_tokens]), tokenizer, plan)
    return train_loop(
        TextFactsNet(text).to(best_device()),
        plan,
        folder,
        sample_batch=sample_batch,
        loss=partial(text_losses, before),
        report=text_report(tokenizer, before),
    ).text


def sample_text(rng: Rng, split: str) -> Caption:
    """Return a random text for one of the pocket models."""
    kind = rng.uniform()
    if kind < INSTRUCTION_SHARE:
        return sample_instruction(rng, split)
    if kind < INSTRUCTION_SHARE + CLIP_CAPTION_SHARE:
        return wide.caption_wide_clip(wide.sample_wide_clip_shot(rng, split), rng)
    return wide.caption_wide_image(wide.sample_wide_shot(rng, split), rng)


def sample_instruction(rng: Rng, split: str) -> Caption:
    """Return an instruction for a random edit and the facts it names; `second` is a changed subject's new kind."""
    aspect = str(rng.choice(edits.ASPECTS))
    edit = edits.sample_edit(rng, aspect, wide.sample_wide_shot(rng, split), split=split)
    text, before, after = edits.edit_instruction(edit, rng), edit.before.things[0], edit.after.things[0]
    named = {"edit": aspect}
    if any(word in text for word in KINDS[before.kind]):
        named["thing"] = before.kind
    new = {"colour": after.colour, "scene": edit.after.scene, "style": edit.after.style, "thing": after.kind}[aspect]
    return Caption(text, named | {"second" if aspect == "thing" else aspect: new})


def sample_texts(seed: int, count: int, split: str, tokenizer: CLIPTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return texts as tokens, int16 [count, tokens], and their facts, int64 [count, facts]."""
    rng = np.random.default_rng((seed, count))
    texts = [sample_text(rng, split) for _ in range(count)]
    facts = np.array([wide.encode_facts(each.named, CHOICES) for each in texts])
    return tokenize(tokenizer, [each.text for each in texts]), facts


def load_texts(path: Path, seed: int, count: int, tokenizer: CLIPTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the training texts, written once to `path`: sampling them takes minutes."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        words, facts = sample_texts(seed, count, "train", tokenizer)
        part_file = path.with_suffix(".part")
        with part_file.open("wb") as file:
            np.savez(file, words=words, facts=facts)
        part_file.replace(path)
    cached = np.load(path)
    return cached["words"], cached["facts"]


def text_batches(
    texts: tuple[np.ndarray, np.ndarray], preserved: np.ndarray, tokenizer: CLIPTokenizer, plan: StagePlan
) -> SampleBatch:
    """Return a sampler of (tokens, True at and after the end of text, facts, tokens whose states are preserved)."""
    words, facts = texts

    def sample_batch(rng: Rng, progress: float) -> Batch:
        chosen = rng.integers(len(words), size=plan.batch)
        tokens = torch.from_numpy(words[chosen].astype(np.int64))
        kept = rng.integers(len(preserved), size=round(PRESERVED_SHARE * plan.batch))
        preserved_tokens = torch.from_numpy(preserved[kept].astype(np.int64))
        return tokens, is_after_text(tokens, tokenizer), torch.from_numpy(facts[chosen]), preserved_tokens

    return sample_batch


def text_losses(before: CLIPTextModel, net: TextFactsNet, batch: Batch) -> dict[str, Tensor]:
    """Return the cross-entropy of every fact, over states at or after the end of the text, and the change of states.

    before: the text encoder before training.
    """
    words, is_after_end, facts, preserved = batch
    states = net.text(words).last_hidden_state[is_after_end]
    targets = facts[:, None].expand(-1, words.shape[1], -1)[is_after_end]
    losses = {
        name: cross_entropy(head(states).float(), targets[:, k]) for k, (name, head) in enumerate(net.facts.items())
    }
    return {**losses, "preservation": PRESERVATION_WEIGHT * squared_change(before, net.text, preserved)}


def text_report(tokenizer: CLIPTokenizer, before: CLIPTextModel) -> Callable[[TextFactsNet], Metrics]:
    """Return a report on texts about held-out shots: accuracy of each fact, from the last state, and change of states."""
    encoded, facts = sample_texts(1, NUM_TESTED, "held_out", tokenizer)
    token_ids = torch.from_numpy(encoded.astype(np.int64))
    clip_tokens, image_tokens, _ = sample_clip_captions(1, NUM_TESTED, "held_out", tokenizer)
    old_captions = {"clips": clip_tokens, "images": image_tokens}

    @torch.no_grad()
    def report(net: TextFactsNet) -> Metrics:
        changes = {
            f"change {name}": float(
                squared_change(before, net.text, torch.from_numpy(each.astype(np.int64)).to(best_device()))
            )
            for name, each in old_captions.items()
        }
        last_state = net.text(token_ids.to(best_device())).last_hidden_state[:, -1]
        head = {name: head(last_state).argmax(1).cpu().numpy() for name, head in net.facts.items()}
        return changes | {name: float((head[name] == facts[:, k]).mean()) for k, name in enumerate(CHOICES)}

    return report
