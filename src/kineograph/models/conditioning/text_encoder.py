"""What a text encoder makes of a prompt."""

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
    """One tokenizer and the network that reads its tokens."""

    tokenizer: PreTrainedTokenizerBase
    network: PreTrainedModel

    @property
    def limit(self) -> int:
        """How many tokens the network reads at once, the marks of start and end among them."""
        return min(self.tokenizer.model_max_length, self.network.config.max_position_embeddings)


def encode_text(encoder: TextEncoder, texts: Sequence[str], clip_skip: int = 0) -> TextTokens:
    """The tokens that SD 1.x and 2.x read: the last layer but `clip_skip`, normalised.

    Raises InputError when a text has more tokens than the encoder reads.
    """
    states = _read(encoder, texts, clip_skip + 1).hidden_states
    network = getattr(encoder.network, "text_model", encoder.network)
    return network.final_layer_norm(states[-1 - clip_skip])


def encode_text_sdxl(
    encoders: Sequence[TextEncoder], texts: Sequence[str], clip_skip: int = 0
) -> tuple[TextTokens, PooledText]:
    """The tokens of several encoders side by side, and the pooled text of the last, as SDXL reads them.

    The tokens are those of the last layer but one, and but `clip_skip` before that, not normalised
    (Podell et al. 2023, section 2.1).
    Raises InputError when a text has more tokens than an encoder reads.
    """
    read = [_read(encoder, texts, clip_skip + 2) for encoder in encoders]
    tokens = torch.cat([each.hidden_states[-2 - clip_skip] for each in read], dim=-1)
    return tokens, read[-1].text_embeds


def _read(encoder: TextEncoder, texts: Sequence[str], depth: int) -> ModelOutput:
    layers = encoder.network.config.num_hidden_layers
    if not 0 < depth <= layers + 1:
        raise InputError(f"clip_skip leaves layers of the text encoder out, and it has {layers}: expected fewer")
    batch = _tokenized(encoder, texts).to(encoder.network.device)
    # the models of this family were trained on padded texts without a mask, unless they say otherwise
    mask = batch.attention_mask if getattr(encoder.network.config, "use_attention_mask", False) else None
    return encoder.network(batch.input_ids, attention_mask=mask, output_hidden_states=True)


def _tokenized(encoder: TextEncoder, texts: Sequence[str]) -> BatchEncoding:
    whole = [_spelled_out(text, encoder.tokenizer.get_added_vocab()) for text in texts]
    for text, ids in zip(texts, encoder.tokenizer(whole, verbose=False).input_ids, strict=True):
        if len(ids) > encoder.limit:
            raise InputError(
                f"the prompt has {len(ids) - 2} tokens and the model reads at most {encoder.limit - 2}: shorten "
                f"it by about {len(ids) - encoder.limit} words ({_beginning(text)})"
            )
    return encoder.tokenizer(whole, padding="max_length", max_length=encoder.limit, return_tensors="pt")


def _spelled_out(text: str, added: Mapping[str, int]) -> str:
    """The text with every token of the concepts in it: one that is several tokens long is named by its first."""
    for word in added:
        rest = takewhile(added.__contains__, (f"{word}_{number}" for number in count(1)))
        whole = " ".join([word, *rest]).replace("\\", r"\\")  # a backslash means something in a replacement
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", whole, text)
    return text


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def unknown_words(text: str, vocabulary: frozenset[str]) -> list[str]:
    """The words of a text that are not in the vocabulary, in order, each once; whose they are does not matter."""
    words = re.findall(r"[^\W\d_]+", text.lower().replace("'s", ""))
    return list(dict.fromkeys(word for word in words if word not in vocabulary))
