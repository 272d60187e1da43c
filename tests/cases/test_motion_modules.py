"""AnimateDiff's motion modules and motion LoRAs, in every released layout, compute what diffusers computes.

From formats/32-motion-modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cases.public_layouts import BETAS, Weights, load, normal, sd, sdxl, shake, unet
from cases.tiny_models import far
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from format_rows import loads, refused
from safetensors.torch import save_file
from torch import Tensor

import kineograph as kg

pytestmark = pytest.mark.filterwarnings("ignore:.*beta_schedule:kineograph.errors.InputWarning")
FRAMES, CLOSE = 5, 1e-4
LATENTS = normal(1, FRAMES, 4, 16, 16, seed=3)
PROJECTIONS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
RELEASED = {
    ".attn1.": ".attention_blocks.0.", ".attn2.": ".attention_blocks.1.", ".norm1.": ".norms.0.",
    ".norm2.": ".norms.1.", ".norm3.": ".ff_norm.", ".pos_embed.pe": ".attention_blocks.0.pos_encoder.pe",
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def base() -> StableDiffusionPipeline:
    return sd(network=unet(layers_per_block=2, norm_num_groups=32))


def adapter(widths: tuple[int, ...] = (32, 64, 64, 64), positions: int = 32, *, middle: bool = False) -> MotionAdapter:
    torch.manual_seed(1)
    made = MotionAdapter(
        block_out_channels=widths, motion_layers_per_block=2, motion_num_attention_heads=8,
        motion_norm_num_groups=32, motion_max_seq_length=positions, use_motion_mid_block=middle,
    ).eval()  # fmt: skip
    shake(made, 0.1, seed=5)
    return made


def released_name(name: str) -> str:
    block, _, rest = name.partition(".motion_modules.")
    number, _, rest = rest.partition(".")
    for ours, theirs in RELEASED.items():
        rest = rest.replace(ours, theirs)
    return f"{block}.motion_modules.{number}.temporal_transformer.{rest}"


def released(weights: Weights) -> Weights:
    """Return a motion module's weights by the names of the released files, which hold the positions twice."""
    out = {released_name(name): weight.clone() for name, weight in weights.items()}
    second = {
        name.replace("blocks.0.pos", "blocks.1.pos"): weight.clone()
        for name, weight in out.items()
        if name.endswith("attention_blocks.0.pos_encoder.pe")
    }
    return out | second


def output_of_diffusers(
    network: UNet2DConditionModel, motion: MotionAdapter, tokens: Tensor, added: dict[str, Tensor] | None = None
) -> Tensor:
    whole = UNetMotionModel.from_unet2d(network, motion)
    whole.load_state_dict(network.state_dict(), strict=False)  # which from_unet2d forgets for add_embedding
    tokens = tokens.repeat_interleave(FRAMES, 0)
    return whole.eval()(LATENTS.transpose(1, 2), 501, tokens, added_cond_kwargs=added).sample.transpose(1, 2)


def assert_output_is_that_of(model: kg.Model, motion: MotionAdapter) -> None:
    cond = model.prompt(["a fish"])
    wanted = output_of_diffusers(base().unet, motion, cond.tokens)
    assert far(model.net(LATENTS, 501.0, cond), wanted) <= CLOSE
    assert model.schedule.settings["beta_schedule"] == "linear"


# --- motion modules


class Version(NamedTuple):
    middle: bool
    positions: int


VERSIONS = {"v1": Version(middle=False, positions=24), "v2": Version(True, 32), "v3": Version(False, 32)}


def write_ckpt(folder: Path, motion: MotionAdapter) -> Path:
    torch.save(released(motion.state_dict()), folder / "mm.ckpt")
    return folder / "mm.ckpt"


def write_training_checkpoint(folder: Path, motion: MotionAdapter) -> Path:
    named = {f"module.{name}": weight for name, weight in released(motion.state_dict()).items()}
    torch.save({"epoch": 1, "global_step": 9, "state_dict": named}, folder / "mm.ckpt")
    return folder / "mm.ckpt"


def write_safetensors(folder: Path, motion: MotionAdapter) -> Path:
    save_file(released(motion.state_dict()), folder / "mm.safetensors")
    return folder / "mm.safetensors"


def write_diffusers_folder(folder: Path, motion: MotionAdapter) -> Path:
    motion.save_pretrained(folder / "mm")
    return folder / "mm"


