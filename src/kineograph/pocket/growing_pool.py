"""A pool of training images that grows while a network is trained: shards of latents, captions and subjects' places.

A shard is plain arrays in files, a function of its number and the seed. Training reads all shards that exist; how many
those were at each step is kept in a ledger, so that a resumed training sees the same batches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from kineograph.pocket import vae, wide, wide_captions, world
from kineograph.pocket.feed import CAPTIONS, things_at
from kineograph.pocket.norms import with_quick_norms
from kineograph.pocket.unet import CELLS, weights_of
from kineograph.pocket.words import ids

SHARD = 2048  # images
ENCODED = 32  # images that the VAE encodes at a time
BLOCK = 256  # steps between two looks at how many shards there are
FEWEST = 4  # shards before training begins
CAUGHT, FARTHEST = 0.25, 0.9  # share of images in motion, and how many seconds before or after the middle

Rng = np.random.Generator


def image(rng: Rng, split: str = "train") -> tuple[np.ndarray, dict[str, Any]]:
    """Return an image of the wider distribution and its facts."""
    shot = wide.draw_shot(rng, split)
    moves = rng.uniform() < CAUGHT and not any(wide.is_cut(thing) for thing in shot.things)  # or it may be gone
    time = rng.uniform(-FARTHEST, FARTHEST) if moves else 0.0
    said = wide_captions.images_of(shot, rng, CAPTIONS)
    return world.render(shot, time), {**asdict(shot), "time": time, "captions": said}


def paint(folder: Path, encoder: Path, tokenizer: Path, shards: int, seed: int, parent: int) -> None:
    """Write shards 0 to `shards`, those that exist left alone, until the process `parent` ends."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    net = with_quick_norms(AutoencoderKL.from_pretrained(encoder).to(memory_format=torch.channels_last))
    tokens = CLIPTokenizer.from_pretrained(tokenizer)
    for number in range(shards):
        if not _at(folder, number, "latents").exists() and not _write(folder, net, tokens, number, seed, parent):
            return


def _write(folder: Path, net: AutoencoderKL, tokens: CLIPTokenizer, number: int, seed: int, parent: int) -> bool:
    latents, facts = [], []
    for first in range(number * SHARD, (number + 1) * SHARD, ENCODED):
        if os.getppid() != parent:
            return False
        made = [image(np.random.default_rng((seed, k))) for k in range(first, first + ENCODED)]
        facts += [fact for _, fact in made]
        scaled = net.config["scaling_factor"] * vae.encode(net, np.stack([each for each, _ in made]))
        latents.append(scaled.half().numpy())
    words = ids(tokens, [caption for fact in facts for caption in fact["captions"]])
    lines = "".join(json.dumps(fact) + "\n" for fact in facts)
    folder.joinpath(f"{number:05d}-facts.jsonl").write_text(lines)
    _save(_at(folder, number, "words"), words.reshape(SHARD, CAPTIONS, -1))
    _save(_at(folder, number, "subjects"), np.stack([things_at(fact, CELLS) for fact in facts]))
    _save(_at(folder, number, "latents"), np.concatenate(latents))  # last: a shard exists when its latents do
    return True


def _at(folder: Path, number: int, part: str) -> Path:
    return folder / f"{number:05d}-{part}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        np.save(file, array)
    beside.replace(path)


def shards_in(folder: Path) -> int:
    """Return the number of shards from the first on without a gap."""
    number = 0
    while _at(folder, number, "latents").exists():
        number += 1
    return number


class Shards:
    """The shards of a folder, opened when they are first read and left on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[tuple[np.ndarray, ...]] = []

    def fetch(self, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return (latents, captions as tokens, weights of cells) of these images."""
        while len(self.opened) <= chosen.max() // SHARD:
            parts = (_at(self.folder, len(self.opened), part) for part in ("latents", "words", "subjects"))
            self.opened.append(tuple(np.load(part, mmap_mode="r") for part in parts))
        rows = [[part[k % SHARD] for part in self.opened[k // SHARD]] for k in chosen.tolist()]
        latents, words, subjects = (np.stack(part) for part in zip(*rows, strict=True))
        return latents, words, weights_of(subjects)


def ledger(folder: Path, path: Path, steps: int) -> Callable[[float], int]:
    """Return the number of images to draw from at a progress: that of its block of steps, kept in a file of lines."""
    blocks: dict[int, int] = {}
    if path.exists():
        blocks = dict(json.loads(line) for line in path.read_text().splitlines())

    def count(progress: float) -> int:
        block = round(progress * steps) // BLOCK
        if block not in blocks:
            blocks[block] = shards_in(folder)
            with path.open("a") as file:
                file.write(json.dumps([block, blocks[block]]) + "\n")
        return blocks[block] * SHARD

    return count
