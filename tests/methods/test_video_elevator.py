"""VideoElevator without a network: what it must equal in limiting settings, what it costs, what it refuses."""

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
DOWN_TO_LOWEST = [*FIFTY[:-1], TABLE[0]]
SHAPE = (1, 4, 8, 8)


class Looks:
    """A denoiser that counts how many frames it was shown."""

    def __init__(self, denoise):
        self.denoise, self.frames = denoise, 0

    def __call__(self, x: Latents, sigma: float) -> Latents:
        self.frames += x.shape[0] * x.shape[1]
        return self.denoise(x, sigma)


def pulled(x: Latents, sigma: float) -> Latents:
    """A denoiser with nothing in common with a Gaussian's: not linear, and mixing neighbours."""
    known = 1 / (1 + sigma**2)
    return known * x + (1 - known) * torch.tanh(x / math.sqrt(1 + sigma**2) + 0.3 * x.roll(1, -1) / (1 + sigma))


def steady(x: Latents, sigma: float) -> Latents:
    """A denoiser half of whose answer all frames share."""
    return 0.5 * (gaussian(x, sigma) + x.mean(1, keepdim=True) / (1 + sigma**2 / x.shape[1]))


def gaussian(x: Latents, sigma: float) -> Latents:
    """The perfect denoiser of independent Gaussian cells, mean 0.5 and deviation 0.8."""
    return (0.64 * x + sigma**2 * 0.5) / (0.64 + sigma**2)


def drawn(frames=8, seed=0):
    return independent(seed, range(frames), SHAPE)


def as_it_is(x0: Latents, sigma: float) -> Latents:
    return x0


def elevated(look, noise, *, refine_at=(), refine=as_it_is, renoise=None, correct=None, sampler=ddim):
    renoise = renoise or invert(look, DOWN_TO_LOWEST)
    return list(
        sample(
            look, noise, FIFTY, refine_at=refine_at, refine=refine, renoise=renoise, correct=correct, sampler=sampler
        )
    )


@pytest.mark.parametrize("sampler", [ddim, ddim_eta(0.5, per_sigma(3, range(8), SHAPE))])
def test_without_a_refined_step_it_is_the_image_models_sampling(sampler):
    noise = drawn()
    assert torch.equal(
        elevated(pulled, noise, sampler=sampler)[-1].x, final_latents(sampler(pulled, FIFTY[0] * noise, FIFTY))
    )


@pytest.mark.parametrize("frames", [1, 7, 8])
def test_a_video_model_that_foresees_the_end_changes_nothing_but_what_the_way_back_loses(frames):
    noise = drawn(frames)
    plain = final_latents(ddim(gaussian, FIFTY[0] * noise, FIFTY))
    found = elevated(gaussian, noise, refine_at=[FIFTY[10]], refine=lambda x0, sigma: plain)
    assert [step.sigma for step in found] == FIFTY
    assert (found[-1].x - plain).abs().mean() < 0.05


def test_frames_agree_more_once_a_steady_video_model_has_redrawn_them():
    noise = drawn()
    refine = refine_with_video_model(
        steady, FIFTY, 8, per_sigma(1, range(8), SHAPE), low_pass=partial(low_pass, spatial=math.inf, temporal=0.5)
    )
    spread = [
        elevated(gaussian, noise, refine_at=levels, refine=refine)[-1].x.std(1).mean()
        for levels in ([], [FIFTY[5]], [FIFTY[5], FIFTY[35]])
    ]
    assert spread[0] > 2 * spread[1] > 0 and spread[0] > 2 * spread[2] > 0


@pytest.mark.parametrize("frames", [7, 8])
def test_a_pass_for_all_changes_nothing_and_every_pass_keeps_what_never_moves(frames):
    noise = drawn(frames)
    draw = per_sigma(1, range(frames), SHAPE)
    plain, passed = (
        elevated(
            pulled, noise, refine_at=[FIFTY[9]], refine=refine_with_video_model(steady, FIFTY, 4, draw, low_pass=keep)
        )[-1].x
        for keep in (lambda x: x, partial(low_pass, spatial=math.inf, temporal=math.inf))
    )
    assert torch.allclose(plain, passed, atol=1e-4)
    still = torch.randn(1, 1, *SHAPE[1:]).expand(1, frames, *SHAPE[1:])
    assert torch.allclose(low_pass(still, spatial=math.inf, temporal=0.4), still, atol=1e-5)


