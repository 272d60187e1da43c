"""Noise schedules: conversion between sigmas and the betas, timesteps and parameterisation of a network.

A network takes `z_t = a_t x0 + b_t noise` and an integer `t`. Everything else in the library takes
`x = x0 + sigma * noise`; so `x = z_t / a_t` and `sigma = b_t / a_t`. No other file knows betas, timesteps and
parameterisations; `schedulers` knows which sigmas a diffusers scheduler picks from the table here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Int
from torch import Tensor

from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents, SampleSigmas
from kineograph.models import schedulers
from kineograph.sigmas import SPACINGS, karras, leading

Predict = Callable[[Latents, Tensor], Latents]  # (z, t) -> the network's output: noise, v, x0 or velocity
Parameterisation = Callable[[Latents, Latents, float, float], Latents]  # (x, prediction, a, b) -> x0
Table = Float[np.ndarray, " t"]
Choice = TypeVar("Choice")

# Without any signal sigma is infinite, where nothing can be computed. Such a timestep gets this signal instead
# (sigma = 4096): far above any data, and the same that diffusers' Euler and DPM-Solver schedulers use.
MIN_SIGNAL = 2.0**-12


@dataclass(frozen=True)
class Schedule:
    """The noise schedule of a network, and the conversion between `x` and the network's input and output.

    sigmas            sigma of every integer timestep, ascending
    norms             sqrt((a_t sigma_data)^2 + b_t^2) of every integer timestep: 1 for a variance-preserving model
    parameterisation  how x0 follows from the network's output: one of the functions below
    settings          the scheduler configuration that it was made from, if it was made from one
    sigma_data        standard deviation of the data in EDM's preconditioning (Karras et al. 2022); 1 without it
    log_timesteps     True if the network takes log(sigma) / 4 in place of the timestep, as EDM's
    """

    sigmas: tuple[float, ...] = field(repr=False)
    norms: tuple[float, ...] = field(repr=False)
    parameterisation: Parameterisation
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    sigma_data: float = 1.0
    log_timesteps: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | SchedulerMixin) -> Schedule:
        """Return the schedule of a diffusers scheduler, from its configuration (a mapping) or the scheduler itself.

        With `rescale_betas_zero_snr` the last timestep has no signal; its sigma becomes 4096. `signal_scale`, which
        diffusers does not have, is the factor by which VideoCrafter1's models reduce the signal sqrt(alpha-bar_t).
        Raises InputError for an unknown beta schedule or prediction type, a missing key, or a network that predicts
        noise at a timestep without signal, where the noise determines nothing about the image.
        """
        settings = (
            dict(config) if isinstance(config, Mapping) else {**config.config, "_class_name": type(config).__name__}
        )
        if schedulers.class_name(settings).startswith("EDM"):
            return _edm_schedule(settings)
        # older files leave prediction_type out, and flow-matching schedulers, which have a shift, always do
        name = settings.get("prediction_type", "flow_prediction" if "shift" in settings else "epsilon")
        parameterisation = _known(PARAMETERISATIONS, name, "prediction_type")
        if parameterisation is flow_prediction:  # a_t = 1 - t and b_t = t; log(0) has no value, so b_0 is just above 0
            steps = _setting(settings, "num_train_timesteps")
            noise = np.clip(np.linspace(0, 1, steps + 1), 1e-8, 1 - MIN_SIGNAL)
            return replace(cls.from_tables(1 - noise, noise, parameterisation), settings=settings)
        signal = _signal(settings)
        if signal[-1] == 0 and parameterisation is epsilon:
            raise InputError(
                "This scheduler's last timestep has no signal (rescale_betas_zero_snr), where predicted noise "
                "says nothing about the image: expected prediction_type 'v_prediction' or 'sample', got 'epsilon'. "
                "Set rescale_betas_zero_snr to false, or correct prediction_type."
            )
        schedule = cls.from_tables(
            signal * _signal_scale(settings, len(signal)), np.sqrt(1 - signal**2), parameterisation
        )
        schedule = replace(schedule, settings=settings)
        if settings.get("timestep_type") == "continuous" and parameterisation is v_prediction:  # as EDM's network
            table = _karras_table(settings) if settings.get("sigma_max") else schedule.sigmas
            schedule = replace(schedule, sigmas=table, log_timesteps=True)
        return schedule

    @classmethod
    def from_tables(cls, signal: Table, noise: Table, parameterisation: Parameterisation) -> Schedule:
        """Return the schedule with these a_t and b_t at every integer timestep.

        Raises InputError unless b_t / a_t increases with the timestep.
        """
        signal = np.where(signal == 0, MIN_SIGNAL, signal)
        sigmas = noise / signal
        if len(sigmas) < 2 or sigmas[0] <= 0 or not (np.diff(sigmas) > 0).all():
            raise InputError(
                "A noise schedule needs at least two sigmas, above 0 and increasing with the timestep; got "
                f"{len(sigmas)} sigmas from {sigmas[0]:.4g} to {sigmas[-1]:.4g}. Check the betas."
            )
        return cls(tuple(sigmas.tolist()), tuple(np.hypot(signal, noise).tolist()), parameterisation)

    @property
    def sampler(self) -> str:
        """Name in `samplers.BY_NAME` of the scheduler's sampler, or of the nearest one."""
        return schedulers.sampler_name(self.settings)

    def sampling_sigmas(
        self, steps: int, sampler: str | None = None, spacing: str | None = None, steps_offset: int | None = None
    ) -> list[float]:
        """Return the sigmas to sample along: those of the scheduler that this schedule was made from.

        Args:
            sampler: name in `samplers.BY_NAME`; "lcm" and "tcd" sample along a subset of the sigmas that such models
                are distilled on, also with a scheduler of another class.
            spacing: name in `sigmas.SPACINGS`, for that spacing down to 0 in place of the scheduler's.
            steps_offset: lowest timestep of leading spacing; the scheduler's by default.

        Raises InputError for a number of steps that the scheduler or the spacing cannot have.
        """
        if spacing == "leading":
            offset = self.settings.get("steps_offset", 0) if steps_offset is None else steps_offset
            return leading(self.sigmas, steps, offset)
        if spacing is None and sampler in schedulers.DISTILLED and self.sampler not in schedulers.DISTILLED:
            spacing = "lcm"
        if spacing is not None:
            return SPACINGS[spacing](self.sigmas, steps)
        return schedulers.scheduler_sigmas(self.settings, self.sigmas, steps)

    def initial_scale(self, sigma: float) -> float:
        """Return the initial latents' standard deviation over `sigma`, the first one, as the scheduler has it.

        1 is the noise alone. Most schedulers start above it, as if the latents at the first sigma were that noise.
        """
        if (deviation := schedulers.initial_deviation(self.settings, sigma)) is not None:
            return deviation / sigma
        return 1 / (self.scale(sigma) * sigma)  # z_t is the noise

    def progress(self, sigma: float) -> float:
        """Return the share of the denoising that is done at a sigma: 0 at the highest, 1 without noise."""
        return 1 - self.timestep(sigma) / len(self.sigmas)

    def progress_at(self, timestep: float) -> float:
        """Return `progress` at a timestep, as the network takes it."""
        return self.progress(math.exp(4 * timestep)) if self.log_timesteps else 1 - timestep / len(self.sigmas)

    def scale_timestep(self, sigma: float, factor: float) -> float:
        """Return the sigma at `factor` times the timestep of a sigma, rounded down; 0 for 0."""
        return self.sigmas[int(factor * self.timestep(sigma))] if sigma > 0 else 0.0

    def timestep(self, sigma: float) -> float:
        """Return the timestep of a sigma: exact on the table, linear in log(sigma) between its entries, 0 below it.

        Raises InputError above the table, where the network was not trained.
        """
        if sigma > self.sigmas[-1] * (1 + 1e-4):
            raise InputError(
                f"This model was trained on sigmas up to {self.sigmas[-1]:.4g}, got {sigma:.4g}. "
                "A sigma is not a timestep: the sigma of timestep t is schedule.sigmas[t]."
            )
        if sigma <= self.sigmas[0]:
            return 0.0
        below = min(bisect_right(self.sigmas, sigma), len(self.sigmas) - 1) - 1
        low, high = self.sigmas[below : below + 2]
        return below + min(math.log(sigma / low) / math.log(high / low), 1.0)

    def scale(self, sigma: float) -> float:
        """Return the signal a_t at this sigma, the factor from `x` to the network's input `z_t`."""
        below, part = divmod(self.timestep(sigma), 1)
        low, high = self.norms[int(below)], self.norms[min(int(below) + 1, len(self.norms) - 1)]
        return (low + part * (high - low)) / math.hypot(self.sigma_data, sigma)

    def add_noise(
        self, x0: Latents, noise: Latents, timesteps: Int[Tensor, " b"]
    ) -> tuple[Latents, Float[Tensor, " b"]]:
        """Return the network's input in training, z_t = a_t x0 + b_t noise, and each sample's sigma."""
        a, b = self._signal_and_noise(x0, timesteps)
        return a * x0 + b * noise, (b / a).flatten()

    def target(self, x0: Latents, noise: Latents, timesteps: Int[Tensor, " b"]) -> Latents:
        """Return the network's target in training: noise, v, x0 or velocity, by its parameterisation."""
        return TARGETS[self.parameterisation](x0, noise, *self._signal_and_noise(x0, timesteps))

    def training_losses(
        self, network: Predict, x0: Latents, noise: Latents, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Return the mean squared error of the network's output to `target`, for each video."""
        z, sigmas = self.add_noise(x0, noise, timesteps)
        prediction = network(z, sigmas.log() / 4 if self.log_timesteps else timesteps)
        return (prediction.float() - self.target(x0, noise, timesteps)).square().flatten(1).mean(1)

    def _signal_and_noise(self, x0: Latents, timesteps: Int[Tensor, " b"]) -> tuple[SampleSigmas, SampleSigmas]:
        """Return a_t and b_t of every sample."""
        tables = (torch.tensor(table, dtype=x0.dtype, device=x0.device) for table in (self.sigmas, self.norms))
        sigma, norm = (table[timesteps].view(-1, 1, 1, 1, 1) for table in tables)
        a = norm / torch.hypot(torch.full_like(sigma, self.sigma_data), sigma)
        return a, a * sigma

    def denoise(self, network: Predict) -> Denoise:
        """Return the network as a function (x, sigma) -> x0. It is called with z_t and t, a float32 scalar tensor."""

        def denoise(x: Latents, sigma: float) -> Latents:
            a = self.scale(sigma)
            timestep = math.log(sigma) / 4 if self.log_timesteps else self.timestep(sigma)
            t = torch.tensor(timestep, dtype=torch.float32, device=x.device)
            return self.parameterisation(x, network(a * x, t).to(x.dtype), a, a * sigma)

        return denoise

    def consistency_denoise(self, denoise: Denoise) -> Denoise:
        """Return a latent consistency model's `Denoise`: c_skip z_t + c_out x0, which is x at timestep 0.

        The two weights belong to the model, not to its sampler: they are functions of the timestep, and apply to every
        evaluation of a distilled network. Source: Luo et al. 2023, the epsilon form.
        """

        timestep_scaling = self.settings.get("timestep_scaling", 10.0)

        def consistency(x: Latents, sigma: float) -> Latents:
            t = timestep_scaling * self.timestep(sigma)
            c_skip, c_out = 0.25 / (t * t + 0.25), t / math.hypot(t, 0.5)
            return c_skip * self.scale(sigma) * x + c_out * denoise(x, sigma)

        return consistency


def epsilon(x: Latents, prediction: Latents, a: float, b: float) -> Latents:
    """Return x0 from the predicted noise (Ho et al. 2020)."""
    return x - (b / a) * prediction


def v_prediction(x: Latents, prediction: Latents, a: float, b: float) -> Latents:
    """Return x0 from the predicted `v = a noise - b x0` (Salimans & Ho 2022, appendix D)."""
    return (a * a * x - b * prediction) / (a * a + b * b)


def sample_prediction(x: Latents, prediction: Latents, a: float, b: float) -> Latents:
    """Return the predicted x0."""
    return prediction


def flow_prediction(x: Latents, prediction: Latents, a: float, b: float) -> Latents:
    """Return x0 from the predicted velocity `noise - x0` (Liu et al. 2022, with time running towards noise)."""
    return (a * x - b * prediction) / (a + b)


def edm_epsilon(x: Latents, prediction: Latents, a: float, b: float) -> Latents:
    """Return x0 by EDM's preconditioning (Karras et al. 2022, table 1), of which diffusers calls this epsilon.

    The two weights, c_skip and c_out, are written in `a = 1 / sqrt(sigma^2 + sigma_data^2)` and `b = a sigma`.
    """
    return (1 - b * b) * x + b / a * math.sqrt(1 - b * b) * prediction


def edm_v_prediction(x: Latents, prediction: Latents, a: float, b: float) -> Latents:
    """Return x0 from the negative of what `edm_epsilon` takes."""
    return edm_epsilon(x, -prediction, a, b)


def _edm_target(x0: Latents, noise: Latents, a: SampleSigmas, b: SampleSigmas) -> Latents:
    return (a * b * x0 - (1 - b * b) * noise) / (1 - b * b).sqrt()


# The target of each in training, from clean latents, noise, a and b: the inverses of the above.
TARGETS: Mapping[Parameterisation, Callable[[Latents, Latents, SampleSigmas, SampleSigmas], Latents]] = {
    epsilon: lambda x0, noise, a, b: noise,
    v_prediction: lambda x0, noise, a, b: a * noise - b * x0,
    sample_prediction: lambda x0, noise, a, b: x0,
    flow_prediction: lambda x0, noise, a, b: noise - x0,
    edm_epsilon: _edm_target,
    edm_v_prediction: lambda x0, noise, a, b: -_edm_target(x0, noise, a, b),
}
# by diffusers' prediction_type
PARAMETERISATIONS: Mapping[str, Parameterisation] = {
    "epsilon": epsilon,
    "v_prediction": v_prediction,
    "sample": sample_prediction,
    "flow_prediction": flow_prediction,
}
EDM_PARAMETERISATIONS: Mapping[str, Parameterisation] = {
    "epsilon": edm_epsilon,
    "v_prediction": edm_v_prediction,
}
EDM_DEFAULTS: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "num_train_timesteps": 1000}


