"""Prompts: the syntax of other programs, CLIP skip, characters, and consoles that cannot print them."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path

import pytest
import torch
from cases import tiny_models
from cases.program import SMALL, Said, run
from cases.tiny_models import far, load, tokens_of
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from format_rows import loads
from safetensors.torch import save_file
from torch import Tensor

import kineograph as kg
from kineograph.generation.recorded import recorded_request
from kineograph.models.loading.save import save
from kineograph.request import SETTINGS_VERSION

POCKET = ("-n", 2, "--steps", 1, "--height", 64, "--width", 64)


@pytest.fixture(scope="module")
def model(sd_folder) -> kg.Model:
    return load(sd_folder)


# --- the syntax of other programs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "same", "other"),
    [
        ("a (cat:1.3) on grass", ("a (cat:1.0) on grass", "a cat on grass"), "a cat on grass"),
        ("a ((cat)) on [grass]", ("a ((cat)) on [grass]", "a (cat:1.21) on (grass:0.909)"), "a cat on grass"),
        ("a cat <lora:style:0.8>", None, None),
        ("a cat BREAK grass", None, "a cat break grass"),
    ],
    ids=["weight", "brackets", "lora", "BREAK"],
)
def test_a1111_syntax_is_applied_or_told_not_to_be(model, sd_folder, work, prompt, same, other) -> None:
    """Case 30 (diffusers#2136, heurist#11): (word:1.3), [word], <lora:name:1>, BREAK.

    same: two prompts with one encoding, and other: a prompt with another encoding, where the syntax is applied.
    """
    said = run("generate", prompt, "--model", sd_folder, *SMALL, "-o", work / "x.mp4")
    told = any(word in said.text.lower() for word in ("weight", "lora", "break", "parenthes"))
    applied = other is not None and not torch.equal(tokens_of(model, prompt), tokens_of(model, other))
    if applied and same is not None:
        applied = far(*(tokens_of(model, each) for each in same)) < 1e-3
    assert told or applied


FEW = {"num_frames": 3, "num_inference_steps": 2, "height": 16, "width": 16, "seed": 1}
LONG = "a cat BREAK a dog on (grass:1.3)"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_video_of_weights_and_chunks_is_replayed(sd_folder, sdxl_folder, work, family) -> None:
    model = load(sd_folder if family == "sd" else sdxl_folder)
    variants = ({}, {"negative_prompt": LONG}, {"prompt_at": {2: "a"}}, {"prompt_weights": "comfyui"})
    for options in variants if family == "sd" else variants[1:2]:
        video = kg.generate(model, LONG, **FEW, **options)
        assert video.settings["prompt_weights"] == options.get("prompt_weights", "a1111")
        assert (
            kg.replay(video.save(work / f"{len(list(work.iterdir()))}.mp4"), model=model).frames == video.frames
        ).all()
    plain = kg.generate(model, LONG, **FEW, prompt_weights="off")
    assert (plain.frames != kg.generate(model, LONG, **FEW).frames).any()


@pytest.mark.slow
def test_prompts_of_other_lengths_do_not_change_each_other(model) -> None:
    """Cross-attention reads all chunks, so a prompt's video would change with those that others add."""
    prompts = ["a cat", LONG, "a dog", "a " * 160]
    together = kg.generate(model, prompts, **FEW)
    for number, prompt in enumerate(prompts):
        alone = kg.generate(model, prompt, **{**FEW, "seed": 1 + number})
        assert abs(together[number].frames.astype(int) - alone.frames).max() <= 1
    kg.generate(model, {0: "a cat", 1: "a " * 160, 2: "b"}, **FEW)
    kg.generate(model, "a cat", clips=2, then=["a " * 160], **FEW)


MODEL = {
    "model": {"name": "pocket", "load": {}, "device": "cpu", "dtype": "float32", "weights": {}},
    "versions": {}, "machine": {},
}  # fmt: skip


def test_videos_made_before_read_their_prompts_as_text(model) -> None:
    settings = {"prompt": "a (cat:1.3) <lora:a:1>", "seed": 3, "frames_sha256": "", **MODEL, "settings_version": 2}
    prompt, options = recorded_request(settings)
    assert (prompt, options["prompt_weights"]) == (settings["prompt"], "off")
    with pytest.raises(kg.InputError, match="names the LoRA 'a'"):
        recorded_request({**settings, "settings_version": SETTINGS_VERSION})


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA in a folder, which has another name in its header."""
    folder, network = tmp_path_factory.mktemp("loras"), tiny_models.sd().unet
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, layer in tiny_models.layers(network, torch.nn.Linear):
        if "attn" in name:
            weights |= tiny_models.kohya(
                f"lora_unet_{name.replace('.', '_')}", *tiny_models.low_rank(layer, 2, generator), 2
            )
    (folder / "styles").mkdir()
    save_file(weights, folder / "styles" / "ink.v1.safetensors", metadata={"ss_output_name": "Ink Style"})
    save_file(weights, folder / "other.safetensors")
    return folder


@loads("Prompt", "`<lora:name:0.8>` with `--lora-folder`", within=0, reference="`--lora FILE=0.8`")
@pytest.mark.slow
def test_lora_of_a_prompt_is_loaded_from_a_folder(sd_folder, work, loras: Path, within: float) -> None:
    def generate(prompt: str, *options: object) -> tuple[Said, dict[str, object]]:
        file = work / f"{len(list(work.iterdir()))}.mp4"
        said = run("generate", prompt, "--model", sd_folder, *SMALL, "--seed", 1, "-o", file, *options)
        return said, kg.open_video(file).settings if said.status == 0 else {}

    _, expected = generate("a cat", "--lora", f"{loras}/styles/ink.v1.safetensors=0.8")
    for name in ("ink.v1", "styles/ink.v1", "Ink Style"):
        said, settings = generate(f"a cat <lora:{name}:0.8>", "--lora-folder", loras)
        assert settings["prompt"] == "a cat" and settings["frames_sha256"] == expected["frames_sha256"], said.text
        assert settings["model"]["load"]["lora"] == [[f"{loras}/styles/ink.v1.safetensors", 0.8]]
    for prompt, options, message in (
        ("a cat <lora:ink:1>", ("--lora-folder", loras), "has no LoRA 'ink'"),
        ("a cat <lora:ink.v1:1>", (), "say which folder it is in, --lora-folder"),
        ("a cat <lora:ink.v1:1>", ("--lora-folder", work / "no"), "there is no folder"),
        ("a cat <lora:ink.v1:1:2:8>", ("--lora-folder", loras), "with one number"),
        ("a cat", ("--lora-folder", loras), "--lora-folder does nothing here"),
        ("<lora:ink.v1:1>", ("--lora-folder", loras), "the prompt is empty"),
        ("a cat", ("--negative-prompt", "<lora:ink.v1:1>"), "names the LoRA 'ink.v1'"),
    ):
        said, _ = generate(prompt, *options)
        assert said.status == 2 and message in said.text and "loading" not in said.text
    said, settings = generate("a cat <lora:ink.v1:1>", "--prompt-weights", "off")
    assert settings["prompt"] == "a cat <lora:ink.v1:1>"


# --- CLIP skip


@torch.no_grad()
def diffusers_encoding(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, clip_skip: int) -> Tensor:
    """Return what diffusers' pipelines encode: SD normalises the layer it takes, SDXL takes the one before as it is."""
    encoders = [(pipeline.tokenizer, pipeline.text_encoder)]
    sdxl = hasattr(pipeline, "text_encoder_2")
    if sdxl:
        encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    tokens = []
    for tokenizer, network in encoders:
        ids = tokenizer(["a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
        hidden = network(ids, output_hidden_states=True).hidden_states
        norm = getattr(network, "text_model", network).final_layer_norm
        tokens.append(hidden[-(clip_skip + 2)] if sdxl else norm(hidden[-(clip_skip + 1)]))
    return torch.cat(tokens, -1)


@pytest.mark.parametrize("clip_skip", [0, 1])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_clip_skip_of_a_prompt_is_that_of_diffusers(sd_folder, sdxl_folder, family, clip_skip) -> None:
    """Case 31 (animatediff-cli#14, diffusers#3212)."""
    sdxl = family == "sdxl"
    pipeline, folder = (tiny_models.sdxl(), sdxl_folder) if sdxl else (tiny_models.sd(), sd_folder)
    ours = tokens_of(load(folder), "a cat", clip_skip=clip_skip)
    assert far(ours, diffusers_encoding(pipeline, clip_skip)) < 1e-4


def test_clip_skip_can_be_asked_for() -> None:
    """Case 31 (animatediff-cli#14, diffusers#3212): anime models want CLIP skip 2."""
    assert "clip_skip" in inspect.signature(kg.load).parameters
    assert "clip-skip" in run("generate", "--help").text


@loads("Prompt", "`clip_skip` of a saved and of a converted model", within=0, reference="the model that was saved")
@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_saved_model_keeps_its_clip_skip(sd_folder, sdxl_folder, work, family, within: float) -> None:
    skipping = load(sd_folder if family == "sd" else sdxl_folder, clip_skip=1)
    saved = save(skipping, work / "saved")
    again, none = load(saved), load(saved, clip_skip=0)
    assert again.clip_skip == 1 and far(tokens_of(again, "a cat"), tokens_of(skipping, "a cat")) <= within
    assert none.clip_skip == 0 and none.settings == {"source": str(saved), "clip_skip": 0}
    assert far(tokens_of(none, "a cat"), tokens_of(skipping, "a cat", clip_skip=0)) <= within
    DiffusionPipeline.from_pretrained(saved)  # which ignores it
    for clip_skip in (0, 1):
        said = run("convert", saved, work / f"converted{clip_skip}", "--clip-skip", clip_skip)
        assert said.status == 0 and load(work / f"converted{clip_skip}").clip_skip == clip_skip
    with pytest.raises(kg.InputError, match="`clip_skip` skips last layers"):
        load(saved, clip_skip=5)


@pytest.mark.slow
def test_saved_model_keeps_its_learned_words(sd_folder, work) -> None:
    file = work / "dog.safetensors"
    save_file({"<dog>": torch.randn(3, 16)}, file)
    model = load(sd_folder, textual_inversion=file, clip_skip=1)
    again = load(save(model, work / "learned"))
    assert torch.equal(tokens_of(again, "a (<dog>:1.2) b"), tokens_of(model, "a (<dog>:1.2) b"))
    assert not torch.equal(tokens_of(again, "a <dog> b"), tokens_of(load(sd_folder, clip_skip=1), "a <dog> b"))


# --- characters

ODD = {
    "emoji": "🐟 fish", "chinese": "一条红色的鱼", "newline": "a\nb", "nul": "a\0b", "quote": "a \"b' \\ %s {x}",
    "10kB": "fish " * 2000, "78": "a " * 76, "77": "a " * 75,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")
@pytest.mark.parametrize("name", ODD)
def test_video_keeps_an_odd_prompt_or_refuses_it(model, work, name) -> None:
    """Case 32: emoji, Chinese, a newline, NUL, a quote, ten kilobytes; in every kind of file."""
    try:
        video = kg.generate(model, ODD[name], num_frames=2, num_inference_steps=2, height=16, width=16, seed=1)
    except kg.InputError:
        return
    for ending in (".mp4", ".gif", ".webp", ""):
        with contextlib.suppress(kg.InputError):
            assert kg.open_video(video.save(work / f"x{ending}")).settings["prompt"] == ODD[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji", "newline", "10kB"])
def test_odd_prompt_may_name_the_file(sd_folder, work, monkeypatch: pytest.MonkeyPatch, name) -> None:
    """Case 32: no output path given, so that the prompt names the file."""
    monkeypatch.chdir(work)
    assert not run("generate", ODD[name], "--model", sd_folder, *SMALL).crashed


@pytest.mark.parametrize(
    "prompt", ["", " \n", "\u200b \ufeff", "()", "BREAK", "\0", "( BREAK [", "a" * 20_001, "a\ud800"]
)
def test_prompt_without_a_word_is_refused(model, prompt: object) -> None:
    with pytest.raises(kg.InputError, match=r"prompt|describe"):
        kg.generate(model, prompt)
    with pytest.raises(kg.InputError, match=r"prompt|describe"):
        kg.generate(model, "a cat", prompt_at={2: prompt})


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [",,,", "(,:1.3)", "👩\u200d🚀", "a\u200bb", "-1", "<|endoftext|> a", r"\(", ")("])
def test_odd_prompt_has_a_video(model, prompt: str) -> None:
    video = kg.generate(model, prompt, **FEW)
    assert video.settings["prompt"] == prompt


def test_prompt_that_is_no_utf8_ends_without_a_traceback(work) -> None:
    """Case 33 (sd-scripts#513): a Latin-1 byte on the command line, which Python makes a surrogate."""
    said = run("generate", "a caf\udce9 on a street", *POCKET, "-o", work / "x.mp4")
    assert not said.crashed and said.status == 2 and "no UTF-8" in said.text
    said = run("generate", "a street", "--negative-prompt", "a caf\udce9", *POCKET, "-o", work / "x.mp4")
    assert not said.crashed and said.status == 2 and "no UTF-8" in said.text


# --- consoles


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_path_is_told_on_a_console_that_is_not_utf8(work, monkeypatch: pytest.MonkeyPatch, encoding) -> None:
    """Case 34 (sd-scripts#513, rich#212): Windows' cp1252, and PYTHONIOENCODING."""
    monkeypatch.chdir(work)
    said = run("generate", "a fish 一条鱼", *POCKET, "--seed", 1, encoding=encoding)
    assert said.status == 0 and not said.crashed
