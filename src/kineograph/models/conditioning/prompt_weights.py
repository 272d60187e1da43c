r"""Weights in prompts, as in A1111's web interface and ComfyUI: `(word:1.3)`, `(word)`, `[word]`, `\(`, BREAK.

This module reads text alone; `text_encoder` applies the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from kineograph.errors import InputError, shown
from kineograph.request import PromptWeights

FACTORS = {"(": 1.1, "[": 1 / 1.1}  # of (word) and [word]
MAX_WEIGHT = 1000
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
MARKS = {
    "a1111": re.compile(rf"(?P<escaped>\\[()\[\]\\])|:\s*(?P<weight>{NUMBER})\s*\)|[()\[\]]|(?P<break>\bBREAK\b)"),
    "comfyui": re.compile(rf"(?P<escaped>\\[()])|:\s*(?P<weight>{NUMBER})\s*\)|[()]"),
}
SCALES = ("te", "unet")  # of a LoRA in a prompt, in the order of A1111
NETWORK = re.compile(r"<(?P<kind>lora|lyco|hypernet):(?P<name>[^:<>]+)(?P<rest>(?::[^<>]*)?)>")
SCHEDULED = re.compile(rf"(?<!\\)\[[^\[\]]*:\s*{NUMBER}\s*\]|(?<!\\)\[[^\[\]]*\|[^\[\]]*\]")
OTHER_SYNTAX = {  # marks of other programs -> what they mean there
    re.compile(r"(?=.*\b[a-z]+\b).*\bAND\b", re.DOTALL): "AND, which combines prompts in A1111",
    re.compile(r"\{[^{}]*\|[^{}]*\}"): "{a|b}, a random choice in other programs",
    re.compile(r"\b__[\w/*-]+__\b"): "__name__, a wildcard of other programs",
    re.compile(r"\bembedding:\w"): "embedding:name, a textual inversion in ComfyUI: write its word alone",
    re.compile(r"(\w\w|\))(\+\++|--+)(?=[\s,.)]|$)"): "word++, a weight in compel: write (word:1.21)",
}


class WeightedText(NamedTuple):
    """A part of a prompt, and the weight of its tokens."""

    text: str
    weight: float


class _Factor(NamedTuple):
    """Factor of the text in brackets. absolute: it is the weight, whatever is around the brackets."""

    value: float
    absolute: bool = False


# texts, numbers of brackets where they open and again where they close, and None for BREAK
_Tokens = list[str | int | None]


def parse_weights(prompt: str, weights: PromptWeights = "a1111") -> list[list[WeightedText]]:
    r"""Return the parts of a prompt with their weights, in one list for each section between BREAKs.

    a1111: `(word)` is a factor of 1.1, `[word]` one of 1/1.1 and `(word:1.3)` one of 1.3; nested factors multiply, an
    unclosed bracket lasts to the end, and `\` escapes a bracket. comfyui: `[`, `]` and BREAK are text, as is an
    unclosed bracket, and the number of `(word:1.3)` is the weight itself, also inside other brackets. off: all is text.
    Source: documentation of A1111's and ComfyUI's prompts. It never raises.

    >>> parse_weights("a ((big)) [red] (fish:1.5)")[0][1]
    WeightedText(text='big', weight=1.2100000000000002)
    """
    if weights == "off":
        return [[WeightedText(prompt, 1.0)]]
    tokens, factors = _tokenize(prompt, weights)
    sections: list[list[WeightedText]] = [[]]
    inside = dict[int, float]()  # number of an open bracket -> weight inside, innermost last
    for token in tokens:
        if token is None:
            sections.append([])
        elif isinstance(token, str):
            sections[-1].append(WeightedText(token, _innermost(inside)))
        elif token not in factors:  # never closed, in ComfyUI
            sections[-1].append(WeightedText("(", _innermost(inside)))
        elif token not in inside:
            _open(inside, token, factors)
        elif token == next(reversed(inside)):
            inside.popitem()
        else:  # brackets that cross, as in (a [b) c]
            still_open = [each for each in inside if each != token]
            inside.clear()
            for each in still_open:
                _open(inside, each, factors)
    return [list(_merge(section)) for section in sections]


def _tokenize(prompt: str, weights: PromptWeights) -> tuple[_Tokens, dict[int, _Factor]]:
    """Return the tokens of a prompt, and the factors of its brackets by their numbers."""
    tokens, factors, opened = _Tokens(), dict[int, _Factor](), {"(": list[int](), "[": list[int]()}
    end = 0
    for number, mark in enumerate(MARKS[weights].finditer(prompt)):
        tokens.append(prompt[end : mark.start()])
        end, text, found = mark.end(), mark[0], mark.groupdict()
        kind, weight = "[" if text == "]" else "(", found["weight"]
        if found["escaped"]:
            tokens.append(text[1:])
        elif found.get("break"):
            tokens.append(None)
        elif text in opened:
            tokens.append(number)
            opened[text].append(number)
        elif (weight or text in ")]") and opened[kind]:
            tokens.append(bracket := opened[kind].pop())
            factors[bracket] = _Factor(float(weight or FACTORS[kind]), weight is not None and weights == "comfyui")
        else:
            tokens.append(text)
    if weights == "a1111":
        factors |= {bracket: _Factor(FACTORS[kind]) for kind, brackets in opened.items() for bracket in brackets}
    return [*tokens, prompt[end:]], factors


def _innermost(inside: dict[int, float]) -> float:
    return next(reversed(inside.values()), 1.0)


def _open(inside: dict[int, float], bracket: int, factors: Mapping[int, _Factor]) -> None:
    factor = factors[bracket]
    inside[bracket] = factor.value if factor.absolute else _innermost(inside) * factor.value


def _merge(parts: Iterable[WeightedText]) -> Iterator[WeightedText]:
    """Join neighbours of equal weight."""
    for weight, equal in groupby((each for each in parts if each.text), key=lambda each: each.weight):
        yield WeightedText("".join(each.text for each in equal), weight)


def plain_text(prompt: str, weights: PromptWeights) -> str:
    """Return a prompt without brackets, weights and BREAK."""
    return " ".join("".join(part.text for part in section) for section in parse_weights(prompt, weights))


def check_weights(prompt: str, weights: PromptWeights) -> None:
    """Raise InputError for what A1111 reads in a prompt and Kineograph does not, and for too large a weight."""
    if weights == "off":
        return
    as_text = "to have all of the prompt read as text, take `prompt_weights` off"
    if loras := take_loras(prompt)[1]:
        name, scale = loras[0]
        raise InputError(
            f"the prompt names the LoRA {shown(name)}, and a LoRA is loaded with the model: take it out of the prompt, "
            f"and call load(..., lora=({shown(name + '.safetensors')}, {scale})) or model.load_lora_weights(...); on "
            f"the command line `lora_folder` says where it is; {as_text}"
        )
    if weights == "a1111" and (scheduled := SCHEDULED.search(prompt)):
        raise InputError(
            f"the prompt has {shown(scheduled[0])}, which A1111 changes from step to step; that is not supported: "
            f"write the words of one step, or `prompt_at` for later frames; {as_text}"
        )
    for text, weight in (part for section in parse_weights(prompt, weights) for part in section):
        if not abs(weight) <= MAX_WEIGHT:
            raise InputError(
                f"a weight in a prompt is at most {MAX_WEIGHT}, and that of {shown(text.strip())} is {weight:g}"
            )


def take_loras(prompt: str) -> tuple[str, list[tuple[str, float | dict[str, float]]]]:
    """Return a prompt without its `<lora:name:scale>` and `<lyco:name:scale>`, and their names and scales.

    Of two scales the first is that of the text encoders and the second the U-Net's, as in A1111's web interface; `te=`
    and `unet=` name them. Raises InputError for hypernetworks, and for anything but scales.

    >>> take_loras("a cat <lora:style:0.8>")
    ('a cat', [('style', 0.8)])
    >>> take_loras("a cat <lora:style:0.5:0.8>")
    ('a cat', [('style', {'unet': 0.8, 'text_encoder': 0.5, 'text_encoder_2': 0.5})])
    """
    loras = [(each["name"].strip(), _scale(each)) for each in NETWORK.finditer(prompt)]
    return NETWORK.sub("", prompt).strip() if loras else prompt, loras


def _scale(network: re.Match[str]) -> float | dict[str, float]:
    if network["kind"] == "hypernet":
        raise InputError(f"the prompt names a hypernetwork, {shown(network[0])}: they are not supported, leave it out")
    given = [each.strip() for each in network["rest"].split(":")[1:]]
    named = dict(each.split("=", 1) for each in given if "=" in each)
    positional = dict(zip(SCALES, (each for each in given if "=" not in each), strict=False))
    scales = positional | named
    are_numbers = all(re.fullmatch(NUMBER, each) for each in scales.values())
    if len(scales) < len(given) or not scales.keys() <= {*SCALES} or not are_numbers:
        raise InputError(
            f"the prompt has {shown(network[0])}: expected <{network['kind']}:NAME:SCALE>, with one number, or two, "
            "the text encoders' and the U-Net's"
        )
    text = float(scales.get("te", 1))
    unet = float(scales.get("unet", text))
    return unet if unet == text else {"unet": unet, "text_encoder": text, "text_encoder_2": text}


def other_syntax(prompt: str, weights: PromptWeights) -> list[str]:
    """Return the marks of other programs in a prompt that are read as text."""
    return [] if weights == "off" else [meaning for mark, meaning in OTHER_SYNTAX.items() if mark.search(prompt)]
