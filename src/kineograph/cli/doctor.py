"""`kineograph doctor`: what is here, what would be used and why, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import typer
from rich.markup import escape

from kineograph.cli import terminal
from kineograph.cli.models import POCKET, built_in_models
from kineograph.cli.options import Json
from kineograph.cli.output import OUTPUT_FOLDER
from kineograph.media.files import check_folder

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "av", "pillow", "numpy")


class Finding(NamedTuple):
    """Something looked for: what was found, and what to do when that is not enough."""

    what: str
    found: str
    to_do: str = ""
    needed: bool = True


def doctor(json: Json = False) -> None:
    """Check the installation: what is here, which device and number type would be used and why, what is missing.

    Ends with status 1 when something that is needed is missing.
    """
    findings = [finding for look in CHECKS for finding in look()]
    well = not any(finding.to_do and finding.needed for finding in findings)
    if json:
        terminal.print_json({"well": well, "findings": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            _tell(finding)
        terminal.print_message("All is well." if well else "Something that is needed is missing.")
    if not well:
        raise typer.Exit(1)


def _tell(finding: Finding) -> None:
    mark = "[green]ok[/]  " if not finding.to_do else "[red]no[/]  " if finding.needed else "[yellow]--[/]  "
    terminal.console().print(f"{mark}[bold]{finding.what:14}[/]{escape(finding.found)}", soft_wrap=True)
    if finding.to_do:
        terminal.console().print(f"{'':18}-> {escape(finding.to_do)}", soft_wrap=True)


def _machine() -> Iterator[Finding]:
    yield Finding(
        "kineograph", f"{version('kineograph')}, on Python {platform.python_version()}, {platform.platform()}"
    )
    yield Finding("processor", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {_memory()}")


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return "memory unknown"
    return f"{size / 2**30:.0f} GiB of memory"


def _libraries() -> Iterator[Finding]:
    for name in LIBRARIES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "not installed", f"pip install {name}")


def _placement() -> Iterator[Finding]:
    try:
        import torch

        from kineograph.models.placement import choose_placement
    except (ImportError, OSError) as error:
        yield Finding("device", f"torch cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    device, dtype, reason = choose_placement()
    yield Finding("device", f"{device} in {str(dtype).removeprefix('torch.')}: {reason}")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        yield Finding(
            "GPU",
            f"an NVIDIA driver is here, and torch {torch.__version__} does not use it",
            "install the build of torch for your CUDA version, see https://pytorch.org/get-started/locally",
            needed=False,
        )


def _encoder() -> Iterator[Finding]:
    import av

    there = "libx264" in av.codecs_available
    yield Finding(
        "mp4", "H.264 by libx264" if there else "this build of PyAV has no libx264", "" if there else "pip install av"
    )


def _pocket_model() -> Iterator[Finding]:
    found = list(built_in_models())
    yield (
        Finding("pocket model", f"{found[0].megabytes} MB")
        if found
        else Finding("pocket model", f"not in {POCKET}", "install Kineograph again, from a wheel or a whole clone")
    )


def _world() -> Iterator[Finding]:
    there = find_spec("cv2") is not None
    yield Finding(
        "pocket world",
        "can be drawn" if there else "cannot be drawn without OpenCV: no kineograph reproduce, no training",
        "" if there else "pip install 'kineograph[world]'",
        needed=False,
    )


def _control() -> Iterator[Finding]:
    missing = [name for name, module in (("OpenCV", "cv2"), ("scipy", "scipy")) if find_spec(module) is None]
    yield Finding(
        "control maps",
        f"no edges or poses without {' and '.join(missing)}" if missing else "edges by OpenCV, depth and poses too",
        "pip install 'kineograph[control]'" if missing else "",
        needed=False,
    )


def _output() -> Iterator[Finding]:
    try:
        check_folder(OUTPUT_FOLDER / "video.mp4")
        yield Finding("output", f"{OUTPUT_FOLDER.absolute()} can be written")
    except OSError as error:
        yield Finding(
            "output", f"{OUTPUT_FOLDER.absolute()}: {error.strerror}", "name another place with -o", needed=False
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _machine,
    _libraries,
    _placement,
    _encoder,
    _pocket_model,
    _world,
    _control,
    _output,
)
