"""`kineograph animate`: generate a video from an image and a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from kineograph.cli import options
from kineograph.cli.options import DEFAULT, model_option, video_option
from kineograph.cli.output import parse_lora, run_and_save
from kineograph.errors import InputError
from kineograph.request import FIRST_FRAMES, Request


def animate(
    image: Annotated[str, typer.Argument(help="The image to animate: .png, .jpg, .webp.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Argument(help='How it moves, such as "a fish swimming to the right".', show_default=False)
    ] = None,
    num_frames: Annotated[
        int | None, video_option("--num-frames", "-n", show_default="the model's", help="How many frames.")
    ] = DEFAULT.num_frames,
    first_frame: Annotated[
        str,
        video_option(help=f"{' or '.join(FIRST_FRAMES)}: the image conditions the model, or is the first frame too."),
    ] = DEFAULT.first_frame,
    image_scale: Annotated[
        float, video_option(help="Scale of the image tokens relative to the text tokens.")
    ] = DEFAULT.image_scale,
    seed: options.Seed = DEFAULT.seed,
    fps: Annotated[
        float | None, video_option(show_default="8", help="Frames per second; the model gets it as a condition.")
    ] = DEFAULT.fps,
    height: options.Height = DEFAULT.height,
    width: options.Width = DEFAULT.width,
    negative_prompt: options.NegativePrompt = DEFAULT.negative_prompt,
    guidance_scale: options.GuidanceScale = DEFAULT.guidance_scale,
    num_inference_steps: options.Steps = DEFAULT.num_inference_steps,
    sampler: options.Sampler = DEFAULT.sampler,
    window: options.Window = DEFAULT.window,
    overlap: options.Overlap = DEFAULT.overlap,
    motion_scale: options.MotionScale = DEFAULT.motion_scale,
    model: Annotated[
        str,
        model_option(
            "--model", "-m", help="An image-to-video model: a folder, a file such as VideoCrafter1's, a hub id."
        ),
    ] = "pocket-animate",
    motion_module: options.MotionModule = None,
    motion_adapter: options.MotionAdapter = None,
    adapter: options.Adapter = None,
    ip_adapter: Annotated[
        str | None, model_option(show_default=False, help="An IP-Adapter, for a model without image tokens.")
    ] = None,
    lora: options.Lora = None,
    textual_inversion: options.TextualInversion = None,
    vae: options.Vae = None,
    decoder: options.Decoder = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
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
        method="videocrafter", prompt=prompt, negative_prompt=negative_prompt, num_frames=num_frames,
        num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=height, width=width, seed=seed,
        fps=fps, sampler=sampler, window=window, overlap=overlap, motion_scale=motion_scale, image=image,
        image_scale=image_scale, first_frame=first_frame,
    )  # fmt: skip
    load_options = {
        "motion": motion_module, "motion_adapter": motion_adapter, "adapter": adapter, "ip_adapter": ip_adapter,
        "lora": [parse_lora(each) for each in lora or []], "textual_inversion": textual_inversion or [], "vae": vae,
        "decoder": decoder, "device": device, "dtype": dtype,
    }  # fmt: skip
    run_and_save(request, model, load_options, output, overwrite, json)
