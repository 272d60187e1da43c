"""Schedule: conversion between sigmas, timesteps and parameterisations."""

import math

import numpy as np
import pytest
import torch

from kineograph.latents import renoise
from kineograph.models import schedule as schedules
from kineograph.models.schedule import Schedule

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
KINDS = {
    "stable diffusion": SD,
    "animatediff": SD | {"beta_schedule": "linear"},
    "cosine": SD | {"beta_schedule": "squaredcos_cap_v2"},
    "v": SD | {"prediction_type": "v_prediction"},
    "zero terminal snr": SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "sample": SD | {"prediction_type": "sample"},
    "flow": FLOW,
}
each_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)

X0, NOISE = torch.randn(2, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_stable_diffusion_has_its_published_sigmas() -> None:
    schedule = Schedule.from_config(SD)
    signal = [schedule.scale(schedule.sigmas[t]) for t in (881, 941)]
    assert (signal[1] / signal[0]) ** 2 == pytest.approx(0.530534, abs=1e-6)
    assert schedule.sigmas[-1] == pytest.approx(14.6146, abs=1e-4)


def test_linear_and_scaled_linear_differ() -> None:
    linear, scaled = (Schedule.from_config(KINDS[kind]) for kind in ("animatediff", "stable diffusion"))
    betas = np.linspace(SD["beta_start"], SD["beta_end"], 1000)
    assert linear.sigmas[500] == pytest.approx(math.sqrt(1 / np.prod(1 - betas[:501]) - 1))
    assert linear.sigmas[500] > 1.2 * scaled.sigmas[500]


@each_kind
def test_timesteps_of_the_tables_sigmas_are_exact(config) -> None:
    schedule = Schedule.from_config(config)
    timesteps = range(0, len(schedule.sigmas), 9)  # the first, the last, and some between them
    assert [schedule.timestep(schedule.sigmas[t]) for t in timesteps] == list(timesteps)


@each_kind
def test_scale_equals_the_signal_of_every_timestep(config) -> None:
    schedule = Schedule.from_config(config)
    norms = [schedule.scale(sigma) * math.hypot(1, sigma) for sigma in schedule.sigmas[::37]]
    np.testing.assert_allclose(norms, schedule.norms[::37], rtol=1e-9)


def test_timesteps_between_sigmas_are_linear_in_log_sigma() -> None:
    schedule = Schedule.from_config(SD)
    assert schedule.timestep(math.sqrt(schedule.sigmas[500] * schedule.sigmas[501])) == pytest.approx(500.5)


def test_the_timestep_below_the_table_is_0() -> None:
    schedule = Schedule.from_config(SD)
    assert schedule.timestep(0.0) == schedule.timestep(schedule.sigmas[0] / 2) == 0.0
    assert schedule.scale(0.0) == pytest.approx(1.0)


def test_a_timestep_in_place_of_a_sigma_is_refused() -> None:
    with pytest.raises(ValueError, match=r"up to 14\.61, got 881.*not a timestep"):
        Schedule.from_config(SD).timestep(881.0)


def test_renoise_equals_ddpms_forward_process() -> None:
    """Text2Video-Zero's step from T' to T, in the paper's units and in ours."""
    schedule = Schedule.from_config(SD)
    low, high = schedule.sigmas[881], schedule.sigmas[941]
    z = schedule.scale(low) * X0
    kept = (schedule.scale(high) / schedule.scale(low)) ** 2
    theirs = math.sqrt(kept) * z + math.sqrt(1 - kept) * NOISE
    torch.testing.assert_close(schedule.scale(high) * renoise(X0, NOISE, low, to=high), theirs)


@each_kind
@pytest.mark.parametrize("t", [1, 500, 998])
def test_a_perfect_network_returns_the_clean_video(config, t) -> None:
    """Use a network that returns the exact prediction in its parameterisation."""
    schedule = Schedule.from_config(config)
    sigma = schedule.sigmas[t]
    a = schedule.scale(sigma)
    b = a * sigma
    predictions = {
        schedules.epsilon: NOISE,
        schedules.v_prediction: a * NOISE - b * X0,
        schedules.sample_prediction: X0,
        schedules.flow_prediction: NOISE - X0,
    }

    def network(z, timestep):
        torch.testing.assert_close(z, a * X0 + b * NOISE)
        torch.testing.assert_close(timestep, torch.tensor(float(t)))
        return predictions[schedule.parameterisation]

    x0 = schedule.denoise(network)(X0 + sigma * NOISE, sigma)
    torch.testing.assert_close(x0, X0, atol=2e-6 * max(1.0, sigma), rtol=1e-5)


def test_a_prediction_in_half_precision_is_used_in_float32() -> None:
    schedule = Schedule.from_config(SD)
    x0 = schedule.denoise(lambda z, t: NOISE.bfloat16())(X0 + 10 * NOISE, 10.0)
    torch.testing.assert_close(x0, X0 + 10 * (NOISE - NOISE.bfloat16().float()))


def test_zero_terminal_snr_ends_at_a_finite_sigma() -> None:
    schedule = Schedule.from_config(KINDS["zero terminal snr"])
    assert schedule.sigmas[-1] == pytest.approx(4096)
    assert schedule.sigmas[0] == pytest.approx(Schedule.from_config(SD).sigmas[0])


def test_predicted_noise_without_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="expected prediction_type 'v_prediction'"):
        Schedule.from_config(SD | {"rescale_betas_zero_snr": True})


