"""VidRD's network: where its layers are, what of it learns, and by what."""

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from tiny_videos import Z, shaken, two_levels

from kineograph.condition import Condition
from kineograph.methods import vidrd
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.config import AttentionConfig, ConvConfig, Site
from kineograph.models.temporal.layers import AttentionInBlock, TemporalConv

SMALL = vidrd.NETWORK.model_copy(
    update={
        "groups": 4,
        "layers": ((Site("resnet"), ConvConfig()), (Site("cross_attention"), AttentionConfig(head_width=4))),
    }
)
SCHEDULE = Schedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                                  "num_train_timesteps": 1000, "prediction_type": "epsilon"})  # fmt: skip
TOLD = Condition(torch.ones(2, 7, 32).cumsum(1))


def test_there_are_22_places_with_convolutions_and_16_with_attention():
    with init_empty_weights():
        widths = (320, 640, 1280, 1280)
        unet = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=1024, use_linear_projection=True)
        layers = list(vidrd.attach(unet).temporal.modules())
    assert [sum(isinstance(each, kind) for each in layers) for kind in (TemporalConv, AttentionInBlock)] == [22, 16]


def test_untrained_it_is_the_image_network_for_frames_that_are_alike():
    net = vidrd.attach(shaken(two_levels()), SMALL)
    still = Z[:, :1].expand(-1, 4, -1, -1, -1)
    with torch.no_grad():
        video, picture = net(still, 600, TOLD), net(Z[:, :1], 600, TOLD)
    assert torch.allclose(video, picture.expand_as(video), atol=1e-5)


def test_attention_and_layers_along_time_learn_and_all_else_stays():
    torch.manual_seed(0)
    net = vidrd.attach(two_levels().to(memory_format=torch.channels_last), SMALL)
    noise, timesteps = torch.randn_like(Z), torch.tensor([100, 800])
    vidrd.loss(net, SCHEDULE, TOLD, Z, noise, timesteps).mean().backward()
    moved = {name for name, weight in net.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {name.split(".")[0] for name in moved} == {"image_unet", "temporal"}
    assert all("attn1" in name or "attn2" in name for name in moved if name.startswith("image_unet"))
    assert {part for part in ("attn1.to_q", "attn2.to_k") if any(part in name for name in moved)} == {
        "attn1.to_q", "attn2.to_k"
    }  # fmt: skip
    assert not any("resnets" in name for name in moved if name.startswith("image_unet"))


def test_the_loss_is_the_squared_error_of_the_predicted_noise():
    net, noise, timesteps = vidrd.attach(shaken(two_levels()), SMALL), torch.ones_like(Z), torch.tensor([100, 800])
    with torch.no_grad():
        z, _ = SCHEDULE.add_noise(Z, noise, timesteps)
        wanted = (net(z, timesteps, TOLD) - noise).square().mean((1, 2, 3, 4))
        assert torch.equal(vidrd.loss(net, SCHEDULE, TOLD, Z, noise, timesteps), wanted)
