"""Captions: questions, answers, endpoints that fail, and models of transformers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curation.conftest import chat_completion
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from kineograph.curation.captions import (
    NoAnswer,
    ask_for_caption,
    check_answer,
    connect_endpoint,
    fill_questions,
    join_answers,
    load_transformers_model,
)
from kineograph.curation.settings import Captions, Endpoint, TransformersModel
from kineograph.errors import InputError

IMAGES = [np.full((16, 24, 3), shade, np.uint8) for shade in (30, 120, 220)]


def test_questions_are_filled_with_the_label() -> None:
    templates = ("What is {label} here?", "Who is there?")
    assert fill_questions(templates, "surfing {fast}") == ["What is surfing {fast} here?", "Who is there?"]
    assert fill_questions(templates, "") == ["Who is there?"]
    assert fill_questions(templates[:1], "") == ["What is something here?"]


def test_answers_are_concatenated_or_merged_by_a_question_without_images() -> None:
    asked: list[tuple[int, str]] = []

    def ask(images: Any, question: str) -> str:
        asked.append((len(images), question))
        return f"answer\n {len(asked)}"

    settings = Captions(
        asked=TransformersModel(model="x"), questions=("about {label}?", "who?"), merge="{label}: {answers}!"
    )
    assert ask_for_caption(IMAGES, "a dog", ask, None, settings) == "answer 1. answer 2."
    assert ask_for_caption(IMAGES, "a dog", ask, ask, settings) == "answer 5"
    assert asked[2:] == [(3, "about a dog?"), (3, "who?"), (0, "a dog: - answer 3\n- answer 4!")]
    assert join_answers(["A dog.", "a dog", "A dog.", "It runs!"]) == "A dog. a dog. It runs!"


@pytest.mark.parametrize("invalid", ["", " \n", "42 !!", "x" * 3000, "the the a the the the the a the the the the"])
def test_invalid_answers_are_refused(invalid) -> None:
    with pytest.raises(NoAnswer):
        check_answer(invalid)
    assert check_answer(" A dog\nruns. ") == "A dog runs."


def test_an_endpoint_receives_images_and_question(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setenv("THE_KEY", "secret")
    settings = serve(lambda body: (seen.append(body), chat_completion(" a dog\n runs "))[1]).model_copy(
        update={"key": "THE_KEY"}
    )
    ask = connect_endpoint(settings)
    assert ask(IMAGES, "what?") == "a dog runs" and ask([], "merge?") == "a dog runs"
    assert seen[0]["path"] == "/v1/chat/completions" and seen[0]["key"] == "Bearer secret" and seen[0]["model"] == "m"
    *parts, text = seen[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what?"} and seen[1]["messages"][0]["content"] == "merge?"
    for each, image in zip(parts, IMAGES, strict=True):
        data = each["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert decoded.shape == image.shape and np.abs(decoded.astype(int) - image).max() <= 3


@pytest.mark.parametrize(
    "bad",
    [
        (500, b"down"),
        (429, b"slow"),
        (200, b"<html>"),
        (200, b'{"error": 1}'),
        chat_completion(None),
        chat_completion("..."),
        chat_completion(""),
    ],
)
def test_an_endpoint_that_fails_or_gives_an_invalid_answer_is_asked_again(serve, bad) -> None:
    replies = iter([bad, bad, chat_completion("a cat")])
    assert connect_endpoint(serve(lambda body: next(replies)))(IMAGES, "what?") == "a cat"
    with pytest.raises(NoAnswer, match="gave no answer in 3 tries"):
        connect_endpoint(serve(lambda body: bad))(IMAGES, "what?")


def test_an_unreachable_or_refusing_endpoint_is_reported(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoAnswer, match="cannot be reached"):
        connect_endpoint(Endpoint(url="http://127.0.0.1:9/v1", model="m", tries=2, pause=0))([], "what?")
    asked = []
    for status, match in ((401, "key"), (404, "address or model")):
        settings = serve(lambda body, status=status: (asked.append(1), (status, b""))[1])
        with pytest.raises(InputError, match=match) as error:
            connect_endpoint(settings)([], "what?")
        assert not isinstance(error.value, NoAnswer)
    assert len(asked) == 2  # once each
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(InputError, match="NO_KEY"):
        connect_endpoint(Endpoint(url="http://x", model="m", key="NO_KEY"))


WORDS = "a the dog cat runs sits on grass sea red what is it Question : Answer ? . USER ASSISTANT".split()  # noqa: SIM905


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    vocabulary = ["<unk>", "<s>", "</s>", "<pad>", *special, *WORDS]
    rules = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=rules, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


VISION = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny untrained model with a chat template."""
    words, folder = tokenizer("<image>"), tmp_path_factory.mktemp("llava")
    template = (
        "USER {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, num_attention_heads=2, projection_dim=16),
        text_config=LlamaConfig(**TEXT, vocab_size=len(words), pad_token_id=3, bos_token_id=1, eos_token_id=2),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_chat_model_answers_about_several_images_and_about_none(llava) -> None:
    ask = load_transformers_model(TransformersModel(model=str(llava), device="cpu", max_new_tokens=4))
    answer = ask(IMAGES, "what is it ?")
    assert len(answer.split()) <= 4 and {*answer.split()} <= {*WORDS, "<unk>"}
    assert "USER" not in answer or answer != ask([], "what is it ?")  # only what is new
    assert ask(IMAGES, "what is it ?") == answer
    assert isinstance(ask([], "a b c ?"), str)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny untrained BLIP-2, which has no chat template."""
    words, folder = tokenizer("<image>"), tmp_path_factory.mktemp("blip")
    Blip2Processor(BlipImageProcessor(size={"height": 16, "width": 16}), words, num_query_tokens=2).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    opt = {
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    tokens = {"vocab_size": len(words), "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
    config = Blip2Config(
        vision_config={**VISION, "num_attention_heads": 2},
        qformer_config={**TEXT, "vocab_size": 30, "encoder_hidden_size": 16},
        text_config={"model_type": "opt", **opt, **tokens, "max_position_embeddings": 64},
        num_query_tokens=2,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_model_without_a_chat_template_sees_the_middle_image(blip) -> None:
    ask = load_transformers_model(TransformersModel(model=str(blip), device="cpu", max_new_tokens=4))
    answer = ask(IMAGES, "what is it ?")
    assert answer == ask(IMAGES[1:2], "what is it ?") and len(answer.split()) <= 4
    with pytest.raises(InputError, match="answers about images only"):
        ask([], "what is it ?")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not an image-text model"):
        load_transformers_model(TransformersModel(model=str(tmp_path)))
