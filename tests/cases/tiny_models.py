"""Tiny pipelines with random weights, their single-file layout, and LoRA weights for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import kineograph as kg
from kineograph.errors import InputWarning

Weights = dict[str, Tensor]
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
START, END = "<|startoftext|>", "<|endoftext|>"


# --- pipelines


def tokenizer(pad: str = END) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose words are single ASCII characters."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), START, END]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=77)


def text_config(width: int, act: str = "quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=190, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=width, hidden_act=act, bos_token_id=188, eos_token_id=189, pad_token_id=189,
    )  # fmt: skip


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4, sample_size=16, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def scheduler(**settings: object) -> DDIMScheduler:
    sd15 = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    return DDIMScheduler(**(sd15 | settings))


def unet(
    cross_attention_dim: int = 16,
    widths: tuple[int, ...] = (8, 16, 16, 16),
    blocks: tuple[str, ...] = (CROSS, CROSS, CROSS, PLAIN),
    **settings: object,
) -> UNet2DConditionModel:
    """Return a U-Net of SD 1.x's layout: four levels, two layers each."""
    shape = {
        "sample_size": 8, "block_out_channels": widths, "layers_per_block": 2, "norm_num_groups": 4,
        "cross_attention_dim": cross_attention_dim, "attention_head_dim": 2, "down_block_types": blocks,
        "up_block_types": tuple(block.replace("Down", "Up") for block in reversed(blocks)),
    }  # fmt: skip
    return UNet2DConditionModel(**(shape | settings))


def sd(
    cross_attention_dim: int = 16, act: str = "quick_gelu", noise: DDIMScheduler | None = None, **settings: object
) -> StableDiffusionPipeline:
    """Return a pipeline of SD 1.x's layout, or of SD 2.x's with act="gelu"; the same weights at every call.

    settings: of the U-Net.
    """
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config(cross_attention_dim, act)),
        tokenizer=tokenizer("!" if act == "gelu" else END), unet=unet(cross_attention_dim, **settings),
        scheduler=noise or scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    """Return a pipeline of SDXL's layout; the same weights at every call."""
    torch.manual_seed(1)
    network = unet(
        40, (8, 16, 16), (PLAIN, CROSS, CROSS), transformer_layers_per_block=(1, 2, 3), use_linear_projection=True,
        attention_head_dim=(2, 4, 4), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), unet=network, scheduler=scheduler(), text_encoder=CLIPTextModel(text_config(16)),
        tokenizer=tokenizer(), text_encoder_2=CLIPTextModelWithProjection(text_config(24, "gelu")),
        tokenizer_2=tokenizer("!"),
    )  # fmt: skip


def motion_module() -> MotionAdapter:
    """Return an AnimateDiff motion module that fits `sd()`."""
    return MotionAdapter(
        block_out_channels=(8, 16, 16, 16), motion_num_attention_heads=8, motion_norm_num_groups=4,
        use_motion_mid_block=False, motion_layers_per_block=2,
    )  # fmt: skip


