"""One evaluation of a U-Net in the shape of SD 1.5 or SDXL, beside a matrix product, diffusers and other programs."""

from __future__ import annotations

import copy
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor,
    CrossFrameAttnProcessor2_0,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from kineograph.errors import InputError
from kineograph.models.conditioning.condition import Condition
from kineograph.models.formats.key_map import export_tensors
from kineograph.models.formats.ldm import clip_key_map, unet_key_map, vae_key_map
from kineograph.models.memory import trim_heap
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.models.unet.frame_attention import first, own
from kineograph.models.unet.video_unet import VideoUNet
from kineograph_lab.bench.memory import measure_peak
from kineograph_lab.bench.setting import Engine, Setting
from kineograph_lab.bench.text2video_zero import FULL_SIZE, TINY, save_random_pipeline
from kineograph_lab.bench.timing import (
    Pair,
    Run,
    Variant,
    find_fastest,
    is_equal_output,
    matrix_peak,
    summarise_pairs,
    threads,
    time_pairs,
    time_run,
)

SEED, TIMESTEP, TOKENS = 0, 500.0, 77
SDXL_SIZES = (1024, 1024, 0, 0, 1024, 1024)  # original size, crop corner and target size
MAX_ROUNDING = 1e-4  # relative difference of equal output in float32
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)},
    "sdxl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "tiny-sd15": {
        "sample_size": 8, "cross_attention_dim": 16, "block_out_channels": (32, 64, 64, 64), "attention_head_dim": 4
    },
    "tiny-sdxl": {
        "sample_size": 8, "block_out_channels": (32, 64, 64), "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (2, 4, 4), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 1328,
    },
}  # fmt: skip
# Pythons of environments with the packages that the scripts of this folder need
OPTIMUM, CPP = "KINEOGRAPH_BENCH_OPTIMUM", "KINEOGRAPH_BENCH_SD_CPP"
PYTHONS = {OPTIMUM: "/var/tmp/peers/optimum/bin/python", CPP: "/var/tmp/peers/sdcpp/bin/python"}
INSTALLS = {OPTIMUM: "optimum-intel[openvino] and diffusers", CPP: "stable-diffusion-cpp-python==0.4.7"}
Attention = Literal["own", "first"]  # of frames: each to itself, or all to the first
RESULT = "seconds "  # start of a script's lines; whatever else it prints is passed over


class NetworkInputs(NamedTuple):
    """Noisy frames, text tokens and, for SDXL, the pooled text, all in float32."""

    z: Tensor
    tokens: Tensor
    pooled: Tensor | None


def measure_share_of_peak(setting: Setting, *, dtype: str = "bfloat16") -> dict[str, Any]:
    """Return a row of two frames of 512 x 512 beside a matrix product of as many operations in torch."""
    unet, inputs = load_network(_shape(setting, "sd15"), dtype), random_inputs(_shape(setting, "sd15"), 2)
    ours = evaluate_ours(unet, inputs, setting.engine)
    ours()
    flops, peak, pairs = count_flops(_shape(setting, "sd15"), 2), matrix_peak(dtype), list[Pair]()
    for _ in range(setting.repeats):
        seconds = time_run(ours)
        peak = max(peak, matrix_peak(dtype))
        pairs.append(Pair(seconds, flops / peak))
    row = summarise_pairs([Pair(each.seconds, flops / peak) for each in pairs])
    rate = flops / row["seconds"]
    return {**row, "difference": None, "dtype": dtype, "frames": 2, "tflops": rate / 1e12, "peak_tflops": peak / 1e12}


