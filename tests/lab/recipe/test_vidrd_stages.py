"""VidRD's layers and the temporal decoder in the recipe: panned images, training, what ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

import kineograph as kg
from kineograph.models.conditioning.condition import Condition
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph.models.pocket import models
from kineograph.models.pocket.networks import restore_vidrd_unet, trainable_vidrd_unet
from kineograph.models.unet.video_unet import VideoUNet
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.recipe.video import clips, motion_readout, pan_and_zoom, temporal_decoder, temporal_layers

Rng = np.random.Generator


def panned_clip(seed: int = 0):
    """Return the frames of a panned clip and its facts."""
    encoded_frames: list[np.ndarray] = []

    def encode(frames: np.ndarray) -> torch.Tensor:
        encoded_frames.append(frames)
        return torch.zeros(len(frames), 8, 16, 16)

    _, fact = pan_and_zoom.random_panned_clip(encode, np.random.default_rng(seed), "train")
    return encoded_frames[0], fact


def panned_pool(count: int) -> Pool:
    facts = [panned_clip(seed)[1] for seed in range(count)]
    return Pool(np.zeros((count, 16, 8, 16, 16), np.float16), facts)


def test_a_panned_clip_has_moving_windows() -> None:
    frames, fact = panned_clip()
    assert frames.shape == (16, 128, 128, 3) and fact["fps"] in clips.FRAME_RATES
    assert np.array(fact["windows"]).min() >= 0 and np.array(fact["windows"]).max() <= 1 + 1e-6
    steps = np.abs(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))
    assert (steps > 0).all()
    first, last = (pan_and_zoom.frame_windows(fact)[k] for k in (0, -1))
    assert [list(first), list(last)] == [pytest.approx(each) for each in fact["windows"]]


def test_the_motion_truth_of_a_panned_clip() -> None:
    _, fact = panned_clip()
    fact["windows"] = [[0.0, 0.1, 0.8, 0.9], [0.2, 0.1, 1.0, 0.9]]
    motion, is_subject = pan_and_zoom.panned_motion(fact), pan_and_zoom.panned_subject_cells(fact)
    way = np.linspace(0.125, -0.125, 16)  # a fifth of the image to the left, in a window of four fifths
    assert motion[:, 0] == pytest.approx(way / motion_readout.UNITS[0], abs=1e-5)
    assert motion[:, 1:] == pytest.approx(0, abs=1e-5)
    centre = [np.argwhere(at == 0).mean(0)[1] / 16 for at in is_subject]
    assert centre[0] - centre[-1] == pytest.approx(0.25, abs=0.08)


def test_panned_clips_have_the_batches_of_rendered_clips() -> None:
    tokens = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    batches = [
        pan_and_zoom.panned_batches(panned_pool(3), 4, tokens)(np.random.default_rng(seed), 0.0) for seed in range(8)
    ]
    assert {each[0].shape for each in batches} == {(8, 8, 8, 16, 16), (4, 16, 8, 16, 16)}
    for clips_of_batch, noise, weights, timesteps, words, fps, motion, is_subject in batches:
        assert noise.shape == clips_of_batch.shape
        assert weights.shape == is_subject.shape == clips_of_batch[:, :, 0].shape
        assert motion.shape == (*clips_of_batch.shape[:2], motion_readout.NUM_MOTIONS)
        assert motion.mean(1).abs().max() < 1e-5
        assert timesteps.shape == fps.shape == (len(clips_of_batch),) and words.shape == (len(clips_of_batch), 48)
        assert (
            torch.tensor(clips.FRAME_RATES + tuple(rate / 2 for rate in clips.FRAME_RATES))
            .eq(fps[:, None])
            .any(1)
            .all()
        )


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 500), (1.0, 1000)])
def test_a_share_of_the_steps_has_panned_clips(share: float, expected: int) -> None:
    clip_pool = {name: torch.tensor([float(name == "panned")]) for name in ("films", "panned")}
    draw = temporal_layers.mix_batches(
        lambda rng, at: (clip_pool["films"],), lambda rng, at: (clip_pool["panned"],), share
    )
    found = sum(float(draw(np.random.default_rng((0, step)), 0.0)[0]) for step in range(1000))
    assert found == pytest.approx(expected, abs=50)


@pytest.mark.slow
def test_training_starts_as_the_video_model_without_its_temporal_layers() -> None:
    z, condition = (
        torch.randn(1, 3, 8, 16, 16),
        Condition(torch.ones(1, 7, 160).cumsum(1), embedding=torch.tensor([[8.0]])),
    )
    net = trainable_vidrd_unet(video_network(), temporal_layers.VIDRD_CONFIG).eval()
    with torch.no_grad():
        before = net.image_unet(z.flatten(0, 1), 500, condition.tokens.expand(3, -1, -1)).sample
        rate = net.temporal.fps(torch.tensor([8.0]))
        for weight in net.temporal.fps.parameters():
            weight.zero_()  # the frame rate's embedding is kept, and is not part of the image network
        assert torch.allclose(net(z, 500, condition)[0], before, atol=1e-5)
    assert rate.any(), "the embedding of frame rates is already trained"
    trained_names = [name for name, weight in net.named_parameters() if weight.requires_grad]
    assert {name.split(".")[0] for name in trained_names} == {"image_unet", "temporal"}
    assert all("lora_" in name for name in trained_names if name.startswith("image_unet"))
    assert set(temporal_layers.trained_layers(net)) == set(trained_names)
    assert sum(each.numel() for each in temporal_layers.trained_layers(net).values()) * 2 < 7e6, (
        "in float16, without its decoder"
    )


@pytest.mark.slow
def test_trained_layers_restore_the_network() -> None:
    torch.manual_seed(0)
    net = trainable_vidrd_unet(video_network(), temporal_layers.VIDRD_CONFIG).eval()
    for weight in net.parameters():
        weight.requires_grad and weight.data.add_(0.02 * torch.randn_like(weight))
    again = restore_vidrd_unet(
        video_network(), temporal_layers.VIDRD_CONFIG, temporal_layers.trained_layers(net)
    ).eval()
    z, condition = torch.randn(1, 3, 8, 16, 16), Condition(torch.ones(1, 7, 160), embedding=torch.tensor([[8.0]]))
    with torch.no_grad():
        assert torch.allclose(again(z, 500, condition), net(z, 500, condition), atol=1e-4)
    assert not any("lora_" in name for name in again.state_dict())


def test_the_motion_readout_reads_attention_inside_the_blocks() -> None:
    net = temporal_layers.TemporalLayersUNet(video_network(), temporal_layers.VIDRD_CONFIG)
    z, condition = torch.randn(1, 4, 8, 16, 16), Condition(torch.ones(1, 7, 160), embedding=torch.tensor([[8.0]]))
    net.questions.record()
    net.net(z, torch.tensor(1.0), condition)
    assert len(net.questions.answers) == 7
    assert net.questions.error(torch.zeros(1, 4, motion_readout.NUM_MOTIONS), torch.zeros(1, 4, 16, 16)) > 0


def video_network():
    opened = models.open_pocket_video(POCKET)
    return VideoUNet(opened.unet, opened.temporal)


def test_the_decoder_is_trained_on_crops_then_on_whole_clips(tmp_path: Path) -> None:
    clip_pool = temporal_decoder.load_pixel_clips(tmp_path, 2, seed=0, split="train")
    assert clip_pool.items.shape == (2, 8, 128, 128, 3)
    draw = temporal_decoder.decoder_batches(clip_pool, 8, 8)
    for progress, shape in ((0.0, (8, 8, 3, 64, 64)), (0.9, (2, 8, 3, 128, 128))):
        frames, latent_noise = draw(np.random.default_rng(0), progress)
        assert frames.shape == shape and latent_noise.shape == (*shape[:2], 8, shape[-1] // 8, shape[-1] // 8)
    levels = draw(np.random.default_rng(1), 0.0)[1].flatten(1).std(1)
    assert levels.max() < temporal_decoder.MAX_LATENT_NOISE + 0.01 and (levels == 0).any()


@pytest.mark.slow
def test_an_interrupted_decoder_stage_resumes(tmp_path: Path) -> None:
    clip_pool = temporal_decoder.load_pixel_clips(tmp_path, 2, seed=0, split="train")
    one, three = (StagePlan(minutes=1, steps=steps, lr=1e-3, batch=2) for steps in (1, 2))
    for plan in (one, three):
        torch.manual_seed(0)
        vae = AutoencoderKL.from_pretrained(POCKET / "vae", dtype=torch.float32)
        layers = temporal_decoder.train_temporal_decoder(vae, plan, tmp_path / "stage", clip_pool, clip_pool)
    log = (tmp_path / "stage" / "log.jsonl").read_text()
    assert '"step": 1.0' in log and '"step": 2.0' in log and "flicker_steady" in log
    assert layers.config == temporal_decoder.decoder_config(vae)
    assert RecipeSettings().vidrd_ablation.steps, "both trainings of the ablation are as long"


@pytest.mark.slow
def test_the_shipped_model_decodes_clips_with_its_temporal_decoder() -> None:
    model = kg.load("pocket-vidrd", device="cpu")
    trained_before = temporal_layers.VIDRD_CONFIG.model_copy(update={"clean_frames": False})
    assert model.temporal == trained_before and model.temporal_decoder is not None
    assert sum(file.stat().st_size for file in (POCKET / "vidrd").rglob("*.safetensors")) <= 8e6
    two = kg.generate(model, "a red fish", num_frames=4, num_inference_steps=2, clips=2, seed=1)
    assert two.frames.shape == (8, 128, 128, 3)
    alone = replace(model, temporal_decoder=None)
    plain = kg.generate(alone, "a red fish", num_frames=4, num_inference_steps=2, clips=2, seed=1)
    assert (two.frames != plain.frames).any(), "the temporal layers take part"


def test_the_temporal_decoder_loads_with_the_image_model() -> None:
    model = kg.load(decoder="pocket-vidrd", device="cpu")
    assert model.temporal_decoder is not None and model.temporal is None


def test_shipped_weights_take_at_most_90_megabytes() -> None:
    assert sum(file.stat().st_size for file in POCKET.rglob("*.safetensors")) <= 90e6
