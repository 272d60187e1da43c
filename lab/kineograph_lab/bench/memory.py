"""Peak memory of a function in a process of its own: `python -m kineograph_lab.bench.memory MODULE FUNCTION JSON`.

The child itself reads its peak, VmHWM of /proc/self/status. `ru_maxrss` of a child would not do: across exec it holds
the peak of its parent.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kineograph.errors import InputError

STATUS = Path("/proc/self/status")


def measure_peak(function: Callable[..., object], *arguments: Any) -> float:
    """Return the peak memory of a call, in GB: of the GPU if there is one, else of the process that makes it.

    function: of a module's top level. arguments: JSON values.
    """
    command = [sys.executable, "-m", __name__, function.__module__, function.__name__, json.dumps(arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def peak_memory() -> int:
    """Return the peak memory of this process so far, in bytes: on the GPU if there is one.

    Raises InputError where /proc does not say it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if not STATUS.exists():
        raise InputError(f"peak memory is read from {STATUS}, which only Linux has: run the benchmark there")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    module, name, given = sys.argv[1:]
    getattr(import_module(module), name)(*json.loads(given))
    sys.stdout.write(f"\n{peak_memory() / 1e9}\n")
