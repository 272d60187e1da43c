"""The baseline of interleaved training: the image network under a video model's layers along time learns pictures of
the subject and natural videos in turn, the pictures without those layers (Chefer et al. 2024, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from kineograph import noise
from kineograph.media.files import instead_of
from kineograph.methods import still_moving as method
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model

from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training import Progress, TrainingSettings, fit, load_weights
from kineograph.training.customise import adapters, batches, networks
from kineograph.training.customise import image as run
from kineograph.training.customise.batches import CustomisationBatch, Draw, TrainingSample
from kineograph.training.customise.image import FINAL, LATENTS, LOOP, PhaseProgress
from kineograph.training.customise.natural_videos import (
    check_natural_prompts,
    natural_videos_phase,
    prepare_natural_videos,
)
from kineograph.training.customise.networks import TrainedNetworks
from kineograph.training.customise.photos import Images
from kineograph.training.customise.settings import VideoCustomisationSettings, default_video_settings, with_changes
from kineograph.training.customise.video_inputs import VideoCustomisation, underlying_image_model
from kineograph.training.lock import lock_folder
from kineograph.training.norms import use_fast_group_norm
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.latents import cached_latent_encoder
from kineograph.training.temporal_layers.run import copy_weights


def train_interleaved(
    video: Model,
    pictures: Images,
    output: str | Path,
    *,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Trains the image network of a video model on pictures and natural videos in turn, into `output/final`.

    It learns as `settings.image` says, by a LoRA or as a whole, from as many pictures as that shows it, and in as many
    steps of videos as of pictures; a step is of `settings.training.train_batch_size` videos, or of as many pictures as
    those have frames. There is no prior of pictures, and the text encoder learns nothing. `injected(video, output /
    "final")` puts it under the layers along time.

    Its arguments, what it yields and what it raises are as for `customise_video`.
    """
    settings = settings or default_video_settings(video, "style" if subject is None else "subject")
    alone = {"prior_weight": 0.0} | ({"lora": {"text_rank": None}} if settings.image.lora else {})
    settings = with_changes(settings, {"image": alone})
    wanted = prepare_natural_videos(video, settings, natural_videos)
    image = run.prepare_image_customisation(
        underlying_image_model(video), pictures, Path(output), subject=subject, style=style, settings=settings.image
    )
    check_natural_prompts(wanted)
    return _interleaved(VideoCustomisation(video, image, wanted, [], settings, Path(output)))


def _interleaved(ready: VideoCustomisation) -> Generator[PhaseProgress, None, None]:
    image, output, loop = ready.image, ready.output, interleaved_settings(ready)
    shown, videos, altered = list[TrainingSample](), list[TrainingSample](), False
    with ExitStack() as held:
        held.enter_context(lock_folder(output))
        see = cached_latent_encoder(ready.video, output / LATENTS)
        for each, caption in zip(image.photos, image.words.captions, strict=True):
            shown.append(run.encode_photo(image, see, each, caption))
            yield PhaseProgress("encoding", len(shown), len(image.photos))
        yield from natural_videos_phase(ready.natural, output, videos)
        net = _begun(ready)
        for progress in held.enter_context(closing(_steps(ready, net, shown, videos))):
            altered = True
            yield PhaseProgress("training", progress.step, loop.max_train_steps, progress)
        if altered or not (output / FINAL).exists():
            copy_weights(net, load_weights(output / LOOP))
            with instead_of(output / FINAL) as part:
                networks.save_customisation(
                    image.model, TrainedNetworks(net, None), part, run.describe_customisation(image)
                )


def interleaved_settings(ready: VideoCustomisation) -> TrainingSettings:
    """The settings of the loop: the image network's, for as many pictures, with a step of videos after each of them."""
    own, videos = ready.settings.image.training, ready.settings.training.train_batch_size
    turns = math.ceil(own.max_train_steps * own.train_batch_size / (videos * ready.natural.frames))
    return with_changes(own, {"max_train_steps": 2 * turns, "train_batch_size": videos})


def _begun(ready: VideoCustomisation) -> VideoUNet:
    """The image network that learns, under layers along time that do not."""
    temporal = deepcopy(ready.video.net.temporal)
    assert temporal is not None, "checked before"
    temporal = temporal.requires_grad_(requires_grad=False).eval()
    temporal = use_fast_group_norm(temporal) if ready.video.device.type == "cpu" else temporal
    unet = ready.image.trainee.unet
    return VideoUNet(unet.image_unet, temporal, unet.call_stage).eval()


def _steps(
    ready: VideoCustomisation, net: VideoUNet, shown: Sequence[TrainingSample], videos: Sequence[TrainingSample]
) -> Generator[Progress, None, None]:
    settings, loop = ready.settings, interleaved_settings(ready)
    tell = batches.precomputed_conditions(
        ready.video, adapters.all_captions([shown, videos]), ready.image.size, settings.fps
    )
    draw = alternating_batch_loader(ready, loop, shown, videos)
    facts: dict[str, Any] = {
        **run.image_facts(ready.image),
        "natural": ready.natural.facts(),
        "fps": settings.fps,
        "model": fingerprints(ready.video),
    }
    loss = interleaved_loss(ready, tell)
    return cast(Generator[Progress, None, None], fit(net, loop, ready.output / LOOP, draw=draw, loss=loss, facts=facts))


def alternating_batch_loader(
    ready: VideoCustomisation, loop: TrainingSettings, shown: Sequence[TrainingSample], videos: Sequence[TrainingSample]
) -> Draw:
    """What draws the samples of a step: pictures, then videos, then pictures."""
    settings, batch, frames = ready.settings, loop.train_batch_size, ready.natural.frames
    timesteps = timestep_sampler(settings.image.levels, ready.video.schedule)
    pick = [
        batches.sample_batch_loader([each], loop.seed, settings.image.caption_dropout, timesteps)
        for each in (shown, videos)
    ]

    def draw(step: int, samples: range) -> CustomisationBatch:
        turn, kind = divmod(step, 2)
        many = 1 if kind else frames
        start = (turn - step) * batch + samples.start
        return pick[kind](turn, range(start * many, (start + len(samples)) * many))

    return draw


def interleaved_loss(
    ready: VideoCustomisation, tell: batches.EncodePrompts
) -> Callable[[VideoUNet, CustomisationBatch, int], dict[str, Float[Tensor, ""]]]:
    """The loss as `training.fit` wants it, named after what was seen. Pictures are videos of one frame."""
    model, frames = ready.video, ready.natural.frames
    assert model.temporal is not None, "checked before"
    weigh, ratio = batches.WEIGHTS[ready.settings.image.error], model.temporal.noise_ratio

    def loss(net: VideoUNet, batch: CustomisationBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        x0, levels = batch.x0, model.schedule
        kind, count = ("natural", len(x0)) if x0.shape[1] > 1 else ("subject", len(x0) // frames)
        drawn = noise.partly_shared(ratio if x0.shape[1] > 1 else 0.0, seed, range(frames), (count, *x0.shape[2:]))
        told = tell(net, batch.texts)
        off = method.loss(net, levels, told, x0, drawn.reshape(x0.shape).to(x0), batch.timesteps, method.MOVING)
        return {kind: (weigh(levels, batch.timesteps) * off).mean()}

    return loss
