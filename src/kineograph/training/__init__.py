"""Training: one resumable loop for any network, with its settings, checkpoints, averages and log.

`fit` is a generator of `Progress`; the method's loss and the data come in as functions.
"""

from kineograph.training.ema import use_averages
from kineograph.training.logs import Log
from kineograph.training.loop import Progress, fit
from kineograph.training.plan import TrainingCost, training_cost
from kineograph.training.processes import current_process
from kineograph.training.settings import TrainingSettings
from kineograph.training.settings_file import load_settings, override_settings
from kineograph.training.state import latest_checkpoint, load_weights

__all__ = [
    "Log",
    "Plan",
    "Progress",
    "TrainingSettings",
    "fit",
    "here",
    "latest",
    "lent",
    "load_settings",
    "overridden",
    "plan",
    "weights",
]
