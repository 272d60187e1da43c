"""Training run: one resumable loop for each stage, which starts from the averaged weights of the stage before."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from kineograph.media.dataset_layouts import MediaKind
from kineograph.media.files import append_text, replace_atomically
from kineograph.models.loading.save import save
from kineograph.models.model import Model
from kineograph.models.temporal.config import TemporalConfig
from kineograph.training import TrainingProgress, TrainingSettings, current_process, fit, load_weights
from kineograph.training.gradients import LoadBatch
from kineograph.training.lock import lock_folder
from kineograph.training.loop import is_due
from kineograph.training.optimisers import copy_weights
from kineograph.training.settings import samples_per_step
from kineograph.training.temporal_layers import batches, latent_cache, sources, validation
from kineograph.training.temporal_layers.initial_model import open_model
from kineograph.training.temporal_layers.settings import Stage, VideoTrainingSettings
from kineograph.training.temporal_layers.sources import ClipLoader, ClipLoaderOptions, OpenSource, clip_shape

FINAL, SAMPLES, SKIPPED = "final", "samples", "skipped.jsonl"

Skipped = dict[str, str]  # name of a broken file -> reason


class PreparedTraining(NamedTuple):
    """A training with its model and data opened and checked; nothing is written yet."""

    settings: VideoTrainingSettings
    model: Model
    sources: Mapping[MediaKind, tuple[OpenSource, ...]]
    process: PartialState

    @property
    def stages(self) -> list[StageRun]:
        """Stages of the training."""
        return [StageRun(self, number, stage) for number, stage in enumerate(self.settings.stages)]

    @property
    def temporal(self) -> TemporalConfig:
        """Configuration of the model's temporal layers."""
        assert self.model.temporal is not None, "added by `open_model`"
        return self.model.temporal


class StageRun(NamedTuple):
    """One stage of a training. number: counted from 0."""

    training: PreparedTraining
    number: int
    stage: Stage

    @property
    def name(self) -> str:
        """Name of the stage's folder, and prefix of its validation videos."""
        return f"stage-{self.number + 1}"

    @property
    def folder(self) -> Path:
        """Folder of checkpoints and log."""
        return self.training.settings.output / self.name

    @property
    def loop(self) -> TrainingSettings:
        """Settings of the stage's loop."""
        return self.training.settings.loop_settings(self.number)

    @property
    def batch_size(self) -> int:
        """Samples a step, over all processes."""
        return samples_per_step(self.loop, self.training.process.num_processes)


class StageProgress(NamedTuple):
    """Progress of a training after a step.

    stage: counted from 1. samples: files of the validation videos generated at this step.
    skipped: broken files so far, by name, with the reasons.
    """

    stage: int
    stages: int
    progress: TrainingProgress
    samples: list[Path]
    skipped: Mapping[str, str]


def prepare_training(settings: VideoTrainingSettings, device: str | torch.device | None = None) -> PreparedTraining:
    """Open and check the model and data that the settings name.

    device: this process's own unless given. Raises InputError for what cannot be opened or does not fit together.
    """
    process = current_process()
    model = open_model(settings, torch.device(device or process.device))
    if settings.validation is not None:
        for request in validation.validation_requests(settings.validation, settings.stages[0]):
            validation.check_request(model, request)
    opened: dict[MediaKind, tuple[OpenSource, ...]] = {
        "video": sources.open_sources(settings.videos, "video"),
        "image": sources.open_sources(settings.images, "image"),
    }
    return PreparedTraining(settings, model, opened, process)


def train(training: PreparedTraining) -> Generator[StageProgress, None, None]:
    """Train from where the output folder was left, and write the model with averaged weights into output/final.

    A checkpoint is written when the consumer leaves. Raises InputError as `training.fit` does, when nothing in a source
    can be read, and when the latent cache cannot be written; OSError when a sample or the model cannot be written.
    """
    settings, folder, process = training.settings, training.settings.output, training.process
    with ExitStack() as stack:
        if process.is_main_process:
            stack.enter_context(lock_folder(folder))
        skipped, changed = _read_skipped(folder / SKIPPED), False
        model, cache = training.model, settings.latent_cache
        encode = latent_cache.cached_latent_encoder(model, cache) if cache else latent_cache.latent_encoder(model)
        for run in training.stages:
            for progress in _train_stage(run, encode, skipped):
                changed = True
                yield progress
            process.wait_for_everyone()
            copy_weights(model.net, load_weights(run.folder))
        if process.is_main_process and (changed or not (folder / FINAL).exists()):
            with replace_atomically(folder / FINAL) as part:
                save(model, part)


