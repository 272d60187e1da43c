"""Noise and prompts as tensors, and lists of seeds, generators and negative prompts, as diffusers' users pass them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation.test_two_models import video  # noqa: F401
from models.conftest import sd, sdxl

import kineograph as kg
from kineograph import noise
from kineograph.errors import InputError
from kineograph.generation.call import draw_seeds
from kineograph.models.model import Model

FEW = {"num_frames": 2, "num_inference_steps": 3}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Model:
    return kg.load(sd())


@pytest.fixture(scope="module")
def usual(model: Model) -> kg.Video:
    return kg.generate(model, "a fish", seed=3, **FEW)


def close(a: kg.Video, b: kg.Video) -> bool:
    """Return True for frames that differ by a grey level at most, as those of a batch may."""
    return int(np.abs(a.frames.astype(int) - b.frames).max()) <= 1


def own_noise(model: Model, seed: int = 3, frames: int = 2) -> torch.Tensor:
    return noise.independent(seed, range(frames), (1, *model.latent_shape(*model.default_size)))


# --- lists


def test_each_video_has_its_seed_of_a_list(model: Model, usual: kg.Video) -> None:
    first, second = kg.generate(model, ["a fish", "a fish"], seed=[9, 3], **FEW)
    assert [each.settings["seed"] for each in (first, second)] == [9, 3]
    assert close(second, usual) and not close(first, usual)
    again = kg.generate(model, "a fish", seed=[9, 3], num_videos_per_prompt=2, **FEW)
    assert [each.digest for each in again] == [first.digest, second.digest]


def test_each_video_has_its_generator_of_a_list(model: Model) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    seeds = [draw_seeds(torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    videos = kg.generate(model, "a fish", generator=generators, num_videos_per_prompt=2, **FEW)
    assert [each.settings["seed"] for each in videos] == seeds


def test_each_prompt_has_its_negative_prompt_of_a_list(model: Model) -> None:
    videos = kg.generate(
        model, ["a fish", "a cat"], negative_prompt=["a dog", ""], seed=[1, 2, 1, 2], num_videos_per_prompt=2, **FEW
    )
    assert [each.settings.get("negative_prompt") for each in videos] == ["a dog", "a dog", None, None]
    assert close(videos[1], kg.generate(model, "a fish", negative_prompt="a dog", seed=2, **FEW))
    assert close(videos[2], kg.generate(model, "a cat", seed=1, **FEW))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": [1, 2, 3]}, "`seed` has 3 values, and 2 are needed"),
        ({"seed": [1, -2]}, "`seed` is .*whole number from 0 to .* not \\[1, -2\\]"),
        ({"negative_prompt": ["a", "b", "c"]}, "`negative_prompt` has 3 values, and 2 are needed"),
        ({"generator": [torch.Generator()]}, "`seed` has 1 values, and 2 are needed"),
    ],
)
def test_a_list_of_another_length_is_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kg.generate(model, ["a fish", "a cat"], **FEW, **options)


# --- encoded prompts


def test_an_encoded_prompt_gives_the_video_of_its_text(model: Model, usual: kg.Video) -> None:
    encoded = model.prompt(["a fish", "a dog"]).tokens
    made = kg.generate(model, prompt_embeds=encoded[:1], seed=3, **FEW)
    assert np.array_equal(made.frames, usual.frames)
    assert "tensor in memory" in made.settings["prompt"]
    two = kg.generate(model, prompt_embeds=encoded, seed=3, **FEW)
    assert len(two) == 2 and close(two[0], usual)
    without = kg.generate(model, "a fish", negative_prompt="a dog", seed=3, **FEW)
    negative = kg.generate(model, "a fish", negative_prompt_embeds=encoded[1:], seed=3, **FEW)
    assert np.array_equal(negative.frames, without.frames)


def test_sdxl_takes_the_pooled_embedding_too() -> None:
    pipe = sdxl()
    model = kg.load(pipe)
    tokens, negative, pooled, negative_pooled = pipe.encode_prompt("a fish")
    usual = kg.generate(model, "a fish", seed=3, **FEW)
    made = kg.generate(
        model,
        prompt_embeds=tokens,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
        seed=3,
        **FEW,
    )
    assert close(made, usual)
    with pytest.raises(InputError, match="`pooled_prompt_embeds` belong to `prompt_embeds` of SDXL"):
        kg.generate(model, prompt_embeds=tokens, **FEW)


def test_encoded_prompts_are_read_by_every_front_door(model: Model, tmp_path: Path) -> None:
    encoded = model.prompt(["a fish"]).tokens
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    edited = kg.edit(model, frames, prompt_embeds=encoded, strength=0.5, seed=3, num_inference_steps=3)
    again = kg.edit(model, frames, "a fish", strength=0.5, seed=3, num_inference_steps=3)
    assert np.array_equal(edited.frames, again.frames)
    moved = kg.animate(model, frames[0], prompt_embeds=encoded, first_frame="pinned", seed=3, **FEW)
    assert np.array_equal(
        moved.frames, kg.animate(model, frames[0], "a fish", first_frame="pinned", seed=3, **FEW).frames
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a fish", "prompt_embeds": torch.zeros(1, 7, 32)}, "`prompt` and `prompt_embeds` say the same"),
        ({"prompt_embeds": torch.zeros(7, 32)}, r"`prompt_embeds` is \[b n d\], for b prompts, not \[7, 32\]"),
        ({"prompt_embeds": torch.zeros(1, 7, 31)}, r"`prompt_embeds` are \[b n 32\] for this model, not \[1, 7, 31\]"),
        ({}, "there is no `prompt`: describe the video"),
        ({"pooled_prompt_embeds": torch.zeros(1, 7)}, "`pooled_prompt_embeds` belongs to `prompt_embeds`"),
        (
            {"prompt": "a fish", "negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 7, 32)},
            "`negative_prompt` and `negative_prompt_embeds` say the same",
        ),
        (
            {"prompt": "a fish", "guidance_scale": 1, "negative_prompt_embeds": torch.zeros(1, 7, 32)},
            "`negative_prompt_embeds` does nothing here",
        ),
    ],
)
def test_encoded_prompts_that_do_not_fit_are_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kg.generate(model, **FEW, **options)


# --- initial noise


def test_latents_are_the_initial_noise(model: Model, usual: kg.Video) -> None:
    given = kg.generate(model, "a fish", latents=own_noise(model), seed=3, **FEW)
    assert np.array_equal(given.frames, usual.frames)
    other = kg.generate(model, "a fish", latents=own_noise(model, 4), seed=3, **FEW)
    assert not close(other, usual)


def test_latents_of_one_frame_are_those_of_all(video: Model) -> None:  # noqa: F811
    one = own_noise(video, frames=1)
    shared = kg.generate(video, "a fish", latents=one, seed=3, **FEW)
    repeated = kg.generate(video, "a fish", latents=one.expand(-1, 2, -1, -1, -1), seed=3, **FEW)
    assert np.array_equal(shared.frames, repeated.frames)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_latents_begin_as_those_of_diffusers(model: Model, steps: int) -> None:
    latents, pipe = own_noise(model, 8, frames=1), sd()
    height, width = model.default_size
    asked = {"latents": latents[:, 0], "height": height, "width": width, "num_inference_steps": steps}
    image = pipe("a fish", **asked, output_type="np")
    frame = kg.generate(model, "a fish", latents=latents, num_frames=1, camera="none", num_inference_steps=steps)
    assert np.abs(frame.frames[0] / 255 - image.images[0]).max() < 1.5 / 255


@pytest.mark.parametrize("shape", [(1, 4, 2, 32, 32), (2, 2, 4, 32, 32), (1, 2, 4, 9, 9), (4, 8, 8)])
def test_latents_of_another_shape_are_refused(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"`latents` are \[b f c h w\]: \(1, 2, 4, .* transposed"):
        kg.generate(model, "a fish", latents=torch.zeros(shape), **FEW)


@pytest.mark.parametrize("name", ["prompt_embeds", "latents"])
def test_a_video_of_tensors_says_that_it_cannot_be_replayed(model: Model, tmp_path: Path, name: str) -> None:
    given: dict[str, Any] = {"latents": {"prompt": "a fish", "latents": own_noise(model)}}.get(
        name, {"prompt_embeds": model.prompt(["a fish"]).tokens}
    )
    path = kg.generate(model, **given, seed=3, **FEW).save(tmp_path / "fish.mp4")
    with pytest.raises(InputError, match="was generated from `.*tensor in memory .*, which its settings do not hold"):
        kg.replay(path, model=model)


def test_encoded_prompts_of_other_lengths_than_later_texts_are_refused(model: Model) -> None:
    encoded = model.prompt(["a fish"], num_chunks=2).tokens
    with pytest.raises(InputError, match="different numbers of tokens"):
        kg.generate(model, prompt_embeds=encoded, prompt_at={1: "a dog"}, **FEW)
