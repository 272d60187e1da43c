"""Natural videos, by which a video model keeps what it knew: given ones, or such as it draws itself.

Those that it draws are what DreamBooth's prior is for pictures: what the model would have shown anyway.
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
from safetensors.torch import save_file
from torch import Tensor

from kineograph import noise
from kineograph.denoise import classifier_free_guidance, refuse_nan
from kineograph.errors import InputError, InputWarning
from kineograph.media.files import instead_of
from kineograph.media.video import Video
from kineograph.models.formats.tensor_files import read_tensors
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.models.temporal.adapters import NO_TEMPORAL_LAYERS
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.samplers import dpmpp_2m, final_latents
from kineograph.sigmas import leading
from kineograph.training import current_process
from kineograph.training.customise import prompts
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.image import PREVIEWS, PhaseProgress
from kineograph.training.customise.settings import VideoCustomisationSettings
from kineograph.training.temporal_layers import sources
from kineograph.training.temporal_layers.batches import truncate_caption
from kineograph.training.temporal_layers.latents import cached_latent_encoder
from kineograph.training.temporal_layers.settings import DataSource

Opened = sources.OpenSource

NATURAL = "natural"


class NaturalVideos(NamedTuple):
    """Which natural videos: of this model, so long and large, given ones if they are given."""

    video: Model
    settings: VideoCustomisationSettings
    size: tuple[int, int]
    given: Opened | None

    @property
    def frames(self) -> int:
        """How many each has."""
        assert self.video.temporal is not None, "checked before"
        return self.settings.num_frames or self.video.temporal.num_frames

    def facts(self) -> Any:
        """What tells them from others, as JSON values."""
        if self.given is None:
            return _name(self)
        count = None if self.given.dataset is None else len(self.given.dataset)
        return [self.given.source.model_dump(), count]


def opened(videos: str | Path | None) -> Opened | None:
    """A folder of videos, or "pocket" for the pocket world. Raises InputError when there are none."""
    return None if videos is None else sources.open_sources([DataSource.model_validate(str(videos))], "video")[0]


def prepare_natural_videos(
    video: Model, settings: VideoCustomisationSettings, natural_videos: str | Path | None
) -> NaturalVideos:
    """Which natural videos a training is of. Raises InputError when there can be none, or the model can learn none."""
    check_video_model(video)
    height, width = settings.image.height or video.default_size[0], settings.image.width or video.default_size[1]
    video.latent_shape(height, width)
    wanted = NaturalVideos(video, settings, (height, width), opened(natural_videos))
    if video.temporal and video.temporal.max_frames is not None and wanted.frames > video.temporal.max_frames:
        raise InputError(
            f"num_frames is {wanted.frames}, and {video.name} sees at most {video.temporal.max_frames} frames together"
        )
    return wanted


def check_video_model(video: Model) -> None:
    """Raises InputError for a model that has no layers along time, or is more than those and an image model."""
    if current_process().num_processes > 1:
        raise InputError("a customising is for one process: call it without accelerate launch")
    if video.temporal is None:
        raise InputError(f"{video.name} {NO_TEMPORAL_LAYERS}")
    if video.image_encoder is not None:
        raise InputError(f"{video.name} is shown pictures: take a text-to-video model, such as pocket-video")
    if video.net.spatial_adapter is not None:
        raise InputError(f"{video.name} is customised already, to {video.subject!r}: load it without adapter=")


def natural_samples(wanted: NaturalVideos, folder: Path) -> Generator[TrainingSample, None, None]:
    """So many videos as latents `f c h w` with their captions, drawn or cut where they are not in the folder yet.

    Raises InputError when given ones cannot be used; warns (InputWarning) of those that are passed over. Raises OSError
    when they cannot be written.
    """
    return _drawn(wanted, folder) if wanted.given is None else _cut(wanted, wanted.given, folder)


def natural_videos_phase(wanted: NaturalVideos, output: Path, shown: list[TrainingSample]) -> Iterator[PhaseProgress]:
    """The natural videos, which are entered into `shown`, and at the end a picture of some of them."""
    total, sheet = wanted.settings.natural_videos, output / PREVIEWS / "natural.png"
    for each in natural_samples(wanted, output / NATURAL):
        shown.append(each)
        if len(shown) == total:
            save_latent_sheet(wanted.video, shown, sheet)
        yield PhaseProgress("natural", len(shown), total, previews=[sheet] if len(shown) == total else [])


def save_latent_sheet(model: Model, shown: list[TrainingSample], file: Path) -> None:
    """Writes a PNG of four frames of each of four videos, a video a row."""
    some = [each.views[0][[round(k * (len(each.views[0]) - 1) / 3) for k in range(4)]] for each in shown[:4]]
    frames = torch.cat([model.decode(each[None])[0] for each in some])
    sheet = Video.from_tensor(frames).contact_sheet(columns=4)
    with instead_of(file) as part:
        sheet.save(part, "PNG")


def _cut(wanted: NaturalVideos, given: Opened, folder: Path) -> Generator[TrainingSample, None, None]:
    skipped, seed, count = dict[str, str](), wanted.settings.training.seed, wanted.settings.natural_videos
    shape = sources.ClipShape(wanted.frames, *wanted.size, (wanted.settings.fps,))
    clips = -(-count // len(given.dataset)) if given.dataset else None
    look = sources.combined_loader(
        [given], shape, sources.LoadOptions(seed, seed, clips, cached_latent_encoder(wanted.video, folder), skipped)
    )
    for number in range(count):
        # One after the other: a batch of its own, so that a folder may hold fewer videos than are wanted
        sight = look(number, 0, 1)
        yield TrainingSample((sight.latents,), truncate_caption(wanted.video, sight.caption))
    if skipped:
        warnings.warn(
            f"passed over {len(skipped)} natural videos: {'; '.join([*skipped.values()][:3])}",
            InputWarning,
            stacklevel=2,
        )


def _drawn(wanted: NaturalVideos, folder: Path) -> Generator[TrainingSample, None, None]:
    home = (wanted.settings.natural_folder or folder) / _name(wanted)
    for number, prompt in enumerate(natural_prompts(wanted)):
        file = home / f"{number:05d}.safetensors"
        if not file.is_file():
            latents = generate_latents(wanted, prompt, wanted.settings.training.seed + number)
            with instead_of(file) as part:
                save_file({"latents": latents.half().contiguous()}, part, {"prompt": prompt})
        yield TrainingSample((read_tensors(file)["latents"].float(),), prompt)


def natural_prompts(wanted: NaturalVideos) -> list[str]:
    """What the drawn ones show."""
    own, count = wanted.settings.natural_prompts, wanted.settings.natural_videos
    return (
        [own[number % len(own)] for number in range(count)]
        if own
        else prompts.natural_video_prompts(wanted.video, count)
    )


def generate_latents(wanted: NaturalVideos, prompt: str, seed: int) -> Float[Tensor, "f c h w"]:
    """A video of a prompt as latents, by the model as it was."""
    model, drawing, frames = _plain(wanted.video), wanted.settings.drawing, range(wanted.frames)
    tell = partial(model.prompt, size=wanted.size, fps=wanted.settings.fps)
    told, blank = (model.bind(tell([text]), window=len(frames)) for text in (prompt, ""))
    look = refuse_nan(classifier_free_guidance(told, blank, max(1.0, drawing.guidance_scale)))
    sigmas = leading(model.schedule.sigmas, drawing.num_inference_steps)
    ratio = model.temporal.noise_ratio if model.temporal else 0.0
    begin = noise.partly_shared(ratio, seed, frames, (1, *model.latent_shape(*wanted.size))).to(model.device)
    with torch.no_grad():
        return final_latents(dpmpp_2m(look, sigmas[0] * begin, sigmas))[0].cpu()


def check_natural_prompts(wanted: NaturalVideos) -> None:
    """Raises InputError for prompts that are too long to be read, before anything is drawn."""
    if wanted.given is None:
        wanted.video.prompt(natural_prompts(wanted))
    elif wanted.given.dataset is not None and not len(wanted.given.dataset):
        raise InputError(f"{wanted.given.source.source} holds no video: name a folder of videos, or leave it out")


def _plain(video: Model) -> Model:
    """Without adapters, which these videos do not depend on."""
    return replace(video, net=VideoUNet(video.net.image_unet, video.net.temporal))


def _name(wanted: NaturalVideos) -> str:
    """Of a folder: after all that decides what is in it."""
    model, settings = _plain(wanted.video), wanted.settings
    how: list[Any] = [
        fingerprints(model),
        str(model.dtype),
        natural_prompts(wanted),
        settings.drawing.model_dump(),
        list(wanted.size),
    ]
    how += [wanted.frames, settings.fps, settings.training.seed]
    return hashlib.sha256(json.dumps(how).encode()).hexdigest()[:12]
