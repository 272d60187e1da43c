"""Pools of training data that grow while a network is trained: shards of latents, captions and subjects' cells.

A shard is plain arrays in files, a function of its number and the seed. Training reads all shards that exist; their count
at each block of steps is kept in a ledger, so that a resumed training has the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image import vae
from kineograph_lab.recipe.image.unet import CELLS, weights_from_cells
from kineograph_lab.recipe.networks import tokenize
from kineograph_lab.recipe.pool import CAPTIONS, Pool, subject_cells
from kineograph_lab.recipe.video import clips
from kineograph_lab.world import wide, world

SHARD, CLIP_SHARD = 2048, 256  # images, clips a shard
LATENTS = "latents"
VAE_BATCH = 32  # images that the VAE encodes at once
LEDGER_STEPS = 256  # steps between two counts of the shards
MIN_SHARDS = 4  # shards needed before training starts
MOVING_SHARE, MAX_TIME = 0.25, 0.9  # share of images at a time other than 0, and the largest time in seconds

Rng = np.random.Generator
Encode = Callable[[np.ndarray], np.ndarray]  # uint8 [n, h, w, 3] -> scaled latents
KeepGoing = Callable[[], bool]  # False: stop rendering


def wide_image(rng: Rng, split: str = "train") -> tuple[np.ndarray, dict[str, Any]]:
    """Return an image of the wider distribution and its facts."""
    shot = wide.sample_wide_shot(rng, split)
    moves = rng.uniform() < MOVING_SHARE
    moves = moves and not any(wide.is_cut_off(subject) for subject in shot.things)  # it may have left the frame
    time = rng.uniform(-MAX_TIME, MAX_TIME) if moves else 0.0
    texts = wide.wide_image_texts(shot, rng, CAPTIONS)
    return world.render(shot, time), {**asdict(shot), "time": time, "captions": texts}


def wide_clip(encode: Encode, rng: Rng, split: str = "train") -> tuple[np.ndarray, dict[str, Any]]:
    """Return a clip of the wider distribution as scaled latents, float16 [16, c, h, w], and its facts."""
    shot, fps = wide.sample_wide_clip_shot(rng, split), float(rng.choice(clips.FRAME_RATES, p=clips.FRAME_RATE_SHARES))
    facts = clips.clip_facts(shot, fps, rng, wide.wide_clip_text)
    return encode(world.render_clip(shot, clips.FRAMES, fps)), facts


def render_image_shards(
    folder: Path, encode: Encode, tokenizer: CLIPTokenizer, shards: int, seed: int, keep_going: KeepGoing
) -> None:
    """Write the missing ones of the first `shards` shards of images, until `keep_going` returns False."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        if keep_going() and not _shard_file(folder, number, LATENTS).exists():
            _render_image_shard(folder, encode, tokenizer, number, seed, keep_going)


def render_clip_shards(folder: Path, encode: Encode, shards: int, seed: int, keep_going: KeepGoing) -> None:
    """Write the missing ones of the first `shards` shards of clips, until `keep_going` returns False."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        if keep_going() and not _shard_file(folder, number, LATENTS).exists():
            items = []
            for k in range(number * CLIP_SHARD, (number + 1) * CLIP_SHARD):
                if not keep_going():
                    return
                items.append(wide_clip(encode, np.random.default_rng((seed, k))))
            _save_shard(folder, number, np.stack([each for each, _ in items]), [fact for _, fact in items])


def _render_image_shard(
    folder: Path, encode: Encode, tokenizer: CLIPTokenizer, number: int, seed: int, keep_going: KeepGoing
) -> None:  # fmt: skip
    latents, facts = [], []
    for first in range(number * SHARD, (number + 1) * SHARD, VAE_BATCH):
        if not keep_going():
            return
        items = [wide_image(np.random.default_rng((seed, k))) for k in range(first, first + VAE_BATCH)]
        facts += [fact for _, fact in items]
        latents.append(encode(np.stack([each for each, _ in items])))
    words = tokenize(tokenizer, [caption for fact in facts for caption in fact["captions"]])
    _save(_shard_file(folder, number, "words"), words.reshape(SHARD, CAPTIONS, -1))
    _save(_shard_file(folder, number, "subjects"), np.stack([subject_cells(fact, CELLS) for fact in facts]))
    _save_shard(folder, number, np.concatenate(latents), facts)


def _save_shard(folder: Path, number: int, latents: np.ndarray, facts: list[dict[str, Any]]) -> None:
    """Write facts and latents; latents last, since a shard exists when its latents do."""
    (folder / f"{number:05d}-facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    _save(_shard_file(folder, number, LATENTS), latents)


def open_encoder(folder: Path) -> Encode:
    """Return a function that encodes images, uint8 [n, h, w, 3], as scaled float16 latents, on one thread."""
    torch.set_num_threads(1)
    net = use_fast_group_norm(AutoencoderKL.from_pretrained(folder).to(memory_format=torch.channels_last))
    return lambda images: (net.config["scaling_factor"] * vae.encode_images(net, images)).half().numpy()


def load_clips(folder: Path) -> Pool:
    """Return all clips of the shards that exist."""
    count = count_shards(folder)
    return Pool(np.concatenate([np.load(_shard_file(folder, k, LATENTS)) for k in range(count)]), _facts(folder, count))


def load_stills(folder: Path, max_shards: int) -> Pool:
    """Return the images of the first shards as clips of one frame."""
    count = min(max_shards, count_shards(folder))
    latents = np.concatenate([np.load(_shard_file(folder, k, LATENTS)) for k in range(count)])
    return Pool(latents[:, None], _facts(folder, count))


def _facts(folder: Path, count: int) -> list[dict[str, Any]]:
    texts = ((folder / f"{number:05d}-facts.jsonl").read_text() for number in range(count))
    return [json.loads(line) for text in texts for line in text.splitlines()]


def _shard_file(folder: Path, number: int, part: str) -> Path:
    return folder / f"{number:05d}-{part}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    part_file = path.with_suffix(".part")
    with part_file.open("wb") as file:
        np.save(file, array)
    part_file.replace(path)


def count_shards(folder: Path) -> int:
    """Return the number of consecutive shards from the first on."""
    number = 0
    while _shard_file(folder, number, LATENTS).exists():
        number += 1
    return number


def shard_fetcher(folder: Path) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Return the function from indices of images to (latents, captions as tokens, weights of cells).

    Shards are memory-mapped when they are first read.
    """

    @cache
    def open_shard(number: int) -> tuple[np.ndarray, ...]:
        return tuple(
            np.load(_shard_file(folder, number, part), mmap_mode="r") for part in (LATENTS, "words", "subjects")
        )

    def fetch(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = [[part[k % SHARD] for part in open_shard(k // SHARD)] for k in chosen.tolist()]
        latents, words, subjects = (np.stack(part) for part in zip(*rows, strict=True))
        return latents, words, weights_from_cells(subjects)

    return fetch


def image_count_ledger(folder: Path, path: Path, steps: int) -> Callable[[float], int]:
    """Return a function from progress to the number of available images, constant in a block of steps and kept in a file."""
    blocks: dict[int, int] = {}
    if path.exists():
        blocks = dict(json.loads(line) for line in path.read_text().splitlines())

    def count(progress: float) -> int:
        block = round(progress * steps) // LEDGER_STEPS
        if block not in blocks:
            blocks[block] = count_shards(folder)
            with path.open("a") as file:
                file.write(json.dumps([block, blocks[block]]) + "\n")
        return blocks[block] * SHARD

    return count
