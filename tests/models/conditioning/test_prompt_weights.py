"""Weights in prompts: the syntax, A1111's and ComfyUI's definitions of their effect, and chunks of long prompts."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch
from cases import tiny_models
from cases.tiny_models import far, tokens_of
from diffusers import StableDiffusionPipeline
from format_rows import loads, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import kineograph as kg
from kineograph.errors import InputError
from kineograph.models.conditioning.prompt_weights import (
    check_weights,
    other_syntax,
    parse_weights,
    plain_text,
    take_loras,
)
from kineograph.models.conditioning.text_encoder import TextEncoder, split_prompt

pytestmark = pytest.mark.slow

MARKS = st.lists(st.sampled_from([*"()[]\\:.123 ab<>|", "BREAK", "(a:1.2)", "lora"]), max_size=30).map("".join)
ANY = st.text(max_size=40) | MARKS


def trained_norm(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Shift the last normalisation, without which the mean of the tokens is 0."""
    network = pipeline.text_encoder
    with torch.no_grad():
        norm = getattr(network, "text_model", network).final_layer_norm
        norm.bias += torch.randn(16, generator=torch.Generator().manual_seed(1)) + 0.3
    return pipeline


@pytest.fixture(scope="module")
def model() -> kg.Model:
    return kg.load(trained_norm(tiny_models.sd()))


@pytest.fixture(scope="module")
def sdxl() -> kg.Model:
    return kg.load(tiny_models.sdxl())


# --- the syntax

WEIGHTS = {
    "a cat": [("a cat", 1)],
    "a (cat) b": [("a ", 1), ("cat", 1.1), (" b", 1)],
    "a (cat:1.3) b": [("a ", 1), ("cat", 1.3), (" b", 1)],
    "(cat: .5 )": [("cat", 0.5)],
    "(cat:-1)": [("cat", -1)],
    "[cat]": [("cat", 1 / 1.1)],
    "((a)) [[b]]": [("a", 1.21), (" ", 1), ("b", 1 / 1.21)],
    "(a (b:1.5) [c]:2)": [("a ", 2), ("b", 3), (" ", 2), ("c", 2 / 1.1)],
    "(a b": [("a b", 1.1)],
    "[a (b": [("a ", 1 / 1.1), ("b", 1)],
    "a) b] c:1.3)": [("a) b] c:1.3)", 1)],
    r"\(a\) \[b\] \\": [("(a) [b] \\", 1)],
    r"(a\):1.2)": [("a)", 1.2)],
    r"a\b": [(r"a\b", 1)],
    "(a:b)": [("a:b", 1.1)],
    "(a:1.2.3)": [("a:1.2.3", 1.1)],
    "(a)(b)": [("ab", 1.1)],
    "(a [b:c) d]": [("a ", 1.1), ("b:c", 1), (" d", 1 / 1.1)],
    "()": [],
}
COMFYUI = {
    "(a (b:1.3) c:1.5)": [("a ", 1.5), ("b", 1.3), (" c", 1.5)],
    "((a):2)": [("a", 2.2)],
    "[a] BREAK (b": [("[a] BREAK (b", 1)],
    r"\(a\) \[": [(r"(a) \[", 1)],
}


@pytest.mark.parametrize(
    ("syntax", "prompt", "expected"),
    [*(("a1111", *each) for each in WEIGHTS.items()), *(("comfyui", *each) for each in COMFYUI.items())],
)
def test_weights_of_a_prompt(syntax, prompt: str, expected: list[tuple[str, float]]) -> None:
    (section,) = parse_weights(prompt, syntax)
    assert [part.text for part in section] == [text for text, _ in expected]
    assert [part.weight for part in section] == pytest.approx([weight for _, weight in expected])


def test_break_starts_a_section_also_inside_brackets() -> None:
    sections = parse_weights("a BREAK (b BREAK c:2)BREAK")
    assert [[part.text.strip() for part in each if part.text.strip()] for each in sections] == [["a"], ["b"], ["c"], []]
    assert sections[1][-1].weight == sections[2][0].weight == 2


