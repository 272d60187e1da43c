"""Stages of the image models: each part, and all stages in miniature."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel

from kineograph.models.pocket.networks import (
    initial_controlnet,
    initial_editing_unet,
    make_trainable,
    restore_network,
    trained_weights,
)
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.judge.parts import load_parts_network
from kineograph_lab.recipe import networks, pool, run
from kineograph_lab.recipe.export import export_image_models
from kineograph_lab.recipe.image import clip, edit, unet
from kineograph_lab.recipe.image.controlnets import UNetWithControlNet
from kineograph_lab.recipe.image.edit import EditingUNet
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.networks import build_tokenizer
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.world.edits import ASPECTS, edit_family, instruction_phrases
from kineograph_lab.world.world import ShotSpec, Subject


def test_the_tokenizer_encodes_any_text() -> None:
    tokens = networks.build_tokenizer(["a red fish over the sea", "a blue car in a city"])
    for text in ("a red fish", "naïve zebra, 日本!", "x"):
        token_ids = tokens(text).input_ids
        assert token_ids[0] == tokens.bos_token_id
        assert token_ids[-1] == tokens.eos_token_id
        assert tokens.unk_token_id not in token_ids[1:-1]
    assert len(tokens("red fish").input_ids) == 4
    assert networks.tokenize(tokens, ["a red fish", ""]).shape == (2, 48)


def test_a_wrong_caption_swaps_the_colours_of_two_subjects() -> None:
    rng = np.random.default_rng(0)
    two = ShotSpec("sea", "flat", (Subject("cat", "red", 1), Subject("car", "blue", 2)))
    assert [t.colour for t in clip.change_colours(two, rng).things] == ["blue", "red"]
    one = ShotSpec("sea", "flat", (Subject("cat", "red", 1),))
    assert clip.change_colours(one, rng).things[0].colour != "red"


def test_every_second_wrong_caption_has_another_kind_of_subject() -> None:
    rng = np.random.default_rng(0)
    shot = ShotSpec("sea", "flat", (Subject("fish", "red", 1), Subject("bird", "blue", 2)))
    assert all(clip.change_kind(shot, rng).things[0].kind != shot.things[0].kind for _ in range(20))
    assert clip.change_kind(shot, rng).things[1:] == shot.things[1:]


def test_the_pool_is_a_function_of_its_seed(tmp_path) -> None:
    pools = [pool.load_pool(tmp_path / name, 3, seed=5, split="held_out") for name in "ab"]
    assert np.array_equal(pools[0].items, pools[1].items)
    assert pools[0].facts == pools[1].facts
    shot = pool.shot_from_facts(pools[0].facts[0])
    assert shot.things[0].kind == pools[0].facts[0]["things"][0]["kind"]


def test_edit_pairs_lead_to_the_edits_and_back(tmp_path) -> None:
    families = pool.load_pool(tmp_path, 3, seed=0, split="train", render=edit_family)
    texts = [text for fact in families.facts for way in ("there", "back") for each in fact[way] for text in each]
    tokens = build_tokenizer(texts)
    found, flat = edit.edit_pairs(families, tokens), edit.flatten_families(families)
    assert flat.items.shape == (15, 128, 128, 3) and len(flat.facts) == 15
    assert len(found.before) == len(found.after) == len(found.words) == 2 * 3 * len(ASPECTS)
    assert found.before[:4].tolist() == [0] * 4 and found.after[:4].tolist() == [1, 2, 3, 4]
    assert found.before[12:16].tolist() == [1, 2, 3, 4] and found.after[12:16].tolist() == [0] * 4
    read = tokens.batch_decode(found.words[5, :1].astype(int), skip_special_tokens=True)[0]
    assert read.replace(" ", "") == families.facts[1]["there"][1][0].replace(" ", "")
    assert "make it snow" in instruction_phrases()


@pytest.fixture(scope="module")
def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return networks.build_unet((32, 32, 64)).eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 8, 4, 4, generator=generator), torch.tensor([10.0, 500.0])
    maps = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return z, t, torch.randn(2, 5, networks.WIDTH, generator=generator), maps


@torch.no_grad()
def test_a_new_controlnet_changes_nothing(small_unet, inputs) -> None:
    before = small_unet(*inputs[:3]).sample
    assert torch.equal(
        UNetWithControlNet(small_unet, make_trainable(initial_controlnet(small_unet)).eval())(*inputs).sample, before
    )


@torch.no_grad()
def test_a_new_editing_unet_ignores_its_image_and_its_trained_weights_restore_it(small_unet, inputs) -> None:
    z, t, text_states, _ = inputs
    net, image_latents = make_trainable(initial_editing_unet(small_unet)).eval(), torch.randn_like(z)
    torch.testing.assert_close(
        EditingUNet(net)(z, t, text_states, image_latents).sample,
        small_unet(z, t, text_states).sample,
        rtol=1e-4,
        atol=1e-5,
    )
    for weight in net.parameters():
        if weight.requires_grad:
            weight.add_(0.05 * torch.randn_like(weight))
    again = restore_network(initial_editing_unet(small_unet), trained_weights(net)).eval()
    assert not any("lora" in name for name in again.state_dict())
    expected, got = (EditingUNet(each)(z, t, text_states, image_latents).sample for each in (net, again))
    assert (expected - EditingUNet(net)(z, t, text_states, 0 * image_latents).sample).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_trained_weights_restore_a_controlnet(small_unet, inputs) -> None:
    net = make_trainable(initial_controlnet(small_unet)).eval()
    for weight in net.parameters():
        if weight.requires_grad:
            weight.copy_(0.05 * torch.randn_like(weight))
    trained = trained_weights(net)
    again = restore_network(initial_controlnet(small_unet), trained).eval()
    assert not any("lora" in name for name in again.state_dict())
    assert again(*inputs[:3], controlnet_cond=torch.zeros(2, 3, 32, 32)).mid_block_res_sample.abs().sum() > 0
    expected, got = (UNetWithControlNet(small_unet, each)(*inputs).sample for each in (net, again))
    assert (expected - small_unet(*inputs[:3]).sample).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_other_trainedare_refused(small_unet) -> None:
    with pytest.raises(ValueError, match="not for this ControlNetModel"):
        restore_network(initial_controlnet(small_unet), {"x": torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.timeout(600)  # eight stages, a step and a report each
def test_the_stages_train_and_export_a_pipeline_that_diffusers_loads(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "STEPS", 2)
    small = RecipeSettings(
        num_images=12,
        num_held_out_images=64,
        num_held_out_pairs=4,
        num_families=6,
        num_motion_clips=2,
        num_edit_families=2,
        num_judge_held_out=2,
        num_part_images=4,
        num_part_held_out=6,
    )
    plans = {
        "geometry": 4,
        "parts": 4,
        "vae": 4,
        "text": 2,
        "clip": 2,
        "unet": 2,
        "control": 2,
        "edit": 2,
        "image_classifier": 16,
        "motion_classifier": 2,
    }
    settings = small.model_copy(
        update={name: StagePlan(minutes=1, steps=1, lr=1e-3, batch=size) for name, size in plans.items()}
    )
    stages = [
        name for name, (train, _) in run.STAGES.items() if train.__module__ == "kineograph_lab.recipe.image_stages"
    ]
    run.train_stages(stages, settings, tmp_path / "out")
    run.train_stages(stages, settings, tmp_path / "out")  # ended stages are left alone
    export_image_models(settings, tmp_path / "out", tmp_path / "weights", laboratory=tmp_path / "laboratory")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "weights", safety_checker=None)
    assert pipeline.unet.config["in_channels"] == pipeline.vae.config["latent_channels"]
    assert CLIPModel.from_pretrained(tmp_path / "weights" / "clip").dtype is torch.float32
    assert load_judge(tmp_path / "laboratory" / "judge" / "judge.safetensors")
    assert load_parts_network(tmp_path / "laboratory" / "judge" / "parts.safetensors")
    assert "goldfish" in json.loads((tmp_path / "weights" / "vocabulary.json").read_text())["subjects"]
    sizes = {name: size(tmp_path / "weights" / name) for name in ("control", "edit")}
    assert sum(sizes.values()) <= 16e6
    assert size(tmp_path / "weights") - sum(sizes.values()) <= 38e6
    trained_unet = UNet2DConditionModel.from_pretrained(tmp_path / "weights" / "unet", torch_dtype=torch.float32)
    for kind in ("canny", "depth", "pose"):
        assert restore_network(
            initial_controlnet(trained_unet), load_file(tmp_path / "weights" / "control" / f"{kind}.safetensors")
        )
    editing_unet = restore_network(
        initial_editing_unet(trained_unet), load_file(tmp_path / "weights" / "edit" / "edit.safetensors")
    )
    assert editing_unet.config["in_channels"] == 2 * trained_unet.config["in_channels"]


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_unknown_stages_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="the stages are vae, text, unet, clip, control, .* temporal_decoder, not vea"):
        run.train_stages(["vea"], RecipeSettings(), tmp_path)
