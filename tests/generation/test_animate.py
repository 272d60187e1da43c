"""`generate` and `animate` with video models: their defaults, image conditions and errors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models.conftest import sd
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.models.conditioning import resampler
from kineograph.models.conditioning.image_encoder import (
    GREY,
    LAST,
    ImageEncoder,
    crop_to_size,
    crop_to_square,
    stretch_to_square,
)
from kineograph.models.conditioning.resampler import ResamplerConfig
from kineograph.models.model import Model
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

FEW = {"num_inference_steps": 2, "seed": 3}
LAYERS = TransformerConfig(head_width=8, relative=4)
CONFIG = TemporalConfig(
    num_frames=6, layers=((Site("conv_in"), LAYERS), (Site("transformer"), LAYERS)), frame_rate=True, noise_ratio=1.0
)


def randomised(layers: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for weight in layers.parameters():
        nn.init.normal_(weight, std=0.05)
    return layers.eval()


@pytest.fixture(scope="module")
def model() -> Model:
    """A video model."""
    image = kg.load(sd())
    unet = image.net.image_unet
    return replace(image, name="tiny", net=VideoUNet(unet, randomised(TemporalLayers(unet, CONFIG))))


@pytest.fixture(scope="module")
def animator() -> Model:
    """A video model that takes images."""
    image = kg.load(sd())
    unet, width = image.net.image_unet, image.net.image_unet.config.cross_attention_dim
    sizes = ResamplerConfig(reads=16, width=16, gives=width, tokens=4, depth=1, heads=2, head_width=8)
    torch.manual_seed(0)
    resampler.add_resampler(unet, sizes)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPVisionModel(CLIPVisionConfig(**small, image_size=16, patch_size=8)).eval()
    net = VideoUNet(unet, randomised(TemporalLayers(unet, CONFIG)))
    return replace(
        image, name="animator", net=net, image_encoder=ImageEncoder(encoder, LAST, stretch_to_square, empty_color=GREY)
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("one", "other"):
        Image.fromarray(rng.integers(255, size=(24, 40, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return str(folder / "one.png"), str(folder / "other.png")


def test_a_video_model_decides_method_length_and_frame_rate(model: Model) -> None:
    video = kg.generate(model, "a fish", **FEW)
    assert (len(video.frames), video.fps, video.settings["method"]) == (6, 8.0, "videocrafter")
    assert video.settings["sampler"] == "ddim"


def test_the_frame_rate_is_a_condition(model: Model) -> None:
    slow, fast = (kg.generate(model, "a fish", fps=fps, **FEW).frames for fps in (4, 16))
    assert not np.array_equal(slow, fast)


def test_more_frames_than_it_was_trained_on_are_sampled_in_windows(model: Model) -> None:
    long = kg.generate(model, "a fish", num_frames=11, **FEW)
    assert len(long.frames) == 11
    with pytest.warns(InputWarning, match="trained on 6 frames at once, and a window of 11") as told:
        at_once = kg.generate(model, "a fish", num_frames=11, window=11, **FEW)
    assert len(told) == 1
    assert not np.array_equal(long.frames, at_once.frames)
    fits = kg.generate(model, "a fish", num_frames=5, window=9, **FEW)
    assert np.array_equal(fits.frames, kg.generate(model, "a fish", num_frames=5, **FEW).frames)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "euler-ancestral", "lcm"])
def test_every_sampler_is_deterministic(model: Model, sampler: str) -> None:
    one, again = (kg.generate(model, "a fish", num_frames=3, sampler=sampler, **FEW).frames for _ in range(2))
    assert np.array_equal(one, again)


def test_a_list_of_prompts_is_a_list_of_videos(model: Model) -> None:
    videos = kg.generate(model, ["a fish", "a cat"], num_frames=2, **FEW)
    assert [video.settings["seed"] for video in videos] == [3, 4]


def test_one_frame_is_the_image_models_image(model: Model) -> None:
    image = replace(model, net=VideoUNet(model.net.image_unet))
    alone = kg.generate(model, "a fish", num_frames=1, **FEW).frames
    as_image = kg.generate(image, "a fish", num_frames=1, camera="none", **FEW)
    assert alone.shape == as_image.frames.shape


def test_the_image_and_its_scale_change_the_video(animator: Model, pictures: tuple[str, str]) -> None:
    one, other = (kg.animate(animator, each, "a fish", num_frames=2, **FEW).frames for each in pictures)
    assert not np.array_equal(one, other)
    unseen = [kg.animate(animator, each, "a fish", num_frames=2, image_scale=0.0, **FEW).frames for each in pictures]
    assert np.array_equal(*unseen)


def test_a_pinned_first_frame_is_the_image_as_the_vae_decodes_it(model: Model, pictures: tuple[str, str]) -> None:
    video = kg.animate(model, pictures[0], "a fish", first_frame="pinned", num_frames=3, **FEW)
    picture = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1)[None].float() / 255
    known = model.decode(model.encode(crop_to_size(picture, *model.default_size)[:, None]))[0, 0]
    assert np.abs(video.frames[0] - 255 * known.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("clean", [False, True])
def test_a_model_that_was_trained_to_continue_frames_gets_the_pinned_one_without_noise(
    model: Model, pictures: tuple[str, str], monkeypatch: pytest.MonkeyPatch, clean: Any
) -> None:
    config = model.net.temporal.config.model_copy(update={"clean_frames": clean})
    layers = TemporalLayers(model.net.image_unet, config)
    layers.load_state_dict(model.net.temporal.state_dict())
    model = replace(model, net=VideoUNet(model.net.image_unet, layers.eval()))
    seen, forward = [], VideoUNet.forward

    def watched(net, z, *rest, **others):
        seen.append(z[:1, :2].clone())
        return forward(net, z, *rest, **others)

    monkeypatch.setattr(VideoUNet, "forward", watched)
    given: dict[str, Any] = {} if clean else {"first_frame": "pinned"}
    video = kg.animate(model, pictures[0], "a fish", num_frames=3, **FEW, **given)
    assert video.settings["first_frame"] == "pinned", "the default of a model that was trained so"
    picture = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1)[None].float() / 255
    known = model.encode(crop_to_size(picture, *model.default_size)[:, None])[0, 0].flatten()
    likeness = [torch.corrcoef(torch.stack([known, z[0, 0].flatten()]))[0, 1] for z in seen]
    assert bool(min(likeness) > 0.999) is clean


def test_a_video_records_its_image(animator: Model, pictures: tuple[str, str]) -> None:
    video = kg.animate(animator, pictures[0], "a fish", num_frames=2, **FEW)
    assert video.settings["image"] == pictures[0]
    assert len(video.settings["read"][pictures[0]]) == 64


def test_options_that_exclude_each_other_are_refused(model: Model, pictures: tuple[str, str]) -> None:
    image = kg.load(sd())
    with pytest.raises(InputError, match="image model without temporal layers"):
        kg.generate(image, "a fish", method="videocrafter", **FEW)
    with pytest.raises(InputError, match="is a video model"):
        kg.generate(model, "a fish", method="text2video-zero", **FEW)
    with pytest.raises(InputError, match="with videocrafter the motion is that of the prompt"):
        kg.generate(model, "a fish", camera="pan:12,12", **FEW)
    with pytest.raises(InputError, match="takes no images"):
        kg.animate(model, pictures[0], "a fish", **FEW)
    with pytest.raises(InputError, match="there is no image"):
        kg.animate(model, "nowhere.png", "a fish", first_frame="pinned", **FEW)
    with pytest.raises(InputError, match="share 0 to 3"):
        kg.generate(model, "a fish", window=4, overlap=4, num_frames=9, **FEW)


def test_a_file_that_is_no_image_is_named(model: Model, tmp_path) -> None:
    (tmp_path / "fish.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"fish\.png is not an image"):
        kg.animate(model, tmp_path / "fish.png", "a fish", first_frame="pinned", **FEW)


def test_images_of_any_shape_are_cropped_or_resized() -> None:
    wide = torch.zeros(1, 3, 20, 60)
    wide[..., 20:40] = 1
    assert crop_to_size(wide, 10, 10).shape == (1, 3, 10, 10) and crop_to_size(wide, 10, 10).mean() > 0.9
    assert crop_to_square(wide, 16).shape == (1, 3, 16, 16)
    assert 0.2 < stretch_to_square(wide, 16).mean() < 0.5
