"""Sampler and sigmas of a scheduler configuration: diffusers' values, and properties for any number of steps."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from format_rows import loads
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.scheduler_configurations import BETAS, CONFIGURATIONS, named

import kineograph as kg
from kineograph.errors import InputError
from kineograph.models import schedulers
from kineograph.models.schedule import Schedule
from kineograph.samplers import BY_NAME
from kineograph.sigmas import SPACINGS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
POCKET = Path(kg.__file__).parent / "models" / "pocket" / "weights"
DOCUMENT = Path(__file__).parents[2] / "docs" / "samplers.md"


def schedule_of(config: dict[str, Any]) -> Schedule:
    """Return the schedule; a network without signal at a timestep predicts v."""
    v_prediction = {"prediction_type": "v_prediction"} if config.get("rescale_betas_zero_snr") else {}
    return Schedule.from_config(config | v_prediction)


def evaluated(config: dict[str, Any], steps: int) -> list[float]:
    """Return the distinct sigmas at which the diffusers scheduler evaluates the network."""
    settings = dict(config)
    scheduler = getattr(diffusers, settings.pop("_class_name"))(**settings)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas[:-1].double()
    else:
        signal = scheduler.alphas_cumprod.double()[scheduler.timesteps].clamp(min=2.0**-24)
        sigmas = (1 / signal - 1).sqrt()
    return sorted(set(sigmas.tolist()), reverse=True)


def sigmas_row(name: str) -> pytest.MarkDecorator:
    kind = CONFIGURATIONS[name]["_class_name"]
    return loads("Scheduler", f"`{kind}`: {name}", within=1e-4, reference="`set_timesteps`, relative")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("steps", [4, 25, 30])
@pytest.mark.parametrize("name", [pytest.param(name, marks=sigmas_row(name)) for name in CONFIGURATIONS])
def test_the_sigmas_are_those_of_set_timesteps(name: str, steps: int, within: float) -> None:
    config = CONFIGURATIONS[name]
    ours, theirs = schedule_of(config).sampling_sigmas(steps), evaluated(config, steps)
    assert len(ours) == len(theirs) + 1
    assert np.allclose(ours[:-1], theirs, rtol=within)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_first_latents_have_the_schedulers_deviation(name: str) -> None:
    schedule, config = schedule_of(CONFIGURATIONS[name]), dict(CONFIGURATIONS[name])
    scheduler = getattr(diffusers, config.pop("_class_name"))(**config)
    scheduler.set_timesteps(3)
    first = schedule.sampling_sigmas(3)[0]
    takes_x = hasattr(type(scheduler), "init_noise_sigma")  # others take z_t, of deviation 1
    theirs = float(scheduler.init_noise_sigma) if takes_x else 1 / schedule.scale(first)
    assert schedule.initial_scale(first) * first == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(CONFIGURATIONS)), st.integers(1, 40))
def test_a_schedulers_sigmas_fall_within_the_table(name: str, steps: int) -> None:
    schedule = schedule_of(CONFIGURATIONS[name])
    sigmas = schedule.sampling_sigmas(steps)
    assert len(sigmas) == steps + 1
    assert all(after < before for before, after in pairwise(sigmas))
    assert sigmas[0] <= schedule.sigmas[-1] * (1 + 1e-4)
    assert sigmas[-1] == 0 or sigmas[-1] == pytest.approx(schedule.sigmas[0], rel=1e-3)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(SPACINGS)), st.integers(1, 50))
def test_every_spacing_falls_from_the_table_to_0(spacing: str, steps: int) -> None:
    schedule = Schedule.from_config(BETAS)
    sigmas = schedule.sampling_sigmas(steps, spacing=spacing)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert all(after < before for before, after in pairwise(sigmas))
    assert sigmas[0] <= schedule.sigmas[-1] * (1 + 1e-9)


def test_a_spacing_is_that_of_the_scheduler_with_it() -> None:
    plain = Schedule.from_config(BETAS)
    for spacing, setting in {
        "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True},
        "beta": {"use_beta_sigmas": True},
    }.items():
        theirs = Schedule.from_config(named("DPMSolverMultistep", BETAS, **setting)).sampling_sigmas(12)
        assert plain.sampling_sigmas(12, spacing=spacing) == pytest.approx(theirs, rel=1e-4)
    lu = Schedule.from_config(named("DPMSolverMultistep", BETAS, use_lu_lambdas=True)).sampling_sigmas(12)
    assert plain.sampling_sigmas(12, spacing="exponential") == pytest.approx(lu, rel=1e-4)


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_few_step_samplers_pick_the_sigmas_of_their_distillation(sampler: str) -> None:
    euler, own = (Schedule.from_config(CONFIGURATIONS[name]) for name in ("euler, linspace", "lcm"))
    assert euler.sampling_sigmas(4, sampler) == own.sampling_sigmas(4, sampler)
    assert euler.sampling_sigmas(4, sampler, "trailing") == kg.sigmas.trailing(euler.sigmas, 4)


@pytest.mark.parametrize("name", ["euler, linspace", "lcm", "tcd"])
def test_more_than_50_steps_of_lcm_are_refused_by_the_name_of_the_option(name: str) -> None:
    with pytest.raises(InputError, match="`num_inference_steps`"):
        Schedule.from_config(CONFIGURATIONS[name]).sampling_sigmas(51, "lcm")


def test_the_offset_of_leading_spacing_is_the_schedulers_or_the_given_one() -> None:
    schedule = Schedule.from_config(CONFIGURATIONS["euler, as SDXL"])
    assert schedule.sampling_sigmas(50, spacing="leading") == kg.sigmas.leading(schedule.sigmas, 50, 1)
    assert schedule.sampling_sigmas(50, spacing="leading", steps_offset=0) == kg.sigmas.leading(schedule.sigmas, 50, 0)


def test_a_signal_scale_is_part_of_resampled_sigmas() -> None:
    """VideoCrafter's factor is unknown to diffusers: its Karras sigmas then span the table with it."""
    config = named("DPMSolverMultistep", BETAS, use_karras_sigmas=True, signal_scale=0.5)
    schedule = Schedule.from_config(config)
    sigmas = schedule.sampling_sigmas(10)
    assert sigmas[0] == pytest.approx(schedule.sigmas[-1], rel=1e-4)
    assert sigmas[0] > 1.9 * Schedule.from_config(BETAS).sigmas[-1]


