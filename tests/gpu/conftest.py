"""The device of these tests: a CUDA device; without one they are skipped.

With KINEOGRAPH_TEST_DEVICE=cpu they run on the CPU, which checks the tests themselves:
`KINEOGRAPH_TEST_DEVICE=cpu pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    name = os.environ.get("KINEOGRAPH_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(name)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """A CUDA device, for what a CPU does not have."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return device


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute convolutions of float32 in float32, not in TF32, so that results can be compared with a CPU's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def few_threads() -> None:
    torch.set_num_threads(1)
