"""How one clip of a long video follows from the one before: the settings of VidRD's sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kineograph.data import checks
from kineograph.errors import InputError

MOST_CLIPS = 1024
ORDERS = ("reversed", "kept")


@dataclass(frozen=True)
class Reuse:
    """As they are, the paper's choices but for keep and guidance, which are 4 and 0.4 there
    (docs/decisions/0011-seams-that-do-not-jump.md). The anchor is not in the paper.

    keep: how many frames tie a clip to the one before, at most all but one.
    noise_ratio: parts of the past's noise to one of fresh noise in the other frames.
    guidance: the share of all steps for which the first of the kept frames follows the past, and the others less; 1 is
        an exact seam.
    anchor: how strongly what all frames of a clip have in common is drawn to the first clip's, from 0 (not) to 1, while
        the kept frames are guided: against drift over many clips.
    order: of the past's noise: "reversed", so that a clip begins where the last one ended, or "kept" as it was, which
        is the paper's ablation.
    """

    keep: int = 2
    noise_ratio: float = 4.0
    guidance: float = 0.7
    anchor: float = 0.0
    order: str = "reversed"

    def __post_init__(self) -> None:
        checks.whole("keep", self.keep, 0, checks.MOST_FRAMES)
        for name in ("noise_ratio", "guidance", "anchor"):
            checks.number(name, getattr(self, name))
        checks.choice("order", self.order, ORDERS)
        if self.noise_ratio < 0:
            raise InputError(f"noise_ratio is at least 0, not {self.noise_ratio:g}")
        for name in ("guidance", "anchor"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name):g}")

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> Reuse:
        """From the settings that a video carries."""
        return cls(**settings)
