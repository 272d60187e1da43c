"""One frame, sampled as a scheduler says, equals the image of the diffusers pipeline with that scheduler.

Tiny networks in the shapes of SD 1.5, SD 2.1 (v-prediction) and SDXL, in float32, from the same noise, also that of
stochastic samplers. Mean difference after decoding: below 1 grey level of 255. Every configuration is sampled with one
of the shapes, and by hand (`-m soak`) with the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import diffusers
import numpy as np
import pytest
from cases.public_layouts import load, sd, sd2, sdxl, unet
from diffusers import StableDiffusionPipeline
from parity.scheduler_configurations import CONFIGURATIONS

import kineograph as kg
from kineograph import noise
from kineograph.models.schedule import Schedule

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # numpy 2 about diffusers
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
SIDE, STEPS, SEED = 32, 6, 3
SHAPE = (1, 4, SIDE // 8, SIDE // 8)
WIDTHS = (16, 32)
PIPELINES: dict[str, Callable[[], StableDiffusionPipeline]] = {
    "sd15": lambda: sd(network=unet(WIDTHS)),
    "sd21": lambda: sd2(unet(WIDTHS, attention_head_dim=(2, 4), use_linear_projection=True)),
    "sdxl": sdxl,
}
COMBINATIONS = [
    pytest.param(shape, name, marks=pytest.mark.slow if number % len(PIPELINES) == place else pytest.mark.soak)
    for place, shape in enumerate(PIPELINES)
    for number, name in enumerate(CONFIGURATIONS)
]


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> tuple[StableDiffusionPipeline, kg.Model]:
    pipeline = PIPELINES[request.param]()
    return pipeline, load(pipeline)


@pytest.mark.parametrize(("loaded", "name"), COMBINATIONS, indirect=["loaded"])
def test_one_frame_equals_the_image_of_the_pipeline(
    loaded: tuple[StableDiffusionPipeline, kg.Model], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, model = loaded
    config = dict(CONFIGURATIONS[name])
    v_prediction = config.get("rescale_betas_zero_snr") or model.schedule.settings["prediction_type"] == "v_prediction"
    config["prediction_type"] = "v_prediction" if v_prediction else "epsilon"
    kind = getattr(diffusers, config.pop("_class_name"))
    pipeline.scheduler = kind(**config)
    model = replace(model, schedule=Schedule.from_config(pipeline.scheduler))
    asked = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "height": SIDE, "width": SIDE}
    video = kg.generate(model, "a fish", num_frames=1, seed=SEED, **asked)
    sigmas = model.schedule.sampling_sigmas(STEPS)
    noise_at = noise.per_sigma(SEED, range(1), SHAPE)
    fresh = iter([noise_at(sigma)[:, 0] for sigma in sigmas[1:]])
    module = sys.modules[kind.__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(fresh))
    latents = noise.independent(SEED, range(1), SHAPE)[:, 0]
    gamma = {"eta": 0.3} if kind is diffusers.TCDScheduler else {}  # the scheduler's default; the pipeline's is 0
    image = pipeline("a fish", latents=latents, **gamma, **asked).images[0]
    difference = np.abs(video.frames[0].astype(int) - np.asarray(image).astype(int)).mean()
    assert difference < 1
