"""`kineograph edit`: edit a video by an instruction."""

from __future__ import annotations

from typing import Annotated

import typer

from kineograph.cli import options
from kineograph.cli.options import DEFAULT, model_option, video_option
from kineograph.cli.output import parse_lora, run_and_save
from kineograph.errors import InputError
from kineograph.request import NOISES, Request


def edit(
    video: Annotated[str, typer.Argument(help="The video to change: a file or a folder of pngs.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Argument(help='What to change, such as "make it snow".', show_default=False)
    ] = None,
    num_frames: Annotated[
        int | None, video_option("--num-frames", "-n", show_default="all", help="How many frames.")
    ] = DEFAULT.num_frames,
    seed: options.Seed = DEFAULT.seed,
    fps: Annotated[
        float | None, video_option(show_default="the video's", help="Frames taken and shown a second of its time.")
    ] = DEFAULT.fps,
    height: options.Height = DEFAULT.height,
    width: options.Width = DEFAULT.width,
    negative_prompt: options.NegativePrompt = DEFAULT.negative_prompt,
    guidance_scale: options.GuidanceScale = DEFAULT.guidance_scale,
    image_guidance_scale: Annotated[
        float, video_option(help="Guidance scale of the input video; 1 is a third faster.")
    ] = DEFAULT.image_guidance_scale,
    num_inference_steps: options.Steps = DEFAULT.num_inference_steps,
    noise: Annotated[str, video_option(help=f"Noise of the frames: {' or '.join(NOISES)}.")] = DEFAULT.noise,
    sampler: options.Sampler = "euler-ancestral",
    model: Annotated[
        str,
        model_option(
            "--model", "-m", help="An editing model: a diffusers folder or hub id such as timbrooks/instruct-pix2pix."
        ),
    ] = "pocket-edit",
    lora: options.Lora = None,
    textual_inversion: options.TextualInversion = None,
    vae: options.Vae = None,
    decoder: options.Decoder = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    chunk_size: options.ChunkSize = DEFAULT.chunk_size,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Edit a video by an instruction.

    Prints the path on stdout, messages on stderr.
    """
    if prompt is None:
        raise InputError(
            f"give a video and what to change in it, as in kineograph edit in.mp4 'make it snow'; got only {video!r}"
        )
    request = Request(
        method="instruct-pix2pix", prompt=prompt, negative_prompt=negative_prompt, num_frames=num_frames,
        num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale, height=height, width=width, seed=seed, fps=fps, noise=noise,
        sampler=sampler, chunk_size=chunk_size, video=video,
    )  # fmt: skip
    load_options = {
        "lora": [parse_lora(each) for each in lora or []], "textual_inversion": textual_inversion or [], "vae": vae,
        "decoder": decoder, "device": device, "dtype": dtype,
    }  # fmt: skip
    run_and_save(request, model, load_options, output, overwrite, json)
