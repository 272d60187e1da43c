"""The tokenizer: byte-pair encoding learnt from the world's captions, with all bytes in it, so that it takes any text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from kineograph_lab.recipe.networks import WORDS

END_OF_WORD = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """CLIP's kind of tokenizer, vocabulary in CLIP's order: bytes, bytes that end a word, merges, begin and end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(captions, letters)
    entries = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges), *SPECIAL]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WORDS)


def _merges(captions: Iterable[str], letters: list[str]) -> list[tuple[str, str]]:
    usual = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = usual.normalizer, usual.pre_tokenizer
    learner.train_from_iterator(captions, BpeTrainer(
        vocab_size=2000, initial_alphabet=letters, end_of_word_suffix=END_OF_WORD, show_progress=False,
    ))  # fmt: skip
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def vocabulary(captions: Iterable[str]) -> list[str]:
    """The words seen, sorted: what the models know."""
    return sorted({word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())})


def ids(tokens: CLIPTokenizer, texts: Sequence[str]) -> np.ndarray:
    """Texts as padded tokens: int16 [n, words]."""
    taken = tokens(list(texts), padding="max_length", max_length=WORDS, truncation=True)
    return np.array(taken.input_ids, np.int16)
