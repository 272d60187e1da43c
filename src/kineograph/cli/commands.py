"""Commands of the program: those of this package, and those of others by entry points.

Nothing here imports torch or declarations at its top, so that `--help` is fast: a command is built when it is invoked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from kineograph.cli import quick_imports, terminal
from kineograph.cli.curate import curate
from kineograph.cli.customise import customise
from kineograph.cli.doctor import doctor
from kineograph.cli.evaluate import evaluate
from kineograph.cli.generate import animate, edit, generate
from kineograph.cli.inspect import inspect, replay, schema
from kineograph.cli.models import convert, models
from kineograph.cli.options import flag, load_options, save_options, with_options
from kineograph.cli.serve import serve, worker
from kineograph.cli.train import train
from kineograph.plugins import find_plugins, load_plugin

if TYPE_CHECKING:
    from kineograph.options import Option


class Command(NamedTuple):
    """A command. options: returns the declared options that it takes as `**given`, by parameter."""

    run: Callable[..., None]
    options: Callable[[], Mapping[str, Option]] = dict


def _run_options(command: str) -> Callable[[], Mapping[str, Option]]:
    def options() -> Mapping[str, Option]:
        with quick_imports():
            from kineograph.cli.run import run_options

        return run_options(command)

    return options


CUSTOMISED = (
    "motion_module", "motion_adapter", "config", "prediction_type", "clip_skip", "device", "dtype", "revision",
    "variant",
)  # fmt: skip
CONVERTED = (
    "motion_module", "motion_adapter", "vae", "decoder", "config", "prediction_type", "clip_skip", "revision",
    "variant",
)  # fmt: skip
COMMANDS: Mapping[str, Command] = {
    "generate": Command(generate, _run_options("generate")),
    "animate": Command(animate, _run_options("animate")),
    "edit": Command(edit, _run_options("edit")),
    "replay": Command(replay, lambda: {**load_options(), **save_options()}),
    "customise": Command(customise, lambda: load_options(*CUSTOMISED)),
    "curate": Command(curate),
    "train": Command(train),
    "convert": Command(convert, lambda: load_options(*CONVERTED)),
    "inspect": Command(inspect),
    "schema": Command(schema),
    "models": Command(models),
    "doctor": Command(doctor),
    "evaluate": Command(evaluate),
    "serve": Command(serve),
    "worker": Command(worker),
    **{name: Command(point.load()) for name, point in find_plugins("commands").items()},
}
LABORATORY_COMMANDS = ("reproduce", "bench", "sheets")


def build_command(name: str) -> TyperCommand:
    """Build a command with all its options, and with flags in its messages and help texts."""
    run, options = COMMANDS[name].run, COMMANDS[name].options()
    single = typer.Typer(add_completion=False)
    single.command(name)(with_options(run, options) if options else run)
    command: Any = typer.main.get_command(single)
    flags = {each.name: flag(each) for each in options.values()}
    flags |= {each.name: max(each.opts, key=len) for each in command.params if each.param_type_name == "option"}
    for each in command.params:
        if each.param_type_name == "option" and (each.is_flag or (each.multiple and each.metavar is None)):
            each.metavar = "" if each.is_flag else "<str>"
        each.help = terminal.without_backticks(terminal.with_flags(each.help or "", flags))
        if isinstance(each.show_default, str):  # without typer's parentheses
            each.help += f" [dim]\\[default: {escape(each.show_default)}][/]"
            each.show_default = False
    callback = command.callback

    def call(**values: Any) -> None:
        with terminal.flags_in_messages(flags):
            callback(**values)

    command.callback = call
    return command


USAGE_ERROR: Any = typer.BadParameter.__base__  # typer does not export it


@contextmanager
def _escaped_usage_errors() -> Iterator[None]:
    """Escape control characters in the messages about unknown commands and options and surplus arguments."""
    try:
        yield
    except USAGE_ERROR as error:
        error.message = terminal.escape_control(error.message)
        raise


class CommandGroup(TyperGroup):
    """The commands: help lists names and first lines of docstrings, and a command is built when it is invoked."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Return the context of the program's own options."""
        with _escaped_usage_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        with _escaped_usage_errors():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name of the command, the command, and its arguments."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, build_command(str(name)) if name in COMMANDS else listed, rest


app = typer.Typer(
    name="kineograph",
    cls=CommandGroup,
    help="Text-to-image diffusion models become video models.",
    epilog='Start with: kineograph generate "a red fish swimming over the sea" -o fish.mp4',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in COMMANDS.items():
    app.command(name, help=command.run.__doc__)(lambda: None)


def _add_missing_command(name: str) -> None:
    """Add a hidden command that says how to install the package it belongs to."""

    @app.command(name, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def missing() -> None:
        load_plugin("commands", name)


for name in {*LABORATORY_COMMANDS} - {*COMMANDS}:
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
