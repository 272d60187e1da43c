"""VideoElevator without a network: reductions to simpler methods, the number of evaluations, and errors."""

import math
from functools import partial

import pytest
import torch

from kineograph.latents import Latents, low_pass
from kineograph.methods.video_elevator import correct_drift, invert, refine_with_video_model, sample
from kineograph.noise import independent, per_sigma
from kineograph.samplers import ddim, ddim_eta, dpmpp_2m, final_latents

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
TABLE = ((1 / (1 - BETAS).cumprod(0) - 1).sqrt()).tolist()
FIFTY = [TABLE[t] for t in range(981, 0, -20)] + [0.0]
TO_LOWEST = [*FIFTY[:-1], TABLE[0]]
SHAPE = (1, 4, 8, 8)


class CountedDenoise:
    """A denoiser that counts the frames that it evaluates."""

    def __init__(self, denoise):
        self.denoise, self.frames = denoise, 0

    def __call__(self, x: Latents, sigma: float) -> Latents:
        self.frames += x.shape[0] * x.shape[1]
        return self.denoise(x, sigma)


def nonlinear(x: Latents, sigma: float) -> Latents:
    """Denoise unlike a Gaussian's denoiser: not linear, and mixing neighbours."""
    known = 1 / (1 + sigma**2)
    return known * x + (1 - known) * torch.tanh(x / math.sqrt(1 + sigma**2) + 0.3 * x.roll(1, -1) / (1 + sigma))


def consistent(x: Latents, sigma: float) -> Latents:
    """Denoise so that all frames share half of the estimate."""
    return 0.5 * (gaussian(x, sigma) + x.mean(1, keepdim=True) / (1 + sigma**2 / x.shape[1]))


def gaussian(x: Latents, sigma: float) -> Latents:
    """Denoise perfectly for independent Gaussian cells, mean 0.5 and deviation 0.8."""
    return (0.64 * x + sigma**2 * 0.5) / (0.64 + sigma**2)


def frame_noise(frames=8, seed=0):
    return independent(seed, range(frames), SHAPE)


def identity(x0: Latents, sigma: float) -> Latents:
    return x0


def elevate(denoise, noise, *, refine_at=(), refine=identity, renoise=None, correct=None, sampler=ddim):
    renoise = renoise or invert(denoise, TO_LOWEST)
    return list(
        sample(
            denoise, noise, FIFTY, refine_at=refine_at, refine=refine, renoise=renoise, correct=correct, sampler=sampler
        )
    )


@pytest.mark.parametrize("sampler", [ddim, ddim_eta(0.5, per_sigma(3, range(8), SHAPE))])
def test_without_a_refined_step_it_is_the_image_models_sampling(sampler) -> None:
    noise = frame_noise()
    assert torch.equal(
        elevate(nonlinear, noise, sampler=sampler)[-1].x, final_latents(sampler(nonlinear, FIFTY[0] * noise, FIFTY))
    )


@pytest.mark.parametrize("frames", [1, 7, 8])
def test_a_refinement_to_the_final_video_changes_only_what_inversion_loses(frames) -> None:
    noise = frame_noise(frames)
    plain = final_latents(ddim(gaussian, FIFTY[0] * noise, FIFTY))
    found = elevate(gaussian, noise, refine_at=[FIFTY[10]], refine=lambda x0, sigma: plain)
    assert [step.sigma for step in found] == FIFTY
    assert (found[-1].x - plain).abs().mean() < 0.05


def test_frames_agree_more_after_refinement_by_a_consistent_video_model() -> None:
    noise = frame_noise()
    refine = refine_with_video_model(
        consistent, FIFTY, 8, per_sigma(1, range(8), SHAPE), low_pass=partial(low_pass, spatial=math.inf, temporal=0.5)
    )
    spread = [
        elevate(gaussian, noise, refine_at=sigmas, refine=refine)[-1].x.std(1).mean()
        for sigmas in ([], [FIFTY[5]], [FIFTY[5], FIFTY[35]])
    ]
    assert spread[0] > 2 * spread[1] > 0 and spread[0] > 2 * spread[2] > 0


@pytest.mark.parametrize("frames", [7, 8])
def test_an_infinitely_wide_filter_changes_nothing_and_every_filter_keeps_still_videos(frames) -> None:
    noise = frame_noise(frames)
    noise_at = per_sigma(1, range(frames), SHAPE)
    plain, passed = (
        elevate(
            nonlinear,
            noise,
            refine_at=[FIFTY[9]],
            refine=refine_with_video_model(consistent, FIFTY, 4, noise_at, low_pass=keep),
        )[-1].x
        for keep in (lambda x: x, partial(low_pass, spatial=math.inf, temporal=math.inf))
    )
    assert torch.allclose(plain, passed, atol=1e-4)
    still = torch.randn(1, 1, *SHAPE[1:]).expand(1, frames, *SHAPE[1:])
    assert torch.allclose(low_pass(still, spatial=math.inf, temporal=0.4), still, atol=1e-5)


