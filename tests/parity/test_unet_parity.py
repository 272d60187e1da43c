"""VideoUNet with frame attention `own` equals `UNet2DConditionModel.forward` on the frames as images."""

from collections.abc import Callable

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from peft import LoraConfig
from tiny_unets import TOKEN_WIDTH, sd2, sdxl, unet, with_ip_adapters
from torch import Tensor

from kineograph.models.conditioning.condition import Condition, Residuals
from kineograph.models.unet.controlnet import VideoControlNet, bind_controlnet, sum_residuals
from kineograph.models.unet.cross_attention import project_image_tokens
from kineograph.models.unet.frame_attention import FrameAttention, first, first_and_previous, own, previous
from kineograph.models.unet.video_unet import VideoUNet

pytestmark = pytest.mark.parity
B, F = 2, 3
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Z, T, TOKENS = random_tensor(B, F, 4, 8, 8), torch.tensor(481), random_tensor(B, 7, TOKEN_WIDTH)


def images(net: UNet2DConditionModel, z: Tensor = Z, t: Tensor = T, **cond) -> Tensor:
    """Return the image network's output for each frame."""
    tokens = TOKENS.repeat_interleave(F, dim=0)
    return net(z.flatten(0, 1), t, tokens, **cond).sample.unflatten(0, (B, F))


def relative_difference(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.std()).item()


SHAPED_LIKE_SD1 = {
    "as it is": {},
    "deeper": {"layers_per_block": 2},
    "wide enough for whole vectors": {"block_out_channels": (32, 64, 64), "attention_head_dim": 8},
    "without a mid block (distilled)": {"mid_block_type": None},
    "no attention in the mid block (distilled)": {"mid_block_type": "UNetMidBlock2D"},
    "time scales and shifts": {"resnet_time_scale_shift": "scale_shift"},
    "one long block": {"block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",)},
}


@pytest.mark.parametrize("settings", SHAPED_LIKE_SD1.values(), ids=SHAPED_LIKE_SD1.keys())
def test_bit_for_bit_on_sd1(settings: dict) -> None:
    net = unet(**settings)
    assert torch.equal(VideoUNet(net)(Z, T, Condition(TOKENS)), images(net))


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (6, 10), (12, 7)])
def test_bit_for_bit_at_sizes_with_odd_halves(size: tuple[int, int]) -> None:
    net, z = unet(), random_tensor(B, F, 4, *size)
    assert torch.equal(VideoUNet(net)(z, T, Condition(TOKENS)), images(net, z))


def test_bit_for_bit_in_channels_last() -> None:
    net = unet().to(memory_format=torch.channels_last)
    assert torch.equal(VideoUNet(net)(Z, T, Condition(TOKENS)), images(net))


def test_bit_for_bit_with_fractional_timesteps_of_each_sample() -> None:
    net, t = unet(), torch.tensor([7.25, 903.5])
    assert torch.equal(VideoUNet(net)(Z, t, Condition(TOKENS)), images(net, t=t.repeat_interleave(F)))


def test_sd2() -> None:
    net = sd2()
    assert relative_difference(VideoUNet(net)(Z, T, Condition(TOKENS)), images(net)) <= TOLERANCE


def test_sdxl_with_its_embedding() -> None:
    net, pooled, sizes = sdxl(), random_tensor(B, 10), torch.tensor([[64, 64, 0, 0, 64, 64], [64, 48, 8, 0, 64, 64]])
    embedding = torch.cat([pooled, net.add_time_proj(sizes.flatten()).view(B, -1)], dim=1)
    cond = {"text_embeds": pooled.repeat_interleave(F, 0), "time_ids": sizes.repeat_interleave(F, 0)}
    wanted = images(net, added_cond_kwargs=cond)
    assert relative_difference(VideoUNet(net)(Z, T, Condition(TOKENS, embedding=embedding)), wanted) <= TOLERANCE


def controlnet(net: UNet2DConditionModel) -> ControlNetModel:
    control = ControlNetModel.from_unet(net, conditioning_embedding_out_channels=(8, 16)).eval()
    for name, weight in control.named_parameters():
        if "controlnet" in name:  # its output layers, which start at zero
            weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return control