def test_a_live_scheduler_names_its_class() -> None:
    converted = diffusers.HeunDiscreteScheduler.from_config(diffusers.DDIMScheduler(**BETAS).config)
    assert Schedule.from_config(converted).sampler == "heun"


def test_every_scheduler_has_a_sampler_and_stands_in_the_document() -> None:
    lines = DOCUMENT.read_text().splitlines()
    for name, sampler in schedulers.SAMPLERS.items():
        assert sampler in BY_NAME
        assert any(f"`{name}`" in line and f"`{sampler}`" in line for line in lines), name
    for name in (*BY_NAME, *SPACINGS):
        assert any(f"`{name}`" in line for line in lines), name


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (named("KDPM2Discrete", BETAS), ["KDPM2DiscreteScheduler"]),
        (named("UniPCMultistep", BETAS, solver_order=3), ["solver_order=3"]),
        (named("PNDM", BETAS), ["skip_prk_steps=False"]),
        (named("DPMSolverSinglestep", BETAS, algorithm_type="sde-dpmsolver++"), ["algorithm_type=sde-dpmsolver++"]),
        (
            named("UniPCMultistep", BETAS, solver_type="bh1", thresholding=True),
            ["solver_type=bh1", "thresholding=True"],
        ),
        (CONFIGURATIONS["dpm++ 2m sde"], []),
        (BETAS, []),
    ],
)
def test_what_is_not_offered_is_named(config: dict[str, Any], missing: list[str]) -> None:
    assert sorted(schedulers.departures(config)) == missing
    assert len(Schedule.from_config(config).sampling_sigmas(10)) == 11


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_of_edm_is_what_its_network_predicts(prediction: str) -> None:
    schedule = Schedule.from_config(named("EDMEuler", {"prediction_type": prediction, "sigma_data": 0.7}))
    x0, noise = torch.randn(2, 3, 2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 400, 999])
    target = schedule.target(x0, noise, timesteps)
    for k, t in enumerate(timesteps.tolist()):
        sigma = schedule.sigmas[t]
        x = x0[k : k + 1] + sigma * noise[k : k + 1]
        found = schedule.denoise(lambda z, _, k=k: target[k : k + 1])(x, sigma)
        torch.testing.assert_close(found, x0[k : k + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folder", [POCKET, POCKET / "video"], ids=["pocket", "pocket-video"])
def test_the_built_in_models_have_leading_spacing_with_offset_1(folder: Path) -> None:
    schedule = Schedule.from_config(json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
    assert schedule.sampler == "ddim"
    assert schedule.sampling_sigmas(50) == kg.sigmas.leading(schedule.sigmas, 50, 1)


def test_progress_is_the_share_of_timesteps_that_are_done_also_of_an_edm_network() -> None:
    plain, edm = (Schedule.from_config(CONFIGURATIONS[name]) for name in ("euler, linspace", "edm euler"))
    assert [plain.progress_at(t) for t in (999, 500, 0)] == pytest.approx([0.001, 0.5, 1.0])
    sigmas = [edm.sigmas[t] for t in (999, 500, 0)]
    assert [edm.progress_at(math.log(sigma) / 4) for sigma in sigmas] == pytest.approx([0.001, 0.5, 1.0], abs=1e-6)


def test_an_edm_network_is_trained_on_the_timesteps_that_it_is_sampled_on() -> None:
    edm, seen = Schedule.from_config(CONFIGURATIONS["edm euler"]), []
    x = torch.zeros(2, 1, 4, 2, 2)
    edm.training_losses(lambda z, t: seen.append(t) or z, x, torch.ones_like(x), torch.tensor([0, 999]))
    edm.denoise(lambda z, t: seen.append(t) or z)(x, edm.sigmas[999])
    assert seen[0][1] == pytest.approx(float(seen[1]))
