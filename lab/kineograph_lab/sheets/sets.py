"""Sets of the contact sheets: prompts, weights, and the plain calls that generate their images and videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import kineograph as kg
from kineograph_lab.sheets import prompts
from kineograph_lab.sheets.layout import COLUMNS
from kineograph_lab.sheets.prompts import SamplePrompt, SheetCase
from kineograph_lab.world import world
from kineograph_lab.world.truth import CONTROL_MAPS, ground_truth

Frames = np.ndarray
LoadNamed = Callable[[str], kg.Model]  # by the name of a built-in model, or FOX_MODEL
FOX_MODEL = "fox"
IMAGE_FPS, VIDEO_FPS = 4.0, 8.0  # defaults of image models and of video models
INPUT_FRAMES, VIDEO_FRAMES = 8, 16  # of rendered inputs: of edits and controls; of pocket-animate's training
CLIPS = 4
KINDS_OF_CONTROL = tuple(CONTROL_MAPS)


class SheetVideo(NamedTuple):
    """An image or a video for a sheet; `above` and `first` are those of `layout.SheetRow`.

    frames  uint8 [f h w 3], those that the sheet shows
    label   words on its input, in front of the prompt
    """

    frames: Frames
    settings: Mapping[str, Any]
    above: Frames | tuple[()] = ()
    first: Frames | None = None
    label: str = ""


Options = Mapping[str, Any]
Generate = Callable[[LoadNamed, SheetCase, Options], SheetVideo]


@dataclass(frozen=True)
class SheetSet:
    """A set of images or videos.

    title     a few words for the page
    commands  those that generate a case, with PROMPT, SEED and, for some, names of inputs
    weights   folders of the pocket model's weights that the networks are restored from
    count     number of images or videos
    """

    title: str
    commands: tuple[str, ...]
    weights: tuple[str, ...]
    sample_prompt: SamplePrompt
    generate: Generate
    count: int = 24


def load_named(name: str) -> kg.Model:
    """Load a built-in model, or for FOX_MODEL the video model with the adapter pocket-fox."""
    return kg.load("pocket-video", adapter="pocket-fox") if name == FOX_MODEL else kg.load(name)


def spread_frames(frames: Frames, count: int = COLUMNS) -> Frames:
    """Return so many frames, evenly spread over a video, the first and the last among them."""
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]


def spread_clips(frames: Frames, clips: int, count: int = COLUMNS // 2) -> Frames:
    """Return so many frames of each of the clips of equal length that a video consists of."""
    return np.concatenate([spread_frames(clip, count) for clip in np.array_split(frames, clips)])


def _shown(video: kg.Video) -> SheetVideo:
    return SheetVideo(spread_frames(video.frames), video.settings)


def _generate_image(load: LoadNamed, case: SheetCase, options: Options) -> SheetVideo:
    video = kg.generate(load("pocket"), case.prompt.text, num_frames=1, seed=case.seed, progress=False, **options)
    return SheetVideo(video.frames, video.settings)


def _generate_video(name: str, load: LoadNamed, case: SheetCase, options: Options) -> SheetVideo:
    return _shown(kg.generate(load(name), case.prompt.text, seed=case.seed, progress=False, **options))


def _animate_image(load: LoadNamed, case: SheetCase, options: Options) -> SheetVideo:
    """Animate the first frame of a rendered clip, or an image that the pocket model generates with the same seed."""
    if case.prompt.image_prompt:
        pocket = load("pocket")
        generated = kg.generate(
            pocket, case.prompt.image_prompt, num_frames=1, seed=case.seed, progress=False, **options
        )
        image = generated.frames[0]
    else:
        assert case.prompt.shot is not None
        image = world.render(case.prompt.shot, world.frame_times(VIDEO_FRAMES, VIDEO_FPS)[0])
    video = kg.animate(load("pocket-animate"), image, case.prompt.text, seed=case.seed, progress=False, **options)
    label = "generated image" if case.prompt.image_prompt else "rendered image"
    return _shown(video)._replace(first=image, label=label)


def _edit_video(load: LoadNamed, case: SheetCase, options: Options) -> SheetVideo:
    assert case.prompt.shot is not None
    given = kg.Video(world.render_clip(case.prompt.shot, INPUT_FRAMES, IMAGE_FPS), fps=IMAGE_FPS)
    video = kg.edit(load("pocket-edit"), given, case.prompt.text, seed=case.seed, progress=False, **options)
    return _shown(video)._replace(above=spread_frames(given.frames))


def kind_of_control(number: int) -> str:
    """Return the kind of control of a case: each in turn."""
    return KINDS_OF_CONTROL[(number - 1) % len(KINDS_OF_CONTROL)]


def _control_video(load: LoadNamed, case: SheetCase, options: Options) -> SheetVideo:
    """Generate a video that follows the exact maps of a rendered video."""
    shot, kind = case.prompt.shot, kind_of_control(case.number)
    assert shot is not None
    times = world.frame_times(INPUT_FRAMES, IMAGE_FPS)
    given = world.render_clip(shot, INPUT_FRAMES, IMAGE_FPS)
    maps = np.stack(
        [
            CONTROL_MAPS[kind](frame, ground_truth(shot, time, fps=IMAGE_FPS))
            for frame, time in zip(given, times, strict=True)
        ]
    )
    control = {f"{kind}-map": kg.Video(maps, fps=IMAGE_FPS)}
    video = kg.generate(load("pocket"), case.prompt.text, control=control, seed=case.seed, progress=False, **options)
    above = np.concatenate([spread_frames(given), spread_frames(maps)], axis=2)
    return _shown(video)._replace(above=above, label=kind)


def _elevate_video(load: LoadNamed, case: SheetCase, options: Options) -> SheetVideo:
    video = kg.generate(
        load("pocket"), case.prompt.text, video_model=load("pocket-video"), seed=case.seed, progress=False, **options
    )
    return _shown(video)


def _generate_clips(load: LoadNamed, case: SheetCase, options: Options) -> SheetVideo:
    video = kg.generate(load("pocket-vidrd"), case.prompt.text, clips=CLIPS, seed=case.seed, progress=False, **options)
    return SheetVideo(spread_clips(video.frames, CLIPS), video.settings)


IMAGE_WEIGHTS, VIDEO_WEIGHTS = ("text_encoder", "unet", "vae"), ("unet", "vae", "video")

SETS: Mapping[str, SheetSet] = {
    "images": SheetSet(
        "Single images", ("kineograph generate PROMPT --num-frames 1 --seed SEED",), IMAGE_WEIGHTS,
        prompts.sample_image_prompt, _generate_image, count=48,
    ),
    "image-model": SheetSet(
        "Videos of the image model, by Text2Video-Zero", ("kineograph generate PROMPT --seed SEED",), IMAGE_WEIGHTS,
        prompts.sample_image_prompt, partial(_generate_video, "pocket"),
    ),
    "video-model": SheetSet(
        "Videos of the video model", ("kineograph generate PROMPT --model pocket-video --seed SEED",), VIDEO_WEIGHTS,
        prompts.sample_clip_prompt, partial(_generate_video, "pocket-video"),
    ),
    "image-to-video": SheetSet(
        "Videos that start from an image, at the left: the first frame of a rendered clip, in even numbers a generated image",
        ("kineograph generate IMAGE_PROMPT --num-frames 1 --seed SEED -o image.png",
         "kineograph animate image.png PROMPT --seed SEED"),
        ("animate", "clip", "text_encoder", *VIDEO_WEIGHTS), prompts.sample_animation_prompt, _animate_image,
    ),
    "edit": SheetSet(
        "Edits of rendered videos, above them", ("kineograph edit rendered.mp4 PROMPT --seed SEED",), ("edit", *IMAGE_WEIGHTS),
        prompts.sample_edit_prompt, _edit_video,
    ),
    "control": SheetSet(
        "Videos that follow the maps of a rendered video, both above them: canny, depth and pose in turn",
        ("kineograph generate PROMPT --control KIND-map=maps.mp4 --seed SEED",), ("control", *IMAGE_WEIGHTS),
        prompts.sample_control_prompt, _control_video,
    ),
    "elevator": SheetSet(
        "Videos of image and video model together, by VideoElevator",
        ("kineograph generate PROMPT --video-model pocket-video --seed SEED",), ("text_encoder", *VIDEO_WEIGHTS),
        prompts.sample_clip_prompt, _elevate_video,
    ),
    "fox": SheetSet(
        "Videos of a customised subject (an orange fox with a blue scarf), by Still-Moving",
        ("kineograph generate PROMPT --model pocket-video --adapter pocket-fox --seed SEED",), ("fox", *VIDEO_WEIGHTS),
        prompts.sample_fox_prompt, partial(_generate_video, FOX_MODEL),
    ),
    "clips": SheetSet(
        f"Videos of {CLIPS} clips, by VidRD: the first, the last and two other frames of each clip, two clips in a row",
        (f"kineograph generate PROMPT --model pocket-vidrd --clips {CLIPS} --seed SEED",), ("vidrd", *VIDEO_WEIGHTS),
        prompts.sample_clip_prompt, _generate_clips,
    ),
}  # fmt: skip


def choose_sets(names: Sequence[str]) -> list[str]:
    """Return the sets of these names in the table's order; without names, all.

    Raises InputError for an unknown name.
    """
    for name in names:
        if name not in SETS:
            raise kg.InputError(f"there is no set {name!r}: expected {', '.join(SETS)}")
    return [name for name in SETS if not names or name in names]
