"""The walk: chunks, cache, conditions, and what it refuses. Equality with diffusers is in tests/parity."""

from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import CrossFrameAttnProcessor
from tiny_unets import READS, sdxl, unet, with_ip_adapters
from torch import Tensor

from kineograph.condition import Condition
from kineograph.errors import InputError
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.cross_attention import project_image_tokens
from kineograph.models.unet.frame_attention import FrameAttention, first, first_and_previous, own, previous
from kineograph.models.unet.supported_layers import cross_attentions
from kineograph.models.unet.video_unet import VideoUNet

B, F, T = 2, 7, 481.0
each_policy = pytest.mark.parametrize("see", [own, first, previous, first_and_previous], ids=lambda see: see.__name__)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Z, TOLD = drawn(B, F, 4, 8, 8), Condition(drawn(B, 5, READS))


def far(got: Tensor, wanted: Tensor) -> float:
    return (got - wanted).abs().max().item()


@pytest.fixture(scope="module")
def net() -> VideoUNet:
    return VideoUNet(unet())


@each_policy
@pytest.mark.parametrize("cuts", [(0, 4, 7), (0, 1, 2, 7)], ids=str)
def test_a_walk_in_parts_gives_what_one_walk_gives(net: VideoUNet, see: FrameAttention, cuts: tuple[int, ...]):
    cache, whole = {}, net(Z, T, TOLD, frame_attention=see)
    parts = [net(Z[:, a:b], T, TOLD, frame_attention=see, frames=range(a, b), cache=cache) for a, b in pairwise(cuts)]
    assert far(torch.cat(parts, dim=1), whole) <= 1e-5


@each_policy
def test_a_memory_does_not_grow_with_the_number_of_frames(net: VideoUNet, see: FrameAttention):
    def held(frames: int) -> int:
        cache = {}
        for start in range(0, frames, 2):
            net(Z[:, :2], T, TOLD, frame_attention=see, frames=range(start, start + 2), cache=cache)
        tensors = (part for layers in cache.values() for pair in layers.values() for part in pair)
        return sum(part.untyped_storage().nbytes() for part in tensors)

    assert held(20) == held(4)


def test_a_clip_anchored_in_an_earlier_one_sees_its_first_frame(net: VideoUNet):
    earlier, later, cache = Z[:, :3], Z[:, 3:], {}
    net(earlier, T, TOLD, frame_attention=first, cache=cache)
    anchored = net(later, T, TOLD, frame_attention=first, frames=range(1, 5), cache=cache)
    together = net(torch.cat([earlier[:, :1], later], dim=1), T, TOLD, frame_attention=first)
    assert far(anchored, together[:, 1:]) <= 1e-5
    assert far(anchored, net(later, T, TOLD, frame_attention=first)) > 1e-3


@each_policy
def test_equal_frames_stay_equal(net: VideoUNet, see: FrameAttention):
    """Reduction: frames that do not differ learn nothing from one another."""
    still = Z[:, :1].expand(-1, 4, -1, -1, -1)
    assert far(net(still, T, TOLD, frame_attention=see), net(still, T, TOLD)) <= 1e-5


def test_samples_of_a_batch_do_not_mix(net: VideoUNet):
    alone = [net(Z[j : j + 1], T, Condition(TOLD.tokens[j : j + 1]), frame_attention=first) for j in range(B)]
    assert far(net(Z, T, TOLD, frame_attention=first), torch.cat(alone)) <= 1e-5


def test_one_condition_can_be_for_all_samples(net: VideoUNet):
    told = Condition(TOLD.tokens[:1])
    assert far(net(Z, T, told), net(Z, T, Condition(told.tokens.expand(B, -1, -1)))) <= 1e-5


def test_text_is_projected_once_for_a_bound_condition():
    net, calls = VideoUNet(unet()), []
    unprepared = net(Z, T, TOLD)
    for layer in cross_attentions(net.image_unet):
        layer.to_k.register_forward_hook(lambda layer, inputs, _: calls.append(inputs[0].shape))
    text = net.project_tokens(TOLD)
    assert set(calls) == {TOLD.tokens.shape} and len(calls) == len(text)
    assert torch.equal(net(Z, T, TOLD, key_values=text), unprepared) and len(calls) == len(text)


def test_what_a_condition_says_frame_by_frame_is_for_absolute_frames():
    net = VideoUNet(with_ip_adapters(unet(in_channels=6), [0.8]))
    tokens = project_image_tokens(net.image_unet, [drawn(B * F, 1, 6)]).unflatten(0, (B, F))
    told = Condition(TOLD.tokens, tokens, channels=drawn(B, F, 2, 8, 8))
    parts = [net(Z[:, a:b], T, told, frames=range(a, b)) for a, b in ((0, 3), (3, 7))]
    assert far(torch.cat(parts, dim=1), net(Z, T, told)) <= 1e-5


