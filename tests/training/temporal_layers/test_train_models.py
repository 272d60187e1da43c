# ruff: noqa: F811 (a fixture that comes from another file)
"""Models that can be trained: video models, image-to-video models and SDXL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.conftest import sd, sdxl_folder  # noqa: F401
from tiny_video_training import ONE, both, told, trained
from tiny_videos import two_levels, videocrafter
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from kineograph.errors import InputError
from kineograph.media.video import open_video
from kineograph.models.conditioning import resampler
from kineograph.models.conditioning.image_encoder import GREY, LAST, ImageEncoder, stretch_to_square
from kineograph.models.conditioning.resampler import ResamplerConfig
from kineograph.models.loading.components import components_from_pipeline
from kineograph.models.loading.load import load
from kineograph.models.loading.save import save
from kineograph.training import load_weights
from kineograph.training.temporal_layers import VideoTrainingSettings, prepare_training
from kineograph.training.temporal_layers import run as running
from kineograph.training.temporal_layers.batches import VideoBatch, denoising_loss
from kineograph.training.temporal_layers.latent_cache import cached_latent_encoder, latent_encoder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return both(tmp_path_factory.mktemp("data"))


def parts(**settings: object) -> object:
    """A tiny video model's, with these temporal settings."""
    net = videocrafter(two_levels(), **settings)
    return components_from_pipeline(sd())._replace(unet=net.image_unet, temporal=net.temporal)


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(parts(frame_rate=True, noise_ratio=2.0), tmp_path_factory.mktemp("video") / "model")


@pytest.fixture(scope="module")
def animator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = parts(frame_rate=True)
    sizes = ResamplerConfig(reads=16, width=16, gives=32, tokens=4, depth=1, heads=2, head_width=8)
    torch.manual_seed(0)
    resampler.add_resampler(whole.unet, sizes)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPVisionModel(CLIPVisionConfig(**small, image_size=16, patch_size=8)).eval()
    reader = ImageEncoder(encoder, LAST, stretch_to_square, empty_color=GREY)
    return save(whole._replace(image_encoder=reader), tmp_path_factory.mktemp("animator") / "model")


def first_batch(settings: VideoTrainingSettings) -> tuple[running.PreparedTraining, VideoBatch]:
    """Return a prepared training and its first batch of videos."""
    start = prepare_training(settings)
    draw = running.stage_batch_loader(start.stages[0], latent_encoder(start.model), {})
    return start, next(
        each for each in (draw(step, range(2 * step, 2 * step + 2)) for step in range(2)) if each.x0.shape[1] > 1
    )


def touched(start: running.PreparedTraining, batch: VideoBatch) -> dict[str, Tensor]:
    """Return the gradients that are not 0, by the names of the trained weights."""
    named = {name: weight for name, weight in start.model.net.named_parameters() if weight.requires_grad}
    loss = denoising_loss(start.model, 3, 1.0)(start.model.net, batch, 0)["video"]
    found = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return {name: each for name, each in zip(named, found, strict=True) if each is not None and each.abs().sum() > 0}


@torch.no_grad()
def came_to(start: running.PreparedTraining, batch: VideoBatch) -> float:
    return float(denoising_loss(start.model, 3, 1.0)(start.model.net, batch, 0)["video"])


@pytest.mark.slow
def test_a_video_model_keeps_its_temporal_layers(video_folder: Path, data: Path, tmp_path: Path) -> None:
    settings = told(video_folder, data, tmp_path / "out", layers=None, noise_ratio=None, stages=ONE)
    before = load(video_folder, device="cpu", dtype="float32").net.state_dict()
    start = prepare_training(settings)
    assert all(torch.equal(value, before[name]) for name, value in start.model.net.state_dict().items())
    assert start.temporal.noise_ratio == 2.0 and start.temporal.num_frames == 3
    trained(settings)
    layers = load(tmp_path / "out" / "final", device="cpu", dtype="float32").temporal
    assert layers == start.temporal
    with pytest.raises(InputError, match="has temporal layers of its own: leave layers out"):
        prepare_training(told(video_folder, data, tmp_path / "out"))


