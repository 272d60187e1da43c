"""Natural videos for prior preservation: the user's, or videos that the video model generates itself.

Generated ones correspond to the images of DreamBooth's prior.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kineograph import noise
from kineograph.denoise import classifier_free_guidance, refuse_nan
from kineograph.errors import InputError, InputWarning
from kineograph.media.files import replace_atomically
from kineograph.media.video import Video
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.models.temporal.adapters import NO_TEMPORAL_LAYERS
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.samplers import dpmpp_2m, final_latents
from kineograph.training import current_process
from kineograph.training.customise import prompts
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.phases import NATURAL, PREVIEWS, PhaseProgress
from kineograph.training.customise.settings import VideoCustomisationSettings
from kineograph.training.temporal_layers import sources
from kineograph.training.temporal_layers.batches import truncate_caption
from kineograph.training.temporal_layers.latent_cache import cached_latent_encoder, read_whole, write_whole
from kineograph.training.temporal_layers.settings import DataSource
from kineograph.training.temporal_layers.sources import OpenSource


class NaturalVideos(NamedTuple):
    """The natural videos of a training. given: the user's videos; None to generate them with the model."""

    video: Model
    settings: VideoCustomisationSettings
    size: tuple[int, int]
    given: OpenSource | None

    @property
    def num_frames(self) -> int:
        """Number of frames of each."""
        assert self.video.temporal is not None, "checked before"
        return self.settings.num_frames or self.video.temporal.num_frames

    def facts(self) -> Any:
        """Return JSON values that identify the videos."""
        if self.given is None:
            return _digest(self)
        count = None if self.given.dataset is None else len(self.given.dataset)
        return [self.given.source.model_dump(), count]


def prepare_natural_videos(
    video: Model, settings: VideoCustomisationSettings, natural_videos: str | Path | None
) -> NaturalVideos:
    """Check the model and open the natural videos: a folder, "pocket" for the pocket world, or None to generate them.

    Raises InputError when there are none, and for a model that cannot be trained on them.
    """
    check_video_model(video)
    height, width = settings.image.height or video.default_size[0], settings.image.width or video.default_size[1]
    video.latent_shape(height, width)
    given = None
    if natural_videos is not None:
        (given,) = sources.open_sources([DataSource.model_validate(str(natural_videos))], "video")
    natural = NaturalVideos(video, settings, (height, width), given)
    if video.temporal and video.temporal.max_frames is not None and natural.num_frames > video.temporal.max_frames:
        raise InputError(
            f"num_frames is {natural.num_frames}, and {video.name} takes at most {video.temporal.max_frames} frames "
            "together"
        )
    return natural


def check_video_model(video: Model) -> None:
    """Raise InputError unless the model is a text-to-video model that is not customised yet."""
    if current_process().num_processes > 1:
        raise InputError("a customisation runs in one process: call it without accelerate launch")
    if video.temporal is None:
        raise InputError(f"{video.name} {NO_TEMPORAL_LAYERS}")
    if video.image_encoder is not None:
        raise InputError(f"{video.name} is an image-to-video model: take a text-to-video model, such as pocket-video")
    if video.net.spatial_adapter is not None:
        raise InputError(f"{video.name} is customised already, to {video.subject!r}: load it without adapter=")


def natural_samples(natural: NaturalVideos, folder: Path) -> Generator[TrainingSample, None, None]:
    """Yield the videos as latents `f c h w` with captions, generated or read where the folder does not have them yet.

    Raises InputError when the user's videos cannot be used; warns (InputWarning) of those that are skipped. Raises
    OSError when the folder cannot be written.
    """
    return _generate(natural, folder) if natural.given is None else _read(natural, natural.given, folder)


def natural_videos_phase(
    natural: NaturalVideos, output: Path, samples: list[TrainingSample]
) -> Iterator[PhaseProgress]:
    """Append the natural videos to `samples`, and save a contact sheet of some of them at the end."""
    total, sheet = natural.settings.natural_videos, output / PREVIEWS / "natural.png"
    for each in natural_samples(natural, output / NATURAL):
        samples.append(each)
        if len(samples) == total:
            save_latent_sheet(natural.video, samples, sheet)
        yield PhaseProgress("natural", len(samples), total, previews=[sheet] if len(samples) == total else [])


