"""What customisings left, put into a video model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from kineograph.hub import HubOptions
from kineograph.methods.still_moving import inject
from kineograph.models.loading import adapter_files
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise.image import FINAL
from kineograph.training.customise.motion_adapter import temporal_layers_name
from kineograph.training.customise.networks import load_customised, read_description

IMAGE, ADAPTER, WHOLE = "image", "adapter.safetensors", "whole"


def inject_customised(video: Model, final: str | Path) -> Model:
    """The video model with a customised image network under its layers along time, and nothing between the two.

    final: what `customise_image` or `interleave` left in their folder `final`, or `customise_video` in `image/final`.
    This is the paper's baseline of plain injection. The video model stays as it is.
    Raises InputError when nothing is there, and when it was made from a model of another architecture.
    """
    learnt = load_customised(replace(video, net=VideoUNet(video.net.image_unet)), final)
    net = inject(learnt.net.image_unet, video.net)
    return replace(video, net=net, text=learnt.text, vocabulary=learnt.vocabulary, subject=learnt.subject)


def load_customised_video(video: Model, output: str | Path) -> Model:
    """The video model with what `customise_video` left in this folder; the model itself stays as it is.

    Raises InputError when nothing is there, and when it was made from another model.
    """
    output = Path(output)
    if (output / WHOLE).is_dir():
        whole = load(output / WHOLE, device=video.device, dtype=video.dtype)
        subject = read_description(output / IMAGE / FINAL)["name"]
        return replace(whole, subject=subject, controls=video.controls, temporal_decoder=video.temporal_decoder)
    assert video.net.temporal is not None, "a video model"
    adapter = adapter_files.read_adapter_file(output, "customised", HubOptions())
    spatial = adapter_files.build_spatial_adapter(adapter, video.net.temporal, temporal_layers_name(video))
    model = inject_customised(video, output / IMAGE / FINAL)
    spatial = deepcopy(spatial).to(video.device, video.dtype)
    net = VideoUNet(
        model.net.image_unet,
        model.net.temporal,
        motion_adapter=model.net.motion_adapter,
        spatial_adapter=spatial,
    )
    return replace(model, net=net)
