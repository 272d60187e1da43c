"""The options that several commands have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kineograph.request import SAMPLERS

VIDEO, CONTROL, SECOND_MODEL, LONG_VIDEOS, MODEL, FILE = (
    "What is drawn",
    "Control videos",
    "Two models",
    "Clip after clip",
    "Model",
    "File",
)

Seed = Annotated[
    int | None,
    typer.Option(rich_help_panel=VIDEO, show_default="drawn and printed", help="The same seed gives the same video."),
]
Height = Annotated[
    int | None,
    typer.Option(rich_help_panel=VIDEO, show_default="the model's", help="In pixels, a multiple of 8."),
]
Width = Annotated[
    int | None,
    typer.Option(rich_help_panel=VIDEO, show_default="the model's", help="In pixels, a multiple of 8."),
]
NegativePrompt = Annotated[
    str, typer.Option(rich_help_panel=VIDEO, show_default=False, help="What the video should not show.")
]
GuidanceScale = Annotated[
    float, typer.Option(rich_help_panel=VIDEO, help="How much the prompt counts; 1 halves the time.")
]
Steps = Annotated[
    int,
    typer.Option(
        "--num-inference-steps",
        "--steps",
        rich_help_panel=VIDEO,
        help="How finely noise is taken away; more is slower.",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(rich_help_panel=VIDEO, show_default="the model's", help=f"Sampler: {', '.join(SAMPLERS)}."),
]
Window = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=VIDEO, show_default="as it was trained", help="Frames that a video model sees together."
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(rich_help_panel=VIDEO, show_default="a quarter", help="Frames that one window shares with the next."),
]
MotionModule = Annotated[
    str | None,
    typer.Option(
        "--motion-module",
        rich_help_panel=MODEL,
        show_default=False,
        help="Layers along time for an image model: an AnimateDiff file, folder or hub id, or a video model's.",
    ),
]
MotionAdapter = Annotated[
    str | None,
    typer.Option(
        "--motion-adapter",
        rich_help_panel=MODEL,
        show_default="the model's own",
        help="A Still-Moving motion adapter for the layers along time: a file, folder or hub id.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL, show_default=False, help="Your subject or style, of kineograph customise; or pocket-fox."
    ),
]
MotionScale = Annotated[
    float,
    typer.Option(
        rich_help_panel=VIDEO,
        help="How still a video model with a motion adapter keeps things: 0 not, 1 quite; below 0 they move more.",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=MODEL, show_default=False, help="A LoRA, as FILE or FILE=SCALE; may be repeated."),
]
TextualInversion = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=MODEL, show_default=False, help="A learned word; may be repeated."),
]
Vae = Annotated[str | None, typer.Option(rich_help_panel=MODEL, show_default="the model's", help="Another VAE.")]
Decoder = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL,
        show_default="the model's",
        help="A temporal decoder, against flicker: a model's folder or hub id, VidRD's file, or pocket-vidrd.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(rich_help_panel=MODEL, show_default="the fastest here", help="float32, bfloat16 or float16."),
]
ChunkSize = Annotated[int, typer.Option(rich_help_panel=MODEL, help="Frames computed at once: fewer need less memory.")]
Device = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL, show_default="the fastest here", help="cpu, cuda, cuda:1, mps; see kineograph doctor."
    ),
]
VideoModel = Annotated[
    str | None,
    typer.Option(
        "--video-model",
        rich_help_panel=SECOND_MODEL,
        show_default=False,
        help="A second model that moves what the first draws (VideoElevator): pocket-video, or any video model.",
    ),
]
VideoPrompt = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SECOND_MODEL,
        show_default="the same",
        help="What the video model is told, where it does not know the first one's words.",
    ),
]
VideoLora = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=SECOND_MODEL, show_default=False, help="A LoRA of the video model, as FILE or FILE=SCALE."
    ),
]
VideoAdapter = Annotated[
    str | None,
    typer.Option(rich_help_panel=SECOND_MODEL, show_default=False, help="A subject or style of the video model's."),
]
VideoMotionAdapter = Annotated[
    str | None,
    typer.Option(rich_help_panel=SECOND_MODEL, show_default="its own", help="A motion adapter of the video model."),
]
RefineAt = Annotated[
    str,
    typer.Option(
        rich_help_panel=SECOND_MODEL,
        help="Where the video model takes over for a moment, as parts of the steps left: 1 is the first step.",
    ),
]
VideoSteps = Annotated[int, typer.Option(rich_help_panel=SECOND_MODEL, help="Its steps each time.")]
LowPass = Annotated[
    float,
    typer.Option(
        rich_help_panel=SECOND_MODEL,
        help="How fast a change between frames may be that it is handed: a part of the fastest, 0 for any.",
    ),
]
Back = Annotated[
    str,
    typer.Option(
        rich_help_panel=SECOND_MODEL, help="How the first takes over again: by inversion, same-noise or fresh-noise."
    ),
]
InversionSteps = Annotated[
    int,
    typer.Option(rich_help_panel=SECOND_MODEL, help="At most how many steps lead back to the image model; 0 for all."),
]
DriftCorrection = Annotated[
    bool,
    typer.Option(
        "--drift-correction", rich_help_panel=SECOND_MODEL, help="Make up for what the way back loses; takes all steps."
    ),
]
VideoGuidanceScale = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=SECOND_MODEL,
        show_default="as for the first",
        help="How much the prompt counts for that one.",
    ),
]
Annotator = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=CONTROL,
        show_default="Depth-Anything, ViTPose",
        help="What finds depth or poses in the video, as KIND=FOLDER or KIND=HUB_ID; may be repeated.",
    ),
]
ControlScale = Annotated[float, typer.Option(rich_help_panel=CONTROL, help="How strongly the controls count.")]
ControlStart = Annotated[
    float, typer.Option(rich_help_panel=CONTROL, help="From where on the way from noise, 0, to video, 1.")
]
ControlEnd = Annotated[float, typer.Option(rich_help_panel=CONTROL, help="And to where.")]
Clips = Annotated[
    int, typer.Option(rich_help_panel=LONG_VIDEOS, help="How many clips of --num-frames follow each other (VidRD).")
]
Then = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=LONG_VIDEOS,
        show_default=False,
        help="The prompt of the next clip and those after; may be repeated.",
    ),
]
Keep = Annotated[int, typer.Option(rich_help_panel=LONG_VIDEOS, help="Frames that tie a clip to the one before.")]
ClipNoise = Annotated[
    float,
    typer.Option("--clip-noise", rich_help_panel=LONG_VIDEOS, help="Parts of the past's noise to one of fresh noise."),
]
ClipGuidance = Annotated[
    float,
    typer.Option(
        rich_help_panel=LONG_VIDEOS, help="For which share of the steps a clip follows the past; 1 is an exact seam."
    ),
]
Anchor = Annotated[
    float,
    typer.Option(rich_help_panel=LONG_VIDEOS, help="How strongly every clip is drawn to the first's looks, 0 to 1."),
]
KeepClips = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=LONG_VIDEOS,
        show_default=False,
        help="A folder for finished clips: given again, the same command goes on from the last of them.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        rich_help_panel=FILE,
        show_default="a new name in outputs/",
        help="Where to write: .mp4, .gif, .webp, or a name without an ending for a folder of pngs.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel=FILE, help="Write even where a file is already.")
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=FILE, help="Print one JSON object on stdout, for programs.")
]
