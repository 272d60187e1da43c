"""VidRD's network as a TemporalConfig: its layers, and training of attention and temporal layers alone."""

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from tiny_videos import Z, shaken, two_levels

from kineograph.methods import videocrafter
from kineograph.models.conditioning.condition import Condition
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.config import AttentionConfig, ConvConfig, Site, TemporalConfig
from kineograph.models.temporal.layers import AttentionInBlock, TemporalConv
from kineograph.training.temporal_layers.initial_model import set_trained


def vidrd_config(head_width: int, groups: int) -> TemporalConfig:
    return TemporalConfig(
        num_frames=8,
        layers=((Site("resnet"), ConvConfig()), (Site("cross_attention"), AttentionConfig(head_width=head_width))),
        joint_norms=True,
        groups=groups,
    )


SMALL = vidrd_config(head_width=4, groups=4)
SCHEDULE = Schedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                                  "num_train_timesteps": 1000, "prediction_type": "epsilon"})  # fmt: skip
COND = Condition(torch.ones(2, 7, 32).cumsum(1))


def test_there_are_22_layers_of_convolutions_and_16_of_attention() -> None:
    """The paper's figure, for a network of SD 2.1's shape."""
    with init_empty_weights():
        widths = (320, 640, 1280, 1280)
        unet = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=1024, use_linear_projection=True)
        layers = list(videocrafter.attach(unet, vidrd_config(head_width=64, groups=32)).temporal.modules())
    assert [sum(isinstance(each, kind) for each in layers) for kind in (TemporalConv, AttentionInBlock)] == [22, 16]


def test_untrained_it_is_the_image_network_for_equal_frames() -> None:
    net = videocrafter.attach(shaken(two_levels()), SMALL)
    still = Z[:, :1].expand(-1, 4, -1, -1, -1)
    with torch.no_grad():
        video, image = net(still, 600, COND), net(Z[:, :1], 600, COND)
    assert torch.allclose(video, image.expand_as(video), atol=1e-5)


def test_attention_and_temporal_layers_are_trained_and_all_else_is_frozen() -> None:
    torch.manual_seed(0)
    net = videocrafter.attach(two_levels().to(memory_format=torch.channels_last), SMALL)
    set_trained(net, ["temporal.*", "image_unet.*attn1*", "image_unet.*attn2*"], [])
    noise, timesteps = torch.randn_like(Z), torch.tensor([100, 800])
    videocrafter.loss(net, SCHEDULE, COND, Z, noise, timesteps).mean().backward()
    trained = {name for name, weight in net.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {name.split(".")[0] for name in trained} == {"image_unet", "temporal"}
    assert all("attn1" in name or "attn2" in name for name in trained if name.startswith("image_unet"))
    assert {part for part in ("attn1.to_q", "attn2.to_k") if any(part in name for name in trained)} == {
        "attn1.to_q", "attn2.to_k"
    }  # fmt: skip
    assert not any("resnets" in name for name in trained if name.startswith("image_unet"))


def test_the_loss_is_the_squared_error_of_the_predicted_noise() -> None:
    net, noise, timesteps = (
        videocrafter.attach(shaken(two_levels()), SMALL),
        torch.ones_like(Z),
        torch.tensor([100, 800]),
    )
    with torch.no_grad():
        z, _ = SCHEDULE.add_noise(Z, noise, timesteps)
        expected = (net(z, timesteps, COND) - noise).square().mean((1, 2, 3, 4))
        assert torch.equal(videocrafter.loss(net, SCHEDULE, COND, Z, noise, timesteps), expected)