def test_an_image_to_video_model_gets_the_first_frame(animator_folder: Path, data: Path, tmp_path: Path) -> None:
    trains = {"layers": None, "trained": ["*_ip.*", "temporal.*"], "caption_dropout": 0.5, "stages": ONE}
    start, batch = first_batch(told(animator_folder, data, tmp_path / "out", **trains))
    assert batch.first is not None and batch.first.shape == (2, 3, 16, 16) and batch.first.dtype == torch.uint8
    near = start.model.encode(batch.first[:, None].float() / 255)
    assert torch.allclose(near, batch.x0[:, :1], atol=1e-4)
    told_all = batch._replace(dropped=torch.tensor([False, False]))
    assert any("to_v_ip" in name for name in touched(start, told_all))
    untold = batch._replace(dropped=torch.tensor([True, True]))
    grey = told_all._replace(first=torch.full_like(batch.first, 128))  # nearly what stands for no picture
    seen, unseen, like_unseen = (came_to(start, each) for each in (told_all, untold, grey))
    assert unseen == pytest.approx(like_unseen, rel=1e-3) and abs(seen - unseen) > 2 * abs(unseen - like_unseen)


def test_the_first_frame_is_cached_with_the_latents(animator_folder: Path, data: Path, tmp_path: Path) -> None:
    cached = {"layers": None, "latent_cache": str(tmp_path / "cache"), "stages": ONE}
    start = prepare_training(told(animator_folder, data, tmp_path / "out", **cached))
    looks = [
        running.clip_loaders(start.stages[0], cached_latent_encoder(start.model, tmp_path / "cache"), {})["video"](
            0, 0, 2
        )
        for _ in range(2)
    ]
    assert torch.equal(looks[0].first, looks[1].first) and torch.equal(looks[0].latents, looks[1].latents)


def test_validation_videos_of_an_image_to_video_model(animator_folder: Path, data: Path, tmp_path: Path) -> None:
    drawn = {"prompts": ["a fish"], "images": [str(data / "pictures" / "0.png")], "num_inference_steps": 2}
    settings = told(animator_folder, data, tmp_path / "out", layers=None, stages=ONE, validation=drawn)
    (sample,) = trained(settings)[-1].samples
    assert open_video(sample).settings["image"] == drawn["images"][0]


def test_invalid_validation_videos_are_refused_before_training(video_folder: Path, data: Path, tmp_path: Path) -> None:
    image = {"prompts": ["a fish"], "images": [str(data / "pictures" / "0.png")]}
    settings = told(video_folder, data, tmp_path / "out", layers=None, stages=ONE, validation=image)
    with pytest.raises(InputError, match="takes no images"):
        prepare_training(settings)
    with pytest.raises(ValueError, match=r"validation\.fps"):
        told(video_folder, data, tmp_path / "out", stages=ONE, validation={"prompts": ["a fish"], "fps": 1000.0})
    assert not (tmp_path / "out").exists()


def test_the_image_projection_can_be_trained(animator_folder: Path, data: Path, tmp_path: Path) -> None:
    learns = ["image_unet.*_ip.*", "image_unet.encoder_hid_proj*"]
    start, batch = first_batch(told(animator_folder, data, tmp_path / "out", layers=None, trained=learns))
    shown = batch._replace(dropped=torch.zeros(len(batch.dropped), dtype=torch.bool))
    assert any("encoder_hid_proj" in name for name in touched(start, shown))


@pytest.mark.slow
def test_sdxl_is_conditioned_on_size_and_frame_rate(sdxl_folder: Path, data: Path, tmp_path: Path) -> None:
    settings = told(sdxl_folder, data, tmp_path / "out", stages=ONE, caption_dropout=0.0)
    start, batch = first_batch(settings)
    said = start.model.prompt(["film 0"], size=(16, 16), fps=5.0)
    assert batch.embedding.shape[1] == said.embedding.shape[1]
    assert torch.equal(batch.embedding[:, 32:-1], said.embedding[:, 32:-1].expand(2, -1))
    assert set(batch.embedding[:, -1].tolist()) <= {5.0, 10.0}
    assert len(trained(settings)) == 2
    assert load_weights(settings.output / "stage-1")
