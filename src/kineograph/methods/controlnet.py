"""ControlNet and T2I-Adapter: maps of a control video, such as edges or poses, guide the frames.

Source: ControlNet (Zhang et al. 2023); T2I-Adapter (Mou et al. 2023).

The residuals enter through the condition, so any method that binds conditions of an image network takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import WrapValidator
from torch import Tensor
from typing_extensions import TypedDict

from kineograph.errors import InputError, shown
from kineograph.models.description import ANY_CONTROL
from kineograph.options import File, Number, option
from kineograph.plan import AddOn, Combination, Plan
from kineograph.request import InMemory, VideoSource, hold, release

if TYPE_CHECKING:
    from kineograph.media.footage import Footage
    from kineograph.models.conditioning.condition import Condition, Residuals
    from kineograph.models.unet.controlnet import ControlEmbedding, VideoControlNet
    from kineograph.models.unet.t2i_adapter import VideoT2IAdapter


MAP_SUFFIX = "-map"
GROUP = "Control videos"


def _hold_each(control: Any, validate: Callable[[Any], Any]) -> Any:
    """Validate a mapping; hold another object, which `list_controls` refuses in clear words."""
    return validate(control) if isinstance(control, Mapping) else hold(control)


class ControlOptions(TypedDict, total=False):
    """Options of control videos."""

    control: Annotated[
        Mapping[str, VideoSource],
        option(
            {},
            "Control videos of ControlNets, by kind: the maps of canny, depth and pose are made from the video; with "
            "KIND-map it shows maps of that kind already. Files, and in Python also what kineograph.edit takes.",
            group=GROUP,
        ),
        WrapValidator(_hold_each),
    ]
    annotators: Annotated[
        Mapping[str, File],
        option(
            {},
            "Folder or hub id of the network that makes the maps of depth or pose.",
            group=GROUP,
            flags=("--annotator",),
            shown_default="Depth-Anything, ViTPose",
        ),
    ]
    controlnet_conditioning_scale: Annotated[Number, option(1.0, "Weight of the ControlNets.", group=GROUP)]
    control_guidance_start: Annotated[
        Number,
        option(
            0.0, "Start of the control, as fraction of the timesteps: 0 is noise, 1 is clean.", group=GROUP, ge=0, le=1
        ),
    ]
    control_guidance_end: Annotated[
        Number, option(1.0, "End of the control, as fraction of the timesteps.", group=GROUP, ge=0, le=1)
    ]


class Control(NamedTuple):
    """Input of a ControlNet. kind: its name in the model; ready: the video shows maps; annotator: "" if the usual."""

    kind: str
    video: VideoSource | InMemory
    ready: bool
    annotator: str


def list_controls(options: ControlOptions) -> list[Control]:
    """Return the controls of a request, one for each control video.

    Raises InputError where the option is no mapping.
    """
    given = release(options["control"])
    if not isinstance(given, Mapping):
        raise InputError(f'`control` is {{kind: video}}, as in {{"canny": "in.mp4"}}, not {shown(given)}')
    return [
        Control(
            kind=name.removesuffix(MAP_SUFFIX),
            video=video,
            ready=name.endswith(MAP_SUFFIX),
            annotator=str(options["annotators"].get(name.removesuffix(MAP_SUFFIX), "")),
        )
        for name, video in given.items()
    ]


def bind_controls(plan: Plan) -> Plan:
    """Return the plan with the residuals of the clip's part of the control videos in its conditions.

    A ControlNet has the model's frame attention: the first frame's, or each frame's own in a video model.
    """
    from kineograph.models.unet.controlnet import bind_controlnet, sum_residuals
    from kineograph.models.unet.frame_attention import first, own
    from kineograph.models.unet.t2i_adapter import VideoT2IAdapter, bind_t2i_adapter

    options, model = plan.read(ControlOptions), plan.model
    controls = list_controls(options)
    nets = [model.control(control.kind) for control in controls]
    for net in nets:
        if net.reduction != model.vae_scale_factor:
            raise InputError(
                f"this control network reduces height and width to 1/{net.reduction}, and the VAE of {model.name} to "
                f"1/{model.vae_scale_factor}: take one made for the model's family"
            )
    embeddings = [
        _embed_maps(net, control, footage, plan)
        for net, control, footage in zip(nets, controls, plan.control_footage, strict=True)
    ]

    scope: dict[str, Any] = {
        "scale": options["controlnet_conditioning_scale"],
        "start": options["control_guidance_start"],
        "end": options["control_guidance_end"],
        "progress": model.schedule.progress_at,
    }

    def bind(net: VideoControlNet | VideoT2IAdapter, condition: Condition, embedding: ControlEmbedding) -> Residuals:
        if isinstance(net, VideoT2IAdapter):
            return bind_t2i_adapter(embedding, **scope)
        attention, run_layers = first if model.temporal is None else own, None
        if model.engine == "openvino":
            from kineograph.models.openvino.engine import shared_engine

            run_layers = shared_engine().run_controlnet(net)
        condition = model.net.image_condition(condition)
        return bind_controlnet(net, condition, embedding, frame_attention=attention, run_layers=run_layers, **scope)

    def add_control(condition: Condition) -> Condition:
        residuals = [bind(net, condition, each) for net, each in zip(nets, embeddings, strict=True)]
        return replace(plan.add_conditions(condition), residuals=sum_residuals(*residuals))

    return replace(plan, add_conditions=add_control)


def _embed_maps(
    net: VideoControlNet | VideoT2IAdapter, control: Control, footage: Footage, plan: Plan
) -> ControlEmbedding:
    """Embed the maps of the clip's frames, a few frames in memory at a time."""
    from kineograph.media.footage import stack_in_chunks
    from kineograph.models.annotators import load_annotator

    maps: Iterator[np.ndarray] = islice(footage.frames(plan.height, plan.width), plan.frames.start, plan.frames.stop)
    if not control.ready:
        maps = map(load_annotator(control.kind, control.annotator or None, plan.model.device), maps)
    embedded = [net.embed(_to_tensor(chunk)) for chunk in stack_in_chunks(maps, plan.chunk_size)]
    return [torch.cat(parts) for parts in zip(*embedded, strict=True)]


