import math

import pytest
import torch

from kineograph import latents


def clip(frames: int = 5, height: int = 6, width: int = 7) -> torch.Tensor:
    return torch.randn(2, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_renoising_a_noised_video_adds_variances() -> None:
    x0 = torch.zeros(1, 1, 1, 200, 200)
    once, again = torch.randn(2, *x0.shape, generator=torch.Generator().manual_seed(0))
    x = latents.renoise(latents.add_noise(x0, once, 3.0), again, 3.0, to=5.0)
    assert x.std().item() == pytest.approx(5.0, rel=0.02)


def test_renoising_to_the_same_level_changes_nothing() -> None:
    assert torch.equal(latents.renoise(clip(), clip() + 1, 2.0, to=2.0), clip())


def test_renoising_downwards_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to >= sigma=2, got to=1"):
        latents.renoise(clip(), clip(), 2.0, to=1.0)


def test_every_sample_can_have_its_own_level() -> None:
    levels = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1, 1)
    noisy = latents.add_noise(torch.zeros_like(clip()), clip(), levels)
    assert torch.equal(noisy, torch.stack([0.5 * clip()[0], 2.0 * clip()[1]]))


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_low_pass_keeps_the_mean_for_odd_and_even_sizes(frames, size) -> None:
    x = clip(frames, *size)
    kept = latents.low_pass(x, spatial=0.3, temporal=0.3)
    torch.testing.assert_close(kept.mean((1, 3, 4)), x.mean((1, 3, 4)))


def test_low_pass_with_infinite_widths_is_the_identity() -> None:
    torch.testing.assert_close(latents.low_pass(clip(), spatial=math.inf, temporal=math.inf), clip())


@pytest.mark.parametrize(("temporal", "gain"), [(0.4, 0.044), (0.5, 0.135), (0.6, 0.249)])
def test_low_pass_has_the_published_gain_for_frames_that_alternate(temporal, gain) -> None:
    flicker = torch.tensor([1.0, -1.0] * 4).view(1, 8, 1, 1, 1).expand(1, 8, 2, 4, 4)
    torch.testing.assert_close(
        latents.low_pass(flicker, spatial=1.0, temporal=temporal), gain * flicker, atol=5e-4, rtol=0
    )


def test_low_pass_has_the_published_gain_for_pixels_that_alternate() -> None:
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).view(1, 1, 1, 8, 8)
    torch.testing.assert_close(
        latents.low_pass(checkers, spatial=1.0, temporal=1.0), 0.368 * checkers, atol=5e-4, rtol=0
    )


def test_low_pass_of_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        latents.low_pass(clip(), spatial=1.0, temporal=0.0)


def test_blend_takes_the_first_where_the_mask_is_one() -> None:
    a, b = clip(), clip() + 3
    mask = (torch.arange(7) < 3).float().view(1, 1, 1, 1, 7)
    assert torch.equal(latents.blend(a, b, mask), torch.cat([a[..., :3], b[..., 3:]], -1))
