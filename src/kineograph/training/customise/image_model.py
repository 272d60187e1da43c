"""A few pictures customise an image model: the prior is drawn, all is encoded once, and one resumable loop trains."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from kineograph.errors import InputError
from kineograph.media.files import instead_of, slug
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.training import Progress, TrainingSettings, current_process, fit, load_weights, use_averages
from kineograph.training.customise import batches, generate_images, networks
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.networks import TrainedNetworks
from kineograph.training.customise.photos import Crop, Images, Photo, crop_photo, load_photo, load_photos, random_crops
from kineograph.training.customise.prompts import (
    CustomisationWords,
    check_prompt_contains,
    repeat_to,
    style_words,
    subject_words,
    with_motions,
)
from kineograph.training.customise.settings import ImageCustomisationSettings, default_settings, with_changes
from kineograph.training.gradients import autocast
from kineograph.training.lock import lock_folder
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.latents import ClipRequest, EncodeClip, cached_latent_encoder
from kineograph.training.temporal_layers.run import copy_weights

FINAL, PRIOR, LATENTS, PREVIEWS, LOOP = "final", "prior", "latents", "previews", "training"
LEAST = {"subject": 3, "style": 1}  # pictures

# An image network's, then a video model's: its stills, its natural videos, and its motion and spatial adapters
Phase = Literal["prior", "encoding", "training", "stills", "natural", "stilling", "adapting"]


class ImageCustomisation(NamedTuple):
    """A customising with all that it needs opened and checked, and nothing written yet."""

    model: Model
    trainee: TrainedNetworks
    photos: list[Photo]
    words: CustomisationWords
    told: list[tuple[Photo, str]]  # the pictures, again for each of several captions
    prior: list[str]  # what each of its pictures is told
    settings: ImageCustomisationSettings
    size: tuple[int, int]
    output: Path


class PhaseProgress(NamedTuple):
    """Where a customising is: so much of a phase done, of so much.

    progress: of the loop, while it trains. previews: the files of what was drawn at this step to be looked at.
    """

    phase: Phase
    done: int
    total: int
    progress: Progress | None = None
    previews: Sequence[Path] = ()


def customise_image(
    model: Model,
    pictures: Images,
    output: str | Path,
    *,
    subject: str | None = None,
    style: str | None = None,
    settings: ImageCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Teaches an image model a subject or a style, from where the output folder was left, into `output/final`.

    A subject is learnt by DreamBooth, with a prior of pictures that the model draws itself. A style is learnt in
    StyleDrop's manner, by few parameters beside the transformers and from pictures captioned "... in [style] style";
    what StyleDrop has for a transformer, a LoRA on attention and feed-forward layers is for a U-Net. It has a prior
    too, as StyleDrop has not: without one the model draws all things in the style. StyleDrop's second round, on the
    best of its own pictures, is the caller's to do. The model itself stays as it is.

    Args:
        model: of the SD 1.x, 2.x or SDXL family, without layers along time.
        pictures: a folder, or a list of files and arrays, uint8 [h w 3]; see `photos`.
        output: a folder of this customising alone. The same call goes on with one that was stopped or killed.
        subject: "sks dog", a rare word and the class, or the class alone.
        style: "watercolour painting".
        settings: `usual(model, "subject")` or `usual(model, "style")` unless given.

    Yields every picture of the prior, every encoded one, and every step. A checkpoint is written when the consumer
    leaves. In the end `final` holds `pytorch_lora_weights.safetensors`, for `kineograph.load(lora=...)` and diffusers'
    `load_lora_weights`, or a whole model's diffusers folder, if settings.lora is None.

    Raises InputError for what cannot be learnt from or by this, before anything is written; later as `training.fit`
    does, and OSError when a file cannot be written. Warns (InputWarning) of words that may not do.
    """
    return run_image_customisation(
        prepare_image_customisation(model, pictures, output, subject=subject, style=style, settings=settings)
    )