def _to_tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def check(combination: Combination) -> None:
    """Raise InputError for a kind without a ControlNet, an annotator without its control, and an empty range."""
    from kineograph.models.annotators import check_annotator

    options, model = combination.read(ControlOptions), combination.model
    for control in list_controls(options):
        if not {control.kind, ANY_CONTROL} & {*model.controls}:
            others = f", only for {', '.join(model.controls)}" if model.controls else ""
            raise InputError(
                f"{model.name} has no ControlNet for {control.kind!r}{others}: load it with one, "
                f"`controlnet` {control.kind}=FOLDER"
            )
        if not control.ready:
            check_annotator(control.kind)
    kinds = {name.removesuffix(MAP_SUFFIX) for name in options["control"]}
    if idle := set(options["annotators"]) - kinds:
        raise InputError(f"there is one of `annotators` for {', '.join(sorted(idle))}, and no `control` of that kind")
    if idle := {each.kind for each in list_controls(options) if each.ready and each.annotator}:
        raise InputError(f"`annotators` does nothing for {', '.join(sorted(idle))}: its control video shows maps")
    if "canny" in options["annotators"]:
        raise InputError("`annotators` does nothing for canny: edges are found without a network")
    if model.temporal is not None and model.temporal.resamples_frames:
        raise InputError(f"{model.name} is a space-time network, which takes no ControlNet: use another model")
    if options["controlnet_conditioning_scale"] == 0:
        raise InputError("`control` has no effect with a `controlnet_conditioning_scale` of 0: leave `control` out")
    start, end = options["control_guidance_start"], options["control_guidance_end"]
    if start >= end:
        raise InputError(f"`control_guidance_start` is below `control_guidance_end`; got {start:g} and {end:g}")


CONTROLS = AddOn((ControlOptions,), used=lambda options: bool(options["control"]), when="with `control`", check=check)
