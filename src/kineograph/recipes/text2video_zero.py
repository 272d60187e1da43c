"""Text2Video-Zero with a model, as a request asks for it."""

from __future__ import annotations

from collections.abc import Iterator

from kineograph import ladder, noise
from kineograph.data.request import Request
from kineograph.denoise import Denoise
from kineograph.methods import text2video_zero as method
from kineograph.models.attention import first
from kineograph.models.model import Model
from kineograph.recipes.walks import DESCENTS, Start, camera, look, solver
from kineograph.trajectory import Step


def plan(model: Model, request: Request, start: Start) -> tuple[int, Iterator[Step]]:
    """How many steps there will be, and the walk."""
    sigmas = DESCENTS[request.solver].rungs(model.schedule.sigmas, request.num_inference_steps)
    spread_to, move_at = method.levels(start.shape, highest=sigmas[0])
    sigmas = ladder.through(sigmas, spread_to, move_at)
    alone, together = ladder.above(sigmas, move_at)[:-1], ladder.below(sigmas, spread_to)
    walk = method.sample(
        _look(model, request, start),
        noise.independent(start.seed, range(request.num_frames), start.shape).to(model.device),
        sigmas,
        warp=camera(request, start.seed),
        move_at=move_at,
        spread_to=spread_to,
        solve=solver(request, start),
    )
    return len(alone) + len(together) if request.num_frames > 1 else len(sigmas), walk


def _look(model: Model, request: Request, start: Start) -> Denoise:
    """The model told the prompt and guided away from the negative one, every frame looking at the first."""
    told, blank = (
        model.bind(model.prompt([text], size=(start.height, start.width)), see=first, chunk_size=request.chunk_size)
        for text in (request.prompt, request.negative_prompt)
    )
    return look(request, model.schedule, told, blank)