Write = Callable[[Path, MotionAdapter], Path]


def motion_row(version: str) -> pytest.MarkDecorator:
    layouts = "`.ckpt`, `.safetensors`, training checkpoint, diffusers folder"
    return loads("Motion module", f"AnimateDiff {version}: {layouts}", within=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "write"),
    [
        pytest.param(
            version,
            write,
            id=f"{version}-{write.__name__}",  # each version, and each layout, once; the others by hand
            marks=[motion_row(version), *([] if version == "v2" or write is write_ckpt else [pytest.mark.soak])],
        )
        for version in VERSIONS
        for write in (write_ckpt, write_training_checkpoint, write_safetensors, write_diffusers_folder)
    ],
)
def test_motion_module_computes_what_diffusers_does(work: Path, version: str, write: Write) -> None:
    motion = adapter(positions=VERSIONS[version].positions, middle=VERSIONS[version].middle)
    assert_output_is_that_of(load(base(), motion_module=write(work, motion)), motion)


def test_live_animatediff_pipeline_computes_what_diffusers_does() -> None:
    parts, motion = base(), adapter(middle=True)
    linear = DDIMScheduler(**(BETAS | {"beta_schedule": "linear"}), steps_offset=1, clip_sample=False)
    live = AnimateDiffPipeline(parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, motion, linear)
    assert_output_is_that_of(load(live), motion)


def write_prefixed(folder: Path, motion: MotionAdapter) -> Path:
    save_file({f"unet.{name}": each for name, each in released(motion.state_dict()).items()}, folder / "mm.safetensors")
    return folder / "mm.safetensors"


def write_with_image_network(folder: Path, motion: MotionAdapter) -> Path:
    whole = UNetMotionModel.from_unet2d(base().unet, motion).state_dict()
    image = {name: weight for name, weight in whole.items() if "motion_modules" not in name}
    names = {f"module.{name}": weight for name, weight in (released(motion.state_dict()) | image).items()}
    torch.save({"epoch": 1, "state_dict": names}, folder / "mm.ckpt")
    return folder / "mm.ckpt"


def write_positions_once(folder: Path, motion: MotionAdapter) -> Path:
    named = released(motion.state_dict())
    save_file({name: each for name, each in named.items() if "blocks.1.pos" not in name}, folder / "mm.safetensors")
    return folder / "mm.safetensors"


def write_bin_folder(folder: Path, motion: MotionAdapter) -> Path:
    motion.save_pretrained(folder / "mm", safe_serialization=False)
    return folder / "mm"


def write_variant_folder(folder: Path, motion: MotionAdapter) -> Path:
    motion.save_pretrained(folder / "mm", variant="fp16")
    return folder / "mm"


RELATIVES: dict[str, Write] = {
    "names with a prefix": write_prefixed,
    "with the image network, of training": write_with_image_network,
    "positions stored once": write_positions_once,
    "diffusers folder with a `.bin` file": write_bin_folder,
    "diffusers folder with an fp16 variant": write_variant_folder,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*holds an image network:kineograph.errors.InputWarning")
@pytest.mark.parametrize(
    "write",
    [pytest.param(each, marks=loads("Motion module", name, within=CLOSE)) for name, each in RELATIVES.items()],
)
def test_other_layouts_of_motion_modules(work: Path, write: Write) -> None:
    motion = adapter(middle=True)
    assert_output_is_that_of(load(base(), motion_module=write(work, motion)), motion)


def pia(folder: Path) -> Path:
    first = {"conv_in.weight": torch.zeros(32, 9, 3, 3), "conv_in.bias": torch.zeros(32)}
    torch.save(released(adapter().state_dict()) | first, folder / "pia.ckpt")
    return folder / "pia.ckpt"


def pia_folder(folder: Path) -> Path:
    MotionAdapter((32, 64, 64, 64), motion_norm_num_groups=32, conv_in_channels=9).save_pretrained(folder)
    return folder


def lora_for_motion(folder: Path) -> Path:
    layer = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor"
    torch.save({f"{layer}.to_q_lora.down.weight": torch.ones(2, 32)}, folder / "lora.ckpt")
    return folder / "lora.ckpt"


def of_sdxl(folder: Path) -> Path:
    return write_safetensors(folder, adapter((32, 64, 64)))


OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "PIA": (pia, "PIA"),
    "PIA, diffusers folder": (pia_folder, "PIA"),
    "a motion LoRA as `motion_module`": (lora_for_motion, "a motion LoRA.*pass this as `lora`"),
    "AnimateDiff SDXL on SD 1.5": (of_sdxl, "blocks 32, 64, 64 wide, and this is .* 32, 64, 64, 64 wide"),
}


