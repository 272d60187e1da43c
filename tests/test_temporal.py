"""Layers along time around an image network: what they may change, where they stand, and what they are told."""

from dataclasses import replace

import pytest
import torch
from tiny_unets import READS, along_time, sdxl, stirred, unet
from torch import Tensor, nn

from kineograph.condition import Condition
from kineograph.errors import InputError
from kineograph.methods.videocrafter import loss, sample
from kineograph.models.schedule import PARAMETERISATIONS, Schedule
from kineograph.models.temporal.config import ConvConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.layers import RelativePositions, TemporalAttention, TemporalTransformer
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.samplers import ddim, final_latents

B, F, T = 2, 5, 481.0
PLAIN, RELATIVE = TransformerConfig(head_width=8), TransformerConfig(head_width=8, relative=3, ff_mult=2)
PLAIN_LAYERS = ((Site("conv_in"), PLAIN), (Site("transformer"), PLAIN))
CONFIGS = {
    "videocrafter t2v": TemporalConfig(
        layers=((Site("conv_in"), RELATIVE), (Site("transformer"), RELATIVE)), frame_rate=True
    ),
    "videocrafter i2v": TemporalConfig(layers=(*PLAIN_LAYERS, (Site("resnet"), ConvConfig())), frame_rate=True),
    "animatediff": TemporalConfig(layers=((Site("stage", mid_block=False), TransformerConfig(heads=2, positions=F)),)),
    "modelscope": TemporalConfig(layers=(*PLAIN_LAYERS, (Site("resnet"), ConvConfig()))),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Z = drawn(B, F, 4, 8, 8)
RATED = Condition(drawn(B, 5, READS), embedding=torch.tensor([[8.0], [16.0]]))


def told(config: TemporalConfig) -> Condition:
    return RATED if config.frame_rate else replace(RATED, embedding=None)


@torch.no_grad()
@each_config
def test_an_untrained_video_network_is_the_image_network(config: TemporalConfig):
    net, plain = along_time(config), replace(RATED, embedding=None)
    assert torch.equal(net(Z, T, told(config)), VideoUNet(net.image_unet)(Z, T, plain))


@torch.no_grad()
@each_config
def test_a_video_of_one_frame_passes_the_layers_by_bit_for_bit(config: TemporalConfig):
    net, plain = stirred(along_time(config)), replace(RATED, embedding=None)
    assert torch.equal(net(Z[:, :1], T, told(config)), VideoUNet(net.image_unet)(Z[:, :1], T, plain))


@torch.no_grad()
@each_config
def test_frames_see_each_other_and_videos_do_not(config: TemporalConfig):
    net = stirred(along_time(config))
    before = net(Z, T, told(config))
    changed = Z.clone()
    changed[0, 0] += 1
    moved = (net(changed, T, told(config)) - before).abs().amax((2, 3, 4))
    assert (moved[0] > 1e-4).all()
    assert (moved[1] < 1e-6).all()


@torch.no_grad()
def test_without_positions_of_any_kind_the_order_of_frames_means_nothing():
    net, order = stirred(along_time(TemporalConfig(layers=PLAIN_LAYERS))), [3, 0, 4, 1, 2]
    plain = replace(RATED, embedding=None)
    torch.testing.assert_close(net(Z[:, order], T, plain), net(Z, T, plain)[:, order], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["videocrafter t2v", "videocrafter i2v", "animatediff"])
def test_with_distances_convolutions_or_positions_it_does(name: str):
    net, order = stirred(along_time(CONFIGS[name])), [3, 0, 4, 1, 2]
    apart = net(Z[:, order], T, told(CONFIGS[name])) - net(Z, T, told(CONFIGS[name]))[:, order]
    assert apart.abs().max() > 1e-4


def test_a_distance_beyond_the_farthest_is_taken_for_it():
    table = RelativePositions(4, 2)
    seen = table(6)
    assert torch.equal(seen[0, 2], seen[0, 5])
    assert torch.equal(seen[5, 0], table.embeddings_table[0])
    assert torch.equal(seen[3, 3], table.embeddings_table[2])


@torch.no_grad()
def test_relative_attention_is_its_formula():
    attention = TemporalAttention(8, 2, 4, relative=2)
    x = drawn(1, 4, 8)
    q, k, v = (project(x)[0].view(4, 2, 4) for project in (attention.to_q, attention.to_k, attention.to_v))
    a_k, a_v = attention.relative_position_k(4), attention.relative_position_v(4)
    answer = torch.zeros(4, 2, 4)
    for head in range(2):
        for i in range(4):
            logits = torch.stack([q[i, head] @ (k[j, head] + a_k[i, j]) / 2 for j in range(4)])
            answer[i, head] = sum(p * (v[j, head] + a_v[i, j]) for j, p in enumerate(logits.softmax(0)))
    torch.testing.assert_close(attention(x)[0], attention.to_out(answer.flatten(1)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_layout_in_memory_changes_nothing():
    layer, x = TemporalTransformer(32, TransformerConfig(heads=2, head_width=16), groups=8).eval(), drawn(6, 32, 4, 4)
    nn.init.normal_(layer.proj_out.weight)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last), 3), layer(x, 3), atol=1e-4, rtol=1e-4)


