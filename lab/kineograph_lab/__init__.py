"""The laboratory: the pocket world, the recipe of the built-in model, its judge, the studies of the papers, benchmarks.

`world/` renders images and clips with exact truth, `recipe/` trains the built-in model on them, `judge/` has the
networks that measure, `studies/<paper>/` the experiments of `kineograph reproduce`, `bench/` those of `kineograph bench`.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # of networks that only the laboratory uses
