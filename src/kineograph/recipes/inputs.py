"""What a request reads: the videos of its controls, or the one that it edits, opened and held against what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kineograph.data.checks import MOST_FRAMES
from kineograph.data.footage import Footage, open_footage, size_for
from kineograph.data.picture import Picture, read_picture
from kineograph.data.request import FPS, MOTION, NUM_FRAMES, Request
from kineograph.errors import InputError
from kineograph.motion import along, parse


class Inputs(NamedTuple):
    """What a request leaves open and no model decides; a footage for each control, or the one that is edited; and the
    picture that is set in motion.

    motion: how the camera moves, None where all frames start from the same noise and the footage moves them.
    """

    num_frames: int
    fps: float
    motion: str | None
    footage: tuple[Footage, ...]
    picture: Picture | None = None


def opened(request: Request) -> Inputs:
    """The inputs of a request. Raises InputError for a video or picture that cannot serve, and for such a motion."""
    paths = [request.video] if request.video else [control.video for control in request.control]
    footage = tuple(open_footage(path, num_frames=request.num_frames, fps=request.fps) for path in paths)
    picture = None if request.image is None else read_picture(request.image)
    num_frames = request.num_frames or _length(footage)
    motion = request.motion or (None if footage else MOTION)
    if footage and motion is not None and parse(motion) == parse("none"):
        motion = None
    if motion is not None:
        along(parse(motion), frames=num_frames, seed=0)
    return Inputs(num_frames, request.fps or (footage[0].fps if footage else FPS), motion, footage, picture)


def _length(footage: Sequence[Footage]) -> int:
    if not footage:
        return NUM_FRAMES
    lengths = {len(each) for each in footage}
    if len(lengths) > 1:
        told = ", ".join(f"{each.path} has {len(each)}" for each in footage)
        raise InputError(f"the videos are not equally long ({told} frames): say how many frames (--num-frames)")
    if (length := lengths.pop()) > MOST_FRAMES:
        raise InputError(
            f"{footage[0].path} has {length} frames, and a video has at most {MOST_FRAMES}: ask for the first of them "
            "(--num-frames), or for fewer a second (--fps)"
        )
    return length


def size(request: Request, inputs: Inputs, default: tuple[int, int], factor: int) -> tuple[int, int]:
    """Height and width in pixels: as asked, else of the footage's shape, else the model's own.

    Raises InputError when the videos ask for different shapes.
    """
    if not inputs.footage:
        return request.height or default[0], request.width or default[1]
    sizes = [size_for(each, request.height, request.width, side=max(default), factor=factor) for each in inputs.footage]
    if len(set(sizes)) > 1:
        told = ", ".join(f"{each.path} is {each.width} x {each.height}" for each in inputs.footage)
        raise InputError(f"the videos are of different shapes ({told}): cut them to the same, or say height and width")
    return sizes[0]
