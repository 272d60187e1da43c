"""ControlNets, IP-Adapters and textual inversions in their released layouts compute what diffusers computes.

From formats/33-adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases.public_layouts import SD15, Weights, load, normal, sd, sdxl, shake, unet_name
from cases.tiny_models import far
from diffusers import (
    ControlNetModel,
    LCMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.schedulers import scheduling_lcm
from format_rows import loads
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import kineograph as kg
from kineograph.errors import InputWarning
from kineograph.models.conditioning.condition import Condition

CLOSE = 1e-4
LATENTS = normal(1, 4, 16, 16, seed=3)
Make = Callable[[], StableDiffusionPipeline]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def output(model: kg.Model, cond: Condition) -> Tensor:
    """Return what the U-Net predicts for fixed latents."""
    return model.net(LATENTS[:, None], 501.0, cond)[:, 0]


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4))


# --- latent consistency


def test_lcm_sampling_equals_the_diffusers_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    start, *fresh = (normal(1, 4, 16, 16, seed=seed) for seed in range(5))
    pipeline = sd(LCMScheduler(**SD15))
    draws = iter(fresh)
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(draws))
    theirs = pipeline(
        "a fish", num_inference_steps=4, guidance_scale=1.0, latents=start, output_type="latent", height=128, width=128
    ).images
    model, again = load(pipeline), iter(fresh)
    sigmas = kg.sigmas.lcm_spacing(model.schedule.sigmas, 4)
    denoise = model.schedule.consistency_denoise(model.bind(model.prompt(["a fish"])))
    noisy = start[:, None] * (1 + sigmas[0] ** 2) ** 0.5
    *_, last = kg.samplers.lcm(lambda sigma: next(again)[:, None])(denoise, noisy, sigmas)
    assert far(last.x[:, 0], theirs) < 1e-3


# --- ControlNets


def original_name(name: str, network: nn.Module) -> str:
    """Return the name of a ControlNet's parameter in the original layout."""
    part, *path = name.split(".")
    match part:
        case "controlnet_cond_embedding":
            number = {"conv_in": 0, "conv_out": 14}.get(path[0]) if path[0] != "blocks" else 2 + 2 * int(path[1])
            return f"input_hint_block.{number}.{path[-1]}"
        case "controlnet_down_blocks":
            return f"zero_convs.{path[0]}.0.{path[-1]}"
        case "controlnet_mid_block":
            return f"middle_block_out.0.{path[-1]}"
        case _:
            return unet_name(name, network)


def controlnet(network: UNet2DConditionModel) -> ControlNetModel:
    torch.manual_seed(8)
    made = ControlNetModel.from_unet(network).eval()
    shake(made)
    return made


def original(network: ControlNetModel, prefix: str) -> Weights:
    return {prefix + original_name(name, network): weight.clone() for name, weight in network.state_dict().items()}


def write_safetensors(folder: Path, weights: Weights) -> Path:
    save_file(weights, folder / "control.safetensors")
    return folder / "control.safetensors"


def write_pth(folder: Path, weights: Weights) -> Path:
    torch.save({"state_dict": weights}, folder / "control.pth")
    return folder / "control.pth"


def original_row(model: str) -> pytest.MarkDecorator:
    return loads("ControlNet", f"original layout, {model} (`.safetensors`, `.pth`)", within=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_safetensors, write_pth])
@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        pytest.param(sd, "control_model.", id="sd15", marks=original_row("SD 1.x")),
        pytest.param(sd, "", id="sd15-without-prefix", marks=original_row("SD 1.x, names without `control_model.`")),
        pytest.param(sdxl, "control_model.", id="sdxl", marks=original_row("SDXL")),
    ],
)
def test_controlnet_in_the_original_layout_computes_what_diffusers_does(
    work: Path, make: Make, prefix: str, write: Callable[[Path, Weights], Path], within: float
) -> None:
    network, hint = controlnet(make().unet), uniform(1, 3, 128, 128)
    model = load(make(), controlnet={"canny": write(work, original(network, prefix))})
    control, cond = model.control("canny"), model.prompt(["a fish"])
    *residuals, middle = flattened(control(LATENTS[:, None], torch.tensor(501.0), cond, control.embed(hint)))
    added = {}
    if make is sdxl:
        time_ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
        added = {"added_cond_kwargs": {"text_embeds": cond.embedding[:, :32], "time_ids": time_ids}}
    theirs = network(LATENTS, 501, cond.tokens, controlnet_cond=hint, return_dict=False, **added)
    for got, wanted in zip([*residuals, middle], flattened(theirs), strict=True):
        assert far(got, wanted) < within


def flattened(residuals: tuple[list[Tensor], Tensor]) -> list[Tensor]:
    return [*residuals[0], residuals[1]]


def test_controlnet_folder_of_diffusers_opens(work: Path) -> None:
    controlnet(sd().unet).save_pretrained(work)
    assert load(sd(), controlnet=work).control("canny")


CONTROL_LORA = {
    "lora_controlnet": torch.zeros(1), "input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3),
    "input_blocks.1.0.in_layers.2.down": torch.zeros(2, 32, 3, 3),
}  # fmt: skip


