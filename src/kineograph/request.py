"""Options that all methods share; a method declares its own in its file, and `generation/options.py` joins them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from pydantic import BeforeValidator, PlainValidator, Strict
from typing_extensions import TypedDict

from kineograph import errors
from kineograph.errors import MAX_FRAMES, InputError, memory_label
from kineograph.options import File, Flag, Integer, Number, Text, option
from kineograph.samplers import BY_NAME
from kineograph.sigmas import SPACINGS

NUM_FRAMES, IMAGE_MODEL_FPS, VIDEO_MODEL_FPS = 8, 4.0, 8.0  # defaults
# a schedule of 1,000 timesteps has 999 steps in leading spacing with offset 1
MAX_STEPS, MAX_SIDE, MAX_FPS, MAX_BATCH, MAX_SEED = 999, 4096, 240, 1024, 2**63 - 1


DEEPCACHE_BRANCH, MAX_BRANCH = 0, 99  # networks have 9 or 12 skip connections


def _read_number(key: object) -> object:
    return int(key) if isinstance(key, str) and key.isdecimal() else key  # of the command line, or a recorded setting


LaterFrame = Annotated[int, BeforeValidator(_read_number), Strict(), Ge(1)]


@runtime_checkable
class Images(Protocol):
    """A list of PIL images, arrays or tensors."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image.Image | np.ndarray | torch.Tensor]: ...


@runtime_checkable
class VideoLike(Protocol):
    """A `kineograph.Video`: frames, uint8 [f h w 3], and their rate."""

    @property
    def frames(self) -> np.ndarray: ...

    @property
    def fps(self) -> float: ...


@dataclass(frozen=True, eq=False, repr=False)
class InMemory:
    """An image or a video in memory, as an option's value; compared by identity, since arrays compare elements."""

    value: Any


def hold(value: Any) -> str | Path | InMemory:
    """Return a path, or `InMemory` for another object."""
    return value if isinstance(value, str | Path | InMemory) else InMemory(value)


def release(value: Any) -> Any:
    """Return the object that `hold` got."""
    return value.value if isinstance(value, InMemory) else value


ChunkSize = Annotated[int, Strict(), Ge(1), Le(MAX_FRAMES)] | Literal["auto"]
Seed = Annotated[int, Strict(), Ge(0), Le(MAX_SEED)]

# Any object is held; `media.images.read_image` and `media.footage.open_footage` refuse those of other types and shapes.
HOLD = PlainValidator(hold, json_schema_input_type=File)
ImageSource = Annotated[str | Path | Image.Image | np.ndarray | torch.Tensor, HOLD]
VideoSource = Annotated[str | Path | VideoLike | Images | np.ndarray | torch.Tensor, HOLD]


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt as tensors, in place of a text: `prompt_embeds`.

    tokens  [n d], as the network's cross-attention reads them
    pooled  [e], for SDXL
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None

    def __str__(self) -> str:
        """Label for settings and messages."""
        return tensor_label(self.tokens if self.pooled is None else torch.cat([self.tokens.flatten(), self.pooled]))


Prompt = str | EncodedPrompt
PromptWeights = Literal["a1111", "comfyui", "off"]


def tensor_label(values: torch.Tensor) -> str:
    """Return the name of a tensor in memory, for settings and messages."""
    values = values.detach().float().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()
    return memory_label("tensor", " x ".join(map(str, values.shape)), digest)


# where neither an option nor the model's folder says another one
USUAL_GUIDANCE: Mapping[str, float] = {"guidance_scale": 7.5, "guidance_start": 0.0, "guidance_end": 1.0}
_FEW_STEPS: Mapping[str, Any] = {
    "sampler": "dpmpp-2m", "spacing": "trailing", "guidance_scale": 5.0, "guidance_end": 0.8,
}  # fmt: skip
# chosen by lab/benchmarks/presets.py, see docs/samplers.md
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quality": {**_FEW_STEPS, "num_inference_steps": 20},
    "balanced": {**_FEW_STEPS, "num_inference_steps": 12},
    "fast": {**_FEW_STEPS, "num_inference_steps": 8},
    "paper": {"num_inference_steps": 50, "guidance_scale": 7.5},
}


