"""Training: a resumable loop for any network (`fit`), with its settings, optimisers, checkpoints and log.

`temporal_layers` trains video models from a settings file, `customise` teaches a model a subject or style.
"""

from kineograph.training.checkpoints import latest_checkpoint, load_weights
from kineograph.training.logs import Log
from kineograph.training.loop import TrainingProgress, fit
from kineograph.training.optimisers import use_averages
from kineograph.training.processes import current_process
from kineograph.training.settings import TrainingSettings
from kineograph.training.settings_file import load_settings, override_settings

__all__ = [
    "Log",
    "TrainingProgress",
    "TrainingSettings",
    "current_process",
    "fit",
    "latest_checkpoint",
    "load_settings",
    "load_weights",
    "override_settings",
    "use_averages",
]
