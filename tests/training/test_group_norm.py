"""Fast group norms, and the matrices that Muon updates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kineograph.training.group_norm import FastGroupNorm, use_fast_group_norm
from kineograph.training.optimisers import Hyperparameters, adamw_and_muon, muon_names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_group_norms_equal_group_norms(dtype) -> None:
    torch.manual_seed(0)
    usual = nn.GroupNorm(4, 16)
    nn.init.normal_(usual.weight)
    fast = FastGroupNorm(4, 16)
    fast.load_state_dict(usual.state_dict())
    x = (torch.randn(3, 16, 5, 6) + 0.5).to(dtype).to(memory_format=torch.channels_last)
    out, gradients = [], []
    for norm in (usual.double(), fast):
        values = x.double() if norm is usual else x
        values = values.detach().requires_grad_()
        out.append(norm(values))
        out[-1].square().sum().backward()
        gradients.append((values.grad, norm.weight.grad, norm.bias.grad))
    tolerance = 1e-4 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(out[1].double(), out[0], rtol=tolerance, atol=tolerance)
    for fast_gradient, usual_gradient in zip(gradients[1], gradients[0], strict=True):
        assert (fast_gradient.double() - usual_gradient).norm() < tolerance * usual_gradient.norm()


def test_fast_group_norms_keep_parameters_and_names() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
    before = dict(net.named_parameters())
    after = dict(use_fast_group_norm(net).named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is weight for name, weight in before.items())


def test_muon_steps_views_of_the_weights() -> None:
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Linear(32, 20)).to(memory_format=torch.channels_last)
    numbers = Hyperparameters(0.1, (0.9, 0.99), 1e-8, adamw_decay=0.0, muon_decay=0.0)
    names = muon_names(net)
    optimisers = adamw_and_muon(net, names, numbers, cores=2)
    assert names == {"0.weight", "1.weight"}
    for name in names:
        assert optimisers.parameters[name].data_ptr() == net.get_parameter(name).data_ptr()
    assert len(optimisers.members) == 3


def test_a_network_of_matrices_alone_has_no_adamw() -> None:
    net = nn.Linear(20, 20, bias=False)
    numbers = Hyperparameters(0.1, (0.9, 0.99), 1e-8, adamw_decay=0.0, muon_decay=0.0)
    optimisers = adamw_and_muon(net, muon_names(net), numbers, cores=2)
    assert [type(each).__name__ for each in optimisers.members] == ["Muon"]
