"""`kineograph generate`, `animate` and `edit`: videos from a prompt, and from an image or a video."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kineograph.cli.options import Json, Output


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows, in quotes.", show_default=False)] = None,
    output: Output = None,
    json: Json = False,
    **given: Any,
) -> None:
    """Generate a video from a prompt.

    Prints the path on stdout, messages on stderr. The file carries its settings:
    kineograph inspect shows them, kineograph replay generates it again.
    """
    from kineograph.cli.run import run_and_save

    run_and_save("generate", {"prompt": prompt}, given, output, json)


def animate(
    image: Annotated[
        str | None, typer.Argument(help="The image to animate: .png, .jpg, .webp.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(help='How it moves, such as "a fish swimming to the right".', show_default=False)
    ] = None,
    output: Output = None,
    json: Json = False,
    **given: Any,
) -> None:
    """Animate an image as the prompt says.

    Prints the path on stdout, messages on stderr.
    """
    from kineograph.cli.run import run_and_save

    run_and_save("animate", {"image": image, "prompt": prompt}, given, output, json)


def edit(
    video: Annotated[
        str | None, typer.Argument(help="The video to change: a file or a folder of pngs.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Argument(help='What to change, such as "make it snow", or what the result shows.', show_default=False),
    ] = None,
    output: Output = None,
    json: Json = False,
    **given: Any,
) -> None:
    """Edit a video: an editing model follows an instruction, another model a description of the result.

    Prints the path on stdout, messages on stderr.
    """
    from kineograph.cli.run import run_and_save

    run_and_save("edit", {"video": video, "prompt": prompt}, given, output, json)
