"""Tiny pipelines with random weights and a tokenizer of single letters, for all that loads and binds models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=77)


def text_config(width: int, layers: int = 2) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=190, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, projection_dim=width, bos_token_id=188, eos_token_id=189, pad_token_id=189,
    )  # fmt: skip


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def sd(reads: int = 32, in_channels: int = 4) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=reads, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config(reads)), tokenizer=tokenizer(), unet=unet,
        scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def seg_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet for a U-Net whose residuals are not zero; the same at every call."""
    torch.manual_seed(4)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)).eval()
    for name, weight in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(weight, std=0.2)
    return net


def sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=48, attention_head_dim=(2, 4), use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), unet=unet, scheduler=scheduler(),
        text_encoder=CLIPTextModel(text_config(16)), tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(32, 3)), tokenizer_2=tokenizer(pad="!"),
    )  # fmt: skip


@pytest.fixture
def make_sd() -> Callable[..., StableDiffusionPipeline]:
    return sd


@pytest.fixture
def sd_pipeline() -> StableDiffusionPipeline:
    return sd()


@pytest.fixture
def sdxl_pipeline() -> StableDiffusionXLPipeline:
    return sdxl()


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    sdxl().save_pretrained(folder)
    return folder