def _edm_schedule(settings: Mapping[str, Any]) -> Schedule:
    """Return the schedule of EDM's preconditioning; its table of timesteps is only used to pick sigmas."""
    name = settings.get("prediction_type", "epsilon")
    parameterisation = _known(EDM_PARAMETERISATIONS, name, "prediction_type of an EDM scheduler")
    sigmas, data = _karras_table(settings), settings.get("sigma_data", EDM_DEFAULTS["sigma_data"])
    return Schedule(sigmas, (1.0,) * len(sigmas), parameterisation, settings, data, log_timesteps=True)


def _karras_table(settings: Mapping[str, Any]) -> tuple[float, ...]:
    high, low, count = (
        {**EDM_DEFAULTS, **settings}[name] for name in ("sigma_max", "sigma_min", "num_train_timesteps")
    )
    return tuple(karras(high, low, count)[-2::-1])


def _signal(settings: Mapping[str, Any]) -> Table:
    """Return a_t = sqrt(alpha-bar_t) of a variance-preserving model."""
    if (trained := settings.get("trained_betas")) is not None:
        betas = np.asarray(trained, dtype=np.float64)
        if len(betas) != settings.get("num_train_timesteps", len(betas)):
            raise InputError(
                f"This scheduler has {len(betas)} trained_betas for {settings['num_train_timesteps']} "
                "num_train_timesteps: expected one for each. Correct its configuration."
            )
    else:
        beta_schedule = _known(BETAS, _setting(settings, "beta_schedule"), "beta_schedule")
        betas = beta_schedule(*(_number(settings, name) for name in ("beta_start", "beta_end", "num_train_timesteps")))
    signal = np.sqrt(np.cumprod(1 - betas))
    if settings.get("rescale_betas_zero_snr"):
        # shifted to 0 at the last timestep and scaled to stay the same at the first (Lin et al. 2023, algorithm 1)
        return (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return signal


def _signal_scale(settings: Mapping[str, Any], steps: int) -> Table:
    """Return VideoCrafter1's s_t: from 1 to `signal_scale` over the first `signal_scale_steps`, constant after."""
    last = settings.get("signal_scale") or 1.0
    falling = np.linspace(1, last, settings.get("signal_scale_steps") or 400)
    return np.append(falling, np.full(steps, last))[:steps]


def _scaled_linear(start: float, end: float, steps: int) -> Table:
    """Return the betas of latent diffusion's schedule, which its own code calls "linear"."""
    return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2


def _cosine(start: float, end: float, steps: int) -> Table:
    """Return the betas of Nichol & Dhariwal 2021, eq. 17; start and end are not used."""
    alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


BETAS: Mapping[str, Callable[[float, float, int], Table]] = {
    "linear": np.linspace,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
}


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    if name not in settings:
        raise InputError(
            f"A scheduler's configuration needs {name!r}, which this one lacks; it has {', '.join(sorted(settings))}. "
            "Add the value that the model was trained with."
        )
    return settings[name]


def _number(settings: Mapping[str, Any], name: str) -> Any:
    if isinstance(value := _setting(settings, name), bool) or not isinstance(value, int | float):
        raise InputError(f"Expected {name} of a scheduler to be a number; got {value!r}. Correct its configuration.")
    return value


def _known(choices: Mapping[str, Choice], name: object, setting: str) -> Choice:
    if not isinstance(name, str) or name not in choices:
        raise InputError(f"Expected {setting} to be one of {', '.join(choices)}; got {name!r}.")
    return choices[name]
