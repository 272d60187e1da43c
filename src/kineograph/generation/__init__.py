"""The functions that generate videos: `generate`, `animate`, `edit`, `replay`. Only here models and methods meet.

api.py: the functions; resolve.py: a request and a model become a plan; run.py: a plan becomes a video;
clips.py: long videos clip after clip, also kept on disk; recorded.py: a saved video is generated again.
"""

from kineograph.generation.api import animate, edit, generate
from kineograph.generation.clips import OnStep, Progress
from kineograph.generation.recorded import load_recorded_model, replay
from kineograph.generation.run import run_request
from kineograph.plan import open_inputs

__all__ = [
    "OnStep",
    "Progress",
    "animate",
    "edit",
    "generate",
    "load_recorded_model",
    "open_inputs",
    "replay",
    "run_request",
]
