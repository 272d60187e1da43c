"""The built-in pocket model: its weights, and the code that opens it and the models made from it.

`WEIGHTS` is its folder, in diffusers layout; `models.py` has the table of built-in models, `networks.py` and
`low_rank.py` restore networks that are stored as changes of the pocket U-Net.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
