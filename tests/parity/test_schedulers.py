"""Every sampler and spacing against the diffusers scheduler of the same name, at every step.

Both get the same toy network and the same noise; latents agree to 3e-5 at every sigma. Sampling is in float64, because
the toy network doubles rounding errors at every step; the tables of diffusers stay float32.
"""

import sys
import types

import diffusers
import pytest
import torch

from kineograph.models.schedule import Schedule
from kineograph.samplers import (
    ddim,
    ddim_eta,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_sde,
    euler_ancestral,
    heun,
    lcm,
    lms,
    plms,
    plms_v,
    tcd,
    unipc,
)
from kineograph.sigmas import karras, leading, linspace, subsample, trailing

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers with NumPy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = BETAS | {"beta_schedule": "linear"}
PREDICTIONS = ["epsilon", "v_prediction"]
SHAPE = (2, 1, 4, 8, 8)  # diffusers' schedulers take any shape
MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double() / 2
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).double()

each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def network(z, t):
    """Return a nonlinear function that mixes channels and depends on the timestep."""
    return torch.tanh(torch.einsum("ij,bfjhw->bfihw", MIX, z)) * torch.cos(torch.as_tensor(t) / 300)


def at_whole_timesteps(z, t):
    return network(z, torch.as_tensor(t).round())


def sampler_noise(dtype=torch.float64):
    """Return the noise that a diffusers scheduler takes from a generator with seed 2, in order."""
    generator = torch.Generator().manual_seed(2)
    return lambda sigma: torch.randn(SHAPE, generator=generator, dtype=dtype)


def their_samples(scheduler, z, denoise_network, **options):
    scaled = getattr(scheduler, "scale_model_input", lambda z, t: z)
    for t in scheduler.timesteps:
        z = scheduler.step(denoise_network(scaled(z, t), t), t, z, **options).prev_sample
        yield z


def assert_same_samples(scheduler, sampler, sigmas, denoise_network=network, whole_steps=list, **options):
    """Sample from the same noise and compare as z_t. Euler's samples and those of its kind are our x, others are z_t.

    whole_steps: those of diffusers' samples that end a step of ours; the last ones are compared with as many of ours
    """
    schedule = Schedule.from_config(scheduler)
    steps = list(sampler(schedule.denoise(denoise_network), sigmas[0] * NOISE, sigmas))
    scales = [schedule.scale(step.sigma) if step.sigma else 1.0 for step in steps]
    in_x = float(getattr(scheduler, "init_noise_sigma", 1)) != 1
    units = [1.0 if in_x else scale for scale in scales]
    theirs = whole_steps(list(their_samples(scheduler, units[0] * steps[0].x, denoise_network, **options)))
    assert len(theirs) in (len(steps) - 1, 1)
    for step, scale, unit, their in zip(steps[::-1], scales[::-1], units[::-1], theirs[::-1], strict=False):
        torch.testing.assert_close(scale * step.x, scale / unit * their, atol=3e-5, rtol=3e-5)


def table(config=BETAS):
    return Schedule.from_config(config).sigmas


def without_lowest_sigma(sigmas):
    """DPM-Solver's `leading` and `linspace` of n steps are ours of n + 1 without the lowest evaluated sigma."""
    return [*sigmas[:-2], sigmas[-1]]


DDIM_SIGMAS = {
    "leading, 50": ("leading", 50, leading(table(), 50)),
    "leading, 30 (does not divide 1000)": ("leading", 30, leading(table(), 30)),
    "trailing, 50": ("trailing", 50, trailing(table(), 50)),
    "trailing, 8": ("trailing", 8, trailing(table(), 8)),
}


@each_prediction
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("spacing", "steps", "sigmas"), DDIM_SIGMAS.values(), ids=DDIM_SIGMAS)
def test_ddim(spacing, steps, sigmas, eta, prediction) -> None:
    scheduler = diffusers.DDIMScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1, clip_sample=False
    )
    scheduler.set_timesteps(steps)
    sampler = ddim_eta(eta, sampler_noise()) if eta else ddim
    assert_same_samples(scheduler, sampler, sigmas, eta=eta, generator=torch.Generator().manual_seed(2))


@each_prediction
def test_ddim_at_every_timestep(prediction) -> None:
    """Its linspace of fewer steps evaluates at timesteps that its own steps do not land on."""
    betas = BETAS | {"num_train_timesteps": 50}
    scheduler = diffusers.DDIMScheduler(
        **betas, prediction_type=prediction, timestep_spacing="linspace", clip_sample=False
    )
    scheduler.set_timesteps(50)
    assert_same_samples(scheduler, ddim, linspace(table(betas), 50))


