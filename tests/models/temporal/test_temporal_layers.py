"""Temporal layers around an image U-Net: their effect, their sites, the frame rate, and training."""

from dataclasses import replace

import pytest
import torch
from tiny_temporal import (
    BETAS,
    COND,
    COND_WITHOUT_RATE,
    CONFIGS,
    PLAIN_LAYERS,
    B,
    F,
    T,
    Z,
    condition_for,
    random_tensor,
)
from tiny_unets import randomised, sdxl, unet, with_temporal_layers
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.methods.videocrafter import loss, sample
from kineograph.models.conditioning.condition import Condition
from kineograph.models.schedule import PARAMETERISATIONS, Schedule
from kineograph.models.temporal.config import TemporalConfig, TransformerConfig, split_heads
from kineograph.models.temporal.layers import RelativePositions, TemporalAttention, TemporalTransformer
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.samplers import ddim, final_latents

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@torch.no_grad()
@each_config
def test_an_untrained_video_unet_equals_the_image_unet(config: TemporalConfig) -> None:
    net, plain = with_temporal_layers(config), COND_WITHOUT_RATE
    assert torch.equal(net(Z, T, condition_for(config)), VideoUNet(net.image_unet)(Z, T, plain))


@torch.no_grad()
@each_config
def test_temporal_layers_do_not_apply_to_a_single_frame(config: TemporalConfig) -> None:
    net, plain = randomised(with_temporal_layers(config)), COND_WITHOUT_RATE
    assert torch.equal(net(Z[:, :1], T, condition_for(config)), VideoUNet(net.image_unet)(Z[:, :1], T, plain))


@torch.no_grad()
@each_config
def test_frames_of_a_video_interact_and_videos_of_a_batch_do_not(config: TemporalConfig) -> None:
    net = randomised(with_temporal_layers(config))
    before = net(Z, T, condition_for(config))
    changed = Z.clone()
    changed[0, 0] += 1
    moved = (net(changed, T, condition_for(config)) - before).abs().amax((2, 3, 4))
    assert (moved[0] > 1e-4).all()
    assert (moved[1] < 1e-6).all()


@torch.no_grad()
def test_without_positions_the_result_is_equivariant_to_the_order_of_frames() -> None:
    net, order = randomised(with_temporal_layers(TemporalConfig(layers=PLAIN_LAYERS))), [3, 0, 4, 1, 2]
    plain = COND_WITHOUT_RATE
    torch.testing.assert_close(net(Z[:, order], T, plain), net(Z, T, plain)[:, order], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["videocrafter t2v", "videocrafter i2v", "animatediff"])
def test_with_relative_positions_convolutions_or_positions_the_order_matters(name: str) -> None:
    net, order = randomised(with_temporal_layers(CONFIGS[name])), [3, 0, 4, 1, 2]
    difference = net(Z[:, order], T, condition_for(CONFIGS[name])) - net(Z, T, condition_for(CONFIGS[name]))[:, order]
    assert difference.abs().max() > 1e-4


@torch.no_grad()
def test_relative_positions_do_not_overflow_in_half_precision() -> None:
    """Products of 64 channels leave float16 at 65,504, before they are scaled by 1/8."""
    torch.manual_seed(0)
    attention, x = TemporalAttention(64, 1, 64, relative=2), random_tensor(3, 4, 64)
    attention.to_q.weight.copy_(torch.eye(64) * 200)
    attention.to_k.weight.copy_(torch.eye(64) * 20)
    query, key = attention.to_q(x), attention.to_k(x)
    assert (query @ key.mT).abs().max() > 2 * 65_504
    halves = attention.half()(x.half()).float()
    torch.testing.assert_close(halves, attention.float()(x), atol=0.02, rtol=0.02)


@torch.no_grad()
def test_relative_positions_of_more_pixels_than_a_grid_of_cuda_has() -> None:
    torch.manual_seed(0)
    attention, x = TemporalAttention(8, 8, 8, relative=2).eval(), random_tensor(9216, 2, 8)
    assert torch.equal(attention(x)[5000:], attention(x[5000:]))


def test_larger_distances_are_clipped() -> None:
    table = RelativePositions(4, 2)
    seen = table(6)
    assert torch.equal(seen[0, 2], seen[0, 5])
    assert torch.equal(seen[5, 0], table.embeddings_table[0])
    assert torch.equal(seen[3, 3], table.embeddings_table[2])


@torch.no_grad()
def test_relative_attention_equals_its_formula() -> None:
    attention = TemporalAttention(8, 2, 4, relative=2)
    x = random_tensor(1, 4, 8)
    q, k, v = (project(x)[0].view(4, 2, 4) for project in (attention.to_q, attention.to_k, attention.to_v))
    a_k, a_v = attention.relative_position_k(4), attention.relative_position_v(4)
    answer = torch.zeros(4, 2, 4)
    for head in range(2):
        for i in range(4):
            logits = torch.stack([q[i, head] @ (k[j, head] + a_k[i, j]) / 2 for j in range(4)])
            answer[i, head] = sum(p * (v[j, head] + a_v[i, j]) for j, p in enumerate(logits.softmax(0)))
    torch.testing.assert_close(attention(x)[0], attention.to_out(answer.flatten(1)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_memory_format_does_not_change_the_result() -> None:
    layer, x = (
        TemporalTransformer(32, TransformerConfig(heads=2, head_width=16), groups=8).eval(),
        random_tensor(6, 32, 4, 4),
    )
    nn.init.normal_(layer.proj_out.weight)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last), 3), layer(x, 3), atol=1e-4, rtol=1e-4)


