"""VidRD without a network: its parts alone, and reductions to simpler methods."""

import math

import pytest
import torch

from kineograph.latents import Latents
from kineograph.methods.vidrd import (
    ClipState,
    Past,
    guided_frames,
    initial_noise,
    overwrite_guided,
    record_past,
    sample_clips,
    skip_overwritten,
)
from kineograph.noise import independent, partly_shared
from kineograph.plan import SamplingRun
from kineograph.samplers import ddim, dpmpp_2m

FIFTY = [*torch.logspace(1.2, -1.5, 50, dtype=torch.float64).tolist(), 0.0]
FRAMES, SHAPE = 8, (1, 4, 4, 4)


def mixing(x: Latents, sigma: float) -> Latents:
    """Mix frames: a denoiser whose frames depend on one another."""
    known = 1 / (1 + sigma**2)
    return known * x + (1 - known) * torch.tanh(0.5 * x + 0.5 * x.mean(1, keepdim=True))


def generate(clips: int, *, keep=4, ratio=4.0, share=0.4, sampler=ddim) -> list[Latents]:
    def run_clip(state: ClipState) -> SamplingRun:
        fresh = independent(state.number, range(FRAMES), SHAPE)
        noise, follow = initial_noise(fresh, state.past, keep, ratio), sampler
        if state.past is not None:
            follow = overwrite_guided(sampler, state.past, guided_frames(FIFTY, keep, share))
        return SamplingRun(len(FIFTY), noise, follow(mixing, FIFTY[0] * noise, FIFTY))

    return [latents for latents, _ in sample_clips(run_clip, clips, ClipState())]


def test_one_clip_is_plain_sampling() -> None:
    (latents,) = generate(1)
    plain = list(ddim(mixing, FIFTY[0] * independent(0, range(FRAMES), SHAPE), FIFTY))
    assert torch.equal(latents, plain[-1].x)


def test_noise_reversed_twice_is_the_noise() -> None:
    first = independent(0, range(FRAMES), SHAPE)
    fresh = independent(1, range(FRAMES), SHAPE)
    once = initial_noise(fresh, Past(first, {}), keep=7, ratio=math.inf)
    assert torch.allclose(initial_noise(fresh, Past(once, {}), keep=7, ratio=math.inf), first, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 4.0, math.inf])
def test_noise_that_depends_on_the_past_has_unit_variance(ratio) -> None:
    shape = (1, 4, 64, 64)
    past, fresh = (independent(seed, range(FRAMES), shape) for seed in (0, 1))
    mixed = initial_noise(fresh, Past(past, {}), keep=0, ratio=ratio)
    assert mixed.var().item() == pytest.approx(1, abs=0.01)
    reversed_past = past.flip(1)
    assert (mixed * reversed_past).mean().item() == pytest.approx(math.sin(math.atan(ratio)), abs=0.01)


def test_the_papers_guided_steps() -> None:
    counts = guided_frames(FIFTY, keep=4, share=0.4)
    assert [sum(count > j for count in counts.values()) for j in range(4)] == [20, 15, 10, 5]
    assert list(counts) == FIFTY[:20]


def test_guidance_at_every_sigma_gives_an_exact_seam() -> None:
    first, second = generate(2, share=1.0)
    assert torch.equal(first[:, -1], second[:, 0])
    assert not torch.equal(first[:, -2], second[:, 1])


@pytest.mark.parametrize("share", [0.0, 1.0, math.inf])
def test_noise_that_a_clips_frames_share_does_not_add_up_over_clips(share) -> None:
    shape, past = (1, 4, 64, 64), None
    for number in range(8):
        fresh = partly_shared(share, 0, range(number * FRAMES, (number + 1) * FRAMES), shape, number)
        past = Past(initial_noise(fresh, past, keep=4, ratio=4.0), {})
    noise = past.noise
    assert noise.var().item() == pytest.approx(1, abs=0.03)
    neighbours = (noise[:, 4:-1] * noise[:, 5:]).mean().item()
    assert neighbours == pytest.approx(math.sin(math.atan(share)) ** 2, abs=0.03)


