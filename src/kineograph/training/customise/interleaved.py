"""Interleaved training, a baseline of Still-Moving (Chefer et al. 2024, section 5.1).

The image network of a video model is trained on images of the subject and on natural videos in alternating steps, with
the temporal layers on the videos only.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from copy import deepcopy
from pathlib import Path

from torch import Tensor

from kineograph.media.files import replace_atomically
from kineograph.methods.still_moving import MOVING
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise import adapters, batches, networks
from kineograph.training.customise.batches import CustomisationBatch, TrainingSample
from kineograph.training.customise.image_data import Images
from kineograph.training.customise.image_model import (
    describe_customisation,
    encode_photo,
    image_facts,
    prepare_image_customisation,
)
from kineograph.training.customise.natural_videos import (
    check_natural_videos,
    natural_videos_phase,
    prepare_natural_videos,
)
from kineograph.training.customise.networks import TrainedNetworks
from kineograph.training.customise.phases import LATENTS, TRAINING, PhaseProgress, train_phase
from kineograph.training.customise.settings import VideoCustomisationSettings, default_video_settings, with_changes
from kineograph.training.customise.video_model import VideoCustomisation, underlying_image_model
from kineograph.training.gradients import LoadBatch, LossFunction
from kineograph.training.group_norm import use_fast_group_norm
from kineograph.training.lock import lock_folder
from kineograph.training.settings import TrainingSettings
from kineograph.training.temporal_layers.batches import batch_noise, timestep_sampler
from kineograph.training.temporal_layers.latent_cache import cached_latent_encoder
from kineograph.training.temporal_layers.run import FINAL


def train_interleaved(
    video: Model,
    images: Images,
    output: str | Path,
    *,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Train the image network of a video model on images and natural videos in turn; the result is in `output/final`.

    It is trained as `settings.image` says, by a LoRA or as a whole, on as many images as that has, and in as many steps
    of videos as of images; a step is of `settings.training.train_batch_size` videos, or of as many images as those have
    frames. There is no prior of images, and the text encoder is frozen. `inject_customised(video, output / "final")`
    returns the video model with the result.

    Arguments, yields and errors are those of `customise_video`.
    """
    settings = settings or default_video_settings(video, "style" if subject is None else "subject")
    changes = {"prior_weight": 0.0} | ({"lora": {"text_rank": None}} if settings.image.lora else {})
    settings = with_changes(settings, {"image": changes})
    natural = prepare_natural_videos(video, settings, natural_videos)
    underlying = underlying_image_model(video)
    image = prepare_image_customisation(
        underlying, images, Path(output), subject=subject, style=style, settings=settings.image
    )
    check_natural_videos(natural)
    return _run(VideoCustomisation(video, image, natural, [], settings, Path(output)))


def _run(prepared: VideoCustomisation) -> Generator[PhaseProgress, None, None]:
    image, output = prepared.image, prepared.output
    samples, natural = list[TrainingSample](), list[TrainingSample]()
    with lock_folder(output):
        encode = cached_latent_encoder(prepared.video, output / LATENTS)
        for photo, caption in zip(image.photos, image.words.captions, strict=True):
            samples.append(encode_photo(image, encode, photo, caption))
            yield PhaseProgress("encoding", len(samples), len(image.photos))
        yield from natural_videos_phase(prepared.natural, output, natural)
        yield from _train(prepared, samples, natural)


def _train(
    prepared: VideoCustomisation, samples: Sequence[TrainingSample], natural: Sequence[TrainingSample]
) -> Generator[PhaseProgress, None, None]:
    image, settings, final = prepared.image, prepared.settings, prepared.output / FINAL
    net, loop = _network(prepared), interleaved_settings(prepared)
    encode_prompts = batches.precomputed_conditions(
        prepared.video, adapters.all_captions([samples, natural]), image.size, settings.fps
    )

    def write() -> None:
        with replace_atomically(final) as part:
            networks.save_customisation(image.model, TrainedNetworks(net, None), part, describe_customisation(image))

    yield from train_phase(
        "training",
        net,
        loop,
        prepared.output / TRAINING,
        load_batch=alternating_batch_loader(prepared, loop, samples, natural),
        loss=interleaved_loss(prepared, encode_prompts),
        facts=image_facts(image)
        | {"natural": prepared.natural.facts(), "fps": settings.fps, "model": fingerprints(prepared.video)},
        result=final,
        write_result=write,
    )


def interleaved_settings(prepared: VideoCustomisation) -> TrainingSettings:
    """Return the settings of the loop: the image network's, with as many images, and a step of videos after each."""
    own, videos = prepared.settings.image.training, prepared.settings.training.train_batch_size
    pairs = math.ceil(own.max_train_steps * own.train_batch_size / (videos * prepared.natural.num_frames))
    return with_changes(own, {"max_train_steps": 2 * pairs, "train_batch_size": videos})


def _network(prepared: VideoCustomisation) -> VideoUNet:
    """Return the trained image network with frozen temporal layers."""
    temporal = deepcopy(prepared.video.net.temporal)
    assert temporal is not None, "checked before"
    temporal = temporal.requires_grad_(requires_grad=False).eval()
    temporal = temporal.float() if prepared.settings.image.training.mixed_precision == "no" else temporal
    temporal = use_fast_group_norm(temporal) if prepared.video.device.type == "cpu" else temporal
    unet = networks.trainable_copy(prepared.image.model, prepared.image.settings).unet
    return VideoUNet(unet.image_unet, temporal, unet.call_stage).eval()


def alternating_batch_loader(
    prepared: VideoCustomisation,
    loop: TrainingSettings,
    samples: Sequence[TrainingSample],
    natural: Sequence[TrainingSample],
) -> LoadBatch[CustomisationBatch]:
    """Return the function that loads a step: images in even steps, videos in odd ones."""
    settings, batch_size, num_frames = prepared.settings, loop.train_batch_size, prepared.natural.num_frames
    sample_timesteps = timestep_sampler(settings.image.levels, prepared.video.schedule)
    loaders = [
        batches.sample_batch_loader([part], loop.seed, settings.image.caption_dropout, sample_timesteps)
        for part in (samples, natural)
    ]

    def load(step: int, numbers: range) -> CustomisationBatch:
        pair, kind = divmod(step, 2)
        per_sample = 1 if kind else num_frames
        start = (pair - step) * batch_size + numbers.start
        return loaders[kind](pair, range(start * per_sample, (start + len(numbers)) * per_sample))

    return load


def interleaved_loss(
    prepared: VideoCustomisation, encode_prompts: batches.EncodePrompts
) -> LossFunction[VideoUNet, CustomisationBatch]:
    """Return the loss for `training.fit`: "subject" of images, which are videos of one frame, "natural" of videos."""
    model, error = prepared.video, prepared.settings.image.error
    assert model.temporal is not None, "checked before"
    ratio, num_frames = model.temporal.noise_ratio, prepared.natural.num_frames

    def noise_of(seed: int, x0: Tensor) -> Tensor:
        return batch_noise(ratio, seed, num_frames, x0)

    of_images, of_videos = (
        batches.still_moving_loss(model, error, encode_prompts, {name: (MOVING, 1.0)}, noise_of)
        for name in ("subject", "natural")
    )
    return lambda net, batch, seed: (of_videos if batch.x0.shape[1] > 1 else of_images)(net, batch, seed)
