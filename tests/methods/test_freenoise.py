"""FreeNoise: its three parts alone, and reductions to plain sampling."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from models.conftest import sd
from torch import Tensor

import kineograph as kg
from kineograph.errors import InputError
from kineograph.generation.check import check, complete
from kineograph.generation.options import find_method
from kineograph.generation.resolve import Inputs, resolve
from kineograph.methods.freenoise import fused_windows, noise_order, permute_by_seed
from kineograph.models.loading.describe import describe
from kineograph.models.model import Model
from kineograph.models.temporal.config import AttentionConfig, ConvConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.layers import AttentionInBlock, AttentionPolicy, TemporalBlock
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.unet.windows import average_windows
from kineograph.samplers import final_latents

FISH, CAT, WINDOW = "a fish", "the cat", 4
FEW: dict[str, Any] = {"num_inference_steps": 3, "num_frames": 7, "seed": 1, "guidance_scale": 3.0, "window_stride": 2}
CLOSE = 1e-4


@cache
def video_model(*layers: Any) -> Model:
    """A video model of four frames, whose temporal layers are not the identity."""
    image = kg.load(sd())
    layers = layers or ((Site("transformer"), TransformerConfig(heads=2, positions=WINDOW)),)
    torch.manual_seed(4)
    temporal = TemporalLayers(image.net.image_unet, TemporalConfig(layers=layers, num_frames=WINDOW))
    for weight in temporal.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return replace(image, net=VideoUNet(image.net.image_unet, temporal).eval())


def latents(method: str, *prompts: str, model: Model | None = None, **options: Any) -> Tensor:
    options = {**FEW, **options}
    if method != "freenoise" or options["num_frames"] <= WINDOW:
        options.pop("window_stride")
    plan = resolve(model or video_model(), prompts or (FISH,), complete({**options, "method": method}), Inputs())
    return final_latents(find_method(method).run(plan).steps)


# --- noise


def test_every_window_has_the_noise_of_the_first_in_another_order() -> None:
    order = noise_order(range(100, 137), 16, 4, partial(permute_by_seed, 7, 4))
    assert order[:16] == [*range(100, 116)]
    assert len(order) == 37
    for start in range(0, 21, 4):
        assert Counter(order[start : start + 16]) == Counter(range(100, 116))
    assert order[16:32] != order[:16]
    assert {*order[36:]} <= {*range(104, 108)}  # an incomplete block takes the first of its permutation


def test_frames_of_one_window_have_their_own_noise() -> None:
    assert noise_order(range(12), 16, 4, partial(permute_by_seed, 7, 4)) == [*range(12)]


def test_permutations_depend_on_the_seed_and_the_frame() -> None:
    orders = [tuple(permute_by_seed(seed, 8, frame)) for seed in range(4) for frame in range(4)]
    assert all(sorted(order) == [*range(8)] for order in orders)
    assert len({*orders}) == len(orders)
    assert permute_by_seed(7, 4, 16) == [2, 3, 0, 1]  # the same on every machine


# --- windows


@pytest.mark.parametrize("frames", [3, 8, 9, 11, 12, 19])
@pytest.mark.parametrize("weights", ["pyramid", "flat"])
def test_windows_hold_every_frame(frames: int, weights: Any) -> None:
    windows = fused_windows(8, 4, weights, frames)
    assert {k for each in windows for k, weight in zip(each.frames, each.weights, strict=True) if weight} == {
        *range(frames)
    }
    assert all(len(each.frames) == min(8, frames) for each in windows)
    x = torch.randn(2, frames, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(average_windows(lambda part, _: 2 * part, x, windows), 2 * x)


def test_the_last_window_is_for_the_frames_that_no_other_holds() -> None:
    *_, last = fused_windows(8, 4, "pyramid", 14)
    assert last.frames == range(6, 14)
    assert last.weights == [0.0] * 6 + [1.0] * 2


def average_by_hand(attend: Any, x: Tensor, size: int, stride: int) -> Tensor:
    """Return the mean over windows, frame by frame, weighted by the distance to the window's nearer end."""
    starts = [*range(0, x.shape[1] - size + 1, stride)]
    outputs = {start: attend(x[:, start : start + size]) for start in starts}
    frames = []
    for k in range(x.shape[1]):
        held = [start for start in starts if start <= k < start + size]
        if not held:
            frames.append(attend(x[:, -size:])[:, k - x.shape[1]])
            continue
        weights = [min(k - start, start + size - 1 - k) + 1 for start in held]
        parts = [weight * outputs[start][:, k - start] for start, weight in zip(held, weights, strict=True)]
        frames.append(sum(parts[1:], parts[0]) / sum(weights))
    return torch.stack(frames, dim=1)


@pytest.mark.parametrize("frames", [8, 10, 13])
def test_attentions_run_in_windows_and_the_feed_forward_on_all_frames(frames: int) -> None:
    torch.manual_seed(0)
    block = TemporalBlock(8, 2, 4, TransformerConfig(heads=2, positions=4)).eval()
    x = torch.randn(5, frames, 8)
    with torch.no_grad():
        found = block(x, AttentionPolicy(windows=partial(fused_windows, 4, 3, "pyramid")))
        attended = average_by_hand(lambda part: block._attend(part, AttentionPolicy().project), x, 4, 3)
        torch.testing.assert_close(found, block.ff(block.norm3(attended)) + attended)


