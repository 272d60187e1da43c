"""Networks of a live pipeline with model offload are back on the CPU after a run, as after a call of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload, ModelHook, add_hook_to_module
from cases.public_layouts import sd
from cases.test_adapter_layouts import controlnet
from diffusers import StableDiffusionControlNetPipeline
from torch import nn

import kineograph as kg

pytestmark = pytest.mark.filterwarnings("ignore:.*has an effect with `control` alone:kineograph.errors.InputWarning")
SMALL = {"num_frames": 2, "num_inference_steps": 1, "guidance_scale": 1, "height": 64, "width": 64, "seed": 0}
NAMES = ("text_encoder", "controlnet", "unet", "vae")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class RecordedOffload(CpuOffload):
    """Model offload that knows whether its network would be on the device; here both are the CPU."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.on_device, self.times = False, 0

    def init_hook(self, module: nn.Module) -> nn.Module:
        self.on_device = False
        return super().init_hook(module)

    def pre_forward(self, module: nn.Module, *inputs: object, **named: object) -> tuple[object, object]:
        self.on_device, self.times = True, self.times + 1
        return super().pre_forward(module, *inputs, **named)


def offloaded() -> tuple[StableDiffusionControlNetPipeline, dict[str, RecordedOffload]]:
    parts = sd()
    pipeline = StableDiffusionControlNetPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, controlnet(parts.unet), parts.scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    hooks = {name: RecordedOffload() for name in NAMES}
    add_hook_to_module(pipeline.unet, ModelHook())
    for name, hook in hooks.items():
        add_hook_to_module(getattr(pipeline, name), hook, append=True)
    return pipeline, hooks


@pytest.mark.slow
def test_no_network_stays_on_the_device_after_a_run() -> None:
    pipeline, hooks = offloaded()
    control = {"x-map": [np.full((64, 64, 3), 100 * number, np.uint8) for number in range(2)]}
    kg.generate(kg.load(pipeline), "a", control=control, **SMALL)
    assert all(hook.times for hook in hooks.values()), "each was on it"
    assert [name for name, hook in hooks.items() if hook.on_device] == []


def test_pipeline_generates_again_after_a_run() -> None:
    pipeline, hooks = offloaded()
    first, second = (kg.generate(kg.load(pipeline), "a", **SMALL) for _ in range(2))
    assert np.array_equal(first.frames, second.frames)
    assert [name for name, hook in hooks.items() if hook.on_device] == []
