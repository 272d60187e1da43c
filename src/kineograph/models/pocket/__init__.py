"""Built-in pocket model: its weights, and the code that opens it and the models stored as changes of it.

`WEIGHTS` is its folder, in diffusers layout; `models` has the table of built-in models, `networks` restores networks
that are stored as changes of the pocket U-Net.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
