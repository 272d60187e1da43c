"""For every test: one thread, so that sums are taken in one order and timings do not depend on the machine.

Shapes are checked by pytest's option `--jaxtyping-packages` (pyproject.toml), in tests only.
"""

import torch

torch.set_num_threads(1)
