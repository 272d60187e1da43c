"""Skeletons as OpenPose draws them: what ControlNets for poses were trained on."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SURE = 0.3  # how sure of a joint to be
SHOULDERS = (5, 6)
# COCO's 17 joints in the order of OpenPose's, where a neck comes second: half way between the shoulders
ORDER = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# OpenPose's bones, as pairs of its own joints
BONES = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
DIM = 0.6  # bones are darker than joints

Joints = tuple[np.ndarray, np.ndarray]  # places [17, 2] in pixels, x then y, and how sure each is, [17]


def drawn(size: Sequence[int], people: Sequence[Joints]) -> np.ndarray:
    """The skeletons of people on black: uint8 [h w 3]. size: height and width in pixels."""
    height, width = size
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    thick = max(1, round(min(size) / 128))
    for places, sure in people:
        joints = _with_neck(places, sure)
        for (start, end), paint in zip(BONES, _rainbow(len(BONES)), strict=True):
            ends = joints[start], joints[end]
            if all(each is not None for each in ends):
                draw.line([each for each in ends if each is not None], tuple(int(DIM * c) for c in paint), 2 * thick)
        for joint, paint in zip(joints, _rainbow(len(joints)), strict=True):
            if joint is not None:
                x, y = joint
                draw.ellipse((x - thick, y - thick, x + thick, y + thick), paint)
    return np.asarray(image)


def _with_neck(places: np.ndarray, sure: np.ndarray) -> list[tuple[float, float] | None]:
    """The joints in OpenPose's order, None where nobody is sure."""
    neck = places[list(SHOULDERS)].mean(0)
    there = np.append(sure, sure[list(SHOULDERS)].min()) >= SURE
    every = np.concatenate([places, neck[None]])
    return [(float(every[k][0]), float(every[k][1])) if there[k] else None for k in ORDER]


def _rainbow(count: int) -> list[tuple[int, int, int]]:
    """Colours around the wheel, from red on."""
    paints = [colorsys.hsv_to_rgb(k / len(ORDER), 1, 1) for k in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in paints]
