"""`kineograph train`: train temporal layers by a settings file."""

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

if TYPE_CHECKING:  # `--help` does not wait for torch
    from kineograph.training.temporal_layers import PreparedTraining, StageProgress


def train(
    settings: Annotated[Path, typer.Argument(help="A YAML file, such as examples/train_video.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            show_default=False, help="Settings that replace those of the file: training.learning_rate=1e-4."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained, the data and the memory; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train temporal layers for an image model, or fine-tune a video model, as in VideoCrafter1.

    Prints the folder of the trained model on stdout, messages on stderr. The same command resumes a training that was
    stopped. On several GPUs: accelerate launch -m kineograph train SETTINGS. See docs/training.md.
    """
    if os.environ.get("RANK", "0") == "0":  # one of several processes prints
        terminal.print_message("reading the settings, the model and the data")
    from kineograph.training import current_process, load_settings, temporal_layers

    chosen = load_settings(settings, temporal_layers.VideoTrainingSettings, overrides or [])
    terminal.hide_loading_bars()
    if not current_process().is_main_process:
        warnings.simplefilter("ignore", InputWarning)
    if dry_run:
        _print_estimate(temporal_layers.prepare_training(chosen, "cpu"), json)
        return
    prepared = temporal_layers.prepare_training(chosen)
    with (
        stop_signals() as stop_status,
        terminal.progress_bar("training") as show,
        closing(temporal_layers.train(prepared)) as steps,
    ):
        last, losses = None, dict[str, float]()
        for last in steps:
            losses |= last.progress.losses  # a step trains on images or on videos, and has the losses of one
            if prepared.process.is_main_process:
                _print_progress(prepared, last, losses, show)
            if temporal_layers.any_process_stops(prepared, bool(stop_status())):
                break
    if prepared.process.is_main_process:
        _print_result(prepared, last, stop_status(), json)
    if stop_status():
        raise SystemExit(stop_status())


def _print_progress(
    prepared: PreparedTraining, report: StageProgress, losses: Mapping[str, float], show: Callable[[int, int], None]
) -> None:
    """Update the progress bar, and print a line as often as the log gets one."""
    progress, stage = report.progress, prepared.settings.stages[report.stage - 1]
    show(progress.step, stage.steps)
    if progress.step % prepared.settings.training.log_every == 0 or progress.step == stage.steps:
        loss_text = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        seconds_left = (stage.steps - progress.step) * progress.seconds / progress.step
        terminal.print_message(
            f"stage {report.stage} of {report.stages}, step {progress.step} of {stage.steps}: loss {loss_text}, "
            f"{progress.samples_seen / progress.seconds:.3g} samples a second, {format_duration(seconds_left)} left"
        )
    for file in report.samples:
        terminal.print_message(f"wrote {file}")


def _print_result(prepared: PreparedTraining, last: StageProgress | None, status: int, json: bool) -> None:
    from kineograph.training.temporal_layers import FINAL, SKIPPED

    output = prepared.settings.output
    skipped: Mapping[str, str] = last.skipped if last else {}
    if skipped:
        terminal.print_message(
            f"skipped {len(skipped)} files, all listed in {output / SKIPPED}: {terminal.join_first(skipped.values())}"
        )
    if status and last:
        terminal.print_message(
            f"step {last.progress.step} of stage {last.stage} is saved: the same command resumes from there"
        )
    final = None if status else str(output / FINAL)
    if json:
        where = {"stage": last.stage, "step": last.progress.step} if last else {}
        terminal.print_json({"path": final, "stopped": bool(status), **where, "skipped": dict(skipped)})
    elif final:
        terminal.print_path(output / FINAL)


def _print_estimate(prepared: PreparedTraining, json: bool) -> None:
    from kineograph.training.temporal_layers import estimate_training

    estimate = estimate_training(prepared)
    if json:
        terminal.print_json(estimate.as_json())
        return
    for part in estimate.parts:
        terminal.print_message(f"{part.name}: {part.trained:,} parameters trained, {part.frozen:,} frozen")
    for number, stage in enumerate(estimate.stages, 1):
        terminal.print_message(
            f"stage {number}: {stage.steps:,} steps of {stage.samples_per_step} samples, {stage.num_frames} frames of "
            f"{stage.width} x {stage.height} at {_format_rates(stage.fps)}, which is {stage.videos:,} videos and "
            f"{stage.images:,} images; about {_format_bytes(stage.held + stage.activations)} of memory for each of "
            f"{estimate.processes} processes: {_format_bytes(stage.held)} for weights and states, "
            f"{_format_bytes(stage.activations)} for the activations of {stage.batch} samples; "
            f"{_format_bytes(stage.checkpoint)} per checkpoint"
        )
    for found in estimate.sources:
        terminal.print_message(_describe_source(found._asdict()))


def _describe_source(found: Mapping[str, Any]) -> str:
    count = "unlimited" if found["items"] is None else f"{found['items']:,}"
    parts = [f"{found['source']}: {count} {found['kind']}s, read as {found['layout']}"]
    if found["problems"]:
        parts.append(f"{len(found['problems'])} problems: {terminal.join_first(found['problems'])}")
    if found["refused"]:
        parts.append(
            f"{len(found['refused'])} of {found['tried']} tried cannot be used: {terminal.join_first(found['refused'])}"
        )
    return "; ".join(parts)


def _format_rates(fps: tuple[float, ...] | None) -> str:
    return "their own frame rate" if fps is None else f"{' or '.join(f'{rate:g}' for rate in fps)} a second"


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
