"""Text2Video-Zero without a network: an oracle, reductions to simpler methods, and the number of evaluations."""

import math

import pytest
import torch

from kineograph.denoise import classifier_free_guidance
from kineograph.latents import Latents
from kineograph.methods.text2video_zero import paper_sigmas, sample
from kineograph.motion import Motion, frame_warp
from kineograph.noise import independent, per_sigma
from kineograph.samplers import ddim, ddim_eta, dpmpp_2m, euler_ancestral, final_latents, lcm

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
TABLE = ((1 / (1 - BETAS).cumprod(0) - 1).sqrt()).tolist()
FIFTY = [TABLE[t] for t in range(981, 0, -20)] + [0.0]
NO_MOTION = Motion()


class CountedDenoise:
    """A denoiser that records the sigma and the number of frames of every evaluation."""

    def __init__(self, denoise):
        self.denoise, self.seen = denoise, []

    def __call__(self, x: Latents, sigma: float) -> Latents:
        self.seen.append((sigma, x.shape[0] * x.shape[1]))
        return self.denoise(x, sigma)


def nonlinear(x: Latents, sigma: float) -> Latents:
    """Denoise unlike a Gaussian's denoiser: bounded, not linear, and mixing neighbours."""
    return torch.tanh(x / math.sqrt(1 + sigma**2) + 0.3 * x.roll(1, -1))


def gaussian(mean: float, deviation: float):
    """Return the perfect denoiser of independent Gaussian cells."""
    return lambda x, sigma: (deviation**2 * x + sigma**2 * mean) / (deviation**2 + sigma**2)


def frame_noise(seed=0, frames=8, shape=(1, 4, 64, 64)):
    return independent(seed, range(frames), shape)


def run(denoise, noise, sigmas=FIFTY, motion=NO_MOTION, sampler=ddim, seed=0, at=None):
    renoise_to, warp_at = at or paper_sigmas(noise.shape, sigmas[0])
    warp = frame_warp(motion, frames=noise.shape[1], seed=seed)
    return list(sample(denoise, noise, sigmas, warp=warp, warp_at=warp_at, renoise_to=renoise_to, sampler=sampler))


def test_sigmas_are_the_papers_timesteps_at_its_size_and_scale_with_the_side() -> None:
    assert paper_sigmas((4, 64, 64)) == pytest.approx((TABLE[941], TABLE[881]), rel=1e-6)
    assert paper_sigmas((4, 16, 16)) == pytest.approx((TABLE[941] / 4, TABLE[881] / 4), rel=1e-6)
    assert paper_sigmas((4, 32, 128)) == pytest.approx(paper_sigmas((4, 64, 64)))
    assert paper_sigmas((4, 16, 16)) == pytest.approx((TABLE[636], TABLE[546]), rel=0.01)


def test_sigmas_stay_in_range_and_in_proportion() -> None:
    renoise_to, warp_at = paper_sigmas((4, 128, 128), highest=FIFTY[0])
    assert renoise_to == pytest.approx(FIFTY[0])
    assert renoise_to / warp_at == pytest.approx(TABLE[941] / TABLE[881])


def test_the_default_setting_evaluates_one_frame_five_times_and_eight_frames_48_times() -> None:
    cond, uncond = CountedDenoise(nonlinear), CountedDenoise(gaussian(0, 1))
    run(classifier_free_guidance(cond, uncond, 7.5), frame_noise())
    assert [sigma for sigma, images in cond.seen if images == 1] == FIFTY[:5]
    assert [sigma for sigma, images in cond.seen if images == 8] == FIFTY[2:50]
    assert sum(images for _, images in cond.seen + uncond.seen) == 778


def test_steps_are_those_of_frame_0_down_to_the_motion_and_then_those_of_all() -> None:
    steps = run(nonlinear, frame_noise())
    assert [(step.sigma, step.x.shape[1]) for step in steps] == [(s, 1) for s in FIFTY[:5]] + [
        (s, 8) for s in FIFTY[2:]
    ]
    assert steps[-1].x0 is steps[-1].x


def test_without_motion_and_renoising_all_frames_are_the_same_plain_image() -> None:
    noise = frame_noise()
    (*_, end) = run(nonlinear, noise, at=(TABLE[881], TABLE[881]))
    plain = final_latents(ddim(nonlinear, FIFTY[0] * noise[:, :1], FIFTY))
    assert torch.allclose(end.x, plain.expand_as(end.x), atol=1e-5)


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_one_frame_is_a_plain_image(sampler) -> None:
    noise = frame_noise(frames=1)
    counted = CountedDenoise(nonlinear)
    (*_, end) = run(counted, noise, sampler=sampler)
    assert torch.equal(end.x, final_latents(sampler(nonlinear, FIFTY[0] * noise, FIFTY)))
    assert len(counted.seen) == 50


