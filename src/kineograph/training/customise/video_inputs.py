"""All that a customising of a video model needs, opened and checked before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kineograph.errors import InputError
from kineograph.models.loading.adapter_files import weight_signature
from kineograph.models.model import Model
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise.image import ImageCustomisation, prepare_image_customisation
from kineograph.training.customise.inject import IMAGE
from kineograph.training.customise.natural_videos import NaturalVideos, check_natural_prompts, prepare_natural_videos
from kineograph.training.customise.photos import Images
from kineograph.training.customise.prompts import check_prompt_contains, known_motions, repeat_to, still_prompts
from kineograph.training.customise.settings import VideoCustomisationSettings, default_video_settings


class VideoCustomisation(NamedTuple):
    """A customising of a video model with all that it needs opened and checked, and nothing written yet."""

    video: Model
    image: ImageCustomisation
    natural: NaturalVideos
    prompts: list[str]
    settings: VideoCustomisationSettings
    output: Path


def prepare_video_customisation(
    video: Model,
    pictures: Images,
    output: str | Path,
    *,
    image: Model | None = None,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> VideoCustomisation:
    """All that `customise_video` checks before it begins; its arguments."""
    settings = settings or default_video_settings(video, "style" if subject is None else "subject")
    wanted = prepare_natural_videos(video, settings, natural_videos)
    below = underlying_image_model(video, image)
    moving = known_motions(below) if subject is None else ()
    first = prepare_image_customisation(
        below, pictures, Path(output) / IMAGE, subject=subject, style=style, settings=settings.image, moving=moving
    )
    prompts = repeat_to(settings.prompts, settings.stills) or still_prompts(first.model, first.words, settings.stills)
    for what, texts in (("the prompt of a still", prompts), ("the preview", settings.previews)):
        for each in texts:
            check_prompt_contains(first.words.name, each, what)
    first.model.prompt([*dict.fromkeys(prompts)])
    if settings.natural_weight or needs_motion_adapter(video, settings):
        check_natural_prompts(wanted)
    return VideoCustomisation(video, first, wanted, prompts, settings, Path(output))


def underlying_image_model(video: Model, image: Model | None = None) -> Model:
    """The image model under a video model's layers along time. Raises InputError when `image` is another one."""
    if image is not None and image.temporal is not None:
        raise InputError(f"{image.name} is a video model: image is for the image model under {video.name}")
    own = weight_signature(video.net.image_unet, video.name)
    if image is not None and not weight_signature(image.net.image_unet, image.name).is_of(own):
        raise InputError(
            f"the image network of {video.name} is not that of {image.name}: leave image out, or put the layers along "
            f"time around {image.name}, motion= (--motion-module)"
        )
    return replace(image or video, net=VideoUNet(video.net.image_unet), temporal_decoder=None)


def needs_motion_adapter(video: Model, settings: VideoCustomisationSettings) -> bool:
    """Whether one is to be trained first."""
    return bool(settings.still_scale) and video.net.motion_adapter is None
