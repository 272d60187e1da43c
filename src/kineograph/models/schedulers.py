"""diffusers' schedulers: the sampler and the sigmas that a scheduler's configuration stands for."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from kineograph.errors import InputError

DEFAULT = "DDIMScheduler"  # of configurations that name no class, such as those of single files
FALLBACK = "EulerDiscreteScheduler"  # for classes that are not offered: it reads most of their settings
SDE = "sde-dpmsolver++"
# class of a scheduler -> name in `samplers.BY_NAME`
SAMPLERS: Mapping[str, str] = {
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "euler-ancestral",
    "DDPMParallelScheduler": "euler-ancestral",
    "PNDMScheduler": "plms",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "DPMSolverSinglestepScheduler": "dpmpp-2s",
    "DPMSolverSDEScheduler": "dpmpp-sde",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp-2m",
    "FlowMatchEulerDiscreteScheduler": "euler",
}
SDE_SAMPLERS: Mapping[str, str] = {"dpmpp-2m": "dpmpp-2m-sde"}
# (sampler of order 2, `solver_order`) -> the sampler of this order
OTHER_ORDERS: Mapping[tuple[str, object], str] = {
    ("dpmpp-2m", 1): "ddim",
    ("dpmpp-2m", 3): "dpmpp-3m",
    ("dpmpp-2m-sde", 1): "euler-ancestral",
    ("dpmpp-2s", 1): "ddim",
    ("deis", 1): "ddim",
}
FINAL_STEPS = ("dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m", "dpmpp-2s", "unipc")  # samplers of low order in a step to 0
DISTILLED = ("lcm", "tcd")  # samplers of few-step models, along a subset of the sigmas of their distillation
# Settings that change how a scheduler samples, with the values that the samplers here have.
OFFERED: Mapping[str, Sequence[object]] = {
    "clip_sample": (False, None),
    "disable_corrector": ([],),
    "solver_order": (2,),
    "solver_p": (None,),
    "solver_type": ("midpoint", "logrho", "bh2"),
    "algorithm_type": ("dpmsolver++", SDE, "deis"),
    "predict_x0": (True,),
    "skip_prk_steps": (True,),
    "variance_type": ("fixed_small", "fixed_small_log", None),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "stochastic_sampling": (False,),
}
# pipelines of diffusers -> settings that they correct, as they are built, in schedulers that have them
CORRECTED_BY_PIPELINES: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionImg2ImgPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionPAGPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
}


def class_name(settings: Mapping[str, Any]) -> str:
    """Return the class of a scheduler's configuration."""
    return settings.get("_class_name") or DEFAULT


