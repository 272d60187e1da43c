"""`kineograph edit`: edit a video by an instruction."""

from __future__ import annotations

from typing import Annotated

import typer

from kineograph.cli.options import (
    MODEL,
    VIDEO,
    ChunkSize,
    Decoder,
    Device,
    Dtype,
    GuidanceScale,
    Height,
    Json,
    Lora,
    NegativePrompt,
    Output,
    Overwrite,
    Sampler,
    Seed,
    Steps,
    TextualInversion,
    Vae,
    Width,
)
from kineograph.cli.output import parse_lora, run_and_save
from kineograph.errors import InputError
from kineograph.request import NOISES, Request

DEFAULT = Request(prompt="any")
EDITOR = "pocket-edit"


def edit(
    video: Annotated[str, typer.Argument(help="The video to change: a file or a folder of pngs.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Argument(help='What to change, such as "make it snow".', show_default=False)
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option("--num-frames", "-n", rich_help_panel=VIDEO, show_default="all", help="How many frames."),
    ] = DEFAULT.num_frames,
    seed: Seed = DEFAULT.seed,
    fps: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=VIDEO, show_default="the video's", help="Frames taken and shown a second of its time."
        ),
    ] = DEFAULT.fps,
    height: Height = DEFAULT.height,
    width: Width = DEFAULT.width,
    negative_prompt: NegativePrompt = DEFAULT.negative_prompt,
    guidance_scale: GuidanceScale = DEFAULT.guidance_scale,
    image_guidance_scale: Annotated[
        float, typer.Option(rich_help_panel=VIDEO, help="Guidance scale of the input video; 1 is a third faster.")
    ] = DEFAULT.image_guidance_scale,
    num_inference_steps: Steps = DEFAULT.num_inference_steps,
    noise: Annotated[
        str, typer.Option(rich_help_panel=VIDEO, help=f"Noise of the frames: {' or '.join(NOISES)}.")
    ] = DEFAULT.noise,
    sampler: Sampler = "euler-ancestral",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            rich_help_panel=MODEL,
            help="An editing model: a diffusers folder or hub id such as timbrooks/instruct-pix2pix.",
        ),
    ] = EDITOR,
    lora: Lora = None,
    textual_inversion: TextualInversion = None,
    vae: Vae = None,
    decoder: Decoder = None,
    device: Device = None,
    dtype: Dtype = None,
    chunk_size: ChunkSize = DEFAULT.chunk_size,
    output: Output = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Edit a video by an instruction.

    Prints the path on stdout, messages on stderr.
    """
    if prompt is None:
        raise InputError(
            f"give a video and what to change in it, as in kineograph edit in.mp4 'make it snow'; got only {video!r}"
        )
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        height=height,
        width=width,
        seed=seed,
        fps=fps,
        noise=noise,
        sampler=sampler,
        chunk_size=chunk_size,
        method="instruct-pix2pix",
        video=video,
    )
    options = {
        "lora": [parse_lora(each) for each in lora or []],
        "textual_inversion": textual_inversion or [],
        "vae": vae,
        "decoder": decoder,
        "device": device,
        "dtype": dtype,
    }
    run_and_save(request, model, options, output, overwrite, json)