def test_sites_of_each_family() -> None:
    names = {name: TemporalLayers(unet(layers_per_block=1), config).names for name, config in CONFIGS.items()}
    down = [f"down_blocks.{k}.attentions.0" for k in range(2)]
    up = [f"up_blocks.{k}.attentions.{n}" for k in (1, 2) for n in range(2)]
    assert names["videocrafter t2v"] == ["conv_in", *down, "mid_block.attentions.0", *up]
    alone = ["down_blocks.2.resnets.0", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"]
    assert names["animatediff"] == [*down, *alone, *up]
    assert len([name for name in names["modelscope"] if "resnets" in name]) == 3 + 2 + 6


@torch.no_grad()
@pytest.mark.slow
def test_the_frame_rate_changes_the_result_and_follows_sdxls_embedding() -> None:
    net = randomised(with_temporal_layers(CONFIGS["videocrafter t2v"]))
    slower = replace(COND, embedding=torch.tensor([[4.0], [16.0]]))
    difference = (net(Z, T, COND) - net(Z, T, slower)).abs().amax((1, 2, 3, 4))
    assert difference[0] > 1e-4 and difference[1] == 0
    image = sdxl()
    large = VideoUNet(image, TemporalLayers(image, CONFIGS["videocrafter t2v"])).eval()
    own = random_tensor(1, image.add_embedding.linear_1.in_features)
    tokens = random_tensor(1, 5, image.config.cross_attention_dim)
    rated = Condition(tokens, embedding=torch.cat([own, torch.tensor([[8.0]])], dim=1))
    assert torch.equal(large(Z[:1], T, rated), VideoUNet(image)(Z[:1], T, Condition(tokens, embedding=own)))


def test_a_missing_frame_rate_is_an_error() -> None:
    with pytest.raises(InputError, match="fps"):
        with_temporal_layers(CONFIGS["videocrafter t2v"])(Z, T, COND_WITHOUT_RATE)


@torch.no_grad()
def test_a_replaced_image_layer_is_still_followed_by_its_temporal_layer() -> None:
    net = randomised(with_temporal_layers(CONFIGS["videocrafter t2v"]))
    before, was = net(Z, T, COND), net.image_unet.conv_in
    net.image_unet.conv_in = nn.Sequential(was)
    assert torch.equal(net(Z, T, COND), before)


def test_videos_train_the_temporal_layers_and_images_only_the_image_unet() -> None:
    net, schedule = randomised(with_temporal_layers(CONFIGS["videocrafter i2v"])), Schedule.from_config(BETAS)
    t = torch.tensor([300, 700])
    losses = loss(net, schedule, COND, Z, random_tensor(*Z.shape[:2], 4, 8, 8), t)
    assert losses.shape == (B,)
    losses.mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.temporal.parameters())
    net.zero_grad()
    loss(net, schedule, COND, Z[:, :1], random_tensor(B, 1, 4, 8, 8), t).mean().backward()
    assert all(weight.grad is None for weight in net.temporal.parameters())
    assert all(weight.grad is not None for weight in net.image_unet.parameters())


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_the_training_target_as_prediction_returns_the_clean_video(name: str) -> None:
    schedule = replace(Schedule.from_config(BETAS), parameterisation=PARAMETERISATIONS[name])
    noise, t = random_tensor(B, F, 4, 8, 8), torch.tensor([20, 900])
    z, sigma = schedule.add_noise(Z, noise, t)
    target = schedule.target(Z, noise, t)
    for k in range(B):
        denoise = schedule.denoise(lambda z, t, k=k: target[k : k + 1])
        x = z[k : k + 1] / schedule.scale(float(sigma[k]))
        torch.testing.assert_close(denoise(x, float(sigma[k])), Z[k : k + 1], atol=2e-4, rtol=2e-4)


def test_sampling_equals_the_sampler() -> None:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x / (1 + sigma**2)  # the perfect denoiser of unit Gaussian data

    noise, sigmas = random_tensor(1, 3, 2, 4, 4), [14.6, 5.0, 1.0, 0.2, 0.0]
    assert torch.equal(
        final_latents(sample(denoise, noise, sigmas, sampler=ddim)), final_latents(ddim(denoise, 14.6 * noise, sigmas))
    )


def test_more_heads_than_channels_are_refused() -> None:
    """Found by tools/fuzz.py: a width of 0 was a ZeroDivisionError."""
    with pytest.raises(InputError, match="255 attention heads for 8 channels"):
        split_heads(TransformerConfig(heads=255), 8)
