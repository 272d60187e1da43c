"""Features that are switched on on a live diffusers pipeline work in the model loaded from it, or are refused.

From formats/15-live-pipeline. Hooks move weights with the CPU as the accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.hooks import CpuOffload
from cases.public_layouts import estimate, load, normal, sd, unet
from cases.tiny_models import far
from diffusers import StableDiffusionPipeline
from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
from diffusers.hooks.group_offloading import GroupOffloadingHook
from torch import Tensor, nn

import kineograph as kg
from kineograph.models.conditioning.condition import Condition

CPU, CLOSE = torch.device("cpu"), 1e-5
SMALL = {"num_inference_steps": 2, "height": 64, "width": 64}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def plain() -> Tensor:
    """The estimate of the pipeline on which nothing is switched on."""
    return estimate(load(sd()))


def images_of_diffusers(pipeline: StableDiffusionPipeline) -> None:
    pipeline("a", output_type="latent", generator=torch.Generator().manual_seed(0), **SMALL)


def estimate_unless_refused(pipeline: StableDiffusionPipeline) -> Tensor | None:
    try:
        return estimate(kg.load(pipeline))
    except kg.InputError:
        return None


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], list[str]]:
    """A function that records the kinds of modules whose hook of a class runs before their forward."""

    def record(hook: type) -> list[str]:
        kinds, before = list[str](), hook.pre_forward

        def recorded(self: object, module: nn.Module, *inputs: object, **named: object) -> object:
            kinds.append(type(module).__name__)
            return before(self, module, *inputs, **named)

        monkeypatch.setattr(hook, "pre_forward", recorded)
        return kinds

    return record


# --- offloading


def test_model_cpu_offload_moves_every_network_to_the_accelerator(watch: Callable[[type], list[str]]) -> None:
    pipeline, hook, kinds = sd(), None, watch(CpuOffload)
    for network in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        _, hook = accelerate.cpu_offload_with_hook(network, CPU, prev_module_hook=hook)
    images_of_diffusers(pipeline)
    moved = set(kinds)
    kinds.clear()
    try:
        model = kg.load(pipeline)
    except kg.InputError:
        return
    kg.generate(model, "a", num_frames=2, seed=0, **SMALL)
    assert moved == {"CLIPTextModel", "UNet2DConditionModel"}
    assert moved <= set(kinds)


def test_sequential_cpu_offload_works_or_is_refused(plain: Tensor) -> None:
    pipeline = sd()
    for network in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        accelerate.cpu_offload(network, CPU, offload_buffers=False)
    estimated = estimate_unless_refused(pipeline)
    assert estimated is None or far(estimated, plain) < CLOSE


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_onloads_every_group(
    plain: Tensor, work: Path, watch: Callable[[type], list[str]], kind: str, place: str
) -> None:
    pipeline, kinds = sd(), watch(GroupOffloadingHook)
    settings = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    if place == "disk":
        settings["offload_to_disk_path"] = str(work)
    pipeline.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **settings)
    images_of_diffusers(pipeline)
    onloaded = set(kinds)
    kinds.clear()
    estimated = estimate_unless_refused(pipeline)
    if estimated is not None:
        assert onloaded and onloaded <= set(kinds)
        assert far(estimated, plain) < CLOSE


# --- compiling


def compile_whole(pipeline: StableDiffusionPipeline, backend: Callable) -> None:
    pipeline.unet.compile(backend=backend)


def wrap_compiled(pipeline: StableDiffusionPipeline, backend: Callable) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend=backend)


def compile_blocks(pipeline: StableDiffusionPipeline, backend: Callable) -> None:
    pipeline.unet.compile_repeated_blocks(backend=backend)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize(
    "switch_on",
    [
        pytest.param(compile_whole, id="unet.compile"),
        pytest.param(wrap_compiled, id="torch.compile"),
        pytest.param(compile_blocks, id="compile_repeated_blocks"),
    ],
)
def test_compiled_unet_stays_compiled_or_is_refused(
    switch_on: Callable[[StableDiffusionPipeline, Callable], None],
) -> None:
    torch._dynamo.reset()
    graphs = list[torch.fx.GraphModule]()

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    small = {"attention_head_dim": 2, "norm_num_groups": 4}
    pipeline, unchanged = (sd(network=unet((8, 8), **small)) for _ in range(2))
    switch_on(pipeline, backend)
    estimated = estimate_unless_refused(pipeline)
    if estimated is not None:
        assert graphs
        assert far(estimated, estimate(load(unchanged))) < CLOSE


# --- attention and caches


def test_pyramid_attention_broadcast_reuses_attention_or_is_refused() -> None:
    pipeline, plain = sd(), load(sd())
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, cross_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    apply_pyramid_attention_broadcast(pipeline.unet, config)
    latents = normal(1, 2, 4, 16, 16, seed=0)
    try:
        model = kg.load(pipeline)
    except kg.InputError:
        return
    denoise = model.bind(model.prompt(["a fish"]))
    denoise(latents, 5.0)
    assert not torch.allclose(denoise(-latents, 5.0), plain.bind(plain.prompt(["a fish"]))(-latents, 5.0), atol=1e-5)


def choose_attention_backend(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.set_attention_backend("_native_math")


def fuse_projections(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.fuse_qkv_projections()


def slice_attention(pipeline: StableDiffusionPipeline) -> None:
    pipeline.enable_attention_slicing(1)


@pytest.mark.filterwarnings("ignore:Attention backends are an experimental feature")
@pytest.mark.parametrize("switch_on", [choose_attention_backend, fuse_projections, slice_attention])
def test_other_ways_to_compute_attention_do_not_change_the_estimate(
    plain: Tensor, switch_on: Callable[[StableDiffusionPipeline], None]
) -> None:
    pipeline = sd()
    switch_on(pipeline)
    assert far(estimate(kg.load(pipeline)), plain) < CLOSE


# --- what changes the network's output


def cast_layerwise(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def free_u(pipeline: StableDiffusionPipeline) -> None:
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


@pytest.mark.parametrize("switch_on", [cast_layerwise, free_u])
def test_output_equals_that_of_the_unet_with(
    plain: Tensor, switch_on: Callable[[StableDiffusionPipeline], None]
) -> None:
    pipeline = sd()
    switch_on(pipeline)
    latents, tokens = normal(1, 4, 16, 16, seed=1), normal(1, 77, 32, seed=2)
    model = kg.load(pipeline)
    output = model.net(latents[:, None], 500.0, Condition(tokens))[:, 0]
    assert far(output, pipeline.unet(latents, 500, tokens).sample) < CLOSE
    assert far(estimate(model), plain) > 1e-2


def test_layerwise_casting_keeps_weights_in_fp8_and_the_pipeline_as_it_was() -> None:
    pipeline = sd()
    cast_layerwise(pipeline)
    inputs = normal(1, 4, 16, 16, seed=1), 500, normal(1, 77, 32, seed=2)
    before = pipeline.unet(*inputs).sample
    model = kg.load(pipeline)
    assert pipeline.unet.down_blocks[0].resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    estimate(model)
    assert torch.equal(pipeline.unet(*inputs).sample, before)


def test_vae_decodes_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, tiled = sd(), []
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_latent_min_size, pipeline.vae.tile_sample_min_size = 4, 32
    decode = pipeline.vae.tiled_decode
    monkeypatch.setattr(
        pipeline.vae, "tiled_decode", lambda *given, **named: tiled.append(1) or decode(*given, **named)
    )
    kg.load(pipeline).decode(normal(1, 1, 4, 8, 8, seed=0))
    assert tiled == [1]
