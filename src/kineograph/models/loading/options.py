"""Options of `load`. This module imports neither torch nor diffusers, which a command line's help does not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

from typing_extensions import TypedDict

from kineograph.errors import InputError
from kineograph.options import File, Integer, Text, declared, option

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, MotionAdapter
    from torch import device as Device
    from torch import dtype as DType

    from kineograph.models.conditioning.textual_inversion import TextualInversions
    from kineograph.models.formats.lora import LoraSources
    from kineograph.models.vae.temporal_decoder import TemporalDecoder
else:
    # what the types above are at run time, as far as it can be checked without importing them
    @runtime_checkable
    class Network(Protocol):
        """A live network."""

        def state_dict(self) -> Any:
            """Return the weights."""

    AutoencoderKL = AutoencoderTiny = ControlNetModel = MotionAdapter = TemporalDecoder = Network
    Device = DType = Any
    Scale = float | Mapping[str, float]
    LoraSources = File | Sequence[File | Scale | Sequence[File | Scale]]
    TextualInversions = File | Sequence[File] | Mapping[str, File]

DOWNLOAD = "Download"
SECOND_MODEL = "video_"  # prefix of the names of a second model's options, in a request


class LoadOptions(TypedDict, total=False):
    """Options of `load`, beside the source."""

    motion_module: Annotated[
        str | Path | MotionAdapter | None,
        option(
            None,
            "Temporal layers for an image model, with the noise schedule that they were trained on: a motion module of "
            "AnimateDiff (diffusers' MotionAdapter: a folder, repository or released file), or a video model, whose "
            "image network is left out.",
            group="Model",
        ),
    ]
    motion_adapter: Annotated[
        File | None,
        option(
            None,
            "Adapter of the temporal layers that sets the strength of the motion (Still-Moving; a file, folder or "
            "repository, not diffusers' MotionAdapter, which is `motion_module`). pocket-video comes with one.",
            group="Model",
        ),
    ]
    adapter: Annotated[
        File | None,
        option(
            None,
            "A file of `kineograph customise`, your own subject or style; or pocket-fox, an example for pocket-video, "
            'a fox that prompts call "a sks cat".',
            group="Model",
        ),
    ]
    lora: Annotated[
        LoraSources | None,
        option(
            None,
            "A LoRA (a file, folder or repository), with a scale or without, or with scales of unet, text_encoder and "
            "text_encoder_2 (FILE=unet:0.8,text_encoder:0.5); or several. AnimateDiff's motion LoRAs too.",
            group="Model",
        ),
    ]
    textual_inversion: Annotated[
        TextualInversions | None,
        option(
            None,
            "A textual inversion (a file, folder or repository); or several, with words of your choice or without.",
            group="Model",
        ),
    ]
    ip_adapter: Annotated[
        File | None,
        option(
            None,
            "An IP-Adapter, with which the model takes images: a file, with its encoder in a folder `image_encoder` "
            "beside it, or a repository laid out like h94/IP-Adapter.",
            group="Model",
        ),
    ]
    controlnet: Annotated[
        str | Path | ControlNetModel | Mapping[str, str | Path | ControlNetModel] | None,
        option(
            None,
            "ControlNets (folders, repositories or files) by kind, which is any name, such as canny; or one for every "
            "kind. The pocket model comes with canny, depth and pose.",
            group="Model",
        ),
    ]
    vae: Annotated[
        str | Path | AutoencoderKL | AutoencoderTiny | None,
        option(None, "A VAE in place of the model's own, TAESD too: a file, folder or repository.", group="Model"),
    ]
    decoder: Annotated[
        str | Path | TemporalDecoder | None,
        option(
            None,
            "A temporal decoder for the VAE, of the same widths: the folder or repository of a model that has one, "
            "VidRD's file or folder, or pocket-vidrd.",
            group="Model",
        ),
    ]
    config: Annotated[
        File | None,
        option(
            None,
            "A folder or repository in diffusers layout with the configuration that a single file lacks.",
            group="Model",
        ),
    ]
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction", "sample"] | None,
        option(None, "Prediction type of a model that does not state it.", group="Model", shown_default="the model's"),
    ]
    clip_skip: Annotated[
        Integer | None,
        option(
            None,
            "Number of the text encoder's last layers to skip: 1 is the last layer but one, CLIP skip 2 of A1111.",
            group="Model",
            ge=0,
            shown_default="0, or that of a saved model",
        ),
    ]
    device: Annotated[
        str | Device | None,
        option(
            None,
            "Device, such as cpu or cuda:1.",
            group="Model",
            shown_default="the fastest",
            recorded=False,
        ),
    ]
    dtype: Annotated[
        str | DType | None,
        option(
            None,
            "Type of the weights: float32, bfloat16 or float16.",
            group="Model",
            shown_default="the fastest on the device",
            recorded=False,
        ),
    ]
    offload: Annotated[
        Literal["model", "sequential", "group"] | None,
        option(
            None,
            "Keep the weights in the computer's memory and move them to the GPU when they are used: a network at a "
            "time (model), or a layer at a time (sequential, or group, which diffusers does with fewer copies). The "
            "smaller the part, the less memory of the GPU, and the slower.",
            group="Model",
            shown_default="all weights stay on the device",
            recorded=False,
        ),
    ]
    torch_dtype: Annotated[
        str | DType | None, option(None, "The older name of `dtype`.", group="Model", recorded=False)
    ]
    revision: Annotated[Text | None, option(None, "Branch, tag or commit of the model's repository.", group=DOWNLOAD)]
    variant: Annotated[Text | None, option(None, "Variant of the model's files, such as fp16.", group=DOWNLOAD)]
    token: Annotated[
        Text | None,
        option(
            None,
            "Access token of the Hugging Face Hub.",
            group=DOWNLOAD,
            shown_default="the one you logged in with",
            recorded=False,
        ),
    ]
    cache_dir: Annotated[
        File | None,
        option(
            None,
            "Folder of downloaded files.",
            group=DOWNLOAD,
            shown_default="the cache of the Hugging Face Hub",
            recorded=False,
        ),
    ]
    local_files_only: Annotated[bool, option(False, "Use downloaded files only.", group=DOWNLOAD, recorded=False)]


class ModelSource(NamedTuple):
    """A model to load: its name, folder or file, and options of `load`. prefix: of their names in the request."""

    name: str
    options: Mapping[str, Any]
    prefix: str = ""


def load_arguments(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the arguments of `load` among the values of a request; with the prefix, those of the second model."""
    names = {f"{prefix}{name}": name for name in declared(LoadOptions)}
    return {names[name]: value for name, value in values.items() if name in names}


def model_sources(model: str, values: Mapping[str, Any]) -> list[ModelSource]:
    """Return the model of a request, and the second model if there is one, `video_model`.

    Options that change no frame, such as the device, are those of both. Raises InputError for options of a second model
    without one.
    """
    first = ModelSource(model, load_arguments(values))
    options, second = load_arguments(values, SECOND_MODEL), values.get("video_model")
    if second is not None:
        for_both = {name for name, each in declared(LoadOptions).items() if not each.recorded}
        shared = {name: value for name, value in first.options.items() if name in for_both}
        return [first, ModelSource(second, shared | options, SECOND_MODEL)]
    if options:
        names = " and ".join(f"`{SECOND_MODEL}{name}`" for name in options)
        raise InputError(f"{names}: expected the video model that they belong to, by `video_model`")
    return [first]
