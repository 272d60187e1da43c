"""An image model learns a subject or a style from a few pictures: DreamBooth, and an adapter in StyleDrop's manner."""

from kineograph.recipes.customising.photos import photos
from kineograph.recipes.customising.run import FINAL, Reached, Ready, customise, customise_image, ready
from kineograph.recipes.customising.settings import Customising, Drawing, Lora, changed, usual
from kineograph.recipes.customising.stills import kept_stills, stills
from kineograph.recipes.customising.trainee import customised, lora_of, read_card
from kineograph.recipes.customising.words import in_style, rare_word, refuse_without

__all__ = [
    "FINAL",
    "Customising",
    "Drawing",
    "Lora",
    "Reached",
    "Ready",
    "changed",
    "customise",
    "customise_image",
    "customised",
    "in_style",
    "kept_stills",
    "lora_of",
    "photos",
    "rare_word",
    "read_card",
    "ready",
    "refuse_without",
    "stills",
    "usual",
]
