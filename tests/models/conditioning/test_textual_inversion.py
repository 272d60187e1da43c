"""Textual inversion in every layout, and errors for files that do not fit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.loading.load import load


def embeddings(rows: int, width: int = 32) -> Tensor:
    return torch.arange(rows * width, dtype=torch.float32).reshape(rows, width)


def embedded(encoder, word: str) -> Tensor:
    return encoder.network.get_input_embeddings().weight[encoder.tokenizer.convert_tokens_to_ids(word)]


def test_textual_inversion_in_every_layout(make_sd, tmp_path) -> None:
    save_file({"<dog>": embeddings(1)[0]}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": embeddings(2)}, tmp_path / "style.safetensors")
    a1111 = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": {"*": nn.Parameter(embeddings(3))},
        "name": "<cat>",
    }
    torch.save(a1111, tmp_path / "cat.pt")
    model = load(make_sd(), textual_inversion=[tmp_path, tmp_path / "style.safetensors", tmp_path / "cat.pt"])
    encoder = model.text_encoders[0]
    for word, rows in (("<dog>", 1), ("style", 2), ("<cat>", 3)):
        for number in range(rows):
            named = word if number == 0 else f"{word}_{number}"
            assert torch.equal(embedded(encoder, named), embeddings(rows)[number])
    plain, told = model.prompt(["a b", "a b b b"]).tokens, model.prompt(["a <dog>", "a <cat>"]).tokens
    assert plain.shape == told.shape
    assert not torch.allclose(plain, told)
    written_out = encoder.tokenizer("a <cat> <cat>_1 <cat>_2", padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = encoder.network(written_out.input_ids).last_hidden_state
    assert torch.equal(model.prompt(["a <cat>"]).tokens, expected)


def test_word_can_be_chosen(make_sd, tmp_path) -> None:
    save_file({"<dog>": embeddings(1)}, tmp_path / "dog.safetensors")
    model = load(make_sd(), textual_inversion={"<mine>": tmp_path / "dog.safetensors"})
    assert torch.equal(embedded(model.text_encoders[0], "<mine>"), embeddings(1)[0])
    assert model.settings == {}
    with pytest.raises(InputError, match="already knows the word 'a</w>': choose another"):
        load(make_sd(), textual_inversion={"a</w>": tmp_path / "dog.safetensors"})


def test_sdxl_has_embeddings_for_both_text_encoders(sdxl_pipeline, tmp_path) -> None:
    save_file({"clip_l": embeddings(1, 16), "clip_g": embeddings(1, 32)}, tmp_path / "xl.safetensors")
    model = load(sdxl_pipeline, textual_inversion=tmp_path / "xl.safetensors")
    assert [embedded(each, "xl").shape for each in model.text_encoders] == [(16,), (32,)]
    assert torch.equal(embedded(model.text_encoders[1], "xl"), embeddings(1)[0])


def test_textual_inversion_that_does_not_fit_is_refused(sd_pipeline, tmp_path) -> None:
    before = len(sd_pipeline.tokenizer)
    save_file({"<dog>": embeddings(1, 48)}, tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match=r"another architecture: its embeddings are 48 wide, .* read 32"):
        load(sd_pipeline, textual_inversion=tmp_path / "wide.safetensors")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"no textual inversion: expected one embedding under its word, got a, b"):
        load(sd_pipeline, textual_inversion=tmp_path / "other.safetensors")
    assert len(sd_pipeline.tokenizer) == before
