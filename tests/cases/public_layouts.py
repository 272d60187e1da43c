"""Tiny pipelines in the shapes of public checkpoints, and their weights by the names of the released single files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import kineograph as kg

Weights = dict[str, Tensor]
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = BETAS | {"steps_offset": 1}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
FACTOR = 8  # pixels of a latent cell: four levels of the VAE

# --- networks


def tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer whose words are letters and digits."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=77)


def text_encoder(
    width: int = 32, layers: int = 2, seed: int = 1, act: str = "quick_gelu", *, projected: bool = False
) -> CLIPTextModel | CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=1, projection_dim=width,
        hidden_act=act,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(scaling_factor: float = 0.18215, widths: tuple[int, ...] = (8, 8, 8, 8), layers: int = 1) -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=widths, norm_num_groups=4, latent_channels=4, layers_per_block=layers,
        down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths),
        scaling_factor=scaling_factor, sample_size=64,
    ).eval()  # fmt: skip


def unet(widths: tuple[int, ...] = (32, 64, 64, 64), **settings: object) -> UNet2DConditionModel:
    """Return a U-Net with attention at every level but the coarsest, as those of SD 1.x and 2.x."""
    return _unet(widths, [CROSS] * (len(widths) - 1) + [PLAIN], **{"cross_attention_dim": 32} | settings)


def sdxl_unet(norm_num_groups: int = 8) -> UNet2DConditionModel:
    """Return a U-Net with attention at every level but the finest, as SDXL's."""
    return _unet(
        (32, 64, 64), [PLAIN, CROSS, CROSS], layers_per_block=2, norm_num_groups=norm_num_groups,
        cross_attention_dim=48, attention_head_dim=(2, 4, 4), use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )  # fmt: skip


def _unet(widths: tuple[int, ...], blocks: Sequence[str], **settings: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    shape = {
        "sample_size": 16, "block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": 8,
        "attention_head_dim": 4, "down_block_types": blocks,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(blocks)],
    }  # fmt: skip
    return UNet2DConditionModel(**(shape | settings)).eval()


# --- pipelines


def sd(scheduler: SchedulerMixin | None = None, network: UNet2DConditionModel | None = None) -> StableDiffusionPipeline:
    """Return a pipeline of SD 1.x's layout; the same weights at every call."""
    scheduler = scheduler or DDIMScheduler(**SD15, set_alpha_to_one=False, clip_sample=False)
    return _quiet(
        StableDiffusionPipeline(
            vae(), text_encoder(), tokenizer(), network or unet(), scheduler, None, None, requires_safety_checker=False
        )
    )


def sd2(network: UNet2DConditionModel | None = None) -> StableDiffusionPipeline:
    """Return a pipeline of SD 2.1's layout: an OpenCLIP text encoder of 23 layers, linear projections, v-prediction."""
    network = network or unet(layers_per_block=2, attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
    scheduler = DDIMScheduler(**SD15, set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction")
    words = tokenizer()
    words.pad_token = "!"
    encoder = text_encoder(layers=23, act="gelu")
    return _quiet(
        StableDiffusionPipeline(vae(), encoder, words, network, scheduler, None, None, requires_safety_checker=False)
    )


def sdxl(norm_num_groups: int = 8) -> StableDiffusionXLPipeline:
    """Return a pipeline of SDXL's layout; the same weights at every call."""
    encoders = text_encoder(16), text_encoder(32, seed=5, act="gelu", projected=True)
    scheduler = EulerDiscreteScheduler(**SD15, timestep_spacing="leading")
    network = sdxl_unet(norm_num_groups)
    return _quiet(StableDiffusionXLPipeline(vae(0.13025), *encoders, tokenizer(), tokenizer(), network, scheduler))


def _quiet(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def networks(pipeline: StableDiffusionPipeline) -> list[nn.Module]:
    """Return a pipeline's networks: U-Net, VAE, text encoders."""
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


@torch.no_grad()
def shake(network: nn.Module, scale: float = 0.05, seed: int = 7) -> None:
    """Add noise to all parameters: norms and biases, which begin as ones and zeros, then differ from one another."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight += scale * torch.randn(weight.shape, generator=generator)


# --- what a loaded model computes


def load(source: object, **options: object) -> kg.Model:
    return kg.load(source, dtype="float32", device="cpu", **options)


@torch.no_grad()
def estimate(model: kg.Model) -> Tensor:
    """Return the estimate of two clean frames from fixed noisy latents."""
    latents = normal(1, 2, 4, 16, 16, seed=0)
    return model.bind(model.prompt(["a fish"]))(latents, 5.0)


def normal(*shape: int, seed: int) -> Tensor:
    """Return normal random numbers by seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the names of the single-file layout ("ldm"), for any number of levels and of ResNets at a level

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
VAE_NAMES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"mid_block\.resnets\.(\d)\.", lambda found: f"mid.block_{int(found[1]) + 1}."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"group_norm", "norm"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
]
OPENCLIP = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def unet_name(name: str, network: nn.Module) -> str:
    """Return the ldm name of a parameter of a U-Net or of a ControlNet's copy of its encoder."""
    stem, _, end = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{end}"
    side, *path = name.split(".")
    per_level = network.config.layers_per_block + 1
    if side == "mid_block":
        kind, number, *rest = path
        block = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(number)}"
    else:
        level, kind, number, *rest = path
        place = int(level) * per_level + int(number)
        if kind == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * per_level}.0.op.{end}"
        if kind == "upsamplers":
            attention = hasattr(network.up_blocks[int(level)], "attentions")
            return f"output_blocks.{(int(level) + 1) * per_level - 1}.{2 if attention else 1}.conv.{end}"
        blocks = f"input_blocks.{place + 1}" if side == "down_blocks" else f"output_blocks.{place}"
        block = f"{blocks}.{int(kind == 'attentions')}"
    if kind == "resnets":
        rest[0] = RESNET[rest[0]]
    return ".".join((block, *rest))


