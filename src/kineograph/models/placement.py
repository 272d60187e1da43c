"""Choice of device, dtype and memory format for a model on this machine."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from kineograph.errors import InputError, shown
from kineograph.models.hooks import Network, copy_network, is_offloaded

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
# Instructions that multiply bfloat16 matrices. Without them a CPU converts every number to float32 and back.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


class Placement(NamedTuple):
    """Device and dtype of a model's weights; `reason` says in words why they were chosen."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format in which convolutions are fastest there."""
        return fastest_memory_format(self.device, self.dtype)


def fastest_memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Return channels_last on a CPU and, in half precision, on a GPU with tensor cores; else contiguous."""
    faster = device.type == "cpu" or (device.type == "cuda" and dtype != torch.float32)
    return torch.channels_last if faster else torch.contiguous_format


def lay_out_weights(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Store a network's weights in a memory format, and none of them in the file that they were read from.

    Weights that a file is mapped to, and that were not copied, would keep all of it mapped, with those that were.
    """
    untyped: Any = network  # torch's types lack this form of `to`
    addresses = {weight.data_ptr() for weight in network.parameters()}
    untyped.to(memory_format=memory_format)
    for weight in network.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() in addresses:
            weight.data = weight.data.clone(memory_format=torch.preserve_format)


def choose_placement(device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Placement:
    """Return the device and dtype to use: those given, and the best for what is not given.

    Raises InputError if the device is not available, or networks do not run in the dtype.
    """
    place = torch.device(next(iter(_device_counts()))) if device is None else _available_device(device)
    best, reason = {"cuda": _cuda_dtype, "mps": _mps_dtype, "cpu": _cpu_dtype}[place.type](place)
    if dtype is None:
        return Placement(place, best, reason)
    chosen = parse_dtype(dtype)
    names = [str(each).removeprefix("torch.") for each in (chosen, best)]
    return Placement(place, chosen, f"{names[0]} as asked; {names[1]} would be chosen: {reason}")


def placed(network: Network, placement: Placement) -> Network:
    """Return a live network on a device and in a dtype: itself if it is there, or hooks move it; or else a copy.

    Raises InputError for a network with hooks that a copy would lose.
    """
    weight: Any = next(network.parameters())
    device, dtype = weight.device, getattr(network, "dtype", weight.dtype)
    there = (placement.device.type, placement.device.index or 0) == (device.type, device.index or 0)
    if is_offloaded(network) or (there and dtype == placement.dtype):
        return network
    if any("forward" in vars(module) for module in network.modules()):
        raise InputError(
            f"a {type(network).__name__} with hooks, such as layerwise casting, cannot be copied to another device or "
            "dtype: move it before you switch them on"
        )
    return copy_network(network).to(placement.device, placement.dtype)


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype of a name such as "bf16", "float16" or "torch.float32"."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"expected dtype to be float32, bfloat16 or float16, got {name!r}")
    return DTYPES[name]


def _device_counts() -> dict[str, int]:
    """Return the number of devices of each kind that is available, the fastest first."""
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    return {kind: count for kind, count in counts.items() if count}


def _available_device(device: str | torch.device) -> torch.device:
    counts = _device_counts()
    available = ", ".join(counts)
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"there is no device {shown(device)}; available are: {available}") from error
    if (asked.index or 0) >= counts.get(asked.type, 0):
        raise InputError(
            f"device {asked} is not available; available are: {available}. "
            "If the machine has such a card, check its driver and that this torch build is made for it"
        )
    return asked


def _cuda_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    name = torch.cuda.get_device_name(device)
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip or major >= 8:
        return torch.bfloat16, f"{name} computes bfloat16 in its matrix units"
    return torch.float16, f"{name} is older than Ampere ({major}.{minor}) and has matrix units for float16 only"


def _mps_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    return torch.float16, "Apple's GPUs compute float16 at full speed, and older ones have no bfloat16"


def _cpu_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if not hasattr(torch.cpu, "get_capabilities"):
        return torch.float32, f"torch {torch.__version__} cannot report what this CPU computes fast; 2.11 and newer can"
    has = torch.cpu.get_capabilities()
    name = has.get("cpu_name") or has.get("architecture") or "this CPU"
    units = [unit for unit in BF16_INSTRUCTIONS if has.get(unit)]
    if units:
        return torch.bfloat16, f"{name} multiplies bfloat16 matrices ({units[0]})"
    return torch.float32, f"{name} has no bfloat16 matrix units ({' or '.join(BF16_INSTRUCTIONS)})"
