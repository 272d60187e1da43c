"""What a request reads: the videos of its controls, or the one that it edits, opened and held against what is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kineograph import noise, samplers
from kineograph import sigmas as ladder
from kineograph.denoise import Denoise, check_finite, classifier_free_guidance
from kineograph.errors import MAX_FRAMES, InputError
from kineograph.latents import Latents
from kineograph.media.footage import Footage, open_footage, size_for
from kineograph.media.images import Picture, read_picture
from kineograph.methods import vidrd
from kineograph.methods.vidrd import Past
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.motion import frame_warp, parse
from kineograph.request import IMAGE_MODEL_FPS, MOTION, NUM_FRAMES, Request
from kineograph.samplers import NoiseAt, Sampler, Step


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


def open_inputs(request: Request) -> Inputs:
    """The inputs of a request. Raises InputError for a video or picture that cannot serve, and for such a motion."""
    paths = [request.video] if request.video else [control.video for control in request.control]
    footage = tuple(open_footage(path, num_frames=request.num_frames, fps=request.fps) for path in paths)
    picture = None if request.image is None else read_picture(request.image)
    num_frames = request.num_frames or _length(footage)
    motion = request.motion or (None if footage else MOTION)
    if footage and motion is not None and parse(motion) == parse("none"):
        motion = None
    if motion is not None:
        frame_warp(parse(motion), frames=num_frames, seed=0)
    return Inputs(num_frames, request.fps or (footage[0].fps if footage else IMAGE_MODEL_FPS), motion, footage, picture)


def _length(footage: Sequence[Footage]) -> int:
    if not footage:
        return NUM_FRAMES
    lengths = {len(each) for each in footage}
    if len(lengths) > 1:
        told = ", ".join(f"{each.path} has {len(each)}" for each in footage)
        raise InputError(f"the videos are not equally long ({told} frames): say how many frames (--num-frames)")
    if (length := lengths.pop()) > MAX_FRAMES:
        raise InputError(
            f"{footage[0].path} has {length} frames, and a video has at most {MAX_FRAMES}: ask for the first of them "
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


class Clip(NamedTuple):
    """Which clip of a video is drawn, what the one before left, and the mean estimates of the first one."""

    number: int = 0
    past: Past | None = None
    first: Mapping[float, Latents] | None = None


class Plan(NamedTuple):
    """What a request may leave open, decided."""

    seed: int
    height: int
    width: int
    shape: noise.Shape
    inputs: Inputs
    solver: str
    video_model: Model | None = None
    clip: Clip = Clip()

    @property
    def frames(self) -> range:
        """The numbers of the clip's frames."""
        count = self.inputs.num_frames
        return range(self.clip.number * count, (self.clip.number + 1) * count)


class SamplingRun(NamedTuple):
    """How many steps there will be, the noise that they begin with, and the steps."""

    total: int
    begin: Latents
    steps: Iterator[Step]


def begun(request: Request, start: Plan, fresh: Latents) -> Latents:
    """What a clip begins with: fresh noise, and the past's if there is one."""
    past = start.clip.past
    if past is not None and request.reuse.order == "kept":
        past = past._replace(noise=past.noise.flip(1))  # turned twice
    return vidrd.initial_noise(fresh, past, _kept(request, start), request.reuse.noise_ratio)


def _kept(request: Request, start: Plan) -> int:
    """How many frames tie the clip to the one before: one at least is new."""
    return min(request.reuse.keep, len(start.frames) - 1)


def following(request: Request, start: Plan, sampler: Sampler, sigmas: Sequence[float]) -> Sampler:
    """The solver down this ladder, that begins as the past went on, if there is one."""
    if start.clip.past is None:
        return sampler
    guided = _guided(request, start, sigmas)
    anchor = {sigma: each for sigma, each in (start.clip.first or {}).items() if sigma in guided}
    walk = vidrd.overwrite_guided(sampler, start.clip.past, guided)
    return lambda look, x, rungs: walk(vidrd.anchor_to_first(look, anchor, request.reuse.anchor), x, rungs)


def sparing(request: Request, start: Plan, look: Denoise, sigmas: Sequence[float]) -> Denoise:
    """The same model, whose frames read the first alone, without those that follow the past anyway. An anchor reads all
    estimates."""
    if start.clip.past is None or request.reuse.anchor:
        return look
    return vidrd.skip_overwritten(look, start.clip.past, _guided(request, start, sigmas), sigmas)


def _guided(request: Request, start: Plan, sigmas: Sequence[float]) -> vidrd.Guided:
    return vidrd.guided_frames(sigmas, _kept(request, start), request.reuse.guidance)


def distilled(table: Sequence[float], steps: int) -> list[float]:
    """The ladder of latent consistency models: some of the 50 levels that they were distilled on."""
    return ladder.subsample(ladder.trailing(table, 50), steps)


class Descent(NamedTuple):
    """A way down: the ladder from a model's table of levels, and the solver from what it may draw."""

    rungs: Callable[[Sequence[float], int], list[float]]
    solver: Callable[[NoiseAt], Sampler]


DESCENTS: Mapping[str, Descent] = {
    "ddim": Descent(ladder.leading, lambda draw: samplers.ddim),
    "dpmpp-2m": Descent(ladder.leading, lambda draw: samplers.dpmpp_2m),
    "euler-ancestral": Descent(ladder.leading, samplers.euler_ancestral),
    "lcm": Descent(distilled, samplers.lcm),
}


def solver(request: Request, start: Plan) -> Sampler:
    """The solver of that name, which draws noise for each of the frames it walks."""
    return _solver(request, start, start.frames)


def solver_in_step(request: Request, start: Plan) -> Sampler:
    """The solver of that name, which draws the same noise for all frames."""
    return _solver(request, start, [0] * len(start.frames))


def _solver(request: Request, start: Plan, frames: Sequence[int]) -> Sampler:
    def sampler(look: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        draw = noise.per_sigma(start.seed, frames[: x.shape[1]], start.shape)
        return DESCENTS[start.solver].solver(draw)(look, x, sigmas)

    return sampler


def look(request: Request, start: Plan, schedule: Schedule, told: Denoise, blank: Denoise) -> Denoise:
    """The model guided as the request has it, and for "lcm" as a latent consistency model, which it had better be."""
    return dependable(start, schedule, classifier_free_guidance(told, blank, max(1.0, request.guidance_scale)))


def dependable(start: Plan, schedule: Schedule, estimate: Denoise) -> Denoise:
    """The estimate as the solver wants it, and refused where it holds NaN."""
    return check_finite(schedule.consistent(estimate) if start.solver == "lcm" else estimate)