@each_prediction
@pytest.mark.parametrize("betas", [BETAS, LINEAR], ids=["scaled linear", "linear"])
def test_ddim_that_ends_at_its_first_timestep(betas, prediction) -> None:
    scheduler = diffusers.DDIMScheduler(
        **betas, prediction_type=prediction, steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    scheduler.set_timesteps(50)
    sigmas = leading(table(betas), 50, last=table(betas)[0])
    assert_same_samples(scheduler, ddim, sigmas)


EULER_SIGMAS = {
    "leading": (30, leading(table(), 30)),
    "trailing": (30, trailing(table(), 30)),
    "linspace": (28, linspace(table(), 28)),  # 27 divides 999: elsewhere it evaluates between timesteps
}


@each_prediction
@pytest.mark.parametrize(("spacing", "case"), EULER_SIGMAS.items(), ids=EULER_SIGMAS)
def test_euler_ancestral(spacing, case, prediction) -> None:
    steps, sigmas = case
    scheduler = diffusers.EulerAncestralDiscreteScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    assert_same_samples(scheduler, euler_ancestral(sampler_noise()), sigmas, generator=torch.Generator().manual_seed(2))


def test_euler_ancestral_from_zero_terminal_snr() -> None:
    config = BETAS | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**config, timestep_spacing="trailing")
    scheduler.set_timesteps(30)
    sigmas = trailing(table(config), 30)
    assert_same_samples(scheduler, euler_ancestral(sampler_noise()), sigmas, generator=torch.Generator().manual_seed(2))


