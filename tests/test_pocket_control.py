"""The pocket model's ControlNets: what they begin as, what is kept of them, and the maps that they learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from kineograph.models.pocket.networks import (
    initial_controlnet,
    initial_editing_unet,
    make_trainable,
    restore_network,
    trained_weights,
)
from kineograph_lab.recipe import networks
from kineograph_lab.recipe.image.controlnets import UNetWithControlNet
from kineograph_lab.recipe.image.edit import EditingUNet
from kineograph_lab.world import world
from kineograph_lab.world.truth import CONTROL_MAPS, KEYPOINT_COLOURS, KEYPOINTS, ground_truth
from kineograph_lab.world.world import Shot, Subject

SHOT = Shot("sea", "flat", (Subject("fish", "red", 1),))


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return networks.build_unet((32, 32, 64)).eval()


@pytest.fixture(scope="module")
def told() -> tuple[torch.Tensor, ...]:
    drawn = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 8, 4, 4, generator=drawn), torch.tensor([10.0, 500.0])
    maps = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=drawn)
    return z, t, torch.randn(2, 5, networks.WIDTH, generator=drawn), maps


@torch.no_grad()
def test_a_new_controlnet_changes_nothing(unet, told):
    before = unet(*told[:3]).sample
    assert torch.equal(UNetWithControlNet(unet, make_trainable(initial_controlnet(unet)).eval())(*told).sample, before)


@torch.no_grad()
def test_what_is_kept_of_a_controlnet_makes_it_again(unet, told):
    net = make_trainable(initial_controlnet(unet)).eval()
    for weight in net.parameters():
        if weight.requires_grad:
            weight.copy_(0.05 * torch.randn_like(weight))
    kept = trained_weights(net)
    again = restore_network(initial_controlnet(unet), kept).eval()
    assert not any("lora" in name for name in again.state_dict())
    assert again(*told[:3], controlnet_cond=torch.zeros(2, 3, 32, 32)).mid_block_res_sample.abs().sum() > 0
    wanted, got = (UNetWithControlNet(unet, each)(*told).sample for each in (net, again))
    assert (wanted - unet(*told[:3]).sample).abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_new_editor_passes_its_picture_over_and_what_is_kept_of_it_makes_it_again(unet, told):
    z, t, said, _ = told
    net, shown = make_trainable(initial_editing_unet(unet)).eval(), torch.randn_like(z)
    torch.testing.assert_close(
        EditingUNet(net)(z, t, said, shown).sample, unet(z, t, said).sample, rtol=1e-4, atol=1e-5
    )
    for weight in net.parameters():
        if weight.requires_grad:
            weight.add_(0.05 * torch.randn_like(weight))
    again = restore_network(initial_editing_unet(unet), trained_weights(net)).eval()
    assert not any("lora" in name for name in again.state_dict())
    wanted, got = (EditingUNet(each)(z, t, said, shown).sample for each in (net, again))
    assert (wanted - EditingUNet(net)(z, t, said, 0 * shown).sample).abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_other_weights_are_refused(unet):
    with pytest.raises(ValueError, match="not for this ControlNetModel"):
        restore_network(initial_controlnet(unet), {"x": torch.zeros(1)})


def test_maps_show_what_they_are_of():
    picture, known = world.render(SHOT), ground_truth(SHOT)
    maps = {kind: draw(picture, known) for kind, draw in CONTROL_MAPS.items()}
    assert {each.shape for each in maps.values()} == {(128, 128, 3)}
    assert set(np.unique(maps["canny"])) == {0, 255}
    nearest = maps["depth"] == maps["depth"].max()
    assert nearest[..., 0][known.mask == 1].all()
    x, y = known.keypoints[0]["front"]
    assert tuple(maps["pose"][int(y), int(x)]) == KEYPOINT_COLOURS[KEYPOINTS.index("front")]
