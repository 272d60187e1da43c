"""An image model and a video model draw a case together, or each alone (docs/decisions/0010)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import torch

from kineograph import noise
from kineograph.denoise import Denoise, guided
from kineograph.evaluation.metrics import Frames
from kineograph.evaluation.protocol import Case
from kineograph.ladder import leading
from kineograph.latents import low_pass
from kineograph.methods import video_elevator, videocrafter
from kineograph.methods.video_elevator import Return
from kineograph.models.attention import first
from kineograph.models.model import Model
from kineograph.trajectory import ddim, dpmpp_2m, last

FRAMES, FPS, STEPS, SCALE = 8, 4.0, 25, 3.0


@dataclass(frozen=True)
class Choice:
    """What the ablations vary; as it is, the method of `kineograph generate --method video-elevator`."""

    refine_at: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3)
    video_steps: int = 4  # of 25: as much of the way as 8 of 50
    temporal: float = 0.5
    spatial: float = inf
    back: str = "inversion"
    inversion_steps: int | None = 6


Looks = tuple[Denoise, Denoise, Denoise]  # the image model guided, the same told alone, the video model guided
Way = Callable[[Looks, Model, Model, int, int], torch.Tensor]


def drawn(
    image: Callable[[Case], Model], video: Model, steps: int, said: Callable[[Case], tuple[str, str]], way: Way,
    cases: Sequence[Case],
) -> list[Frames]:  # fmt: skip
    return [draw(image(case), video, steps, said(case), way, case.seed) for case in cases]


def draw(image: Model, video: Model, steps: int, said: tuple[str, str], way: Way, seed: int) -> Frames:
    x0 = way(_looks(image, video, said), image, video, steps, seed)
    return (image.decode(x0)[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _looks(image: Model, video: Model, said: tuple[str, str]) -> Looks:
    told, blank = (image.bind(image.prompt([text]), see=first) for text in (said[0], ""))
    moving, still = (video.bind(video.prompt([text], fps=FPS)) for text in (said[1], ""))
    return guided(told, blank, SCALE), told, guided(moving, still, SCALE)


def _shape(model: Model) -> noise.Shape:
    return (1, *model.latent_shape(*model.default_size))


def per_frame(looks: Looks, image: Model, video: Model, steps: int, seed: int) -> torch.Tensor:
    """The image model, every frame from its own noise."""
    sigmas = leading(image.schedule.sigmas, steps)
    return last(ddim(looks[0], sigmas[0] * noise.independent(seed, range(FRAMES), _shape(image)), sigmas))


def alone(looks: Looks, image: Model, video: Model, steps: int, seed: int) -> torch.Tensor:
    """The video model."""
    sigmas = leading(video.schedule.sigmas, steps)
    begin = noise.independent(seed, range(FRAMES), _shape(video))
    return last(videocrafter.sample(looks[2], begin, sigmas, solve=ddim))


def chosen(choice: Choice) -> Way:
    return partial(together, choice)


def together(choice: Choice, looks: Looks, image: Model, video: Model, steps: int, seed: int) -> torch.Tensor:
    """Both, as the choice has it."""
    look, told, moving = looks
    sigmas, begin = leading(image.schedule.sigmas, steps), noise.related(1.0, seed, range(FRAMES), _shape(image))
    draw = noise.at_levels(seed, range(FRAMES), _shape(image))
    lowest = image.schedule.sigmas[0]
    ways: dict[str, Return] = {
        "inversion": video_elevator.inverted(
            told, [*(rung for rung in sigmas if rung > lowest), lowest], choice.inversion_steps, dpmpp_2m
        ),
        "same": video_elevator.with_noise(lambda level: begin),
        "fresh": video_elevator.with_noise(draw),
    }
    refine = video_elevator.moved(
        moving, leading(video.schedule.sigmas, steps), choice.video_steps, draw,
        keep=partial(low_pass, spatial=choice.spatial, temporal=choice.temporal),
    )  # fmt: skip
    at = video_elevator.levels(sigmas, choice.refine_at)
    return last(video_elevator.sample(look, begin, sigmas, refine_at=at, refine=refine, back=ways[choice.back]))
