"""What is on a live pipeline, of another library or of diffusers: LoRAs, AnimateDiff, hooks, caches, other parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import accelerate
import pytest
import torch
from cases import test_motion_modules
from cases.public_layouts import BETAS, estimate, load, normal, sd, shake
from cases.test_live_pipelines import CLOSE, CPU
from cases.tiny_models import far
from diffusers import AnimateDiffPipeline, DDIMScheduler, StableDiffusionAdapterPipeline, StableDiffusionPipeline
from diffusers import T2IAdapter as Adapter
from diffusers.hooks import FasterCacheConfig, apply_faster_cache
from format_rows import loads, refused
from peft import LoraConfig
from torch import nn

import kineograph as kg

pytestmark = pytest.mark.slow
SwitchOn = Callable[[StableDiffusionPipeline], object]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- LoRAs on the pipeline


def with_lora() -> StableDiffusionPipeline:
    pipeline = sd()
    torch.manual_seed(0)
    targets = {"unet": ["to_q", "to_k", "to_v", "conv1", "ff.net.2"], "text_encoder": ["q_proj"]}
    for name, modules in targets.items():
        config = LoraConfig(r=4, lora_alpha=8, target_modules=modules, init_lora_weights=False)
        getattr(pipeline, name).add_adapter(config, adapter_name="a")
    return pipeline


STATES: dict[str, SwitchOn] = {
    "as loaded": lambda pipeline: None,
    "`set_adapters` with a scale": lambda pipeline: pipeline.set_adapters(["a"], [0.3]),
    "`disable_lora`": lambda pipeline: pipeline.disable_lora(),
    "`fuse_lora`": lambda pipeline: pipeline.fuse_lora(lora_scale=0.5),
    "`unload_lora_weights`": lambda pipeline: pipeline.unload_lora_weights(),
}


@pytest.mark.parametrize(
    "switch_on",
    [pytest.param(each, marks=loads("Live pipeline", f"LoRAs: {name}", within=CLOSE)) for name, each in STATES.items()],
)
def test_loras_of_a_pipeline_compute_what_diffusers_does(switch_on: SwitchOn, within: float) -> None:
    pipeline = with_lora()
    switch_on(pipeline)
    model, latents = load(pipeline), normal(1, 4, 16, 16, seed=1)
    tokens, _ = pipeline.encode_prompt("a fish", "cpu", 1, False)
    cond = model.prompt(["a fish"])
    assert far(cond.tokens, tokens) < within
    assert far(model.net(latents[:, None], 501.0, cond)[:, 0], pipeline.unet(latents, 501, tokens).sample) < within


# --- AnimateDiff


def animatediff() -> AnimateDiffPipeline:
    parts, motion = test_motion_modules.base(), test_motion_modules.adapter(middle=True)
    linear = DDIMScheduler(**(BETAS | {"beta_schedule": "linear"}), steps_offset=1, clip_sample=False)
    return AnimateDiffPipeline(parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, motion, linear)


@loads("Live pipeline", "`AnimateDiffPipeline` with `enable_freeu`", within=1e-4)
def test_animatediff_with_freeu_computes_what_diffusers_does(within: float) -> None:
    pipeline = animatediff()
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    model, latents = load(pipeline), test_motion_modules.LATENTS
    cond = model.prompt(["a fish"])
    tokens = cond.tokens.repeat_interleave(latents.shape[1], 0)
    theirs = pipeline.unet(latents.transpose(1, 2), 501, tokens).sample.transpose(1, 2)
    assert far(model.net(latents, 501.0, cond), theirs) < within


def cast_layers(pipeline: AnimateDiffPipeline) -> None:
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


LOST: dict[str, tuple[SwitchOn, str]] = {
    "free_noise": (lambda pipeline: pipeline.enable_free_noise(), "`method` freenoise"),
    "free_init": (lambda pipeline: pipeline.enable_free_init(), "disable_free_init"),
    "compile": (lambda pipeline: pipeline.unet.compile(backend="eager"), "before you switch them on"),
    "casting": (cast_layers, "before you switch them on"),
    "offloading": (lambda pipeline: accelerate.cpu_offload(pipeline.unet, CPU), "before you switch them on"),
    "fused projections": (lambda pipeline: pipeline.unet.fuse_qkv_projections(), "fused projections"),
}


@refused("Live pipeline", "`AnimateDiffPipeline` with hooks, offloading, `compile`, LoRAs, FreeNoise or FreeInit",
         "its network is converted, and what is on it would be lost: load the pipeline first")  # fmt: skip
@pytest.mark.parametrize("name", LOST)
def test_what_a_conversion_would_lose_is_refused(name: str) -> None:
    pipeline, (switch_on, advice) = animatediff(), LOST[name]
    switch_on(pipeline)
    with pytest.raises(kg.InputError, match=advice):
        kg.load(pipeline)


# --- what other libraries do to a pipeline


def cache_faster(pipeline: StableDiffusionPipeline) -> None:
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 1, attention_weight_callback=lambda _: 1
    )
    apply_faster_cache(pipeline.unet, config)


def replace_forward(pipeline: StableDiffusionPipeline) -> None:
    block = pipeline.unet.down_blocks[0]
    forward = block.forward
    block.forward = lambda *inputs, **named: forward(*inputs, **named)


def replace_class(pipeline: StableDiffusionPipeline) -> None:
    block = pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    block.__class__ = type("ToMeBlock", (type(block),), {})


def compile_block(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.mid_block = torch.compile(pipeline.unet.mid_block, backend="eager")


class OtherProcessor:
    def __call__(self, attn: nn.Module, x: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        return x


UNUSED: dict[str, tuple[SwitchOn, str, str]] = {
    "caches (PyramidAttentionBroadcast, FasterCache, ...)": (cache_faster, "hook faster_cache", "the blocks' forward"),
    "a replaced `forward` (DeepCache, HyperTile)": (replace_forward, "another forward pass", "the blocks' forward"),
    "replaced blocks (token merging)": (replace_class, "by ToMeBlock", "the blocks' forward"),
    "`compile`, `compile_repeated_blocks`": (compile_block, r"model\.net\.compile\(\)", "the blocks' forward"),
    "forward hooks of blocks": (
        lambda pipeline: pipeline.unet.down_blocks[0].register_forward_hook(lambda *_: None),
        "forward hooks",
        "the blocks' forward",
    ),
    "attention processors of other libraries": (
        lambda pipeline: pipeline.unet.set_attn_processor(OtherProcessor()), "by OtherProcessor", "attention's forward",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("switch_on", "named"),
    [
        pytest.param(
            switch_on, named,
            marks=refused("Live pipeline", layout, f"it changes {what}, and the layers are called one by one here"),
        )
        for layout, (switch_on, named, what) in UNUSED.items()
    ],
)  # fmt: skip
def test_what_would_not_run_is_refused(switch_on: SwitchOn, named: str) -> None:
    pipeline = sd()
    switch_on(pipeline)
    with pytest.raises(kg.InputError, match=named):
        kg.load(pipeline)


@loads("Live pipeline", "layers compiled on their own, such as ResNet blocks", within=CLOSE)
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_compiled_layers_run(within: float) -> None:
    torch._dynamo.reset()
    graphs, plain = list[int](), estimate(load(sd()))

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable:
        graphs.append(1)
        return graph.forward

    pipeline = sd()
    pipeline.unet.mid_block.resnets[0].compile(backend=backend)
    assert far(estimate(load(pipeline)), plain) < within and graphs


def test_unknown_network_of_a_pipeline_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = sd()
    parts = pipeline.components | {"depth_estimator": nn.Linear(1, 1)}
    monkeypatch.setattr(StableDiffusionPipeline, "components", parts)
    with pytest.raises(kg.InputError, match="has a depth_estimator of the kind Linear, which is not supported"):
        kg.load(pipeline)


# --- T2I-Adapters


def with_adapters(count: int) -> StableDiffusionAdapterPipeline:
    adapters = [Adapter(in_channels=3, channels=[32, 64, 64, 64], num_res_blocks=1).eval() for _ in range(count)]
    for number, each in enumerate(adapters):
        shake(each, 0.1, seed=number)
    parts = sd()
    return StableDiffusionAdapterPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, adapters if count > 1 else adapters[0],
        parts.scheduler, None, None, requires_safety_checker=False,
    )  # fmt: skip


@loads("Live pipeline", "`StableDiffusionAdapterPipeline`: its T2I-Adapter, for `control`")
def test_adapter_of_a_pipeline_is_used_for_any_control() -> None:
    pipeline = with_adapters(1)
    with pytest.warns(kg.errors.InputWarning, match="T2IAdapter of this pipeline has an effect with `control` alone"):
        model = load(pipeline)
    assert model.control("sketch").adapter is pipeline.adapter


@refused("Live pipeline", "`MultiAdapter`, `MultiControlNetModel`", "their kinds have no names: pass them by kind")
def test_several_adapters_of_a_pipeline_need_names() -> None:
    pipeline = with_adapters(2)
    with pytest.raises(kg.InputError, match="pass them by kind of control"):
        load(pipeline)
    first, second = pipeline.adapter.adapters
    assert load(pipeline, controlnet={"a": first, "b": second}).control("b").adapter is second
