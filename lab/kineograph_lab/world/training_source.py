"""The pocket world as a source of training data, `pocket` in the settings of `kineograph train`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kineograph.media.dataset_layouts import MediaKind
from kineograph.media.training_clips import IMAGE_FPS, Clip
from kineograph.training.temporal_layers.sources import ClipShape
from kineograph_lab.recipe.video import clips
from kineograph_lab.world import captions, world


def render_item(rng: np.random.Generator, kind: MediaKind, shape: ClipShape) -> tuple[str, Callable[[], Clip]]:
    """Return the caption of a random image or clip, and the function that renders it."""
    if kind == "image":
        shot = world.sample_shot(rng, split="train")
        caption = captions.caption_image(shot, rng)
        return caption, lambda: Clip(world.render(shot)[None], IMAGE_FPS, caption)
    shot = clips.sample_clip_shot(rng, "train")
    caption = captions.caption_clip(shot, rng)
    fps = float(rng.choice(shape.rates) if shape.rates else rng.choice(clips.FRAME_RATES, p=clips.FRAME_RATE_SHARES))
    return caption, lambda: Clip(world.render_clip(shot, shape.num_frames, fps), fps, caption)