class SharedOptions(TypedDict, total=False):
    """Options that every method reads."""

    preset: Annotated[
        Text | None,
        option(
            None,
            "Values of several options, for those that are not given: quality is as good as the papers' 50 steps, "
            "balanced and fast take fewer and cheaper steps, paper has those 50.",
            choices=tuple(PRESETS),
            recorded=False,
        ),
    ]
    negative_prompt: Annotated[
        Text | tuple[Text, ...], option("", "Text that the video should not show; or a list, with one for each prompt.")
    ]
    prompt_at: Annotated[
        Mapping[LaterFrame, Text],
        option(
            {},
            "Prompts of later frames, counted over the whole video; the frames between two prompts get a mix of both.",
            hint="the prompt itself is that of frame 0",
        ),
    ]
    prompt_weights: Annotated[
        PromptWeights,
        option(
            "a1111",
            "Reading of weights in prompts, such as (word:1.3), (word) and [word]: as A1111's web interface or ComfyUI "
            "read them, or off, as plain text.",
        ),
    ]
    num_frames: Annotated[
        Integer | None,
        option(
            None,
            "Number of frames; with `clips` above 1, of each clip.",
            ge=1,
            le=MAX_FRAMES,
            flags=("--num-frames", "-n"),
            shown_default=f"{NUM_FRAMES}, the number that a video model was trained on, or those of the input video",
            hint="frames stay in memory until the video is written, so a longer one has to be several videos",
        ),
    ]
    num_inference_steps: Annotated[
        Integer,
        option(
            20,
            "Number of denoising steps; more are slower.",
            ge=1,
            le=MAX_STEPS,
            flags=("--num-inference-steps", "--steps"),
        ),
    ]
    guidance_scale: Annotated[
        Number | None,
        option(
            None,
            "Weight of the prompt; 1 and less turn guidance off, at half the cost.",
            shown_default="the one that the model's authors recommend, or 7.5",
        ),
    ]
    guidance_start: Annotated[
        Number | None,
        option(
            None,
            "Start of the guidance, as fraction of the timesteps: 0 is noise, 1 is clean. Before it only the prompt is "
            "evaluated, as with a `guidance_scale` of 1, at half the cost.",
            ge=0,
            le=1,
            shown_default="the one that the model's authors recommend, or 0",
        ),
    ]
    guidance_end: Annotated[
        Number | None,
        option(
            None,
            "End of the guidance, as fraction of the timesteps; after it only the prompt is evaluated.",
            ge=0,
            le=1,
            shown_default="the one that the model's authors recommend, or 1",
        ),
    ]
    deepcache_interval: Annotated[
        Integer,
        option(
            1,
            "DeepCache: all layers of the network are evaluated at every n-th step, and the outer ones alone between, "
            "which is faster; 1 is every step.",
            ge=1,
            le=MAX_STEPS,
        ),
    ]
    deepcache_branch: Annotated[
        Integer,
        option(
            DEEPCACHE_BRANCH,
            "DeepCache: number of the skip connection, 0 for the outermost, inside of which no layer is evaluated "
            "again; a higher one is slower and nearer to the result without DeepCache.",
            ge=0,
            le=MAX_BRANCH,
        ),
    ]
    height: Annotated[
        Integer | None,
        option(None, "Height in pixels, a multiple of 8.", ge=1, le=MAX_SIDE, shown_default="the model's"),
    ]
    width: Annotated[
        Integer | None,
        option(None, "Width in pixels, a multiple of 8.", ge=1, le=MAX_SIDE, shown_default="the model's"),
    ]
    seed: Annotated[
        Seed | tuple[Seed, ...] | None,
        option(
            None,
            "The same seed gives the same video; each further prompt of a list has the next seed, or that of a list of "
            "seeds.",
            shown_default="random, and recorded",
        ),
    ]
    fps: Annotated[
        Number | None,
        option(
            None,
            "Frames per second of the result, and of what is read of an input video; some video models are conditioned "
            "on it.",
            gt=0,
            le=MAX_FPS,
            shown_default=f"{IMAGE_MODEL_FPS:g}, {VIDEO_MODEL_FPS:g} with a video model, or the input video's",
        ),
    ]
    sampler: Annotated[
        Text | None,
        option(
            None,
            "Sampler, a scheduler in diffusers.",
            choices=tuple(BY_NAME),
            shown_default="that of the model's scheduler",
        ),
    ]
    spacing: Annotated[
        Text | None,
        option(
            None,
            "Spacing of the timesteps (diffusers' timestep_spacing) or of the sigmas (karras, exponential, beta); ays, "
            "ays-sdxl and ays-svd are Align Your Steps, for about ten steps of SD 1.5, SDXL and models with EDM's "
            "noise levels; lcm is that of models for a few steps.",
            choices=tuple(SPACINGS),
            shown_default="that of the model's scheduler",
        ),
    ]
    steps_offset: Annotated[
        Integer | None,
        option(
            None,
            "Lowest timestep with the `spacing` leading, as in diffusers.",
            ge=0,
            le=MAX_STEPS,
            shown_default="that of the model's scheduler",
        ),
    ]
    method: Annotated[
        Text | None,
        option(
            None,
            "Method of sampling: text2video-zero with an image model; videocrafter with a video model, which is "
            "called animatediff if its layers are a motion module of AnimateDiff; freenoise with either of these, for "
            "more frames than it was trained on; video-elevator with an image model and a video model together.",
            shown_default="the one that fits the models and the number of frames",
        ),
    ]
    engine: Annotated[
        Literal["auto", "torch", "openvino"],
        option(
            "auto",
            "Library that computes the networks on a CPU. openvino takes about two thirds of torch's time, after a "
            "conversion that takes from 5 seconds to a minute and is stored; auto uses it where that saves time.",
            group="Model",
            hint="pip install 'kineograph[cpu]'",
        ),
    ]
    batch_size: Annotated[
        Integer | None,
        option(
            None,
            "Number of prompts of a list that are generated together; memory grows with it.",
            group="Model",
            ge=1,
            le=MAX_BATCH,
            shown_default="as many as need the memory of 8 frames of 512 x 512, or 1 with a limit of memory",
            recorded=False,
        ),
    ]
    memory: Annotated[
        Text | None,
        option(
            None,
            "Memory that the run may take, such as 6GB: of the process on a CPU, of the card on a GPU. A smaller "
            "`chunk_size`, `vae_tiling` and, on a GPU, the `offload` of `load` are chosen so that it fits.",
            group="Model",
            shown_default="no limit",
            recorded=False,
        ),
    ]
    vae_tiling: Annotated[
        Flag,
        option(
            False,
            "Encode and decode images above the VAE's own size in overlapping tiles: less memory, slightly other "
            "frames.",
            group="Model",
        ),
    ]