def _unet_weights(network: UNet2DConditionModel) -> Iterator[tuple[str, Tensor]]:
    for name, weight in network.state_dict().items():
        yield f"model.diffusion_model.{unet_name(name, network)}", weight


def _vae_weights(network: AutoencoderKL) -> Iterator[tuple[str, Tensor]]:
    finest = len(network.config.block_out_channels) - 1  # decoder levels are counted from the finest

    def level(found: re.Match) -> str:
        return f"decoder.up.{finest - int(found[1])}.{'block.' + found[3] if found[2] == 'resnets' else 'upsample'}."

    for name, weight in network.state_dict().items():
        renamed = re.sub(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", level, name)
        for pattern, by in VAE_NAMES:
            renamed = re.sub(pattern, by, renamed)
        is_attention = "attn_1" in renamed and weight.ndim == 2
        yield f"first_stage_model.{renamed}", weight[:, :, None, None] if is_attention else weight


def _bare(encoder: nn.Module) -> Weights:
    """Return a text encoder's weights without the prefix that some versions of transformers add."""
    return {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}


def _clip(encoder: CLIPTextModel, prefix: str) -> Weights:
    named = {f"{prefix}text_model.{name}": weight for name, weight in _bare(encoder).items()}
    return named | {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def _openclip(encoder: nn.Module, prefix: str, layers_behind: int = 0) -> Weights:
    """Return a text encoder's weights by OpenCLIP's names.

    layers_behind: layers after the encoder's own, which SD 2.x's files have and SD 2.x does not use.
    """
    weights = _bare(encoder)
    width, count = encoder.config.hidden_size, encoder.config.num_hidden_layers
    projection = weights.get("text_projection.weight", normal(width, width, seed=11))
    out = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"], "ln_final.bias": weights["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6), "text_projection": projection.T,
    }  # fmt: skip
    for number in range(count + layers_behind):
        ours, theirs = f"encoder.layers.{min(number, count - 1)}.", f"transformer.resblocks.{number}."
        for end in ("weight", "bias"):
            parts = [weights[f"{ours}self_attn.{each}_proj.{end}"] for each in "qkv"]
            out[f"{theirs}attn.in_proj_{end}"] = torch.cat(parts)
            out |= {f"{theirs}{to}.{end}": weights[f"{ours}{of}.{end}"] for of, to in OPENCLIP.items()}
    return {prefix + name: weight for name, weight in out.items()}


def single_file(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> Weights:
    """Return a pipeline's weights in the single-file layout of Stable Diffusion 1.x, 2.x or XL."""
    out = dict(_unet_weights(pipeline.unet)) | dict(_vae_weights(pipeline.vae))
    encoder = pipeline.text_encoder
    if hasattr(pipeline, "text_encoder_2"):
        out |= _clip(encoder, "conditioner.embedders.0.transformer.")
        out |= _openclip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    else:
        if encoder.config.hidden_act == "gelu":
            out |= _openclip(encoder, "cond_stage_model.model.", layers_behind=1)
        else:
            out |= _clip(encoder, "cond_stage_model.transformer.")
        betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000) ** 2
        signal = (1 - betas).cumprod(0)
        out |= {"betas": betas, "alphas_cumprod": signal, "sqrt_alphas_cumprod": signal.sqrt()}
    return {name: weight.detach().clone().contiguous() for name, weight in out.items()}


def with_ema(weights: Mapping[str, Tensor]) -> Weights:
    """Return the same weights, and EMA copies of other values under the names that Lightning gives them."""
    copies = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): 1.1 * weight
        for name, weight in weights.items()
        if name.startswith("model.diffusion_model.")
    }
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1)}
    return {**weights, **copies, **counters}