def correct_as_pipeline(settings: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
    """Return a scheduler's configuration with the settings that a pipeline of diffusers corrects as it is built."""
    kind = getattr(diffusers, class_name(settings), None)
    known = {} if kind is None else _parameters(kind)
    corrected = CORRECTED_BY_PIPELINES.get(pipeline, {})
    return {**settings, **{name: value for name, value in corrected.items() if name in known}}


def sampler_name(settings: Mapping[str, Any]) -> str:
    """Return the name in `samplers.BY_NAME` of a scheduler's sampler; the nearest one if it is not offered."""
    name = SAMPLERS.get(class_name(settings), SAMPLERS[FALLBACK])
    if name == "plms" and settings.get("prediction_type") == "v_prediction":
        return "plms-v"
    name = SDE_SAMPLERS.get(name, name) if settings.get("algorithm_type") == SDE else name
    return OTHER_ORDERS.get((name, settings.get("solver_order")), name)


def departures(settings: Mapping[str, Any]) -> list[str]:
    """Return what a scheduler's configuration asks for and `sampler_name` does not do: its class, or settings."""
    name = class_name(settings)
    if name not in SAMPLERS:
        return [name]
    is_named = settings.get("_class_name") is not None  # the defaults of a class that is not named say nothing
    values = {
        key: settings.get(key, parameter.default)
        for key, parameter in _parameters(_class_for_sigmas(name)).items()
        if key in OFFERED and (is_named or key in settings)
    }
    odd = {key: value for key, value in values.items() if value not in OFFERED[key]}
    sampler = sampler_name(settings)
    if sampler in OTHER_ORDERS.values():
        odd.pop("solver_order", None)
    if values.get("algorithm_type") == SDE and SAMPLERS[name] not in SDE_SAMPLERS:
        odd["algorithm_type"] = SDE
    if sampler in FINAL_STEPS and settings.get("final_sigmas_type") == "sigma_min":
        odd["final_sigmas_type"] = "sigma_min"
    if sampler in ("unipc", "deis", "dpmpp-3m") and settings.get("lower_order_final", True) is not True:
        odd["lower_order_final"] = settings["lower_order_final"]
    if settings.get("interpolation_type") == "log_linear" and settings.get("timestep_type") != "continuous":
        odd["interpolation_type"] = "log_linear"  # diffusers then evaluates the network at timesteps of other sigmas
    return [f"{key}={value}" for key, value in odd.items()]


def initial_deviation(settings: Mapping[str, Any], sigma: float) -> float | None:
    """Return the standard deviation of a scheduler's initial latents, diffusers' `init_noise_sigma`.

    None for a scheduler whose latents are the network's input z_t, where it is 1.
    """
    name = class_name(settings)
    if name.startswith("FlowMatch"):
        return sigma
    kind = _class_for_sigmas(name)
    if not hasattr(kind, "init_noise_sigma"):
        return None
    default = _parameters(kind).get("timestep_spacing")  # EDM's have none
    spacing = settings.get("timestep_spacing", default.default) if default else "leading"
    return math.hypot(sigma, 1) if spacing == "leading" else sigma


def scheduler_sigmas(settings: Mapping[str, Any], table: Sequence[float], steps: int) -> list[float]:
    """Return the sigmas that a scheduler samples along, falling, with the last one, where it does not evaluate.

    table: sigma of every integer timestep, ascending. Raises InputError for a number of steps that it cannot take.
    """
    kind = _class_for_sigmas(class_name(settings))
    known = {name: value for name, value in settings.items() if name in _parameters(kind)}
    if any(settings.get(name) and name not in known for name in ("signal_scale", "rescale_betas_zero_snr")):
        known |= {"trained_betas": _betas(table)}
    # neither changes the sigmas: without Runge-Kutta's, and without a warning that the last step is of first order
    known |= {name: True for name in ("skip_prk_steps", "lower_order_final") if name in _parameters(kind)}
    if steps > len(table):
        raise InputError(f"`num_inference_steps` is at most {len(table)}, the timesteps of the model, not {steps}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' deprecations, of NumPy and of settings
            scheduler = kind(**known)
            scheduler.set_timesteps(steps)
    except (TypeError, ValueError, ImportError, NotImplementedError) as error:
        raise InputError(f"{kind.__name__} has no sigmas for {steps} steps (`num_inference_steps`): {error}") from error
    if not hasattr(scheduler, "sigmas"):
        return _at_timesteps(scheduler, table, steps)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if kind is diffusers.FlowMatchEulerDiscreteScheduler or known.get("use_flow_sigmas"):
        sigmas = [sigma / (1 - sigma) if sigma < 1 else table[-1] for sigma in sigmas]
    return _falling([min(sigma, table[-1]) for sigma in sigmas], steps)


def _at_timesteps(scheduler: Any, table: Sequence[float], steps: int) -> list[float]:
    """Return the table's sigmas at the timesteps of a scheduler without sigmas."""
    timesteps = [int(t) for t in scheduler.timesteps if t >= 0]
    if timesteps[0] >= len(table):
        raise InputError(
            f"`num_inference_steps` {steps} starts at timestep {timesteps[0]} of {len(table)}: ask for fewer steps"
        )
    to_lowest = isinstance(scheduler, diffusers.TCDScheduler) or (
        isinstance(scheduler, diffusers.DDIMScheduler | diffusers.DDIMParallelScheduler | diffusers.PNDMScheduler)
        and not scheduler.config.set_alpha_to_one
    )
    return _falling([*(table[t] for t in timesteps), table[0] if to_lowest else 0.0], steps)


def _falling(sigmas: Sequence[float], steps: int) -> list[float]:
    """Return the sigmas without repetitions, of second evaluations; a last step that stays where it is ends at 0.

    In trailing spacing, some numbers of steps have one too many, at timestep -1.
    """
    last = sigmas[-1] if sigmas[-1] < sigmas[-2] else 0.0
    return [*sorted({sigma for sigma in sigmas if sigma > last}, reverse=True)[:steps], last]


def _betas(table: Sequence[float]) -> list[float]:
    """Return the betas of a table of sigmas."""
    signal = [1 / (1 + sigma * sigma) for sigma in table]
    return [1 - now / before for before, now in zip([1.0, *signal], signal, strict=False)]


def _class_for_sigmas(name: str) -> Any:
    """Return the class that computes the sigmas of a class of schedulers."""
    if name == "DPMSolverSDEScheduler":  # needs a package of its own for its noise; its sigmas are Heun's
        return diffusers.HeunDiscreteScheduler
    return getattr(diffusers, name if name in SAMPLERS else FALLBACK)


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__init__).parameters
