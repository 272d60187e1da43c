"""The models that come with Kineograph beside the pocket model: changes of it, put on when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPVisionModel

from kineograph.errors import InputError
from kineograph.models import adapter_files, image_adapter, parts, video_folder
from kineograph.models.branches import MotionBranches
from kineograph.models.hub import Hub
from kineograph.models.image_adapter import ResamplerConfig
from kineograph.models.parts import Parts
from kineograph.models.pictures import GREY, LAST, PictureReader, squashed
from kineograph.models.temporal_layers import TemporalConfig, TemporalLayers
from kineograph.models.text import TextEncoder
from kineograph.models.unet import VideoUNet

# folders beside the pocket model
VIDEO, ANIMATE, EDIT, DEGRADED, VIDRD, SPACE_TIME, FOX = (
    "video", "animate", "edit", "video-degraded", "vidrd", "space-time", "fox",
)  # fmt: skip
HALF = (0.5, 0.5, 0.5)


def editor(folder: Path) -> Parts:
    """The pocket model as one that edits."""
    from kineograph.pocket.low_rank import as_editor, restored

    opened = parts.from_folder(folder, torch.float32)
    changes = load_file(folder / EDIT / "edit.safetensors")
    return opened._replace(unet=restored(as_editor(opened.unet), changes).eval())


def video(folder: Path) -> Parts:
    """The pocket model with layers along time, transformers and a text tower that know words for motion."""
    from kineograph.pocket.video import restored

    opened = parts.from_folder(folder, torch.float32)
    own = _folder(folder, VIDEO)
    config = TemporalConfig.model_validate_json((own / "config.json").read_text())
    net = restored(opened.unet, config, load_file(own / "video.safetensors"))
    tower = CLIPTextModel.from_pretrained(own / "text_encoder", dtype=torch.float32, local_files_only=True)
    text = (TextEncoder(opened.text[0].tokenizer, tower.eval()),)
    temporal = net.temporal
    assert temporal is not None
    levels = json.loads((own / "scheduler" / "scheduler_config.json").read_text())
    return opened._replace(
        unet=net.image_unet.eval(),
        temporal=temporal.eval(),
        text=text,
        scheduler=levels,
        motion_adapter=_motion_adapter(folder, VIDEO, temporal),
    )


def _motion_adapter(folder: Path, part: str, temporal: TemporalLayers) -> MotionBranches | None:
    file = folder / part / video_folder.MOTION_WEIGHTS
    if not file.is_file():
        return None
    return adapter_files.motion_branches(adapter_files.read(file, "motion", Hub()), temporal, f"pocket-{part}")


def degraded_video(folder: Path) -> Parts:
    """The video model after films that were few, blurred and marked, for VideoElevator's comparison."""
    from kineograph.pocket.degraded import degraded

    opened = video(folder)
    changes = load_file(_folder(folder, DEGRADED) / "degraded.safetensors")
    degraded(VideoUNet(opened.unet, opened.temporal), changes)
    return opened


def vidrd(folder: Path) -> Parts:
    """The video model with VidRD's layers along time, and VidRD's temporal decoder."""
    decoder = video_folder.read_decoder(_folder(folder, VIDRD) / video_folder.DECODER).float()
    return _with_layers_of(folder, VIDRD)._replace(decoder=decoder)


def space_time(folder: Path) -> Parts:
    """The video model with layers along time in Lumiere's manner: a space-time U-Net."""
    return _with_layers_of(folder, SPACE_TIME)


def _with_layers_of(folder: Path, part: str) -> Parts:
    """The video model with other layers along time in place of its own, and their motion adapter if they have one."""
    from kineograph.pocket.vidrd import restored

    opened, own = video(folder), _folder(folder, part)
    config = TemporalConfig.model_validate_json((own / "config.json").read_text())
    net = restored(VideoUNet(opened.unet, opened.temporal), config, load_file(own / f"{part}.safetensors"))
    temporal = net.temporal
    assert temporal is not None
    return opened._replace(
        unet=net.image_unet.eval(),
        temporal=temporal.eval(),
        motion_adapter=_motion_adapter(folder, part, temporal),
    )


def animator(folder: Path) -> Parts:
    """The video model, shown a picture."""
    opened = video(folder)
    own = _folder(folder, ANIMATE)
    sizes = ResamplerConfig.model_validate_json((own / "resampler.json").read_text())
    image_adapter.put_on(opened.unet, sizes)
    _fill(VideoUNet(opened.unet, opened.temporal), own / "animate.safetensors")
    encoder = CLIPVisionModel.from_pretrained(folder / "clip", dtype=torch.float32, local_files_only=True).eval()
    reader = PictureReader(encoder, LAST, squashed, mean=HALF, std=HALF, blank=GREY)
    return opened._replace(unet=opened.unet.eval(), reader=reader)


MODELS: Mapping[str, Callable[[Path], Parts]] = {
    "pocket-edit": editor,
    "pocket-video": video,
    "pocket-animate": animator,
    "pocket-video-degraded": degraded_video,
    "pocket-vidrd": vidrd,
    "pocket-space-time": space_time,
}
# parts for other models
DECODERS: Mapping[str, str] = {"pocket-vidrd": VIDRD}
ADAPTERS: Mapping[str, str] = {"pocket-fox": FOX}


def place_of(part: str, folder: Path) -> Path:
    """Where a part lies. Raises InputError when it is not in this installation."""
    return _folder(folder, {**DECODERS, **ADAPTERS}[part])


def _folder(folder: Path, part: str) -> Path:
    if not (folder / part).is_dir():
        raise InputError(f"pocket-{part} is not in this installation ({folder} has no {part}): install it again")
    return folder / part


def _fill(net: VideoUNet, file: Path) -> None:
    """Weights in place of the network's own, all of which it must have."""
    unknown = net.load_state_dict({name: each.float() for name, each in load_file(file).items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
