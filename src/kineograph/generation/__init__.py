"""The functions that generate videos: `generate`, `animate`, `edit`, `replay`. Only here models and methods meet.

api.py: arguments to a request; resolve.py: request and model to a plan; run.py: plan to a video; clips.py: long videos
clip after clip, and finished clips on disk; recorded.py: a saved video is generated again.
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
