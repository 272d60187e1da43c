"""The functions `generate`, `animate` and `edit`, with the options that `generation/options.py` joins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from typing_extensions import Unpack

from kineograph.errors import InputError
from kineograph.generation.call import (
    AnimateCall,
    EditCall,
    GenerateCall,
    ModelOrName,
    OutputType,
    as_model,
    check_arguments,
    check_before_loading,
    check_form,
    draw_seeds,
    encoded_prompts,
    reported,
    split_keywords,
    to_output,
)
from kineograph.generation.check import check_prompts, complete
from kineograph.generation.resolve import one_for_each, open_inputs, resolve
from kineograph.generation.run import run_all
from kineograph.media.video import Video
from kineograph.options import declares
from kineograph.request import ImageSource, Prompt, VideoSource

Text = str | Mapping[int, str]  # the text, or texts by frame: the option `prompt_at`


@overload
def generate(model: ModelOrName, prompt: Text, **options: Unpack[GenerateCall]) -> Video: ...
@overload
def generate(model: ModelOrName, prompt: list[str], **options: Unpack[GenerateCall]) -> list[Video]: ...
@overload
def generate(
    model: ModelOrName, prompt: Text | list[str], *, num_videos_per_prompt: int, **options: Unpack[GenerateCall]
) -> list[Video]: ...
@overload
def generate(
    model: ModelOrName,
    prompt: Text | list[str],
    *,
    output_type: OutputType,
    num_videos_per_prompt: int = 1,
    **options: Unpack[GenerateCall],
) -> Any: ...
@overload
def generate(
    model: ModelOrName,
    *,
    num_videos_per_prompt: int = 1,
    output_type: OutputType | None = None,
    **options: Unpack[GenerateCall],
) -> Any: ...
@declares(GenerateCall)
def generate(
    model: ModelOrName,
    prompt: Text | list[str] | None = None,
    *,
    num_videos_per_prompt: int = 1,
    output_type: OutputType | None = None,
    **options: Any,
) -> Any:
    """Generate a video from a prompt; for a list of prompts, a list of videos.

    prompt: a text, a list of texts, or texts by frame, `{0: "a calm sea", 24: "a stormy sea"}`; see `prompt_at`.
    model: a model of `load`, or what `load` would take.
    num_videos_per_prompt: above 1 the result is a list of all videos, with seeds one after the other.
    output_type: "np" (float32 [f h w 3] in 0..1), "pt" (float32 [f 3 h w] in 0..1) or "pil" for frames in place of a
        `Video`, without settings; for a list with a dimension `b` in front, or as a list of lists.

    Raises ValueError (InputError is one) for invalid arguments and for a frame that holds NaN, and warns (InputWarning)
    of words that the model does not know.

    >>> import kineograph as kg
    >>> video = kg.generate(kg.load(), "a red fish swimming over the sea", num_frames=8, seed=7)
    >>> video.save("fish.mp4")  # doctest: +SKIP
    """
    return _generate(model, prompt, options, num_videos_per_prompt, output_type)


@overload
def animate(model: ModelOrName, image: ImageSource, prompt: Text, **options: Unpack[AnimateCall]) -> Video: ...
@overload
def animate(
    model: ModelOrName, image: ImageSource, prompt: list[str], **options: Unpack[AnimateCall]
) -> list[Video]: ...
@overload
def animate(
    model: ModelOrName,
    image: ImageSource,
    prompt: Text | list[str],
    *,
    num_videos_per_prompt: int,
    **options: Unpack[AnimateCall],
) -> list[Video]: ...
@overload
def animate(
    model: ModelOrName,
    image: ImageSource,
    prompt: Text | list[str],
    *,
    output_type: OutputType,
    num_videos_per_prompt: int = 1,
    **options: Unpack[AnimateCall],
) -> Any: ...
@overload
def animate(
    model: ModelOrName,
    image: ImageSource,
    *,
    num_videos_per_prompt: int = 1,
    output_type: OutputType | None = None,
    **options: Unpack[AnimateCall],
) -> Any: ...
@declares(AnimateCall)
def animate(
    model: ModelOrName,
    image: ImageSource,
    prompt: Text | list[str] | None = None,
    *,
    num_videos_per_prompt: int = 1,
    output_type: OutputType | None = None,
    **options: Any,
) -> Any:
    """Generate a video that starts from an image and moves as the prompt says.

    model: an image-to-video model: `kineograph.load("pocket-animate")`, VideoCrafter1's, or any model with an
        IP-Adapter. Any model can be used when the first frame is pinned.
    image: an image of any size: a path, a PIL image, an array [h w 3], [h w 4] or [h w], or a tensor [3 h w], of uint8
        or of floats from 0 to 1; for the first frame it is center-cropped to the video's aspect ratio.
    num_videos_per_prompt, output_type: as for `generate`.

    Raises ValueError (InputError is one) for invalid arguments, an unreadable image, or a model that takes no images.

    >>> import kineograph as kg
    >>> kg.animate(kg.load("pocket-animate"), "fish.png", "a fish swimming to the right")  # doctest: +SKIP
    """
    return _generate(model, prompt, {**options, "image": image}, num_videos_per_prompt, output_type)


@overload
def edit(model: ModelOrName, video: VideoSource, prompt: Text, **options: Unpack[EditCall]) -> Video: ...
@overload
def edit(model: ModelOrName, video: VideoSource, prompt: list[str], **options: Unpack[EditCall]) -> list[Video]: ...
@overload
def edit(
    model: ModelOrName,
    video: VideoSource,
    prompt: Text | list[str],
    *,
    num_videos_per_prompt: int,
    **options: Unpack[EditCall],
) -> list[Video]: ...
@overload
def edit(
    model: ModelOrName,
    video: VideoSource,
    prompt: Text | list[str],
    *,
    output_type: OutputType,
    num_videos_per_prompt: int = 1,
    **options: Unpack[EditCall],
) -> Any: ...
@overload
def edit(
    model: ModelOrName,
    video: VideoSource,
    *,
    num_videos_per_prompt: int = 1,
    output_type: OutputType | None = None,
    **options: Unpack[EditCall],
) -> Any: ...
@declares(EditCall)
def edit(
    model: ModelOrName,
    video: VideoSource,
    prompt: Text | list[str] | None = None,
    *,
    num_videos_per_prompt: int = 1,
    output_type: OutputType | None = None,
    **options: Any,
) -> Any:
    """Edit a video as the prompt says.

    model: an editing model, which follows an instruction: `kineograph.load("pocket-edit")`, or InstructPix2Pix or its
        fine-tunes. Or any other, which starts from the video's frames with noise, as much as `strength` says.
    video: a path or a `Video`: all its frames at its own rate, or the first `num_frames` of them at `fps`. Or frames
        without a rate, 8 a second unless `fps` is given: a list of PIL images or of arrays, an array [f h w 3] or a
        tensor [f 3 h w], of uint8 or of floats from 0 to 1.
    num_videos_per_prompt, output_type: as for `generate`.

    Raises ValueError (InputError is one) for invalid arguments, or an unreadable video.

    >>> import kineograph as kg
    >>> kg.edit(kg.load("pocket-edit"), "fish.mp4", "make it snow").save("snow.mp4")  # doctest: +SKIP
    """
    return _generate(model, prompt, {**options, "video": video}, num_videos_per_prompt, output_type)


def _generate(
    model: object, prompt: object, given: dict[str, Any], num_videos_per_prompt: int, output_type: Any
) -> Any:
    check_arguments(model, prompt, given)
    if isinstance(prompt, Mapping):
        prompt, given = _split_keyframes(prompt, given)
    check_form(num_videos_per_prompt, output_type)
    call, options = split_keywords(given)
    options = complete(options)
    texts = _read_prompts(prompt, call, options)
    negative = _read_negative_prompts(call, options, len(texts))
    prompts, negative_prompts = (
        [each for each in some for _ in range(num_videos_per_prompt)] for some in (texts, negative)
    )
    if call["generator"] is not None:
        if options["seed"] is not None:
            raise InputError("`seed` and `generator` both choose the noise: give one of them")
        options["seed"] = draw_seeds(call["generator"])
    inputs = open_inputs(options)._replace(latents=() if call["latents"] is None else (call["latents"],))
    offload = check_before_loading(model, call["video_model"], options, inputs)
    opened = as_model(model, offload=offload)
    second = None if call["video_model"] is None else as_model(call["video_model"], beside=opened)
    with reported(call, opened, len(prompts)) as on_step:
        plan = resolve(opened, prompts, options, inputs, second, negative_prompts)
        videos = run_all(plan, on_step)
    return to_output(videos, output_type, single=len(prompts) == 1 and (prompt is None or isinstance(prompt, str)))


def _read_prompts(prompt: object, call: Mapping[str, Any], options: Mapping[str, Any]) -> Sequence[Prompt]:
    """Return the texts, or the encoded prompts of `prompt_embeds`."""
    encoded = encoded_prompts(call)
    if prompt is None and encoded:
        return encoded
    if encoded:
        raise InputError("`prompt` and `prompt_embeds` say the same: give one of them")
    if prompt is None:
        raise InputError("there is no `prompt`: describe the video in a few words, or give `prompt_embeds`")
    return check_prompts([prompt] if isinstance(prompt, str) else prompt, options["prompt_weights"])


def _read_negative_prompts(call: Mapping[str, Any], options: Mapping[str, Any], count: int) -> Sequence[Prompt]:
    """Return the negative prompt of each of `count` prompts."""
    encoded, texts = encoded_prompts(call, "negative_"), options["negative_prompt"]
    if encoded and texts:
        raise InputError("`negative_prompt` and `negative_prompt_embeds` say the same: give one of them")
    if len(encoded) == 1:
        return encoded * count
    return one_for_each(encoded or texts, count, "negative_prompt_embeds" if encoded else "negative_prompt")


def _split_keyframes(prompt: Mapping[int, str], given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the prompt of frame 0, and the options with the others as `prompt_at`."""
    if 0 not in prompt:
        raise InputError(f"a `prompt` by frame has one of frame 0, where the video starts, not only of {[*prompt]}")
    if given.get("prompt_at"):
        raise InputError("a `prompt` by frame and `prompt_at` say the same: give one of them")
    later = {frame: text for frame, text in prompt.items() if frame != 0}
    return prompt[0], {**given, "prompt_at": later}
