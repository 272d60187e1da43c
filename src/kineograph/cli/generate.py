"""`kineograph generate`: generate a video from a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from kineograph.cli.options import (
    CONTROL,
    MODEL,
    VIDEO,
    Adapter,
    Anchor,
    Annotator,
    Back,
    ChunkSize,
    ClipGuidance,
    ClipNoise,
    Clips,
    ControlEnd,
    ControlScale,
    ControlStart,
    Decoder,
    Device,
    DriftCorrection,
    Dtype,
    GuidanceScale,
    Height,
    InversionSteps,
    Json,
    Keep,
    KeepClips,
    Lora,
    LowPass,
    MotionAdapter,
    MotionModule,
    MotionScale,
    NegativePrompt,
    Output,
    Overlap,
    Overwrite,
    RefineAt,
    Sampler,
    Seed,
    Steps,
    TextualInversion,
    Then,
    Vae,
    VideoAdapter,
    VideoGuidanceScale,
    VideoLora,
    VideoModel,
    VideoMotionAdapter,
    VideoPrompt,
    VideoSteps,
    Width,
    Window,
)
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

DEFAULT = Request(prompt="any")
REFINED = ",".join(f"{part:g}" for part in DEFAULT.elevation.refine_at)


def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows, in quotes.", show_default=False)],
    num_frames: Annotated[
        int | None,
        typer.Option(
            "--num-frames",
            "-n",
            rich_help_panel=VIDEO,
            show_default=f"{NUM_FRAMES}, a video model's own, or as many as the control video has",
            help="How many frames.",
        ),
    ] = DEFAULT.num_frames,
    motion: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=VIDEO,
            show_default=f"{MOTION}, none with a control video or a video model",
            help="How the camera moves: pan:X,Y or zoom:FACTOR or rotate:DEGREES a frame, path:X,Y;X,Y;..., none; "
            "joined by +. X and Y are pixels of a frame 512 wide.",
        ),
    ] = DEFAULT.motion,
    seed: Seed = DEFAULT.seed,
    fps: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=VIDEO,
            show_default=f"{IMAGE_MODEL_FPS:g}, 8 with a video model, or the control video's",
            help="Frames shown per second, and taken from a control video; video models get it as a condition.",
        ),
    ] = DEFAULT.fps,
    height: Height = DEFAULT.height,
    width: Width = DEFAULT.width,
    negative_prompt: NegativePrompt = DEFAULT.negative_prompt,
    guidance_scale: GuidanceScale = DEFAULT.guidance_scale,
    num_inference_steps: Steps = DEFAULT.num_inference_steps,
    sampler: Sampler = DEFAULT.sampler,
    smooth_background: Annotated[
        float,
        typer.Option(rich_help_panel=VIDEO, help="Background smoothing: 0 none, 0.6 as in the paper."),
    ] = DEFAULT.smooth_background,
    masks: Annotated[
        str,
        typer.Option(rich_help_panel=VIDEO, help=f"Source of the foreground mask for it: {' or '.join(MASKS)}."),
    ] = DEFAULT.masks,
    method: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=VIDEO,
            show_default="what fits the model",
            help="Method: text2video-zero with an image model, videocrafter with a video model, "
            "video-elevator with both.",
        ),
    ] = DEFAULT.method,
    window: Window = DEFAULT.window,
    overlap: Overlap = DEFAULT.overlap,
    motion_scale: MotionScale = DEFAULT.motion_scale,
    control: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=CONTROL,
            show_default=False,
            help="A control video, as KIND=VIDEO: canny, depth or pose of the video, or KIND-map=VIDEO when it "
            "shows maps already; may be repeated.",
        ),
    ] = None,
    annotator: Annotator = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=CONTROL,
            show_default="the pocket model's own",
            help="A ControlNet of the model's family, as KIND=FOLDER or KIND=HUB_ID; may be repeated.",
        ),
    ] = None,
    controlnet_conditioning_scale: ControlScale = 1.0,
    control_guidance_start: ControlStart = 0.0,
    control_guidance_end: ControlEnd = 1.0,
    clips: Clips = DEFAULT.clips,
    then: Then = None,
    keep: Keep = DEFAULT.reuse.keep,
    clip_noise: ClipNoise = DEFAULT.reuse.noise_ratio,
    clip_guidance: ClipGuidance = DEFAULT.reuse.guidance,
    anchor: Anchor = DEFAULT.reuse.anchor,
    keep_clips: KeepClips = None,
    video_model: VideoModel = None,
    video_lora: VideoLora = None,
    video_adapter: VideoAdapter = None,
    video_motion_adapter: VideoMotionAdapter = None,
    video_prompt: VideoPrompt = None,
    refine_at: RefineAt = REFINED,
    video_steps: VideoSteps = DEFAULT.elevation.video_steps,
    low_pass: LowPass = DEFAULT.elevation.low_pass or 0.0,
    back: Back = DEFAULT.elevation.back,
    inversion_steps: InversionSteps = DEFAULT.elevation.inversion_steps or 0,
    drift_correction: DriftCorrection = DEFAULT.elevation.drift_correction,
    video_guidance_scale: VideoGuidanceScale = None,
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
    motion_module: MotionModule = None,
    motion_adapter: MotionAdapter = None,
    adapter: Adapter = None,
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
    """Generate a video from a prompt.

    Prints the path on stdout, messages on stderr. The file carries its settings: kineograph inspect shows them,
    kineograph replay generates it again.
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
        sampler=sampler,
        chunk_size=chunk_size,
        method=method,
        control=make_controls(
            parse_named(control, "a control", "KIND=VIDEO"),
            parse_named(annotator, "an annotator", "KIND=FOLDER"),
            scale=controlnet_conditioning_scale,
            start=control_guidance_start,
            end=control_guidance_end,
        ),
        smooth_background=smooth_background,
        masks=masks,
        window=window,
        overlap=overlap,
        motion_scale=motion_scale,
        elevation=ElevatorOptions(
            refine_at=parse_numbers(refine_at, "refine-at"),
            video_steps=video_steps,
            low_pass=low_pass or None,
            back=back,
            inversion_steps=inversion_steps or None,
            drift_correction=drift_correction,
            video_guidance_scale=video_guidance_scale,
            video_prompt=video_prompt,
        ),
        clips=clips,
        then=tuple(then or ()),
        reuse=ClipOptions(keep, clip_noise, clip_guidance, anchor),
    )
    options = {
        "motion": motion_module,
        "motion_adapter": motion_adapter,
        "adapter": adapter,
        "lora": [parse_lora(each) for each in lora or []],
        "textual_inversion": textual_inversion or [],
        "controlnet": parse_named(controlnet, "a ControlNet", "KIND=FOLDER") or None,
        "vae": vae,
        "decoder": decoder,
        "device": device,
        "dtype": dtype,
    }
    loras = [parse_lora(each) for each in video_lora or []]
    own = {"motion_adapter": video_motion_adapter, "adapter": video_adapter, "lora": loras}
    run_and_save(request, model, options, output, overwrite, json, video_model_source(video_model, own), keep_clips)
