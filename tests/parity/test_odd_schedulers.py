"""Scheduler settings that few checkpoints have: diffusers' trajectory, a warning by name, or a refusal in one line."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import tiny_models
from parity.scheduler_configurations import BETAS, EDM, SD15, SDE, named

import kineograph as kg
from kineograph.errors import InputError
from kineograph.models import schedulers
from kineograph.models.loading.describe import describe
from kineograph.models.schedule import Schedule
from kineograph.samplers import BY_NAME, final_latents

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers with NumPy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
SHAPE = (1, 1, 4, 8, 8)
MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double() / 4
FEW, MANY = 8, 20  # diffusers lowers the order of the last steps of fewer than 15

MULTISTEP, SINGLESTEP, UNIPC, DEIS, EULER = (
    "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "EulerDiscrete",
)  # fmt: skip
PLAIN = BETAS | {"clip_sample": False}
TO_LOWEST, KARRAS = {"final_sigmas_type": "sigma_min"}, {"use_karras_sigmas": True}
FLAT = np.linspace(1e-4, 0.02, 1000).tolist()

SAME: Mapping[str, tuple[dict[str, Any], str]] = {
    "dpm++ of order 1": (named(MULTISTEP, BETAS, solver_order=1), "ddim"),
    "dpm++ of order 3": (named(MULTISTEP, BETAS, solver_order=3), "dpmpp-3m"),
    "dpm++ of order 3, karras": (named(MULTISTEP, BETAS, solver_order=3, **KARRAS), "dpmpp-3m"),
    "dpm++ sde of order 1": (named(MULTISTEP, BETAS, solver_order=1, **SDE), "euler-ancestral"),
    "dpm++ single-step of order 1": (named(SINGLESTEP, BETAS, solver_order=1), "ddim"),
    "deis of order 1": (named(DEIS, BETAS, solver_order=1), "ddim"),
    "edm of order 1": (named("EDMDPMSolverMultistep", EDM, solver_order=1), "ddim"),
    "edm of order 3": (named("EDMDPMSolverMultistep", EDM, solver_order=3), "dpmpp-3m"),
    "dpm++, lower_order_final false": (named(MULTISTEP, BETAS, lower_order_final=False), "dpmpp-2m"),
    "dpm++, euler_at_final": (named(MULTISTEP, BETAS, euler_at_final=True), "dpmpp-2m"),
    "dpm++ single-step, lower_order_final false": (named(SINGLESTEP, BETAS, lower_order_final=False), "dpmpp-2s"),
    "euler to the lowest sigma, karras": (named(EULER, BETAS, **TO_LOWEST, **KARRAS), "euler"),
    "euler, sigma_min and sigma_max": (named(EULER, BETAS, sigma_min=0.1, sigma_max=10.0, **KARRAS), "euler"),
    "unipc, sigma_min and sigma_max": (named(UNIPC, BETAS, sigma_min=0.1, sigma_max=10.0, **KARRAS), "unipc"),
    "edm, rho": (named("EDMEuler", EDM, rho=3.0), "euler"),
    "ddim of 500 timesteps": (named("DDIM", PLAIN | {"num_train_timesteps": 500}), "ddim"),
    "euler of 500 timesteps": (named(EULER, BETAS | {"num_train_timesteps": 500}), "euler"),
    "dpm++ of 500 timesteps": (named(MULTISTEP, BETAS | {"num_train_timesteps": 500}), "dpmpp-2m"),
    "ddim, trained_betas": (named("DDIM", PLAIN, trained_betas=FLAT), "ddim"),
    "dpm++, trained_betas": (named(MULTISTEP, BETAS, trained_betas=FLAT), "dpmpp-2m"),
    "ddim, cosine": (named("DDIM", PLAIN | {"beta_schedule": "squaredcos_cap_v2"}), "ddim"),
    "dpm++, lambda_min_clipped": (
        named(MULTISTEP, BETAS | {"beta_schedule": "squaredcos_cap_v2"}, lambda_min_clipped=-5.1), "dpmpp-2m",
    ),
    "ddpm, fixed_small_log": (named("DDPM", PLAIN, variance_type="fixed_small_log"), "euler-ancestral"),
    "ddim predicting x0": (named("DDIM", PLAIN, prediction_type="sample"), "ddim"),
    "euler predicting x0": (named(EULER, BETAS, prediction_type="sample"), "euler"),
    "dpm++ predicting x0": (named(MULTISTEP, BETAS, prediction_type="sample"), "dpmpp-2m"),
    "dpm++ single-step predicting x0": (named(SINGLESTEP, BETAS, prediction_type="sample"), "dpmpp-2s"),
    "unipc predicting x0": (named(UNIPC, BETAS, prediction_type="sample"), "unipc"),
    "deis predicting x0": (named(DEIS, BETAS, prediction_type="sample"), "deis"),
    "lcm predicting x0": (named("LCM", BETAS, prediction_type="sample"), "lcm"),
    "lcm, timestep_scaling": (named("LCM", BETAS, timestep_scaling=1.0), "lcm"),
    "lcm, an unknown spacing, which it does not read": (named("LCM", BETAS, timestep_spacing="cosine"), "lcm"),
    "no class": (PLAIN, "ddim"),
    "class null": (PLAIN | {"_class_name": None}, "ddim"),
}  # fmt: skip
WARNED: Mapping[str, tuple[dict[str, Any], list[str]]] = {
    "clip_sample of ddim": (named("DDIM", BETAS), ["clip_sample=True"]),
    "clip_sample of ddpm": (named("DDPM", BETAS, clip_sample=True), ["clip_sample=True"]),
    "clip_sample of lcm": (named("LCM", BETAS, clip_sample=True), ["clip_sample=True"]),
    "clip_sample of heun": (named("HeunDiscrete", BETAS, clip_sample=True), ["clip_sample=True"]),
    "thresholding": (named(MULTISTEP, BETAS, thresholding=True), ["thresholding=True"]),
    "unipc of order 3": (named(UNIPC, BETAS, solver_order=3), ["solver_order=3"]),
    "deis of order 3": (named(DEIS, BETAS, solver_order=3), ["solver_order=3"]),
    "dpm++ single-step of order 3": (named(SINGLESTEP, BETAS, solver_order=3), ["solver_order=3"]),
    "dpm++ sde of order 3": (named(MULTISTEP, BETAS, solver_order=3, **SDE), ["solver_order=3"]),
    "dpm++ to the lowest sigma": (named(MULTISTEP, BETAS, **TO_LOWEST), ["final_sigmas_type=sigma_min"]),
    "unipc, lower_order_final false": (named(UNIPC, BETAS, lower_order_final=False), ["lower_order_final=False"]),
    "deis, lower_order_final false": (named(DEIS, BETAS, lower_order_final=False), ["lower_order_final=False"]),
    "unipc, disable_corrector": (named(UNIPC, BETAS, disable_corrector=[0, 1]), ["disable_corrector=[0, 1]"]),
    "unipc, predict_x0 false": (named(UNIPC, BETAS, predict_x0=False), ["predict_x0=False"]),
    "dpm++, heun": (named(MULTISTEP, BETAS, solver_type="heun"), ["solver_type=heun"]),
    "ddpm, fixed_large": (named("DDPM", PLAIN, variance_type="fixed_large"), ["variance_type=fixed_large"]),
    "ddpm, learned": (named("DDPM", PLAIN, variance_type="learned_range"), ["variance_type=learned_range"]),
    "euler, log_linear": (named(EULER, BETAS, interpolation_type="log_linear"), ["interpolation_type=log_linear"]),
    "single-step sde": (named(SINGLESTEP, BETAS, **SDE), ["algorithm_type=sde-dpmsolver++"]),
    "another class": (named("KDPM2Discrete", BETAS), ["KDPM2DiscreteScheduler"]),
}
REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "unknown spacing": (named("DDIM", PLAIN, timestep_spacing="cosine"), "cosine is not supported"),
    "unknown spacing of euler": (named(EULER, BETAS, timestep_spacing="cosine"), "cosine is not supported"),
    "unknown last sigma": (named(MULTISTEP, BETAS, final_sigmas_type="one"), "`final_sigmas_type` must be one of"),
    "unknown interpolation": (named(EULER, BETAS, interpolation_type="cubic"), "cubic is not implemented"),
    "unknown algorithm": (named(MULTISTEP, BETAS, algorithm_type="foo"), "foo is not implemented"),
    "two spacings": (named(EULER, BETAS, use_exponential_sigmas=True, **KARRAS), "Only one of"),
    "too few trained_betas": (named(EULER, BETAS, trained_betas=FLAT[:500]), "500 trained_betas for 1000"),
    "no prediction_type": (named("DDIM", PLAIN, prediction_type=None), "prediction_type to be one of.*got None"),
    "no betas": (named("DDIM", PLAIN | {"beta_schedule": None}), "beta_schedule to be one of.*got None"),
    "beta_start null": (named("DDIM", PLAIN | {"beta_start": None}), "beta_start of a scheduler to be a number"),
    "beta_start a text": (named("DDIM", PLAIN | {"beta_start": "1e-4"}), "to be a number; got '1e-4'"),
    "timesteps null": (named("DDIM", PLAIN | {"num_train_timesteps": None}), "num_train_timesteps of a scheduler"),
    "offset null": (named("DDIM", PLAIN, steps_offset=None), "DDIMScheduler has no sigmas for 8 steps"),
    "offset a text": (named("DDIM", PLAIN, steps_offset="1"), "DDIMScheduler has no sigmas for 8 steps"),
    "order a text": (named(MULTISTEP, BETAS, solver_order="2"), "has no sigmas for 8 steps"),
}


def network(z: torch.Tensor, t: object) -> torch.Tensor:
    """Return a nonlinear function that mixes channels and depends on the timestep."""
    return torch.tanh(torch.einsum("ij,bfjhw->bfihw", MIX, z)) * math.cos(float(torch.as_tensor(t)) / 300)


def numbered_noise(number: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number)).double()


def diffusers_latents(config: Mapping[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    settings = dict(config)
    kind = getattr(diffusers, settings.pop("_class_name", None) or "DDIMScheduler")
    scheduler, numbers = kind(**settings), iter(range(1, 1000))
    scheduler.set_timesteps(steps)
    module = sys.modules[kind.__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: numbered_noise(next(numbers))[:, 0])
    x = numbered_noise(0)[:, 0] * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        z = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(z[:, None], t)[:, 0], t, x, return_dict=False)[0]
    return x


def latents(config: Mapping[str, Any], steps: int) -> torch.Tensor:
    schedule, numbers = Schedule.from_config(config), iter(range(1, 1000))
    sigmas, denoise = schedule.sampling_sigmas(steps), schedule.denoise(network)
    if schedule.sampler == "lcm":
        denoise = schedule.consistency_denoise(denoise)
    x = numbered_noise(0) * sigmas[0] * schedule.initial_scale(sigmas[0])
    sampler = BY_NAME[schedule.sampler](lambda _: numbered_noise(next(numbers)), schedule.scale_timestep)
    return final_latents(sampler(denoise, x, sigmas))[:, 0]


@pytest.mark.parametrize("steps", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("config", "sampler"), SAME.values(), ids=SAME)
def test_trajectory_of_diffusers(
    config: dict[str, Any], sampler: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert schedulers.sampler_name(config) == sampler
    assert not schedulers.departures(config)
    expected = diffusers_latents(config, steps, monkeypatch)
    assert (latents(config, steps) - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize(("config", "said"), WARNED.values(), ids=WARNED)
def test_what_is_not_done_is_named(config: dict[str, Any], said: list[str]) -> None:
    assert schedulers.departures(config) == said
    assert latents(config, FEW).isfinite().all()


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Schedule.from_config(config).sampling_sigmas(FEW)
    assert "\n" not in str(error.value)


# --- from folders: what diffusers' pipelines correct as they are built


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd"
    tiny_models.sd().save_pretrained(folder)
    return folder


def write(folder: Path, config: Mapping[str, Any], pipeline: str = "StableDiffusionPipeline") -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": pipeline, "scheduler": ["diffusers", config.get("_class_name", "DDIMScheduler")]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(config)))


@pytest.mark.parametrize("name", ["DDIM", EULER, "PNDM"])
@pytest.mark.parametrize(
    "pipeline", ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionControlNetPipeline"]
)
@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
def test_settings_are_those_that_the_pipeline_corrects(folder: Path, name: str, pipeline: str) -> None:
    write(folder, named(name, BETAS), pipeline)
    kind = getattr(diffusers, pipeline)
    parts = tiny_models.sd().components | {"scheduler": getattr(diffusers, f"{name}Scheduler")(**BETAS)}
    extra = {"controlnet": None} if "ControlNet" in pipeline else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = kind(**parts, **extra, requires_safety_checker=False).scheduler.config
    found = describe(folder)
    assert found is not None and found.scheduler is not None
    ours = getattr(diffusers, f"{name}Scheduler").from_config(dict(found.scheduler)).config
    for setting in ("steps_offset", "clip_sample", "skip_prk_steps"):
        assert ours.get(setting) == built.get(setting)


@pytest.mark.slow
def test_clipping_is_warned_of_where_diffusers_clips(folder: Path) -> None:
    quick: dict[str, Any] = {"num_frames": 1, "num_inference_steps": 1, "height": 16, "width": 16, "seed": 1}
    write(folder, named("DDIM", SD15))
    kg.generate(kg.load(folder, dtype="float32", device="cpu"), "a", **quick)  # warnings are errors
    write(folder, named("DDIM", SD15), "LatentConsistencyModelPipeline")
    with pytest.warns(kg.InputWarning, match=r"scheduler with clip_sample=True, which is not supported: .* by ddim"):
        kg.generate(kg.load(folder, dtype="float32", device="cpu"), "a", **quick)
