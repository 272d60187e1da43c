"""VideoElevator by `generate`: two models, their options and errors."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Run
from models.conftest import sd
from tiny_videos import shaken

import kineograph as kg
from kineograph.errors import InputError
from kineograph.media.metadata import read_settings
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae.autoencoder import same_latent_space
from kineograph.noise import independent, partly_shared
from kineograph.samplers import ddim, final_latents

LAYERS = TransformerConfig(head_width=8, relative=4)
CONFIG = TemporalConfig(
    num_frames=4, layers=((Site("conv_in"), LAYERS), (Site("transformer"), LAYERS)), frame_rate=True
)
FEW = {"num_inference_steps": 6, "seed": 3, "method": "video-elevator"}
TWICE = {"refine_at": (0.9, 0.4), "video_steps": 2}


@pytest.fixture(scope="module")
def image() -> Model:
    return replace(kg.load(sd()), name="image")


@pytest.fixture(scope="module")
def video() -> Model:
    """A video model of another schedule, with the image model's VAE."""
    other = kg.load(sd())
    unet = other.net.image_unet
    levels = Schedule.from_config({**other.schedule.settings, "beta_end": 0.009})
    net = VideoUNet(unet, shaken(TemporalLayers(unet, CONFIG)))
    return replace(other, name="video", net=net, schedule=levels)


@pytest.fixture(scope="module")
def usual(image: Model, video: Model) -> np.ndarray:
    return kg.generate(image, "a fish", video_model=video, **FEW).frames


def test_the_video_has_the_video_models_length_and_frame_rate(image: Model, video: Model) -> None:
    made = kg.generate(image, "a fish", video_model=video, **TWICE, **FEW)
    assert (len(made.frames), made.fps) == (4, 8.0)
    assert made.settings["video_model"]["name"] == "video"
    assert made.settings["refine_at"] == [0.9, 0.4]
    plain = kg.generate(image, "a fish", video_model=video, refine_at=(), **FEW)
    assert not np.array_equal(made.frames, plain.frames)


def test_a_second_model_selects_the_method(image: Model, video: Model) -> None:
    made = kg.generate(image, "a fish", video_model=video, **TWICE, num_inference_steps=6, seed=3)
    assert made.settings["method"] == "video-elevator"


def test_without_refinement_it_is_the_image_model_with_first_frame_attention(image: Model, video: Model) -> None:
    asked = {**FEW, "num_frames": 3}
    made = kg.generate(image, "a fish", video_model=video, refine_at=(), **asked)
    told, blank = (
        image.bind(image.prompt([text]), frame_attention=kg.frame_attention.first) for text in ("a fish", "")
    )
    shape = (1, *image.latent_shape(*image.default_size))
    sigmas = image.schedule.sampling_sigmas(6)
    noise = partly_shared(1.0, 3, range(3), shape)
    start = sigmas[0] * image.schedule.initial_scale(sigmas[0])
    x0 = final_latents(ddim(kg.classifier_free_guidance(told, blank, 7.5), start * noise, sigmas))
    assert np.array_equal(made.frames, kg.Video.from_tensor(image.decode(x0)[0]).frames)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        {"renoise": "same-noise"},
        {"renoise": "fresh-noise"},
        {"inversion_steps": 1},
        {"drift_correction": True},
        {"low_pass": 0},
        {"low_pass_space": 1.0},
        {"video_guidance_scale": 1.0},
        {"video_prompt": "a car"},
        {"shared_noise": 0.0},
        {"video_steps": 1},
    ],
)
def test_every_option_has_an_effect(choice: dict, usual: np.ndarray, image: Model, video: Model) -> None:
    chosen = kg.generate(image, "a fish", video_model=video, **choice, **FEW)
    assert not np.array_equal(usual, chosen.frames)


def test_models_with_different_vaes_exchange_frames(
    image: Model, video: Model, caplog: pytest.LogCaptureFixture
) -> None:
    other = sd().vae
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    apart = replace(video, vae=other)
    assert same_latent_space(image.vae, video.vae) and not same_latent_space(image.vae, apart.vae)
    with caplog.at_level(logging.WARNING):
        made = kg.generate(image, "a fish", video_model=apart, **TWICE, **FEW)
    assert "exchange decoded frames" in caplog.text
    assert len(made.frames) == 4


