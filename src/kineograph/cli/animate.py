"""`kineograph animate`: generate a video from an image and a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from kineograph.cli.options import (
    MODEL,
    VIDEO,
    Adapter,
    Decoder,
    Device,
    Dtype,
    GuidanceScale,
    Height,
    Json,
    Lora,
    MotionAdapter,
    MotionModule,
    MotionScale,
    NegativePrompt,
    Output,
    Overlap,
    Overwrite,
    Sampler,
    Seed,
    Steps,
    TextualInversion,
    Vae,
    Width,
    Window,
)
from kineograph.cli.output import parse_lora, run_and_save
from kineograph.errors import InputError
from kineograph.request import FIRST_FRAMES, Request

DEFAULT = Request(prompt="any")
ANIMATOR = "pocket-animate"


def animate(
    image: Annotated[str, typer.Argument(help="The image to animate: .png, .jpg, .webp.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Argument(help='How it moves, such as "a fish swimming to the right".', show_default=False)
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option("--num-frames", "-n", rich_help_panel=VIDEO, show_default="the model's", help="How many frames."),
    ] = DEFAULT.num_frames,
    first_frame: Annotated[
        str,
        typer.Option(
            rich_help_panel=VIDEO,
            help=f"{' or '.join(FIRST_FRAMES)}: the image conditions the model, or is the first frame too.",
        ),
    ] = DEFAULT.first_frame,
    image_scale: Annotated[
        float, typer.Option(rich_help_panel=VIDEO, help="Scale of the image tokens beside the text tokens.")
    ] = DEFAULT.image_scale,
    seed: Seed = DEFAULT.seed,
    fps: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=VIDEO, show_default="8", help="Frames per second; the model gets it as a condition."
        ),
    ] = DEFAULT.fps,
    height: Height = DEFAULT.height,
    width: Width = DEFAULT.width,
    negative_prompt: NegativePrompt = DEFAULT.negative_prompt,
    guidance_scale: GuidanceScale = DEFAULT.guidance_scale,
    num_inference_steps: Steps = DEFAULT.num_inference_steps,
    sampler: Sampler = DEFAULT.sampler,
    window: Window = DEFAULT.window,
    overlap: Overlap = DEFAULT.overlap,
    motion_scale: MotionScale = DEFAULT.motion_scale,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            rich_help_panel=MODEL,
            help="An image-to-video model: a folder, a file such as VideoCrafter1's, a hub id.",
        ),
    ] = ANIMATOR,
    motion_module: MotionModule = None,
    motion_adapter: MotionAdapter = None,
    adapter: Adapter = None,
    ip_adapter: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MODEL, show_default=False, help="An IP-Adapter, for a model without image tokens."
        ),
    ] = None,
    lora: Lora = None,
    textual_inversion: TextualInversion = None,
    vae: Vae = None,
    decoder: Decoder = None,
    device: Device = None,
    dtype: Dtype = None,
    output: Output = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Animate an image as the prompt says.

    Prints the path on stdout, messages on stderr.
    """
    if prompt is None:
        raise InputError(
            "give an image and how it moves, as in kineograph animate fish.png 'a fish swimming to the right'; got "
            f"only {image!r}"
        )
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        seed=seed,
        fps=fps,
        sampler=sampler,
        window=window,
        overlap=overlap,
        motion_scale=motion_scale,
        method="videocrafter",
        image=image,
        image_scale=image_scale,
        first_frame=first_frame,
    )
    options = {
        "motion": motion_module,
        "motion_adapter": motion_adapter,
        "adapter": adapter,
        "ip_adapter": ip_adapter,
        "lora": [parse_lora(each) for each in lora or []],
        "textual_inversion": textual_inversion or [],
        "vae": vae,
        "decoder": decoder,
        "device": device,
        "dtype": dtype,
    }
    run_and_save(request, model, options, output, overwrite, json)
