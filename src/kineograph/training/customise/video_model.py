"""Customisation of a video model: Still-Moving from a few images to one small file, in resumable phases.

The image network of a video model learns the subject or style and generates images of it; a spatial adapter is trained
on those as frozen videos, and on natural videos.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kineograph.errors import InputError
from kineograph.generation.check import complete
from kineograph.media.files import replace_atomically
from kineograph.media.video import Video
from kineograph.models.formats import adapter_files
from kineograph.models.formats import lora as lora_files
from kineograph.models.formats.tensor_files import read_tensors
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.loading.save import save
from kineograph.models.model import Model
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise import adapters, batches, phases
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.image_data import Crop, Images, generate_missing_images, load_photo, save_png
from kineograph.training.customise.image_model import (
    ImageCustomisation,
    photo_request,
    prepare_image_customisation,
    run_image_customisation,
)
from kineograph.training.customise.natural_videos import (
    NaturalVideos,
    check_natural_videos,
    natural_videos_phase,
    prepare_natural_videos,
)
from kineograph.training.customise.networks import inject_customised, load_customised, temporal_layers_name
from kineograph.training.customise.phases import PhaseProgress, train_phase
from kineograph.training.customise.prompts import check_prompt_contains, known_motions, repeat_to, still_prompts
from kineograph.training.customise.settings import VideoCustomisationSettings, default_video_settings
from kineograph.training.lock import lock_folder
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.latent_cache import cached_latent_encoder
from kineograph.training.temporal_layers.run import FINAL
from kineograph.training.temporal_layers.validation import (
    ValidationRequest,
    ValidationVideos,
    save_validation_videos,
)

SPATIAL_ADAPTER_TRAINING = "spatial_adapter"  # folder of checkpoints


class VideoCustomisation(NamedTuple):
    """A customisation of a video model with everything opened and checked; nothing is written yet.

    prompts: of the images that the customised image network generates.
    """

    video: Model
    image: ImageCustomisation
    natural: NaturalVideos
    prompts: list[str]
    settings: VideoCustomisationSettings
    output: Path


def customise_video(
    video: Model,
    images: Images,
    output: str | Path,
    *,
    image_model: Model | None = None,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Teach a video model a subject or a style from a few images, resuming in the same folder.

    The given model is not changed. If it has no motion adapter, one is trained first, and written to
    `output/motion_adapter.safetensors`: load the model with that for the next subject.

    Args:
        video: a text-to-video model: temporal layers around an image network, which is customised first.
        images, subject, style: as for `customise_image`.
        output: a folder of this customisation alone, at the end with `adapter.safetensors`, for
            `kineograph.load(adapter=output)`; or, if all weights are trained (settings.spatial is None), with the whole
            video model in `whole`. The same call continues one that was stopped or killed.
        image_model: the image model under the temporal layers, if its noise schedule differs from the video model's, as
            with Stable Diffusion and AnimateDiff's motion modules.
        natural_videos: a folder of videos with captions, so that the model does not forget others, or "pocket" for
            the pocket world's; unless given, the model generates them.
        settings: `default_video_settings(video, "subject")` or `default_video_settings(video, "style")` unless given.

    Yields every image and video that is generated or encoded, and every step. A checkpoint is written when the consumer
    leaves. Raises InputError for images, words and models that cannot be used, before anything is written; later as
    `training.fit` does, and OSError when a file cannot be written. Warns (InputWarning) of unsuitable words.
    """
    return run_video_customisation(
        prepare_video_customisation(
            video, images, output, image_model=image_model, subject=subject, style=style,
            natural_videos=natural_videos, settings=settings,
        )
    )  # fmt: skip