def attending_to_the_first(x: Latents, sigma: float) -> Latents:
    """Denoise frames that depend on the first one alone."""
    known = 1 / (1 + sigma**2)
    return known * x + (1 - known) * torch.tanh(0.5 * x + 0.5 * x[:, :1])


def test_skipping_frames_that_are_overwritten_changes_nothing() -> None:
    fresh, evaluated = independent(1, range(FRAMES), SHAPE), []
    past = record_past(fresh, list(ddim(attending_to_the_first, FIFTY[0] * fresh, FIFTY)))
    guided = guided_frames(FIFTY, keep=4, share=0.4)

    def counting(x: Latents, sigma: float) -> Latents:
        evaluated.append(x.shape[1])
        return attending_to_the_first(x, sigma)

    def steps(denoise) -> list:
        noise = initial_noise(independent(2, range(FRAMES), SHAPE), past, keep=4, ratio=4.0)
        return list(overwrite_guided(ddim, past, guided)(denoise, FIFTY[0] * noise, FIFTY))

    plain, skipped = steps(attending_to_the_first), steps(skip_overwritten(counting, past, guided, FIFTY))
    assert all(torch.equal(one.x, other.x) for one, other in zip(plain, skipped, strict=True))
    assert len(evaluated) == 50 and 50 * FRAMES - sum(evaluated) == 14 + 9 + 4  # the first is read by all


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_each_part_brings_the_seam_closer(sampler) -> None:
    def seam(**settings) -> float:
        first, second = generate(2, sampler=sampler, **settings)
        return (first[:, -1] - second[:, 0]).abs().mean().item()

    none = seam(keep=0, ratio=0.0, share=0.0)
    assert seam(share=0.0) < none
    assert seam() < none


def test_frames_that_are_not_guided_are_the_samplers() -> None:
    past = Past(torch.zeros(1, FRAMES, *SHAPE[1:]), {FIFTY[0]: torch.full((1, FRAMES, *SHAPE[1:]), 7.0)})
    x = FIFTY[0] * independent(0, range(FRAMES), SHAPE)
    (step, _) = overwrite_guided(ddim, past, {FIFTY[0]: 2})(mixing, x, FIFTY[:2])
    assert (step.x[:, :2] == 7).all() and torch.equal(step.x[:, 2:], x[:, 2:])


def test_the_first_frame_alone_is_guided_too() -> None:
    past = Past(torch.zeros(1, FRAMES, *SHAPE[1:]), {FIFTY[0]: torch.full((1, FRAMES, *SHAPE[1:]), 7.0)})
    (step, _) = overwrite_guided(ddim, past, {FIFTY[0]: 4})(mixing, torch.zeros(1, 1, *SHAPE[1:]), FIFTY[:2])
    assert step.x.shape[1] == 1 and (step.x == 7).all()


def test_more_frames_kept_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps fewer of them"):
        initial_noise(independent(0, range(4), SHAPE), None, keep=4, ratio=4.0)
    assert guided_frames(FIFTY, 4, 0.0) == {}


def test_the_steps_of_the_last_clip_are_not_kept_and_sampling_continues_from_any_state() -> None:
    noise = independent(0, range(FRAMES), SHAPE)

    def run_clip(state: ClipState) -> SamplingRun:
        return SamplingRun(len(FIFTY), noise, ddim(mixing, FIFTY[0] * noise, FIFTY))

    states = [state for _, state in sample_clips(run_clip, 3, ClipState())]
    assert [state.number for state in states] == [1, 2, 3]
    assert [len(state.past.latents) for state in states] == [51, 51, 1]
    assert states[1].first is states[0].first
    assert [state.number for _, state in sample_clips(run_clip, 3, states[1])] == [3]