# --- the single-file layout of Stable Diffusion ("ldm")

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
MIDDLE = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}
VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm",
    "attn_1.to_q": "attn_1.q", "attn_1.to_k": "attn_1.k", "attn_1.to_v": "attn_1.v",
    "attn_1.to_out.0": "attn_1.proj_out",
}  # fmt: skip
OPENCLIP = {
    "encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
    "final_layer_norm": "ln_final", "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip


def ldm_unet_name(name: str, network: nn.Module) -> str:
    """Return the ldm name of a parameter or layer of a U-Net with two ResNets at a level."""
    for ours, theirs in TOP.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    side, *path = name.split(".")
    level = 0 if side == "mid_block" else int(path.pop(0))
    kind, number, *rest = path
    if kind == "resnets":
        rest[0] = RESNET[rest[0]]
    place = 3 * level + int(number)
    match side, kind:
        case "mid_block", _:
            block = f"middle_block.{MIDDLE[kind, number]}"
        case "down_blocks", "downsamplers":
            block, rest[0] = f"input_blocks.{3 * level + 3}.0", "op"
        case "down_blocks", _:
            block = f"input_blocks.{place + 1}.{int(kind == 'attentions')}"
        case _, "upsamplers":
            attentions = getattr(network.up_blocks[level], "attentions", None)
            block = f"output_blocks.{3 * level + 2}.{2 if attentions else 1}"
        case _:
            block = f"output_blocks.{place}.{int(kind == 'attentions')}"
    return ".".join((block, *rest))


def ldm_vae(network: AutoencoderKL) -> Weights:
    """Return a VAE's weights by their ldm names, in which attention is made of convolutions."""
    renamed = {_ldm_vae_name(name): weight for name, weight in network.state_dict().items()}
    return {
        name: (weight[:, :, None, None] if weight.ndim == 2 and ".attn_1." in name else weight).clone()
        for name, weight in renamed.items()
    }


def _ldm_vae_name(name: str) -> str:
    for ours, theirs in VAE.items():
        name = name.replace(ours, theirs)
    side, *path = name.split(".")
    if path[0] == "down_blocks":
        path[0] = "down"
    elif path[0] == "up_blocks":
        path[:2] = "up", str(1 - int(path[1]))  # counted from the finest of two levels
    else:
        return name
    if path[2] == "resnets":
        path[2] = "block"
    else:
        path[2:4] = [path[2].removesuffix("rs")]
    return ".".join((side, *path))


def bare(weights: Mapping[str, Tensor]) -> Weights:
    """Return a text encoder's weights without the prefix that some versions of transformers add."""
    return {name.removeprefix("text_model."): weight for name, weight in weights.items()}


def _openclip(network: nn.Module) -> Weights:
    weights = bare(network.state_dict())
    out = {}
    for name, weight in weights.items():
        if "position_ids" in name or ("self_attn" in name and "_proj." in name and "out_proj" not in name):
            continue
        if name == "text_projection.weight":
            out["text_projection"] = weight.T
            continue
        for ours, theirs in OPENCLIP.items():
            name = name.replace(ours, theirs)
        out[name] = weight
    for layer in range(network.config.num_hidden_layers):
        for end in ("weight", "bias"):
            parts = [weights[f"encoder.layers.{layer}.self_attn.{which}_proj.{end}"] for which in "qkv"]
            out[f"transformer.resblocks.{layer}.attn.in_proj_{end}"] = torch.cat(parts)
    return out


def prefixed(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    return {prefix + name: weight for name, weight in weights.items()}


def ldm(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> Weights:
    """Return a pipeline's weights in the single-file layout of Stable Diffusion 1.x, 2.x or XL."""
    network, encoder = pipeline.unet, pipeline.text_encoder
    renamed = {ldm_unet_name(name, network): weight for name, weight in network.state_dict().items()}
    out = prefixed("model.diffusion_model.", renamed) | prefixed("first_stage_model.", ldm_vae(pipeline.vae))
    clip = bare(encoder.state_dict())
    if hasattr(pipeline, "text_encoder_2"):
        out |= prefixed("conditioner.embedders.0.transformer.text_model.", clip)
        out |= prefixed("conditioner.embedders.1.model.", _openclip(pipeline.text_encoder_2))
    elif encoder.config.hidden_act == "gelu":
        out |= prefixed("cond_stage_model.model.", _openclip(encoder))
    else:
        out |= prefixed("cond_stage_model.transformer.text_model.", clip)
    return {name: weight.clone().contiguous() for name, weight in out.items()}


# --- LoRA weights


def layers(network: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of these kinds, linear layers and convolutions unless given, by their names."""
    kinds = kinds or (nn.Linear, nn.Conv2d)
    return ((name, layer) for name, layer in network.named_modules() if type(layer) in kinds)


def low_rank(layer: nn.Module, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random LoRA weights (down, up) of a linear layer or a convolution."""
    out, *rest = layer.weight.shape
    down = torch.randn(rank, *rest, generator=generator) * 0.1
    return down, torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator) * 0.1


def product(down: Tensor, up: Tensor) -> Tensor:
    """Return what LoRA weights add to a layer's weight at scale 1."""
    return (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def kohya(name: str, down: Tensor, up: Tensor, alpha: float) -> Weights:
    """Return LoRA weights under a layer's kohya name, such as lora_unet_conv_in."""
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}


@torch.no_grad()
def add(network: nn.Module, deltas: Mapping[str, Tensor], scale: float = 1.0) -> None:
    """Add to the weights of a network's layers in place."""
    for name, delta in deltas.items():
        network.get_submodule(name).weight += scale * delta


@torch.no_grad()
def unet_output(network: UNet2DConditionModel) -> Tensor:
    """Return what a U-Net predicts for fixed random latents and text."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    tokens = torch.randn(1, 7, network.config.cross_attention_dim, generator=generator)
    added = None
    if network.config.addition_embed_type:
        added = {"text_embeds": torch.randn(1, 24, generator=generator), "time_ids": torch.ones(1, 6)}
    return network(latents, torch.tensor([501.0]), tokens, added_cond_kwargs=added).sample


@torch.no_grad()
def text_output(network: nn.Module) -> Tensor:
    """Return a text encoder's last hidden states of fixed tokens."""
    return network(torch.arange(1, 20)[None]).last_hidden_state


def far(one: Tensor, other: Tensor) -> float:
    """Return the greatest absolute difference."""
    return (one - other).abs().max().item()


# --- what a loaded model holds


def load(source: Path, **options: object) -> kg.Model:
    return kg.load(source, dtype="float32", **options)


def load_lora(folder: Path, file: Path, scale: float = 1.0) -> tuple[kg.Model, list[str]]:
    """Load a model with a LoRA; return the model and the warnings about what was given."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(folder, lora=(file, scale))
    return model, [str(each.message) for each in caught if issubclass(each.category, InputWarning)]


def image_unet(model: kg.Model) -> UNet2DConditionModel:
    return model.net.image_unet


def text_networks(model: kg.Model) -> list[nn.Module]:
    return [encoder.network for encoder in model.text_encoders]


def parameterisation(model: kg.Model) -> str:
    return model.schedule.parameterisation.__name__


def tokens_of(model: kg.Model, prompt: str, **options: object) -> Tensor:
    """Return what the U-Net's cross attention reads of a prompt."""
    return model.prompt([prompt], **options).tokens
