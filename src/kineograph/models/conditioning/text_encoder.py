"""Text encoders: prompts as tokens for the U-Net, in chunks of as many tokens as an encoder reads together.

The chunks of a longer prompt are encoded one by one and joined, as in A1111's web interface.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from kineograph.errors import InputError
from kineograph.models.conditioning.prompt_weights import parse_weights
from kineograph.models.formats.tensor_files import as_input_error
from kineograph.models.hooks import execution_device
from kineograph.request import PromptWeights

TextTokens = Float[Tensor, "b n d"]
PooledText = Float[Tensor, "b e"]

LEGACY_END = 2  # the end token in older configurations of CLIP, which is not the tokenizer's


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer and the network that reads its tokens."""

    tokenizer: PreTrainedTokenizerBase
    network: PreTrainedModel

    @property
    def max_tokens(self) -> int:
        """Number of tokens of a chunk, including the start and end tokens."""
        return int(min(self.tokenizer.model_max_length, self.network.config.max_position_embeddings))  # some are floats


class Chunk(NamedTuple):
    """Tokens that are read together, without start and end, and their weights."""

    ids: list[int]
    weights: list[float]


class Chunks(NamedTuple):
    """The chunks of several prompts, with start, end and padding, which `mask` leaves out."""

    ids: Int[Tensor, "b k n"]
    weights: Float[Tensor, "b k n"]
    mask: Int[Tensor, "b k n"]


class Encoded(NamedTuple):
    """Encoded chunks, with their weights applied. output: of the network, for all chunks of all prompts."""

    tokens: Float[Tensor, "b k n d"]
    ids: Int[Tensor, "b k n"]
    output: ModelOutput


def encode_text(
    encoder: TextEncoder,
    texts: Sequence[str],
    clip_skip: int = 0,
    *,
    weights: PromptWeights = "off",
    num_chunks: int = 1,
) -> TextTokens:
    """Encode prompts for SD 1.x and 2.x: the normalised output of the last layer but `clip_skip`.

    weights: as for `parse_weights`. num_chunks: the least number of chunks; those beyond a prompt are empty.
    """

    def states(output: ModelOutput) -> Tensor:
        network = getattr(encoder.network, "text_model", encoder.network)
        return network.final_layer_norm(output.hidden_states[-1 - clip_skip])

    check_depth(encoder, clip_skip + 1)
    num_chunks = max(num_chunks, count_chunks([encoder], texts, weights))
    return _encode(encoder, texts, weights, num_chunks, states).tokens.flatten(1, 2)


def encode_text_sdxl(
    encoders: Sequence[TextEncoder],
    texts: Sequence[str],
    clip_skip: int = 0,
    *,
    weights: PromptWeights = "off",
    num_chunks: int = 1,
) -> tuple[TextTokens, PooledText]:
    """Encode prompts for SDXL: the concatenated tokens of several encoders, and the pooled embedding of the last.

    The tokens are the output of the last layer but one, or `clip_skip` layers before that, not normalised (Podell et
    al. 2023, section 2.1). The pooled embedding is that of the first chunk and has no weights, as in A1111.

    weights, num_chunks: as for `encode_text`.
    """

    def states(output: ModelOutput) -> Tensor:
        return output.hidden_states[-2 - clip_skip]

    for encoder in encoders:
        check_depth(encoder, clip_skip + 2)
    num_chunks = max(num_chunks, count_chunks(encoders, texts, weights))
    encoded = [_encode(each, texts, weights, num_chunks, states) for each in encoders]
    return torch.cat([each.tokens for each in encoded], dim=-1).flatten(1, 2), _pool(encoders[-1], encoded[-1])


def count_chunks(encoders: Sequence[TextEncoder], texts: Iterable[str], weights: PromptWeights) -> int:
    """Return the number of chunks of the longest prompt."""
    return max((len(split_prompt(encoder, text, weights)) for text in texts for encoder in encoders), default=1)


def split_prompt(encoder: TextEncoder, text: str, weights: PromptWeights) -> list[Chunk]:
    """Return the chunks of a prompt, at least one.

    BREAK starts another chunk, and so does a learned word of several tokens that would not fit as a whole.
    """
    size, learned = encoder.max_tokens - 2, _learned_words(encoder)
    chunks = list[Chunk]()
    for section in parse_weights(text, weights):
        chunks.append(Chunk([], []))
        for part in section:
            with as_input_error("the model's tokenizer cannot read the prompt: it is damaged"):
                tokens = encoder.tokenizer(part.text, add_special_tokens=False, verbose=False).input_ids
            for token in tokens:
                for word in _at_most(size, learned.get(token, [token])):
                    if len(chunks[-1].ids) + len(word) > size:
                        chunks.append(Chunk([], []))
                    chunks[-1].ids.extend(word)
                    chunks[-1].weights.extend([part.weight] * len(word))
    if len(chunks) > 1 and not chunks[-1].ids:
        chunks.pop()
    return chunks


def multiply(tokens: Float[Tensor, "b k n d"], factors: Float[Tensor, "b k n 1"]) -> Float[Tensor, "b k n d"]:
    """Multiply tokens by their weights, and restore the mean of each chunk, as A1111 does.

    A mean within rounding errors of 0, as of an untrained text encoder, is left as it is.
    """
    weighted = tokens.float() * factors
    before, after = (each.float().mean((-2, -1), keepdim=True) for each in (tokens, weighted))
    error = torch.finfo(tokens.dtype).eps * tokens.float().abs().mean((-2, -1), keepdim=True)
    scale = torch.where((before.abs() > error) & (after.abs() > error), before / after, 1)
    return (weighted * scale).to(tokens)


