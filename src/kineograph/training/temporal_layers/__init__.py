"""Training of temporal layers from one settings file, as VideoCrafter1 was trained: `kineograph train`.

settings -> sources, latent_cache, batches (data) and initial_model -> run (the stages), with validation and dry_run.
"""

from kineograph.training.temporal_layers.dry_run import TrainingEstimate, estimate_training
from kineograph.training.temporal_layers.run import (
    FINAL,
    SKIPPED,
    PreparedTraining,
    StageProgress,
    any_process_stops,
    prepare_training,
    train,
)
from kineograph.training.temporal_layers.settings import VideoTrainingSettings

__all__ = [
    "FINAL",
    "SKIPPED",
    "PreparedTraining",
    "StageProgress",
    "TrainingEstimate",
    "VideoTrainingSettings",
    "any_process_stops",
    "estimate_training",
    "prepare_training",
    "train",
]
