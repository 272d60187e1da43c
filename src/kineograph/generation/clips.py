"""Long videos clip after clip, by VidRD around any method; and finished clips on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from kineograph.denoise import Denoise
from kineograph.latents import Latents
from kineograph.media.files import replace_atomically
from kineograph.media.metadata import settings_id
from kineograph.media.video import Video
from kineograph.methods import vidrd
from kineograph.methods.vidrd import ClipState, Past
from kineograph.models.model import Model
from kineograph.plan import Plan, RunMethod, SamplingRun
from kineograph.request import Request
from kineograph.samplers import Sampler, Step


class Progress(NamedTuple):
    """Progress of a video: `done` of `total` steps; `step.x0` is the current estimate, as latents."""

    done: int
    total: int
    step: Step


OnStep = Callable[[Progress], None]


class GeneratedClip(NamedTuple):
    """The frames of a clip, uint8 [f h w 3], and the state that the next clip starts from."""

    frames: np.ndarray
    state: ClipState


def generate_clips(
    run_method: RunMethod, model: Model, request: Request, plan: Plan, on_step: OnStep | None, state: ClipState
) -> Iterator[GeneratedClip]:
    """Generate the clips of a video, starting from this state."""
    prompts = (request.prompt, *request.then)

    def run_clip(state: ClipState) -> SamplingRun:
        prompt = prompts[min(state.number, len(prompts) - 1)]
        run = run_method(model, replace(request, prompt=prompt), _plan_clip(request, plan, state))
        return run._replace(steps=_report_progress(run, state.number, request.clips, on_step))

    for latents, after in vidrd.sample_clips(run_clip, request.clips, state):
        frames = np.concatenate([Video.from_tensor(part[0]).frames for part in model.decode_chunks(latents)])
        yield GeneratedClip(frames, after)


def _report_progress(run: SamplingRun, number: int, clips: int, on_step: OnStep | None) -> Iterator[Step]:
    for done, step in enumerate(run.steps, number * run.num_steps + 1):
        if on_step:
            on_step(Progress(done, clips * run.num_steps, step))
        yield step


def _plan_clip(request: Request, plan: Plan, state: ClipState) -> Plan:
    """Return the plan of the next clip: its noise and its sampler continue the previous clip's, if there is one."""
    plan, options = replace(plan, clip=state.number), request.reuse
    if state.past is None:
        return plan
    past, keep = state.past, min(options.keep, len(plan.frames) - 1)
    # `initial_noise` reverses the order of frames: a second reversal keeps it
    past_noise = past._replace(noise=past.noise.flip(1)) if options.order == "kept" else past

    def guided_frames(sigmas: Sequence[float]) -> dict[float, int]:
        return vidrd.guided_frames(sigmas, keep, options.guidance)

    def continue_noise(fresh: Latents) -> Latents:
        return vidrd.initial_noise(fresh, past_noise, keep, options.noise_ratio)

    def continue_sampler(sampler: Sampler, sigmas: Sequence[float]) -> Sampler:
        guided = guided_frames(sigmas)
        anchor = {sigma: mean for sigma, mean in (state.first or {}).items() if sigma in guided}
        following = vidrd.overwrite_guided(sampler, past, guided)
        return lambda denoise, x, sigmas: following(vidrd.anchor_to_first(denoise, anchor, options.anchor), x, sigmas)

    def skip_overwritten(denoise: Denoise, sigmas: Sequence[float]) -> Denoise:
        if options.anchor:  # an anchor reads the estimates of all frames
            return denoise
        return vidrd.skip_overwritten(denoise, past, guided_frames(sigmas), sigmas)

    return replace(
        plan, continue_noise=continue_noise, continue_sampler=continue_sampler, skip_overwritten=skip_overwritten
    )


@dataclass(frozen=True)
class ClipFiles:
    """A folder of finished clips, from which an interrupted video continues to the same result."""

    folder: Path

    @classmethod
    def for_settings(cls, folder: Path, settings: Mapping[str, Any]) -> ClipFiles:
        """Return the subfolder of a video with these settings."""
        return cls(folder / settings_id(json.loads(json.dumps(settings))))

    def load(self) -> tuple[list[np.ndarray], ClipState]:
        """Load the frames of the finished clips, and the state to continue from."""
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            return [], ClipState()
        return [load_file(file)["frames"].numpy() for file in files], _read_state(load_file(files[-1]), len(files))

    def save(self, clips: Iterable[GeneratedClip]) -> Iterator[GeneratedClip]:
        """Yield the same clips, each written as soon as it is finished."""
        for clip in clips:
            with replace_atomically(self.folder / f"{clip.state.number - 1:04}.safetensors") as part:
                frames = torch.from_numpy(np.ascontiguousarray(clip.frames))
                save_file({"frames": frames, **_state_tensors(clip.state)}, part)
            yield clip


def _state_tensors(state: ClipState) -> dict[str, torch.Tensor]:
    past = state.past or Past(torch.empty(0), {})
    tensors = {
        "noise": past.noise,
        **{f"level {sigma!r}": x for sigma, x in past.latents.items()},
        **{f"first {sigma!r}": x for sigma, x in (state.first or {}).items()},
    }
    return {name: x.cpu().contiguous() for name, x in tensors.items()}


def _read_state(tensors: Mapping[str, torch.Tensor], number: int) -> ClipState:
    def by_sigma(prefix: str) -> dict[float, torch.Tensor]:
        return {float(name.split()[1]): x for name, x in tensors.items() if name.startswith(prefix)}

    return ClipState(number, Past(tensors["noise"], by_sigma("level ")), by_sigma("first "))
