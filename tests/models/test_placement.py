"""Choice of device and dtype."""

import re

import pytest
import torch

from kineograph.errors import InputError
from kineograph.models import placement


@pytest.mark.parametrize(
    ("capabilities", "dtype", "reason"),
    [
        ({"cpu_name": "Xeon", "amx_bf16": True}, torch.bfloat16, r"Xeon multiplies bfloat16 matrices \(amx_bf16\)"),
        ({"cpu_name": "EPYC", "avx512_bf16": True}, torch.bfloat16, r"\(avx512_bf16\)"),
        ({"architecture": "x86_64", "avx2": True}, torch.float32, "x86_64 has no bfloat16 matrix units"),
    ],
)
def test_dtype_on_a_cpu_follows_its_matrix_units(monkeypatch: pytest.MonkeyPatch, capabilities, dtype, reason) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    place = placement.choose_placement("cpu")
    assert place.dtype == dtype
    assert place.memory_format == torch.channels_last
    assert re.search(reason, place.reason)


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_dtype_on_a_gpu_follows_its_matrix_units(monkeypatch: pytest.MonkeyPatch, capability, dtype) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    place = placement.choose_placement()
    assert (place.device.type, place.dtype) == ("cuda", dtype)
    assert "Some GPU" in place.reason


def test_given_device_and_dtype_are_used_or_refused() -> None:
    place = placement.choose_placement("cpu", "bf16")
    assert place.dtype == placement.choose_placement("cpu", torch.bfloat16).dtype == torch.bfloat16
    assert "as asked" in place.reason
    with pytest.raises(InputError, match="float32, bfloat16 or float16, got 'int8'"):
        placement.choose_placement(dtype="int8")
    with pytest.raises(InputError, match="there is no device 'gpu'; available are: "):
        placement.choose_placement("gpu")
    with pytest.raises(InputError, match="device cuda:7 is not available; available are: "):
        placement.choose_placement("cuda:7")
