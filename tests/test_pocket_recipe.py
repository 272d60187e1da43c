"""How the pocket models are trained: each piece, and the whole recipe in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel

from kineograph.models.pocket.networks import initial_controlnet, initial_editing_unet, restore_network
from kineograph.training.group_norm import FastGroupNorm, use_fast_group_norm
from kineograph.training.optimisers import Hyperparameters, adamw_and_muon, muon_names
from kineograph_lab.judge import training
from kineograph_lab.judge.networks import Judge, load_judge
from kineograph_lab.recipe import loop, networks, pool, run
from kineograph_lab.recipe.export import export_image_models
from kineograph_lab.recipe.image import clip, unet
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.world.world import Shot, Subject

PLAN = StagePlan(minutes=1, steps=6, lr=1e-2, batch=4, warmup=2)


def regression(rng: np.random.Generator, progress: float) -> loop.Batch:
    x = torch.from_numpy(rng.standard_normal((4, 20), np.float32))
    return x, x.flip(1)


def squared(net: nn.Module, batch: loop.Batch) -> dict[str, torch.Tensor]:
    return {"squared": (net(batch[0]).float() - batch[1]).square().mean()}


def train(folder: Path, sample_batch=regression) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.SiLU(), nn.Linear(32, 20))
    return loop.train_loop(net, PLAN, folder, sample_batch=sample_batch, loss=squared, report=lambda _: {})


def test_a_stage_that_was_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    calls = []

    def killed_at_the_fourth(rng, progress):
        calls.append(progress)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return regression(rng, progress)

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", killed_at_the_fourth)
    resumed = train(tmp_path / "killed")
    for name, weight in whole.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name], weight, atol=1e-6), name


def test_the_log_is_lines_of_json(tmp_path):
    train(tmp_path / "stage")
    lines = [json.loads(line) for line in (tmp_path / "stage" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6
    assert lines[-1]["end"] == 1


def test_the_rate_rises_then_falls_to_zero():
    assert PLAN.learning_rate(0, 0.0) == pytest.approx(PLAN.lr / 2)
    assert PLAN.learning_rate(5, 0.5) == pytest.approx(PLAN.lr / 2)
    assert PLAN.learning_rate(9, 1.2) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_norms_are_group_norms(dtype):
    torch.manual_seed(0)
    usual = nn.GroupNorm(4, 16)
    nn.init.normal_(usual.weight)
    quick = FastGroupNorm(4, 16)
    quick.load_state_dict(usual.state_dict())
    x = (torch.randn(3, 16, 5, 6) + 0.5).to(dtype).to(memory_format=torch.channels_last)
    out, gradients = [], []
    for norm in (usual.double(), quick):
        there = x.double() if norm is usual else x
        there = there.detach().requires_grad_()
        out.append(norm(there))
        out[-1].square().sum().backward()
        gradients.append((there.grad, norm.weight.grad, norm.bias.grad))
    loose = 1e-4 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(out[1].double(), out[0], rtol=loose, atol=loose)
    for quickly, usually in zip(gradients[1], gradients[0], strict=True):
        assert (quickly.double() - usually).norm() < loose * usually.norm()


def test_quick_norms_keep_parameters_and_names():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
    before = dict(net.named_parameters())
    after = dict(use_fast_group_norm(net).named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is weight for name, weight in before.items())


def test_matrices_are_views_of_the_weights():
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Linear(32, 20)).to(memory_format=torch.channels_last)
    numbers = Hyperparameters(0.1, (0.9, 0.99), 1e-8, adamw_decay=0.0, muon_decay=0.0)
    names = muon_names(net)
    optimisers = adamw_and_muon(net, names, numbers, cores=2)
    assert names == {"0.weight", "1.weight"}
    for name in names:
        assert optimisers.parameters[name].data_ptr() == net.get_parameter(name).data_ptr()
    assert len(optimisers.each) == 3


def test_the_tokenizer_takes_any_text():
    tokens = networks.build_tokenizer(["a red fish over the sea", "a blue car in a city"])
    for text in ("a red fish", "naïve zebra, 日本!", "x"):
        taken = tokens(text).input_ids
        assert taken[0] == tokens.bos_token_id
        assert taken[-1] == tokens.eos_token_id
        assert tokens.unk_token_id not in taken[1:-1]
    assert len(tokens("red fish").input_ids) == 4
    assert networks.tokenize(tokens, ["a red fish", ""]).shape == (2, 48)


def test_a_wrong_caption_swaps_the_colours_of_two_things():
    rng = np.random.default_rng(0)
    two = Shot("sea", "flat", (Subject("cat", "red", 1), Subject("car", "blue", 2)))
    assert [t.colour for t in clip.change_colours(two, rng).things] == ["blue", "red"]
    one = Shot("sea", "flat", (Subject("cat", "red", 1),))
    assert clip.change_colours(one, rng).things[0].colour != "red"


def test_every_second_wrong_caption_is_of_another_thing():
    rng = np.random.default_rng(0)
    shot = Shot("sea", "flat", (Subject("fish", "red", 1), Subject("bird", "blue", 2)))
    assert all(clip.change_kind(shot, rng).things[0].kind != shot.things[0].kind for _ in range(20))
    assert clip.change_kind(shot, rng).things[1:] == shot.things[1:]


def test_the_pool_is_a_function_of_its_seed(tmp_path):
    pools = [pool.load_pool(tmp_path / name, 3, seed=5, split="held_out") for name in "ab"]
    assert np.array_equal(pools[0].items, pools[1].items)
    assert pools[0].facts == pools[1].facts
    shot = pool.shot_from_facts(pools[0].facts[0])
    assert shot.things[0].kind == pools[0].facts[0]["things"][0]["kind"]


def test_a_family_is_of_one_kind_colour_and_style():
    pictures, told = training.individual_family(np.random.default_rng(0), "train")
    assert pictures.shape == (8, 128, 128, 3)
    assert len({(t["thing"], t["colour"], t["style"]) for t in told}) == 1


def test_the_judge_answers_for_any_size():
    judge = Judge().eval()
    looks = judge.classify(np.zeros((2, 96, 160, 3), np.uint8))
    assert len(looks.thing) == len(looks.scene) == 2
    assert looks.individual.shape == (2, 32)
    assert np.linalg.norm(looks.individual, axis=1) == pytest.approx(1, abs=1e-4)
    assert isinstance(judge.classify_motion(np.zeros((5, 128, 128, 3), np.uint8)), str)


@pytest.mark.timeout(600)  # eight stages, each a step and a look at it
def test_the_recipe_trains_all_and_exports_what_diffusers_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(unet, "STEPS", 2)
    small = RecipeSettings(
        num_images=12,
        num_held_out_images=64,
        num_held_out_pairs=4,
        num_families=6,
        num_motion_clips=2,
        num_edit_families=2,
        num_judge_held_out=2,
    )
    plans = {
        "geometry": 4,
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
    run.run_stages(stages, settings, tmp_path / "out")
    run.run_stages(stages, settings, tmp_path / "out")  # ended stages are left alone
    export_image_models(settings, tmp_path / "out", tmp_path / "weights")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "weights", safety_checker=None)
    assert pipeline.unet.config["in_channels"] == pipeline.vae.config["latent_channels"]
    assert CLIPModel.from_pretrained(tmp_path / "weights" / "clip").dtype is torch.float32
    assert load_judge(tmp_path / "weights" / "judge" / "judge.safetensors")
    assert "a" in json.loads((tmp_path / "weights" / "vocabulary.json").read_text())
    sizes = {name: size(tmp_path / "weights" / name) for name in ("control", "edit")}
    assert sum(sizes.values()) <= 16e6
    assert size(tmp_path / "weights") - sum(sizes.values()) <= 38e6
    drawer = UNet2DConditionModel.from_pretrained(tmp_path / "weights" / "unet", torch_dtype=torch.float32)
    for kind in ("canny", "depth", "pose"):
        assert restore_network(
            initial_controlnet(drawer), load_file(tmp_path / "weights" / "control" / f"{kind}.safetensors")
        )
    editor = restore_network(
        initial_editing_unet(drawer), load_file(tmp_path / "weights" / "edit" / "edit.safetensors")
    )
    assert editor.config["in_channels"] == 2 * drawer.config["in_channels"]


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_unknown_stages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the stages are vae, text, unet, clip, control, .* temporal_decoder, not vea"):
        run.run_stages(["vea"], RecipeSettings(), tmp_path)
