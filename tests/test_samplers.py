"""Samplers against data whose perfect denoiser is one line: N(MEAN, SPREAD^2) in every number."""

import math
import runpy
from itertools import pairwise

import numpy as np
import pytest
import torch

from kineograph import motion, noise, samplers, sigmas
from kineograph.samplers import ddim, ddim_eta, dpmpp_2m, euler_ancestral, final_latents, lcm

MEAN, SPREAD = 0.3, 0.5
SHAPE = (1, 4, 64, 64)
SIGMAS = sigmas.karras(14.0, 0.03, 12)
NOISE_AT = noise.per_sigma(1, range(2), SHAPE)
START = SIGMAS[0] * noise.independent(0, range(2), SHAPE)

deterministic = pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
single_step = pytest.mark.parametrize(
    "sampler", [ddim, ddim_eta(0.5, NOISE_AT), euler_ancestral(NOISE_AT), lcm(NOISE_AT)]
)
every_sampler = pytest.mark.parametrize(
    "sampler", [ddim, ddim_eta(0.5, NOISE_AT), euler_ancestral(NOISE_AT), lcm(NOISE_AT), dpmpp_2m]
)


def gaussian(x, sigma):
    """E[x0 | x] for x0 ~ N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def consistent(x, sigma):
    """Return the end of the probability flow from x, for the same data."""
    return probability_flow(x, sigma, 0.0)


def probability_flow(x, sigma, to):
    """Return the probability flow from `sigma` to `to`: distances from the mean shrink with the spread."""
    return MEAN + (x - MEAN) * math.hypot(SPREAD, to) / math.hypot(SPREAD, sigma)


def point(x, sigma):
    """E[x0 | x] when all data are one video."""
    return torch.full_like(x, MEAN)


def geometric(steps: int) -> list[float]:
    return np.geomspace(10.0, 0.05, steps + 1).tolist()


def error(sampler, steps: int) -> float:
    x = 10.0 * noise.independent(0, range(1), (1, 1, 8, 8)).double()
    return (final_latents(sampler(gaussian, x, geometric(steps))) - probability_flow(x, 10.0, 0.05)).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpmpp_2m, 2)])
def test_the_order_of_convergence_is_the_papers(sampler, order) -> None:
    rates = [math.log2(error(sampler, steps) / error(sampler, 2 * steps)) for steps in (40, 80, 160)]
    assert rates == pytest.approx([order] * 3, abs=0.15)


@every_sampler
def test_data_of_a_single_video_are_sampled_exactly(sampler) -> None:
    torch.testing.assert_close(final_latents(sampler(point, START, SIGMAS)), torch.full_like(START, MEAN))


@every_sampler
def test_noisy_videos_have_the_variance_of_their_sigma(sampler) -> None:
    for step in sampler(point, START, SIGMAS[:-1]):
        assert (step.x - MEAN).std().item() == pytest.approx(step.sigma, rel=0.03)


def test_consistency_sampling_keeps_both_moments_of_the_data() -> None:
    final = final_latents(lcm(NOISE_AT)(consistent, START, SIGMAS))
    assert final.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert final.std().item() == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("sampler", [ddim, ddim_eta(0.5, NOISE_AT), euler_ancestral(NOISE_AT), dpmpp_2m])
def test_many_steps_sample_both_moments_of_the_data(sampler) -> None:
    final = final_latents(sampler(gaussian, START, sigmas.karras(14.0, 0.03, 200)))
    assert final.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert final.std().item() == pytest.approx(SPREAD, rel=0.03)


@every_sampler
def test_a_sampler_yields_every_sigma_and_ends_with_the_latent_itself(sampler) -> None:
    steps = list(sampler(gaussian, START, SIGMAS))
    assert [step.sigma for step in steps] == SIGMAS
    assert torch.equal(steps[0].x, START)
    torch.testing.assert_close(steps[3].x0, gaussian(steps[3].x, SIGMAS[3]))
    assert steps[-1].x0 is steps[-1].x
    assert torch.equal(final_latents(iter(steps)), steps[-1].x)


@every_sampler
def test_a_single_sigma_takes_no_step(sampler) -> None:
    (step,) = sampler(gaussian, START, [3.0])
    assert step.sigma == 3.0
    assert step.x is step.x0 is START


@single_step
def test_slices_sampled_one_after_the_other_are_the_whole(sampler) -> None:
    whole = final_latents(sampler(gaussian, START, SIGMAS))
    upper = final_latents(sampler(gaussian, START, sigmas.until(SIGMAS, SIGMAS[5])))
    assert torch.equal(final_latents(sampler(gaussian, upper, sigmas.starting_at(SIGMAS, SIGMAS[5]))), whole)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_no_gradients_are_kept_and_the_consumers_gradient_mode_is_its_own(name) -> None:
    # The module as users import it: the shape checker of the tests hides generators from torch.no_grad.
    sampler = runpy.run_path(samplers.__file__)[name]
    steps = sampler(gaussian, START.clone().requires_grad_(), SIGMAS[:3])
    next(steps)
    assert [torch.is_grad_enabled() and not step.x.requires_grad for step in steps] == [True, True]


def test_no_eta_is_ddim() -> None:
    def never(sigma):
        raise AssertionError("noise was generated")

    assert torch.equal(
        final_latents(ddim_eta(0.0, never)(gaussian, START, SIGMAS)), final_latents(ddim(gaussian, START, SIGMAS))
    )


def test_one_step_of_the_multistep_sampler_is_ddim() -> None:
    assert torch.equal(
        final_latents(dpmpp_2m(gaussian, START, [5.0, 2.0])), final_latents(ddim(gaussian, START, [5.0, 2.0]))
    )


def test_ancestral_sampling_in_chunks_is_the_whole() -> None:
    chunk = euler_ancestral(noise.per_sigma(1, [1], SHAPE))
    whole = final_latents(euler_ancestral(NOISE_AT)(gaussian, START, SIGMAS))
    assert torch.equal(final_latents(chunk(gaussian, START[:, 1:], SIGMAS)), whole[:, 1:])


@deterministic
def test_inversion_then_sampling_comes_back(sampler) -> None:
    """With noise that does not depend on x, inversion and sampling go along one line."""
    direction = torch.ones_like(START)
    clean = noise.independent(3, range(2), SHAPE)
    rising = [*reversed(SIGMAS[:-1])]
    up = final_latents(sampler(lambda x, sigma: x - sigma * direction, clean, rising))
    torch.testing.assert_close(up, clean + (rising[-1] - rising[0]) * direction, atol=1e-4, rtol=1e-5)
    down = final_latents(sampler(lambda x, sigma: x - sigma * direction, up, SIGMAS[:-1]))
    torch.testing.assert_close(down, clean, atol=1e-4, rtol=1e-5)


@deterministic
def test_inverting_data_gives_noise_and_more_steps_come_back_closer(sampler) -> None:
    clean = MEAN + SPREAD * noise.independent(3, range(1), (1, 1, 64, 64)).double()

    def round_trip(steps: int) -> float:
        up = final_latents(sampler(gaussian, clean, geometric(steps)[::-1]))
        assert up.std().item() == pytest.approx(10.0, rel=0.2)
        return (final_latents(sampler(gaussian, up, geometric(steps))) - clean).abs().max().item()

    assert round_trip(160) < 0.55 * round_trip(80) < 0.1


def test_sampling_from_sigma_0_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot leave noise level 0"):
        final_latents(ddim(gaussian, START, [0.0, 1.0]))


def test_noise_along_rising_sigmas_is_refused() -> None:
    with pytest.raises(ValueError, match="needs falling sigmas, got a step from 1 up to 2"):
        final_latents(euler_ancestral(NOISE_AT)(gaussian, START, [1.0, 2.0]))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_more_noise_than_ddpms_is_refused(eta) -> None:
    with pytest.raises(ValueError, match=rf"from 0 \(none\) to 1 \(all of it\); got {eta}"):
        ddim_eta(eta, NOISE_AT)


def test_the_first_frame_alone_gets_its_own_sampler_noise() -> None:
    alone = final_latents(euler_ancestral(NOISE_AT)(gaussian, START[:, :1], SIGMAS))
    assert torch.equal(alone, final_latents(euler_ancestral(NOISE_AT)(gaussian, START, SIGMAS))[:, :1])


CAMERA = motion.frame_warp(motion.parse("pan:8,0"), frames=2, seed=0)  # a cell of 64 a frame


def nowhere(x0, sigma):
    return torch.zeros_like(x0[:, :, :1])


def everywhere(x0, sigma):
    return torch.ones_like(x0[:, :, :1])


@pytest.mark.slow
@single_step
def test_smoothing_without_strength_or_without_background_changes_nothing(sampler) -> None:
    plain = list(sampler(gaussian, START, SIGMAS))
    for masks, strength in ((nowhere, 0.0), (everywhere, 1.0)):
        smoothed = list(samplers.smooth_background(sampler, CAMERA, masks, strength)(gaussian, START, SIGMAS))
        assert [step.sigma for step in smoothed] == [step.sigma for step in plain]
        torch.testing.assert_close(smoothed[-1].x, plain[-1].x)


def test_smoothing_at_full_strength_makes_every_background_the_first_frames_warped() -> None:
    steps = list(samplers.smooth_background(ddim, CAMERA, nowhere, 1.0)(gaussian, START, SIGMAS))
    plain = final_latents(ddim(gaussian, START, SIGMAS))
    torch.testing.assert_close(steps[-1].x[:, :1], plain[:, :1])
    torch.testing.assert_close(steps[-1].x[:, 1, ..., :-1], plain[:, 0, ..., 1:])


def test_smoothing_blends_backgrounds_and_leaves_both_foregrounds() -> None:
    def left(x0, sigma):
        mask = torch.zeros_like(x0[:, :, :1])
        mask[:, 1, ..., :8] = 1  # of frame 1
        mask[:, 0, ..., 32:40] = 1  # of frame 0, which frame 1 sees a cell further left
        return mask

    plain = final_latents(ddim(gaussian, START, SIGMAS))
    smoothed = final_latents(samplers.smooth_background(ddim, CAMERA, left, 0.6)(gaussian, START, SIGMAS))
    torch.testing.assert_close(smoothed[:, 1, ..., :8], plain[:, 1, ..., :8])
    torch.testing.assert_close(smoothed[:, 1, ..., 31:39], plain[:, 1, ..., 31:39])
    off, on = ((x[:, 1, ..., 10:30] - x[:, 0, ..., 11:31]).square().mean() for x in (plain, smoothed))
    assert on < 1e-3 * off


def test_smoothing_leaves_a_single_frame() -> None:
    plain, smoothed = (
        final_latents(sampler(gaussian, START[:, :1], SIGMAS))
        for sampler in (ddim, samplers.smooth_background(ddim, CAMERA, nowhere, 0.6))
    )
    assert torch.equal(plain, smoothed)


def test_smoothing_moves_masks_without_noise_and_equals_its_formula() -> None:
    """Text2Video-Zero, section 3.3.3; a step to sigma 0 has no noise to move either."""
    calls = list[str]()

    def noise_of(noise):
        calls.append("noise")
        return CAMERA.noise(noise)

    def left(x0, sigma):
        return (torch.arange(x0.shape[-1]) < 20).float().expand(*x0.shape[:2], 1, *x0.shape[3:])

    camera = motion.FrameWarp(CAMERA.latents, noise_of)
    start, few = START[..., :32, :32], SIGMAS[::3]
    steps = list(samplers.smooth_background(ddim, camera, left, 0.6)(gaussian, start, few))
    assert len(calls) == sum(to > 0 for to in few[1:]) == len(few) - 2
    x = start
    for sigma, to in pairwise(few):
        x0 = gaussian(x, sigma)
        after = samplers.step_to(x, x0, sigma, to)
        first, zeros = after[:, :1], torch.zeros_like(start[:, :1])
        clean = x0[:, :1] if to > 0 else first
        warped, moved = CAMERA(clean, (first - clean) / to if to > 0 else zeros)
        mask = left(x0, sigma)
        seen, _ = CAMERA(mask[:, :1], zeros[:, :, :1])
        union = torch.maximum(mask[:, 1:], seen.clamp(0, 1))
        others = union * after[:, 1:] + (1 - union) * (0.6 * (warped + to * moved) + 0.4 * after[:, 1:])
        x = torch.cat([first, others], dim=1)
    torch.testing.assert_close(steps[-1].x, x, atol=1e-6, rtol=1e-6)