def prepare_image_customisation(
    model: Model,
    pictures: Images,
    output: str | Path,
    *,
    subject: str | None = None,
    style: str | None = None,
    settings: ImageCustomisationSettings | None = None,
    moving: Sequence[str] = (),
) -> ImageCustomisation:
    """All that `customise_image` checks before it begins; its arguments.

    moving: words for motion that the pictures and the prior are told too, so that those do not come to mean that what
    is learnt is absent, or present.
    """
    if (subject is None) == (style is None):
        raise InputError(f"expected a subject or a style, got {'neither' if subject is None else 'both'}")
    if current_process().num_processes > 1:
        raise InputError("a customising is for one process: call it without accelerate launch")
    what: Literal["subject", "style"] = "style" if subject is None else "subject"
    settings = settings or default_settings(model, what)
    height, width = settings.height or model.default_size[0], settings.width or model.default_size[1]
    model.latent_shape(height, width)
    seen = load_photos(pictures, least=LEAST[what], side=min(height, width) // 2)
    words = style_words(model, style or "", seen) if subject is None else subject_words(model, subject, seen)
    if not words.prior:
        settings = with_changes(settings, {"prior_weight": 0.0})
    told = [(each, said) for each, own in zip(seen, words.captions, strict=True) for said in with_motions(own, moving)]
    others = [said for own in words.prior for said in with_motions(own, moving)]
    prior = repeat_to(others, settings.prior_pictures) if settings.prior_weight else []
    for each in settings.previews:
        check_prompt_contains(words.name, each, "the preview")
    model.prompt([*(said for _, said in told), *settings.previews])
    begun = networks.trainable_copy(model, settings)
    return ImageCustomisation(model, begun, seen, words, told, prior, settings, (height, width), Path(output))


def run_image_customisation(ready: ImageCustomisation) -> Generator[PhaseProgress, None, None]:
    """What `customise_image` does once all is opened and checked."""
    folder, settings = ready.output, ready.settings
    with ExitStack() as held:
        held.enter_context(lock_folder(folder))
        files: list[Path] = []
        for done in _prior(ready):
            files = done.files
            yield PhaseProgress("prior", done.done, done.total)
        parts = [ready.told]
        if ready.prior:
            parts.append([*zip(map(load_photo, files), ready.prior, strict=True)])
        total, shown = sum(map(len, parts)), list[list[TrainingSample]]()
        see = cached_latent_encoder(ready.model, folder / LATENTS)
        for part in parts:
            shown.append([])
            for each, caption in part:
                shown[-1].append(encode_photo(ready, see, each, caption))
                yield PhaseProgress("encoding", sum(map(len, shown)), total)
        changed = False
        for progress in held.enter_context(closing(_steps(ready, shown))):
            changed = True
            drawn = _previews(ready, progress) if is_preview_due(settings.training, progress) else []
            yield PhaseProgress("training", progress.step, settings.training.max_train_steps, progress, drawn)
        if changed or not (folder / FINAL).exists():
            copy_weights(ready.trainee, load_weights(folder / LOOP))
            with instead_of(folder / FINAL) as part_of_it:
                networks.save_customisation(ready.model, ready.trainee, part_of_it, describe_customisation(ready))


def _prior(ready: ImageCustomisation) -> Iterator[generate_images.Kept]:
    """Draws the prior, if there is one."""
    settings = ready.settings
    if not ready.prior:
        return iter(())
    folder = settings.prior_folder or ready.output / PRIOR
    return generate_images.kept_stills(
        ready.model, ready.prior, folder, settings.drawing, size=ready.size, seed=settings.training.seed
    )


def encode_photo(ready: ImageCustomisation, see: EncodeClip, picture: Photo, caption: str) -> TrainingSample:
    """A picture's cuts, and their mirror images if those count, as latents; the prior's are cut as the subject's."""
    (height, width), settings = ready.size, ready.settings
    sides = (1, -1) if settings.flips else (1,)
    views = [
        (seen, side)
        for seen in random_crops(picture, settings.crops, settings.crop_share, settings.training.seed)
        for side in sides
    ]
    return TrainingSample(
        tuple(see(photo_request(picture, caption, *each, (height, width))).latents for each in views), caption
    )


def photo_request(picture: Photo, caption: str, seen: Crop, side: int, size: tuple[int, int]) -> ClipRequest:
    """A cut of a picture, in the mirror where `side` is -1, that is to be encoded."""
    return ClipRequest((picture.digest, *seen, side, *size), caption, partial(crop_photo, picture, seen, side, size))


def _steps(ready: ImageCustomisation, shown: list[list[TrainingSample]]) -> Generator[Progress, None, None]:
    """The loop, from its last checkpoint on."""
    model, settings = ready.model, ready.settings
    loop = settings.training
    texts = ["", *(each.caption for part in shown for each in part)]
    tell = (
        batches.precomputed_conditions(model, texts, ready.size)
        if ready.trainee.text is None
        else batches.trained_conditions(model)
    )
    draw = batches.sample_batch_loader(
        shown, loop.seed, settings.caption_dropout, timestep_sampler(settings.levels, model.schedule)
    )
    loss = batches.dreambooth_loss(model, settings, tell)
    steps = fit(ready.trainee, loop, ready.output / LOOP, draw=draw, loss=loss, facts=image_facts(ready))
    return cast(Generator[Progress, None, None], steps)


def image_facts(ready: ImageCustomisation) -> dict[str, Any]:
    """What a run that goes on must have had, beside the settings of its loop."""
    return {
        **ready.settings.decisive(),
        "pictures": [[each.digest[:16], caption] for each, caption in ready.told],
        "prior": list(dict.fromkeys(ready.prior)),
        "model": fingerprints(ready.model),
    }


def is_preview_due(loop: TrainingSettings, progress: Progress) -> bool:
    """Whether something is drawn at this step."""
    return progress.step % loop.validation_steps == 0 or progress.step == loop.max_train_steps


def _previews(ready: ImageCustomisation, progress: Progress) -> list[Path]:
    """Pictures of the previews' prompts, always from the same noise."""
    settings, model = ready.settings, networks.model_with(ready.model, ready.trainee)
    if not settings.previews:
        return []
    with use_averages(ready.trainee, progress.average), autocast(model.device, settings.training.mixed_precision):
        drawn = generate_images.stills(
            model, settings.previews, settings.drawing, size=ready.size, seed=settings.training.seed
        )
    files = []
    for number, (prompt, pixels) in enumerate(zip(settings.previews, drawn, strict=True), 1):
        files.append(ready.output / PREVIEWS / f"step-{progress.step:06d}_{number}-{slug(prompt)}.png")
        generate_images.save_picture(pixels, files[-1])
        progress.log.show(progress.step, f"previews/{prompt}", pixels)
    return files


def describe_customisation(ready: ImageCustomisation) -> dict[str, Any]:
    """What the files say about themselves."""
    return {
        "name": ready.words.name,
        "words": list(ready.words.new),
        "captions": list(dict.fromkeys(ready.words.captions)),
        "model": {"name": ready.model.name, "load": dict(ready.model.settings), "weights": fingerprints(ready.model)},
        "settings": ready.settings.model_dump(mode="json"),
    }