@pytest.mark.parametrize("look", [gaussian, pulled])
@pytest.mark.parametrize(("sampler", "most", "within"), [(ddim, None, 0.05), (dpmpp_2m, 12, 0.05)])
def test_inversion_leads_where_sampling_comes_from(look, sampler, most, within):
    noise = drawn()
    whole = list(ddim(look, FIFTY[0] * noise, FIFTY))
    there = invert(look, DOWN_TO_LOWEST, most, sampler)(whole[-1].x, FIFTY[20])[-1]
    assert there.sigma == FIFTY[20]
    down = final_latents(ddim(look, there.x, FIFTY[20:]))
    assert (down - whole[-1].x).abs().mean() < within


def test_inversion_to_where_nothing_is_to_be_inverted_stays():
    clean = drawn()
    (step,) = invert(pulled, DOWN_TO_LOWEST)(clean, 0.0)
    assert torch.equal(step.x, clean)


def test_with_its_drift_made_up_for_inversion_and_sampling_meet():
    """Down the same rungs each step then ends on the inversion's own path, whatever the network."""
    noise = drawn()
    clean = torch.tanh(drawn(seed=5))
    refine = lambda x0, sigma: clean  # noqa: E731
    ends = [
        elevated(pulled, noise, refine_at=[FIFTY[8]], refine=refine, correct=correct)[-1].x
        for correct in (None, correct_drift(pulled))
    ]
    off = [(end - clean).abs().mean() for end in ends]
    assert off[1] < 0.01 < off[0]


def test_what_it_costs_in_frames():
    """Released code: 366 evaluations of each frame, 100 of them the plain sampling."""
    draw = per_sigma(1, range(8), SHAPE)
    image, plain, video = Looks(pulled), Looks(pulled), Looks(steady)
    elevated(
        image, drawn(), refine_at=[FIFTY[k] for k in (5, 15, 25, 35)],
        refine=refine_with_video_model(video, FIFTY, 8, draw, low_pass=lambda x: x), renoise=invert(plain, DOWN_TO_LOWEST, 12),
        correct=None,
    )  # fmt: skip
    assert [each.frames / 8 for each in (image, plain, video)] == [50, 48, 32]  # guided: 2 * 50 + 48 + 2 * 32 = 212


def test_made_up_drift_costs_one_evaluation_a_refinement():
    known = Looks(pulled)
    elevated(pulled, drawn(), refine_at=[FIFTY[5], FIFTY[25]], correct=correct_drift(known))
    assert known.frames == 2 * 8


def test_levels_meet_between_the_rungs_of_both_ladders():
    seen = list[float]()

    def look(x: Latents, sigma: float) -> Latents:
        seen.append(sigma)
        return x

    other = [40.0, 9.0, 3.0, 1.0, 0.3, 0.0]
    refine = refine_with_video_model(look, other, 3, per_sigma(1, range(8), SHAPE), low_pass=lambda x: x)
    refine(drawn(), 5.0)
    refine(drawn(), 80.0)
    assert seen == [5.0, 3.0, 1.0, 40.0, 9.0, 3.0]


def test_near_the_end_the_video_model_takes_the_steps_that_are_left():
    look = Looks(steady)
    refine_with_video_model(look, FIFTY, 8, per_sigma(1, range(8), SHAPE), low_pass=lambda x: x)(drawn(), FIFTY[-3])
    assert look.frames == 2 * 8


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: elevated(pulled, drawn(), refine_at=[0.0]), "Nothing is estimated at the last sigma"),
        (lambda: elevated(pulled, drawn(), refine_at=[1.2345]), "is not one of these"),
        (
            lambda: refine_with_video_model(steady, FIFTY, 0, per_sigma(1, range(8), SHAPE), low_pass=lambda x: x),
            "at least 1 step",
        ),
        (
            lambda: elevated(
                pulled,
                drawn(),
                refine_at=[FIFTY[5]],
                renoise=invert(pulled, DOWN_TO_LOWEST, 4),
                correct=correct_drift(pulled),
            ),
            "along all of the sampler's own sigmas",
        ),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(ValueError, match=said):
        make()
