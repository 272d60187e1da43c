"""A video model draws clips on end, as `kineograph generate --clips` does (docs/decisions/0010)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from kineograph import noise
from kineograph.data.reuse import Reuse
from kineograph.denoise import guided
from kineograph.evaluation.filming import SCALE, developed
from kineograph.evaluation.metrics import Frames
from kineograph.evaluation.protocol import Case
from kineograph.ladder import leading
from kineograph.latents import Latents
from kineograph.methods import videocrafter, vidrd
from kineograph.methods.vidrd import Past
from kineograph.models.model import Model
from kineograph.trajectory import Solver, Step, ddim, recorded

FRAMES, FPS = 8, 8.0  # of a clip: the paper's length


def as_it_is(past: Past) -> Past | None:
    return past


def forgotten(past: Past) -> Past | None:
    return None


def noise_in_its_order(past: Past) -> Past | None:
    """Noise that is turned round once more is not turned round."""
    return Past(past.noise.flip(1), past.levels)


class Tie(NamedTuple):
    """How a clip follows from the one before; as it is, as the paper has it.

    taken: what becomes of the past before it is reused.
    """

    taken: Callable[[Past], Past | None] = as_it_is
    reuse: Reuse = Reuse()


class Clip(NamedTuple):
    """The frames of a clip, uint8 [f h w 3], and what it leaves to the next."""

    frames: Frames
    left: Past


Draw = Callable[[Case, Tie, int, Past | None], Clip]  # (case, tie, number of the clip, past) -> clip


def drawing(model: Model, steps: int) -> Draw:
    """What draws each clip of a case; the last first clip is kept, since no tie counts there."""
    draw = partial(drawn, model, steps)
    first = lru_cache(maxsize=1)(lambda case: draw(case, Tie(), 0, None))

    def clip(case: Case, tie: Tie, number: int, past: Past | None) -> Clip:
        return draw(case, tie, number, past) if number else first(case)

    return clip


def drawn(model: Model, steps: int, case: Case, tie: Tie, number: int, past: Past | None) -> Clip:
    """One clip of a case."""
    assert model.temporal is not None, "an image model has no videos of its own"
    told, blank = (model.bind(model.prompt([text], fps=FPS)) for text in (case.prompt, ""))
    sigmas, shape = leading(model.schedule.sigmas, steps), (1, *model.latent_shape(*model.default_size))
    numbers = range(number * FRAMES, (number + 1) * FRAMES)
    fresh = noise.related(model.temporal.noise_ratio, case.seed, numbers, shape, number).to(model.device)
    keep, ratio = tie.reuse.keep, tie.reuse.noise_ratio

    def walk(begin: Latents, solve: Solver) -> Iterator[Step]:
        return videocrafter.sample(guided(told, blank, SCALE), begin, sigmas, solve=solve)

    guided_at = vidrd.stages(sigmas, keep, tie.reuse.guidance)
    made = recorded(vidrd.sample(walk, fresh, past, keep=keep, ratio=ratio, guided=guided_at, solve=ddim))
    return Clip(developed(model, made[-1].x), vidrd.left_by(vidrd.begun(fresh, past, keep, ratio), made))


def on_end(draw: Draw, tie: Tie, count: int, cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases, of so many clips."""
    return [np.concatenate(list(_clips(draw, tie, count, case))) for case in cases]


def _clips(draw: Draw, tie: Tie, count: int, case: Case) -> Iterator[Frames]:
    past = None
    for number in range(count):
        clip = draw(case, tie, number, past)
        past = tie.taken(clip.left)
        yield clip.frames
