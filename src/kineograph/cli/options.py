"""Options that several commands share, each defined once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kineograph.request import SAMPLERS, Request

DEFAULT = Request(prompt="any")

# An option in a panel of --help.
video_option = partial(typer.Option, rich_help_panel="Video")
control_option = partial(typer.Option, rich_help_panel="Control videos")
second_model_option = partial(typer.Option, rich_help_panel="Second model")
long_video_option = partial(typer.Option, rich_help_panel="Long videos")
model_option = partial(typer.Option, rich_help_panel="Model")
file_option = partial(typer.Option, rich_help_panel="File")

Seed = Annotated[
    int | None, video_option(show_default="random, and printed", help="The same seed gives the same video.")
]
Height = Annotated[int | None, video_option(show_default="the model's", help="In pixels, a multiple of 8.")]
Width = Annotated[int | None, video_option(show_default="the model's", help="In pixels, a multiple of 8.")]
NegativePrompt = Annotated[str, video_option(show_default=False, help="What the video should not show.")]
GuidanceScale = Annotated[float, video_option(help="How much the prompt counts; 1 halves the time.")]
Steps = Annotated[
    int, video_option("--num-inference-steps", "--steps", help="Number of sampling steps; more is slower.")
]
Sampler = Annotated[str | None, video_option(show_default="the model's", help=f"Sampler: {', '.join(SAMPLERS)}.")]
Window = Annotated[
    int | None, video_option(show_default="as it was trained", help="Frames that a video model processes together.")
]
Overlap = Annotated[
    int | None, video_option(show_default="a quarter", help="Frames that one window shares with the next.")
]
MotionModule = Annotated[
    str | None,
    model_option(
        "--motion-module",
        show_default=False,
        help="Temporal layers for an image model: an AnimateDiff file, folder or hub id, or a video model's.",
    ),
]
MotionAdapter = Annotated[
    str | None,
    model_option(
        "--motion-adapter",
        show_default="the model's own",
        help="A Still-Moving motion adapter for the temporal layers: a file, folder or hub id.",
    ),
]
Adapter = Annotated[
    str | None, model_option(show_default=False, help="Your subject or style, of kineograph customise; or pocket-fox.")
]
MotionScale = Annotated[
    float, video_option(help="Scale of the motion adapter: 0 as the model moves, 1 still, below 0 more motion.")
]
Lora = Annotated[
    list[str] | None, model_option(show_default=False, help="A LoRA, as FILE or FILE=SCALE; may be repeated.")
]
TextualInversion = Annotated[
    list[str] | None, model_option(show_default=False, help="A textual inversion embedding; may be repeated.")
]
Vae = Annotated[str | None, model_option(show_default="the model's", help="Another VAE.")]
Decoder = Annotated[
    str | None,
    model_option(
        show_default="the model's",
        help="A temporal decoder, against flicker: a model's folder or hub id, VidRD's file, or pocket-vidrd.",
    ),
]
Dtype = Annotated[str | None, model_option(show_default="the fastest here", help="float32, bfloat16 or float16.")]
ChunkSize = Annotated[int, model_option(help="Frames computed at once; fewer need less memory.")]
Device = Annotated[
    str | None, model_option(show_default="the fastest here", help="cpu, cuda, cuda:1, mps; see kineograph doctor.")
]
VideoModel = Annotated[
    str | None,
    second_model_option(
        "--video-model",
        show_default=False,
        help="A video model that samples together with the image model (VideoElevator): pocket-video, or another.",
    ),
]
VideoPrompt = Annotated[
    str | None,
    second_model_option(
        show_default="the same", help="The video model's prompt, if it does not know the words of the first."
    ),
]
VideoLora = Annotated[
    list[str] | None, second_model_option(show_default=False, help="A LoRA of the video model, as FILE or FILE=SCALE.")
]
VideoAdapter = Annotated[
    str | None, second_model_option(show_default=False, help="A subject or style of the video model's.")
]
VideoMotionAdapter = Annotated[
    str | None, second_model_option(show_default="its own", help="A motion adapter of the video model.")
]
RefineAt = Annotated[
    str,
    second_model_option(
        help="Points where the video model refines the latents, as remaining share of the steps: 1 is the first step."
    ),
]
VideoSteps = Annotated[int, second_model_option(help="Steps of the video model at each point.")]
LowPass = Annotated[
    float,
    second_model_option(
        help="Highest temporal frequency passed to the video model, as share of the maximum; 0 for no filter."
    ),
]
Back = Annotated[str, second_model_option(help="Return to the image model by inversion, same-noise or fresh-noise.")]
InversionSteps = Annotated[int, second_model_option(help="Maximum number of inversion steps; 0 for all.")]
DriftCorrection = Annotated[
    bool,
    second_model_option("--drift-correction", help="Correct the error of the inversion; takes all inversion steps."),
]
VideoGuidanceScale = Annotated[
    float | None, second_model_option(show_default="as for the first", help="Guidance scale of the video model.")
]
Annotator = Annotated[
    list[str] | None,
    control_option(
        show_default="Depth-Anything, ViTPose",
        help="Model that estimates depth or poses, as KIND=FOLDER or KIND=HUB_ID; may be repeated.",
    ),
]
ControlScale = Annotated[float, control_option(help="How strongly the controls count.")]
ControlStart = Annotated[float, control_option(help="Start of control, as share of sampling: 0 noise, 1 video.")]
ControlEnd = Annotated[float, control_option(help="End of control, as share of sampling.")]
Clips = Annotated[int, long_video_option(help="How many clips of --num-frames follow each other (VidRD).")]
Then = Annotated[
    list[str] | None,
    long_video_option(show_default=False, help="The prompt of the next clip and those after; may be repeated."),
]
Keep = Annotated[int, long_video_option(help="Frames that a clip shares with the previous one.")]
ClipNoise = Annotated[
    float, long_video_option("--clip-noise", help="Ratio of the previous clip's noise to fresh noise.")
]
ClipGuidance = Annotated[
    float, long_video_option(help="Share of the steps in which a clip follows the previous one; 1 is an exact seam.")
]
Anchor = Annotated[float, long_video_option(help="Strength with which clips keep the appearance of the first, 0 to 1.")]
KeepClips = Annotated[
    Path | None,
    long_video_option(show_default=False, help="A folder for finished clips, from which the same command resumes."),
]
Output = Annotated[
    Path | None,
    file_option(
        "--output",
        "-o",
        show_default="a new name in outputs/",
        help="Where to write: .mp4, .gif, .webp, or a name without an ending for a folder of pngs.",
    ),
]
Overwrite = Annotated[bool, file_option("--overwrite", help="Replace an existing file.")]
Json = Annotated[bool, file_option("--json", help="Print one JSON object on stdout, for programs.")]
