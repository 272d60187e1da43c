"""Step I of Still-Moving: a motion adapter for a video model that has none, of videos that stand still."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import cast

from kineograph.hub import HubOptions
from kineograph.methods.still_moving import STILL
from kineograph.models.loading import adapter_files
from kineograph.models.loading.provenance import fingerprints, source_name
from kineograph.models.model import Model
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training import Progress, fit, load_weights
from kineograph.training.customise import adapters, batches
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.image import PhaseProgress
from kineograph.training.customise.natural_videos import (
    NaturalVideos,
    check_natural_prompts,
    natural_videos_phase,
    prepare_natural_videos,
)
from kineograph.training.customise.settings import VideoCustomisationSettings, default_video_settings
from kineograph.training.lock import lock_folder
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.run import copy_weights

MOTION_ADAPTER, STILLING = "motion_adapter.safetensors", "stilling"


def train_motion_adapter(
    video: Model,
    output: str | Path,
    *,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Trains a motion adapter for a video model, once for all its subjects and styles, from where the folder was left.

    Args:
        video: a video model; a motion adapter that it has is passed over.
        output: a folder of this training alone, in the end with `motion_adapter.safetensors`, for
            `kineograph.load(motion_adapter=...)`.
        natural_videos, settings: as for `customise_video`; `usual_video(video, "subject")` unless given.

    Yields every natural video and every step. Raises InputError and OSError as `customise_video` does.
    """
    settings = settings or default_video_settings(video, "subject")
    wanted = prepare_natural_videos(video, settings, natural_videos)
    check_natural_prompts(wanted)
    return run_motion_adapter_training(wanted, Path(output))


def run_motion_adapter_training(wanted: NaturalVideos, output: Path) -> Generator[PhaseProgress, None, None]:
    """What `train_motion_adapter` does once all is opened and checked."""
    shown = list[TrainingSample]()
    with lock_folder(output):
        yield from natural_videos_phase(wanted, output, shown)
        yield from motion_adapter_phase(wanted, output, shown)


def motion_adapter_phase(
    wanted: NaturalVideos, output: Path, shown: list[TrainingSample]
) -> Generator[PhaseProgress, None, None]:
    """Every step of the training; the file is written in the end, if it is not there or anything was trained."""
    settings, video = wanted.settings, wanted.video
    total, changed = settings.motion_training.max_train_steps, False
    net = adapters.motion_adapter_network(video, settings)
    with closing(_steps(wanted, net, output / STILLING, shown)) as steps:
        for progress in steps:
            changed = True
            yield PhaseProgress("stilling", progress.step, total, progress)
    file = output / MOTION_ADAPTER
    if changed or not file.exists():
        copy_weights(net, load_weights(output / STILLING))
        assert net.motion_adapter is not None and video.net.temporal is not None
        adapter_files.save_motion_adapter(
            net.motion_adapter, video.net.temporal, file, name=temporal_layers_name(video)
        )


def _steps(
    wanted: NaturalVideos, net: VideoUNet, folder: Path, shown: list[TrainingSample]
) -> Generator[Progress, None, None]:
    video, settings = wanted.video, wanted.settings
    loop = settings.motion_training
    parts = [[adapters.frozen_videos(each, wanted.frames) for each in shown]]
    tell = batches.precomputed_conditions(video, adapters.all_captions(parts), wanted.size, settings.fps)
    loss = adapters.still_moving_loss(video, settings, tell, {"still": (STILL, 1.0)})
    draw = batches.sample_batch_loader(
        parts, loop.seed, settings.caption_dropout, timestep_sampler(settings.levels, video.schedule)
    )
    facts = {
        "motion": settings.motion.model_dump(mode="json"),
        **{name: settings.decisive()[name] for name in ("caption_dropout", "levels", "error", "fps")},
        "natural": wanted.facts(),
        "model": fingerprints(video),
    }
    return cast(Generator[Progress, None, None], fit(net, loop, folder, draw=draw, loss=loss, facts=facts))


def read_trained_motion_adapter(video: Model, file: Path) -> MotionAdapter:
    """A motion adapter that was trained for the video model."""
    assert video.net.temporal is not None, "checked before"
    return adapter_files.build_motion_adapter(
        adapter_files.read_adapter_file(file, "motion", HubOptions()), video.net.temporal, temporal_layers_name(video)
    )


def temporal_layers_name(video: Model) -> str:
    """What the layers along time are called, which may have come from elsewhere than the image network."""
    return source_name(video.settings.get("motion") or video.name)