@each_prediction
@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_lcm(steps, prediction) -> None:
    scheduler = diffusers.LCMScheduler(**BETAS, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    schedule = Schedule.from_config(scheduler)
    sigmas = subsample(trailing(table(), 50), steps)

    def sampler(denoise_network, x, sigmas):
        return lcm(sampler_noise())(schedule.consistency_denoise(denoise_network), x, sigmas)

    assert_same_samples(scheduler, sampler, sigmas, generator=torch.Generator().manual_seed(2))


DPM_SIGMAS = {
    "leading": (leading, without_lowest_sigma, 1),
    "linspace": (linspace, without_lowest_sigma, 1),
    "trailing": (trailing, list, 0),
}


@each_prediction
@pytest.mark.parametrize("steps", [8, 25])
@pytest.mark.parametrize(("spacing", "case"), DPM_SIGMAS.items(), ids=DPM_SIGMAS)
def test_dpmpp_2m(spacing, case, steps, prediction) -> None:
    spacing_of, trimmed, more = case
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    assert_same_samples(scheduler, dpmpp_2m, trimmed(spacing_of(table(), steps + more)))


@each_prediction
def test_dpmpp_2m_that_ends_at_its_lowest_sigma(prediction) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing="trailing", final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(25)
    assert_same_samples(scheduler, dpmpp_2m, trailing(table(), 25, last=table()[0]))


@each_prediction
@pytest.mark.parametrize("steps", [8, 25])
def test_dpmpp_2m_on_karras_sigmas(steps, prediction) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, prediction_type=prediction, use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    sigmas = karras(table()[-1], table()[0], steps)
    assert_same_samples(
        scheduler, dpmpp_2m, sigmas, denoise_network=at_whole_timesteps
    )  # it rounds timesteps, we do not


def second_of_each(samples):
    """Return the samples after the second evaluation of each step; the last step has one."""
    return [*samples[1::2], samples[-1]]


def last(samples):
    """Return the last sample alone: UniPC corrects the others when it has the next estimate."""
    return samples[-1:]


OTHERS = {
    "heun": (diffusers.HeunDiscreteScheduler, heun, second_of_each, {}),
    "lms": (diffusers.LMSDiscreteScheduler, lms, list, {}),
    "euler to its lowest sigma": (
        diffusers.EulerDiscreteScheduler,
        ddim,
        list,
        {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
    ),
    "dpmpp-2s": (diffusers.DPMSolverSinglestepScheduler, dpmpp_2s, list, {"lower_order_final": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, unipc, last, {}),
    "deis": (diffusers.DEISMultistepScheduler, deis, list, {}),
}


@pytest.mark.slow
@each_prediction
@pytest.mark.parametrize("steps", [1, 7, 24])
@pytest.mark.parametrize(("kind", "sampler", "whole_steps", "more"), OTHERS.values(), ids=OTHERS)
def test_other_samplers(kind, sampler, whole_steps, more, steps, prediction) -> None:
    scheduler = kind(**BETAS, prediction_type=prediction, **more)
    scheduler.set_timesteps(steps)
    sigmas = Schedule.from_config(scheduler).sampling_sigmas(steps)
    assert_same_samples(scheduler, sampler, sigmas, whole_steps=whole_steps)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 7, 24])
@pytest.mark.parametrize(("prediction", "sampler"), [("epsilon", plms), ("v_prediction", plms_v)])
def test_plms(prediction, sampler, steps) -> None:
    scheduler = diffusers.PNDMScheduler(
        **BETAS, prediction_type=prediction, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
    )
    scheduler.set_timesteps(steps)
    sigmas = Schedule.from_config(scheduler).sampling_sigmas(steps)
    assert_same_samples(scheduler, sampler, sigmas, whole_steps=lambda samples: samples[1:])


@pytest.mark.slow
@each_prediction
@pytest.mark.parametrize("steps", [1, 7, 24])
def test_dpmpp_2m_sde(steps, prediction) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, prediction_type=prediction, algorithm_type="sde-dpmsolver++"
    )
    scheduler.set_timesteps(steps)
    sigmas = Schedule.from_config(scheduler).sampling_sigmas(steps)
    sampler = dpmpp_2m_sde(sampler_noise(torch.float32))
    assert_same_samples(scheduler, sampler, sigmas, generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@each_prediction
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_tcd(steps, prediction) -> None:
    scheduler = diffusers.TCDScheduler(**BETAS, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    schedule = Schedule.from_config(scheduler)
    sampler = tcd(sampler_noise(), schedule.scale_timestep)
    assert_same_samples(scheduler, sampler, schedule.sampling_sigmas(steps), generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@each_prediction
@pytest.mark.parametrize("steps", [1, 7])
def test_dpmpp_sde(steps, prediction, monkeypatch) -> None:
    """Both take the increments of one Brownian path, which here is the sum of two given noises."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))  # which only makes their noise
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    scheduler = DPMSolverSDEScheduler(**BETAS, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    noise_at, halves = sampler_noise(), []

    def increment(sigma, to):
        halves.append(noise_at(to))
        if len(halves) % 2:
            return halves[-1]
        middle = (sigma * to).sqrt()
        parts = (sigma - middle).sqrt() * halves[-2], (middle - to).sqrt() * halves[-1]
        return sum(parts) / (sigma - to).sqrt()

    scheduler.noise_sampler = increment
    sigmas = Schedule.from_config(scheduler).sampling_sigmas(steps)
    assert_same_samples(scheduler, dpmpp_sde(sampler_noise()), sigmas, whole_steps=second_of_each)


EDM = {
    "euler": (diffusers.EDMEulerScheduler, ddim),
    "dpmpp-2m": (diffusers.EDMDPMSolverMultistepScheduler, dpmpp_2m),
}


@pytest.mark.slow
@each_prediction
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize(("kind", "sampler"), EDM.values(), ids=EDM)
def test_edm_preconditioning(kind, sampler, schedule, prediction) -> None:
    scheduler = kind(sigma_data=0.7, prediction_type=prediction, sigma_schedule=schedule)
    scheduler.set_timesteps(12)
    sigmas = Schedule.from_config(scheduler).sampling_sigmas(12)
    assert_same_samples(scheduler, sampler, sigmas)


def test_flow_matching_is_ddim() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    times = [0.95, 0.8, 0.6, 0.4, 0.2, 0.05]
    scheduler.set_timesteps(sigmas=times)
    assert_same_samples(scheduler, ddim, [*(t / (1 - t) for t in times), 0.0])


@pytest.mark.parametrize("spacing", [leading, trailing, linspace])
@pytest.mark.parametrize("steps", [2, 7, 48, 50, 61, 375, 998])
def test_the_timesteps_are_diffusers(spacing, steps) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, timestep_spacing=spacing.__name__, steps_offset=1)
    scheduler.set_timesteps(steps)
    schedule = Schedule.from_config(scheduler)
    ours = [schedule.timestep(sigma) for sigma in spacing(schedule.sigmas, steps)[:-1]]
    assert ours == scheduler.timesteps.tolist()[:steps]  # its trailing of 61 steps has 62
