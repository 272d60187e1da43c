"""Calls from Python as users of diffusers write them: names of models, progress, callbacks, generators, forms."""

from __future__ import annotations

import base64
import inspect
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from generation.test_two_models import video  # noqa: F401
from models.conftest import sd

import kineograph as kg
from kineograph.errors import InputError
from kineograph.generation import call
from kineograph.generation.call import StepCallback, as_model, draw_seeds
from kineograph.generation.run import Progress
from kineograph.models.model import Model

FEW = {"num_frames": 2, "num_inference_steps": 3, "seed": 3}
SMALL = FEW | {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def model() -> Model:
    return kg.load(sd())


@pytest.fixture(scope="module")
def usual(model: Model) -> kg.Video:
    return kg.generate(model, "a fish", **FEW)


# --- names of models


@pytest.mark.slow
def test_models_are_given_by_name() -> None:
    made = kg.generate("pocket", "a red fish", **SMALL)
    assert np.array_equal(made.frames, kg.generate(kg.load(), "a red fish", **SMALL).frames)
    first = kg.load("pocket", dtype="float32")
    together = kg.generate(first, "a red fish", video_model="pocket-video", video_steps=1, **SMALL)
    second = kg.load("pocket-video", dtype="float32")
    again = kg.generate(first, "a red fish", video_model=second, video_steps=1, **SMALL)
    assert np.array_equal(together.frames, again.frames) and together.settings == again.settings


def test_a_second_models_name_is_loaded_beside_the_first(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(call, "load", lambda source, **options: asked.update(options, source=source) or model)
    half = replace(model, dtype=torch.bfloat16)
    assert as_model("pocket-video", beside=half) is model
    assert asked == {"source": "pocket-video", "device": torch.device("cpu"), "dtype": torch.bfloat16}
    assert as_model(half) is half


def test_a_live_pipeline_is_a_model_too(model: Model, usual: kg.Video) -> None:
    assert np.array_equal(kg.generate(sd(), "a fish", **FEW).frames, usual.frames)


def test_what_is_no_model_is_refused_with_what_would_be(model: Model) -> None:
    unchecked = inspect.unwrap(kg.generate)  # without the types' check, which only tests have
    with pytest.raises(InputError, match="`prompt` is .*, not an object of type Model: the order is"):
        unchecked("a fish", model)
    with pytest.raises(InputError, match="there is no pocket-vide.*did you mean pocket-video"):
        kg.generate("pocket-vide", "a fish")
    with pytest.raises(InputError, match="a model is one that kineograph.load returned, or a name .* not 3"):
        unchecked(3, "a fish")
    with pytest.raises(InputError, match="`video_model` is .* not 3"):
        kg.generate(model, "a fish", video_model=3)


# --- progress


class Terminal:
    """A stream that says that it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def in_terminal(*arguments: Any, **options: Any) -> str:
    """Return what `kg.generate` prints in a terminal."""
    stream = Terminal()
    with pytest.MonkeyPatch.context() as patch:  # not by a fixture: pytest replaces stderr after those
        patch.setattr(sys, "stderr", stream)
        kg.generate(*arguments, **options)
    return stream.text


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_a_terminal_shows_a_bar_over_all_videos(model: Model, batch_size: int | None) -> None:
    text = in_terminal(model, ["a fish", "a cat"], batch_size=batch_size, **FEW)
    steps = 14 if batch_size == 1 else 7
    assert f"{steps}/{steps}" in text and "generating: 100%" in text


def test_progress_false_shows_no_bar(model: Model, usual: kg.Video) -> None:
    assert in_terminal(model, "a fish", progress=False, **FEW) == ""
    assert not {*call.CallOptions.__annotations__} & {*usual.settings}


def test_without_a_terminal_there_is_no_bar(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    kg.generate(model, "a fish", **FEW)
    assert capfd.readouterr() == ("", "")


def test_a_notebook_shows_a_bar(
    model: Model, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(call, "PREVIEW_SECONDS", 1000.0)
    kg.generate(model, "a fish", **FEW)
    assert "generating: 100%" in capfd.readouterr().err
    shell.config = {"TerminalIPythonApp": {}}
    kg.generate(model, "a fish", **FEW)
    assert capfd.readouterr().err == ""


def test_a_notebook_shows_a_small_preview_once_a_second(
    model: Model, usual: kg.Video, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, clock = list[Any](), iter(range(10_000))
    shown = SimpleNamespace(update=images.append)
    display = SimpleNamespace(display=lambda image, display_id: images.append(image) or shown, HTML=str)
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setattr(call.time, "monotonic", lambda: 0.5 * next(clock))
    made = kg.generate(model, "a fish", **FEW)
    assert np.array_equal(made.frames, usual.frames)  # the preview changes nothing
    *previews, last = images
    assert 0 < len(previews) < 7 and last == ""  # not at each of the 7 steps, and gone at the end
    assert {each.size for each in previews} == {(16, 16)}


def test_a_preview_is_small_at_any_size(model: Model) -> None:
    assert call.preview_frame(model, torch.randn(2, 5, 4, 8, 100)).size == (40, 2)  # in pixels: twice the latents


def test_a_video_is_shown_inline(usual: kg.Video) -> None:
    made = replace(usual, settings={"prompt": "<b>a & b</b>"})
    page = made._repr_html_()
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in page and "<b>" not in page
    encoded = page.partition('src="data:video/mp4;base64,')[2].partition('"')[0]
    assert b"ftyp" in base64.b64decode(encoded)[:16]
    assert repr(made) == "Video of 2 frames, 16 x 16, 4 a second: '<b>a & b</b>'"


def test_an_exception_of_on_step_ends_the_work(model: Model) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_terminal(model, "a fish", on_step=stop, **FEW)


# --- the form of the result


@pytest.mark.slow
def test_frames_come_in_the_forms_of_diffusers(model: Model, usual: kg.Video) -> None:
    theirs = VideoProcessor()
    batch = (2 * usual.tensor - 1).permute(1, 0, 2, 3)[None]
    for form in ("np", "pt"):
        made = kg.generate(model, ["a fish"], output_type=form, **FEW)
        wanted = theirs.postprocess_video(batch, form)
        assert type(made) is type(wanted) and made.shape == wanted.shape and made.dtype == wanted.dtype
        assert abs(made - wanted).max() < 1e-6
        assert (kg.generate(model, "a fish", output_type=form, **FEW) == made[0]).all()
    made = kg.generate(model, ["a fish"], output_type="pil", **FEW)
    wanted = theirs.postprocess_video(batch, "pil")
    assert [[each.tobytes() for each in frames] for frames in made] == [[each.tobytes() for each in wanted[0]]]
    assert isinstance(kg.generate(model, "a fish", output_type="pil", **FEW)[0], PIL.Image.Image)


def test_several_videos_of_a_prompt_have_seeds_in_a_row(model: Model, usual: kg.Video) -> None:
    videos = kg.generate(model, "a fish", num_videos_per_prompt=2, **FEW)
    assert [each.settings["seed"] for each in videos] == [3, 4]
    assert np.array_equal(videos[0].frames, usual.frames)
    assert not np.array_equal(videos[1].frames, usual.frames)
    videos = kg.generate(model, ["a fish", "a cat"], num_videos_per_prompt=2, **FEW)
    assert [each.settings["prompt"] for each in videos] == ["a fish", "a fish", "a cat", "a cat"]
    assert kg.generate(model, "a fish", num_videos_per_prompt=2, output_type="np", **FEW).shape == (2, 2, 16, 16, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_type": "latent"}, "`output_type` is np or pt or pil, not 'latent'"),
        ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` is a whole number from 1 .* not 0"),
        ({"progress": 3}, "`progress` is true or false, not 3"),
        ({"on_step": 3}, "`on_step` is .* not 3"),
        ({"callback_on_step_end": "show"}, "`callback_on_step_end` is .* not 'show'"),
        ({"generator": 3}, "`generator` is a?.*Generator.* not 3"),
        ({"generator": torch.Generator(), "seed": 3}, "`seed` and `generator` both"),
    ],
)
def test_wrong_keywords_are_refused_before_a_model_is_loaded(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect.unwrap(kg.generate)("there is no such model", "a fish", **wrong)


@pytest.mark.parametrize("function", [kg.generate, kg.animate, kg.edit])
def test_the_keywords_are_in_signatures_and_docstrings(function: Any) -> None:
    for name in (*call.CallOptions.__annotations__, "num_videos_per_prompt", "output_type"):
        assert name in inspect.signature(function).parameters and f"{name}" in function.__doc__


# --- generator


@pytest.mark.slow
def test_a_generator_gives_another_video_at_each_call_and_the_same_again(model: Model) -> None:
    few = {name: value for name, value in FEW.items() if name != "seed"}

    def three() -> list[kg.Video]:
        generator = torch.Generator().manual_seed(5)
        return [kg.generate(model, "a fish", generator=generator, **few) for _ in range(3)]

    videos, again = three(), three()
    assert len({each.digest for each in videos}) == 3
    assert [each.digest for each in videos] == [each.digest for each in again]
    seed = draw_seeds(torch.Generator().manual_seed(5))
    assert videos[0].settings["seed"] == seed
    assert videos[0].digest == kg.generate(model, "a fish", seed=seed, **few).digest


# --- callback_on_step_end


def calls(model: Model, **options: Any) -> tuple[list[tuple[int, int, torch.Tensor]], Any]:
    seen = []

    def show(given: Model, number: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert given is model
        seen.append((number, timestep, tensors["latents"]))
        return tensors

    return seen, kg.generate(model, callback_on_step_end=show, **{"prompt": "a fish", **FEW, **options})


def test_the_callback_sees_the_numbers_and_timesteps_of_diffusers(model: Model) -> None:
    """One frame, whose steps Text2Video-Zero does not repeat: the steps are DDIM's."""
    scheduler = sd().scheduler
    scheduler.set_timesteps(3)
    seen, _ = calls(model, num_frames=1, camera="none")
    listed = [(number, timestep) for number, timestep, _ in seen]
    assert [timestep for _, timestep in listed if timestep in scheduler.timesteps] == scheduler.timesteps.tolist()
    assert [number for number, _ in listed] == list(range(len(listed)))


def test_the_callbacks_last_latents_are_those_that_are_decoded(video: Model) -> None:  # noqa: F811
    seen, made = calls(video, num_frames=4)
    assert [number for number, *_ in seen] == [0, 1, 2]  # a video model's steps are as many as asked for
    decoded = video.decode(seen[-1][2] / video.schedule.scale(video.schedule.sampling_sigmas(3)[-1]))
    assert np.array_equal(kg.Video.from_tensor(decoded[0]).frames, made.frames)
    first = seen[0][2]
    assert first.shape == (1, 4, 4, 8, 8) and first.std() < 2  # scaled: of about unit variance


def test_the_callback_and_on_step_may_both_be_given_and_batches_start_again(model: Model, usual: kg.Video) -> None:
    progress: list[Progress] = []
    seen, videos = calls(model, prompt=["a fish", "a cat"], batch_size=1, on_step=progress.append)
    assert [number for number, *_ in seen] == 2 * list(range(len(seen) // 2))
    assert len(progress) == len(seen) + 2
    assert np.array_equal(videos[0].frames, usual.frames)


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (lambda model, number, timestep, tensors: {"latents": tensors["latents"] + 1}, "latents"),
        (lambda model, number, timestep, tensors: {"latents": tensors["latents"].mul_(2)}, "latents"),
        (lambda model, number, timestep, tensors: (tensors["latents"].zero_(), None)[1], "latents"),
        (lambda model, number, timestep, tensors: {"prompt_embeds": tensors["latents"]}, "prompt_embeds"),
    ],
    ids=["replaced", "in place", "in place and not returned", "another tensor"],
)
def test_a_callback_that_changes_something_is_refused(model: Model, callback: StepCallback, name: str) -> None:
    def changes(*given: Any) -> Any:
        if name == "latents" and given[1] == 0:
            given[3]["latents"].add_(0)  # not a change
        return callback(*given)

    with pytest.raises(InputError, match=f"`callback_on_step_end` changed '{name}'.* can only be read"):
        kg.generate(model, "a fish", callback_on_step_end=changes, **FEW)


def test_a_callback_may_return_nothing(model: Model, usual: kg.Video) -> None:
    made = kg.generate(model, "a fish", callback_on_step_end=lambda *given: None, **FEW)
    assert np.array_equal(made.frames, usual.frames)
