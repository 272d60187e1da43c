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
from kineograph.models.placement import Placement
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training import Progress, TrainingSettings, fit, weights
from kineograph.training.customise import adapters, batches, networks
from kineograph.training.customise import image as run
from kineograph.training.customise.batches import Batch, Draw, Shown
from kineograph.training.customise.image import FINAL, LATENTS, LOOP, Reached
from kineograph.training.customise.natural_videos import gathered, refuse_what_cannot_be_asked, wanted_of
from kineograph.training.customise.networks import Trainee
from kineograph.training.customise.photos import Pictures
from kineograph.training.customise.settings import VideoCustomising, changed, usual_video
from kineograph.training.customise.video_inputs import VideoReady, under
from kineograph.training.lock import claimed
from kineograph.training.norms import with_quick_norms
from kineograph.training.temporal_layers.batches import leveller
from kineograph.training.temporal_layers.latents import kept
from kineograph.training.temporal_layers.run import take


def interleave(
    video: Model,
    pictures: Pictures,
    output: str | Path,
    *,
    subject: str | None = None,
    style: str | None = None,
    natural_videos: str | Path | None = None,
    settings: VideoCustomising | None = None,
) -> Generator[Reached, None, None]:
    """Trains the image network of a video model on pictures and natural videos in turn, into `output/final`.

    It learns as `settings.image` says, by a LoRA or as a whole, from as many pictures as that shows it, and in as many
    steps of videos as of pictures; a step is of `settings.training.train_batch_size` videos, or of as many pictures as
    those have frames. There is no prior of pictures, and the text encoder learns nothing. `injected(video, output /
    "final")` puts it under the layers along time.

    Its arguments, what it yields and what it raises are as for `customise_video`.
    """
    settings = settings or usual_video(video, "style" if subject is None else "subject")
    alone = {"prior_weight": 0.0} | ({"lora": {"text_rank": None}} if settings.image.lora else {})
    settings = changed(settings, {"image": alone})
    wanted = wanted_of(video, settings, natural_videos)
    image = run.ready(under(video), pictures, Path(output), subject=subject, style=style, settings=settings.image)
    refuse_what_cannot_be_asked(wanted)
    return _interleaved(VideoReady(video, image, wanted, [], settings, Path(output)))


def _interleaved(ready: VideoReady) -> Generator[Reached, None, None]:
    image, output, loop = ready.image, ready.output, loop_of(ready)
    shown, videos, altered = list[Shown](), list[Shown](), False
    with ExitStack() as held:
        held.enter_context(claimed(output))
        see = kept(ready.video, output / LATENTS)
        for each, caption in zip(image.photos, image.words.captions, strict=True):
            shown.append(run.shown_of(image, see, each, caption))
            yield Reached("encoding", len(shown), len(image.photos))
        yield from gathered(ready.natural, output, videos)
        net = _begun(ready)
        for progress in held.enter_context(closing(_steps(ready, net, shown, videos))):
            altered = True
            yield Reached("training", progress.step, loop.max_train_steps, progress)
        if altered or not (output / FINAL).exists():
            take(net, weights(output / LOOP))
            with instead_of(output / FINAL) as part:
                networks.write(image.model, Trainee(net, None), part, run.card(image))


def loop_of(ready: VideoReady) -> TrainingSettings:
    """The settings of the loop: the image network's, for as many pictures, with a step of videos after each of them."""
    own, videos = ready.settings.image.training, ready.settings.training.train_batch_size
    turns = math.ceil(own.max_train_steps * own.train_batch_size / (videos * ready.natural.frames))
    return changed(own, {"max_train_steps": 2 * turns, "train_batch_size": videos})


def _begun(ready: VideoReady) -> VideoUNet:
    """The image network that learns, under layers along time that do not."""
    temporal = deepcopy(ready.video.net.temporal)
    assert temporal is not None, "checked before"
    temporal = temporal.requires_grad_(requires_grad=False).eval()
    place = Placement(ready.video.device, ready.video.dtype, "as the model is")
    temporal = with_quick_norms(temporal) if place.device.type == "cpu" else temporal
    unet = ready.image.trainee.unet
    return VideoUNet(unet.image_unet, temporal, unet.through).eval()


def _steps(
    ready: VideoReady, net: VideoUNet, shown: Sequence[Shown], videos: Sequence[Shown]
) -> Generator[Progress, None, None]:
    settings, loop = ready.settings, loop_of(ready)
    tell = batches.known(ready.video, adapters.texts([shown, videos]), ready.image.size, settings.fps)
    draw = in_turn(ready, loop, shown, videos)
    facts: dict[str, Any] = {
        **run.facts_of(ready.image),
        "natural": ready.natural.facts(),
        "fps": settings.fps,
        "model": fingerprints(ready.video),
    }
    loss = loss_of(ready, tell)
    return cast(Generator[Progress, None, None], fit(net, loop, ready.output / LOOP, draw=draw, loss=loss, facts=facts))


def in_turn(ready: VideoReady, loop: TrainingSettings, shown: Sequence[Shown], videos: Sequence[Shown]) -> Draw:
    """What draws the samples of a step: pictures, then videos, then pictures."""
    settings, batch, frames = ready.settings, loop.train_batch_size, ready.natural.frames
    timesteps = leveller(settings.image.levels, ready.video.schedule)
    pick = [batches.drawing([each], loop.seed, settings.image.caption_dropout, timesteps) for each in (shown, videos)]

    def draw(step: int, samples: range) -> Batch:
        turn, kind = divmod(step, 2)
        many = 1 if kind else frames
        start = (turn - step) * batch + samples.start
        return pick[kind](turn, range(start * many, (start + len(samples)) * many))

    return draw


def loss_of(ready: VideoReady, tell: batches.Tell) -> Callable[[VideoUNet, Batch, int], dict[str, Float[Tensor, ""]]]:
    """The loss as `training.fit` wants it, named after what was seen. Pictures are videos of one frame."""
    model, frames = ready.video, ready.natural.frames
    assert model.temporal is not None, "checked before"
    weigh, ratio = batches.WEIGHTS[ready.settings.image.error], model.temporal.noise_ratio

    def loss(net: VideoUNet, batch: Batch, seed: int) -> dict[str, Float[Tensor, ""]]:
        x0, levels = batch.x0, model.schedule
        kind, count = ("natural", len(x0)) if x0.shape[1] > 1 else ("subject", len(x0) // frames)
        drawn = noise.partly_shared(ratio if x0.shape[1] > 1 else 0.0, seed, range(frames), (count, *x0.shape[2:]))
        told = tell(net, batch.texts)
        off = method.loss(net, levels, told, x0, drawn.reshape(x0.shape).to(x0), batch.timesteps, method.MOVING)
        return {kind: (weigh(levels, batch.timesteps) * off).mean()}

    return loss
