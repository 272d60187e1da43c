"""Training: one resumable loop for any network, with its settings, checkpoints, averages and log.

`fit` is a generator of `Progress`; the method's loss and the data come in as functions.
"""

from kineograph.training.ema import lent
from kineograph.training.logs import Log
from kineograph.training.loop import Progress, fit
from kineograph.training.plan import Plan, plan
from kineograph.training.processes import here
from kineograph.training.settings import TrainingSettings
from kineograph.training.settings_file import load_settings, overridden
from kineograph.training.state import latest, weights

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
