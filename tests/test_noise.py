import math

import pytest
import torch

from kineograph import noise

SHAPE = (2, 3, 4, 5)
LARGE = (1, 4, 128, 128)


def test_a_frames_noise_depends_on_the_seed_and_its_number_only() -> None:
    whole = noise.independent(7, range(8), SHAPE)
    torch.testing.assert_close(noise.independent(7, [5, 2], SHAPE), whole[:, [5, 2]], atol=0, rtol=0)
    assert whole.shape == (2, 8, 3, 4, 5)


def test_a_sample_of_a_batch_is_the_video_of_the_next_seed() -> None:
    batch = noise.independent(7, range(3), SHAPE)
    assert torch.equal(batch[1:], noise.independent(8, range(3), (1, *SHAPE[1:])))


def test_frames_seeds_and_purposes_never_share_noise() -> None:
    noises = [
        *noise.independent(0, range(3), (2, 1, 4, 4)).flatten(0, 1),
        *noise.shared(0, [0], (2, 1, 4, 4)).flatten(0, 1),
        *noise.per_sigma(0, [0, 1], (1, 1, 4, 4))(1.0)[0],
        *noise.per_sigma(0, [0, 1], (1, 1, 4, 4))(0.0)[0],
    ]
    assert len({tuple(generate.flatten().tolist()) for generate in noises}) == len(noises)


def test_shared_noise_is_the_same_in_every_frame_and_for_any_frames() -> None:
    frames = noise.shared(3, iter(range(4)), SHAPE)
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert torch.equal(noise.shared(3, [9], SHAPE), frames[:, :1])


def test_noise_per_sigma_is_stateless_and_the_same_in_chunks() -> None:
    whole = noise.per_sigma(1, range(6), SHAPE)
    chunk = noise.per_sigma(1, range(4, 6), SHAPE)
    assert torch.equal(whole(2.5), whole(2.5))
    assert torch.equal(whole(2.5)[:, 4:], chunk(2.5))
    assert not torch.equal(whole(2.5), whole(2.6))


def test_noise_per_sigma_ignores_the_last_bits_of_a_double() -> None:
    generate = noise.per_sigma(1, [0], SHAPE)
    assert torch.equal(generate(0.7), generate(math.nextafter(0.7, 1)))


def test_noise_that_frames_share_is_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, generate = list[object](), noise._normal
    monkeypatch.setattr(noise, "_normal", lambda *each: calls.append(each) or generate(*each))
    shared = noise.per_sigma(1, [3] * 6, SHAPE)(2.5)
    assert len(calls) == SHAPE[0] and torch.equal(shared, shared[:, :1].expand_as(shared))
    calls.clear()
    mixed = noise.partly_shared_per_sigma(1.0, 1, range(6), SHAPE)(2.5)
    assert len(calls) == SHAPE[0] * 7  # each frame's own, and one that all share
    one, own = noise.per_sigma(1, [noise.ALL_FRAMES], SHAPE)(2.5), noise.per_sigma(1, range(6), SHAPE)(2.5)
    assert torch.equal(mixed, noise.mix(one.expand_as(own), own, 1.0))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 4.0, math.inf])
def test_mixtures_have_unit_variance_and_the_right_correlation(ratio) -> None:
    one, other = noise.shared(0, [0], LARGE), noise.independent(0, [0], LARGE)
    mixture = noise.mix(one, other, ratio)
    assert mixture.std().item() == pytest.approx(1, abs=0.01)
    correlation = 1.0 if ratio == math.inf else ratio / math.hypot(1, ratio)
    assert (mixture * one).mean().item() == pytest.approx(correlation, abs=0.01)


def test_past_dependent_noise_has_the_published_coefficients() -> None:
    one, nothing = torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
    assert noise.mix(one, nothing, 4.0).item() == pytest.approx(0.9701, abs=1e-4)
    assert noise.mix(nothing, one, 4.0).item() == pytest.approx(0.2425, abs=1e-4)


@pytest.mark.parametrize("generate", [noise.independent, noise.shared])
def test_noise_is_white(generate) -> None:
    sampled = generate(5, range(2), LARGE)
    assert sampled.mean().item() == pytest.approx(0, abs=0.01)
    assert sampled.std().item() == pytest.approx(1, abs=0.01)
    assert (sampled[..., 1:] * sampled[..., :-1]).mean().item() == pytest.approx(0, abs=0.01)


def test_frames_are_uncorrelated() -> None:
    sampled = noise.independent(5, range(2), LARGE)
    assert (sampled[:, 0] * sampled[:, 1]).mean().item() == pytest.approx(0, abs=0.01)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=">= 0, .* got -1"):
        noise.independent(-1, range(2), SHAPE)


def test_large_seeds_are_seeds() -> None:
    low, high = (noise.independent(seed, [0], SHAPE) for seed in (1, 1 + 2**40))
    assert not torch.equal(low, high)


def test_partly_shared_noise_has_the_requested_correlation() -> None:
    frames = noise.partly_shared(2.0, 3, range(6), LARGE)
    assert frames.var().item() == pytest.approx(1, abs=0.02)
    alike = torch.corrcoef(frames[0].flatten(1))
    assert alike[0, 1:].tolist() == pytest.approx([0.8] * 5, abs=0.02)
    torch.testing.assert_close(noise.partly_shared(2.0, 3, [4], LARGE), frames[:, 4:5], atol=0, rtol=0)
    assert torch.equal(noise.partly_shared(0.0, 3, range(2), SHAPE), noise.independent(3, range(2), SHAPE))


def test_partly_shared_noise_per_sigma_has_the_same_correlation_for_any_frames() -> None:
    generate = noise.partly_shared_per_sigma(2.0, 3, range(4), LARGE)
    alike = torch.corrcoef(generate(1.5)[0].flatten(1))
    assert alike[0, 1:].tolist() == pytest.approx([0.8] * 3, abs=0.02)
    assert torch.equal(noise.partly_shared_per_sigma(2.0, 3, [2], LARGE)(1.5), generate(1.5)[:, 2:3])
    assert torch.equal(noise.partly_shared_per_sigma(0.0, 3, [2], SHAPE)(1.5), noise.per_sigma(3, [2], SHAPE)(1.5))
