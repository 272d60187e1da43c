"""`kineograph generate`: generate a video from a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from kineograph.cli import options
from kineograph.cli.options import DEFAULT, control_option, model_option, video_option
from kineograph.cli.output import parse_lora, parse_named, parse_numbers, run_and_save, video_model_source
from kineograph.request import (
    IMAGE_MODEL_FPS,
    MASKS,
    MOTION,
    NUM_FRAMES,
    ClipOptions,
    ElevatorOptions,
    Request,
    make_controls,
)

REFINED = ",".join(f"{part:g}" for part in DEFAULT.elevation.refine_at)


def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows, in quotes.", show_default=False)],
    num_frames: Annotated[
        int | None,
        video_option(
            "--num-frames",
            "-n",
            show_default=f"{NUM_FRAMES}, a video model's own, or as many as the control video has",
            help="How many frames.",
        ),
    ] = DEFAULT.num_frames,
    motion: Annotated[
        str | None,
        video_option(
            show_default=f"{MOTION}, none with a control video or a video model",
            help="How the camera moves: pan:X,Y or zoom:FACTOR or rotate:DEGREES a frame, path:X,Y;X,Y;..., none; "
            "joined by +. X and Y are pixels of a frame 512 wide.",
        ),
    ] = DEFAULT.motion,
    seed: options.Seed = DEFAULT.seed,
    fps: Annotated[
        float | None,
        video_option(
            show_default=f"{IMAGE_MODEL_FPS:g}, 8 with a video model, or the control video's",
            help="Frames shown per second, and taken from a control video; video models get it as a condition.",
        ),
    ] = DEFAULT.fps,
    height: options.Height = DEFAULT.height,
    width: options.Width = DEFAULT.width,
    negative_prompt: options.NegativePrompt = DEFAULT.negative_prompt,
    guidance_scale: options.GuidanceScale = DEFAULT.guidance_scale,
    num_inference_steps: options.Steps = DEFAULT.num_inference_steps,
    sampler: options.Sampler = DEFAULT.sampler,
    smooth_background: Annotated[
        float, video_option(help="Background smoothing: 0 none, 0.6 as in the paper.")
    ] = DEFAULT.smooth_background,
    masks: Annotated[
        str, video_option(help=f"Foreground mask for --smooth-background: {' or '.join(MASKS)}.")
    ] = DEFAULT.masks,
    method: Annotated[
        str | None,
        video_option(
            show_default="what fits the model",
            help="Method: text2video-zero with an image model, videocrafter with a video model, "
            "video-elevator with both.",
        ),
    ] = DEFAULT.method,
    window: options.Window = DEFAULT.window,
    overlap: options.Overlap = DEFAULT.overlap,
    motion_scale: options.MotionScale = DEFAULT.motion_scale,
    control: Annotated[
        list[str] | None,
        control_option(
            show_default=False,
            help="A control video, as KIND=VIDEO: canny, depth or pose of the video, or KIND-map=VIDEO when it "
            "shows maps already; may be repeated.",
        ),
    ] = None,
    annotator: options.Annotator = None,
    controlnet: Annotated[
        list[str] | None,
        control_option(
            show_default="the pocket model's own",
            help="A ControlNet of the model's family, as KIND=FOLDER or KIND=HUB_ID; may be repeated.",
        ),
    ] = None,
    controlnet_conditioning_scale: options.ControlScale = 1.0,
    control_guidance_start: options.ControlStart = 0.0,
    control_guidance_end: options.ControlEnd = 1.0,
    clips: options.Clips = DEFAULT.clips,
    then: options.Then = None,
    keep: options.Keep = DEFAULT.reuse.keep,
    clip_noise: options.ClipNoise = DEFAULT.reuse.noise_ratio,
    clip_guidance: options.ClipGuidance = DEFAULT.reuse.guidance,
    anchor: options.Anchor = DEFAULT.reuse.anchor,
    keep_clips: options.KeepClips = None,
    video_model: options.VideoModel = None,
    video_lora: options.VideoLora = None,
    video_adapter: options.VideoAdapter = None,
    video_motion_adapter: options.VideoMotionAdapter = None,
    video_prompt: options.VideoPrompt = None,
    refine_at: options.RefineAt = REFINED,
    video_steps: options.VideoSteps = DEFAULT.elevation.video_steps,
    low_pass: options.LowPass = DEFAULT.elevation.low_pass or 0.0,
    back: options.Back = DEFAULT.elevation.back,
    inversion_steps: options.InversionSteps = DEFAULT.elevation.inversion_steps or 0,
    drift_correction: options.DriftCorrection = DEFAULT.elevation.drift_correction,
    video_guidance_scale: options.VideoGuidanceScale = None,
    model: Annotated[
        str | None,
        model_option(
            "--model",
            "-m",
            show_default="the pocket model",
            help="A diffusers folder, a hub id, a .safetensors or .ckpt file; see kineograph models.",
        ),
    ] = None,
    motion_module: options.MotionModule = None,
    motion_adapter: options.MotionAdapter = None,
    adapter: options.Adapter = None,
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
    """Generate a video from a prompt.

    Prints the path on stdout, messages on stderr. The file carries its settings: kineograph inspect shows them,
    kineograph replay generates it again.
    """
    request = Request(
        method=method, prompt=prompt, negative_prompt=negative_prompt, num_frames=num_frames,
        num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=height, width=width, seed=seed,
        motion=motion, fps=fps, sampler=sampler, chunk_size=chunk_size, smooth_background=smooth_background,
        masks=masks, window=window, overlap=overlap, motion_scale=motion_scale,
        control=make_controls(
            parse_named(control, "a control", "KIND=VIDEO"), parse_named(annotator, "an annotator", "KIND=FOLDER"),
            scale=controlnet_conditioning_scale, start=control_guidance_start, end=control_guidance_end,
        ),
        elevation=ElevatorOptions(
            refine_at=parse_numbers(refine_at, "refine-at"), video_steps=video_steps, low_pass=low_pass or None,
            back=back, inversion_steps=inversion_steps or None, drift_correction=drift_correction,
            video_guidance_scale=video_guidance_scale, video_prompt=video_prompt,
        ),
        clips=clips, then=tuple(then or ()), reuse=ClipOptions(keep, clip_noise, clip_guidance, anchor),
    )  # fmt: skip
    load_options = {
        "motion": motion_module, "motion_adapter": motion_adapter, "adapter": adapter,
        "lora": [parse_lora(each) for each in lora or []], "textual_inversion": textual_inversion or [],
        "controlnet": parse_named(controlnet, "a ControlNet", "KIND=FOLDER") or None,
        "vae": vae, "decoder": decoder, "device": device, "dtype": dtype,
    }  # fmt: skip
    loras = [parse_lora(each) for each in video_lora or []]
    video_options = {"motion_adapter": video_motion_adapter, "adapter": video_adapter, "lora": loras}
    second = video_model_source(video_model, video_options)
    run_and_save(request, model, load_options, output, overwrite, json, second, keep_clips)
