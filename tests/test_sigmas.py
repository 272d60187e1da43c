import numpy as np
import pytest
from diffusers.schedulers import AysSchedules

from kineograph.sigmas import SPACINGS as BY_NAME
from kineograph.sigmas import (
    align_your_steps,
    insert_sigmas,
    karras,
    leading,
    linspace,
    starting_at,
    subsample,
    trailing,
    until,
)

TABLE = tuple(np.geomspace(0.03, 15, 1000).tolist())
SPACINGS = [leading, trailing, linspace, align_your_steps]


def timesteps(sigmas: list[float]) -> list[int]:
    return [TABLE.index(sigma) for sigma in sigmas[:-1]]


def test_leading_spacing_is_stable_diffusions() -> None:
    assert timesteps(leading(TABLE, 50)) == list(range(981, 0, -20))


def test_trailing_starts_at_the_top() -> None:
    assert timesteps(trailing(TABLE, 50)) == list(range(999, 0, -20))


def test_linspace_has_both_ends() -> None:
    assert timesteps(linspace(TABLE, 4)) == [999, 666, 333, 0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 48, 61, 999])
def test_every_spacing_decreases_and_has_the_requested_steps(spacing, steps) -> None:
    sigmas = spacing(TABLE, steps)
    assert len(sigmas) == steps + 1
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[-1] == 0


@pytest.mark.parametrize("spacing", [trailing, linspace])
def test_one_step_starts_at_the_top(spacing) -> None:
    assert spacing(TABLE, 1) == [TABLE[-1], 0.0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_that_the_table_cannot_give_is_refused(spacing, steps) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 1000 steps, got {steps}"):
        spacing(TABLE, steps)


def test_an_offset_beyond_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="starts at timestep 1000.*0 to 999"):
        leading(TABLE, 1000)
    assert len(leading(TABLE, 1000, offset=0)) == 1001


def test_sigmas_can_end_above_zero_and_are_never_equal() -> None:
    assert leading(TABLE, 50, last=TABLE[0])[-2:] == [TABLE[1], TABLE[0]]
    assert linspace(TABLE, 4, last=TABLE[0]) == [TABLE[999], TABLE[666], TABLE[333], TABLE[0]]


def test_karras_spacing_is_even_in_the_seventh_root() -> None:
    sigmas = karras(80.0, 0.002, 18)
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-2:] == [pytest.approx(0.002), 0.0]
    np.testing.assert_allclose(np.diff(np.power(sigmas[:-1], 1 / 7), n=2), 0, atol=1e-12)


def test_karras_spacing_of_one_step_starts_at_the_top() -> None:
    assert karras(80.0, 0.002, 1) == [pytest.approx(80), 0.0]


def stable_diffusion_table() -> list[float]:
    signal = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return np.sqrt((1 - signal) / signal).tolist()


@pytest.mark.parametrize(
    ("spacing", "table", "published"),
    [
        ("ays", stable_diffusion_table(), "StableDiffusionSigmas"),
        ("ays-sdxl", stable_diffusion_table(), "StableDiffusionXLSigmas"),
        ("ays-svd", karras(700.0, 0.002, 1000)[-2::-1], "StableDiffusionVideoSigmas"),
    ],
)
def test_align_your_steps_has_the_published_sigmas_in_ten_steps(spacing, table, published) -> None:
    sigmas = BY_NAME[spacing](table, 10)
    np.testing.assert_allclose(sigmas, AysSchedules[published], rtol=0.015)  # of timesteps, which are rounded
    twice = BY_NAME[spacing](table, 20)
    np.testing.assert_allclose(twice[:-1:2], sigmas[:-1], rtol=1e-12)
    np.testing.assert_allclose(np.square(twice[1:-2:2]), np.multiply(sigmas[:-2], sigmas[1:-1]), rtol=1e-12)
    assert twice[-2] == pytest.approx((sigmas[-2] * table[0]) ** 0.5), "the lowest sigma follows the published ones"


def test_align_your_steps_stays_within_the_table() -> None:
    sigmas = BY_NAME["ays-svd"](TABLE, 10)
    assert sigmas[0] == pytest.approx(TABLE[-1]) and len(sigmas) == 11 and (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize("arguments", [(0.002, 80.0, 5), (80.0, 0.0, 5), (80.0, 0.002, 0)])
def test_karras_spacing_between_sigmas_that_do_not_decrease_is_refused(arguments) -> None:
    with pytest.raises(ValueError, match="sigma_max > sigma_min > last"):
        karras(*arguments)


def test_subsample_picks_evenly_and_keeps_the_ends() -> None:
    sigmas = trailing(TABLE, 50)
    assert timesteps(subsample(sigmas, 4)) == [999, 759, 499, 259]
    assert subsample(sigmas, 50) == sigmas
    with pytest.raises(ValueError, match="between 1 and 50 steps, got 51"):
        subsample(sigmas, 51)


SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.0]


def test_sigmas_are_inserted_once() -> None:
    assert insert_sigmas(SIGMAS, 3.0, 5.0, 3.0) == [8.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def test_sigmas_close_to_listed_ones_are_not_inserted() -> None:
    assert insert_sigmas(SIGMAS, 8.0001, 4.0002, 1.0, 0.0) == SIGMAS


@pytest.mark.parametrize("sigma", [9.0, -1.0])
def test_sigmas_out_of_range_are_refused(sigma) -> None:
    with pytest.raises(ValueError, match="outside of the sigmas, which go from 8 to 0"):
        insert_sigmas(SIGMAS, sigma)


def test_slices_share_the_sigma_between_them() -> None:
    assert until(SIGMAS, 2.0001) == [8.0, 4.0, 2.0]
    assert starting_at(SIGMAS, 2.0001) == [2.0, 1.0, 0.0]
    assert until(SIGMAS, 8.0) == [8.0]
    assert starting_at(SIGMAS, 0.0) == [0.0]


@pytest.mark.parametrize("cut", [until, starting_at])
def test_slices_at_a_sigma_that_is_not_listed_are_refused(cut) -> None:
    with pytest.raises(ValueError, match=r"Sigma 3 is not one of these 5 sigmas .*Insert it first: insert_sigmas"):
        cut(SIGMAS, 3.0)
