"""The long training of the pocket models: development prompts, growing pool, file formats, exact resume."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from kineograph.models.schedule import Schedule
from kineograph_lab.recipe import layer_stages, loop
from kineograph_lab.recipe.export import WEIGHTS, export_finished
from kineograph_lab.recipe.image import unet
from kineograph_lab.recipe.long import growing_pool, text_encoder, training
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.unpack import unpack_shipped
from kineograph_lab.recipe.video import batches
from kineograph_lab.world import wide, world
from kineograph_lab.world.captions import COLOURS, KINDS


def test_development_prompts_hold_no_pair_of_the_test_prompts() -> None:
    assert (
        len(training.DEVELOPMENT_PROMPTS)
        == len(set(training.DEVELOPMENT_PROMPTS))
        == len(training.DEVELOPMENT_SEEDS)
        == 48
    )
    scenes = {words: scene for scene, forms in wide.SCENES.items() for words in forms}
    for prompt in training.DEVELOPMENT_PROMPTS:
        kinds = [kind for kind in KINDS if f" {kind}" in prompt]
        colours = [colour for colour in COLOURS if f" {colour} " in prompt]
        where = [scene for words, scene in scenes.items() if prompt.endswith(words)]
        if len(kinds) == len(colours) == 1 and where:
            assert not world.is_held_out(kinds[0], colour=colours[0], scene=where[0]), prompt


def test_an_instruction_names_the_changed_fact() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        text, named = text_encoder.sample_instruction(rng, "train")
        new = {"thing": "second"}.get(named["edit"], named["edit"])
        assert text and new in named
        assert len(wide.encode_facts(named, text_encoder.CHOICES)) == len(text_encoder.CHOICES)


def test_the_ledger_keeps_the_number_of_shards(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_count = [4]
    monkeypatch.setattr(growing_pool, "count_shards", lambda folder: shard_count[0])
    count = growing_pool.image_count_ledger(tmp_path, tmp_path / "ledger.jsonl", 10_000)
    assert count(0.0) == 4 * growing_pool.SHARD
    shard_count[0] = 9
    assert count(255 / 10_000) == 4 * growing_pool.SHARD
    assert count(256 / 10_000) == 9 * growing_pool.SHARD
    again = growing_pool.image_count_ledger(tmp_path, tmp_path / "ledger.jsonl", 10_000)
    assert again(3 / 10_000) == 4 * growing_pool.SHARD and again(300 / 10_000) == 9 * growing_pool.SHARD


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_pool, "SHARD", 8)
        patch.setattr(growing_pool, "VAE_BATCH", 4)
        patch.setattr(growing_pool, "CLIP_SHARD", 2)
        encode, tokens = (
            growing_pool.open_encoder(WEIGHTS / "vae"),
            CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer"),
        )
        growing_pool.render_image_shards(folder, encode, tokens, 2, 0, lambda: True)
        growing_pool.render_clip_shards(folder / "films", encode, 1, 0, lambda: True)
        yield folder


def test_a_shard_has_arrays_of_images_with_their_captions(shards) -> None:
    assert growing_pool.count_shards(shards) == 2
    latents, words, weights = growing_pool.shard_fetcher(shards)(np.array([1, 9, 15]))
    assert latents.shape == (3, 8, 16, 16) and latents.dtype == np.float16
    assert weights.mean((1, 2)) == pytest.approx(1)
    fact = json.loads((shards / "00001-facts.jsonl").read_text().splitlines()[1])
    tokens = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    assert tokens.decode(words[1, 0], skip_special_tokens=True).strip() == fact["captions"][0]


def test_shards_are_pools_of_the_video_stages(shards) -> None:
    clip_pool, still_pool = growing_pool.load_clips(shards / "films"), growing_pool.load_stills(shards, 1)
    assert clip_pool.items.shape == (2, 16, 8, 16, 16) and len(clip_pool.facts) == 2
    assert still_pool.items.shape == (8, 1, 8, 16, 16) and len(still_pool.facts) == 8
    tokens = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    clips, *_ = batches.video_batches(clip_pool, still_pool, 2, tokens)(np.random.default_rng(0), 0.9)
    assert clips.shape[2:] == (8, 16, 16)


def test_finished_results_are_stored_and_unpacked_elsewhere(tmp_path) -> None:
    unpack_shipped(tmp_path / "here")
    export_finished(tmp_path / "here", tmp_path / "stored", {"text", "canny", "motion_adapter"})
    stored = {str(each.relative_to(tmp_path / "stored")) for each in (tmp_path / "stored").rglob("*.safetensors")}
    assert stored == {"text_encoder/model.safetensors", "control/canny.safetensors", "video/motion_adapter.safetensors"}
    for name in stored:
        assert (tmp_path / "stored" / name).read_bytes() == (WEIGHTS / name).read_bytes(), (
            "moving them costs no history"
        )
    unpack_shipped(tmp_path / "there", weights=tmp_path / "stored", laboratory=tmp_path / "stored")
    results = [result for _, result in training.STAGES.values() if (tmp_path / "there" / result).exists()]
    assert results == ["text/final", layer_stages.MOTION_ADAPTER]
    assert (tmp_path / "there" / "control" / "canny.safetensors").exists()


class ToyUNet(nn.Module):
    """A network that U-Net batches pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.mix(x)


def toy_loss(net, batch):
    x0, noise, weight, *_ = batch
    return {"noise": ((net(x0) - noise).square().mean(1) * weight).mean()}


def test_a_resumed_training_has_the_same_next_loss(shards, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "LOG_SECONDS", 0.0)
    plan = StagePlan(minutes=1, lr=1e-2, batch=4, steps=6, warmup=2, decay=0.25, report_steps=100)

    def train(folder, stop=None):
        folder.mkdir(exist_ok=True)
        count = growing_pool.image_count_ledger(shards, folder / "ledger.jsonl", plan.steps)
        sample_batch = unet.unet_batches_from(
            growing_pool.shard_fetcher(shards),
            count,
            Schedule.from_config(unet.SCHEDULER),
            4,
            np.zeros(48, np.int16),
        )

        def interruptible(rng, progress):
            if stop is not None and round(progress * plan.steps) == stop:
                raise KeyboardInterrupt
            return sample_batch(rng, progress)

        torch.manual_seed(0)
        loop.train_loop(ToyUNet(), plan, folder, sample_batch=interruptible, loss=toy_loss, report=lambda net: {})
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return {line["step"]: line["noise"] for line in lines if "noise" in line}

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", stop=3)
    checkpoint = torch.load(tmp_path / "interrupted" / "checkpoint.pt", weights_only=True)  # refuses classes of ours
    assert checkpoint["step"] == 3
    resumed = train(tmp_path / "interrupted")
    assert resumed == pytest.approx(whole, rel=1e-4)
