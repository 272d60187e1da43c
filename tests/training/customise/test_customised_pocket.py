"""A customised pocket video model together with LoRAs, control maps, clips and VideoElevator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import kineograph as kg
from kineograph.errors import InputWarning
from kineograph.media.video import Video
from kineograph.methods import still_moving
from kineograph.models.formats import adapter_files, lora
from kineograph.models.model import Model
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise import default_video_settings, networks, with_changes
from kineograph.training.customise.networks import lora_state_dict
from kineograph.training.customise.video_model import underlying_image_model

SUBJECT = "sks cat"
SAY = f"a {SUBJECT} in the snow"
FEW = {"num_inference_steps": 2, "seed": 3, "num_frames": 2, "guidance_scale": 3.0}


def random_lora(video: Model, seed: int) -> dict[str, torch.Tensor]:
    """Return a LoRA of random weights with the default ranks and layers."""
    chosen = with_changes(default_video_settings(video, "subject").image, {"training": {"seed": seed}})
    begun = networks.trainable_copy(underlying_image_model(video), chosen)
    torch.manual_seed(seed)
    for name, weight in begun.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)
    return lora_state_dict(begun)


@pytest.fixture(scope="module")
def pocket() -> Model:
    return kg.load("pocket-video", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def cat(pocket: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings, net = default_video_settings(pocket, "subject"), pocket.net
    ready = still_moving.attach(VideoUNet(net.image_unet, net.temporal), spatial=settings.spatial)
    for weight in ready.spatial_adapter.parameters():
        nn.init.normal_(weight, std=0.05)
    file = tmp_path_factory.mktemp("adapters") / "cat.safetensors"
    return adapter_files.save_customised_adapter(
        ready, random_lora(pocket, 1), file, subject=SUBJECT, image="pocket-video", video="pocket-video"
    )


@pytest.fixture(scope="module")
def mine(cat: Path) -> Model:
    return kg.load("pocket-video", adapter=cat, device="cpu", dtype="float32")


def test_the_file_is_at_most_a_twentieth_of_the_network(cat: Path, pocket: Model) -> None:
    """Both are counted in float16."""
    whole = 2 * sum(
        weight.numel() for part in (pocket.net.image_unet, pocket.net.temporal) for weight in part.parameters()
    )
    assert cat.stat().st_size < 0.05 * whole
    with safe_open(cat, "pt") as file:
        assert json.loads(file.metadata()[adapter_files.HEADER])["subject"] == SUBJECT


@pytest.mark.slow
def test_with_a_lora_beside(cat: Path, mine: Model, pocket: Model, tmp_path: Path) -> None:
    save_file(random_lora(pocket, 2), tmp_path / "style.safetensors")
    both = kg.load("pocket-video", adapter=cat, lora=tmp_path / "style.safetensors", device="cpu", dtype="float32")
    alone = kg.load("pocket-video", lora=tmp_path / "style.safetensors", device="cpu", dtype="float32")
    videos = [kg.generate(each, SAY, **FEW).frames for each in (both, mine)]
    with pytest.warns(InputWarning, match="never seen the words sks"):  # but for the model that was customised to it
        videos.append(kg.generate(alone, SAY, **FEW).frames)
    assert not any(np.array_equal(one, other) for k, one in enumerate(videos) for other in videos[:k])


def test_a_model_knows_the_words_that_its_lora_taught(pocket: Model, tmp_path: Path) -> None:
    header = {lora.CUSTOMISE_HEADER: json.dumps({"name": SUBJECT, "words": ["sks"]})}
    save_file(random_lora(pocket, 2), tmp_path / "cat.safetensors", header)
    taught = kg.load(lora=tmp_path / "cat.safetensors", device="cpu")
    assert taught.unknown_words("a sks cat on Mars") == ["mars"]


@pytest.mark.slow
def test_clip_after_clip_and_along_a_control_map(mine: Model, tmp_path: Path) -> None:
    plain = kg.generate(mine, SAY, **FEW)
    assert len(kg.generate(mine, SAY, clips=2, **FEW).frames) == 4
    maps = Video(np.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), dtype=np.uint8), 8).save(tmp_path / "maps")
    steered = kg.generate(mine, SAY, control={"depth-map": maps}, **FEW)
    assert not np.array_equal(steered.frames, plain.frames)


@pytest.mark.slow
def test_under_video_elevator(mine: Model, pocket: Model) -> None:
    image = kg.load("pocket", device="cpu", dtype="float32")
    few = {"refine_at": (0.5,), "video_steps": 1, "video_prompt": SAY, **FEW}
    say = "a cat in the snow"
    drawn = [kg.generate(image, say, video_model=second, **few).frames for second in (mine, pocket)]
    assert not np.array_equal(*drawn)


@pytest.mark.slow
def test_the_example_that_ships() -> None:
    fox, without = (kg.load("pocket-video", adapter=each, device="cpu") for each in ("pocket-fox", None))
    assert fox.subject == SUBJECT and fox.settings["adapter"] == "pocket-fox"
    drawn, cat = (
        kg.generate(*each, **FEW).frames.mean((0, 1, 2)) for each in ((fox, SAY), (without, "a cat in the snow"))
    )
    assert drawn[0] - drawn[2] > cat[0] - cat[2], "it is orange"
    files = POCKET / "fox" / "adapter.safetensors", POCKET / "video" / "motion_adapter.safetensors"
    assert sum(file.stat().st_size for file in files) <= 4e6
