"""The functions `generate`, `animate` and `edit`, with the options that `generation/options.py` joins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from typing_extensions import Unpack

from kineograph.errors import InputError
from kineograph.generation.check import check_prompts, complete
from kineograph.generation.options import AnimateOptions, EditOptions, GenerateOptions
from kineograph.generation.run import OnStep, run_all
from kineograph.media.video import Video
from kineograph.models.model import Model
from kineograph.options import declares
from kineograph.request import ImageSource, VideoSource

Prompt = str | Mapping[int, str]  # the text, or texts by frame: the option `prompt_at`


@overload
def generate(
    model: Model,
    prompt: Prompt,
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[GenerateOptions],
) -> Video: ...
@overload
def generate(
    model: Model,
    prompt: list[str],
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[GenerateOptions],
) -> list[Video]: ...
@declares(GenerateOptions)
def generate(
    model: Model,
    prompt: Prompt | list[str],
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Video | list[Video]:
    """Generate a video from a prompt; for a list of prompts, a list of videos.

    prompt: a text, or texts by frame, `{0: "a calm sea", 24: "a stormy sea"}`; see `prompt_at`.
    video_model: a second model, which adds motion to the first model's estimates (VideoElevator).
    on_step: called with a `Progress` after every step; an exception from it ends the work.

    Raises ValueError (InputError is one) for invalid arguments and for a frame that holds NaN, and warns (InputWarning)
    of words that the model does not know.

    >>> import kineograph as kg
    >>> video = kg.generate(kg.load(), "a red fish swimming over the sea", num_frames=8, seed=7)
    >>> video.save("fish.mp4")  # doctest: +SKIP
    """
    return _generate(model, prompt, options, video_model, on_step)


@overload
def animate(
    model: Model,
    image: ImageSource,
    prompt: Prompt,
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[AnimateOptions],
) -> Video: ...
@overload
def animate(
    model: Model,
    image: ImageSource,
    prompt: list[str],
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[AnimateOptions],
) -> list[Video]: ...
@declares(AnimateOptions)
def animate(
    model: Model,
    image: ImageSource,
    prompt: Prompt | list[str],
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Video | list[Video]:
    """Generate a video that starts from an image and moves as the prompt says.

    model: an image-to-video model: `kineograph.load("pocket-animate")`, VideoCrafter1's, or any model with an
        IP-Adapter. Any model can be used when the first frame is pinned.
    image: an image of any size: a path, a PIL image, an array [h w 3], [h w 4] or [h w], or a tensor [3 h w], of uint8
        or of floats from 0 to 1; for the first frame it is center-cropped to the video's aspect ratio.
    video_model, on_step: as for `generate`.

    Raises ValueError (InputError is one) for invalid arguments, an unreadable image, or a model that takes no images.

    >>> import kineograph as kg
    >>> kg.animate(kg.load("pocket-animate"), "fish.png", "a fish swimming to the right")  # doctest: +SKIP
    """
    return _generate(model, prompt, {**options, "image": image}, video_model, on_step)


@overload
def edit(
    model: Model,
    video: VideoSource,
    prompt: Prompt,
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[EditOptions],
) -> Video: ...
@overload
def edit(
    model: Model,
    video: VideoSource,
    prompt: list[str],
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[EditOptions],
) -> list[Video]: ...
@declares(EditOptions)
def edit(
    model: Model,
    video: VideoSource,
    prompt: Prompt | list[str],
    *,
    video_model: Model | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Video | list[Video]:
    """Edit a video as the prompt says.

    model: an editing model: `kineograph.load("pocket-edit")`, or InstructPix2Pix or its fine-tunes.
    video: a path or a `Video`: all its frames at its own rate, or the first `num_frames` of them at `fps`. Or frames
        without a rate, 8 a second unless `fps` is given: a list of PIL images or of arrays, an array [f h w 3] or a
        tensor [f 3 h w], of uint8 or of floats from 0 to 1.
    video_model, on_step: as for `generate`.

    Raises ValueError (InputError is one) for invalid arguments, an unreadable video, or a model that does not edit.

    >>> import kineograph as kg
    >>> kg.edit(kg.load("pocket-edit"), "fish.mp4", "make it snow").save("snow.mp4")  # doctest: +SKIP
    """
    return _generate(model, prompt, {**options, "video": video}, video_model, on_step)


def _generate(
    model: Model,
    prompt: Prompt | Sequence[str],
    given: dict[str, Any],
    video_model: Model | None,
    on_step: OnStep | None,
) -> Video | list[Video]:
    if isinstance(prompt, Mapping):
        prompt, given = _split_keyframes(prompt, given)
    prompts = check_prompts([prompt] if isinstance(prompt, str) else prompt)
    videos = run_all(model, prompts, complete(given), on_step, video_model=video_model)
    return videos[0] if isinstance(prompt, str) else videos


def _split_keyframes(prompt: Mapping[int, str], given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the prompt of frame 0, and the options with the others as `prompt_at`."""
    if 0 not in prompt:
        raise InputError(f"a `prompt` by frame has one of frame 0, where the video starts, not only of {[*prompt]}")
    if given.get("prompt_at"):
        raise InputError("a `prompt` by frame and `prompt_at` say the same: give one of them")
    later = {frame: text for frame, text in prompt.items() if frame != 0}
    return prompt[0], {**given, "prompt_at": later}