def compare_with_diffusers(shape: str, frames: int, dtype: str, setting: Setting) -> dict[str, Any]:
    """Return a row of frames beside diffusers' U-Net at its fastest; on a GPU with attention to the first frame."""
    shape, attention = _shape(setting, shape), _attention()
    unet, inputs = load_network(shape, dtype), random_inputs(shape, frames)

    def evaluate(variant: Variant) -> Run:
        return partial(time_run, evaluate_theirs(unet, inputs, variant, attention=attention))

    def measure(variant: Variant) -> float:
        run = evaluate(variant)
        run()
        return run()

    trials = find_fastest(measure, [dtype])
    tried = [{**trial.variant._asdict(), "seconds": trial.seconds} for trial in trials]
    theirs = evaluate_theirs(unet, inputs, trials[0].variant, attention=attention)
    row = _compare(unet, inputs, partial(time_run, theirs), setting, attention=attention)
    size = (shape, frames, attention)
    return {
        **row, "dtype": dtype, "frames": frames, "tried": tried,
        "memory_gb": measure_peak(run_our_network, dtype, setting.engine, *size),
        "their_memory_gb": measure_peak(run_their_network, list(trials[0].variant), *size),
    }  # fmt: skip


def run_our_network(dtype: str, engine: Any, shape: str, frames: int, attention: Attention) -> None:
    """Evaluate this library's network, in a process whose memory is measured."""
    unet = load_network(shape, dtype)
    evaluate_ours(unet, random_inputs(shape, frames), engine, attention=attention)()


def run_their_network(variant: list[Any], shape: str, frames: int, attention: Attention) -> None:
    """Evaluate diffusers' network, in a process whose memory is measured."""
    chosen = Variant(*variant)
    unet = load_network(shape, chosen.dtype)
    evaluate_theirs(unet, random_inputs(shape, frames), chosen, attention=attention)()


def compare_with_openvino(setting: Setting) -> dict[str, Any]:
    """Return a row beside OpenVINO's own route: diffusers' U-Net converted as OVStableDiffusionPipeline converts it.

    Converted with dynamic shapes, and compiled so or with fixed ones; the precision is OpenVINO's own choice.
    """
    import openvino

    shape = _shape(setting, "sd15")
    unet, inputs = load_network(shape, "bfloat16"), random_inputs(shape, 2)
    given = [inputs.z[0], torch.tensor(TIMESTEP), inputs.tokens.expand(2, -1, -1).contiguous()]
    plain = copy.deepcopy(unet).float()
    with torch.no_grad():
        converted = openvino.convert_model(
            _ReturnSample(plain), example_input=tuple(given), input=[(-1, 4, -1, -1), (), (-1, -1, -1)]
        )
    del plain
    arrays, runs = [each.numpy() for each in given], dict[str, Run]()
    for name in ("dynamic shapes", "fixed shapes"):
        if name == "fixed shapes":
            converted.reshape({port: list(each.shape) for port, each in zip(converted.inputs, given, strict=True)})
        request = openvino.Core().compile_model(converted, "CPU").create_infer_request()
        runs[name] = partial(time_run, partial(request.infer, arrays, share_inputs=True))
    del request, converted
    return _compare_fastest(unet, inputs, runs, setting)


def compare_with_optimum(setting: Setting) -> dict[str, Any]:
    """Return a row beside the U-Net of optimum-intel's OVStableDiffusionPipeline."""
    shape = _shape(setting, "sd15")
    unet, inputs = load_network(shape, "bfloat16"), random_inputs(shape, 2)
    with tempfile.TemporaryDirectory() as temporary:
        save_random_pipeline(Path(temporary), **(TINY if setting.quick else FULL_SIZE))
        with _script(OPTIMUM, "optimum_intel.py", temporary) as run:
            return _compare_fastest(unet, inputs, {"optimum-intel": run}, setting)


def compare_with_cpp(setting: Setting) -> dict[str, Any]:
    """Return a row beside a sampling step of stable-diffusion.cpp with guidance: two evaluations of an image."""
    shape = _shape(setting, "sd15")
    unet, inputs = load_network(shape, "bfloat16"), random_inputs(shape, 2)
    with tempfile.TemporaryDirectory() as temporary:
        full = load_network("sd15", "bfloat16")  # the program knows no other: with --quick only the image is small
        file = save_single_file(full, Path(temporary) / "model.safetensors")
        size = 8 * unet.config.sample_size
        with ExitStack() as stack:
            runs = {
                dtype: stack.enter_context(_script(CPP, "sd_cpp.py", file, dtype, size)) for dtype in ("f16", "q8_0")
            }
            return _compare_fastest(unet, inputs, runs, setting)