def test_attention_inside_spatial_blocks_runs_in_windows() -> None:
    torch.manual_seed(0)
    layer = AttentionInBlock(8, AttentionConfig(heads=2, positions=4)).eval()
    torch.nn.init.normal_(layer.temp_attn.to_out[0].weight)
    tokens = torch.randn(5, 10, 8)  # pixels, frames, channels
    with torch.no_grad():
        folded = tokens.transpose(0, 1)  # (b f) n c, of one video
        found = layer(folded, 10, AttentionPolicy(windows=partial(fused_windows, 4, 3, "pyramid")))
        wanted = average_by_hand(lambda part: layer._attend(part, AttentionPolicy().project), tokens, 4, 3)
        torch.testing.assert_close(found.transpose(0, 1), wanted)


# --- the method


def test_frames_of_one_window_are_sampled_plainly() -> None:
    assert torch.equal(latents("freenoise", num_frames=4), latents("videocrafter", num_frames=4))


@pytest.mark.slow
def test_more_frames_than_the_model_has_positions_are_sampled_together() -> None:
    found = latents("freenoise")
    assert found.shape == (1, 7, 4, 8, 8) and found.isfinite().all()
    for changed in ({"window_weights": "flat"}, {"window_stride": 1}, {"window": 3}, {"seed": 2}):
        assert (latents("freenoise", **changed) - found).abs().max() > CLOSE


@pytest.mark.parametrize("sampler", ["ddim", "euler-ancestral"])
def test_a_batch_has_the_videos_of_its_seeds(sampler: str) -> None:
    both = latents("freenoise", FISH, CAT, sampler=sampler)
    alone = latents("freenoise", CAT, sampler=sampler, seed=2)
    assert (both[1:] - alone).abs().max() <= CLOSE * alone.std()


def test_every_kind_of_temporal_attention_has_windows() -> None:
    inside = (Site("cross_attention"), AttentionConfig(heads=2, positions=WINDOW))
    found = latents("freenoise", model=video_model(inside, (Site("resnet"), ConvConfig())))
    assert found.shape[1] == 7 and found.isfinite().all()


@pytest.mark.slow
def test_motion_injection_limits_the_later_prompts_to_layers_and_noise_levels() -> None:
    everywhere = latents("freenoise", prompt_at={6: CAT}, injection_start=0.0, injection_end=1.0)
    usual = latents("freenoise", prompt_at={6: CAT}, injection_end=0.5)
    nowhere = latents("freenoise", prompt_at={6: CAT}, injection_start=0.99, injection_end=1.0)
    constant = latents("freenoise", prompt_at={6: FISH})
    plain = latents("freenoise")
    for one, other in ((everywhere, usual), (usual, nowhere), (nowhere, plain)):
        assert (one - other).abs().max() > 10 * CLOSE * plain.std()
    assert (constant - plain).abs().max() <= CLOSE * plain.std()


def test_the_down_blocks_read_a_text_of_their_own() -> None:
    model = video_model()
    condition, other = model.prompt([FISH]), model.prompt([CAT])
    key_values = model.net.project_tokens(replace(condition, down_tokens=other.tokens))
    up, down = (model.net.project_tokens(each) for each in (condition, other))
    names = {layer: name for name, layer in model.net.image_unet.named_modules() if layer in key_values}
    assert {name.split("_")[0] for name in names.values()} == {"up", "down", "mid"}
    for layer, name in names.items():
        wanted = up if name.startswith("up") else down
        assert torch.equal(key_values[layer][0].key, wanted[layer][0].key)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("image", {}, "temporal attention over all frames: .* has none"),
        ("convolutions", {}, "temporal attention over all frames: .* has none"),
        ("video", {"window_stride": 5}, "`window_stride` is at most the window, 4 frames, not 5"),
        ("video", {"injection_end": 0.5}, "`injection_end` does nothing here: it is read with `prompt_at`"),
        ("video", {"overlap": 1}, "`overlap` does nothing here, with freenoise: it is read by videocrafter"),
    ],
)
def test_what_is_refused(model: str, options: dict[str, Any], message: str) -> None:
    models = {"image": lambda: kg.load(sd()), "convolutions": lambda: video_model((Site("resnet"), ConvConfig()))}
    with pytest.raises(InputError, match=message):
        kg.generate(models.get(model, video_model)(), FISH, **{**FEW, "method": "freenoise", **options})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`prompt_at` acts")
def test_a_video_replays(tmp_path: Any) -> None:
    options = {**FEW, "prompt_at": {6: CAT}, "clips": 2, "num_frames": 6}
    video = kg.generate(video_model(), FISH, method="freenoise", **options)
    assert video.settings["window_stride"] == 2 and "overlap" not in video.settings
    video.save(tmp_path / "a.mp4")
    assert (kg.replay(tmp_path / "a.mp4", model=video_model()).frames == video.frames).all()


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"num_frames": 40}, "freenoise"),
        ({"num_frames": 16}, "videocrafter"),
        ({}, "videocrafter"),
        ({"num_frames": 40, "overlap": 4}, "videocrafter"),
        ({"num_frames": 40, "method": "videocrafter"}, "videocrafter"),
        ({"num_frames": 40, "width": 512, "height": 512}, "videocrafter"),
        ({"num_frames": 40, "window": 8}, "videocrafter"),
    ],
)
def test_it_is_the_default_for_more_frames_than_a_model_was_trained_on(options: dict[str, Any], method: str) -> None:
    model = describe("pocket-video")
    assert model is not None
    assert check(model, None, complete(options)).method == method
