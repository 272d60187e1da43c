"""The judge as an extractor and a video metric of `kineograph evaluate`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from kineograph.metrics.collection import Clip
from kineograph.metrics.features import SPREAD, Extractor, Frames, Measured, Reading
from kineograph.metrics.video_metrics import ALIGNMENT, MOTION, Gauge
from kineograph.models.loading.provenance import fingerprint
from kineograph_lab.judge.networks import FRAMES, SIDE, SMALL, Judge, load_judge, resampled
from kineograph_lab.recipe.contact_sheets import as_tensor
from kineograph_lab.world import captions

POCKET = "pocket"
MOTION_WEIGHT = 16.0  # makes motion vary as much as content, over the world's clips
LEAST = 2  # frames of a video that moves


def open_pocket_extractor() -> Extractor:
    """Return the extractor of the judge that ships with the laboratory."""
    return pocket_extractor(load_judge())


def open_pocket_metric() -> Gauge:
    """Return the video metric of the judge that ships with the laboratory."""
    return pocket_gauge(load_judge())


def pocket_extractor(judge: Judge) -> Extractor:
    """The judge's two eyes on the pocket world's clips: how it moves, and what its frames show on average.

    224 features, of 16 frames of 64 x 64 and of 128 x 128; its classes are the world's things. It knows nothing of
    other videos.
    """

    @torch.no_grad()
    def read(frames: Frames) -> Reading:
        pictures = as_tensor(frames)
        film = resampled(pictures, SMALL).transpose(0, 1)[None]
        moving = judge.motion_eye.layers[:-2](film).mean((2, 3, 4))[0]  # without the flat layer and the answers
        seen = judge.eye.stages(resampled(pictures, SIDE))
        things = functional.softmax(judge.eye.answers["thing"](seen), dim=1).mean(0)
        features = torch.cat([MOTION_WEIGHT * moving, seen.mean(0)])
        return Reading(features.double().numpy(), things.double().numpy())

    resize = f"bilinear, squashed to {SIDE} x {SIDE} and {SMALL} x {SMALL}"
    return Extractor(POCKET, fingerprint(judge), resize, FRAMES, SPREAD, LEAST, read)


def pocket_gauge(judge: Judge) -> Gauge:
    """Whether the pocket world's judge sees what a prompt of that world asks for: thing, colour, scene and motion.

    They stand where EvalCrafter has detection, colour and action recognition. The first three are shares of frames,
    the last of the parts that a prompt is for.
    """

    def measure(clip: Clip) -> Measured:
        found = defaultdict[str, list[bool]](list)
        for frames, prompt in clip.told:
            asked, seen = told(prompt), judge.look(frames)
            for name in ("thing", "colour", "scene"):
                found[f"{name} seen"] += [word == asked[name] for word in getattr(seen, name) if name in asked]
            if "motion" in asked and len(frames) > 1:
                found["motion seen"].append(judge.motion(frames) == asked["motion"])
        yield from ((name, float(np.mean(each))) for name, each in found.items() if each)

    numbers = {"thing seen": ALIGNMENT, "colour seen": ALIGNMENT, "scene seen": ALIGNMENT, "motion seen": MOTION}
    return Gauge(numbers, {"weights": fingerprint(judge)}, measure)


def told(prompt: str) -> dict[str, str]:
    """What a prompt asks for in the world's words, of the first thing that it names; nothing that it does not name."""
    hues, kinds = _by_word(captions.COLOURS), _by_word(captions.KINDS)
    pair = re.search(rf"\b({_any(hues)}) ({_any(kinds)})\b", prompt.lower())
    asked = {"thing": kinds[pair[2]], "colour": hues[pair[1]]} if pair else {}
    for name, words in (("scene", _by_word(captions.SCENES)), ("motion", _moves())):
        found = re.search(rf"\b({_any(words)})\b", prompt.lower())
        asked |= {name: words[found[1]]} if found else {}
    return asked


def _moves() -> dict[str, str]:
    verbs = {f"{verb} to the {way}": way for verb in captions.VERBS.values() for way in ("left", "right")}
    return _by_word(captions.MOTIONS) | verbs


def _by_word(choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {text: name for name, texts in choices.items() for text in texts}


def _any(words: Mapping[str, str]) -> str:
    """Any of these, the longer ones first: "hopping up and down" before "up"."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