class ImageModelOptions(TypedDict, total=False):
    """Options of methods that sample with an image model."""

    chunk_size: Annotated[
        ChunkSize,
        option(
            8,
            "Number of frames that an image model evaluates together; memory grows with it, the frames do not change. "
            "auto is as many as fit into the free memory, 8 at most.",
            group="Model",
        ),
    ]


class VideoModelOptions(TypedDict, total=False):
    """Options of methods that sample with a video model."""

    window: Annotated[
        Integer | None,
        option(
            None,
            "Number of frames that a video model evaluates together; a longer video is sampled in overlapping windows.",
            ge=2,
            le=MAX_FRAMES,
            shown_default="as many as it was trained on",
        ),
    ]
    motion_strength: Annotated[
        Number,
        option(
            1.0,
            "Strength of the motion of a video model with a motion adapter (Still-Moving): 1 is the model's own, 0 "
            "stands still, above 1 moves more.",
        ),
    ]


class OverlapOptions(TypedDict, total=False):
    """Options of methods that evaluate a whole video model in windows."""

    overlap: Annotated[
        Integer | None,
        option(
            None,
            "Least number of frames that two neighbouring windows share.",
            ge=0,
            le=MAX_FRAMES,
            shown_default="a quarter of the window",
        ),
    ]


class ImageOptions(TypedDict, total=False):
    """Options of a video that starts from an image."""

    image_scale: Annotated[
        Number, option(1.0, "Weight of the image beside the text, the scale of an IP-Adapter.", group="Input image")
    ]
    first_frame: Annotated[
        Literal["shown", "pinned"] | None,
        option(
            None,
            "With shown, the model reads the image as a condition; with pinned, the first frame is the image itself, "
            "which any model can continue.",
            group="Input image",
            shown_default="pinned for a video model that was trained to continue frames, else shown",
        ),
    ]


class ImageInput(TypedDict, total=False):
    """The image that a video starts from, where it is an option."""

    image: Annotated[
        ImageSource | None,
        option(
            None,
            "An image that the video starts from, center-cropped to its shape: a file, and in Python also a PIL image, "
            "an array or a tensor.",
            group="Input image",
        ),
    ]


class VideoInput(TypedDict, total=False):
    """The video to edit, where it is an option."""

    video: Annotated[
        VideoSource | None,
        option(
            None,
            "A video to change: an editing model (InstructPix2Pix, pocket-edit) follows the prompt's instruction, "
            "another model starts from its frames with noise, see `strength`. A file, and in Python also a Video, a "
            "list of PIL images or of arrays, an array or a tensor.",
            group="Edits",
        ),
    ]


SETTINGS_VERSION = 3
# A scale of 0, which version 2 accepted, is refused now; this smallest positive number is 0 in the dtypes of networks.
ZERO_SCALE = 5e-324
RENAMED_IN_2 = {
    "masks": "foreground_masks", "back": "renoise", "keep": "clip_overlap", "noise_ratio": "clip_noise_ratio",
    "guidance": "clip_guidance", "anchor": "clip_anchor", "order": "clip_noise_order",
}  # fmt: skip


