"""Textual inversion: new words whose text embeddings are learned (Gal et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AddedToken

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import tensor_files

TextualInversions = str | Path | Sequence[str | Path] | Mapping[str, str | Path]

FILES = ["learned_embeds.safetensors", "learned_embeds.bin"]


def list_textual_inversions(sources: TextualInversions | None) -> list[tuple[str | None, str | Path]]:
    """Return each textual inversion as (word, source); None stands for the word in the file or the file's name."""
    if sources is None:
        return []
    if isinstance(sources, str | Path):
        return [(None, sources)]
    if isinstance(sources, Mapping):
        return list(sources.items())
    return [(None, each) for each in sources]


def load_textual_inversion(
    encoders: Sequence[TextEncoder], word: str | None, source: str | Path, hub_options: HubOptions
) -> None:
    """Add a textual inversion to text encoders.

    Several embeddings become the tokens `word`, `word_1` and so on, which replace the word in prompts. Raises
    InputError if the file holds no embeddings or those of another architecture, or the word is taken; nothing is
    changed then.
    """
    file = hub.find_file(source, FILES, hub_options)
    default_word, embeddings = _read_embeddings(file)
    word = word or default_word
    given = " and ".join(str(each.shape[-1]) for each in embeddings)
    expected = " and ".join(str(each.network.get_input_embeddings().embedding_dim) for each in encoders)
    if given != expected:
        raise InputError(
            f"{file} is a textual inversion for another architecture: its embeddings are {given} wide, where this "
            f"model's text encoders read {expected}"
        )
    if any(word in each.tokenizer.get_vocab() for each in encoders):
        raise InputError(f"the model already knows the word {word!r}: choose another, as {{'<mine>': {file.name!r}}}")
    for encoder, rows in zip(encoders, embeddings, strict=True):
        tokens = [word, *(f"{word}_{number}" for number in range(1, len(rows)))]
        encoder.tokenizer.add_tokens([AddedToken(each, single_word=_is_plain(each)) for each in tokens])
        encoder.network.resize_token_embeddings(len(encoder.tokenizer), mean_resizing=False)
        table = encoder.network.get_input_embeddings().weight.data
        table[encoder.tokenizer.convert_tokens_to_ids(tokens)] = rows.to(table)


def _is_plain(word: str) -> bool:
    """Return True for a word of letters at both ends, such as `style`, which is no part of other words: "lifestyle"."""
    return word[0].isalnum() and word[-1].isalnum()


def _read_embeddings(file: Path) -> tuple[str, list[Tensor]]:
    """Return the word and its embeddings `n d` for each text encoder, from layouts of diffusers, A1111 and SDXL."""
    content = tensor_files.read_content(file)
    if not isinstance(content, dict) or not content:
        raise _layout_error(file, content)
    if "string_to_param" in content:
        return str(content.get("name", file.stem)), [_rows(file, *content["string_to_param"].values())]
    if {"clip_l", "clip_g"} <= set(content):
        return file.stem, [_rows(file, content["clip_l"]), _rows(file, content["clip_g"])]
    if len(content) != 1:
        raise _layout_error(file, list(content))
    word, embedding = next(iter(content.items()))
    return file.stem if word == "emb_params" else word, [_rows(file, embedding)]


def _rows(file: Path, embedding: Any) -> Tensor:
    if not isinstance(embedding, Tensor) or embedding.ndim not in (1, 2):
        raise _layout_error(file, embedding)
    return embedding.detach().reshape(-1, embedding.shape[-1])


def _layout_error(file: Path, content: Any) -> InputError:
    what = tensor_files.preview_names(map(str, content)) if isinstance(content, list) else type(content).__name__
    return InputError(f"{file} is no textual inversion: expected one embedding under its word, got {what}")
