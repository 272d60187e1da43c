"""Customisation of an image model: DreamBooth for a subject, an adapter as in StyleDrop for a style.

The prior is generated, all images are encoded once, and one resumable loop trains.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kineograph.errors import InputError
from kineograph.media.files import replace_atomically, slug
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.training import TrainingProgress, current_process, use_averages
from kineograph.training.customise import batches, image_data, networks, prompts
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.image_data import Crop, Images, Photo
from kineograph.training.customise.networks import TrainedNetworks
from kineograph.training.customise.phases import LATENTS, PREVIEWS, PRIOR, TRAINING, PhaseProgress, train_phase
from kineograph.training.customise.settings import ImageCustomisationSettings, default_settings, with_changes
from kineograph.training.gradients import autocast
from kineograph.training.lock import lock_folder
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.latent_cache import ClipRequest, EncodeClip, cached_latent_encoder
from kineograph.training.temporal_layers.run import FINAL

MIN_IMAGES = {"subject": 3, "style": 1}


class ImageCustomisation(NamedTuple):
    """A customisation with everything opened and checked; nothing is written yet.

    captioned: pairs of an image and a caption; an image occurs once for each of its captions. prior_prompts: prompts of
    the prior's images.
    """

    model: Model
    photos: list[Photo]
    words: prompts.CustomisationWords
    captioned: list[tuple[Photo, str]]
    prior_prompts: list[str]
    settings: ImageCustomisationSettings
    size: tuple[int, int]
    output: Path


def customise_image(
    model: Model,
    images: Images,
    output: str | Path,
    *,
    subject: str | None = None,
    style: str | None = None,
    settings: ImageCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Teach an image model a subject or a style, resuming in the same folder; the result is in `output/final`.

    A subject is learnt by DreamBooth, with a prior of images that the model generates itself. A style is learnt as in
    StyleDrop, by few parameters and from images captioned "... in [style] style"; what is an adapter in StyleDrop's
    transformer is a LoRA on attention and feed-forward layers of a U-Net. Unlike StyleDrop it has a prior too: without
    one the model generates everything in the style. StyleDrop's second round, on the best of the model's own images, is
    left to the caller. The given model is not changed.

    Args:
        model: of the SD 1.x, 2.x or SDXL family, without temporal layers.
        images: a folder, or a list of files and arrays, uint8 [h w 3]; see `load_photos`.
        output: a folder of this customisation alone. The same call continues one that was stopped or killed.
        subject: "sks dog", a rare word and the class, or the class alone.
        style: "watercolour painting".
        settings: `default_settings(model, "subject")` or `default_settings(model, "style")` unless given.

    Yields every image of the prior, every encoded image, and every step. A checkpoint is written when the consumer
    leaves. At the end `final` holds `pytorch_lora_weights.safetensors`, for `kineograph.load(lora=...)` and diffusers'
    `load_lora_weights`, or a whole model's diffusers folder, if settings.lora is None.

    Raises InputError for images, words and models that cannot be used, before anything is written; later as
    `training.fit` does, and OSError when a file cannot be written. Warns (InputWarning) of unsuitable words.
    """
    return run_image_customisation(
        prepare_image_customisation(model, images, output, subject=subject, style=style, settings=settings)
    )


