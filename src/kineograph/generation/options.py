"""Options of `generate`, `animate` and `edit`, joined from their declarations; and the table of methods.

A method costs its file, a line in `METHODS` and a base of `CommonOptions`. A package may register a `plan.Method` by
the entry point `kineograph.methods` instead; its options then appear in help texts and in the schema too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kineograph.errors import InputError
from kineograph.methods import (
    controlnet,
    freenoise,
    instruct_pix2pix,
    sdedit,
    text2video_zero,
    video_elevator,
    videocrafter,
    vidrd,
)
from kineograph.methods.controlnet import ControlOptions
from kineograph.methods.freenoise import FreeNoiseOptions
from kineograph.methods.instruct_pix2pix import InstructPix2PixOptions
from kineograph.methods.sdedit import RefinementOptions, StrengthOptions
from kineograph.methods.text2video_zero import CameraOptions, SmoothingOptions, Text2VideoZeroOptions
from kineograph.methods.video_elevator import VideoElevatorOptions
from kineograph.methods.vidrd import ClipOptions
from kineograph.options import changed, declared
from kineograph.plan import AddOn, Method
from kineograph.plugins import find_plugins
from kineograph.request import (
    ImageInput,
    ImageModelOptions,
    ImageOptions,
    OverlapOptions,
    SharedOptions,
    VideoInput,
    VideoModelOptions,
)

METHODS: Mapping[str, Method] = {
    "text2video-zero": text2video_zero.METHOD,
    "videocrafter": videocrafter.METHOD,
    "animatediff": videocrafter.METHOD._replace(check=videocrafter.check_motion_module),
    "video-elevator": video_elevator.METHOD,
    "freenoise": freenoise.METHOD,
}
IMAGES = AddOn(
    (ImageOptions,), used=lambda options: options["image"] is not None, when="with `image`, an image to start from"
)
ADD_ONS = (
    controlnet.CONTROLS,
    text2video_zero.SMOOTHING,
    IMAGES,
    sdedit.VIDEO_TO_VIDEO,
    sdedit.SECOND_PASS,
    instruct_pix2pix.EDITS,
    vidrd.CLIPS,
)


class CommonOptions(
    SharedOptions,
    ImageModelOptions,
    VideoModelOptions,
    OverlapOptions,
    CameraOptions,
    SmoothingOptions,
    Text2VideoZeroOptions,
    ControlOptions,
    ImageOptions,
    StrengthOptions,
    RefinementOptions,
    InstructPix2PixOptions,
    ClipOptions,
    VideoElevatorOptions,
    FreeNoiseOptions,
    total=False,
):
    """Options that `generate`, `animate` and `edit` have in common."""


class GenerateOptions(ImageInput, VideoInput, CommonOptions, total=False):
    """Options of `generate`."""


class AnimateOptions(VideoInput, CommonOptions, total=False):
    """Options of `animate`, whose image is an argument."""


class EditOptions(ImageInput, CommonOptions, total=False):
    """Options of `edit`, whose video is an argument."""


def method_names() -> list[str]:
    """Return the names of all methods, including those of other packages."""
    return [*METHODS, *(name for name in find_plugins("methods") if name not in METHODS)]


def find_method(name: str) -> Method:
    """Return a method. Raises InputError for an unknown name, and for a plugin that is no method."""
    if name in METHODS:
        return METHODS[name]
    if name not in (plugins := find_plugins("methods")):
        raise InputError(f"`method` is {' or '.join(method_names())}, not {name!r}")
    method = plugins[name].load()
    if not isinstance(method, Method):
        raise InputError(f"the entry point {name} of {plugins[name].dist} is no kineograph.plan.Method, but {method!r}")
    return method


def with_plugins(kind: type) -> tuple[type, ...]:
    """Return a front door's TypedDict, and those of the methods of other packages."""
    known, more = set(declared(kind)), list[type]()
    for name in method_names():
        if name not in METHODS:
            more += [each for each in find_method(name).options if not known >= set(declared(each))]
    return (kind, *more)


def readers(name: str) -> list[str]:
    """Return what reads an option: names of methods, or the words of add-ons; empty for one that all methods read."""
    if name in declared(SharedOptions, ImageInput, VideoInput):
        return []
    methods = [method for method in method_names() if name in declared(*find_method(method).options)]
    return methods + [each.when for each in ADD_ONS if name in declared(*each.options)]


def used_kinds(method: Method, options: Mapping[str, Any]) -> list[type]:
    """Return the TypedDicts of the options that a method and the add-ons in use read."""
    add_ons = [kind for each in ADD_ONS if each.used(options) for kind in each.options]
    return list(dict.fromkeys((SharedOptions, ImageInput, VideoInput, *method.options, *add_ons)))


def unused(method: Method, options: Mapping[str, Any], kinds: Iterable[type]) -> list[str]:
    """Return the options with another value than their default that nothing reads in this combination."""
    read = declared(*used_kinds(method, options))
    return [name for name in changed(options, *kinds) if name not in read]
