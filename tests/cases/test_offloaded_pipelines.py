"""Models of pipelines whose networks are offloaded: weights that are not there between the calls of a network.

Model offload is simulated by a hook between the meta device and the CPU, so that weights used at the wrong time fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import set_module_tensor_to_device
from cases.public_layouts import estimate, load, normal, sd, sdxl
from cases.test_adapter_layouts import controlnet, ip_folder, photo, pipeline_with_ip_adapter  # noqa: F401 (a fixture)
from cases.test_live_pipelines import CLOSE, CPU, SMALL
from cases.tiny_models import far
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from format_rows import loads, refused
from torch import Tensor, nn

import kineograph as kg

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*has an effect with `control` alone:kineograph.errors.InputWarning"),
]
Offload = Callable[[StableDiffusionPipeline, Path], object]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class MetaOffload(ModelHook):
    """Model offload with the meta device in the place of the CPU, and the CPU in that of an accelerator."""

    def __init__(self, before: MetaOffload | None) -> None:
        self.before, self.execution_device = before, CPU

    def init_hook(self, module: nn.Module) -> nn.Module:
        self.module, self.weights = module, {name: each.clone() for name, each in module.state_dict().items()}
        self.offload()
        return module

    def offload(self) -> None:
        for name in self.weights:
            set_module_tensor_to_device(self.module, name, "meta")

    def pre_forward(self, module: nn.Module, *inputs: object, **named: object) -> tuple[object, object]:
        if self.before is not None:
            self.before.offload()
        for name, weight in self.weights.items():
            set_module_tensor_to_device(module, name, CPU, value=weight)
        return inputs, named


def networks(pipeline: StableDiffusionPipeline) -> Sequence[nn.Module]:
    names = ("text_encoder", "text_encoder_2", "image_encoder", "controlnet", "unet", "vae")
    return [each for name in names if (each := getattr(pipeline, name, None)) is not None]


def offload_models(pipeline: StableDiffusionPipeline, work: Path) -> None:
    hook = None
    for network in networks(pipeline):
        hook = MetaOffload(hook)
        add_hook_to_module(network, hook)


def offload_layers(pipeline: StableDiffusionPipeline, work: Path) -> None:
    for network in networks(pipeline):
        accelerate.cpu_offload(network, CPU, offload_buffers=True)


def offload_layers_to_disk(pipeline: StableDiffusionPipeline, work: Path) -> None:
    for number, network in enumerate(networks(pipeline)):
        accelerate.disk_offload(network, work / str(number), CPU, offload_buffers=True)


def offload_leaf_groups(pipeline: StableDiffusionPipeline, work: Path) -> None:
    pipeline.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def offload_leaf_groups_to_disk(pipeline: StableDiffusionPipeline, work: Path) -> None:
    groups = {"offload_type": "leaf_level", "offload_to_disk_path": str(work)}
    pipeline.enable_group_offload(onload_device=CPU, offload_device=CPU, **groups)


WAYS = [
    pytest.param(offload_models, marks=loads("Live pipeline", "`enable_model_cpu_offload`", within=CLOSE)),
    pytest.param(offload_layers, marks=loads("Live pipeline", "`enable_sequential_cpu_offload`", within=CLOSE)),
    pytest.param(offload_layers_to_disk, marks=loads("Live pipeline", "accelerate's `disk_offload`", within=CLOSE)),
    pytest.param(
        offload_leaf_groups,
        marks=loads("Live pipeline", '`enable_group_offload(offload_type="leaf_level")`', within=CLOSE),
    ),
    pytest.param(
        offload_leaf_groups_to_disk,
        marks=loads("Live pipeline", "the same with `offload_to_disk_path`", within=CLOSE),
    ),
]


@pytest.mark.parametrize("offload", WAYS)
def test_offloaded_model_estimates_what_it_did(work: Path, offload: Offload, within: float) -> None:
    pipeline = sdxl()
    offload(pipeline, work)
    model = kg.load(pipeline)
    assert far(estimate(model), estimate(load(sdxl()))) < within
    assert model.device == CPU


def test_offloaded_model_generates_the_same_video(work: Path) -> None:
    pipeline = sd()
    offload_models(pipeline, work)
    videos = [
        kg.generate(model, "a", num_frames=3, seed=0, **SMALL).frames.astype(int)
        for model in (kg.load(pipeline), load(sd()))
    ]
    assert np.abs(videos[0] - videos[1]).max() <= 1


@pytest.mark.parametrize(
    ("kind", "offload"), [("plain", offload_models), ("plus", offload_layers), ("plus", offload_leaf_groups)]
)
def test_ip_adapter_of_an_offloaded_pipeline(
    ip_folder: Path,  # noqa: F811
    work: Path,
    kind: str,
    offload: Offload,
) -> None:
    def estimated(pipeline: StableDiffusionPipeline) -> Tensor:
        model = kg.load(pipeline)
        cond = replace(model.prompt(["a fish"]), image_tokens=model.image_tokens(photo()[1]))
        return model.bind(cond)(normal(1, 2, 4, 16, 16, seed=0), 5.0)

    wanted = estimated(pipeline_with_ip_adapter(ip_folder, kind))
    pipeline = pipeline_with_ip_adapter(ip_folder, kind)
    offload(pipeline, work)
    assert far(estimated(pipeline), wanted) < CLOSE


def with_controlnet() -> StableDiffusionControlNetPipeline:
    parts = sd()
    return StableDiffusionControlNetPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, controlnet(parts.unet), parts.scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip


@loads("Live pipeline", "`StableDiffusionControlNetPipeline`: its ControlNet, for `control`")
@pytest.mark.parametrize("offload", [offload_models, offload_layers])
def test_controlnet_of_an_offloaded_pipeline(work: Path, offload: Offload) -> None:
    def frames(pipeline: StableDiffusionPipeline, **control: object) -> np.ndarray:
        video = kg.generate(kg.load(pipeline), "a", num_frames=2, seed=0, **SMALL, **control)
        return video.frames.astype(int)

    maps = [np.full((64, 64, 3), 100 * number, np.uint8) for number in range(2)]
    pipeline = with_controlnet()
    offload(pipeline, work)
    wanted = frames(with_controlnet(), control={"x-map": maps})
    assert np.abs(frames(pipeline, control={"x-map": maps}) - wanted).max() <= 1
    assert np.abs(frames(with_controlnet()) - wanted).max() > 1


def test_vae_that_overflows_is_copied_without_its_hook(work: Path) -> None:
    """SDXL in float16 with model offload, as most use it."""
    pipeline, hook = sdxl(), None
    pipeline.vae.half().register_to_config(force_upcast=True)
    for network in networks(pipeline):
        _, hook = accelerate.cpu_offload_with_hook(network, CPU, hook)
    model = kg.load(pipeline)
    assert (model.vae.dtype, pipeline.vae.dtype) == (torch.float32, torch.float16)
    assert model.decode(normal(1, 1, 4, 8, 8, seed=0)).isfinite().all()
    offload_layers(parts := sdxl(), work)
    parts.vae.config.force_upcast, half = True, parts.vae.half
    half()
    with pytest.raises(kg.InputError, match="VAE overflows in float16, and offloaded in parts"):
        kg.load(parts)


CHANGES = {
    "lora": {"lora": "x.safetensors"}, "ip_adapter": {"ip_adapter": "x.bin"}, "dtype": {"dtype": "bfloat16"},
    "textual_inversion": {"textual_inversion": "x.pt"}, "device": {"device": "cpu"},
}  # fmt: skip


@refused("Live pipeline", "`lora`, `ip_adapter`, `textual_inversion`, `device`, `dtype` of an offloaded pipeline",
         "load them on the pipeline before offloading is switched on")  # fmt: skip
@pytest.mark.parametrize("option", CHANGES)
def test_change_of_an_offloaded_pipeline_is_refused(work: Path, option: str) -> None:
    pipeline, changes = sd(), CHANGES[option]
    offload_models(pipeline, work)
    for name in changes:
        if "." in changes[name]:  # a file
            changes = {name: work / changes[name]}
            changes[name].touch()
    with pytest.raises(kg.InputError, match=f"`{option}`.*do it before you switch offloading on"):
        kg.load(pipeline, **changes)


def test_offloaded_model_neither_moves_nor_takes_loras(work: Path) -> None:
    pipeline = sd()
    offload_models(pipeline, work)
    model = kg.load(pipeline)
    with pytest.raises(kg.InputError, match="cannot move"):
        model.to("cpu")
    with pytest.raises(kg.InputError, match="offloaded"):
        model.load_lora_weights("x.safetensors")


@refused("Live pipeline", '`enable_group_offload(offload_type="block_level")`',
         "the layers of a block are called one by one; `leaf_level` works")  # fmt: skip
def test_group_offload_of_blocks_is_refused() -> None:
    pipeline = sd()
    pipeline.unet.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )
    with pytest.raises(kg.InputError, match="take offload_type='leaf_level'"):
        kg.load(pipeline)


def test_controlnet_offloaded_in_groups_of_blocks_is_refused() -> None:
    pipeline = with_controlnet()
    pipeline.controlnet.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )
    with pytest.raises(kg.InputError, match="the ControlNet is offloaded in groups of blocks"):
        kg.load(pipeline)