def prepare_image_customisation(
    model: Model,
    images: Images,
    output: str | Path,
    *,
    subject: str | None = None,
    style: str | None = None,
    settings: ImageCustomisationSettings | None = None,
    motions: Sequence[str] = (),
) -> ImageCustomisation:
    """Check the arguments of `customise_image`, and return them with everything opened that training needs.

    motions: words for motion that are added to captions of both the images and the prior, so that the model does not
        learn to associate these words with either.
    """
    if (subject is None) == (style is None):
        raise InputError(f"expected a subject or a style, got {'neither' if subject is None else 'both'}")
    if current_process().num_processes > 1:
        raise InputError("a customisation runs in one process: call it without accelerate launch")
    what: Literal["subject", "style"] = "style" if subject is None else "subject"
    settings = settings or default_settings(model, what)
    height, width = settings.height or model.default_size[0], settings.width or model.default_size[1]
    model.latent_shape(height, width)
    photos = image_data.load_photos(images, least=MIN_IMAGES[what], side=min(height, width) // 2)
    if subject is None:
        words = prompts.style_words(model, style or "", photos)
    else:
        words = prompts.subject_words(model, subject, photos)
    if not words.prior:
        settings = with_changes(settings, {"prior_weight": 0.0})
    captioned = [
        (photo, each)
        for photo, caption in zip(photos, words.captions, strict=True)
        for each in prompts.with_motions(caption, motions)
    ]
    prior = [each for caption in words.prior for each in prompts.with_motions(caption, motions)]
    prior_prompts = prompts.repeat_to(prior, settings.prior_pictures) if settings.prior_weight else []
    for each in settings.previews:
        prompts.check_prompt_contains(words.name, each, "the preview")
    networks.check_trainable(model, settings)
    return ImageCustomisation(model, photos, words, captioned, prior_prompts, settings, (height, width), Path(output))


def run_image_customisation(prepared: ImageCustomisation) -> Generator[PhaseProgress, None, None]:
    """Run `customise_image` after its checks."""
    settings, parts = prepared.settings, [prepared.captioned]
    with lock_folder(prepared.output):
        if prepared.prior_prompts:
            files: list[Path] = []
            folder = settings.prior_folder or prepared.output / PRIOR
            seed, size = settings.training.seed, prepared.size
            for generated in image_data.generate_missing_images(
                prepared.model, prepared.prior_prompts, folder, settings.drawing, size=size, seed=seed
            ):
                files = generated.files
                yield PhaseProgress("prior", generated.done, generated.total)
            parts.append([*zip(map(image_data.load_photo, files), prepared.prior_prompts, strict=True)])
        total, samples = sum(map(len, parts)), list[list[TrainingSample]]()
        encode = cached_latent_encoder(prepared.model, prepared.output / LATENTS)
        for part in parts:
            samples.append([])
            for photo, caption in part:
                samples[-1].append(encode_photo(prepared, encode, photo, caption))
                yield PhaseProgress("encoding", sum(map(len, samples)), total)
        yield from _train(prepared, samples)


def encode_photo(prepared: ImageCustomisation, encode: EncodeClip, photo: Photo, caption: str) -> TrainingSample:
    """Return an image's crops, and their mirror images if the settings have them, as latents."""
    settings = prepared.settings
    mirrors = (1, -1) if settings.flips else (1,)
    crops = image_data.random_crops(photo, settings.crops, settings.crop_share, settings.training.seed)
    requests = [photo_request(photo, caption, crop, mirror, prepared.size) for crop in crops for mirror in mirrors]
    return TrainingSample(tuple(encode(request).latents for request in requests), caption)


def photo_request(photo: Photo, caption: str, crop: Crop, mirror: int, size: tuple[int, int]) -> ClipRequest:
    """Return the request to encode a crop of an image, mirrored if `mirror` is -1, not 1."""
    key = (photo.digest, *crop, mirror, *size)
    return ClipRequest(key, caption, partial(image_data.crop_photo, photo, crop, mirror, size))


def _train(prepared: ImageCustomisation, samples: list[list[TrainingSample]]) -> Generator[PhaseProgress, None, None]:
    """Train the networks, and write what they have learnt."""
    model, settings = prepared.model, prepared.settings
    trained = networks.trainable_copy(model, settings)
    loop, final = settings.training, prepared.output / FINAL
    captions = ["", *(each.caption for part in samples for each in part)]
    if trained.text is None:
        encode_prompts = batches.precomputed_conditions(model, captions, prepared.size)
    else:
        encode_prompts = batches.trained_conditions(model)
    sample_timesteps = timestep_sampler(settings.levels, model.schedule)

    def write() -> None:
        with replace_atomically(final) as part:
            networks.save_customisation(model, trained, part, describe_customisation(prepared))

    yield from train_phase(
        "training",
        trained,
        loop,
        prepared.output / TRAINING,
        load_batch=batches.sample_batch_loader(samples, loop.seed, settings.caption_dropout, sample_timesteps),
        loss=batches.dreambooth_loss(model, settings, encode_prompts),
        facts=image_facts(prepared),
        result=final,
        write_result=write,
        save_previews=partial(_save_previews, prepared, trained),
    )


def image_facts(prepared: ImageCustomisation) -> dict[str, Any]:
    """Return what must be the same when the training is resumed, besides the settings of its loop."""
    return {
        **prepared.settings.resume_settings(),
        "images": [[photo.digest[:16], caption] for photo, caption in prepared.captioned],
        "prior": list(dict.fromkeys(prepared.prior_prompts)),
        "model": fingerprints(prepared.model),
    }


def _save_previews(prepared: ImageCustomisation, trained: TrainedNetworks, progress: TrainingProgress) -> list[Path]:
    """Generate images of the previews' prompts, always from the same noise, and return their files."""
    settings, model = prepared.settings, networks.model_with(prepared.model, trained)
    if not settings.previews:
        return []
    with use_averages(trained, progress.average), autocast(model.device, settings.training.mixed_precision):
        images = image_data.generate_images(
            model, settings.previews, settings.drawing, size=prepared.size, seed=settings.training.seed
        )
    files = []
    for number, (prompt, pixels) in enumerate(zip(settings.previews, images, strict=True), 1):
        files.append(prepared.output / PREVIEWS / f"step-{progress.step:06d}_{number}-{slug(prompt)}.png")
        image_data.save_png(pixels, files[-1])
        progress.log.write_image(progress.step, f"previews/{prompt}", pixels)
    return files


def describe_customisation(prepared: ImageCustomisation) -> dict[str, Any]:
    """Return the description that is saved with the result: words, captions, model and settings."""
    model = prepared.model
    return {
        "name": prepared.words.name,
        "words": list(prepared.words.new),
        "captions": list(dict.fromkeys(prepared.words.captions)),
        "model": {"name": model.name, "load": dict(model.settings), "weights": fingerprints(model)},
        "settings": prepared.settings.model_dump(mode="json"),
    }