def test_trained_betas_replace_a_named_schedule() -> None:
    betas = np.linspace(1e-4, 0.02, 10)
    schedule = Schedule.from_config({"trained_betas": betas.tolist()})
    assert schedule.parameterisation is schedules.epsilon
    assert schedule.sigmas == pytest.approx(np.sqrt(1 / np.cumprod(1 - betas) - 1))


@pytest.mark.parametrize(("factor", "terminal"), [(0.3, 4.2e-4), (0.7, 2.3e-3)])
def test_videocrafters_signal_scale_is_part_of_the_signal(factor, terminal) -> None:
    base = Schedule.from_config(SD)
    signal = np.array([base.scale(sigma) for sigma in base.sigmas])
    scales = np.concatenate([np.linspace(1, factor, 400), np.full(600, factor)])
    schedule = Schedule.from_tables(scales * signal, np.sqrt(1 - signal**2), schedules.epsilon)
    assert schedule.sigmas[-1] ** -2 == pytest.approx(terminal, rel=0.02)
    assert schedule.scale(schedule.sigmas[700]) == pytest.approx(factor * signal[700])


def test_equal_configurations_are_equal_schedules() -> None:
    assert Schedule.from_config(SD) == Schedule.from_config(dict(SD)) != Schedule.from_config(KINDS["v"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SD | {"beta_schedule": "sigmoid"}, "beta_schedule to be one of linear, scaled_linear, .*'sigmoid'"),
        (SD | {"prediction_type": "score"}, "prediction_type to be one of epsilon, .*'score'"),
        ({"beta_schedule": "linear", "beta_end": 0.02}, "needs 'beta_start', which this one lacks"),
        ({"trained_betas": [0.1, 0.0, 0.1]}, "increasing with the timestep; got 3 sigmas"),
        ({"trained_betas": [0.1]}, "at least two sigmas"),
    ],
)
def test_invalid_configurations_are_refused_with_the_reason(config, message) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.from_config(config)


def test_a_consistency_model_is_the_identity_at_timestep_0() -> None:
    schedule = Schedule.from_config(SD)
    denoise = schedule.consistency_denoise(lambda x, sigma: torch.zeros_like(x))
    lowest = schedule.sigmas[0]
    torch.testing.assert_close(denoise(X0, lowest), schedule.scale(lowest) * X0)


def test_a_consistency_model_is_the_network_at_high_sigmas() -> None:
    schedule = Schedule.from_config(SD)
    torch.testing.assert_close(schedule.consistency_denoise(lambda x, sigma: x / 2)(X0, 5.0), X0 / 2)
