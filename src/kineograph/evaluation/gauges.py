"""What is measured of each video by itself, in the four aspects of EvalCrafter (Liu et al. 2023)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kineograph.evaluation import flows
from kineograph.evaluation.collection import Clip
from kineograph.evaluation.metrics import Frames, Measured, steadiness, text_alignment
from kineograph.evaluation.towers import Tower
from kineograph.models.origin import fingerprint
from kineograph.pocket import captions
from kineograph.pocket.judge import Judge

QUALITY, ALIGNMENT, MOTION, CONSISTENCY = "visual quality", "text alignment", "motion quality", "temporal consistency"
ASPECTS = (QUALITY, ALIGNMENT, MOTION, CONSISTENCY)


class Gauge(NamedTuple):
    """Some numbers of a video.

    numbers   the name of each -> its aspect
    protocol  what they depend on besides the video
    measure   a video -> those of the numbers that it has
    """

    numbers: Mapping[str, str]
    protocol: Mapping[str, Any]
    measure: Callable[[Clip], Measured]


def clip_gauge(tower: Tower) -> Gauge:
    """CLIP-T, the mean cosine of frames and prompt, and frame consistency, that of neighbouring frames; times 100."""

    def measure(clip: Clip) -> Measured:
        seen = tower.see(clip.frames)
        if wanted := [np.tile(tower.read(prompt), (len(frames), 1)) for frames, prompt in clip.told]:
            ((_, value),) = text_alignment((seen * np.concatenate(wanted)).sum(axis=1))
            yield "CLIP-T", value
        if len(seen) > 1:
            yield "frame consistency", 100 * steadiness(seen)

    return Gauge({"CLIP-T": ALIGNMENT, "frame consistency": CONSISTENCY}, tower.protocol(), measure)


def likeness_gauge(tower: Tower, pictures: Sequence[Frames], digest: str) -> Gauge:
    """CLIP-I: the mean cosine of frames with pictures of what they should show, a subject or a style; times 100.

    pictures: each a video of one frame. digest: stands for them in the protocol.
    """
    wanted = np.concatenate([tower.see(picture) for picture in pictures])

    def measure(clip: Clip) -> Measured:
        yield "CLIP-I", float(100 * (tower.see(clip.frames) @ wanted.T).mean())

    return Gauge({"CLIP-I": ALIGNMENT}, tower.protocol() | {"pictures": digest}, measure)


def flow_gauge() -> Gauge:
    """Motion magnitude, the share of pixels that can be followed, and warp error (`flows.moving`)."""
    numbers = {"motion": MOTION, "followed": CONSISTENCY, "warp error": CONSISTENCY}
    return Gauge(numbers, flows.PROTOCOL, lambda clip: flows.moving(clip.frames, clip.fps))


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
