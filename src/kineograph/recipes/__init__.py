"""The front doors: plain arguments in, a video out. Only here are models and methods known at once."""

from kineograph.recipes.again import recorded_model, replay
from kineograph.recipes.making import OnStep, Progress, generate, made
from kineograph.recipes.walks import camera

__all__ = ["OnStep", "Progress", "camera", "generate", "made", "recorded_model", "replay"]
