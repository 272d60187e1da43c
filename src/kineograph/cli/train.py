"""`kineograph train`: a settings file becomes a video model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kineograph.cli import terminal
from kineograph.cli.options import Json
from kineograph.cli.terminal import format_duration, stop_signals
from kineograph.errors import InputWarning

if TYPE_CHECKING:  # whoever only asks for help does not wait for torch
    from kineograph.training.temporal_layers import PreparedTraining, StageProgress

SHOWN = 5  # names in a message


def train(
    settings: Annotated[Path, typer.Argument(help="A YAML file, such as examples/train_video.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(show_default=False, help="Settings in place of the file's: training.learning_rate=1e-4."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, on what, and the memory; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train layers along time around an image model, or a video model further, as VideoCrafter1 was trained.

    The trained model's folder goes to stdout, all else to stderr. The same command goes on with a training that was
    stopped; on several GPUs it is accelerate launch -m kineograph train SETTINGS. See docs/training.md.
    """
    if os.environ.get("RANK", "0") == "0":  # the one of several processes that speaks
        terminal.print_message("reading the settings, the model and the data")
    from kineograph.training import current_process, load_settings, temporal_layers

    chosen = load_settings(settings, temporal_layers.VideoTrainingSettings, overrides or [])
    terminal.hide_loading_bars()
    if not current_process().is_main_process:
        warnings.simplefilter("ignore", InputWarning)
    if dry_run:
        _tell_plan(temporal_layers.prepare_training(chosen, "cpu"), json)
        return
    ready = temporal_layers.prepare_training(chosen)
    with (
        stop_signals() as asked,
        terminal.progress_bar("training") as tell,
        closing(temporal_layers.train(ready)) as steps,
    ):
        last, losses = None, dict[str, float]()
        for last in steps:
            losses |= last.progress.losses  # a step is of one kind
            if ready.process.is_main_process:
                _tell(ready, last, losses, tell)
            if temporal_layers.any_process_stops(ready, bool(asked())):
                break
    if ready.process.is_main_process:
        _tell_end(ready, last, asked(), json)
    if asked():
        raise SystemExit(asked())


def _tell(
    ready: PreparedTraining, reached: StageProgress, losses: Mapping[str, float], tell: Callable[[int, int], None]
) -> None:
    """How far a training is: a bar, and a line as often as there is one in the log."""
    progress, stage = reached.progress, ready.settings.stages[reached.stage - 1]
    tell(progress.step, stage.steps)
    if progress.step % ready.settings.training.log_every == 0 or progress.step == stage.steps:
        came_to = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        left = (stage.steps - progress.step) * progress.seconds / progress.step
        terminal.print_message(
            f"stage {reached.stage} of {reached.stages}, step {progress.step} of {stage.steps}: loss {came_to}, "
            f"{progress.samples_seen / progress.seconds:.3g} samples a second, {format_duration(left)} left"
        )
    for file in reached.samples:
        terminal.print_message(f"wrote {file}")


def _tell_end(ready: PreparedTraining, last: StageProgress | None, status: int, json: bool) -> None:
    from kineograph.training.temporal_layers import FINAL, SKIPPED

    output = ready.settings.output
    skipped: Mapping[str, str] = last.skipped if last else {}
    if skipped:
        terminal.print_message(
            f"passed over {len(skipped)} files, all named in {output / SKIPPED}: {_some(skipped.values())}"
        )
    if status and last:
        terminal.print_message(
            f"step {last.progress.step} of stage {last.stage} is kept: the same command goes on from there"
        )
    final = None if status else str(output / FINAL)
    if json:
        where = {"stage": last.stage, "step": last.progress.step} if last else {}
        terminal.print_json({"path": final, "stopped": bool(status), **where, "skipped": dict(skipped)})
    elif final:
        print(final)


def _tell_plan(ready: PreparedTraining, json: bool) -> None:
    from kineograph.training.temporal_layers import estimate_training

    told = estimate_training(ready)
    if json:
        terminal.print_json(told.as_json())
        return
    for part in told.parts:
        terminal.print_message(f"{part.name}: {part.trained:,} parameters trained, {part.frozen:,} frozen")
    for number, stage in enumerate(told.stages, 1):
        terminal.print_message(
            f"stage {number}: {stage.steps:,} steps of {stage.samples_per_step} samples, {stage.num_frames} frames of "
            f"{stage.width} x {stage.height} at {_rates(stage.fps)}, which is {stage.videos:,} videos and "
            f"{stage.pictures:,} pictures; {_size(stage.held + stage.activations)} of memory, about, for each of "
            f"{told.processes} processes: {_size(stage.held)} held, {_size(stage.activations)} for the gradients of "
            f"{stage.batch} samples; {_size(stage.checkpoint)} a checkpoint"
        )
    for found in told.found:
        terminal.print_message(_found(found._asdict()))


def _found(found: Mapping[str, Any]) -> str:
    count = "no end of" if found["items"] is None else f"{found['items']:,}"
    told = [f"{found['source']}: {count} {found['kind']}s, read as {found['layout']}"]
    if found["problems"]:
        told.append(f"{len(found['problems'])} problems: {_some(found['problems'])}")
    if found["refused"]:
        told.append(f"{len(found['refused'])} of {found['tried']} tried cannot be used: {_some(found['refused'])}")
    return "; ".join(told)


def _some(texts: Any) -> str:
    listed = list(texts)
    more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return "; ".join(listed[:SHOWN]) + more


def _rates(fps: tuple[float, ...] | None) -> str:
    return "their own rate" if fps is None else f"{' or '.join(f'{rate:g}' for rate in fps)} a second"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
