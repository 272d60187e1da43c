"""`kineograph doctor`: check the installation, and say how to install what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, NamedTuple

import typer
from rich.markup import escape

from kineograph.cli import terminal
from kineograph.cli.options import Json
from kineograph.cli.output import OUTPUT_FOLDER
from kineograph.media.files import check_writable
from kineograph.models.pocket import WEIGHTS
from kineograph.plugins import INSTALL_LABORATORY, find_plugins

# module -> its name, what needs it, and the extra that installs it
OPTIONAL = {
    "openvino": ("OpenVINO", "--engine openvino, faster on a CPU", "cpu"),
    "cv2": ("OpenCV", "--control canny, kineograph evaluate and kineograph curate", "control"),
    "rembg": ("rembg", "--foreground-masks rembg", "saliency"),
    "scenedetect": ("PySceneDetect", "kineograph curate", "data"),
    "fastapi": ("FastAPI", "kineograph serve", "serve"),
    "ray": ("Ray", "kineograph curate with several processes", "data"),
}
TESTED_TORCH = "2.13.0"  # the version of CI and of constraints-lowest.txt
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "av", "pillow", "numpy")


class Finding(NamedTuple):
    """Result of one check. to_do: the remedy, empty if nothing is missing."""

    what: str
    found: str
    to_do: str = ""
    needed: bool = True


def doctor(
    json: Json = False,
    clear_graphs: Annotated[
        bool, typer.Option("--clear-graphs", help="Remove the networks that were converted for OpenVINO first.")
    ] = False,
) -> None:
    """Check the installation: versions, device and dtype, missing parts and how to install them.

    The status is 1 if a required part is missing.
    """
    if clear_graphs:
        _clear_graphs()
    findings = [finding for check in CHECKS for finding in check()]
    well = not any(finding.to_do and finding.needed for finding in findings)
    if json:
        terminal.print_json({"well": well, "findings": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            _print_finding(finding)
        terminal.print_message("All is well." if well else "A required part is missing.")
    if not well:
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    mark = "[green]ok[/]  " if not finding.to_do else "[red]no[/]  " if finding.needed else "[yellow]--[/]  "
    terminal.console().print(
        f"{mark}[bold]{finding.what:14}[/]{escape(terminal.escape_control(finding.found))}", soft_wrap=True
    )
    if finding.to_do:
        terminal.console().print(f"{'':18}-> {escape(terminal.escape_control(finding.to_do))}", soft_wrap=True)


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
    """Compare the installed versions with the package's requirements; name the main ones, and others if they fail."""
    from packaging.requirements import Requirement  # here, as every command's start imports this file

    needed = [each for each in map(Requirement, requires("kineograph") or ()) if each.marker is None]
    for requirement in sorted(needed, key=lambda each: (*LIBRARIES, each.name).index(each.name)):
        name, to_do = requirement.name, f"pip install '{requirement}'"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "not installed", to_do)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding(name, f"{found}, and kineograph needs {requirement.specifier}", to_do)
        elif name == "torch" and found.partition("+")[0] != TESTED_TORCH:
            untested = f"{found}, which is untested: kineograph is tested with {TESTED_TORCH}"
            yield Finding(name, untested, f"pip install torch=={TESTED_TORCH}, if anything fails", needed=False)
        elif name in LIBRARIES:
            yield Finding(name, found)


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
    found = (WEIGHTS / "model_index.json").exists()
    yield Finding(
        "pocket model",
        "built in" if found else f"not in {WEIGHTS}",
        "" if found else "install Kineograph again, from a wheel or a whole clone",
    )


def _graphs() -> Iterator[Finding]:
    """Name the networks that are stored for OpenVINO."""
    from kineograph.models.openvino.cache import GraphCache

    stored = GraphCache()
    count, size = stored.size()
    if count:
        where = f"{count} converted networks, {size / 1e9:.2f} GB, in {stored.folder}"
        yield Finding("graphs", f"{where}: remove them by kineograph doctor --clear-graphs")


def _clear_graphs() -> None:
    from kineograph.models.openvino.cache import GraphCache

    GraphCache().clear()


def _laboratory() -> Iterator[Finding]:
    installed = "reproduce" in find_plugins("commands")
    yield Finding(
        "laboratory",
        "installed" if installed else "not installed: no kineograph reproduce, bench or pocket extractor",
        "" if installed else INSTALL_LABORATORY,
        needed=False,
    )


def _optional() -> Iterator[Finding]:
    """Yield what each optional package is needed for; imported, because one that is broken is refused later too."""
    for module, (name, use, extra) in OPTIONAL.items():
        try:
            import_module(module)
            yield Finding(name, f"for {use}")
        except ImportError as error:
            yield Finding(name, f"missing for {use}: {error}", f"pip install 'kineograph[{extra}]'", needed=False)


def _output() -> Iterator[Finding]:
    try:
        check_writable(OUTPUT_FOLDER / "video.mp4")
        yield Finding("output", f"{OUTPUT_FOLDER.absolute()} can be written")
    except OSError as error:
        yield Finding(
            "output", f"{OUTPUT_FOLDER.absolute()}: {error.strerror}", "choose another folder with -o", needed=False
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _machine,
    _libraries,
    _placement,
    _encoder,
    _pocket_model,
    _graphs,
    _laboratory,
    _optional,
    _output,
)