def _attention() -> Attention:
    return "first" if torch.cuda.is_available() else "own"


def _shape(setting: Setting, name: str) -> str:
    return f"tiny-{name}" if setting.quick else name


@cache
def load_network(shape: str, dtype: str) -> UNet2DConditionModel:
    """Return a U-Net with random weights, the same at each call, where and as `kineograph.load` places one."""
    place = choose_placement(dtype=dtype)
    torch.manual_seed(SEED)
    with torch.device(place.device):
        unet = UNet2DConditionModel(**SHAPES[shape])
    return unet.eval().requires_grad_(False).to(place.dtype).to(memory_format=place.memory_format)


def random_inputs(shape: str, frames: int) -> NetworkInputs:
    """Return random inputs of one video."""
    config, generator = SHAPES[shape], torch.Generator().manual_seed(SEED)
    side, width = config["sample_size"], config["cross_attention_dim"]
    z, tokens = (torch.randn(1, *size, generator=generator) for size in ((frames, 4, side, side), (TOKENS, width)))
    pooled = torch.randn(1, 1280, generator=generator) if "addition_embed_type" in config else None
    device = choose_placement().device
    return NetworkInputs(z.to(device), tokens.to(device), None if pooled is None else pooled.to(device))


def count_flops(shape: str, frames: int) -> int:
    """Return the operations of one evaluation in matrix products, convolutions and attention."""
    inputs = random_inputs(shape, frames)
    given = [inputs.z.to("meta"), torch.empty((), device="meta"), Condition(inputs.tokens.to("meta"))]
    with torch.device("meta"):
        net = VideoUNet(UNet2DConditionModel(**SHAPES[shape])).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*given, frame_attention=own)
    return counter.get_total_flops()


def evaluate_ours(
    unet: UNet2DConditionModel, inputs: NetworkInputs, engine: Engine, *, attention: Attention = "own"
) -> Callable[[], Tensor]:
    """Return a function that evaluates this library's network. attention: "first" of all frames to the first."""
    net, embedding, run_layers = VideoUNet(unet).eval(), None, None
    if inputs.pooled is not None:
        numbers = torch.tensor(SDXL_SIZES, device=inputs.pooled.device)
        embedding = torch.cat([inputs.pooled, unet.add_time_proj(numbers).flatten()[None]], dim=1).to(unet.dtype)
    condition = Condition(inputs.tokens.to(unet.dtype), embedding=embedding)
    if engine == "openvino":
        from kineograph.models.openvino.engine import shared_engine

        run_layers = shared_engine().run_unet(net)
    with torch.no_grad():
        key_values = net.project_tokens(condition)

    @torch.no_grad()
    def evaluate() -> Tensor:
        return net(
            inputs.z, TIMESTEP, condition, frame_attention=first if attention == "first" else own, key_values=key_values,
            run_layers=run_layers,
        )[0]  # fmt: skip

    return evaluate


def evaluate_theirs(
    unet: UNet2DConditionModel, inputs: NetworkInputs, variant: Variant, *, attention: Attention = "own"
) -> Callable[[], Tensor]:
    """Return a function that evaluates diffusers' network, with weights of its own."""
    order = (
        torch.channels_last if variant.channels_last else torch.contiguous_format
    )  # the latter is `from_pretrained`'s
    net = copy.deepcopy(unet).to(parse_dtype(variant.dtype)).to(memory_format=order)
    plain, fused = (
        (CrossFrameAttnProcessor(batch_size=1), CrossFrameAttnProcessor2_0(batch_size=1))
        if attention == "first"
        else (AttnProcessor(), AttnProcessor2_0())
    )
    net.set_attn_processor(plain if variant.attention == "plain" else fused)
    frames = inputs.z.shape[1]
    z, tokens = inputs.z[0].to(net.dtype), inputs.tokens.expand(frames, -1, -1).to(net.dtype)
    added = None
    if inputs.pooled is not None:
        sizes = torch.tensor([SDXL_SIZES] * frames, device=z.device)
        added = {"text_embeds": inputs.pooled.expand(frames, -1).to(net.dtype), "time_ids": sizes}

    @torch.no_grad()
    def evaluate() -> Tensor:
        with threads(variant.threads):
            return net(z, TIMESTEP, tokens, added_cond_kwargs=added).sample

    return evaluate


