"""A video is sampled as the checkpoint's own scheduler samples an image: its sigmas, first timestep and trajectory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from cases.public_layouts import BETAS, SD15, load, sd, unet
from diffusers import SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel

import kineograph as kg
from kineograph import noise

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),  # settings of public checkpoints: steps_offset=0
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # numpy 2 about diffusers
]
LATENT_SIDE, SIDE = 8, 64
MOST_SIGMA = 4096.0  # stands for the infinite sigma of a timestep without signal, as in diffusers' Euler scheduler
DDIM = SD15 | {"set_alpha_to_one": False, "clip_sample": False}
V_PREDICTION = {"prediction_type": "v_prediction"}
ZERO_SNR = BETAS | V_PREDICTION | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
TRAILING, LEADING, KARRAS = (
    {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"}, {"use_karras_sigmas": True},
)  # fmt: skip


class Case(NamedTuple):
    """A scheduler as a checkpoint ships it, and numbers of steps."""

    kind: type[SchedulerMixin]
    config: Mapping[str, Any]
    steps: tuple[int, ...]

    @property
    def scheduler(self) -> SchedulerMixin:
        return self.kind(**self.config)


CASES = {
    "sd15-pndm": Case(
        diffusers.PNDMScheduler, SD15 | {"skip_prk_steps": True, "set_alpha_to_one": False}, (20, 25, 30, 50)
    ),
    "sd15-ddim": Case(diffusers.DDIMScheduler, DDIM, (20, 25, 30, 50)),
    "ddim-offset-0": Case(diffusers.DDIMScheduler, BETAS | {"steps_offset": 0, "clip_sample": False}, (20,)),
    "sd21-ddim-v": Case(diffusers.DDIMScheduler, DDIM | V_PREDICTION, (25,)),
    "sdxl-euler-leading": Case(diffusers.EulerDiscreteScheduler, SD15 | LEADING, (30,)),
    "euler-linspace": Case(diffusers.EulerDiscreteScheduler, BETAS, (25,)),
    "euler-karras": Case(diffusers.EulerDiscreteScheduler, SD15 | LEADING | KARRAS, (25,)),
    "euler-ancestral-linspace": Case(diffusers.EulerAncestralDiscreteScheduler, BETAS, (25,)),
    "sdxl-turbo-euler-ancestral": Case(
        diffusers.EulerAncestralDiscreteScheduler, SD15 | TRAILING, (1, 2, 4)
    ),
    "sd-turbo-euler": Case(diffusers.EulerDiscreteScheduler, SD15 | TRAILING, (1, 4)),
    "lightning-euler": Case(diffusers.EulerDiscreteScheduler, BETAS | TRAILING, (2, 4, 8)),
    "zero-snr-ddim-v": Case(diffusers.DDIMScheduler, ZERO_SNR | {"clip_sample": False}, (25,)),
    "zero-snr-euler-v": Case(diffusers.EulerDiscreteScheduler, ZERO_SNR, (25,)),
    "dpmpp-2m-linspace": Case(diffusers.DPMSolverMultistepScheduler, BETAS, (25,)),
    "dpmpp-2m-karras": Case(diffusers.DPMSolverMultistepScheduler, BETAS | KARRAS, (25,)),
    "lcm": Case(diffusers.LCMScheduler, BETAS, (4, 8)),
    "unipc-linspace": Case(diffusers.UniPCMultistepScheduler, BETAS, (25,)),
    "heun": Case(diffusers.HeunDiscreteScheduler, BETAS, (25,)),
}  # fmt: skip


def by_steps(cases: Mapping[str, Case], usual: tuple[int, ...]) -> list[ParameterSet]:
    """Return a parameter for each scheduler and number of steps.

    usual: of several long samplings of one scheduler, those that are not left to runs by hand (`-m soak`).
    """
    return [
        pytest.param(
            case,
            steps,
            id=f"{name}-{steps}",
            marks=pytest.mark.soak if len(case.steps) > 1 and steps >= 20 and steps not in usual else (),
        )
        for name, case in cases.items()
        for steps in case.steps
    ]


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    return unet((8, 8), attention_head_dim=1, norm_num_groups=4, sample_size=LATENT_SIDE)


# --- formats/11-levels


@pytest.mark.slow
@pytest.mark.parametrize(("case", "steps"), by_steps(CASES, (20, 30)))  # 30 does not divide 1000 timesteps
def test_sigmas_equal_those_of_the_checkpoint_scheduler(network: UNet2DConditionModel, case: Case, steps: int) -> None:
    pipeline = sd(case.scheduler, network)  # which sets steps_offset to 1 in its scheduler
    model = load(pipeline)
    wanted, sampled = sigmas_of(pipeline.scheduler, steps), []
    kg.generate(
        model, "a", num_frames=1, height=SIDE, width=SIDE, num_inference_steps=steps, guidance_scale=1, seed=0,
        on_step=lambda progress: sampled.append(progress.step.sigma),
    )  # fmt: skip
    assert len(sampled[:-1]) == len(wanted)  # one frame takes no steps to Text2Video-Zero's T and T'
    assert np.allclose(sampled[:-1], wanted, rtol=2e-3)


def sigmas_of(scheduler: SchedulerMixin, steps: int) -> list[float]:
    """Return the distinct sigmas at which a diffusers scheduler evaluates the network, falling."""
    scheduler.set_timesteps(steps)
    sigmas = getattr(scheduler, "sigmas", None)
    by_timesteps = isinstance(scheduler, diffusers.PNDMScheduler | diffusers.DDIMScheduler)
    if by_timesteps or sigmas is None or len(sigmas) not in (steps + 1, 2 * steps):
        signal = [float(scheduler.alphas_cumprod[int(timestep)]) for timestep in scheduler.timesteps]
        evaluated = [math.sqrt((1 - each) / each) if each else MOST_SIGMA for each in signal]
    else:
        evaluated = [float(sigma) for sigma in sigmas if sigma > 0]
    return sorted({round(sigma, 5) for sigma in evaluated}, reverse=True)


# --- formats/13-turbo-start


class FirstEvaluationError(Exception):
    """The first evaluation of the U-Net; it ends the generation."""


FEW_STEPS = [("sdxl-turbo-euler-ancestral", steps) for steps in (1, 2, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "euler-ancestral"])
@pytest.mark.parametrize(
    ("case", "steps"),
    [
        pytest.param(CASES[name], steps, id=f"{name}-{steps}")
        for name, steps in [*FEW_STEPS, ("lightning-euler", 4), ("zero-snr-ddim-v", 25)]
    ],
)
def test_first_timestep_equals_that_of_the_checkpoint_scheduler(
    network: UNet2DConditionModel, case: Case, steps: int, sampler: str
) -> None:
    scheduler, first = case.scheduler, []

    def stop(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        first.append(round(float(inputs[0].flatten()[0])))
        raise FirstEvaluationError

    model = load(sd(scheduler, network))
    hook = model.net.image_unet.time_proj.register_forward_pre_hook(stop)
    with pytest.raises(FirstEvaluationError):
        kg.generate(
            model, "a", num_frames=2, height=SIDE, width=SIDE, num_inference_steps=steps, guidance_scale=1, seed=0,
            sampler=sampler,
        )  # fmt: skip
    hook.remove()
    scheduler.set_timesteps(steps)
    assert first == [int(scheduler.timesteps[0])]


# --- formats/12-trajectory


PROMPT = "a red fish swimming over the sea"
TRAJECTORIES = {
    "ddim": Case(diffusers.DDIMScheduler, DDIM, (20, 25, 30, 50)),
    "pndm": CASES["sd15-pndm"],
    "euler-leading": Case(diffusers.EulerDiscreteScheduler, SD15 | LEADING, (25,)),
    "euler-karras": Case(diffusers.EulerDiscreteScheduler, SD15 | LEADING | KARRAS, (25,)),
    "dpmpp-2m-karras": Case(diffusers.DPMSolverMultistepScheduler, SD15 | KARRAS, (25,)),
    "euler-trailing": Case(diffusers.EulerDiscreteScheduler, SD15 | TRAILING, (25,)),
}


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    """The trained pocket model as a diffusers pipeline."""
    folder = kg.save(kg.load(dtype="float32", device="cpu"), tmp_path_factory.mktemp("models") / "pocket")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize(("case", "steps"), by_steps(TRAJECTORIES, (20,)))
def test_one_frame_equals_the_image_of_the_diffusers_pipeline(
    pocket: StableDiffusionPipeline, case: Case, steps: int
) -> None:
    """Frame and image of the same noise differ by less than 1 grey level of 255 on average."""
    pocket.scheduler = case.scheduler
    latents = noise.independent(0, range(1), (1, 8, SIDE // 8, SIDE // 8))[:, 0]
    asked = {"num_inference_steps": steps, "guidance_scale": 7.5, "height": SIDE, "width": SIDE}
    image = pocket(PROMPT, negative_prompt="", latents=latents, **asked).images[0]
    video = kg.generate(load(pocket), PROMPT, num_frames=1, seed=0, **asked)
    assert np.abs(video.frames[0].astype(int) - np.asarray(image).astype(int)).mean() < 1
