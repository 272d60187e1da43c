"""Every test runs offline and on one thread: the machine is small, and sums are then taken in one order.

Shapes are checked in tests only, by pytest's option `--jaxtyping-packages` (pyproject.toml).
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