def save_single_file(unet: UNet2DConditionModel, file: Path) -> Path:
    """Save a checkpoint in one file, as Stable Diffusion 1.5 was released: this U-Net, a random VAE and text encoder."""
    torch.manual_seed(SEED)
    width = unet.config.cross_attention_dim
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=12, num_attention_heads=12)
    )
    vae = AutoencoderKL(
        block_out_channels=[128, 256, 512, 512], layers_per_block=2, down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    parts = {
        "model.diffusion_model.": export_tensors(unet.state_dict(), unet_key_map(unet)),
        "first_stage_model.": export_tensors(vae.state_dict(), vae_key_map(vae)),
        "cond_stage_model.transformer.text_model.": export_tensors(text.state_dict(), clip_key_map(text)),
    }
    tensors = {prefix + name: each.half() for prefix, part in parts.items() for name, each in part.items()}
    save_file(tensors, file)
    return file


class _ReturnSample(nn.Module):
    """A U-Net that returns a tensor."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=tokens).sample


def _compare(
    unet: UNet2DConditionModel, inputs: NetworkInputs, theirs: Run, setting: Setting, *, attention: Attention = "own"
) -> dict[str, Any]:
    """Return the speed of both sides, and their differences to float32 relative to the mean of its absolute values."""
    ours = evaluate_ours(unet, inputs, setting.engine, attention=attention)
    found, dtype = ours(), str(unet.dtype).removeprefix("torch.")
    by_diffusers, exact = (
        evaluate_theirs(unet, inputs, Variant(name, torch.get_num_threads()), attention=attention)().float()
        for name in (dtype, "float32")
    )
    own, their_own = (float((each - exact).abs().mean() / exact.abs().mean()) for each in (found.float(), by_diffusers))
    pairs = time_pairs(partial(time_run, ours), theirs, setting.repeats)
    return {
        **summarise_pairs(pairs), "difference": own, "their_difference": their_own,
        "equal_output": is_equal_output(own, their_own, dtype, MAX_ROUNDING),
    }  # fmt: skip


def _compare_fastest(
    unet: UNet2DConditionModel, inputs: NetworkInputs, runs: dict[str, Run], setting: Setting
) -> dict[str, Any]:
    """Return a row beside the fastest of several runs, each tried twice; the others are removed with their memory."""
    seconds = {name: min(run(), run()) for name, run in runs.items()}
    setting.log(f"seconds of each: {seconds}")
    fastest = min(seconds, key=seconds.__getitem__)
    theirs = runs[fastest]
    runs.clear()
    trim_heap()
    row = _compare(unet, inputs, theirs, setting)
    tried = [{"variant": name, "seconds": each} for name, each in sorted(seconds.items(), key=lambda pair: pair[1])]
    return {**row, "dtype": "bfloat16", "frames": 2, "tried": tried}


@contextmanager
def _script(python: str, name: str, *arguments: object) -> Iterator[Run]:
    """Yield a function that has a script of this folder evaluate once, by the Python of an environment variable.

    The script writes a line that starts with `RESULT` when it is ready, and one for every line that it reads.
    """
    command = os.environ.get(python, PYTHONS[python])
    if not Path(command).exists():
        raise InputError(f"there is no {command}: set {python} to the Python of an environment with {INSTALLS[python]}")
    script = str(Path(__file__).with_name(name))
    cores = str(torch.get_num_threads())
    with subprocess.Popen(
        [command, script, *map(str, arguments), cores], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def read() -> float:
            for line in process.stdout or ():
                if line.startswith(RESULT):
                    return float(line.removeprefix(RESULT))
            raise InputError(f"{name} ended without a result: see its messages above")

        def run() -> float:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return read()

        read()
        yield run
        process.stdin.close()
