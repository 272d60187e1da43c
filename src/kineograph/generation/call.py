"""Calls from Python: the keywords beside a video's options, models by name, progress, and the form of the result.

The keywords are those that diffusers' users know. Nothing of them is recorded, except the seed that a generator gives.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from pydantic import InstanceOf
from typing_extensions import TypedDict

from kineograph.errors import InputError, check_choice, check_integer, shown
from kineograph.generation.check import check, check_order
from kineograph.generation.options import AnimateOptions, EditOptions, GenerateOptions
from kineograph.generation.resolve import Inputs, decide
from kineograph.generation.run import OnStep, Progress
from kineograph.media.video import Video
from kineograph.models.description import Description, describe_model
from kineograph.models.loading.components import Pipeline
from kineograph.models.loading.describe import describe
from kineograph.models.loading.load import POCKETS, load
from kineograph.models.model import Model
from kineograph.options import declared, option, validate
from kineograph.request import MAX_BATCH, EncodedPrompt, VideoLike
from kineograph.samplers import Step

OutputType = Literal["np", "pt", "pil"]
ModelOrName = Model | str | Path | Pipeline
StepCallback = Callable[[Model, int, int, dict[str, torch.Tensor]], Mapping[str, Any] | None]
Tensor = InstanceOf[torch.Tensor]
GROUP = "Call"
PREVIEW_SIDE = 24  # latent pixels
PREVIEW_SECONDS, PREVIEW_SHARE = 1.0, 0.05  # least time between two previews, and their largest share of the time


class CallOptions(TypedDict, total=False):
    """Keywords of a call, beside the options of its video, which are recorded."""

    video_model: Annotated[
        InstanceOf[Model] | str | Path | None,
        option(
            None,
            "A second model, or its name or path, which adds motion to the first model's estimates (VideoElevator).",
            group=GROUP,
            recorded=False,
        ),
    ]
    generator: Annotated[
        InstanceOf[torch.Generator] | Sequence[InstanceOf[torch.Generator]] | None,
        option(
            None,
            "Generator that the seed is drawn from, so that the next call with it gives another video; or a list, with "
            "one for each video.",
            group=GROUP,
            recorded=False,
        ),
    ]
    latents: Annotated[
        Tensor | None,
        option(
            None,
            "Initial noise, standard normal: [b f c h w], one for each video, with one frame, which all frames share, "
            "or with all; of the first clip.",
            group=GROUP,
            recorded=False,
        ),
    ]
    prompt_embeds: Annotated[
        Tensor | None,
        option(
            None,
            "Encoded prompts in place of `prompt`, [b n d]; a list of videos for more than one.",
            group=GROUP,
            recorded=False,
        ),
    ]
    pooled_prompt_embeds: Annotated[
        Tensor | None,
        option(None, "Pooled embeddings of the encoded prompts, [b e], for SDXL.", group=GROUP, recorded=False),
    ]
    negative_prompt_embeds: Annotated[
        Tensor | None,
        option(
            None,
            "Encoded negative prompts in place of `negative_prompt`, [b n d], one for each prompt or one for all.",
            group=GROUP,
            recorded=False,
        ),
    ]
    negative_pooled_prompt_embeds: Annotated[
        Tensor | None,
        option(
            None, "Pooled embeddings of the encoded negative prompts, [b e], for SDXL.", group=GROUP, recorded=False
        ),
    ]
    on_step: Annotated[
        Callable[[Progress], Any] | None,
        option(
            None,
            "Function that is called with a `Progress` after every step; an exception from it ends the work.",
            group=GROUP,
            recorded=False,
        ),
    ]
    callback_on_step_end: Annotated[
        StepCallback | None,
        option(
            None,
            "Function that is called after every step as diffusers does, (model, number of the step, its timestep, "
            '{"latents": [b f c h w], scaled as the network reads them}); the latents can only be read.',
            group=GROUP,
            recorded=False,
        ),
    ]
    progress: Annotated[
        bool,
        option(True, "Show a progress bar, in a terminal and in a notebook.", group=GROUP, recorded=False),
    ]


class GenerateCall(CallOptions, GenerateOptions, total=False):
    """Keywords of `generate`."""


class AnimateCall(CallOptions, AnimateOptions, total=False):
    """Keywords of `animate`."""


class EditCall(CallOptions, EditOptions, total=False):
    """Keywords of `edit`."""


def split_keywords(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keywords of the call, complete, and the others. Raises InputError for an invalid one."""
    names = declared(CallOptions)
    own = {name: value for name, value in given.items() if name in names}
    return validate(own, CallOptions), {name: value for name, value in given.items() if name not in names}


