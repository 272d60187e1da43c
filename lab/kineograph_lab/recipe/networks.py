"""Configurations of the pocket networks and tokenizer: Stable Diffusion's classes and layout, fewer channels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

LATENT_CHANNELS = 8
MAX_TOKENS = 48  # of a prompt, begin and end included
WIDTH = 160  # of both towers, and of the U-Net's cross-attention
SIDE, VAE_FACTOR, PATCH = 128, 8, 16


def build_vae(channels: tuple[int, ...] = (32, 32, 64, 128), latents: int = LATENT_CHANNELS) -> AutoencoderKL:
    """Return a VAE, 3 x 128 x 128 -> 8 x 16 x 16, without attention in the middle, so that it works at every size."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels, layers_per_block=1, latent_channels=latents, norm_num_groups=8,
        mid_block_add_attention=False, sample_size=SIDE,
    )  # fmt: skip


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a CLIP with two towers of four layers; the U-Net reads the text tower's last hidden state, as in SD 1.x."""
    shared_config = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": WIDTH // 32,
        "projection_dim": 128,
    }
    special_tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**shared_config, **special_tokens, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    vision = {**shared_config, "image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def build_unet(channels: tuple[int, ...] = (96, 128, 192)) -> UNet2DConditionModel:
    """Return a U-Net, 8 x 16 x 16 -> the same; as in SD, its lowest resolution has attention in the middle block only."""
    attends = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=SIDE // VAE_FACTOR, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * attends + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attends,
        layers_per_block=1, cross_attention_dim=WIDTH, norm_num_groups=8,
        attention_head_dim=tuple(c // 32 for c in channels),  # the number of heads, in spite of the argument's name
    )  # fmt: skip


END_OF_WORD = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Return a tokenizer like CLIP's: byte-pair encoding of these captions, which encodes any text.

    The vocabulary is in CLIP's order: bytes, bytes that end a word, merges, begin and end.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _train_merges(captions, letters)
    entries = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges), *SPECIAL]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _train_merges(captions: Iterable[str], letters: list[str]) -> list[tuple[str, str]]:
    clip_tokenizer = CLIPTokenizer().backend_tokenizer
    trainee = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    trainee.normalizer, trainee.pre_tokenizer = clip_tokenizer.normalizer, clip_tokenizer.pre_tokenizer
    trainee.train_from_iterator(captions, BpeTrainer(
        vocab_size=2000, initial_alphabet=letters, end_of_word_suffix=END_OF_WORD, show_progress=False,
    ))  # fmt: skip
    return [tuple(pair) for pair in json.loads(trainee.to_str())["model"]["merges"]]


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> np.ndarray:
    """Return texts as padded tokens, int16 [n, tokens]."""
    encoded = tokenizer(list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True)
    return np.array(encoded.input_ids, np.int16)
