"""Adapter files: what was learnt beside a video model, in one small safetensors file that says what it is for.

motion_adapter.<layer along time>.lora_{A,B}.weight         a motion adapter, alone in its file
spatial_adapter.<image layer>.lora_{A,B}.weight             a spatial adapter, and with it
{unet,text_encoder}.<layer>.lora_{A,B}.weight               the LoRA of the customised image model, if it is one

The LoRA has diffusers' names, scales multiplied in, so that `pipeline.load_lora_weights` opens the file too: it asks
that all names have "lora" in them, and leaves those out that begin with no network of its own. The header's
`kineograph_adapter` is an `About`, as JSON. All is float16.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import Hub
from kineograph.media.files import instead_of
from kineograph.models.formats import key_map, tensor_files
from kineograph.models.formats.key_map import Place
from kineograph.models.formats.layer_names import Likeness, likeness
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import known_configurations
from kineograph.models.temporal.adapters import BranchConfig, MotionBranches, SpatialBranches
from kineograph.models.temporal.config import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

HEADER = "kineograph_adapter"
OF_LORA = ("unet.", "text_encoder.", "text_encoder_2.")
NAMES = {"motion": "motion_adapter", "customised": "spatial_adapter"}  # kind -> how the names of its branches begin
ARGUMENTS = {
    "motion": "a motion adapter: pass it as motion_adapter= (--motion-adapter)",
    "customised": "a customised subject or style: pass it as adapter= (--adapter)",
}

Kind = Literal["motion", "customised"]
Branches = TypeVar("Branches", MotionBranches, SpatialBranches)


class About(BaseModel):
    """What a file says about itself.

    branches  of its motion or spatial adapter
    temporal  the layers along time that those are for
    image     the image network that was customised
    subject   the words that ask for what it was customised to
    library   the version of Kineograph that wrote it
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    branches: BranchConfig
    temporal: Likeness
    image: Likeness | None = None
    subject: str | None = None
    library: str


class Adapter(NamedTuple):
    """The content of a file: branches by their names in it, and a LoRA by diffusers' names."""

    file: Path
    about: About
    branches: Tensors
    lora: Tensors


def save_motion(adapter: MotionBranches, temporal: TemporalLayers, file: Path, *, name: str) -> Path:
    """Write a motion adapter for these layers along time, those of the model of this name. The path of the file.

    It is written beside and renamed, in place of what was there.
    """
    about = About(
        kind="motion", branches=adapter.config, temporal=likeness(temporal, name), library=version("kineograph")
    )
    return _written(file, about, _named(adapter, about.kind))


def save_customised(net: VideoUNet, lora: Tensors, file: Path, *, subject: str, image: str, video: str) -> Path:
    """Write a network's spatial adapter, and the LoRA that customised its image network. The path of the file.

    lora: by diffusers' names, scales multiplied in; empty for an image network that was customised as a whole.
    subject: the words that ask for it. image, video: what the image model and the layers along time are called.
    Raises ValueError for a network without a spatial adapter, and for a LoRA with other names.
    """
    if net.temporal is None or net.spatial_adapter is None:
        raise ValueError("expected a video network with a spatial adapter, see methods.still_moving.attach")
    if strange := [each for each in lora if not (each.startswith(OF_LORA) and ".lora_" in each)]:
        raise ValueError(f"a LoRA's names are such as unet.<layer>.lora_A.weight, not {tensor_files.some(strange)}")
    about = About(
        kind="customised",
        branches=net.spatial_adapter.config,
        temporal=likeness(net.temporal, video),
        image=likeness(net.image_unet, image),
        subject=subject,
        library=version("kineograph"),
    )
    return _written(file, about, _named(net.spatial_adapter, about.kind) | dict(lora))


def _named(adapter: MotionBranches | SpatialBranches, kind: Kind) -> dict[str, Tensor]:
    return key_map.gathered(adapter.state_dict(), _layout(adapter, kind))


def _layout(adapter: MotionBranches | SpatialBranches, kind: Kind) -> dict[str, Place]:
    """The branches' names here -> in a file: of the layers that they stand beside."""
    return {name: Place(f"{NAMES[kind]}.{name.partition('.')[2]}") for name in adapter.state_dict()}


def _written(file: Path, about: About, tensors: Tensors) -> Path:
    halved = {name: each.detach().half().cpu().contiguous() for name, each in tensors.items()}
    with instead_of(file) as part:
        save_file(halved, part, metadata={"format": "pt", HEADER: about.model_dump_json(exclude_none=True)})
    return file


def read(source: str | Path, kind: Kind, ask: Hub) -> Adapter:
    """An adapter's file, or the one in a folder or repository.

    Raises InputError when it is none, damaged, or an adapter of the other kind.
    """
    file = hub.find_file(source, [f"{NAMES[kind]}.safetensors", "adapter.safetensors"], ask)
    tensors, header = tensor_files.read(file), tensor_files.metadata(file).get(HEADER)
    if header is None:
        raise InputError(f"{file} is no adapter that Kineograph wrote. {known_configurations.guess(tensors)}")
    try:
        about = About.model_validate_json(header)
    except ValidationError as error:
        raise InputError(f"{file} is damaged, or from a newer Kineograph: {error}") from error
    if about.kind != kind:
        raise InputError(f"{file} holds {ARGUMENTS[about.kind]}")
    lora = {name: each for name, each in tensors.items() if name.startswith(OF_LORA)}
    return Adapter(file, about, {name: each for name, each in tensors.items() if name not in lora}, lora)


def motion_branches(adapter: Adapter, temporal: TemporalLayers, name: str) -> MotionBranches:
    """The motion adapter of a file, for these layers along time. Raises InputError when it is for others."""
    return _filled(MotionBranches(_known(adapter, temporal, name), adapter.about.branches), adapter)


def spatial_branches(adapter: Adapter, temporal: TemporalLayers, name: str) -> SpatialBranches:
    """The spatial adapter of a file, for these layers along time. Raises InputError when it is for others."""
    return _filled(SpatialBranches(_known(adapter, temporal, name), adapter.about.branches), adapter)


def _known(adapter: Adapter, temporal: TemporalLayers, name: str) -> TemporalLayers:
    made_for, here = adapter.about.temporal, likeness(temporal, name)
    if not here.is_of(made_for):
        how = "with other weights" if here.has_shapes_of(made_for) else "of other shapes"
        rest = "; what it knows of pictures alone can be loaded as lora=" if adapter.lora else ""
        raise InputError(
            f"{adapter.file} was made for the layers along time of {made_for.name}, and {name} has layers {how}: take "
            f"{made_for.name}, or an adapter made for {name}{rest}"
        )
    return temporal


def _filled(branches: Branches, adapter: Adapter) -> Branches:
    what = f"{adapter.file} does not hold the adapter that its header tells of"
    key_map.fill(branches, adapter.branches, _layout(branches, adapter.about.kind), what)
    return branches.requires_grad_(requires_grad=False).eval()
