"""Stages of the video models: clips, their captions, and all stages in miniature."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from tiny_unets import with_temporal_layers
from tiny_videos import two_levels, videocrafter
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from kineograph.models.conditioning.condition import Condition
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph.models.pocket import models
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph_lab.models import open_degraded_video, open_space_time
from kineograph_lab.recipe import outputs, run, unpack
from kineograph_lab.recipe.export import export_video_models
from kineograph_lab.recipe.image import unet as image_unet
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.recipe.video import batches as screenings
from kineograph_lab.recipe.video import (
    clips,
    degraded,
    image_to_video,
    motion_readout,
    temporal_layers,
    text_encoder,
    text_to_video,
)
from kineograph_lab.studies.frame_metrics import relative_sharpness, watermark_correlation
from kineograph_lab.world import world
from kineograph_lab.world.truth import CONTROL_MAPS

SMALL = RecipeSettings(
    num_clips=2, num_stills=4, num_held_out_clips=2, num_report_videos=0, num_clip_captions=16,
    num_degraded_clips=2, num_decoder_clips=2, num_panned_clips=2,
).model_copy(
    update={
        name: StagePlan(minutes=1, steps=1, lr=1e-3, batch=2)
        for name in (
            "moving_text", "text_to_video", "ablation", "image_reading", "image_to_video", "degraded", "vidrd",
            "temporal_decoder", "motion_adapter", "space_time",
        )
    }
)  # fmt: skip


STAGES = ["moving_text", "text_to_video", "films_only", "image_reading", "image_to_video", "degraded"]
STAGES += ["vidrd", "temporal_decoder", "motion_adapter", "space_time", "space_time_motion"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before left."""
    folder = tmp_path_factory.mktemp("out")
    kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text": CLIPTextModel, "clip": CLIPModel}
    for part, kind in kinds.items():
        net = kind.from_pretrained(POCKET / {"text": "text_encoder"}.get(part, part), dtype=torch.float32)
        net.save_pretrained(folder / part / "final")
    shutil.copytree(POCKET / "tokenizer", folder / "text" / "tokenizer")
    return folder


def test_a_clip_is_a_function_of_its_seed(tmp_path: Path) -> None:
    encoded_frames: list[np.ndarray] = []

    def encode(frames: np.ndarray) -> torch.Tensor:
        encoded_frames.append(frames)
        return torch.zeros(len(frames), 8, 16, 16)

    for _ in range(2):
        latents, facts = clips.random_clip(encode, np.random.default_rng(3), "train")
    assert latents.shape == (16, 8, 16, 16) and np.array_equal(*encoded_frames)
    assert facts["fps"] in clips.FRAME_RATES
    assert all(subject["motion"] == "still" for subject in facts["things"][1:])


@pytest.mark.slow
def test_short_clips_have_as_many_frames_a_step_as_whole_ones(out: Path) -> None:
    pool = clips.load_clip_pool(out / "films", out / "vae" / "final", 2, seed=0, split="train")
    stills = clips.load_still_pool(out / "films" / "stills", out / "vae" / "final", 2, seed=0, split="train")
    tokens = CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")
    draw = screenings.video_batches(pool, stills, 4, tokens, known_share=0)
    batches = [draw(np.random.default_rng(seed), 0.0) for seed in range(8)]
    assert {each[0].shape for each in batches} == {(8, 8, 8, 16, 16), (4, 16, 8, 16, 16)}
    for each in batches:
        assert each[6].shape == (*each[0].shape[:2], motion_readout.NUM_MOTIONS) and each[7].shape == each[2].shape
        assert each[8].shape == (8, 1, 8, 16, 16)
        assert each[6].mean(1).abs().max() < 1e-5
        assert torch.corrcoef(each[1][0].flatten(1))[0, 1:].mean().abs() < 0.03


def test_the_motion_truth_of_a_clip() -> None:
    subject = world.Subject("fish", "red", individual=1, motion="right")
    fact = {**asdict(world.ShotSpec("sea", "flat", (subject,))), "fps": 8.0, "time": 0.0, "captions": []}
    motion, is_subject = motion_readout.motion_truth(fact, world.frame_times(4, 8.0), 16)
    assert motion[:, 0] == pytest.approx(np.array([-1.5, -0.5, 0.5, 1.5]) * 0.2 / 8 / motion_readout.UNITS[0], abs=1e-5)
    assert not motion[:, 1:].any()
    assert is_subject.shape == (4, 16, 16) and 0 < is_subject.mean() < 1


def test_the_motion_readout_records_only_on_request() -> None:
    net = videocrafter(two_levels(cross_attention_dim=32))
    readout = motion_readout.MotionReadout(net.temporal)
    z, video_model = torch.randn(1, 5, 4, 8, 8), Condition(torch.ones(1, 7, 32))
    net(z, torch.tensor(1.0), video_model)
    assert readout.outputs == {}
    readout.record()
    net(z, torch.tensor(1.0), video_model)
    error = readout.error(torch.zeros(1, 5, motion_readout.NUM_MOTIONS), torch.zeros(1, 5, 16, 16))
    error.backward()
    assert error > 0 and readout.outputs == {}
    assert any(weight.grad is not None and weight.grad.any() for weight in net.temporal.parameters())