@pytest.mark.parametrize("denoise", [gaussian, nonlinear])
@pytest.mark.parametrize(("sampler", "max_steps", "within"), [(ddim, None, 0.05), (dpmpp_2m, 12, 0.05)])
def test_sampling_from_inverted_latents_gives_the_video_again(denoise, sampler, max_steps, within) -> None:
    noise = frame_noise()
    whole = list(ddim(denoise, FIFTY[0] * noise, FIFTY))
    there = invert(denoise, TO_LOWEST, max_steps, sampler)(whole[-1].x, FIFTY[20])[-1]
    assert there.sigma == FIFTY[20]
    down = final_latents(ddim(denoise, there.x, FIFTY[20:]))
    assert (down - whole[-1].x).abs().mean() < within


def test_inversion_to_sigma_0_is_the_identity() -> None:
    clean = frame_noise()
    (step,) = invert(nonlinear, TO_LOWEST)(clean, 0.0)
    assert torch.equal(step.x, clean)


def test_with_drift_correction_sampling_ends_at_the_inverted_video() -> None:
    """Along the same sigmas each step then ends on the inversion's own latents, for any network."""
    noise = frame_noise()
    clean = torch.tanh(frame_noise(seed=5))
    refine = lambda x0, sigma: clean  # noqa: E731
    ends = [
        elevate(nonlinear, noise, refine_at=[FIFTY[8]], refine=refine, correct=correct)[-1].x
        for correct in (None, correct_drift(nonlinear))
    ]
    off = [(end - clean).abs().mean() for end in ends]
    assert off[1] < 0.01 < off[0]


def test_the_number_of_evaluations() -> None:
    """Released code: 366 evaluations of each frame, 100 of them the plain sampling."""
    noise_at = per_sigma(1, range(8), SHAPE)
    image, plain, video = CountedDenoise(nonlinear), CountedDenoise(nonlinear), CountedDenoise(consistent)
    elevate(
        image, frame_noise(), refine_at=[FIFTY[k] for k in (5, 15, 25, 35)],
        refine=refine_with_video_model(video, FIFTY, 8, noise_at, low_pass=lambda x: x),
        renoise=invert(plain, TO_LOWEST, 12), correct=None,
    )  # fmt: skip
    assert [each.frames / 8 for each in (image, plain, video)] == [50, 48, 32]  # guided: 2 * 50 + 48 + 2 * 32 = 212


def test_drift_correction_costs_one_evaluation_per_refinement() -> None:
    known = CountedDenoise(nonlinear)
    elevate(nonlinear, frame_noise(), refine_at=[FIFTY[5], FIFTY[25]], correct=correct_drift(known))
    assert known.frames == 2 * 8


def test_the_video_model_starts_at_the_image_models_sigma() -> None:
    seen = list[float]()

    def denoise(x: Latents, sigma: float) -> Latents:
        seen.append(sigma)
        return x

    other = [40.0, 9.0, 3.0, 1.0, 0.3, 0.0]
    refine = refine_with_video_model(denoise, other, 3, per_sigma(1, range(8), SHAPE), low_pass=lambda x: x)
    refine(frame_noise(), 5.0)
    refine(frame_noise(), 80.0)
    assert seen == [5.0, 3.0, 1.0, 40.0, 9.0, 3.0]


def test_near_the_end_the_video_model_takes_the_remaining_steps() -> None:
    denoise = CountedDenoise(consistent)
    refine_with_video_model(denoise, FIFTY, 8, per_sigma(1, range(8), SHAPE), low_pass=lambda x: x)(
        frame_noise(), FIFTY[-3]
    )
    assert denoise.frames == 2 * 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: elevate(nonlinear, frame_noise(), refine_at=[0.0]), "Nothing is estimated at the last sigma"),
        (lambda: elevate(nonlinear, frame_noise(), refine_at=[1.2345]), "is not one of these"),
        (
            lambda: refine_with_video_model(consistent, FIFTY, 0, per_sigma(1, range(8), SHAPE), low_pass=lambda x: x),
            "at least 1 step",
        ),
        (
            lambda: elevate(
                nonlinear,
                frame_noise(),
                refine_at=[FIFTY[5]],
                renoise=invert(nonlinear, TO_LOWEST, 4),
                correct=correct_drift(nonlinear),
            ),
            "along all of the sampler's own sigmas",
        ),
    ],
)
def test_errors(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
