"""Video to video by strength: reductions, composition and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kineograph as kg
from kineograph.plan import last_sigmas

FEW: dict[str, Any] = {"num_inference_steps": 4, "seed": 3, "guidance_scale": 3.0, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def image_model() -> kg.Model:
    return kg.load(dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def video_model() -> kg.Model:
    return kg.load("pocket-video", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def video(image_model: kg.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("video") / "in"
    kg.generate(image_model, "a red fish", num_frames=4, **FEW).save(file)  # pngs, which lose nothing
    return file


@pytest.mark.parametrize(
    ("strength", "steps"), [(1.0, 10), (0.6, 6), (0.3, 3), (0.01, 1)], ids=["all", "0.6", "0.3", "least"]
)
def test_strength_names_the_last_part_of_the_sigmas(strength: float, steps: int) -> None:
    sigmas = [float(k) for k in range(10, -1, -1)]
    assert last_sigmas(sigmas, strength) == sigmas[10 - steps :]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["image_model", "video_model"])
def test_strength_1_starts_from_noise_and_equals_generate(
    model: str, video: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(model)
    edited = kg.edit(model, video, "a blue cat", strength=1, **FEW)
    assert np.array_equal(edited.frames, kg.generate(model, "a blue cat", num_frames=4, fps=edited.fps, **FEW).frames)


def test_strength_0_returns_the_reconstruction_of_the_vae(image_model: kg.Model, video: Path) -> None:
    source = kg.open_video(video)
    expected = image_model.decode(image_model.encode(source.tensor[None]))[0]
    edited = kg.edit(image_model, video, "a blue cat", strength=0, **FEW)
    assert np.array_equal(edited.frames, kg.Video.from_tensor(expected).frames)


@pytest.mark.slow
def test_more_strength_moves_away_from_the_video(image_model: kg.Model, video: Path) -> None:
    source = kg.open_video(video).frames.astype(int)
    distances = [
        np.abs(kg.edit(image_model, video, "a blue cat", strength=strength, **FEW).frames - source).mean()
        for strength in (0.0, 0.5, 1.0)
    ]
    assert distances == sorted(distances) and distances[0] < distances[1] < distances[2]


@pytest.mark.slow
def test_any_method_and_control_start_from_the_video(image_model: kg.Model, video_model: kg.Model, video: Path) -> None:
    plain = kg.generate(image_model, "a blue cat", num_frames=2, **FEW).frames
    variants: list[dict[str, Any]] = [
        {"model": video_model},
        {"video_model": video_model, "refine_at": (0.9,), "video_steps": 1},
        {"clips": 2},
        {"control": {"canny": video}},
        {"sampler": "euler-ancestral"},
        {"model": kg.load("pocket-edit", dtype="float32", device="cpu")},
    ]
    results = [plain]
    for variant in variants:
        model = variant.pop("model", image_model)
        result = kg.edit(model, video, "a blue cat", num_frames=2, strength=0.5, **FEW, **variant)
        assert result.settings["strength"] == 0.5
        assert not any(np.array_equal(result.frames[:2], other[:2]) for other in results)
        results.append(result.frames)


def test_the_default_strength_is_recorded_and_replayed(image_model: kg.Model, video: Path, tmp_path: Path) -> None:
    edited = kg.edit(image_model, video, "a blue cat", **FEW)
    assert edited.settings["strength"] == 0.6
    again = kg.replay(edited.save(tmp_path / "edited"), model=image_model, trust=True)
    assert np.array_equal(again.frames, edited.frames)


@pytest.mark.slow
def test_second_pass_samples_the_video_again_at_its_size(image_model: kg.Model, tmp_path: Path) -> None:
    options = {"num_frames": 3, **FEW, "refine_size": "64x64", "refine_strength": 0.5}
    refined = kg.generate(image_model, ["a blue cat", "a red boat"], **options)
    assert refined[0].frames.shape == (3, 64, 64, 3)
    plain = kg.generate(image_model, "a blue cat", num_frames=3, **FEW)
    source = plain.save(tmp_path / "first")
    again = kg.edit(image_model, source, "a blue cat", strength=0.5, **{**FEW, "height": 64, "width": 64}, batch_size=1)
    assert np.abs(refined[0].frames.astype(int) - again.frames).max() <= 1  # a batch rounds differently
    alone = kg.generate(image_model, "a blue cat", **options)
    replayed = kg.replay(alone.save(tmp_path / "second"), model=image_model, trust=True)
    assert np.array_equal(replayed.frames, alone.frames)


@pytest.mark.parametrize("size", ["64", "64x", "65x64", "0x64", "axb"])
def test_a_size_of_the_second_pass_that_cannot_be_is_refused(image_model: kg.Model, size: str) -> None:
    with pytest.raises(kg.InputError, match="`refine_size`"):
        kg.generate(image_model, "a cat", num_frames=2, **FEW, refine_size=size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": 1.5}, r"`strength` is a number from 0 to 1, not 1.5"),
        ({"strength": 0.5, "camera": "pan:12,0"}, "leave `camera` out"),
        ({"strength": 0.5, "image_guidance_scale": 2.0}, "is not an editing model"),
    ],
)
def test_what_cannot_work_is_refused(image_model: kg.Model, video: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(kg.InputError, match=said):
        kg.edit(image_model, video, "a blue cat", **FEW, **options)


def test_strength_without_a_video_is_refused(image_model: kg.Model) -> None:
    with pytest.raises(kg.InputError, match="`strength` does nothing here"):
        kg.generate(image_model, "a fish", strength=0.5, **FEW)