@pytest.mark.slow
@pytest.mark.parametrize("sigmas", [FIFTY, FIFTY[::7], FIFTY[:1] + FIFTY[-1:]])
def test_frame_0_is_the_plain_image_and_does_not_depend_on_the_others(sigmas) -> None:
    (*_, end) = run(nonlinear, frame_noise(), sigmas, Motion(pan=(12.0, 12.0)))
    (*_, other) = run(nonlinear, frame_noise(frames=3), sigmas, Motion(pan=(-20.0, 5.0)))
    (*_, alone) = run(nonlinear, frame_noise(frames=1), sorted({*sigmas, TABLE[941], TABLE[881]}, reverse=True))
    assert torch.equal(end.x[:, :1], other.x[:, :1])
    assert torch.allclose(end.x[:, :1], alone.x, atol=1e-4)


def test_frame_k_depends_on_the_seed_and_k_only() -> None:
    pan = Motion(pan=(5.0, 0.0))
    (*_, long), (*_, short) = (
        run(nonlinear, frame_noise(7), motion=pan, seed=7),
        run(nonlinear, frame_noise(7, 4), motion=pan, seed=7),
    )
    assert torch.equal(long.x[:, :4], short.x)


def test_a_batch_is_its_samples_one_by_one() -> None:
    pan, shape = Motion(pan=(5.0, 3.0)), (1, 4, 16, 16)
    (*_, both) = run(nonlinear, frame_noise(3, 4, (2, 4, 16, 16)), motion=pan, seed=3)
    alone = [run(nonlinear, frame_noise(seed, 4, shape), motion=pan, seed=seed)[-1].x for seed in (3, 4)]
    assert torch.allclose(both.x, torch.cat(alone), atol=1e-6)


def test_gaussian_data_are_sampled_as_gaussian_data() -> None:
    """Every frame has the data's mean and variance, and the others correlate with frame 0 as renoising leaves it."""
    noise, deviation = frame_noise(1, 4, (4, 8, 24, 24)), 0.7
    sigmas = [200 ** (1 - k / 150) * 0.05 ** (k / 150) for k in range(151)] + [0.0]
    renoise_to, warp_at = paper_sigmas((24, 24))
    (*_, end) = run(gaussian(0.5, deviation), noise, sigmas, Motion(pan=(12.0, 0.0)), seed=1)
    assert end.x.mean(dim=(0, 2, 3, 4)) == pytest.approx(torch.full((4,), 0.5), abs=0.02)
    assert end.x.std(dim=(0, 2, 3, 4)) == pytest.approx(torch.full((4,), deviation), abs=0.02)
    whole = Motion(pan=(512 / 24, 0.0))
    (*_, end) = run(gaussian(0.5, deviation), noise, sigmas, whole, seed=1)
    first, moved = end.x[:, 0, ..., 1:], end.x[:, 1, ..., :-1]
    correlation = torch.corrcoef(torch.stack([first.flatten(), moved.flatten()]))[0, 1]
    assert correlation == pytest.approx(
        math.sqrt((deviation**2 + warp_at**2) / (deviation**2 + renoise_to**2)), abs=0.03
    )


def samplers(shape):
    noise_at = per_sigma(0, range(8), shape)
    return {
        "ddim": ddim,
        "eta": ddim_eta(0.5, noise_at),
        "ancestral": euler_ancestral(noise_at),
        "lcm": lcm(noise_at),
        "2m": dpmpp_2m,
    }


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "eta", "ancestral", "lcm", "2m"])
@pytest.mark.parametrize(("steps", "size"), [(4, (16, 16)), (20, (96, 64)), (47, (8, 160))])
def test_any_sampler_step_count_and_size_can_be_used(sampler, steps, size) -> None:
    shape = (1, 4, *size)
    sigmas = [TABLE[999 - 999 * k // steps] for k in range(steps)] + [0.0]
    (*_, end) = run(gaussian(0, 1), frame_noise(shape=shape), sigmas, Motion(rotation=2.0), samplers(shape)[sampler])
    assert end.x.shape == (1, 8, *shape[1:])
    assert torch.isfinite(end.x).all()


def test_sigmas_out_of_order_are_an_error() -> None:
    for at in ((14.0, 7.0), (5.0, 7.0), (FIFTY[0], FIFTY[0]), (1.0, 0.0)):
        with pytest.raises(ValueError, match=r"Text2Video-Zero warps frame 0 at a sigma|outside of the sigmas"):
            run(nonlinear, frame_noise(frames=2), at=at)
