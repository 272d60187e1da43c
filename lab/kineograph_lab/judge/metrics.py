"""The judge as an extractor and a video metric of `kineograph evaluate`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from kineograph.metrics.collection import DecodedVideo
from kineograph.metrics.features import EVENLY_SPACED, Extractor, Frames, NamedValues, VideoFeatures
from kineograph.metrics.video_metrics import ALIGNMENT, MOTION, VideoMetric
from kineograph.models.loading.provenance import fingerprint
from kineograph_lab.judge.networks import CLIP_SIDE, NUM_FRAMES, SIDE, Judge, load_judge, resize_images
from kineograph_lab.recipe.images import to_tensor
from kineograph_lab.world import captions

POCKET = "pocket"
MOTION_WEIGHT = 16.0  # makes motion vary as much as content, over the world's clips
MIN_FRAMES = 2  # frames of a video that moves


def open_pocket_extractor() -> Extractor:
    """Return the extractor of the judge that ships with the laboratory."""
    return judge_extractor(load_judge())


def open_pocket_metric() -> VideoMetric:
    """Return the video metric of the judge that ships with the laboratory."""
    return judge_metric(load_judge())


def judge_extractor(judge: Judge) -> Extractor:
    """The judge's two eyes on the pocket world's clips: how it moves, and what its frames show on average.

    224 features, of 16 frames of 64 x 64 and of 128 x 128; its classes are the world's things. It knows nothing of
    other videos.
    """

    @torch.no_grad()
    def read(frames: Frames) -> VideoFeatures:
        pictures = to_tensor(frames)
        film = resize_images(pictures, CLIP_SIDE).transpose(0, 1)[None]
        moving = judge.motion_eye.layers[:-2](film).mean((2, 3, 4))[0]  # without the flat layer and the answers
        seen = judge.eye.stages(resize_images(pictures, SIDE))
        things = functional.softmax(judge.eye.answers["thing"](seen), dim=1).mean(0)
        features = torch.cat([MOTION_WEIGHT * moving, seen.mean(0)])
        return VideoFeatures(features.double().numpy(), things.double().numpy())

    resize = f"bilinear, squashed to {SIDE} x {SIDE} and {CLIP_SIDE} x {CLIP_SIDE}"
    return Extractor(POCKET, fingerprint(judge), resize, NUM_FRAMES, EVENLY_SPACED, MIN_FRAMES, read)


def judge_metric(judge: Judge) -> VideoMetric:
    """Whether the pocket world's judge sees what a prompt of that world asks for: thing, colour, scene and motion.

    They stand where EvalCrafter has detection, colour and action recognition. The first three are shares of frames,
    the last of the parts that a prompt is for.
    """

    def measure(clip: DecodedVideo) -> NamedValues:
        found = defaultdict[str, list[bool]](list)
        for frames, prompt in clip.prompted_parts:
            asked, seen = parse_prompt(prompt), judge.look(frames)
            for name in ("thing", "colour", "scene"):
                found[f"{name} seen"] += [word == asked[name] for word in getattr(seen, name) if name in asked]
            if "motion" in asked and len(frames) > 1:
                found["motion seen"].append(judge.motion(frames) == asked["motion"])
        yield from ((name, float(np.mean(each))) for name, each in found.items() if each)

    numbers = {"thing seen": ALIGNMENT, "colour seen": ALIGNMENT, "scene seen": ALIGNMENT, "motion seen": MOTION}
    return VideoMetric(numbers, {"weights": fingerprint(judge)}, measure)


def parse_prompt(prompt: str) -> dict[str, str]:
    """What a prompt asks for in the world's words, of the first thing that it names; nothing that it does not name."""
    hues, kinds = _choice_of_words(captions.COLOURS), _choice_of_words(captions.KINDS)
    pair = re.search(rf"\b({_alternatives(hues)}) ({_alternatives(kinds)})\b", prompt.lower())
    asked = {"thing": kinds[pair[2]], "colour": hues[pair[1]]} if pair else {}
    for name, words in (("scene", _choice_of_words(captions.SCENES)), ("motion", _motion_words())):
        found = re.search(rf"\b({_alternatives(words)})\b", prompt.lower())
        asked |= {name: words[found[1]]} if found else {}
    return asked


def _motion_words() -> dict[str, str]:
    verbs = {f"{verb} to the {way}": way for verb in captions.VERBS.values() for way in ("left", "right")}
    return _choice_of_words(captions.MOTIONS) | verbs


def _choice_of_words(choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {text: name for name, texts in choices.items() for text in texts}


def _alternatives(words: Mapping[str, str]) -> str:
    """Any of these, the longer ones first: "hopping up and down" before "up"."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