def test_layers_stand_where_their_family_has_them():
    names = {name: TemporalLayers(unet(layers_per_block=1), config).names for name, config in CONFIGS.items()}
    down = [f"down_blocks.{k}.attentions.0" for k in range(2)]
    up = [f"up_blocks.{k}.attentions.{n}" for k in (1, 2) for n in range(2)]
    assert names["videocrafter t2v"] == ["conv_in", *down, "mid_block.attentions.0", *up]
    alone = ["down_blocks.2.resnets.0", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"]
    assert names["animatediff"] == [*down, *alone, *up]
    assert len([name for name in names["modelscope"] if "resnets" in name]) == 3 + 2 + 6


@torch.no_grad()
def test_the_frame_rate_counts_and_stands_behind_what_sdxl_is_told():
    net = stirred(along_time(CONFIGS["videocrafter t2v"]))
    slower = replace(RATED, embedding=torch.tensor([[4.0], [16.0]]))
    apart = (net(Z, T, RATED) - net(Z, T, slower)).abs().amax((1, 2, 3, 4))
    assert apart[0] > 1e-4 and apart[1] == 0
    image = sdxl()
    large = VideoUNet(image, TemporalLayers(image, CONFIGS["videocrafter t2v"])).eval()
    own = drawn(1, image.add_embedding.linear_1.in_features)
    tokens = drawn(1, 5, image.config.cross_attention_dim)
    rated = Condition(tokens, embedding=torch.cat([own, torch.tensor([[8.0]])], dim=1))
    assert torch.equal(large(Z[:1], T, rated), VideoUNet(image)(Z[:1], T, Condition(tokens, embedding=own)))


def test_a_missing_frame_rate_is_said():
    with pytest.raises(InputError, match="fps"):
        along_time(CONFIGS["videocrafter t2v"])(Z, T, replace(RATED, embedding=None))


@torch.no_grad()
def test_an_adapter_put_in_a_layers_place_is_followed_too():
    net = stirred(along_time(CONFIGS["videocrafter t2v"]))
    before, was = net(Z, T, RATED), net.image_unet.conv_in
    net.image_unet.conv_in = nn.Sequential(was)
    assert torch.equal(net(Z, T, RATED), before)


def test_it_learns_from_films_and_pictures_alike():
    net, schedule = stirred(along_time(CONFIGS["videocrafter i2v"])), Schedule.from_config(BETAS)
    t = torch.tensor([300, 700])
    film = loss(net, schedule, RATED, Z, drawn(*Z.shape[:2], 4, 8, 8), t)
    assert film.shape == (B,)
    film.mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.temporal.parameters())
    net.zero_grad()
    loss(net, schedule, RATED, Z[:, :1], drawn(B, 1, 4, 8, 8), t).mean().backward()
    assert all(weight.grad is None for weight in net.temporal.parameters())
    assert all(weight.grad is not None for weight in net.image_unet.parameters())


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_who_says_what_training_asks_for_has_the_clean_video(name: str):
    schedule = replace(Schedule.from_config(BETAS), parameterisation=PARAMETERISATIONS[name])
    noise, t = drawn(B, F, 4, 8, 8), torch.tensor([20, 900])
    z, sigma = schedule.add_noise(Z, noise, t)
    target = schedule.target(Z, noise, t)
    for k in range(B):
        denoise = schedule.denoise(lambda seen, time, k=k: target[k : k + 1])
        x = z[k : k + 1] / schedule.scale(float(sigma[k]))
        torch.testing.assert_close(denoise(x, float(sigma[k])), Z[k : k + 1], atol=2e-4, rtol=2e-4)


def test_sampling_is_a_plain_walk():
    def look(x: Tensor, sigma: float) -> Tensor:
        return x / (1 + sigma**2)  # the perfect denoiser of unit Gaussian data

    noise, sigmas = drawn(1, 3, 2, 4, 4), [14.6, 5.0, 1.0, 0.2, 0.0]
    assert torch.equal(
        final_latents(sample(look, noise, sigmas, sampler=ddim)), final_latents(ddim(look, 14.6 * noise, sigmas))
    )
