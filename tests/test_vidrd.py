"""VidRD without a network: what its parts are by themselves, and what they must equal in limiting settings."""

import math

import pytest
import torch

from kineograph.latents import Latents
from kineograph.methods import videocrafter, vidrd
from kineograph.methods.vidrd import (
    Past,
    guided_frames,
    initial_noise,
    overwrite_guided,
    record_past,
    sample,
    skip_overwritten,
)
from kineograph.noise import independent, partly_shared
from kineograph.samplers import ddim, dpmpp_2m

FIFTY = [*torch.logspace(1.2, -1.5, 50, dtype=torch.float64).tolist(), 0.0]
FRAMES, SHAPE = 8, (1, 4, 4, 4)


def mixing(x: Latents, sigma: float) -> Latents:
    """A denoiser whose frames see one another."""
    known = 1 / (1 + sigma**2)
    return known * x + (1 - known) * torch.tanh(0.5 * x + 0.5 * x.mean(1, keepdim=True))


def clip(noise: Latents, sampler) -> list:
    return videocrafter.sample(mixing, noise, FIFTY, sampler=sampler)


def drawn(clips: int, *, keep=4, ratio=4.0, share=0.4, sampler=ddim) -> list[list]:
    past, made = None, []
    for number in range(clips):
        fresh = independent(number, range(FRAMES), SHAPE)
        guided = guided_frames(FIFTY, keep, share)
        steps = list(sample(clip, fresh, past, keep=keep, ratio=ratio, guided=guided, sampler=sampler))
        past = record_past(initial_noise(fresh, past, keep, ratio), steps)
        made.append(steps)
    return made


def test_one_clip_is_plain_sampling():
    (steps,) = drawn(1)
    plain = list(clip(independent(0, range(FRAMES), SHAPE), ddim))
    assert torch.equal(steps[-1].x, plain[-1].x)


def test_noise_turned_round_twice_is_the_noise():
    first = independent(0, range(FRAMES), SHAPE)
    fresh = independent(1, range(FRAMES), SHAPE)
    once = initial_noise(fresh, Past(first, {}), keep=7, ratio=math.inf)
    assert torch.allclose(initial_noise(fresh, Past(once, {}), keep=7, ratio=math.inf), first, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 4.0, math.inf])
def test_noise_that_depends_on_the_past_has_unit_variance(ratio):
    shape = (1, 4, 64, 64)
    past, fresh = (independent(seed, range(FRAMES), shape) for seed in (0, 1))
    mixed = initial_noise(fresh, Past(past, {}), keep=0, ratio=ratio)
    assert mixed.var().item() == pytest.approx(1, abs=0.01)
    turned = past.flip(1)
    assert (mixed * turned).mean().item() == pytest.approx(math.sin(math.atan(ratio)), abs=0.01)


def test_the_papers_guided_steps():
    counts = guided_frames(FIFTY, keep=4, share=0.4)
    assert [sum(count > j for count in counts.values()) for j in range(4)] == [20, 15, 10, 5]
    assert list(counts) == FIFTY[:20]


def test_guidance_at_every_level_gives_an_exact_seam():
    first, second = drawn(2, share=1.0)
    assert torch.equal(first[-1].x[:, -1], second[-1].x[:, 0])
    assert not torch.equal(first[-1].x[:, -2], second[-1].x[:, 1])


@pytest.mark.parametrize("share", [0.0, 1.0, math.inf])
def test_noise_that_a_clips_frames_share_does_not_add_up_over_clips(share):
    shape, past = (1, 4, 64, 64), None
    for number in range(8):
        fresh = partly_shared(share, 0, range(number * FRAMES, (number + 1) * FRAMES), shape, number)
        past = Past(initial_noise(fresh, past, keep=4, ratio=4.0), {})
    noise = past.noise
    assert noise.var().item() == pytest.approx(1, abs=0.03)
    neighbours = (noise[:, 4:-1] * noise[:, 5:]).mean().item()
    assert neighbours == pytest.approx(math.sin(math.atan(share)) ** 2, abs=0.03)


def reading_the_first(x: Latents, sigma: float) -> Latents:
    """A denoiser whose frames see the first one alone."""
    known = 1 / (1 + sigma**2)
    return known * x + (1 - known) * torch.tanh(0.5 * x + 0.5 * x[:, :1])


def test_frames_that_are_overwritten_anyway_are_not_evaluated_and_change_nothing():
    fresh, seen = independent(1, range(FRAMES), SHAPE), []
    past = record_past(fresh, list(ddim(reading_the_first, FIFTY[0] * fresh, FIFTY)))
    guided = guided_frames(FIFTY, keep=4, share=0.4)

    def counting(x: Latents, sigma: float) -> Latents:
        seen.append(x.shape[1])
        return reading_the_first(x, sigma)

    def walk(look) -> list:
        def draw(noise: Latents, sampler) -> list:
            return sampler(look, FIFTY[0] * noise, FIFTY)

        return list(sample(draw, independent(2, range(FRAMES), SHAPE), past, keep=4, ratio=4.0, guided=guided,
                               sampler=ddim))  # fmt: skip

    plain, spared = walk(reading_the_first), walk(skip_overwritten(counting, past, guided, FIFTY))
    assert all(torch.equal(one.x, other.x) for one, other in zip(plain, spared, strict=True))
    assert len(seen) == 50 and 50 * FRAMES - sum(seen) == 14 + 9 + 4  # the first is read by all


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_each_part_brings_the_seam_closer(sampler):
    def seam(**settings) -> float:
        first, second = drawn(2, sampler=sampler, **settings)
        return (first[-1].x[:, -1] - second[-1].x[:, 0]).abs().mean().item()

    none = seam(keep=0, ratio=0.0, share=0.0)
    assert seam(share=0.0) < none
    assert seam() < none


def test_frames_that_are_not_guided_are_the_solvers():
    past = Past(torch.zeros(1, FRAMES, *SHAPE[1:]), {FIFTY[0]: torch.full((1, FRAMES, *SHAPE[1:]), 7.0)})
    x = FIFTY[0] * independent(0, range(FRAMES), SHAPE)
    (step, _) = overwrite_guided(ddim, past, {FIFTY[0]: 2})(mixing, x, FIFTY[:2])
    assert (step.x[:, :2] == 7).all() and torch.equal(step.x[:, 2:], x[:, 2:])


def test_a_walk_of_the_first_frame_alone_is_guided_too():
    past = Past(torch.zeros(1, FRAMES, *SHAPE[1:]), {FIFTY[0]: torch.full((1, FRAMES, *SHAPE[1:]), 7.0)})
    (step, _) = overwrite_guided(ddim, past, {FIFTY[0]: 4})(mixing, torch.zeros(1, 1, *SHAPE[1:]), FIFTY[:2])
    assert step.x.shape[1] == 1 and (step.x == 7).all()


def test_more_frames_kept_than_there_are_is_refused():
    with pytest.raises(ValueError, match="keeps fewer of them"):
        initial_noise(independent(0, range(4), SHAPE), None, keep=4, ratio=4.0)
    assert vidrd.guided_frames(FIFTY, 4, 0.0) == {}
