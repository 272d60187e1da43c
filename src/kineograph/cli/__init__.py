"""Command line of Kineograph, one module per command; commands of other packages come by entry points.

`options.py` has the shared options, `output.py` the shared steps of commands that generate a video, `terminal.py`
messages, progress and errors. No module here imports torch at its top, so that `--help` is fast.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from kineograph.cli import terminal
from kineograph.cli.animate import animate
from kineograph.cli.curate import curate
from kineograph.cli.customise import customise
from kineograph.cli.doctor import doctor
from kineograph.cli.edit import edit
from kineograph.cli.evaluate import evaluate
from kineograph.cli.generate import generate
from kineograph.cli.inspect import inspect, replay
from kineograph.cli.models import convert, models
from kineograph.cli.train import train
from kineograph.plugins import find_plugins, load_plugin

app = typer.Typer(
    name="kineograph",
    help="Text-to-image diffusion models become video models.",
    epilog='Start with: kineograph generate "a red fish swimming over the sea" -o fish.mp4',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    generate, animate, edit, replay, customise, curate, train, convert, inspect, models, doctor, evaluate,
)  # fmt: skip
LABORATORY_COMMANDS = ("reproduce", "bench")
for command in COMMANDS:
    app.command()(command)
for name, point in find_plugins("commands").items():
    app.command(name)(point.load())


def _add_missing_command(name: str) -> None:
    """Add a hidden command that says how to install the package it belongs to."""

    @app.command(name, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def missing() -> None:
        load_plugin("commands", name)


for name in {*LABORATORY_COMMANDS} - {*find_plugins("commands")}:
    _add_missing_command(name)


def _print_version(requested: bool) -> bool:
    if requested:
        print(f"kineograph {version('kineograph')}")
        raise typer.Exit
    return requested


@app.callback()
def callback(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Text-to-image diffusion models become video models."""


def main() -> None:
    """Run the program `kineograph`."""
    terminal.exit_on_sigterm()
    terminal.quiet_libraries()
    with terminal.errors_as_messages():
        app(prog_name="kineograph")
