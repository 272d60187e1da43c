"""VideoCrafter1's training from one settings file: what `kineograph train` does."""

from kineograph.recipes.training.plan import Planned, planned
from kineograph.recipes.training.run import FINAL, Reached, Ready, ready, train, wanted_by_any
from kineograph.recipes.training.settings import VideoTraining

__all__ = ["FINAL", "Planned", "Reached", "Ready", "VideoTraining", "planned", "ready", "train", "wanted_by_any"]