def test_control_lora_is_refused_by_name(work: Path) -> None:
    file = write_safetensors(work, CONTROL_LORA)
    with pytest.raises(kg.InputError, match="(?i)control-?lora"):
        load(sd(), controlnet={"canny": file})


# --- T2I-Adapters


def t2i_adapter() -> T2IAdapter:
    return T2IAdapter(in_channels=3, channels=[32, 64, 64, 64], num_res_blocks=1, adapter_type="full_adapter")


def test_t2i_adapter_that_lacks_tensors_is_refused(work: Path) -> None:
    weights = {"body.0.block1.weight": torch.zeros(4, 4, 3, 3), "conv_in.weight": torch.zeros(4, 192, 3, 3)}
    with pytest.raises(kg.InputError, match="is a T2I-Adapter for another architecture, or damaged"):
        load(sd(), controlnet={"canny": write_safetensors(work, weights)})


def test_live_pipeline_with_a_t2i_adapter_is_refused_or_warned_of() -> None:
    parts = sd()
    live = StableDiffusionAdapterPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, t2i_adapter(), parts.scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            load(live)
        except kg.InputError:
            return
    assert [each for each in warned if issubclass(each.category, InputWarning)]


# --- IP-Adapters

VISION, PROJECTED, TOKENS, TEXT = 24, 20, 4, 32
BESIDE = {"subfolder": "models", "weight_name": "ip.safetensors", "image_encoder_folder": "image_encoder"}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def ip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with IP-Adapters and an image encoder, laid out like h94/IP-Adapter."""
    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("ip")
    for kind in ("plain", "plus"):
        config = CLIPVisionConfig(
            hidden_size=VISION, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28,
            patch_size=7, projection_dim=PROJECTED,
        )  # fmt: skip
        torch.manual_seed(6)
        encoder = folder / kind / "models" / "image_encoder"
        CLIPVisionModelWithProjection(config).eval().save_pretrained(encoder)
        size = {"height": 28, "width": 28}
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(encoder)
        weights = ip_attention() | {"plain": ip_projection, "plus": ip_resampler}[kind]()
        save_file(weights, folder / kind / "models" / "ip.safetensors")
        nested: dict[str, Weights] = {"image_proj": {}, "ip_adapter": {}}
        for name, weight in weights.items():
            part, _, rest = name.partition(".")
            nested[part][rest] = weight
        torch.save(nested, folder / kind / "models" / "ip.bin")
    return folder


def ip_attention() -> Weights:
    """Return keys and values of image tokens for every cross attention, numbered as in the released files."""
    network, weights = sd().unet, {}
    cross = [name for name in network.attn_processors if "attn2" in name]
    blocks = ("down_blocks", "up_blocks", "mid_block")
    for number, name in enumerate(name for block in blocks for name in cross if name.startswith(block)):
        width = network.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for seed, part in enumerate(("to_k_ip", "to_v_ip")):
            weights[f"ip_adapter.{2 * number + 1}.{part}.weight"] = 0.2 * normal(width, TEXT, seed=2 * number + seed)
    return weights


def ip_projection() -> Weights:
    """Return IP-Adapter's projection of the image embedding to four tokens."""
    shapes = {
        "proj.weight": (TOKENS * TEXT, PROJECTED), "proj.bias": (TOKENS * TEXT,), "norm.weight": (TEXT,),
        "norm.bias": (TEXT,),
    }  # fmt: skip
    return filled("image_proj.", shapes)


def ip_resampler() -> Weights:
    """Return IP-Adapter Plus's resampler: sixteen queries, four layers, one head of width 64."""
    width = 64
    shapes = {
        "latents": (1, 16, width), "proj_in.weight": (width, VISION), "proj_in.bias": (width,),
        "proj_out.weight": (TEXT, width), "proj_out.bias": (TEXT,), "norm_out.weight": (TEXT,),
        "norm_out.bias": (TEXT,),
    }  # fmt: skip
    layer = {
        "0.norm1.weight": (width,), "0.norm1.bias": (width,), "0.norm2.weight": (width,), "0.norm2.bias": (width,),
        "0.to_q.weight": (width, width), "0.to_kv.weight": (2 * width, width), "0.to_out.weight": (width, width),
        "1.0.weight": (width,), "1.0.bias": (width,), "1.1.weight": (4 * width, width),
        "1.3.weight": (width, 4 * width),
    }  # fmt: skip
    for number in range(4):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    return filled("image_proj.", shapes)