MAPS = torch.rand(F, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("make_unet", [unet, sd2])
def test_controlnet_residuals_equal_those_of_images(make_unet: Callable[[], UNet2DConditionModel]) -> None:
    net = make_unet()
    control = controlnet(net)
    cond = Condition(TOKENS)
    tokens, maps = TOKENS.repeat_interleave(F, 0), MAPS.repeat(B, 1, 1, 1)
    down, mid = control(Z.flatten(0, 1), T, tokens, maps, return_dict=False)
    wanted = images(net, down_block_additional_residuals=down, mid_block_additional_residual=mid)
    assert relative_difference(wanted, images(net)) > 0.01
    ours = VideoControlNet(control)
    skips, mid_residual = ours(Z, T, cond, ours.embed(MAPS))
    assert all(
        relative_difference(a, b) <= TOLERANCE for a, b in zip([*skips, mid_residual], [*down, mid], strict=True)
    )
    cond = Condition(TOKENS, residuals=bind_controlnet(ours, cond, ours.embed(MAPS)))
    assert relative_difference(VideoUNet(net)(Z, T, cond), wanted) <= TOLERANCE


@pytest.mark.parametrize("policy", [own, first, previous, first_and_previous])
def test_chunks_with_a_controlnet_equal_one_call(policy: FrameAttention) -> None:
    net = unet()
    ours = VideoControlNet(controlnet(net))
    cond = Condition(
        TOKENS, residuals=bind_controlnet(ours, Condition(TOKENS), ours.embed(MAPS), frame_attention=policy)
    )
    cache: dict = {}
    parts = [
        VideoUNet(net)(Z[:, a:b], T, cond, frame_attention=policy, frames=range(a, b), cache=cache)
        for a, b in ((0, 1), (1, 3))
    ]
    assert relative_difference(torch.cat(parts, dim=1), VideoUNet(net)(Z, T, cond, frame_attention=policy)) <= TOLERANCE


def test_control_has_a_scale_a_start_and_an_end() -> None:
    net = unet()
    ours = VideoControlNet(controlnet(net))
    control, bare = ours.embed(MAPS), Condition(TOKENS)

    def controlled(*residuals: Residuals, t: int = 481) -> Tensor:
        return VideoUNet(net)(Z, torch.tensor(t), Condition(TOKENS, residuals=sum_residuals(*residuals)))

    whole, half = bind_controlnet(ours, bare, control), bind_controlnet(ours, bare, control, scale=0.5)
    assert torch.equal(controlled(bind_controlnet(ours, bare, control, scale=0.0)), images(net))
    assert relative_difference(controlled(half, half), controlled(whole)) <= TOLERANCE
    late = bind_controlnet(ours, bare, control, start=0.6)
    assert torch.equal(controlled(late), images(net))
    assert torch.equal(controlled(late, t=381), controlled(whole, t=381))
    early = bind_controlnet(ours, bare, control, end=0.4)
    assert torch.equal(controlled(early, whole), controlled(whole))


def test_peft_lora_on_linear_layers_and_convolutions() -> None:
    net, before = unet(), images(unet())
    layers = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "conv1", "time_emb_proj"]
    net.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    wanted = images(net)
    assert relative_difference(wanted, before) > 0.01
    assert (
        relative_difference(VideoUNet(net)(Z, T, Condition(TOKENS)), wanted) <= 10 * TOLERANCE
    )  # random LoRAs everywhere amplify rounding


@pytest.mark.parametrize("scales", [[1.0], [0.4], [0.0], [0.7, 0.3]], ids=str)
def test_ip_adapters(scales: list[float]) -> None:
    net = with_ip_adapters(unet(), scales)
    embeddings = [random_tensor(B, 1, 6) for _ in scales]
    wanted = images(net, added_cond_kwargs={"image_embeds": [each.repeat_interleave(F, 0) for each in embeddings]})
    cond = Condition(TOKENS, image_tokens=project_image_tokens(net, embeddings))
    assert (relative_difference(wanted, images(unet())) > 0.01) == any(scales)
    assert relative_difference(VideoUNet(net)(Z, T, cond), wanted) <= TOLERANCE


def test_ip_adapter_with_several_images_and_with_an_image_for_each_frame() -> None:
    net = with_ip_adapters(unet(), [0.6])
    several, each = random_tensor(B, 3, 6), random_tensor(B * F, 1, 6)
    wanted = images(net, added_cond_kwargs={"image_embeds": [several.repeat_interleave(F, 0)]})
    assert (
        relative_difference(VideoUNet(net)(Z, T, Condition(TOKENS, project_image_tokens(net, [several]))), wanted)
        <= TOLERANCE
    )
    wanted = images(net, added_cond_kwargs={"image_embeds": [each]})
    tokens = project_image_tokens(net, [each]).unflatten(0, (B, F))
    assert relative_difference(VideoUNet(net)(Z, T, Condition(TOKENS, tokens)), wanted) <= TOLERANCE


def test_channels_concatenated_to_the_latents() -> None:
    net, channels = unet(in_channels=8), random_tensor(B, F, 4, 8, 8)
    wanted = images(net, torch.cat([Z, channels], dim=2))
    assert torch.equal(VideoUNet(net)(Z, T, Condition(TOKENS, channels=channels)), wanted)


def test_freeu() -> None:
    net = unet()
    net.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    wanted = images(net)
    assert relative_difference(wanted, images(unet())) > 0.01
    assert torch.equal(VideoUNet(net)(Z, T, Condition(TOKENS)), wanted)
