"""Still-Moving from a few pictures to one small file, in phases that each go on where they were left.

The image network under a video model's layers along time learns the subject or style and draws stills of it; a spatial
adapter learns on those, standing still, and on natural videos.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.torch import load_file

from kineograph.media.files import instead_of
from kineograph.media.video import Video
from kineograph.models.formats import lora as adapters
from kineograph.models.loading import adapter_files
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.loading.save import save
from kineograph.models.model import Model
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.request import Request
from kineograph.training import Progress, fit, load_weights
from kineograph.training.customise import adapters as adapting
from kineograph.training.customise import batches
from kineograph.training.customise import image as run
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.image import (
    FINAL,
    LATENTS,
    PREVIEWS,
    PhaseProgress,
    photo_request,
    run_image_customisation,
)
from kineograph.training.customise.inject import ADAPTER, WHOLE, inject_customised
from kineograph.training.customise.motion_adapter import (
    MOTION_ADAPTER,
    motion_adapter_phase,
    read_trained_motion_adapter,
    temporal_layers_name,
)
from kineograph.training.customise.natural_videos import natural_videos_phase
from kineograph.training.customise.networks import load_customised
from kineograph.training.customise.photos import Crop, Images, load_photo
from kineograph.training.customise.settings import VideoCustomisationSettings
from kineograph.training.customise.stills import generate_missing_images, save_png
from kineograph.training.customise.video_inputs import (
    VideoCustomisation,
    needs_motion_adapter,
    prepare_video_customisation,
)
from kineograph.training.lock import lock_folder
from kineograph.training.temporal_layers import samples
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.latents import EncodeClip, cached_latent_encoder
from kineograph.training.temporal_layers.run import copy_weights

STILLS, ADAPTING = "stills", "adapting"


def customise_video(
    video: Model,
    pictures: Images,
    output: str | Path,
    *,
    image: Model | None = None,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Teaches a video model a subject or a style from a few pictures, from where the output folder was left.

    The model itself stays as it is. Where it has no motion adapter, one is trained first, and left in
    `output/motion_adapter.safetensors`: load the model with that for the next subject.

    Args:
        video: a text-to-video model: layers along time around an image network, which is what learns first.
        pictures, subject, style: as for `customise_image`.
        output: a folder of this customising alone, in the end with `adapter.safetensors`, for
            `kineograph.load(adapter=output)`; or, if all weights learn (settings.spatial is None), with the whole video
            model in `whole`. The same call goes on with one that was stopped or killed.
        image: the image model whose network is under the layers along time, where it has a noise schedule of its own,
            as Stable Diffusion beside AnimateDiff's layers.
        natural_videos: a folder of videos with captions, from which the model keeps what it knew, or "pocket" for the
            pocket world's; unless given, the model draws them itself.
        settings: `usual_video(video, "subject")` or `usual_video(video, "style")` unless given.

    Yields every picture and video that is drawn or encoded, and every step. A checkpoint is written when the consumer
    leaves. Raises InputError for what cannot be learnt from or by this, before anything is written; later as
    `training.fit` does, and OSError when a file cannot be written. Warns (InputWarning) of words that may not do.
    """
    return run_video_customisation(
        prepare_video_customisation(
            video, pictures, output, image=image, subject=subject, style=style, natural_videos=natural_videos,
            settings=settings,
        )
    )  # fmt: skip


def run_video_customisation(ready: VideoCustomisation) -> Generator[PhaseProgress, None, None]:
    """What `customise_video` does once all is opened and checked."""
    settings, output = ready.settings, ready.output
    stills, videos = list[TrainingSample](), list[TrainingSample]()
    with lock_folder(output):
        with closing(run_image_customisation(ready.image)) as learning:
            yield from learning
        yield from _stills(ready, stills)
        lacking = needs_motion_adapter(ready.video, settings)
        if settings.natural_weight or lacking:
            yield from natural_videos_phase(ready.natural, output, videos)
        video = ready.video
        if lacking:
            with closing(motion_adapter_phase(ready.natural, output, videos)) as learning:
                yield from learning
            video = replace(
                video,
                net=adapting.with_motion_adapter(video, read_trained_motion_adapter(video, output / MOTION_ADAPTER)),
            )
        parts = [stills, videos] if settings.natural_weight else [stills]
        with closing(_adapted(ready, inject_customised(video, ready.image.output / FINAL), parts)) as learning:
            yield from learning


