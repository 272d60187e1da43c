"""The options that several commands have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kineograph.data.request import SOLVERS

PICTURE, CONTROL, TOGETHER, LONG, MODEL, FILE = (
    "What is drawn",
    "Control videos",
    "Two models",
    "Clip after clip",
    "Model",
    "File",
)

Seed = Annotated[
    int | None,
    typer.Option(rich_help_panel=PICTURE, show_default="drawn and printed", help="The same seed gives the same video."),
]
Height = Annotated[
    int | None,
    typer.Option(rich_help_panel=PICTURE, show_default="the model's", help="In pixels, a multiple of 8."),
]
Width = Annotated[
    int | None,
    typer.Option(rich_help_panel=PICTURE, show_default="the model's", help="In pixels, a multiple of 8."),
]
NegativePrompt = Annotated[
    str, typer.Option(rich_help_panel=PICTURE, show_default=False, help="What the video should not show.")
]
GuidanceScale = Annotated[
    float, typer.Option(rich_help_panel=PICTURE, help="How much the prompt counts; 1 halves the time.")
]
Steps = Annotated[
    int,
    typer.Option(
        "--num-inference-steps",
        "--steps",
        rich_help_panel=PICTURE,
        help="How finely noise is taken away; more is slower.",
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(rich_help_panel=PICTURE, show_default="the model's", help=f"By which rule: {', '.join(SOLVERS)}."),
]
Window = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PICTURE, show_default="as it was trained", help="Frames that a video model sees together."
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PICTURE, show_default="a quarter", help="Frames that one window shares with the next."
    ),
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
Lora = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=MODEL, show_default=False, help="A LoRA, as FILE or FILE=SCALE; may be repeated."),
]
TextualInversion = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=MODEL, show_default=False, help="A learned word; may be repeated."),
]
Vae = Annotated[str | None, typer.Option(rich_help_panel=MODEL, show_default="the model's", help="Another VAE.")]
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
        rich_help_panel=TOGETHER,
        show_default=False,
        help="A second model that moves what the first draws (VideoElevator): pocket-video, or any video model.",
    ),
]
VideoPrompt = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=TOGETHER,
        show_default="the same",
        help="What the video model is told, where it does not know the first one's words.",
    ),
]
VideoLora = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=TOGETHER, show_default=False, help="A LoRA of the video model, as FILE or FILE=SCALE."
    ),
]
RefineAt = Annotated[
    str,
    typer.Option(
        rich_help_panel=TOGETHER,
        help="Where the video model takes over for a moment, as parts of the steps left: 1 is the first step.",
    ),
]
VideoSteps = Annotated[int, typer.Option(rich_help_panel=TOGETHER, help="Its steps each time.")]
LowPass = Annotated[
    float,
    typer.Option(
        rich_help_panel=TOGETHER,
        help="How fast a change between frames may be that it is handed: a part of the fastest, 0 for any.",
    ),
]
InversionSteps = Annotated[
    int, typer.Option(rich_help_panel=TOGETHER, help="At most how many steps lead back to the image model; 0 for all.")
]
DriftCorrection = Annotated[
    bool,
    typer.Option(
        "--drift-correction", rich_help_panel=TOGETHER, help="Make up for what the way back loses; takes all steps."
    ),
]
VideoGuidanceScale = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=TOGETHER,
        show_default="as for the first",
        help="How much the prompt counts for that one.",
    ),
]
Clips = Annotated[
    int, typer.Option(rich_help_panel=LONG, help="How many clips of --num-frames follow each other (VidRD).")
]
Then = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=LONG, show_default=False, help="The prompt of the next clip and those after; may be repeated."
    ),
]
Keep = Annotated[int, typer.Option(rich_help_panel=LONG, help="Frames that tie a clip to the one before.")]
ClipNoise = Annotated[
    float, typer.Option("--clip-noise", rich_help_panel=LONG, help="Parts of the past's noise to one of fresh noise.")
]
ClipGuidance = Annotated[
    float,
    typer.Option(
        rich_help_panel=LONG, help="For which share of the steps a clip follows the past; 1 is an exact seam."
    ),
]
Anchor = Annotated[
    float, typer.Option(rich_help_panel=LONG, help="How strongly every clip is drawn to the first's looks, 0 to 1.")
]
KeepClips = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=LONG,
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