ORDERS = {
    "video": "kineograph.edit(model, 'in.mp4', 'make it snow')",
    "image": "kineograph.animate(model, 'fish.png', 'a fish swimming to the right')",
    "": "kineograph.generate(model, 'a red fish')",
}


def check_arguments(model: object, prompt: object, given: Mapping[str, Any]) -> None:
    """Raise InputError for a model, an image or a video in the place of the prompt, and the other way round."""
    kind = next((name for name in ORDERS if name in given), "")
    first, order = given.get(kind, model), ORDERS[kind]
    if isinstance(prompt, Model | Pipeline | VideoLike | Path | np.ndarray | torch.Tensor | Image):
        raise InputError(f"`prompt` is a text or a list of texts, not {shown(prompt)}: the order is {order}")
    if kind and isinstance(first, str | Model) and (isinstance(first, Model) or first in POCKETS):
        raise InputError(f"the {kind} is {first!r}, which is a model: the order is {order}")
    check_order(first, prompt, order, POCKETS)


def as_model(source: object, beside: Model | None = None, offload: str | None = None) -> Model:
    """Return a model, or load the one of this name, path or pipeline; on the device and in the dtype of `beside`.

    offload: as in `load`, for a name or a path.
    """
    if isinstance(source, Model):
        return source
    if not isinstance(source, str | Path | Pipeline):
        raise InputError(
            f"a model is one that kineograph.load returned, or a name or path to load, not {shown(source)}; as in "
            "kineograph.generate('pocket', 'a red fish')"
        )
    chosen: Any = {} if offload is None else {"offload": offload}
    return load(source, **chosen) if beside is None else load(source, device=beside.device, dtype=beside.dtype)


def check_before_loading(
    model: object, video_model: object | None, options: Mapping[str, Any], inputs: Inputs
) -> str | None:
    """Raise the InputError of `resolve` for models of which one is a name or a path, if descriptions determine it.

    Returns the `offload` to load the model with, which `memory` chooses.
    """
    given = [model] if video_model is None else [model, video_model]
    if not any(isinstance(each, str | Path) for each in given):
        return None
    found = [_describe(each) for each in given]
    if None in found:
        return None
    first, second = [*found, None][:2]
    assert first is not None
    return decide(check(first, second, options), inputs).offload


def _describe(source: object) -> Description | None:
    if isinstance(source, Model):
        return describe_model(source)
    return describe(source) if isinstance(source, str | Path) else None


def draw_seeds(generator: torch.Generator | Sequence[torch.Generator]) -> int | tuple[int, ...]:
    """Return a seed, or one from each generator of a list; the next ones from these generators are others."""
    if isinstance(generator, torch.Generator):
        return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    return tuple(int(torch.randint(2**31, (1,), generator=each, device=each.device)) for each in generator)


def encoded_prompts(call: Mapping[str, Any], prefix: str = "") -> list[EncodedPrompt]:
    """Return the encoded prompts of a call, none without any. prefix: "negative_" for the negative ones.

    Raises InputError for tensors of other shapes.
    """
    names = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
    tokens, pooled = (call[name] for name in names)
    if tokens is None:
        if pooled is not None:
            raise InputError(f"`{names[1]}` belongs to `{names[0]}`: give both")
        return []
    if tokens.ndim != 3 or len(tokens) == 0:
        raise InputError(f"`{names[0]}` is [b n d], for b prompts, not {[*tokens.shape]}")
    if pooled is not None and (pooled.ndim != 2 or len(pooled) != len(tokens)):
        raise InputError(f"`{names[1]}` is [{len(tokens)} e], as many as `{names[0]}`, not {[*pooled.shape]}")
    return [EncodedPrompt(each, None if pooled is None else pooled[k]) for k, each in enumerate(tokens)]


def check_form(num_videos_per_prompt: object, output_type: object) -> None:
    """Raise InputError unless these are a number of videos and a form of their frames, or None."""
    check_integer("`num_videos_per_prompt`", num_videos_per_prompt, 1, MAX_BATCH)
    if output_type is not None:
        check_choice("`output_type`", output_type, get_args(OutputType))


