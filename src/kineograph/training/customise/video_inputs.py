"""All that a customising of a video model needs, opened and checked before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kineograph.errors import InputError
from kineograph.models.loading.adapter_files import weight_signature
from kineograph.models.model import Model
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise.image import Ready, ready
from kineograph.training.customise.inject import IMAGE
from kineograph.training.customise.natural_videos import Wanted, refuse_what_cannot_be_asked, wanted_of
from kineograph.training.customise.photos import Pictures
from kineograph.training.customise.prompts import motions, of_stills, refuse_without, repeated
from kineograph.training.customise.settings import VideoCustomising, usual_video


class VideoReady(NamedTuple):
    """A customising of a video model with all that it needs opened and checked, and nothing written yet."""

    video: Model
    image: Ready
    natural: Wanted
    prompts: list[str]
    settings: VideoCustomising
    output: Path


def ready_video(
    video: Model,
    pictures: Pictures,
    output: str | Path,
    *,
    image: Model | None = None,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomising | None = None,
) -> VideoReady:
    """All that `customise_video` checks before it begins; its arguments."""
    settings = settings or usual_video(video, "style" if subject is None else "subject")
    wanted = wanted_of(video, settings, natural_videos)
    below = under(video, image)
    moving = motions(below) if subject is None else ()
    first = ready(
        below, pictures, Path(output) / IMAGE, subject=subject, style=style, settings=settings.image, moving=moving
    )
    prompts = repeated(settings.prompts, settings.stills) or of_stills(first.model, first.words, settings.stills)
    for what, texts in (("the prompt of a still", prompts), ("the preview", settings.previews)):
        for each in texts:
            refuse_without(first.words.name, each, what)
    first.model.prompt([*dict.fromkeys(prompts)])
    if settings.natural_weight or needs_motion_adapter(video, settings):
        refuse_what_cannot_be_asked(wanted)
    return VideoReady(video, first, wanted, prompts, settings, Path(output))


def under(video: Model, image: Model | None = None) -> Model:
    """The image model under a video model's layers along time. Raises InputError when `image` is another one."""
    if image is not None and image.temporal is not None:
        raise InputError(f"{image.name} is a video model: image is for the image model under {video.name}")
    own = weight_signature(video.net.image_unet, video.name)
    if image is not None and not weight_signature(image.net.image_unet, image.name).is_of(own):
        raise InputError(
            f"the image network of {video.name} is not that of {image.name}: leave image out, or put the layers along "
            f"time around {image.name}, motion= (--motion-module)"
        )
    return replace(image or video, net=VideoUNet(video.net.image_unet), decoder=None)


def needs_motion_adapter(video: Model, settings: VideoCustomising) -> bool:
    """Whether one is to be trained first."""
    return bool(settings.still_scale) and video.net.motion_adapter is None
