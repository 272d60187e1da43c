"""Settings of a run of `kineograph bench`, and the machine that it runs on."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from kineograph.models.openvino.choice import is_installed

Engine = Literal["torch", "openvino"]
PACKAGES = ("kineograph", "torch", "diffusers", "transformers", "openvino")
FAST_INSTRUCTIONS = ("avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Setting:
    """Settings of all rows.

    engine   of our side, where a row allows it
    repeats  pairs of timed runs
    prompts  number of prompts of the rows of equal quality, each with `seeds` seeds
    preset   of our side in those rows
    quick    True for tiny sizes, which only show that a row works
    deadline `time.monotonic()` after which no further prompt is begun
    log      called with a line on each stage
    """

    engine: Engine
    repeats: int = 6
    prompts: int = 40
    seeds: int = 1
    preset: str = "quality"
    quick: bool = False
    deadline: float = float("inf")
    log: Callable[[str], None] = print

    @property
    def is_over(self) -> bool:
        """True after the deadline."""
        return time.monotonic() > self.deadline

    def as_json(self) -> dict[str, Any]:
        """Return what the figures depend on."""
        names = ("repeats", "prompts", "seeds", "preset", "quick")
        return {name: getattr(self, name) for name in names}


def default_engine() -> Engine:
    """Return the engine that a run of many steps takes on this machine."""
    return "openvino" if is_installed() and not torch.cuda.is_available() else "torch"


def describe_machine() -> dict[str, Any]:
    """Return processor, GPU, cores, memory and versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", cpuinfo, re.MULTILINE)
    known = flags[1].split() if flags else []
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "instructions": [name for name in FAST_INSTRUCTIONS if name in known],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def load_average() -> float | None:
    """Return the mean number of processes that wanted a core in the last minute; None where it is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