def to_output(videos: Sequence[Video], output_type: OutputType | None, *, single: bool) -> Any:
    """Return the videos, or their frames as diffusers' pipelines do.

    "np": float32 [b f h w 3] in 0..1; "pt": float32 [b f 3 h w] in 0..1; "pil": a list of images for each video.
    single: without `b`, for one video.
    """
    frames: Any = videos
    if output_type == "np":
        frames = np.stack([video.frames for video in videos]).astype(np.float32) / 255
    elif output_type == "pt":
        frames = torch.stack([video.tensor for video in videos])
    elif output_type == "pil":
        frames = [video.pil for video in videos]
    return frames[0] if single else frames


@contextmanager
def reported(call: Mapping[str, Any], model: Model, num_videos: int) -> Iterator[OnStep]:
    """Yield the function that reports each step to the callbacks of a call, and to a progress bar."""
    reports: list[OnStep] = [] if call["on_step"] is None else [call["on_step"]]
    if call["callback_on_step_end"] is not None:
        reports.append(_call_after_steps(call["callback_on_step_end"], model))
    notebook = _in_notebook()
    if not call["progress"] or not (sys.stderr.isatty() or notebook):
        yield lambda progress: _report(reports, progress)
        return
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    with tqdm(desc="generating", unit="step") as bar, _preview(model) if notebook else nullcontext() as preview:
        reports += [_move_bar(bar, num_videos), *([] if preview is None else [preview])]
        yield lambda progress: _report(reports, progress)


def _report(reports: Sequence[OnStep], progress: Progress) -> None:
    for each in reports:
        each(progress)


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return "IPKernelApp" in getattr(shell, "config", {})


@contextmanager
def _preview(model: Model) -> Iterator[OnStep]:
    """Yield the function that shows the middle frame of a step's estimate in a notebook, until the block ends."""
    ipython: Any = sys.modules["IPython"]
    shown: Any = None
    due = time.monotonic() + PREVIEW_SECONDS

    def show(progress: Progress) -> None:
        nonlocal shown, due
        if (start := time.monotonic()) < due:
            return
        image = preview_frame(model, progress.step.x0)
        if shown is None:
            shown = ipython.display.display(image, display_id=True)
        else:
            shown.update(image)
        now = time.monotonic()
        due = now + max(PREVIEW_SECONDS, (now - start) / PREVIEW_SHARE)

    try:
        yield show
    finally:
        if shown is not None:
            shown.update(ipython.display.HTML(""))


def preview_frame(model: Model, x0: torch.Tensor) -> Image:
    """Return a small image of the middle frame of the first video of latents [b f c h w]."""
    frame = x0[0, [x0.shape[1] // 2]]
    small = F.avg_pool2d(frame, max(1, math.ceil(max(frame.shape[-2:]) / PREVIEW_SIDE)))
    return Video.from_tensor(model.decode(small[None])[0]).pil[0]


def _move_bar(bar: Any, num_videos: int) -> OnStep:
    """Return the function that moves a bar of tqdm, whose total is the steps of all batches."""
    before = last = 0

    def move(progress: Progress) -> None:
        nonlocal before, last
        if bar.total is None:
            bar.total = progress.total * math.ceil(num_videos / len(progress.step.x))
        if progress.done <= last:  # the next batch
            before += progress.total
        last = progress.done
        bar.update(before + last - bar.n)

    return move


def _call_after_steps(callback: StepCallback, model: Model) -> OnStep:
    """Return the function that calls a callback of diffusers' kind; diffusers' step ends where the next one begins."""
    before: Step | None = None
    count = 0

    def call(progress: Progress) -> None:
        nonlocal before, count
        step, start = progress.step, before
        before = step
        if progress.done == 1 or start is None:
            count = 0
            return
        if start.x is start.x0:  # the last step of a clip, which the next clip's first step does not continue
            return
        latents = step.x * model.schedule.scale(step.sigma)
        given = {"latents": latents.clone()}
        returned = callback(model, count, round(model.schedule.timestep(start.sigma)), given)
        count += 1
        for name, value in (given if returned is None else returned).items():
            if name != "latents" or not torch.equal(value, latents):
                raise InputError(
                    f"`callback_on_step_end` changed {name!r}, and the latents of a step can only be read here: "
                    "return the dictionary as it came"
                )

    return call