def test_an_error_common_to_all_frames_weighs_less() -> None:
    alike = torch.ones(1, 4, 8, 16, 16)
    apart = alike * torch.tensor([1.0, -1, 1, -1])[None, :, None, None, None]
    weight = torch.ones(1, 4, 16, 16)
    assert text_to_video.per_clip_error(alike, weight).item() == pytest.approx(1)
    assert text_to_video.per_clip_error(apart, weight).item() == pytest.approx(text_to_video.FRAME_DIFFERENCE_WEIGHT)
    assert text_to_video.per_clip_error(apart[:, :1], weight[:, :1]).item() == pytest.approx(1)


def test_a_layer_keeps_its_difference_to_the_image_networks() -> None:
    weights = {
        "image_unet.a": torch.tensor(3.0),
        "image_unet.a.lora_A": torch.tensor(2.0),
        "temporal.a": torch.tensor(1.0),
    }
    before, after = {"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, {"a": torch.tensor(10.0), "b": torch.tensor(5.0)}
    moved = text_to_video.move_to_other_unet(weights, before, after)
    assert {name: weight.item() for name, weight in moved.items()} == {
        "image_unet.a": 12.0, "image_unet.a.lora_A": 2.0, "temporal.a": 1.0,
    }  # fmt: skip


def test_known_frames_have_no_noise_and_their_error_no_weight() -> None:
    rng = np.random.default_rng(0)
    noised = screenings.sample_noised(
        rng, rng.standard_normal((2, 6, 8, 4, 4), np.float32), np.ones((2, 6, 4, 4), np.float32)
    )
    x0, noise, weight, t = screenings.clear_first_frames(noised, 2)
    assert not noise[:, :2].any() and noise[:, 2:].abs().mean() > 0.5
    assert not weight[:, :2].any() and torch.equal(weight[:, 2:], torch.ones_like(weight[:, 2:]))
    wrong = torch.zeros_like(noise)
    wrong[:, :2] = 5.0
    condition = Condition(torch.ones(2, 7, 32))
    error = text_to_video.weighted_noise_error(lambda *_: noise + wrong, condition, x0, noise, weight, t)
    assert error.item() == 0
    assert all(1 <= screenings.count_known_frames(rng, 8) <= 4 for _ in range(50))


def test_the_text_encoder_is_trained_on_clip_and_image_captions(out: Path) -> None:
    tokens = CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")
    clip_tokens, image_tokens, facts = text_encoder.sample_clip_captions(0, 8, "train", tokens)
    assert clip_tokens.shape == image_tokens.shape == (8, 48)
    assert facts.shape == (8, len(text_encoder.CLIP_FACTS))


@pytest.mark.slow
@pytest.mark.timeout(600)  # eleven stages, a step and a report each
def test_the_video_stages_train_and_export_models_that_load(out: Path, tmp_path: Path) -> None:
    run.train_stages(STAGES, SMALL, out)
    run.train_stages(STAGES, SMALL, out)  # ended stages are left alone
    weights = shutil.copytree(POCKET, tmp_path / "weights")
    for part in ("video", "animate", "video-degraded", "vidrd", "space-time"):
        shutil.rmtree(weights / part, ignore_errors=True)
    export_video_models(SMALL, out, weights, laboratory=weights)
    size = sum(
        file.stat().st_size for part in ("video", "animate") for file in (weights / part).rglob("*") if file.is_file()
    )
    assert size <= 16e6
    degraded_size = sum(file.stat().st_size for file in (weights / "video-degraded").iterdir())
    assert degraded_size <= 6e6
    for part in ("vidrd", "space-time"):
        assert sum(file.stat().st_size for file in (weights / part).rglob("*") if file.is_file()) <= 8e6
    video_model, animated_model = models.open_pocket_video(weights), models.open_pocket_animate(weights)
    degraded_model = open_degraded_video(weights, weights / "video-degraded")
    for each in (video_model, degraded_model):
        assert each.scheduler["num_train_timesteps"] == text_to_video.TIMESTEPS
    temporal = degraded_model.temporal.state_dict()
    assert all(torch.equal(each, temporal[name]) for name, each in video_model.temporal.state_dict().items())
    assert video_model.temporal.config == animated_model.temporal.config == text_to_video.TEXT_TO_VIDEO
    assert (weights / "video" / "motion_adapter.safetensors").stat().st_size <= 1e6
    space_time_model = open_space_time(weights, weights / "space-time")
    assert space_time_model.temporal.config == temporal_layers.SPACE_TIME_CONFIG
    loaded = (video_model, animated_model, degraded_model, space_time_model)
    assert all(each.motion_adapter is not None for each in loaded)
    assert animated_model.image_encoder is not None and video_model.image_encoder is None
    animated_weights = dict(animated_model.unet.named_parameters())
    assert all(torch.equal(weight, animated_weights[name]) for name, weight in video_model.unet.named_parameters())


@pytest.mark.slow
def test_a_stage_starts_from_the_shipped_weights(tmp_path: Path) -> None:
    unpack.unpack_shipped(tmp_path)
    opened = models.open_pocket_video(POCKET)
    net = outputs.load_text_to_video(tmp_path)
    for ours, theirs in ((net.image_unet, opened.unet), (net.temporal, opened.temporal)):
        assert all(torch.equal(each, theirs.state_dict()[name]) for name, each in ours.state_dict().items())
    results = [result for _, result in run.STAGES.values() if (tmp_path / result).exists()]
    assert {"vae/final", "control/pose.safetensors", outputs.TEXT_TO_VIDEO} <= set(results)
    written = (tmp_path / outputs.TEXT_TO_VIDEO).stat().st_mtime_ns
    unpack.unpack_shipped(tmp_path)  # leaves what is there
    assert (tmp_path / outputs.TEXT_TO_VIDEO).stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.timeout(600)  # six stages, a step each
def test_stages_go_on_from_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_unet, "STEPS", 2)
    unpack.unpack_shipped(tmp_path)
    unpack.unpack_shipped(tmp_path / "shipped")
    still = StagePlan(minutes=1, steps=1, lr=0.0, batch=2)
    settings = SMALL.model_copy(
        update={"initial": "shipped", "num_images": 4, "num_held_out_images": 8, "num_edit_families": 2}
        | {"num_judge_held_out": 2}
        | {name: still for name, value in SMALL if isinstance(value, StagePlan)}
    )
    names = ["control", "edit", "text_to_video", "image_to_video", "vidrd", "space_time"]
    results = [f"control/{kind}.safetensors" for kind in CONTROL_MAPS]
    results += [run.STAGES[name][1] for name in names[1:]]
    for result in results:
        (tmp_path / result).unlink()
    run.train_stages(names, settings, tmp_path)
    for result in results:
        before, after = load_file(tmp_path / "shipped" / result), load_file(tmp_path / result)
        assert before.keys() == after.keys()
        for name, weight in after.items():
            torch.testing.assert_close(weight, before[name], msg=lambda text, at=name: f"{at}: {text}")


