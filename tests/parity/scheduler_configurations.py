"""Scheduler configurations that checkpoints ship, or that diffusers' users choose for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = BETAS | {"steps_offset": 1}
LEADING, TRAILING = SD15 | {"timestep_spacing": "leading"}, SD15 | {"timestep_spacing": "trailing"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
SDE = {"algorithm_type": "sde-dpmsolver++"}


def named(name: str, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"_class_name": f"{name}Scheduler", **config, **more}


CONFIGURATIONS: Mapping[str, dict[str, Any]] = {
    "pndm, as SD 1.5": named("PNDM", SD15, skip_prk_steps=True, set_alpha_to_one=False),
    "pndm, trailing": named("PNDM", TRAILING, skip_prk_steps=True),
    "ddim, as SD 2.1": named("DDIM", SD15, set_alpha_to_one=False, clip_sample=False),
    "ddim, offset 0": named("DDIM", BETAS, clip_sample=False),
    "ddim, trailing": named("DDIM", TRAILING, clip_sample=False),
    "ddim, zero terminal SNR": named("DDIM", TRAILING, clip_sample=False, rescale_betas_zero_snr=True),
    "ddpm": named("DDPM", BETAS, clip_sample=False),
    "lms": named("LMSDiscrete", SD15),
    "lms, karras": named("LMSDiscrete", SD15, use_karras_sigmas=True),
    "euler, as SDXL": named("EulerDiscrete", LEADING),
    "euler, linspace": named("EulerDiscrete", BETAS),
    "euler, as Lightning": named("EulerDiscrete", TRAILING),
    "euler, karras": named("EulerDiscrete", LEADING, use_karras_sigmas=True),
    "euler, exponential": named("EulerDiscrete", BETAS, use_exponential_sigmas=True),
    "euler, beta": named("EulerDiscrete", BETAS, use_beta_sigmas=True),
    "euler, to the lowest sigma": named("EulerDiscrete", TRAILING, final_sigmas_type="sigma_min"),
    "euler, zero terminal SNR": named("EulerDiscrete", TRAILING, rescale_betas_zero_snr=True),
    "euler ancestral, as SDXL-Turbo": named("EulerAncestralDiscrete", TRAILING),
    "euler ancestral, linspace": named("EulerAncestralDiscrete", BETAS),
    "euler ancestral, zero terminal SNR": named("EulerAncestralDiscrete", TRAILING, rescale_betas_zero_snr=True),
    "heun": named("HeunDiscrete", BETAS),
    "heun, karras": named("HeunDiscrete", LEADING, use_karras_sigmas=True),
    "dpm++ 2m": named("DPMSolverMultistep", BETAS),
    "dpm++ 3m": named("DPMSolverMultistep", BETAS, solver_order=3),
    "dpm++ 2m, leading": named("DPMSolverMultistep", LEADING),
    "dpm++ 2m, trailing": named("DPMSolverMultistep", TRAILING),
    "dpm++ 2m, karras": named("DPMSolverMultistep", BETAS, use_karras_sigmas=True),
    "dpm++ 2m, lu": named("DPMSolverMultistep", BETAS, use_lu_lambdas=True),
    "dpm++ 2m, zero terminal SNR": named("DPMSolverMultistep", TRAILING, rescale_betas_zero_snr=True),
    "dpm++ 2m sde": named("DPMSolverMultistep", BETAS, **SDE),
    "dpm++ 2m sde, karras": named("DPMSolverMultistep", BETAS, use_karras_sigmas=True, **SDE),
    "dpm++ 2s": named("DPMSolverSinglestep", BETAS, lower_order_final=True),
    "dpm++ 2s, karras": named("DPMSolverSinglestep", BETAS, lower_order_final=True, use_karras_sigmas=True),
    "unipc": named("UniPCMultistep", BETAS),
    "unipc, leading, karras": named("UniPCMultistep", LEADING, use_karras_sigmas=True),
    "deis": named("DEISMultistep", BETAS),
    "deis, trailing": named("DEISMultistep", TRAILING),
    "lcm": named("LCM", SD15, clip_sample=False),
    "lcm, distilled on 100 steps": named("LCM", SD15, clip_sample=False, original_inference_steps=100),
    "tcd": named("TCD", SD15, clip_sample=False),
    "edm euler": named("EDMEuler", EDM),
    "edm dpm++ 2m, as Playground v2.5": named("EDMDPMSolverMultistep", EDM),
    "edm dpm++ 2m, exponential": named("EDMDPMSolverMultistep", EDM, sigma_schedule="exponential"),
}