@pytest.mark.parametrize(
    ("write", "named"),
    [
        pytest.param(*case, marks=refused("Motion module", name, "named, with advice"), id=name)
        for name, case in OTHERS.items()
    ],
)
def test_module_of_another_kind_is_named(work: Path, write: Callable[[Path], Path], named: str) -> None:
    with pytest.raises(kg.InputError, match=named):
        load(base(), motion_module=write(work))


@loads("Motion module", "AnimateDiff SDXL", within=CLOSE)
def test_motion_module_of_sdxl_computes_what_diffusers_does(work: Path) -> None:
    motion = adapter((32, 64, 64))
    model = load(sdxl(norm_num_groups=32), motion_module=write_training_checkpoint(work, motion))
    pipeline = sdxl(norm_num_groups=32)
    tokens, _, pooled, _ = pipeline.encode_prompt(
        "a fish", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])}
    wanted = output_of_diffusers(pipeline.unet, motion, tokens, added)
    assert far(model.net(LATENTS, 501.0, model.prompt(["a fish"])), wanted) <= CLOSE


# --- motion LoRAs


def released_lora_names(name: str) -> tuple[str, str]:
    layer = released_name(name).removesuffix(".weight").removesuffix(".0")
    block, _, projection = layer.rpartition(".")
    return tuple(f"{block}.processor.{projection}_lora.{side}.weight" for side in ("down", "up"))


def old_diffusers_lora_names(name: str) -> tuple[str, str]:
    block, _, rest = name.removesuffix(".weight").partition(".attn")
    number, _, projection = rest.removesuffix(".0").partition(".")
    stem = f"unet.{block}.attn{number}.processor.{projection}_lora"
    return f"{stem}.down.weight", f"{stem}.up.weight"


def peft_lora_names(name: str) -> tuple[str, str]:
    stem = name.removesuffix(".weight")
    return f"unet.{stem}.lora_A.weight", f"unet.{stem}.lora_B.weight"


class MotionLora(NamedTuple):
    """A motion module's file, the LoRA's matrices (down, up) by the weights they change, and the merged module."""

    file: Path
    matrices: dict[str, tuple[Tensor, Tensor]]
    merged: Callable[[float], MotionAdapter]


@pytest.fixture(scope="module")
def motion_lora(tmp_path_factory: pytest.TempPathFactory) -> MotionLora:
    motion, generator = adapter(middle=True), torch.Generator().manual_seed(9)
    matrices = {
        name: (
            0.2 * torch.randn(2, weight.shape[1], generator=generator),
            0.2 * torch.randn(weight.shape[0], 2, generator=generator),
        )
        for name, weight in motion.state_dict().items()
        if ".attn" in name and name.endswith(PROJECTIONS)
    }

    def merged(scale: float) -> MotionAdapter:
        changed = adapter(middle=True)
        for name, (down, up) in matrices.items():
            changed.get_parameter(name).add_(scale * up @ down)
        return changed

    return MotionLora(write_ckpt(tmp_path_factory.mktemp("motion"), motion), matrices, merged)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "ending", "scale"),
    [
        pytest.param(released_lora_names, "ckpt", 1.0, id="released"),
        pytest.param(old_diffusers_lora_names, "safetensors", 1.0, id="old-diffusers"),
        pytest.param(peft_lora_names, "safetensors", 1.0, id="peft"),
        pytest.param(released_lora_names, "ckpt", 0.5, id="released-at-0.5"),
    ],
)
def test_motion_lora_computes_what_the_merged_module_does(
    work: Path, motion_lora: MotionLora, names: Callable[[str], tuple[str, str]], ending: str, scale: float
) -> None:
    lora = {}
    for name, pair in motion_lora.matrices.items():
        lora |= dict(zip(names(name), pair, strict=True))
    file = work / f"lora.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": lora}, file)
    else:
        save_file(lora, file)
    model = load(base(), motion_module=motion_lora.file, lora=(file, scale))
    assert_output_is_that_of(model, motion_lora.merged(scale))