def prepare_video_customisation(
    video: Model,
    images: Images,
    output: str | Path,
    *,
    image_model: Model | None = None,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> VideoCustomisation:
    """Check the arguments of `customise_video`, and return them with everything opened that training needs."""
    settings = settings or default_video_settings(video, "style" if subject is None else "subject")
    natural = prepare_natural_videos(video, settings, natural_videos)
    underlying = underlying_image_model(video, image_model)
    motions = known_motions(underlying) if subject is None else ()
    folder = Path(output) / phases.IMAGE
    image = prepare_image_customisation(
        underlying, images, folder, subject=subject, style=style, settings=settings.image, motions=motions
    )
    prompts = repeat_to(settings.prompts, settings.stills) or still_prompts(image.model, image.words, settings.stills)
    for what, texts in (("the prompt of a still", prompts), ("the preview", settings.previews)):
        for each in texts:
            check_prompt_contains(image.words.name, each, what)
    if settings.natural_weight or needs_motion_adapter(video, settings):
        check_natural_videos(natural)
    return VideoCustomisation(video, image, natural, prompts, settings, Path(output))


def underlying_image_model(video: Model, image_model: Model | None = None) -> Model:
    """Return the image model under a video model's temporal layers.

    Raises InputError when `image_model` has another network.
    """
    if image_model is not None and image_model.temporal is not None:
        raise InputError(f"{image_model.name} is a video model: image_model is for the image model under {video.name}")
    own = adapter_files.weight_signature(video.net.image_unet, video.name)
    if image_model is not None:
        other = adapter_files.weight_signature(image_model.net.image_unet, image_model.name)
        if not other.same_weights(own):
            raise InputError(
                f"the image network of {video.name} is not that of {image_model.name}: leave image_model out, or add "
                f"the temporal layers to {image_model.name}, `motion_module`"
            )
    return replace(image_model or video, net=VideoUNet(video.net.image_unet), temporal_decoder=None)


def needs_motion_adapter(video: Model, settings: VideoCustomisationSettings) -> bool:
    """Return True if a motion adapter is to be trained first."""
    return bool(settings.still_scale) and video.net.motion_adapter is None


def run_video_customisation(prepared: VideoCustomisation) -> Generator[PhaseProgress, None, None]:
    """Run `customise_video` after its checks."""
    settings, output, video = prepared.settings, prepared.output, prepared.video
    stills, natural = list[TrainingSample](), list[TrainingSample]()
    with lock_folder(output):
        yield from run_image_customisation(prepared.image)
        yield from _stills_phase(prepared, stills)
        lacks_motion_adapter = needs_motion_adapter(video, settings)
        if settings.natural_weight or lacks_motion_adapter:
            yield from natural_videos_phase(prepared.natural, output, natural)
        if lacks_motion_adapter:
            yield from adapters.motion_adapter_phase(prepared.natural, output, natural)
            motion = adapters.read_trained_motion_adapter(video, output / phases.MOTION_ADAPTER_FILE)
            video = replace(video, net=adapters.with_motion_adapter(video, motion))
        customised = inject_customised(video, prepared.image.output / FINAL)
        parts = [stills, natural] if settings.natural_weight else [stills]
        yield from _spatial_adapter_phase(prepared, customised, parts)


def _stills_phase(prepared: VideoCustomisation, samples: list[TrainingSample]) -> Iterator[PhaseProgress]:
    """Append images of the customised image model to `samples` as frozen videos, and save a contact sheet of some."""
    image, settings = prepared.image, prepared.settings
    model = load_customised(image.model, image.output / FINAL)
    folder, sampling, seed = prepared.output / phases.STILLS, settings.image.drawing, settings.training.seed
    encode = cached_latent_encoder(prepared.video, prepared.output / phases.LATENTS)
    for done, total, files in generate_missing_images(
        model, prepared.prompts, folder, sampling, size=image.size, seed=seed
    ):
        new = slice(len(samples), done)
        for file, prompt in zip(files[new], prepared.prompts[new], strict=True):
            clip = encode(photo_request(load_photo(file), prompt, Crop(), 1, image.size))
            sample = TrainingSample((clip.latents,), prompt)
            samples.append(adapters.freeze_sample(sample, prepared.natural.num_frames))
        sheets = [_save_sheet(files, prepared.output / phases.PREVIEWS / "stills.png")] if done == total else []
        yield PhaseProgress("stills", done, total, previews=sheets)


def _save_sheet(files: list[Path], file: Path) -> Path:
    some = [files[number] for number in np.linspace(0, len(files) - 1, min(16, len(files))).round().astype(int)]
    sheet = Video(np.stack([load_photo(each).pixels for each in some]), 1.0).contact_sheet()
    save_png(np.asarray(sheet), file)
    return file


def _spatial_adapter_phase(
    prepared: VideoCustomisation, model: Model, parts: list[list[TrainingSample]]
) -> Generator[PhaseProgress, None, None]:
    """Train the spatial adapter, or all weights, and write the result.

    model: the customised one, whose image network is used for it and changed: a copy would hold it twice.
    """
    settings, output, loop = prepared.settings, prepared.output, prepared.settings.training
    weights = fingerprints(model)
    net = adapters.spatial_adapter_network(model, settings)
    trained = replace(model, net=net, dtype=net.image_unet.dtype)
    encode_prompts = batches.precomputed_conditions(
        model, adapters.all_captions(parts), prepared.image.size, settings.fps
    )
    sample_timesteps = timestep_sampler(settings.levels, model.schedule)
    yield from train_phase(
        "spatial_adapter",
        net,
        loop,
        output / SPATIAL_ADAPTER_TRAINING,
        load_batch=batches.sample_batch_loader(parts, loop.seed, settings.caption_dropout, sample_timesteps),
        loss=adapters.adapter_loss(model, settings, encode_prompts, adapters.spatial_adapter_parts(settings)),
        facts={
            **settings.resume_settings(),
            "prompts": prepared.prompts,
            "natural": prepared.natural.facts() if settings.natural_weight else None,
            "model": weights,
        },
        result=output / (phases.WHOLE if settings.spatial is None else phases.ADAPTER_FILE),
        write_result=partial(_write, prepared, trained),
        save_previews=partial(save_validation_videos, _preview_videos(prepared, trained)),
    )


def _preview_videos(prepared: VideoCustomisation, model: Model) -> ValidationVideos:
    settings, (height, width) = prepared.settings, prepared.image.size
    shared = {
        "num_frames": prepared.natural.num_frames,
        "height": height,
        "width": width,
        "fps": settings.fps,
        "num_inference_steps": settings.drawing.num_inference_steps,
        "guidance_scale": settings.drawing.guidance_scale,
    }
    requests = [
        ValidationRequest(prompt, complete({**shared, "seed": settings.training.seed + number}))
        for number, prompt in enumerate(settings.previews)
    ]
    folder = prepared.output / phases.PREVIEWS
    return ValidationVideos(model, requests, settings.training.mixed_precision, folder, SPATIAL_ADAPTER_TRAINING)


def _write(prepared: VideoCustomisation, model: Model) -> None:
    """Write the adapter file, or the whole video model if all weights were trained."""
    video, output = prepared.video, prepared.output
    if prepared.settings.spatial is None:
        with replace_atomically(output / phases.WHOLE) as part:
            save(adapters.without_adapters(replace(model, dtype=video.dtype)), part)
        return
    file = prepared.image.output / FINAL / lora_files.LORA_FILES[0]
    lora = read_tensors(file) if file.is_file() else {}
    # The network that the adapter is for: the user's own where a LoRA is in the file too, else the customised one
    image_unet = video.net.image_unet if lora else model.net.image_unet
    net = VideoUNet(image_unet, video.net.temporal, spatial_adapter=model.net.spatial_adapter)
    adapter_files.save_customised_adapter(
        net, lora, output / phases.ADAPTER_FILE,
        subject=prepared.image.words.name, image=prepared.image.model.name, video=temporal_layers_name(video),
    )  # fmt: skip