def test_results_of_chosen_stages_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_stages: list[list[str]] = []
    monkeypatch.setattr(run, "train_stages", lambda chosen, settings, out: chosen_stages.append(chosen))
    (tmp_path / "motion_adapter.safetensors").write_text("trained here")
    run.recipe_main(["--from-shipped", "--stages", "vidrd,control", "--out", str(tmp_path)])
    assert chosen_stages == [["vidrd", "control"]]
    is_subject = {name for name, (_, result) in run.STAGES.items() if (tmp_path / result).exists()}
    assert {"vae", "text", "unet", "clip", "text_to_video", "temporal_decoder"} <= is_subject
    assert "vidrd" not in is_subject and not [*(tmp_path / "control").glob("*.safetensors")]
    assert (tmp_path / "motion_adapter.safetensors").read_text() == "trained here"


def test_a_degraded_clip_is_blurred_and_watermarked() -> None:
    shot = world.ShotSpec("sea", "flat", (world.Subject("fish", "red", individual=1),))
    clean = world.render_clip(shot, 2)
    bad = degraded.degrade_frames(clean)
    assert bad.shape == clean.shape and bad.dtype == clean.dtype
    assert relative_sharpness(bad, clean) < 0.7
    assert abs(watermark_correlation(clean)) < 0.2 and watermark_correlation(bad) > 0.5


def test_image_layers_by_name() -> None:
    names = ["temporal.after.conv_in.norm.weight", "image_unet.a.attn2.processor.to_k_ip.0.weight",
             "image_unet.encoder_hid_proj.image_projection_layers.0.latents", "image_unet.conv_in.weight"]  # fmt: skip
    assert [image_to_video.is_image_layer(name) for name in names] == [False, True, True, False]


def test_frame_rate_embeddings_are_amplified_around_the_usual_rate() -> None:
    net = with_temporal_layers(
        TemporalConfig(layers=((Site("transformer"), TransformerConfig(head_width=8)),), frame_rate=True)
    )
    rates = net.temporal.fps
    torch.nn.init.normal_(rates.embedding.linear_2.weight)
    video_model = torch.tensor([text_to_video.USUAL_FPS, 4.0, 16.0])
    before = rates(video_model)
    text_to_video.amplify_frame_rates(net)
    after = rates(video_model)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after - after[:1], text_to_video.FPS_GAIN * (before - before[:1]))
    text_to_video.amplify_frame_rates(net, 1 / text_to_video.FPS_GAIN)
    torch.testing.assert_close(rates(video_model), before)