def filled(prefix: str, shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Return random weights of these shapes, those of norms around 1."""
    return {
        prefix + name: 0.2 * normal(*shape, seed=seed) + float(name.endswith("weight") and len(shape) == 1)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def photo() -> tuple[Image.Image, Tensor]:
    """Return an image, and its pixels from 0 to 1."""
    pixels = (uniform(1, 3, 28, 28)[0].permute(1, 2, 0) * 255).round().byte()
    return Image.fromarray(pixels.numpy()), pixels.permute(2, 0, 1)[None] / 255


def pipeline_with_ip_adapter(folder: Path, kind: str) -> StableDiffusionPipeline:
    pipeline = sd()
    pipeline.load_ip_adapter(str(folder / kind), low_cpu_mem_usage=False, **BESIDE)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ip.safetensors", "ip.bin"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(each, marks=loads("IP-Adapter", f"{each} (`.safetensors`, nested `.bin`)", within=CLOSE))
        for each in ("plain", "plus")
    ],
)
def test_ip_adapter_computes_what_diffusers_does(ip_folder: Path, kind: str, file: str, within: float) -> None:
    image, pixels = photo()
    pipeline = pipeline_with_ip_adapter(ip_folder, kind)
    model = load(sd(), ip_adapter=ip_folder / kind / "models" / file)
    tokens, plain = model.prompt(["a fish"]).tokens, load(sd())
    embedded = pipeline.encode_image(image, "cpu", 1, output_hidden_states=kind == "plus")
    for image_tokens, embedding in zip((model.image_tokens(pixels), model.image_tokens(None)), embedded, strict=True):
        added = {"image_embeds": [embedding[:, None]]}
        theirs = pipeline.unet(LATENTS, 501, tokens, added_cond_kwargs=added).sample
        assert far(output(model, Condition(tokens, image_tokens=image_tokens)), theirs) < within
        assert far(output(plain, Condition(tokens)), theirs) > 0.1


@loads("Live pipeline", "IP-Adapters and their scale", within=CLOSE)
def test_ip_adapter_and_scale_of_a_live_pipeline_are_kept(ip_folder: Path, within: float) -> None:
    pipeline = pipeline_with_ip_adapter(ip_folder, "plus")
    pipeline.set_ip_adapter_scale(0.4)
    model, (_, pixels) = load(pipeline), photo()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    hidden = pipeline.image_encoder((pixels - mean) / std, output_hidden_states=True).hidden_states[-2]
    tokens = model.prompt(["a fish"]).tokens
    theirs = pipeline.unet(LATENTS, 501, tokens, added_cond_kwargs={"image_embeds": [hidden[:, None]]}).sample
    assert far(output(model, Condition(tokens, image_tokens=model.image_tokens(pixels))), theirs) < within


# --- textual inversions

VECTORS = normal(3, 32, seed=4)
PARAMETER = nn.Parameter(VECTORS.clone())
A1111 = {
    "string_to_token": {"*": 265}, "string_to_param": {"*": PARAMETER}, "name": "dog7", "step": 500,
    "sd_checkpoint": None, "sd_checkpoint_name": None,
}  # fmt: skip
ORIGINAL = {
    "string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": PARAMETER}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "token"),
    [
        pytest.param(*case, marks=loads("Textual inversion", row, within=CLOSE), id=row)
        for row, case in {
            "diffusers, `.bin`": ("learned_embeds.bin", {"<cat>": VECTORS[0]}, "<cat>"),
            "diffusers, `.safetensors`": ("le.safetensors", {"<cat>": VECTORS[:1].clone()}, "<cat>"),
            "A1111, `.pt`, by the word in the file": ("dog.pt", A1111, "dog7"),
            "A1111, `.pt`, by the name of the file": ("dog9.pt", A1111, "dog9"),
            "`emb_params`, by the name of the file": ("style9.safetensors", {"emb_params": VECTORS}, "style9"),
            "the original code's `.pt`, with a ParameterDict": ("orig.pt", ORIGINAL, "orig"),
        }.items()
    ],
)
def test_textual_inversion_gives_the_tokens_that_diffusers_does(
    work: Path, name: str, content: object, token: str, within: float
) -> None:
    if name.endswith("safetensors"):
        save_file(content, work / name)
    else:
        torch.save(content, work / name)
    model, pipeline = load(sd(), textual_inversion=work / name), sd()
    is_original = content is ORIGINAL  # whose torch.nn.ParameterDict diffusers does not open
    pipeline.load_textual_inversion(VECTORS if is_original else str(work / name), token=token)
    wanted, _ = pipeline.encode_prompt(f"a {token} fish", "cpu", 1, False)
    assert far(model.prompt([f"a {token} fish"]).tokens, wanted) < within


@loads("Textual inversion", "SDXL: `clip_l` and `clip_g`", within=CLOSE)
def test_textual_inversion_of_sdxl_gives_the_tokens_that_diffusers_does(work: Path) -> None:
    small, large = VECTORS[:2, :16].clone(), VECTORS[:2].clone()
    save_file({"clip_l": small, "clip_g": large}, work / "xl7.safetensors")
    model, pipeline = load(sdxl(), textual_inversion=work / "xl7.safetensors"), sdxl()
    for vectors, number in ((small, ""), (large, "_2")):
        encoder, tokenizer = (getattr(pipeline, part + number) for part in ("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion(vectors, token="xl7", text_encoder=encoder, tokenizer=tokenizer)
    wanted, *_ = pipeline.encode_prompt(
        "a xl7 fish", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert far(model.prompt(["a xl7 fish"]).tokens, wanted) < CLOSE