def extrapolate(
    tokens: Float[Tensor, "b k n d"], empty: Float[Tensor, "1 n d"], factors: Float[Tensor, "b k n 1"]
) -> Float[Tensor, "b k n d"]:
    """Return tokens between those of an empty prompt, at weight 0, and their own, at 1, or beyond, as ComfyUI does."""
    moved = empty.float() + (tokens.float() - empty.float()) * factors
    return torch.where(factors == 1, tokens, moved.to(tokens))


def _encode(
    encoder: TextEncoder,
    texts: Sequence[str],
    weights: PromptWeights,
    num_chunks: int,
    states: Callable[[ModelOutput], Tensor],
) -> Encoded:
    """Encode prompts. states: (output of the network) -> the states that the U-Net reads."""
    chunks = _fill(encoder, [split_prompt(encoder, text, weights) for text in texts], num_chunks)
    output = _run(encoder, chunks)
    tokens = states(output).unflatten(0, chunks.ids.shape[:2])
    if (chunks.weights != 1).any():
        factors = chunks.weights[..., None].to(tokens.device)
        if weights == "comfyui":
            empty = states(_run(encoder, _fill(encoder, [[]], 1)))
            tokens = extrapolate(tokens, empty, factors)
        else:
            tokens = multiply(tokens, factors)
    return Encoded(tokens, chunks.ids, output)


def _learned_words(encoder: TextEncoder) -> dict[int, list[int]]:
    """Return all tokens of each learned word, `word`, `word_1` and so on, by the first one."""
    added, words = encoder.tokenizer.get_added_vocab(), dict[int, list[int]]()
    for word, first in added.items():
        others = takewhile(added.__contains__, (f"{word}_{number}" for number in count(1)))
        words[first] = [first, *(added[each] for each in others)]
    return words


def _at_most(size: int, word: list[int]) -> Iterator[list[int]]:
    """Return a word of more tokens than a chunk has in several parts."""
    return (word[start : start + size] for start in range(0, len(word), size))


def _fill(encoder: TextEncoder, prompts: Sequence[Sequence[Chunk]], num_chunks: int) -> Chunks:
    """Add start, end and padding to the chunks of prompts, and empty chunks to those that have fewer."""
    tokenizer, size = encoder.tokenizer, encoder.max_tokens
    rows = [[*chunks, *[Chunk([], [])] * (num_chunks - len(chunks))] for chunks in prompts]

    def fill(values: Sequence[float], start: float, end: float, padding: float) -> list[float]:
        return [start, *values, end, *[padding] * (size - len(values) - 2)]

    start, end, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = torch.tensor([[fill(each.ids, start, end, padding) for each in row] for row in rows])
    if (largest := int(ids.max())) >= (known := encoder.network.get_input_embeddings().num_embeddings):
        raise InputError(
            f"the tokenizer has a token with the number {largest}, and the text encoder knows {known}: they are of "
            "different models, or damaged"
        )
    return Chunks(
        ids,
        torch.tensor([[fill(each.weights, 1.0, 1.0, 1.0) for each in row] for row in rows]),
        torch.tensor([[fill([1] * len(each.ids), 1, 1, 0) for each in row] for row in rows]),
    )


def check_depth(encoder: TextEncoder, depth: int) -> None:
    """Raise InputError unless the encoder has a layer, the last but `depth - 1`."""
    layers = encoder.network.config.num_hidden_layers
    if not 0 < depth <= layers + 1:
        raise InputError(
            f"`clip_skip` skips last layers of the text encoder, and it has {layers}: expected fewer, at least 0"
        )


def _run(encoder: TextEncoder, chunks: Chunks) -> ModelOutput:
    ids, mask = (each.flatten(0, 1).to(execution_device(encoder.network)) for each in (chunks.ids, chunks.mask))
    # models of this family were trained on padded prompts without a mask, unless their configuration has one
    has_mask = getattr(encoder.network.config, "use_attention_mask", False)
    return encoder.network(ids, attention_mask=mask if has_mask else None, output_hidden_states=True)


def _pool(encoder: TextEncoder, encoded: Encoded) -> PooledText:
    """Return the pooled embedding of each prompt's first chunk.

    A network of an older configuration takes the largest token for the end token, and learned words have larger ones.
    """
    ids, output, end = encoded.ids, encoded.output, encoder.tokenizer.eos_token_id
    if encoder.network.config.eos_token_id != LEGACY_END or ids.max() <= end:
        return output.text_embeds.unflatten(0, ids.shape[:2])[:, 0]
    states = output.last_hidden_state.unflatten(0, ids.shape[:2])[:, 0]
    position = (ids[:, 0] == end).int().argmax(-1).to(states.device)
    return encoder.network.text_projection(states[torch.arange(len(states), device=states.device), position])


def unknown_words(text: str, vocabulary: frozenset[str]) -> list[str]:
    """Return the words of a text that are not in the vocabulary, each once, in order; a possessive "'s" is ignored."""
    return list(dict.fromkeys(word for word in find_words(text) if word not in vocabulary))


def find_words(text: str) -> list[str]:
    """Return the words of a text in lower case; a possessive "'s" is ignored."""
    return re.findall(r"[^\W\d_]+", text.lower().replace("'s", ""))
