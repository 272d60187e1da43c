"""File formats of the long training: names of files and keys are fixed, since a running training reads its own files.

The digests, the losses and `checkpoint_at_step_3.pt` were made by the code before its names were changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph.models.pocket.models import open_pocket_video
from kineograph.models.pocket.networks import initial_controlnet, initial_editing_unet, make_trainable
from kineograph.models.unet.video_unet import VideoUNet
from kineograph_lab.recipe import loop
from kineograph_lab.recipe.image.controlnets import UNetWithControlNet
from kineograph_lab.recipe.image.edit import EditingUNet
from kineograph_lab.recipe.long import growing_pool, text_encoder, training
from kineograph_lab.recipe.video.degraded import DegradedVideoUNet
from kineograph_lab.recipe.video.image_to_video import ImageToVideoUNet, add_image_attention
from kineograph_lab.recipe.video.motion_adapter import FrozenClipUNet
from kineograph_lab.recipe.video.temporal_layers import SPACE_TIME_CONFIG, VIDRD_CONFIG, TemporalLayersUNet
from kineograph_lab.recipe.video.text_to_video import TEXT_TO_VIDEO, TextToVideoUNet

CHECKPOINT = Path(__file__).with_name("checkpoint_at_step_3.pt")
LOSSES = {4: 0.92593, 5: 0.90264, 6: 0.73886}  # of the steps after it
SHOT_KEYS = {"scene", "style", "things", "camera", "backdrop"}
SUBJECT_KEYS = {"kind", "colour", "individual", "x", "y", "size", "facing", "motion", "tilt"}


def small_network() -> nn.Module:
    """A network with weights for AdamW, and two for Muon, one a core."""
    layers = (nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1))
    return nn.Sequential(*layers, nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)).to(memory_format=torch.channels_last)


def sample_small_batch(rng: np.random.Generator, progress: float) -> loop.Batch:
    x = torch.from_numpy(rng.standard_normal((4, 4, 4, 4), np.float32))
    return x, x.flip(1)


def squared_error(net: nn.Module, batch: loop.Batch) -> dict[str, torch.Tensor]:
    return {"squared": (net(batch[0]).float() - batch[1]).square().mean()}


def test_a_checkpoint_of_the_code_before_the_renames_resumes_with_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(loop.os, "cpu_count", lambda: 2)
    shutil.copyfile(CHECKPOINT, tmp_path / "checkpoint.pt")
    plan = loop.StagePlan(minutes=1, lr=1e-2, batch=4, steps=6, warmup=2, decay=0.25, report_steps=100)
    net, report = small_network(), lambda net: {}
    loop.train_loop(net, plan, tmp_path, sample_batch=sample_small_batch, loss=squared_error, report=report)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["step"]: line["squared"] for line in lines if "squared" in line} == pytest.approx(LOSSES, rel=1e-3)

    before, after = (torch.load(path, weights_only=True) for path in (CHECKPOINT, tmp_path / "checkpoint.pt"))
    assert list(before) == list(after) == ["net", "average", "ways", "step", "seconds"]
    assert list(before["net"]) == list(after["net"])
    states = [[{k: set(v) for k, v in way["state"].items()} for way in each["ways"]] for each in (before, after)]
    assert states[0] == states[1] and len(states[0]) == 3, "AdamW, and Muon twice"


def video_unet() -> VideoUNet:
    opened = open_pocket_video(POCKET)
    return VideoUNet(opened.unet, opened.temporal)


def image_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(POCKET / "unet", dtype=torch.float32)


def text_net() -> nn.Module:
    return text_encoder.TextFactsNet(CLIPTextModel.from_pretrained(POCKET / "text_encoder"))


def control_net() -> nn.Module:
    return UNetWithControlNet(image_unet(), make_trainable(initial_controlnet(image_unet())))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "count", "digest"),
    [
        (text_net, 88, "ca9c44169ba999a7"),
        (image_unet, 326, "b494d5f275f463fa"),
        (control_net, 608, "6f3a836ab5e4d349"),
        (lambda: EditingUNet(make_trainable(initial_editing_unet(image_unet()))), 584, "454f700af44537dd"),
        (lambda: TextToVideoUNet(image_unet(), TEXT_TO_VIDEO), 700, "d39b747ee590a70f"),
        (lambda: ImageToVideoUNet(add_image_attention(video_unet())), 611, "cc1ee0f225e1d45e"),
        (lambda: FrozenClipUNet(video_unet()), 674, "840996c043b3f618"),
        (lambda: TemporalLayersUNet(video_unet(), VIDRD_CONFIG), 665, "3676a413fa19a780"),
        (lambda: TemporalLayersUNet(video_unet(), SPACE_TIME_CONFIG), 638, "d6081c061639b86a"),
        (lambda: DegradedVideoUNet(video_unet()), 762, "a99045f482ab5c55"),
    ],
    ids=(
        "text",
        "unet",
        "control",
        "edit",
        "text_to_video",
        "image_to_video",
        "motion_adapter",
        "vidrd",
        "space_time",
        "degraded",
    ),
)
def test_names_of_the_trained_weights(build: Callable[[], nn.Module], count: int, digest: str) -> None:
    names = sorted(build().state_dict())
    assert (len(names), hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]) == (count, digest)


def test_files_and_keys_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_pool, "SHARD", 2)
    monkeypatch.setattr(growing_pool, "VAE_BATCH", 2)
    monkeypatch.setattr(growing_pool, "CLIP_SHARD", 1)
    encode, tokenizer = (lambda images: np.zeros((len(images), 8, 16, 16), np.float16)), load_tokenizer()
    growing_pool.render_image_shards(tmp_path / "images", encode, tokenizer, 1, 0, lambda: True)
    growing_pool.render_clip_shards(tmp_path / "films", encode, 1, 0, lambda: True)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        "00000-facts.jsonl", "00000-latents.npy", "00000-subjects.npy", "00000-words.npy",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "films").iterdir()} == {"00000-facts.jsonl", "00000-latents.npy"}
    for folder, others in (("images", set()), ("films", {"fps"})):
        fact = json.loads((tmp_path / folder / "00000-facts.jsonl").read_text().splitlines()[0])
        assert set(fact) == SHOT_KEYS | {"time", "captions"} | others
        assert set(fact["things"][0]) == SUBJECT_KEYS


def test_files_of_the_ledger_and_of_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_pool, "count_shards", lambda folder: 4)
    growing_pool.image_count_ledger(tmp_path, tmp_path / "ledger.jsonl", 1_000)(0.5)
    assert (tmp_path / "ledger.jsonl").read_text() == "[1, 4]\n"
    text_encoder.load_texts(tmp_path / "texts.npz", 0, 2, load_tokenizer())
    assert np.load(tmp_path / "texts.npz").files == ["words", "facts"]


def load_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(POCKET / "tokenizer")


def test_stages_and_their_results() -> None:
    assert {name: result for name, (_, result) in training.STAGES.items()} == {
        "text": "text/final",
        "unet": "unet/final",
        "control": "control/pose.safetensors",
        "edit": "edit.safetensors",
        "text_to_video": "text_to_video.safetensors",
        "image_to_video": "image_to_video.safetensors",
        "motion_adapter": "motion_adapter.safetensors",
        "vidrd": "vidrd.safetensors",
        "degraded": "degraded.safetensors",
        "space_time": "space_time.safetensors",
        "space_time_motion": "space_time_motion.safetensors",
    }
