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
from kineograph.models.formats import known_configurations, tensor_files

TextualInversions = str | Path | Sequence[str | Path] | Mapping[str, str | Path]

FILES = ["learned_embeds.safetensors", "learned_embeds.bin"]


def list_textual_inversions(sources: TextualInversions | None) -> list[tuple[str | None, str | Path]]:
    """Return each textual inversion as (word, source); None stands for the word in the file and the file's name."""
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

    word: None for the word in the file, as in diffusers, and the file's name, as in A1111, unless that is a word of
        the vocabulary.

    Several embeddings become the tokens `word`, `word_1` and so on, which replace the word in prompts. Raises
    InputError if the file holds no embeddings or those of another architecture, or the word is taken; nothing is
    changed then.
    """
    file = hub.find_file(source, FILES, hub_options)
    inner, embeddings = _read_embeddings(file)
    given = " and ".join(str(each.shape[-1]) for each in embeddings)
    expected = " and ".join(str(each.network.get_input_embeddings().embedding_dim) for each in encoders)
    if given != expected:
        raise InputError(
            f"{file} is a textual inversion for another architecture: its embeddings are {given} wide, where this "
            f"model's text encoders read {expected}"
        )
    given_words = [word] if word else [inner, *_file_name(file, encoders)]
    words = [each for each in given_words if each.strip() and not _taken(each, encoders)]
    if not words:
        raise InputError(
            f"the model already knows the word {word or inner!r}: choose another, as {{'<mine>': {file.name!r}}}"
        )
    for encoder, rows in zip(encoders, embeddings, strict=True):
        for each in dict.fromkeys(words):
            tokens = [each, *(f"{each}_{number}" for number in range(1, len(rows)))]
            encoder.tokenizer.add_tokens([AddedToken(token, single_word=_is_plain(token)) for token in tokens])
            encoder.network.resize_token_embeddings(len(encoder.tokenizer), mean_resizing=False)
            table = encoder.network.get_input_embeddings().weight.data
            table[encoder.tokenizer.convert_tokens_to_ids(tokens)] = rows.to(table)


def _file_name(file: Path, encoders: Sequence[TextEncoder]) -> list[str]:
    """Return the name of a file as a word, unless it says nothing, or is a word such as "cat", which prompts need."""
    return [] if file.name in FILES or _taken(f"{file.stem}</w>", encoders) else [file.stem]


def _taken(word: str, encoders: Sequence[TextEncoder]) -> bool:
    return any(word in each.tokenizer.get_vocab() for each in encoders)


def _is_plain(word: str) -> bool:
    """Return True for a word of letters at both ends, such as `style`, which is no part of other words: "lifestyle"."""
    return word[0].isalnum() and word[-1].isalnum()


def _read_embeddings(file: Path) -> tuple[str, list[Tensor]]:
    """Return the word and its embeddings `n d` for each text encoder, from layouts of diffusers, A1111 and SDXL."""
    content = tensor_files.read_content(file)
    if not isinstance(content, dict) or not content:
        raise _layout_error(file, content)
    if "string_to_param" in content:
        if not isinstance(content["string_to_param"], dict):
            raise _layout_error(file, content["string_to_param"])
        rows = list(content["string_to_param"].values())
        if len(rows) != 1:
            raise _layout_error(file, list(content["string_to_param"]))
        return str(content.get("name") or file.stem), [_rows(file, rows[0])]
    if {"clip_l", "clip_g"} <= set(content):
        return file.stem, [_rows(file, content["clip_l"]), _rows(file, content["clip_g"])]
    known_configurations.refuse_other_kind(file, content, "textual_inversion")
    if len(content) != 1:
        raise _layout_error(file, list(content))
    word, embedding = next(iter(content.items()))
    return file.stem if word == "emb_params" else word, [_rows(file, embedding)]


def _rows(file: Path, embedding: Any) -> Tensor:
    if not isinstance(embedding, Tensor) or embedding.ndim not in (1, 2) or not embedding.numel():
        raise _layout_error(file, embedding)
    return embedding.detach().reshape(-1, embedding.shape[-1])


def _layout_error(file: Path, content: Any) -> InputError:
    what = tensor_files.preview_names(map(str, content)) if isinstance(content, list) else type(content).__name__
    return InputError(f"{file} is no textual inversion: expected one embedding under its word, got {what}")
