from threading import Barrier

import pytest
import torch

from kineograph.denoise import (
    choose_by_sigma,
    classifier_free_guidance,
    refuse_nan,
    replace_known_frames,
    text_and_image_guidance,
)
from kineograph.samplers import ddim, final_latents, heun

X = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def half(x, sigma):
    return x / 2


def third(x, sigma):
    return x / 3


def never(x, sigma):
    raise AssertionError("evaluated")


def test_guidance_goes_from_the_unconditional_estimate_through_the_conditional() -> None:
    torch.testing.assert_close(classifier_free_guidance(half, third, 7.5)(X, 1.0), X / 3 + 7.5 * (X / 2 - X / 3))


def test_guidance_scale_1_is_the_conditional_itself() -> None:
    assert classifier_free_guidance(half, never, 1.0) is half


def test_guidance_scale_0_is_the_unconditional() -> None:
    assert torch.equal(classifier_free_guidance(half, third, 0.0)(X, 1.0), third(X, 1.0))


@pytest.fixture
def four_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_both_estimates_are_evaluated_in_parallel_by_half_of_the_cores_each(four_cores) -> None:
    threads, met = [], Barrier(2, timeout=10)

    def counted(denoise):
        def counting(x, sigma):
            met.wait()  # breaks when the other is not under way
            threads.append((torch.get_num_threads(), torch.is_grad_enabled()))
            return denoise(x, sigma)

        return counting

    with torch.no_grad():
        at_once = classifier_free_guidance(counted(half), counted(third), 3.0)(X, 1.0)
    assert torch.equal(at_once, classifier_free_guidance(half, third, 3.0)(X, 1.0))
    assert threads == [(2, False), (2, False)]


def test_an_error_of_either_reaches_the_caller(four_cores) -> None:
    with torch.no_grad(), pytest.raises(AssertionError, match="evaluated"):
        classifier_free_guidance(half, never, 3.0)(X, 1.0)


def quarter(x, sigma):
    return x / 4


def test_guidance_by_an_image_goes_from_unconditional_through_the_image_to_both(four_cores) -> None:
    with torch.no_grad():
        got = text_and_image_guidance(half, third, quarter, scale=5.0, image_scale=2.0)(X, 1.0)
    torch.testing.assert_close(got, X / 4 + 2 * (X / 3 - X / 4) + 5 * (X / 2 - X / 3))


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_with_equal_image_and_unconditional_estimates_it_is_guidance_by_text(scale) -> None:
    torch.testing.assert_close(
        text_and_image_guidance(half, third, third, scale, 3.0)(X, 1.0),
        classifier_free_guidance(half, third, scale)(X, 1.0),
    )


def test_guidance_in_an_interval_is_decided_by_the_sigma_of_each_evaluation() -> None:
    sigmas, guided = [], classifier_free_guidance(half, third, 3.0)

    def inside(sigma):
        sigmas.append(sigma)
        return 2 <= sigma <= 5

    denoise = choose_by_sigma(inside, guided, half)
    assert torch.equal(denoise(X, 6.0), half(X, 6.0)) and torch.equal(denoise(X, 5.0), guided(X, 5.0))
    assert torch.equal(choose_by_sigma(lambda sigma: False, never, half)(X, 1.0), half(X, 1.0))
    sigmas.clear()
    final_latents(heun(denoise, X, [8.0, 4.0, 0.0]))  # evaluates between steps too
    assert sigmas == [8.0, 4.0, 4.0]


def test_gradients_reach_both() -> None:
    x = X.clone().requires_grad_()
    classifier_free_guidance(half, third, 3.0)(x, 1.0).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(X, 1 / 3 + 3 * (1 / 2 - 1 / 3)))


def test_guiding_clean_estimates_is_guiding_noise_estimates() -> None:
    sigma, scale = 3.0, 5.0
    guided_noise = (X - third(X, sigma)) / sigma
    guided_noise = guided_noise + scale * ((X - half(X, sigma)) / sigma - guided_noise)
    torch.testing.assert_close(classifier_free_guidance(half, third, scale)(X, sigma), X - sigma * guided_noise)


def test_finite_estimates_pass_unchanged() -> None:
    assert torch.equal(refuse_nan(half)(X, 1.0), half(X, 1.0))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_an_estimate_with_nan_is_an_error_that_names_the_frame(poison) -> None:
    def broken(x, sigma):
        return x.index_fill(1, torch.tensor([1, 2]), poison)

    with pytest.raises(ValueError, match=r"frame 1 \(video 0 .* level 2.5 .* 2 of 3 frames"):
        refuse_nan(broken)(X, 2.5)


def test_with_all_frames_known_the_model_has_no_influence() -> None:
    known, noise = X, torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        final_latents(ddim(replace_known_frames(lambda x, s: 0 * x, known, noise), 9 * noise, [9.0, 2.0, 0.0])), known
    )


def test_with_no_known_frame_it_is_the_model_itself() -> None:
    assert torch.equal(replace_known_frames(half, X[:, :0], X[:, :0])(X, 3.0), half(X, 3.0))


def test_the_model_gets_known_frames_with_their_noise_at_every_sigma() -> None:
    seen = []

    def watch(x, sigma):
        seen.append((x, sigma))
        return x / (1 + sigma**2)

    known, noise = X[:, :1], torch.ones_like(X[:, :1])
    end = final_latents(ddim(replace_known_frames(watch, known, noise), 9 * X, [9.0, 2.0, 0.0]))
    assert torch.equal(end[:, :1], known)
    for x, sigma in seen:
        assert torch.equal(x[:, :1], known + sigma * noise)