@given(ANY)
def test_any_text_is_read(text: str) -> None:
    for syntax in ("a1111", "comfyui", "off"):
        sections = parse_weights(text, syntax)
        assert all(isinstance(part.weight, float) for each in sections for part in each)
        plain_text(text, syntax), other_syntax(text, syntax)
    assert parse_weights(text, "off") == [[(text, 1.0)]]


@given(ANY)
def test_any_text_is_refused_or_not(text: str) -> None:
    for check in (lambda: check_weights(text, "a1111"), lambda: take_loras(text)):
        with contextlib.suppress(InputError):
            check()


@given(ANY.filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_itself(text: str) -> None:
    assert plain_text(re.sub(r"([()\[\]\\])", r"\\\1", text), "a1111") == text


@given(st.text(st.sampled_from("ab ,:.|{}<>*"), min_size=1))
def test_text_without_brackets_is_itself(text: str) -> None:
    assert parse_weights(text) == [[(text, 1.0)]]


@given(st.lists(st.floats(0.1, 2).map(lambda weight: round(weight, 2)), max_size=6), st.integers(0, 4))
def test_weights_multiply(weights: list[float], brackets: int) -> None:
    prompt, product = "(" * brackets + "a" + ")" * brackets, 1.1**brackets
    for weight in weights:
        prompt, product = f"({prompt}:{weight})", product * weight
    (((text, weight),),) = parse_weights(prompt)
    assert text == "a" and weight == pytest.approx(product)


# --- what is not read


def test_loras_are_taken_out_of_a_prompt() -> None:
    prompt = "<lora:a b:0.5> a cat, <lyco:c/d:-1> grass <lora:e>"
    assert take_loras(prompt) == ("a cat,  grass", [("a b", 0.5), ("c/d", -1.0), ("e", 1.0)])
    assert take_loras("a <cat> ") == ("a <cat> ", [])
    assert take_loras("<lora:a:0.5:0.5>")[1] == [("a", 0.5)]
    for odd in ("<lora:a:1:0.5:8>", "<lora:a:1:te=1>", "<lora:a:>", "<lora:a:1:lbw=2>", "<hypernet:a:1>"):
        with pytest.raises(InputError, match=re.escape(odd)):
            take_loras(odd)


@refused("Prompt", "`<lora:name:0.8>` in Python", "a LoRA is loaded with the model")
@refused("Prompt", "`[a:b:0.5]` and other prompt editing", "words that change from step to step are not supported")
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:style:0.8>", r"LoRA 'style', .* lora=\('style.safetensors', 0.8\)"),
        ("a [cat:dog:0.5]", r"'\[cat:dog:0.5\]', which A1111 changes from step to step"),
        ("a [cat::4]", "changes from step to step"),
        ("a [cat:4]", "changes from step to step"),
        ("a [(cat:1.1)|dog]", "changes from step to step"),
        ("a (cat:1300)", "at most 1000, and that of 'cat' is 1300"),
        ("(" * 8000 + "a", "at most 1000, and that of 'a' is inf"),
    ],
)
def test_what_a1111_reads_and_we_do_not_is_refused(model, prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kg.generate(model, prompt)
    with pytest.raises(InputError, match=message):
        kg.generate(model, "a cat", negative_prompt=prompt)
    check_weights(prompt, "off")


def test_marks_of_other_programs_are_named() -> None:
    prompt = "a {red|blue} cat++, __place/x__, embedding:style AND a dog"
    assert [each.split(",")[0] for each in other_syntax(prompt, "a1111")] == [
        "AND", "{a|b}", "__name__", "embedding:name", "word++",
    ]  # fmt: skip
    assert other_syntax(prompt, "off") == other_syntax("A C++ BOOK AND A DOG", "a1111") == []


# --- their effect


def encode(encoder: TextEncoder, ids: list[int]) -> Tensor:
    """Return the last hidden states of tokens, which get a start, an end and padding here."""
    row = [188, *ids, 189, *[encoder.tokenizer.pad_token_id] * (75 - len(ids))]
    with torch.no_grad():
        return encoder.network(torch.tensor([row])).last_hidden_state[0]


def letters(encoder: TextEncoder, text: str) -> list[int]:
    """Return the tokens of a text; a letter is a token here."""
    return encoder.tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"], ids=["SD 1", "SD 2"])
def either(request: pytest.FixtureRequest) -> kg.Model:
    """Models of SD 1 and of SD 2, whose tokenizers pad with other tokens."""
    return kg.load(trained_norm(tiny_models.sd(act=request.param)))


def restore_mean(tokens: Tensor, factors: Tensor) -> Tensor:
    weighted = tokens * factors
    return weighted * (tokens.mean() / weighted.mean())


@loads("Prompt", "`(word:1.3)`, `(word)`, `[word]`, `\\(`", within=1e-5, reference="A1111's definition")
def test_weights_multiply_tokens_and_the_mean_is_restored(either, within: float) -> None:
    (encoder,), factors = either.text_encoders, torch.ones(77, 1)
    plain = encode(encoder, letters(encoder, "a cat on grass"))
    factors[2:5], factors[5:7] = 1.3, 1 / 1.1
    weighted = tokens_of(either, "a (cat:1.3) [on] grass")
    assert far(weighted[0], restore_mean(plain, factors)) < within
    assert far(weighted[0], plain) > 0.1


@loads("Prompt", "`prompt_weights` comfyui", within=1e-5, reference="ComfyUI's definition")
def test_weights_of_comfyui_move_tokens_from_those_of_no_text(model, within: float) -> None:
    (encoder,), factors = model.text_encoders, torch.ones(77, 1)
    factors[2:5] = 1.3
    plain, empty = encode(encoder, letters(encoder, "a cat on grass")), encode(encoder, [])
    weighted = tokens_of(model, "a (cat:1.3) on grass", prompt_weights="comfyui")
    assert far(weighted[0], empty + (plain - empty) * factors) < within


@pytest.mark.parametrize("prompt", ["a cat", "a cat, on grass.", "A 1:2 {cat} <on> \\grass", "é 🐟 一\n\0", ""])
def test_prompts_without_syntax_are_those_of_the_tokenizer(model, prompt: str) -> None:
    (encoder,) = model.text_encoders
    ids = encoder.tokenizer([prompt], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder.network(ids).last_hidden_state
    for syntax in ("a1111", "comfyui", "off"):
        assert torch.equal(tokens_of(model, prompt, prompt_weights=syntax), expected)
    assert torch.equal(tokens_of(model, f"({prompt}:1)"), expected)


def test_off_reads_brackets_as_text(model) -> None:
    (encoder,) = model.text_encoders
    for prompt in ("a (cat:1.3)", "a [cat] BREAK b"):
        expected = encode(encoder, letters(encoder, prompt))
        assert far(tokens_of(model, prompt, prompt_weights="off")[0], expected) < 1e-5
    assert far(tokens_of(model, r"a \(cat:1.3\)"), tokens_of(model, "a (cat:1.3)", prompt_weights="off")) < 1e-5


@given(text=st.text(max_size=30))
@settings(max_examples=30, deadline=None)
def test_tokens_are_those_of_the_tokenizer(text: str) -> None:
    tokenizer = tiny_models.tokenizer()
    network = tiny_models.CLIPTextModel(tiny_models.text_config(8))
    (chunk, *others) = split_prompt(TextEncoder(tokenizer, network), text, "off")
    together = [token for each in (chunk, *others) for token in each.ids]
    assert together == tokenizer(text).input_ids[1:-1]


@loads("Prompt", "weights with SDXL's two encoders", within=1e-5, reference="A1111's definition")
def test_both_encoders_of_sdxl_have_weights_and_the_pooled_embedding_has_none(sdxl, within: float) -> None:
    factors, parts = torch.ones(77, 1), []
    factors[2:5] = 1.5
    for encoder in sdxl.text_encoders:
        row = [188, *letters(encoder, "a cat"), 189, *[encoder.tokenizer.pad_token_id] * 71]
        with torch.no_grad():
            states = encoder.network(torch.tensor([row]), output_hidden_states=True).hidden_states[-2][0]
        parts.append(restore_mean(states, factors))
    weighted, plain = sdxl.prompt(["a (cat:1.5)"]), sdxl.prompt(["a cat"])
    assert far(weighted.tokens[0], torch.cat(parts, -1)) < within
    assert torch.equal(weighted.embedding, plain.embedding)


def test_weights_of_a_prompt_do_not_change_others_of_the_batch(model) -> None:
    together = model.prompt(["a (cat:1.5)", "a dog", "a (cat:1.5) BREAK b"], num_chunks=2).tokens
    alone = [model.prompt([each], num_chunks=2).tokens[0] for each in ("a (cat:1.5)", "a dog", "a (cat:1.5) BREAK b")]
    assert far(together, torch.stack(alone)) < 1e-5


def test_a_mean_of_zero_is_not_restored() -> None:
    """The last normalisation of an untrained text encoder makes it 0 but for rounding."""
    model = kg.load(tiny_models.sd())
    plain, factors = tokens_of(model, "a cat"), torch.ones(77, 1)
    factors[2:5] = 1.3
    assert far(tokens_of(model, "a (cat:1.3)"), plain * factors) < 1e-5


def test_weights_apply_to_a_text_encoder_in_half_precision() -> None:
    model = kg.load(tiny_models.sd(), dtype="bfloat16")
    assert tokens_of(model, "a (cat:1.3)").dtype == torch.bfloat16


# --- chunks


@loads("Prompt", "more than 75 tokens, BREAK", within=1e-5, reference="A1111's definition")
@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a " * 75, ["a " * 75]),
        ("a " * 75 + "b", ["a " * 75, "b"]),
        ("a " * 75 + "BREAK b", ["a " * 75, "b"]),
        ("a BREAK b", ["a", "b"]),
        ("a BREAK", ["a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("b, " * 80, ["b, " * 37 + "b", ", b" * 37 + ",", "b, " * 5]),
    ],
    ids=str,
)
def test_long_prompts_have_chunks(model, prompt: str, chunks: list[str], within: float) -> None:
    (encoder,) = model.text_encoders
    expected = torch.cat([encode(encoder, letters(encoder, each)) for each in chunks])
    assert model.count_chunks([prompt]) == len(chunks)
    assert far(tokens_of(model, prompt)[0], expected) < within


def test_chunks_have_their_own_mask(model) -> None:
    """Text encoders whose configuration has a mask read no padding."""
    pipeline = trained_norm(tiny_models.sd())
    pipeline.text_encoder.config.use_attention_mask = True
    masked, network = kg.load(pipeline), pipeline.text_encoder
    row = pipeline.tokenizer(["b"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = network(row.input_ids, attention_mask=row.attention_mask).last_hidden_state
    tokens = tokens_of(masked, "a cat BREAK b")
    assert far(tokens[:, 77:], expected) < 1e-5
    assert far(tokens, tokens_of(model, "a cat BREAK b")) > 0.01


def test_mean_of_each_chunk_is_restored(model) -> None:
    (encoder,), factors = model.text_encoders, torch.ones(77, 1)
    factors[1:2] = 2
    first, second = (encode(encoder, letters(encoder, each)) for each in "ab")
    tokens = tokens_of(model, "(a:2) BREAK b")[0]
    assert far(tokens, torch.cat([restore_mean(first, factors), second])) < 1e-5


def test_shorter_prompts_continue_with_chunks_of_no_text(model, sdxl) -> None:
    (encoder,) = model.text_encoders
    tokens = model.prompt(["a", "b BREAK c"]).tokens
    assert far(tokens[0, 77:], encode(encoder, [])) < 1e-5
    assert torch.equal(model.prompt(["a"], num_chunks=2).tokens, model.prompt(["a"], num_chunks=2).tokens)
    assert sdxl.prompt([""], num_chunks=3).tokens.shape[1] == 3 * 77
    assert not sdxl.prompt([""], num_chunks=3).tokens.any()  # zeros for an empty prompt


def test_pooled_embedding_is_that_of_the_first_chunk(sdxl) -> None:
    assert far(sdxl.prompt(["a cat BREAK dog"]).embedding, sdxl.prompt(["a cat"]).embedding) < 1e-5


@loads("Prompt", "`clip_skip` with weights and chunks", within=1e-5, reference="A1111's definition")
def test_clip_skip_with_weights_and_chunks(model, within: float) -> None:
    (encoder,), factors = model.text_encoders, torch.ones(77, 1)
    factors[1:4] = 1.2
    parts = []
    for text, weights in (("cat", factors), ("b", torch.ones(77, 1))):
        row = [188, *letters(encoder, text), 189, *[189] * (75 - len(text))]
        with torch.no_grad():
            states = encoder.network(torch.tensor([row]), output_hidden_states=True).hidden_states[-2]
            normed = getattr(encoder.network, "text_model", encoder.network).final_layer_norm(states)[0]
        parts.append(restore_mean(normed, weights))
    assert far(tokens_of(model, "(cat:1.2) BREAK b", clip_skip=1)[0], torch.cat(parts)) < within


# --- textual inversion


@loads(
    "Textual inversion", "several vectors across the border of two chunks", within=1e-5, reference="A1111's definition"
)
def test_word_of_several_tokens_is_in_one_chunk(tmp_path: Path, within: float) -> None:
    save_file({"<dog>": torch.randn(4, 16)}, tmp_path / "dog.safetensors")
    save_file({"<long>": torch.randn(80, 16)}, tmp_path / "long.safetensors")
    pipeline = trained_norm(tiny_models.sd())
    model = kg.load(pipeline, textual_inversion=[tmp_path / "dog.safetensors", tmp_path / "long.safetensors"])
    (encoder,) = model.text_encoders
    dog = [190, 191, 192, 193]
    plain = letters(encoder, "a " * 73)
    expected = torch.cat([encode(encoder, plain), encode(encoder, [*dog, *letters(encoder, "b")])])
    assert far(tokens_of(model, "a " * 73 + "<dog> b")[0], expected) < within
    assert far(tokens_of(model, "a " * 71 + "<dog>")[0], encode(encoder, [*plain[:71], *dog])) < within
    assert [len(each.ids) for each in split_prompt(encoder, "a <long> b", "a1111")] == [1, 75, 6]
    factors = torch.ones(77, 1)
    factors[1:5] = 1.4
    assert far(tokens_of(model, "(<dog>:1.4)")[0], restore_mean(encode(encoder, dog), factors)) < within


def test_word_of_letters_is_no_part_of_other_words_and_may_be_a_capital(tmp_path: Path) -> None:
    save_file({"style": torch.randn(2, 16)}, tmp_path / "style.safetensors")
    (encoder,) = kg.load(tiny_models.sd(), textual_inversion=tmp_path / "style.safetensors").text_encoders
    (chunk,) = split_prompt(encoder, "a Style, lifestyle", "a1111")
    assert chunk.ids == [*letters(encoder, "a"), 190, 191, *letters(encoder, ","), *letters(encoder, "lifestyle")]
    assert 190 not in letters(encoder, "lifestyle")


def test_learned_word_does_not_move_the_pooled_embedding(tmp_path: Path) -> None:
    """Older configurations of CLIP pool at the largest token, which a learned word's is (transformers#24773)."""
    save_file({"clip_l": torch.randn(1, 16), "clip_g": torch.randn(1, 24)}, tmp_path / "xl.safetensors")
    pipeline = tiny_models.sdxl()
    network = pipeline.text_encoder_2
    legacy = [each for each in network.modules() if hasattr(each, "eos_token_id")]
    network.config.eos_token_id = 2
    for each in legacy:
        each.eos_token_id = 2
    model = kg.load(pipeline, textual_inversion=tmp_path / "xl.safetensors")
    before = model.prompt(["a xl cat"]).embedding
    network.config.eos_token_id = 189
    for each in legacy:
        each.eos_token_id = 189
    assert far(before, model.prompt(["a xl cat"]).embedding) < 1e-5
