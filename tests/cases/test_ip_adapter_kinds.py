"""Kinds of IP-Adapters and their image encoders: loaded, or refused by name before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases.public_layouts import Weights, load, normal, sd, sdxl
from cases.test_adapter_layouts import (
    CLIP_MEAN,
    CLIP_STD,
    CLOSE,
    LATENTS,
    PROJECTED,
    TEXT,
    TOKENS,
    VISION,
    filled,
    ip_attention,
    ip_projection,
    ip_resampler,
    output,
    photo,
)
from cases.tiny_models import far
from diffusers import StableDiffusionPipeline
from format_rows import loads, refused
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import kineograph as kg
from kineograph.models.conditioning.condition import Condition

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def save_encoder(folder: Path, width: int = VISION, projection: int = PROJECTED) -> CLIPVisionModelWithProjection:
    torch.manual_seed(6)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28,
        patch_size=7, projection_dim=projection,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(config).eval()
    encoder.save_pretrained(folder / "image_encoder")
    return encoder


def full_projection() -> Weights:
    """Return the projection of ip-adapter-full-face: an MLP on every patch."""
    shapes = {
        "proj.0.weight": (VISION, VISION), "proj.0.bias": (VISION,), "proj.2.weight": (TEXT, VISION),
        "proj.2.bias": (TEXT,), "proj.3.weight": (TEXT,), "proj.3.bias": (TEXT,),
    }  # fmt: skip
    return filled("image_proj.", shapes)


def face_id() -> Weights:
    shapes = {"proj.0.weight": (512, 512), "proj.0.bias": (512,), "proj.2.weight": (TOKENS * TEXT, 512)}
    return filled("image_proj.", shapes | {"proj.2.bias": (TOKENS * TEXT,), "norm.weight": (TEXT,)})


def face_id_plus() -> Weights:
    renamed = {
        name.replace("image_proj.", "image_proj.perceiver_resampler."): each for name, each in ip_resampler().items()
    }
    return renamed | face_id()


def face_id_lora() -> Weights:
    return ip_projection() | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(4, 8)}


def instant_id() -> Weights:
    return ip_resampler() | {"image_proj.proj_in.weight": normal(64, 512, seed=0)}


def write(folder: Path, projection: Weights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(ip_attention() | projection, folder / "ip.safetensors")
    return folder / "ip.safetensors"


def pipeline_with(file: Path) -> StableDiffusionPipeline:
    pipeline = sd()
    pipeline.load_ip_adapter(
        str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder="image_encoder",
        low_cpu_mem_usage=False,
    )  # fmt: skip
    return pipeline


@pytest.mark.filterwarnings("ignore")  # of diffusers, which finds no feature extractor
@loads("IP-Adapter", "full (full-face)", within=CLOSE)
def test_full_ip_adapter_computes_what_diffusers_does(work: Path, within: float) -> None:
    encoder, file = save_encoder(work), write(work, full_projection())
    model, pipeline, (_, pixels) = load(sd(), ip_adapter=file), pipeline_with(file), photo()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    hidden = encoder((pixels - mean) / std, output_hidden_states=True).hidden_states[-2]
    tokens = model.prompt(["a fish"]).tokens
    theirs = pipeline.unet(LATENTS, 501, tokens, added_cond_kwargs={"image_embeds": [hidden[:, None]]}).sample
    assert far(output(model, Condition(tokens, image_tokens=model.image_tokens(pixels))), theirs) < within


def unchanged(pipeline: StableDiffusionPipeline) -> bool:
    return pipeline.unet.encoder_hid_proj is None and not any(
        "IPAdapter" in type(each).__name__ for each in pipeline.unet.attn_processors.values()
    )


FACES: dict[str, Callable[[], Weights]] = {
    "FaceID": face_id, "FaceID plus": face_id_plus, "FaceID with its LoRA": face_id_lora,
}  # fmt: skip


@pytest.mark.parametrize(
    "projection",
    [
        pytest.param(each, marks=refused("IP-Adapter", name, "it reads the embedding of a face by insightface"))
        for name, each in FACES.items()
    ],
)
def test_face_id_is_refused_by_name(work: Path, projection: Callable[[], Weights]) -> None:
    save_encoder(work)
    pipeline = sd()
    with pytest.raises(kg.InputError, match="FaceID"):
        load(pipeline, ip_adapter=write(work, projection()))
    assert unchanged(pipeline)


@refused("IP-Adapter", "InstantID", "it reads the embedding of a face by insightface")
def test_instant_id_is_refused(work: Path) -> None:
    save_encoder(work)
    with pytest.raises(kg.InputError, match=f"hidden_size 512, and the one beside it has {VISION}.*insightface"):
        load(sd(), ip_adapter=write(work, instant_id()))


@refused("IP-Adapter", "another image encoder beside it", "the line says which widths it reads and finds")
@pytest.mark.parametrize(
    ("projection", "named"),
    [(ip_projection, f"projection_dim {PROJECTED}, .* has 12"), (ip_resampler, f"hidden_size {VISION}, .* has 16")],
)
def test_wrong_encoder_is_refused(work: Path, projection: Callable[[], Weights], named: str) -> None:
    save_encoder(work, 16, 12)
    pipeline = sd()
    with pytest.raises(kg.InputError, match=named):
        load(pipeline, ip_adapter=write(work, projection()))
    assert unchanged(pipeline)


@loads("IP-Adapter", "two image encoders near it, as in h94/IP-Adapter: the one that fits")
def test_encoder_that_fits_is_taken(work: Path) -> None:
    save_encoder(work / "sdxl_models", 16, 12)
    save_encoder(work / "models")
    model = load(sd(), ip_adapter=write(work / "sdxl_models", ip_resampler()))
    assert model.image_encoder is not None and model.image_encoder.network.config.hidden_size == VISION


@refused("IP-Adapter", "of another architecture", "its keys and values do not fit the U-Net's layers")
def test_ip_adapter_of_another_architecture_is_refused(work: Path) -> None:
    save_encoder(work)
    pipeline = sdxl()
    with pytest.raises(kg.InputError, match="does not fit the image network, whose tokens are 48 wide"):
        load(pipeline, ip_adapter=write(work, ip_projection()))
    assert unchanged(pipeline)


def test_encoder_that_lacks_tensors_is_refused(work: Path) -> None:
    save_encoder(work)
    weights = CLIPVisionModelWithProjection.from_pretrained(work / "image_encoder").state_dict()
    kept = {name: each.contiguous() for name, each in weights.items() if "layers.1" not in name}
    save_file(kept, work / "image_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(kg.InputError, match="image_encoder.*(no weights for|lacks)"):
        load(sd(), ip_adapter=write(work, ip_projection()))


@pytest.mark.filterwarnings("ignore")  # of diffusers
@refused("Live pipeline", "an IP-Adapter without its image encoder", "nothing makes image tokens")
def test_live_ip_adapter_without_an_encoder_is_refused(work: Path) -> None:
    save_encoder(work)
    pipeline = pipeline_with(write(work, ip_projection()))
    pipeline.register_modules(image_encoder=None)
    with pytest.raises(kg.InputError, match="has no image encoder"):
        load(pipeline)


@pytest.mark.filterwarnings("ignore")  # of diffusers
@refused("Live pipeline", "an IP-Adapter FaceID", "it reads the embedding of a face by insightface")
def test_live_face_id_is_refused(work: Path) -> None:
    save_encoder(work)
    with pytest.raises(kg.InputError, match="FaceID"):
        load(pipeline_with(write(work, face_id() | {"image_proj.norm.bias": torch.zeros(TEXT)})))