def _stills(ready: VideoCustomisation, shown: list[TrainingSample]) -> Iterator[PhaseProgress]:
    """Draws pictures by the customised image model and enters them into `shown`; at the end, a sheet of some."""
    image, settings = ready.image, ready.settings
    model = load_customised(image.model, image.output / FINAL)
    folder, drawing, seed = ready.output / STILLS, settings.image.drawing, settings.training.seed
    see = cached_latent_encoder(ready.video, ready.output / LATENTS)
    for done, total, files in generate_missing_images(
        model, ready.prompts, folder, drawing, size=image.size, seed=seed
    ):
        new = slice(len(shown), done)
        for file, prompt in zip(files[new], ready.prompts[new], strict=True):
            shown.append(_seen(see, file, prompt, image.size, ready.natural.frames))
        sheets = [_sheet(files, ready.output / PREVIEWS / "stills.png")] if done == total else []
        yield PhaseProgress("stills", done, total, previews=sheets)


def _seen(see: EncodeClip, file: Path, prompt: str, size: tuple[int, int], frames: int) -> TrainingSample:
    """A still as a video that stands still."""
    sight = see(photo_request(load_photo(file), prompt, Crop(), 1, size))
    return adapting.frozen_videos(TrainingSample((sight.latents,), prompt), frames)


def _sheet(files: list[Path], file: Path) -> Path:
    some = [files[number] for number in np.linspace(0, len(files) - 1, min(16, len(files))).round().astype(int)]
    save_png(np.asarray(Video(np.stack([load_photo(each).pixels for each in some]), 1.0).contact_sheet()), file)
    return file


def _adapted(
    ready: VideoCustomisation, model: Model, parts: list[list[TrainingSample]]
) -> Generator[PhaseProgress, None, None]:
    """Every step of what comes before the layers along time, and what it came to as a file."""
    settings, output = ready.settings, ready.output
    net, changed = adapting.spatial_adapter_network(model, settings), False
    studio = _studio(ready, replace(model, net=net))
    with closing(_steps(ready, model, net, parts)) as steps:
        for progress in steps:
            changed = True
            drawn = (
                samples.save_validation_videos(studio, progress)
                if run.is_preview_due(settings.training, progress)
                else []
            )
            yield PhaseProgress("adapting", progress.step, settings.training.max_train_steps, progress, drawn)
    if changed or not (output / (WHOLE if settings.spatial is None else ADAPTER)).exists():
        copy_weights(net, load_weights(output / ADAPTING))
        _write(ready, replace(model, net=net))


def _steps(
    ready: VideoCustomisation, model: Model, net: VideoUNet, parts: list[list[TrainingSample]]
) -> Generator[Progress, None, None]:
    settings, loop = ready.settings, ready.settings.training
    tell = batches.precomputed_conditions(model, adapting.all_captions(parts), ready.image.size, settings.fps)
    loss = adapting.still_moving_loss(model, settings, tell, adapting.spatial_adapter_parts(settings))
    draw = batches.sample_batch_loader(
        parts, loop.seed, settings.caption_dropout, timestep_sampler(settings.levels, model.schedule)
    )
    facts: dict[str, Any] = {
        **settings.decisive(),
        "prompts": ready.prompts,
        "natural": ready.natural.facts() if settings.natural_weight else None,
        "model": fingerprints(model),
    }
    steps = fit(net, loop, ready.output / ADAPTING, draw=draw, loss=loss, facts=facts)
    return cast(Generator[Progress, None, None], steps)


def _studio(ready: VideoCustomisation, model: Model) -> samples.ValidationVideos:
    settings, (height, width) = ready.settings, ready.image.size
    asked = [
        Request(
            prompt=prompt, num_frames=ready.natural.frames, height=height, width=width, fps=settings.fps,
            num_inference_steps=settings.drawing.num_inference_steps, guidance_scale=settings.drawing.guidance_scale,
            seed=settings.training.seed + number,
        )
        for number, prompt in enumerate(settings.previews)
    ]  # fmt: skip
    return samples.ValidationVideos(model, asked, settings.training.mixed_precision, ready.output / PREVIEWS, ADAPTING)


def _write(ready: VideoCustomisation, model: Model) -> None:
    """One small file; or the whole video model, where all of it learnt."""
    video, settings, name = ready.video, ready.settings, ready.image.words.name
    if settings.spatial is None:
        with instead_of(ready.output / WHOLE) as part:
            save(adapting.without_adapters(model), part)
        return
    file = ready.image.output / FINAL / adapters.LORA_FILES[0]
    lora = load_file(file) if file.is_file() else {}
    # What the adapter is for: the user's own network where a LoRA goes with it, else the customised one
    image = video.net.image_unet if lora else model.net.image_unet
    net = VideoUNet(image, video.net.temporal, spatial_adapter=model.net.spatial_adapter)
    adapter_files.save_customised_adapter(
        net, lora, ready.output / ADAPTER, subject=name, image=ready.image.model.name, video=temporal_layers_name(video)
    )
