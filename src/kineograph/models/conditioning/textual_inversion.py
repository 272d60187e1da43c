"""Textual inversion: words of one's own, learned as embeddings of the text encoder (Gal et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import tensor_files

TextualInversions = str | Path | Sequence[str | Path] | Mapping[str, str | Path]

FILES = ["learned_embeds.safetensors", "learned_embeds.bin"]


def list_textual_inversions(concepts: TextualInversions | None) -> list[tuple[str | None, str | Path]]:
    """Words with the files they are learned in; without a word, the file knows it or is named after it."""
    if concepts is None:
        return []
    if isinstance(concepts, str | Path):
        return [(None, concepts)]
    if isinstance(concepts, Mapping):
        return list(concepts.items())
    return [(None, each) for each in concepts]


def load_textual_inversion(
    encoders: Sequence[TextEncoder], word: str | None, concept: str | Path, ask: HubOptions
) -> None:
    """Teach text encoders a word.

    A concept of several embeddings becomes the words `word`, `word_1` and so on, which `text.encode` puts in for it.
    Raises InputError when the file holds no embeddings or those of another architecture, or when the word is taken;
    nothing is changed then.
    """
    file = hub.find_file(concept, FILES, ask)
    own_word, embeddings = _read(file)
    word = word or own_word
    _refuse_misfit(file, embeddings, [each.network.get_input_embeddings().embedding_dim for each in encoders])
    if any(word in each.tokenizer.get_vocab() for each in encoders):
        raise InputError(f"the model already knows the word {word!r}: choose another, as {{'<mine>': {file.name!r}}}")
    for encoder, rows in zip(encoders, embeddings, strict=True):
        words = [word, *(f"{word}_{number}" for number in range(1, len(rows)))]
        encoder.tokenizer.add_tokens(words)
        encoder.network.resize_token_embeddings(len(encoder.tokenizer), mean_resizing=False)
        table = encoder.network.get_input_embeddings().weight.data
        table[encoder.tokenizer.convert_tokens_to_ids(words)] = rows.to(table)


def _refuse_misfit(file: Path, embeddings: list[Tensor], widths: list[int]) -> None:
    if [each.shape[-1] for each in embeddings] != widths:
        raise InputError(
            f"{file} is a textual inversion for another architecture: its embeddings are "
            f"{' and '.join(str(each.shape[-1]) for each in embeddings)} wide, where this model's text encoders read "
            f"{' and '.join(map(str, widths))}"
        )


def _read(file: Path) -> tuple[str, list[Tensor]]:
    """The word, and its embeddings `n d` for each text encoder: as diffusers, A1111 and SDXL trainers write them."""
    content = tensor_files.read_content(file)
    if not isinstance(content, dict) or not content:
        raise _unlike(file, content)
    if "string_to_param" in content:
        return str(content.get("name", file.stem)), [_rows(file, *content["string_to_param"].values())]
    if {"clip_l", "clip_g"} <= set(content):
        return file.stem, [_rows(file, content["clip_l"]), _rows(file, content["clip_g"])]
    if len(content) != 1:
        raise _unlike(file, list(content))
    word, embedding = next(iter(content.items()))
    return file.stem if word == "emb_params" else word, [_rows(file, embedding)]


def _rows(file: Path, embedding: Any) -> Tensor:
    if not isinstance(embedding, Tensor) or embedding.ndim not in (1, 2):
        raise _unlike(file, embedding)
    return embedding.detach().reshape(-1, embedding.shape[-1])


def _unlike(file: Path, content: Any) -> InputError:
    what = tensor_files.preview_names(map(str, content)) if isinstance(content, list) else type(content).__name__
    return InputError(f"{file} is no textual inversion: expected one embedding under its word, got {what}")
