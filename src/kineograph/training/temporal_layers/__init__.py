"""VideoCrafter1's training from one settings file: what `kineograph train` does."""

from kineograph.training.temporal_layers.dry_run import TrainingEstimate, estimate_training
from kineograph.training.temporal_layers.run import FINAL, SKIPPED, StageProgress, PreparedTraining, prepare_training, train, any_process_stops
from kineograph.training.temporal_layers.settings import VideoTrainingSettings

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
