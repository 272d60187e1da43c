"""The laboratory: the pocket world, the training recipe of the built-in model, its judge, studies and benchmarks.

`world/` renders images and clips with exact ground truth, `recipe/` trains the built-in model on them, `judge/` holds
the networks that evaluate generated frames, `studies/<paper>/` the experiments of `kineograph reproduce`, `bench/`
those of `kineograph bench`.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # of networks that only the laboratory uses
