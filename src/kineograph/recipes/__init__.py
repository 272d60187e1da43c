"""The front doors: plain arguments in, a video out. Only here are models and methods known at once."""

from kineograph.recipes.again import recorded_model, replay
from kineograph.recipes.asking import generate
from kineograph.recipes.asking_from import animate, edit
from kineograph.recipes.inputs import opened
from kineograph.recipes.making import OnStep, Progress, made

__all__ = ["OnStep", "Progress", "animate", "edit", "generate", "made", "opened", "recorded_model", "replay"]