def test_channels_of_one_picture_are_for_every_frame():
    net, picture = VideoUNet(unet(in_channels=6)), drawn(B, 1, 2, 8, 8)
    repeated = net(Z, T, Condition(TOLD.tokens, channels=picture.expand(-1, F, -1, -1, -1)))
    assert torch.equal(net(Z, T, Condition(TOLD.tokens, channels=picture)), repeated)


def test_half_precision_inside_float32_outside():
    net = unet()
    wanted = VideoUNet(net)(Z, T, TOLD)
    got = VideoUNet(unet().to(torch.bfloat16))(Z, T, TOLD)
    assert got.dtype == torch.float32
    assert 1e-6 < far(got, wanted) < 0.2 * wanted.std()


def test_gradients_reach_the_network():
    net = VideoUNet(unet())
    with torch.enable_grad():
        net(Z, T, TOLD, frame_attention=first).square().mean().backward()
    assert all(weight.grad is not None for weight in net.parameters())


REFUSED = {
    "class_embed_type='timestep'": {"class_embed_type": "timestep"},
    "num_class_embeds=10": {"num_class_embeds": 10},
    "time_cond_proj_dim=8": {"time_cond_proj_dim": 8},
    "time_embedding_type='fourier'": {"time_embedding_type": "fourier"},
    "addition_embed_type='text'": {"addition_embed_type": "text", "addition_embed_type_num_heads": 2},
    "center_input_sample=True": {"center_input_sample": True},
    "only_cross_attention=True": {"only_cross_attention": True},
    "dual_cross_attention=True": {"dual_cross_attention": True},
    "attention_type='gated'": {"attention_type": "gated"},
    "down_block_types='SimpleCrossAttnDownBlock2D'": {"down_block_types": ("SimpleCrossAttnDownBlock2D",) * 3},
    "mid_block_type='UNetMidBlock2DSimpleCrossAttn'": {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
}  # fmt: skip


@pytest.mark.parametrize(("setting", "settings"), REFUSED.items(), ids=REFUSED)
def test_other_networks_are_refused_by_name(setting: str, settings: dict):
    with pytest.raises(InputError, match=f"has {setting}, which is not supported: expected .* Stable Diffusion"):
        VideoUNet(unet(**settings))


@pytest.mark.parametrize(("name", "kind"), [("resnet_time_scale_shift", "scale_shift"), ("resnet_skip_time_act", True)])
def test_norms_span_the_frames_of_known_resnets_only(name: str, kind: object):
    other, config = (
        unet(**{name: kind}),
        TemporalConfig(layers=((Site("transformer"), TransformerConfig(head_width=8)),)),
    )
    VideoUNet(other, TemporalLayers(other, config))  # its resnets are called whole
    spanning = config.model_copy(update={"joint_norms": True})
    with pytest.raises(InputError, match=f"has {name}={kind!r}, which is not supported"):
        VideoUNet(other, TemporalLayers(other, spanning))


def test_attention_that_computes_something_else_is_refused():
    """Such as what Text2Video-Zero's pipeline leaves on a network when it fails."""
    net = VideoUNet(unet())
    net.image_unet.set_attn_processor(CrossFrameAttnProcessor())
    with pytest.raises(InputError, match=r"attn1 computes attention by CrossFrameAttnProcessor.*set_default"):
        net(Z, T, TOLD)


def mixed_up(net: UNet2DConditionModel, told: Condition, z: Tensor = Z, frames: range | None = None) -> str:
    with pytest.raises(InputError) as error:
        VideoUNet(net)(z, T, told, frames=frames)
    return str(error.value)


def test_a_condition_for_another_network_is_an_error():
    tokens = TOLD.tokens
    assert "no embedding" in mixed_up(sdxl(), TOLD)
    assert "takes none" in mixed_up(unet(), Condition(tokens, embedding=drawn(B, 34)))
    assert "load an IP-Adapter" in mixed_up(unet(), Condition(tokens, drawn(B, 4, READS)))
    several = with_ip_adapters(unet(), [1.0, 1.0])
    assert "[4, 4] image tokens" in mixed_up(several, Condition(tokens, drawn(B, 4, READS)))
    by_mask = with_ip_adapters(unet(), [[0.5, 0.2]])
    assert "masks" in mixed_up(by_mask, Condition(tokens, drawn(B, 4, READS)))
    with pytest.raises(InputError, match="load an IP-Adapter"):
        project_image_tokens(unet(), [drawn(B, 1, 6)])


def test_numbers_that_do_not_fit_are_an_error():
    assert "got 7 frames with 3 numbers" in mixed_up(unet(), TOLD, frames=range(3))
    assert "got 3 videos and a condition for 2" in mixed_up(unet(), TOLD, drawn(3, 2, 4, 8, 8))
