"""The training: one resumable loop a stage, each from the weights that the one before came to."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from kineograph import plan
from kineograph.media.dataset_layouts import Kind
from kineograph.media.files import instead_of
from kineograph.models.loading.save import save
from kineograph.models.model import Model
from kineograph.models.temporal.config import TemporalConfig
from kineograph.training import Progress, TrainingSettings, fit, current_process, load_weights
from kineograph.training.lock import lock_folder
from kineograph.training.settings import samples_per_step
from kineograph.training.temporal_layers import batches, latents, samples, sources
from kineograph.training.temporal_layers.model import open_model
from kineograph.training.temporal_layers.settings import Stage, VideoTrainingSettings
from kineograph.training.temporal_layers.sources import ClipLoader, OpenSource, LoadOptions, clip_shape

FINAL, SAMPLES, SKIPPED = "final", "samples", "skipped.jsonl"

Skipped = dict[str, str]


class PreparedTraining(NamedTuple):
    """A training with all that it needs opened and checked, and nothing written yet."""

    settings: VideoTrainingSettings
    model: Model
    sources: Mapping[Kind, tuple[OpenSource, ...]]
    process: PartialState

    @property
    def legs(self) -> list[StageRun]:
        """Its stages."""
        return [StageRun(self, number, stage) for number, stage in enumerate(self.settings.stages)]

    @property
    def temporal(self) -> TemporalConfig:
        """What the model has along time."""
        assert self.model.temporal is not None, "put on by `begun`"
        return self.model.temporal


class StageRun(NamedTuple):
    """One stage of a training. number: counted from 0."""

    ready: PreparedTraining
    number: int
    stage: Stage

    @property
    def name(self) -> str:
        """Of its folder, and what its samples begin with."""
        return f"stage-{self.number + 1}"

    @property
    def folder(self) -> Path:
        """Of its checkpoints and its log."""
        return self.ready.settings.output / self.name

    @property
    def loop(self) -> TrainingSettings:
        """The settings of its loop."""
        return self.ready.settings.of_stage(self.number)

    @property
    def batch(self) -> int:
        """Samples a step, of all processes."""
        return samples_per_step(self.loop, self.ready.process.num_processes)


class StageProgress(NamedTuple):
    """Where a training is after a step.

    stage: counted from 1. samples: the files of the videos that were drawn at this step.
    skipped: broken files so far, by name, with the reasons.
    """

    stage: int
    stages: int
    progress: Progress
    samples: list[Path]
    skipped: Mapping[str, str]


def prepare_training(settings: VideoTrainingSettings, device: str | torch.device | None = None) -> PreparedTraining:
    """Opens what the settings name.

    device: this process's own unless given. Raises InputError for what cannot be opened or does not go together.
    """
    process = current_process()
    model = open_model(settings, torch.device(device or process.device))
    if settings.validation is not None:
        model.prompt(settings.validation.prompts)
        for request in samples.validation_requests(settings.validation, settings.stages[0]):
            plan.open_inputs(request)
    opened = {"video": sources.open_sources(settings.videos, "video"), "image": sources.open_sources(settings.images, "image")}
    return PreparedTraining(settings, model, cast(Mapping[Kind, tuple[OpenSource, ...]], opened), process)


def train(ready: PreparedTraining) -> Generator[StageProgress, None, None]:
    """Trains, from where the output folder was left, and writes the model with averaged weights into output/final.

    A checkpoint is written when the consumer leaves. Raises InputError as `training.fit` does, when nothing can be
    drawn from a source, and when the latent cache cannot be written; OSError when a sample or the model cannot.
    """
    settings, folder, process = ready.settings, ready.settings.output, ready.process
    with ExitStack() as held:
        if process.is_main_process:
            held.enter_context(lock_folder(folder))
        skipped, changed = _skipped_before(folder / SKIPPED), False
        see = latents.cached_latent_encoder(ready.model, cache) if (cache := settings.latent_cache) else latents.latent_encoder(ready.model)
        for leg in ready.legs:
            for reached in _walked(leg, see, skipped):
                changed = True
                yield reached
            process.wait_for_everyone()
            copy_weights(ready.model.net, load_weights(leg.folder))
        if process.is_main_process and (changed or not (folder / FINAL).exists()):
            with instead_of(folder / FINAL) as part:
                save(ready.model, part)


def _walked(leg: StageRun, see: latents.EncodeClip, skipped: Skipped) -> Iterator[StageProgress]:
    """A stage's steps, from its last checkpoint on; none if it is finished."""
    net, settings, noted = leg.ready.model.net, leg.ready.settings, len(skipped)
    loss = batches.denoising_loss(leg.ready.model, leg.stage.num_frames, leg.ready.temporal.noise_ratio)
    steps = fit(net, leg.loop, leg.folder, draw=_draw(leg, see, skipped), loss=loss, facts=_facts(leg))
    studio = _studio(leg)
    with closing(cast(Generator[Progress, None, None], steps)):
        for progress in steps:
            noted = _note(skipped, noted, settings.output / SKIPPED, progress)
            files = samples.save_validation_videos(studio, progress) if studio and _is_due(progress.step, leg.loop) else []
            yield StageProgress(leg.number + 1, len(settings.stages), progress, files, skipped)


