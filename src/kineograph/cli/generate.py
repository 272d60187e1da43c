"""`kineograph generate`: a prompt becomes a video."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from kineograph.cli import speaking
from kineograph.cli.outcome import MODEL, Device, Json, Output, Overwrite, report, writer
from kineograph.data.request import METHODS, SOLVERS, Request
from kineograph.errors import InputError

DEFAULT = Request(prompt="any")
PICTURE = "What is drawn"


def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows, in quotes.", show_default=False)],
    num_frames: Annotated[
        int, typer.Option("--num-frames", "-n", rich_help_panel=PICTURE, help="How many frames.")
    ] = DEFAULT.num_frames,
    motion: Annotated[
        str,
        typer.Option(
            rich_help_panel=PICTURE,
            help="How the camera moves: pan:X,Y or zoom:FACTOR or rotate:DEGREES a frame, path:X,Y;X,Y;..., none; "
            "joined by +. X and Y are pixels of a frame 512 wide.",
        ),
    ] = DEFAULT.motion,
    seed: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=PICTURE, show_default="drawn and printed", help="The same seed gives the same video."
        ),
    ] = DEFAULT.seed,
    fps: Annotated[float, typer.Option(rich_help_panel=PICTURE, help="Frames shown per second.")] = DEFAULT.fps,
    height: Annotated[
        int | None,
        typer.Option(rich_help_panel=PICTURE, show_default="the model's", help="In pixels, a multiple of 8."),
    ] = DEFAULT.height,
    width: Annotated[
        int | None,
        typer.Option(rich_help_panel=PICTURE, show_default="the model's", help="In pixels, a multiple of 8."),
    ] = DEFAULT.width,
    negative_prompt: Annotated[
        str, typer.Option(rich_help_panel=PICTURE, show_default=False, help="What the video should not show.")
    ] = DEFAULT.negative_prompt,
    guidance_scale: Annotated[
        float, typer.Option(rich_help_panel=PICTURE, help="How much the prompt counts; 1 halves the time.")
    ] = DEFAULT.guidance_scale,
    num_inference_steps: Annotated[
        int,
        typer.Option(
            "--num-inference-steps",
            "--steps",
            rich_help_panel=PICTURE,
            help="How finely noise is taken away; more is slower.",
        ),
    ] = DEFAULT.num_inference_steps,
    solver: Annotated[
        str, typer.Option(rich_help_panel=PICTURE, help=f"By which rule: {', '.join(SOLVERS)}.")
    ] = DEFAULT.solver,
    method: Annotated[
        str, typer.Option(rich_help_panel=PICTURE, help=f"Which paper makes it a video: {', '.join(METHODS)}.")
    ] = DEFAULT.method,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            rich_help_panel=MODEL,
            show_default="the pocket model",
            help="A diffusers folder, a hub id, a .safetensors or .ckpt file; see kineograph models.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=MODEL, show_default=False, help="A LoRA, as FILE or FILE=SCALE; may be repeated."),
    ] = None,
    textual_inversion: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=MODEL, show_default=False, help="A learned word; may be repeated."),
    ] = None,
    vae: Annotated[
        str | None, typer.Option(rich_help_panel=MODEL, show_default="the model's", help="Another VAE.")
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(rich_help_panel=MODEL, show_default="the fastest here", help="float32, bfloat16 or float16."),
    ] = None,
    chunk_size: Annotated[
        int, typer.Option(rich_help_panel=MODEL, help="Frames computed at once: fewer need less memory.")
    ] = DEFAULT.chunk_size,
    output: Output = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a video of what the prompt says.

    Its path goes to stdout, all else to stderr.
    The file carries its settings: kineograph inspect shows them, kineograph replay makes it again.
    """
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        seed=seed,
        motion=motion,
        fps=fps,
        solver=solver,
        chunk_size=chunk_size,
        method=method,
    ).seeded()
    write = writer(output, request, overwrite)
    speaking.say(f"seed {request.seed}")
    began = time.monotonic()
    speaking.say(f"loading {model or 'the pocket model'}")
    from kineograph import recipes
    from kineograph.models.checkpoints import load

    recipes.camera(request, seed=0)  # a motion that cannot be is said before minutes are spent on loading
    speaking.quiet_loading()
    loaded = load(
        model,
        lora=[with_scale(each) for each in lora or []],
        textual_inversion=textual_inversion or [],
        vae=vae,
        device=device,
        dtype=dtype,
    )
    with speaking.counted("drawing") as tell:
        video = recipes.made(loaded, request, lambda step: tell(step.done, step.total))
    report(video, write(video), json, {"seconds": round(time.monotonic() - began, 1)})


def with_scale(text: str) -> tuple[str, float]:
    """The file of a LoRA and how strongly it counts, from FILE or FILE=SCALE."""
    file, equals, scale = text.rpartition("=")
    try:
        return (file, float(scale)) if equals else (text, 1.0)
    except ValueError as error:
        raise InputError(f"a LoRA is FILE or FILE=SCALE with a number for the scale, not {text!r}") from error