def save_latent_sheet(model: Model, samples: list[TrainingSample], file: Path) -> None:
    """Write a PNG of four frames of each of the first four videos, one video a row."""
    some = [each.views[0][[round(k * (len(each.views[0]) - 1) / 3) for k in range(4)]] for each in samples[:4]]
    frames = torch.cat([model.decode(each[None])[0] for each in some])
    sheet = Video.from_tensor(frames).contact_sheet(columns=4)
    with replace_atomically(file) as part:
        sheet.save(part, "PNG")


def _read(natural: NaturalVideos, given: OpenSource, folder: Path) -> Generator[TrainingSample, None, None]:
    settings, skipped = natural.settings, dict[str, str]()
    seed, count = settings.training.seed, settings.natural_videos
    shape = sources.ClipShape(natural.num_frames, *natural.size, (settings.fps,))
    windows = -(-count // len(given.dataset)) if given.dataset else None
    encode = cached_latent_encoder(natural.video, folder)
    load = sources.combined_loader([given], shape, sources.ClipLoaderOptions(seed, seed, windows, encode, skipped))
    for number in range(count):
        # Each is a batch of its own, so that a folder may hold fewer videos than `count`
        clip = load(number, 0, 1)
        yield TrainingSample((clip.latents,), truncate_caption(natural.video, clip.caption))
    if skipped:
        text = f"skipped {len(skipped)} natural videos: {'; '.join([*skipped.values()][:3])}"
        warnings.warn(text, InputWarning, stacklevel=2)


def _generate(natural: NaturalVideos, folder: Path) -> Generator[TrainingSample, None, None]:
    subfolder = (natural.settings.natural_folder or folder) / _digest(natural)
    for number, prompt in enumerate(natural_prompts(natural)):
        file = subfolder / f"{number:05d}.safetensors"
        found = read_whole(file).get("latents")
        if found is None:
            found = generate_latents(natural, prompt, natural.settings.training.seed + number).half().cpu()
            write_whole(file, {"latents": found}, {"prompt": prompt})
        yield TrainingSample((found.float(),), prompt)


def natural_prompts(natural: NaturalVideos) -> list[str]:
    """Return the prompts of generated natural videos."""
    own, count = natural.settings.natural_prompts, natural.settings.natural_videos
    return prompts.repeat_to(own, count) or prompts.natural_video_prompts(natural.video, count)


def generate_latents(natural: NaturalVideos, prompt: str, seed: int) -> Float[Tensor, "f c h w"]:
    """Generate a video of a prompt as latents, with the model without adapters."""
    model, sampling, frames = _without_adapters(natural.video), natural.settings.drawing, range(natural.num_frames)
    encode = partial(model.prompt, size=natural.size, fps=natural.settings.fps, prompt_weights="off")
    cond, uncond = (model.bind(encode([text]), window=len(frames)) for text in (prompt, ""))
    denoise = refuse_nan(classifier_free_guidance(cond, uncond, max(1.0, sampling.guidance_scale)))
    sigmas = model.schedule.sampling_sigmas(sampling.num_inference_steps)
    ratio = model.temporal.noise_ratio if model.temporal else 0.0
    initial = noise.partly_shared(ratio, seed, frames, (1, *model.latent_shape(*natural.size))).to(model.device)
    with torch.no_grad():
        return final_latents(dpmpp_2m(denoise, sigmas[0] * initial, sigmas))[0].cpu()


def check_natural_videos(natural: NaturalVideos) -> None:
    """Raise InputError for a folder without videos."""
    if natural.given is not None and natural.given.dataset is not None and not len(natural.given.dataset):
        raise InputError(f"{natural.given.source.source} holds no video: name a folder of videos, or leave it out")


def _without_adapters(video: Model) -> Model:
    return replace(video, net=VideoUNet(video.net.image_unet, video.net.temporal))


def _digest(natural: NaturalVideos) -> str:
    """Return a hash of everything that decides the generated videos; the name of their folder."""
    model, settings = _without_adapters(natural.video), natural.settings
    values: list[Any] = [
        fingerprints(model), str(model.dtype), natural_prompts(natural), settings.drawing.model_dump(),
        list(natural.size), natural.num_frames, settings.fps, settings.training.seed,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