@pytest.mark.slow
def test_a_lora_a_control_and_a_consistency_model_can_be_combined(image: Model, video: Model) -> None:
    """Each model has its own adapters and controls: both are bound before sampling."""
    quick = replace(video, net=VideoUNet(video.net.image_unet, _solved_by("lcm", video)))
    made = kg.generate(image, "a fish", video_model=quick, **TWICE, **FEW)
    assert len(made.frames) == 4
    assert not np.array_equal(made.frames, kg.generate(image, "a fish", video_model=video, **TWICE, **FEW).frames)


def _solved_by(sampler: str, video: Model) -> TemporalLayers:
    layers = TemporalLayers(video.net.image_unet, CONFIG.model_copy(update={"sampler": sampler}))
    assert video.net.temporal is not None
    layers.load_state_dict(video.net.temporal.state_dict())
    return layers.eval()


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (("image", None), "needs a second model"),
        (("image", "image"), "is an image model, and video-elevator needs a `video_model` with temporal layers"),
        (("video", "video"), "samples with an image model, and video is a video model"),
    ],
)
def test_errors_of_pairs_of_models(models, said, image: Model, video: Model) -> None:
    first, second = ({"image": image, "video": video, None: None}[name] for name in models)
    with pytest.raises(InputError, match=said):
        kg.generate(first, "a fish", video_model=second, **FEW)


def test_other_methods_have_no_use_for_a_second_model(image: Model, video: Model) -> None:
    with pytest.raises(InputError, match="text2video-zero has no use for a second model"):
        kg.generate(image, "a fish", video_model=video, method="text2video-zero")
    with pytest.raises(InputError, match="with video-elevator the motion is that of the prompt"):
        kg.generate(image, "a fish", video_model=video, camera="pan:4,4", **FEW)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"refine_at": (1.2,)}, "`refine_at` is a list, of which each is a number above 0 and at most 1, not .*1.2"),
        ({"refine_at": (float("nan"),)}, "`refine_at` is a list, of which each is a number"),
        ({"video_steps": 0}, "`video_steps` is a whole number from 1"),
        ({"low_pass": -1.0}, "`low_pass` is a number at least 0"),
        ({"shared_noise": -1.0}, "`shared_noise` is a number at least 0"),
        ({"renoise": "luck"}, "`renoise` is inversion or same-noise or fresh-noise"),
        ({"renoise": "same-noise", "drift_correction": True}, "corrects an inversion"),
        ({"renoise": "same-noise", "inversion_steps": 3}, "`inversion_steps` does nothing here"),
        ({"refine_at": (), "video_steps": 3}, "`video_steps` does nothing here: `refine_at` is empty"),
    ],
)
def test_errors_of_options(settings, said, image: Model, video: Model) -> None:
    with pytest.raises(InputError, match=said):
        kg.generate(image, "a fish", video_model=video, **settings)


def test_initial_noise_of_frame_k_depends_on_the_seed_and_k_only() -> None:
    shape = (1, 4, 8, 8)
    assert torch.equal(partly_shared(1.0, 3, range(2), shape), partly_shared(1.0, 3, range(5), shape)[:, :2])
    assert torch.equal(partly_shared(0.0, 3, range(2), shape), independent(3, range(2), shape))


@pytest.fixture(scope="module")
def folders(image: Model, video: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    at = tmp_path_factory.mktemp("models")
    return kg.save(image, at / "image"), kg.save(video, at / "video")


@pytest.mark.slow
def test_the_command_takes_two_models_and_replays(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = folders
    few = ["--steps", "6", "--device", "cpu", "--seed", 3, "--refine-at", "0.9,0.4", "--video-steps", 2]
    few += ["--renoise", "same-noise"]
    said = run("generate", "a fish", "--model", first, "--video-model", second, *few, "-o", "fish.gif")
    assert (said.status, said.out) == (0, "fish.gif\n"), said.err
    settings = read_settings(tmp_path / "fish.gif")
    assert settings["method"] == "video-elevator"
    assert settings["video_steps"] == 2
    assert settings["renoise"] == "same-noise"
    again = run("replay", "fish.gif", "--yes", "-o", "again.gif")
    assert again.status == 0 and "differ" not in again.err, again.err
    alone = run("generate", "a fish", "--model", first, "--method", "video-elevator")
    assert alone.status == 2 and "pass one as --video-model, such as pocket-video" in alone.err
    assert "a list of numbers" in run("generate", "a fish", "--video-model", second, "--refine-at", "half").err
