"""The front doors: plain arguments in, a video out. Only here are models and methods known at once."""

from kineograph.generate.animate_edit import animate, edit
from kineograph.generate.generate import generate
from kineograph.generate.replay import recorded_model, replay
from kineograph.generate.run import OnStep, Progress, run_request
from kineograph.plan import open_inputs

__all__ = ["OnStep", "Progress", "animate", "edit", "generate", "made", "opened", "recorded_model", "replay"]
