"""VideoCrafter1's training from one settings file: what `kineograph train` does."""

from kineograph.recipes.training.plan import Planned, planned
from kineograph.recipes.training.run import FINAL, SKIPPED, Reached, Ready, ready, train, wanted_by_any
from kineograph.recipes.training.settings import VideoTraining

__all__ = [
    "FINAL",
    "SKIPPED",
    "Planned",
    "Reached",
    "Ready",
    "VideoTraining",
    "planned",
    "ready",
    "train",
    "wanted_by_any",
]
