"""VideoCrafter1's training from one settings file: what `kineograph train` does."""

from kineograph.training.temporal_layers.dry_run import Planned, planned
from kineograph.training.temporal_layers.run import FINAL, SKIPPED, Reached, Ready, ready, train, wanted_by_any
from kineograph.training.temporal_layers.settings import VideoTraining

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
