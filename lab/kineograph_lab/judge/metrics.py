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
from kineograph_lab.judge import parts
from kineograph_lab.judge.networks import CLIP_SIDE, NUM_FRAMES, SIDE, Judge, load_judge, resize_images
from kineograph_lab.recipe.images import to_tensor
from kineograph_lab.world import captions

POCKET = "pocket"
MOTION_WEIGHT = 16.0  # makes motion vary as much as content, over the world's clips
MIN_FRAMES = 2  # frames of a video with motion


def open_pocket_extractor() -> Extractor:
    """Return the extractor of the judge that ships with the laboratory."""
    return judge_extractor(load_judge())


def open_pocket_metric() -> VideoMetric:
    """Return the video metric of the judge that ships with the laboratory, with its judge of anatomy if that ships."""
    return judge_metric(load_judge(), parts.load_parts_network() if parts.WEIGHTS.exists() else None)


def judge_extractor(judge: Judge) -> Extractor:
    """Return an extractor of the judge's features: motion, and the mean image features of the frames.

    224 features, of 16 frames of 64 x 64 and of 128 x 128; its classes are the world's subjects. It is trained on the
    pocket world alone and means nothing on other videos.
    """

    @torch.no_grad()
    def extract(frames: Frames) -> VideoFeatures:
        images = to_tensor(frames)
        clip = resize_images(images, CLIP_SIDE).transpose(0, 1)[None]
        trunk = judge.motion_eye.layers[:-2]  # without the flatten layer and the head
        motion_features = trunk(clip).mean((2, 3, 4))[0]
        image_features = judge.eye.stages(resize_images(images, SIDE))
        subjects = functional.softmax(judge.eye.answers["thing"](image_features), dim=1).mean(0)
        features = torch.cat([MOTION_WEIGHT * motion_features, image_features.mean(0)])
        return VideoFeatures(features.double().numpy(), subjects.double().numpy())

    resize = f"bilinear, squashed to {SIDE} x {SIDE} and {CLIP_SIDE} x {CLIP_SIDE}"
    return Extractor(POCKET, fingerprint(judge), resize, NUM_FRAMES, EVENLY_SPACED, MIN_FRAMES, extract)


def judge_metric(judge: Judge, anatomy: parts.PartsNetwork | None = None) -> VideoMetric:
    """Return the accuracies of what a prompt of the pocket world names: subject, colour, scene and motion.

    They correspond to EvalCrafter's detection, colour and action recognition. The first three are shares of frames, the
    last a share of the parts of the video with a prompt of their own. With a judge of anatomy there is also the share of
    frames in which the parts of the first subject that the prompt names are right.
    """

    def measure(clip: DecodedVideo) -> NamedValues:
        correct = defaultdict[str, list[bool]](list)
        for frames, prompt in clip.prompted_parts:
            expected, recognised = parse_prompt(prompt), judge.classify(frames)
            for label in ("subject", "colour", "scene"):
                correct[f"{label} accuracy"] += [
                    word == expected[label] for word in getattr(recognised, label) if label in expected
                ]
            if "motion" in expected and len(frames) > 1:
                correct["motion accuracy"].append(judge.classify_motion(frames) == expected["motion"])
            if anatomy and (kinds := parse_kinds(prompt)):
                correct["parts accuracy"] += parts.parts_right(anatomy, frames, kinds[0], kinds[1:])
        yield from ((label, float(np.mean(each))) for label, each in correct.items() if each)

    numbers = {
        "subject accuracy": ALIGNMENT,
        "colour accuracy": ALIGNMENT,
        "scene accuracy": ALIGNMENT,
        "motion accuracy": MOTION,
    }
    if anatomy is None:
        return VideoMetric(numbers, {"weights": fingerprint(judge)}, measure)
    weights = {"weights": fingerprint(judge), "parts weights": fingerprint(anatomy)}
    return VideoMetric({**numbers, "parts accuracy": ALIGNMENT}, weights, measure)


def parse_prompt(prompt: str) -> dict[str, str]:
    """Return what a prompt names of "subject", "colour" (of the first subject), "scene" and "motion", as classes."""
    hues, kinds = _choice_of_words(captions.COLOURS), _choice_of_words(captions.KINDS)
    pair = re.search(rf"\b({_alternatives(hues)}) ({_alternatives(kinds)})\b", prompt.lower())
    named = {"subject": kinds[pair[2]], "colour": hues[pair[1]]} if pair else {}
    for name, words in (("scene", _choice_of_words(captions.SCENES)), ("motion", _motion_words())):
        found = re.search(rf"\b({_alternatives(words)})\b", prompt.lower())
        named |= {name: words[found[1]]} if found else {}
    return named


def parse_kinds(prompt: str) -> list[str]:
    """Return the kinds of subjects that a prompt names, in its order."""
    kinds = _choice_of_words(captions.KINDS)
    return [kinds[word] for word in re.findall(rf"\b({_alternatives(kinds)})\b", prompt.lower())]


def _motion_words() -> dict[str, str]:
    verbs = {f"{verb} to the {way}": way for verb in captions.VERBS.values() for way in ("left", "right")}
    return _choice_of_words(captions.MOTIONS) | verbs


def _choice_of_words(choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {text: name for name, texts in choices.items() for text in texts}


def _alternatives(words: Mapping[str, str]) -> str:
    """Return a pattern of these words, the longer ones first: "hopping up and down" before "up"."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
