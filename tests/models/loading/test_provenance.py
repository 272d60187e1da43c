"""Fingerprints of weights: they are kept while the weights stay, and follow every change that can be seen."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from kineograph.models.loading import provenance
from kineograph.models.loading.provenance import fingerprint

LORA = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def with_lora() -> Any:
    return inject_adapter_in_model(LORA, network(), adapter_name="one")


def computed(net: Any) -> str:
    """Return the fingerprint that is computed from the values."""
    provenance._hashed.pop(net, None)
    return fingerprint(net)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that receives the digest of each tensor that is hashed."""
    digests, digest = list[str](), provenance._digest

    def record(value: Tensor) -> str:
        digests.append(digest(value))
        return digests[-1]

    monkeypatch.setattr(provenance, "_digest", record)
    return digests


def replace_weight(net: Any) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach() + 1)


def step_optimiser(net: Any, *, fused: bool) -> None:
    net[0](torch.ones(1, 4)).sum().backward()
    torch.optim.AdamW(net.parameters(), fused=fused).step()


CHANGES: dict[str, Callable[[Any], object]] = {
    "in place": lambda net: nn.init.zeros_(net[0].bias),
    "a buffer": lambda net: net(torch.ones(2, 4)),
    "another tensor": replace_weight,
    "other memory": lambda net: setattr(net[0].weight, "data", torch.zeros(4, 4)),
    "a state dict": lambda net: net.load_state_dict({name: each + 1 for name, each in net.state_dict().items()}),
    "dtype": lambda net: net.double(),
    "dtype and back": lambda net: net.bfloat16().float(),
    "an optimiser": partial(step_optimiser, fused=False),
    "a fused optimiser": partial(step_optimiser, fused=True),
    "values in place through data": lambda net: net[0].weight.data.zero_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_have_another_fingerprint(change: Callable[[Any], object]) -> None:
    net = network()
    before = fingerprint(net)
    change(net)
    assert before != fingerprint(net) == computed(net)


def test_fingerprint_is_that_of_earlier_versions() -> None:
    net = nn.Linear(2, 1)
    nn.init.ones_(net.weight)
    nn.init.zeros_(net.bias)
    assert fingerprint(net) == "81abdcab9d3a50792fe9c3e18b886d61b79277d7584fd3704ed9ccb654fe7b5a"


def test_weights_are_hashed_once(hashed: list[str]) -> None:
    net = network()
    first = fingerprint(net)
    hashed.clear()
    net[0](torch.ones(1, 4)).sum().backward()
    with torch.inference_mode():
        assert fingerprint(net.eval().requires_grad_(requires_grad=False)) == first
    assert not hashed


def test_merged_lora_is_hashed_with_its_scale() -> None:
    net = with_lora()
    layer = next(each for each in net.modules() if isinstance(each, LoraLayer))
    plain = fingerprint(net)
    layer.set_scale("one", 2)
    assert fingerprint(net) == plain, "only values are hashed"
    layer.merge()
    merged = fingerprint(net)
    layer.unmerge()
    layer.set_scale("one", 3)
    layer.merge()
    assert len({plain, merged, fingerprint(net)}) == 3
    assert fingerprint(net) == computed(net)


def test_lora_that_is_merged_and_unloaded_is_hashed() -> None:
    net = network()
    before = fingerprint(net)
    inject_adapter_in_model(LORA, net, adapter_name="one")
    net[0].merge()
    net[0] = net[0].get_base_layer()
    assert before != fingerprint(net) == computed(net)


def test_edits_of_single_values_are_seen_when_counted() -> None:
    net = network()
    before = fingerprint(net)
    net[0].weight.data[1, 1] = 0
    torch.autograd.graph.increment_version(net[0].weight)
    assert before != fingerprint(net) == computed(net)


def test_inference_tensors_are_hashed_every_time() -> None:
    with torch.inference_mode():
        net = network()
        before = fingerprint(net)
        net[0].weight.zero_()
    assert fingerprint(net) != before


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still what released extractors are
def test_torchscript_networks_have_their_own_fingerprints() -> None:
    nets = [torch.jit.script(nn.Linear(2, 2)) for _ in range(2)]
    assert len({fingerprint(net) for net in nets}) == 2
    nn.init.zeros_(nets[0].weight)
    assert [fingerprint(net) for net in nets] == [computed(net) for net in nets]


def test_a_network_that_is_gone_is_forgotten() -> None:
    net = network()
    fingerprint(net)
    before = len(provenance._hashed)
    del net
    gc.collect()
    assert len(provenance._hashed) < before
