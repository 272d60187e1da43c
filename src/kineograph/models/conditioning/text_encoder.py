"""Text encoders: prompts as tokens for the U-Net."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from kineograph.errors import InputError

TextTokens = Float[Tensor, "b n d"]
PooledText = Float[Tensor, "b e"]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer and the network that reads its tokens."""

    tokenizer: PreTrainedTokenizerBase
    network: PreTrainedModel

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of a prompt, including the start and end tokens."""
        return min(self.tokenizer.model_max_length, self.network.config.max_position_embeddings)


def encode_text(encoder: TextEncoder, texts: Sequence[str], clip_skip: int = 0) -> TextTokens:
    """Encode prompts for SD 1.x and 2.x: the normalised output of the last layer but `clip_skip`.

    Raises InputError if a prompt has more tokens than the encoder reads.
    """
    states = _run(encoder, texts, clip_skip + 1).hidden_states
    network = getattr(encoder.network, "text_model", encoder.network)
    return network.final_layer_norm(states[-1 - clip_skip])


def encode_text_sdxl(
    encoders: Sequence[TextEncoder], texts: Sequence[str], clip_skip: int = 0
) -> tuple[TextTokens, PooledText]:
    """Encode prompts for SDXL: the concatenated tokens of several encoders, and the pooled embedding of the last.

    The tokens are the output of the last layer but one, or `clip_skip` layers before that, not normalised (Podell et
    al. 2023, section 2.1). Raises InputError if a prompt has more tokens than an encoder reads.
    """
    outputs = [_run(encoder, texts, clip_skip + 2) for encoder in encoders]
    tokens = torch.cat([each.hidden_states[-2 - clip_skip] for each in outputs], dim=-1)
    return tokens, outputs[-1].text_embeds


def _run(encoder: TextEncoder, texts: Sequence[str], depth: int) -> ModelOutput:
    layers = encoder.network.config.num_hidden_layers
    if not 0 < depth <= layers + 1:
        raise InputError(
            f"`clip_skip` skips last layers of the text encoder, and it has {layers}: expected fewer, at least 0"
        )
    batch = _tokenize(encoder, texts).to(encoder.network.device)
    # models of this family were trained on padded prompts without a mask, unless their configuration has one
    mask = batch.attention_mask if getattr(encoder.network.config, "use_attention_mask", False) else None
    return encoder.network(batch.input_ids, attention_mask=mask, output_hidden_states=True)


def _tokenize(encoder: TextEncoder, texts: Sequence[str]) -> BatchEncoding:
    max_tokens, added = encoder.max_tokens, encoder.tokenizer.get_added_vocab()
    prompts = [_expand_learned_words(text, added) for text in texts]
    for text, ids in zip(texts, encoder.tokenizer(prompts, verbose=False).input_ids, strict=True):
        if len(ids) > max_tokens:
            beginning = repr(text if len(text) <= 60 else text[:57] + "...")
            raise InputError(
                f"the prompt has {len(ids) - 2} tokens and the model reads at most {max_tokens - 2}: shorten "
                f"it by about {len(ids) - max_tokens} words ({beginning})"
            )
    return encoder.tokenizer(prompts, padding="max_length", max_length=max_tokens, return_tensors="pt")


def _expand_learned_words(text: str, added: Mapping[str, int]) -> str:
    """Replace each learned word of several tokens by all of them: `<word>` by `<word> <word>_1 ...`."""
    for word in added:
        rest = takewhile(added.__contains__, (f"{word}_{number}" for number in count(1)))
        tokens = " ".join([word, *rest]).replace("\\", r"\\")  # escape backslashes for re.sub
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", tokens, text)
    return text


def unknown_words(text: str, vocabulary: frozenset[str]) -> list[str]:
    """Return the words of a text that are not in the vocabulary, each once, in order; a possessive "'s" is ignored."""
    words = re.findall(r"[^\W\d_]+", text.lower().replace("'s", ""))
    return list(dict.fromkeys(word for word in words if word not in vocabulary))
