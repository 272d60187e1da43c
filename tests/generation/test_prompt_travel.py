"""Prompt travel: later frames have prompts of their own, and the text between two prompts is interpolated."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.conftest import sd, sdxl

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.generation.check import complete
from kineograph.generation.options import find_method
from kineograph.generation.recorded import recorded_request
from kineograph.generation.resolve import Inputs, resolve
from kineograph.models.conditioning.condition import Condition, interpolate_conditions
from kineograph.models.model import Model
from kineograph.models.temporal.config import ResamplingConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.plan import encode_prompts
from kineograph.samplers import final_latents

FISH, CAT = "a fish", "the cat"
FEW: dict[str, Any] = {"num_inference_steps": 2, "num_frames": 4, "seed": 1, "guidance_scale": 3.0}
CLOSE = 1e-4


@cache
def image_model() -> Model:
    return kg.load(sd())


@cache
def video_model() -> Model:
    """A video model with a frame rate, whose temporal layers are not the identity."""
    image = image_model()
    config = TemporalConfig(
        layers=((Site("transformer"), TransformerConfig(heads=2, positions=4)),), num_frames=4, frame_rate=True
    )
    torch.manual_seed(4)
    temporal = TemporalLayers(image.net.image_unet, config)
    for weight in temporal.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return replace(image, net=VideoUNet(image.net.image_unet, temporal).eval())


def latents(
    model: Model, prompts: tuple[str, ...] = (FISH,), *, second: Model | None = None, **options: Any
) -> torch.Tensor:
    plan = resolve(model, prompts, complete({**FEW, **options}), Inputs(), second)
    return final_latents(find_method(plan.method).run(plan).steps)


WAYS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "image model": (image_model, None, {}),
    "image model in chunks": (image_model, None, {"chunk_size": 3}),
    "video model": (video_model, None, {}),
    "video model in windows": (video_model, None, {"window": 3, "overlap": 1}),
    "two models": (image_model, video_model, {"refine_at": (0.5,), "video_steps": 1}),
    "smoothed background": (image_model, None, {"smooth_background": 0.5}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_prompt_everywhere_is_no_travel(way: str) -> None:
    first, second, options = WAYS[way]
    models = {"second": second() if second else None}
    plain = latents(first(), **models, **options)
    constant = latents(first(), **models, **options, prompt_at={1: FISH, 3: FISH})
    other = latents(first(), **models, **options, prompt_at={3: CAT})
    assert (constant - plain).abs().max() <= CLOSE * plain.std()
    assert (other - plain).abs().max() > 10 * CLOSE * plain.std()


def test_a_batch_shares_the_later_prompts() -> None:
    both = latents(video_model(), (FISH, CAT), prompt_at={2: CAT})
    alone = latents(video_model(), (CAT,), prompt_at={2: CAT}, seed=2)
    assert (both[1:] - alone).abs().max() <= CLOSE * alone.std()


def test_keyframes_have_their_own_tokens_and_others_lie_between() -> None:
    texts = {0: FISH, 4: CAT, 6: "fish and cat"}
    keyframes = {frame: image_model().prompt([text]) for frame, text in texts.items()}
    tokens = interpolate_conditions(keyframes, range(8)).tokens
    for frame, condition in keyframes.items():
        assert torch.equal(tokens[:, frame], condition.tokens)
    torch.testing.assert_close(tokens[:, 1], 0.75 * keyframes[0].tokens + 0.25 * keyframes[4].tokens)
    torch.testing.assert_close(tokens[:, 5], (keyframes[4].tokens + keyframes[6].tokens) / 2)
    assert torch.equal(tokens[:, 7], keyframes[6].tokens)


def test_frames_before_the_first_keyframe_have_its_text() -> None:
    keyframes = {2: image_model().prompt([FISH]), 4: image_model().prompt([CAT])}
    assert torch.equal(interpolate_conditions(keyframes, [0]).tokens[:, 0], keyframes[2].tokens)


def test_frames_are_counted_through_all_clips() -> None:
    plan = resolve(image_model(), (FISH,), complete({**FEW, "clips": 3, "prompt_at": {8: CAT}}), Inputs())
    parts = [encode_prompts(replace(plan, clip=clip), plan.model).tokens for clip in range(3)]
    keyframes = {0: plan.model.prompt([FISH]), 8: plan.model.prompt([CAT])}
    assert torch.equal(torch.cat(parts, dim=1), interpolate_conditions(keyframes, range(12)).tokens)


@pytest.mark.slow
def test_later_clips_follow_the_later_prompts() -> None:
    """No frame is skipped although the previous clip overwrites it: frames keep their numbers, and so their texts."""
    options = {**FEW, "clips": 2, "clip_overlap": 3, "clip_guidance": 0.5}
    plain = kg.generate(image_model(), FISH, **options)
    constant = kg.generate(image_model(), FISH, **options, prompt_at={6: FISH})
    other = kg.generate(image_model(), FISH, **options, prompt_at={6: CAT})
    assert np.abs(constant.frames.astype(int) - plain.frames).max() <= 1
    assert np.array_equal(other.frames[0], plain.frames[0])
    assert not np.array_equal(other.frames[4:], plain.frames[4:])


def test_sdxl_and_frame_rates_have_an_embedding_for_each_frame() -> None:
    model = kg.load(sdxl())
    keyframes = {frame: model.prompt([text]) for frame, text in ((0, FISH), (2, CAT))}
    condition = interpolate_conditions(keyframes, range(3))
    z = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model.net(z, 481.0, condition)
        for frame, alone in keyframes.items():
            wanted = model.net(z[:, frame : frame + 1], 481.0, alone)
            torch.testing.assert_close(together[:, frame : frame + 1], wanted, atol=1e-5, rtol=0)
    assert isinstance(condition, Condition)
    assert condition.embedding is not None and condition.embedding.shape[:2] == (1, 3)


def test_prompts_by_frame_are_the_option() -> None:
    by_frame = kg.generate(image_model(), {0: FISH, 2: CAT}, **FEW)
    option = kg.generate(image_model(), FISH, prompt_at={2: CAT}, **FEW)
    assert np.array_equal(by_frame.frames, option.frames)
    assert by_frame.settings["prompt_at"] == {"2": CAT}
    assert by_frame.settings["prompt"] == FISH


def test_a_video_records_its_prompts(tmp_path: Path) -> None:
    video = kg.generate(image_model(), FISH, **FEW, prompt_at={2: CAT})
    video.save(tmp_path / "a.mp4")
    prompt, options = recorded_request(video.settings)
    assert (prompt, options["prompt_at"]) == (FISH, {2: CAT})
    again = kg.replay(tmp_path / "a.mp4", model=image_model())
    assert np.array_equal(again.frames, video.frames)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (FISH, {"prompt_at": {0: CAT}}, "`prompt_at` .* the prompt itself is that of frame 0"),
        (FISH, {"prompt_at": {"x": CAT}}, "`prompt_at` is .a whole number at least 1: a text., not"),
        (FISH, {"prompt_at": {True: CAT}}, "`prompt_at` is"),
        (FISH, {"prompt_at": {1: 7}}, "`prompt_at` is"),
        (FISH, {"prompt_at": {1: " "}}, "prompt is empty"),
        (FISH, {"prompt_at": {4: CAT}}, "a prompt at frame 4, and the video has frames 0 to 3"),
        (FISH, {"prompt_at": {4: CAT}, "clips": 2, "then": (CAT,)}, "`then` and `prompt_at`"),
        ({1: FISH}, {}, r"one of frame 0, .* not only of \[1\]"),
        ({0: FISH, 1: CAT}, {"prompt_at": {2: CAT}}, "give one of them"),
    ],
)
def test_what_is_refused(prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kg.generate(image_model(), prompt, **FEW, **options)


def test_a_network_that_changes_the_number_of_frames_refuses_texts_of_frames() -> None:
    image = image_model()
    config = TemporalConfig(
        layers=((Site("transformer"), TransformerConfig(heads=2)), (Site("resampler"), ResamplingConfig(factors=(2,))))
    )
    net = VideoUNet(image.net.image_unet, TemporalLayers(image.net.image_unet, config)).eval()
    model = replace(image, net=net)
    with pytest.raises(InputError, match="no frame has a text of its own"):
        kg.generate(model, FISH, **FEW, prompt_at={2: CAT})
    keyframes = {0: model.prompt([FISH]), 2: model.prompt([CAT])}
    with pytest.raises(InputError, match="no text or image of single frames"):
        net(torch.randn(1, 4, 4, 8, 8), 481.0, interpolate_conditions(keyframes, range(4)))


def test_unknown_words_of_all_prompts_are_named() -> None:
    model = replace(image_model(), vocabulary=frozenset(["a", "fish", "the"]))
    with pytest.warns(InputWarning, match="never seen the words cat"):
        kg.generate(model, FISH, **FEW, prompt_at={2: CAT})