def _train_stage(run: StageRun, encode: latent_cache.EncodeClip, skipped: Skipped) -> Iterator[StageProgress]:
    """Train a stage from its last checkpoint on; yields nothing if it is finished."""
    model, settings, num_written = run.training.model, run.training.settings, len(skipped)
    loss = batches.denoising_loss(model, run.stage.num_frames, run.training.temporal.noise_ratio)
    load_batch = stage_batch_loader(run, encode, skipped)
    steps = fit(model.net, run.loop, run.folder, load_batch=load_batch, loss=loss, facts=_facts(run))
    videos = _validation_videos(run)
    with closing(steps):
        for progress in steps:
            num_written = _write_skipped(skipped, num_written, settings.output / SKIPPED, progress)
            due = is_due(run.loop, progress.step, run.loop.validation_steps)
            files = validation.save_validation_videos(videos, progress) if videos and due else []
            yield StageProgress(run.number + 1, len(settings.stages), progress, files, skipped)


def _validation_videos(run: StageRun) -> validation.ValidationVideos | None:
    """Return the stage's validation videos; None without any, and in all processes but the first."""
    training, settings = run.training, run.training.settings
    if settings.validation is None or not training.process.is_main_process:
        return None
    requests = validation.validation_requests(settings.validation, run.stage)
    return validation.ValidationVideos(
        training.model, requests, run.loop.mixed_precision, settings.output / SAMPLES, run.name
    )


def stage_batch_loader(
    run: StageRun, encode: latent_cache.EncodeClip, skipped: Skipped
) -> LoadBatch[batches.VideoBatch]:
    """Return the function that loads the batches of a stage."""
    settings, model, stage = run.training.settings, run.training.model, run.stage
    options = batches.BatchOptions(
        run.batch_size, stage.num_frames, settings.image_share, settings.caption_dropout, seed=run.loop.seed
    )
    return batches.video_batch_loader(
        clip_loaders(run, encode, skipped),
        options,
        batches.timestep_sampler(settings.levels, model.schedule),
        batches.caption_encoder(model, (stage.height, stage.width)),
    )


def clip_loaders(run: StageRun, encode: latent_cache.EncodeClip, skipped: Skipped) -> dict[MediaKind, ClipLoader]:
    """Return the functions that load a stage's videos and images."""
    settings = run.training.settings
    windows = None if settings.latent_cache is None else settings.clips_per_video
    options = ClipLoaderOptions(run.loop.seed, settings.training.seed, windows, encode, skipped)
    return {
        kind: sources.combined_loader(opened, clip_shape(run.stage, kind), options)
        for kind, opened in run.training.sources.items()
        if opened
    }


def _facts(run: StageRun) -> dict[str, Any]:
    """Return what must be the same when the stage is resumed, besides the settings of its loop."""
    counts = {
        kind: [None if each.dataset is None else len(each.dataset) for each in opened]
        for kind, opened in run.training.sources.items()
    }
    return run.training.settings.resume_settings(run.number) | {
        "layers": run.training.temporal.model_dump(mode="json", exclude={"num_frames"}),
        "items": counts,
    }


def _read_skipped(file: Path) -> Skipped:
    """Return what earlier runs in the folder skipped, without lines that are damaged."""
    skipped: Skipped = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            row = json.loads(line)
            skipped[str(row["name"])] = str(row["reason"])
    return skipped


def _write_skipped(skipped: Skipped, num_written: int, file: Path, progress: TrainingProgress) -> int:
    """Append the skipped files after the first `num_written`, and return their new number."""
    new = list(skipped.items())[num_written:]
    if new:
        append_text(file, "".join(json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in new))
        progress.log.write(progress.step, {"skipped": num_written + len(new)})
    return num_written + len(new)


def any_process_stops(training: PreparedTraining, stop: bool) -> bool:  # noqa: FBT001 (a fact that is passed on)
    """Return True in all processes if one of them is to stop, so that none waits for one that has left."""
    if training.process.num_processes == 1:
        return stop
    return bool(reduce(torch.tensor(float(stop), device=training.process.device), "sum") > 0)