def migrate_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded settings of a video in the options of this version.

    Version 0, which records no version, named the sampler `solver`. Version 1 had records inside: `elevation` of
    VideoElevator, `reuse` of VidRD, a list of controls, each with its scale and range. Version 2 did not read the
    checkpoint's scheduler.
    Raises InputError for settings of a later version.
    """
    settings = dict(settings)
    version = settings.pop("settings_version", 0)
    errors.check_integer("settings_version", version, 0, SETTINGS_VERSION)
    if version == 0 and "solver" in settings:
        settings["sampler"] = settings.pop("solver")
    if version < 2:
        settings = _migrate_from_1(settings)
    if version < SETTINGS_VERSION:
        settings = _migrate_from_2(settings)
    # where none is recorded: the only ones of that time, whatever the model recommends today
    return {"engine": "torch", "guidance_start": 0.0, "guidance_end": 1.0, "clip_order": "reversed", **settings}


def _migrate_from_2(settings: dict[str, Any]) -> dict[str, Any]:
    """Name the sigmas that version 2 sampled along, whatever the checkpoint's scheduler; it read prompts as text."""
    spacing = {"spacing": "lcm"} if settings.get("sampler") == "lcm" else {"spacing": "leading", "steps_offset": 1}
    alone = {"insert_warp_sigmas": True} if settings.get("method") == "text2video-zero" else {}
    if settings.get("controlnet_conditioning_scale") == 0:
        settings = {**settings, "controlnet_conditioning_scale": ZERO_SCALE}
    return {"num_inference_steps": 50, "prompt_weights": "off", **settings, **spacing, **alone}


def _migrate_from_1(settings: dict[str, Any]) -> dict[str, Any]:
    for record in ("elevation", "reuse"):
        inside = settings.pop(record, {})
        if not isinstance(inside, Mapping):
            raise InputError(f"{record} in these settings is a mapping of options, not {errors.shown(inside)}")
        settings |= inside
    settings = {RENAMED_IN_2.get(name, name): value for name, value in settings.items()}
    for name in ("low_pass", "low_pass_space", "inversion_steps"):  # None was "no filter" and "all steps"
        if name in settings:
            settings[name] = settings[name] or 0
    if settings.get("video_prompt", "") is None:
        settings["video_prompt"] = ""
    if settings.get("method") == "instruct-pix2pix":
        settings["method"] = "text2video-zero"
    if settings.get("method") == "video-elevator" and settings.get("sampler") == "dpmpp-2m":
        settings["sampler"] = "ddim"  # single steps of the multistep sampler, which are DDIM's
    if (camera := settings.pop("motion", None)) is not None:
        settings["camera"] = camera
    if (scale := settings.pop("motion_scale", 0.0)) != 0:
        errors.check_number("motion_scale", scale)
        settings["motion_strength"] = 1 - scale
    if controls := settings.pop("control", None):
        settings |= _flatten_controls(controls)
    for name in _unread_in_1(settings):
        settings.pop(name, None)
    return settings


def _unread_in_1(settings: Mapping[str, Any]) -> list[str]:
    """Return options that version 1 accepted where their values had no effect, and that are refused there now."""
    unread = []
    if settings.get("renoise", "inversion") != "inversion" or settings.get("drift_correction"):
        unread.append("inversion_steps")
    if not settings.get("refine_at", True):
        unread += ["video_prompt", "video_steps", "low_pass", "low_pass_space", "renoise", "inversion_steps"]
        unread += ["drift_correction", "video_guidance_scale", "window", "overlap", "motion_strength"]
    if 0 in (settings.get("clip_overlap"), settings.get("clip_guidance")):
        unread.append("clip_anchor")
    if settings.get("clip_overlap") == 0:
        unread.append("clip_guidance")
    return unread


def _flatten_controls(controls: Any) -> dict[str, Any]:
    if not isinstance(controls, list) or not all(
        isinstance(each, Mapping) and isinstance(each.get("kind"), str) and "video" in each for each in controls
    ):
        raise InputError(
            f"control in these settings is a list of records with kind and video, not {errors.shown(controls)}"
        )
    names = [f"{each['kind']}-map" if each.get("ready") else each["kind"] for each in controls]
    for each in controls:
        for field in {"scale", "start", "end"} & set(each):
            errors.check_number(f"the {field} of a control in these settings", each[field])
    shared = {
        option: {each.get(field, default) for each in controls}
        for option, field, default in (
            ("controlnet_conditioning_scale", "scale", 1.0),
            ("control_guidance_start", "start", 0.0),
            ("control_guidance_end", "end", 1.0),
        )
    }
    if different := [name for name, values in shared.items() if len(values) > 1]:
        raise InputError(f"these settings have several values of {', '.join(different)}, and all controls share one")
    return {
        "control": {name: each["video"] for name, each in zip(names, controls, strict=True)},
        "annotators": {each["kind"]: each["annotator"] for each in controls if each.get("annotator")},
        **{name: values.pop() for name, values in shared.items()},
    }