def _is_due(step: int, loop: TrainingSettings) -> bool:
    return step % loop.validation_steps == 0 or step == loop.max_train_steps


def _studio(leg: StageRun) -> samples.ValidationVideos | None:
    """Where samples are drawn, if they are, and in this process."""
    ready, settings = leg.ready, leg.ready.settings
    if settings.validation is None or not ready.process.is_main_process:
        return None
    asked = samples.validation_requests(settings.validation, leg.stage)
    return samples.ValidationVideos(ready.model, asked, leg.loop.mixed_precision, settings.output / SAMPLES, leg.name)


def _draw(leg: StageRun, see: latents.EncodeClip, skipped: Skipped) -> batches.Draw:
    settings, model, stage = leg.ready.settings, leg.ready.model, leg.stage
    deal = batches.BatchOptions(leg.batch, stage.num_frames, settings.image_share, settings.caption_dropout, seed=leg.loop.seed)
    told = batches.caption_encoder(model, (stage.height, stage.width))
    return batches.video_batch_loader(clip_loaders(leg, see, skipped), deal, batches.timestep_sampler(settings.levels, model.schedule), told)


def clip_loaders(leg: StageRun, see: latents.EncodeClip, skipped: Skipped) -> dict[Kind, ClipLoader]:
    """What a stage sees of each kind."""
    settings = leg.ready.settings
    clips = None if settings.latent_cache is None else settings.clips_per_video
    rules = LoadOptions(leg.loop.seed, settings.training.seed, clips, see, skipped)
    return {
        kind: sources.combined_loader(opened, clip_shape(leg.stage, kind), rules)
        for kind, opened in leg.ready.sources.items()
        if opened
    }


def _facts(leg: StageRun) -> dict[str, Any]:
    """What a run that goes on must have had, beside the settings of its loop."""
    counts = {
        kind: [None if each.dataset is None else len(each.dataset) for each in opened]
        for kind, opened in leg.ready.sources.items()
    }
    return leg.ready.settings.decisive(leg.number) | {
        "layers": leg.ready.temporal.model_dump(mode="json", exclude={"num_frames"}),
        "found": counts,
    }


def _skipped_before(file: Path) -> Skipped:
    """What earlier runs in the folder skipped; a kill may have cut the last line short."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    told = (json.loads(line) for line in lines if line.endswith("}"))
    return {each["name"]: each["reason"] for each in told}


def _note(skipped: Skipped, noted: int, file: Path, progress: Progress) -> int:
    """Writes down what was skipped since, of which `noted` were; how many there are now."""
    new = list(skipped.items())[noted:]
    if new:
        with file.open("a", encoding="utf-8") as opened:
            opened.writelines(json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in new)
        progress.log.tell(progress.step, {"skipped": noted + len(new)})
    return noted + len(new)


@torch.no_grad()
def copy_weights(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Puts trained weights into a network, for good."""
    for name, weight in net.named_parameters():
        if name in values:
            weight.copy_(values[name])


def any_process_stops(ready: PreparedTraining, asked: bool) -> bool:  # noqa: FBT001 (a fact that is passed on)
    """Whether any of the processes is asked to stop; all say so together, so that none waits for one that has left."""
    if ready.process.num_processes == 1:
        return asked
    return bool(reduce(torch.tensor(float(asked), device=ready.process.device), "sum") > 0)
