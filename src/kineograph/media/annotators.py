"""Control pictures from the frames of a video: edges, depth, poses. Frames and maps are uint8 [h w 3].

Edges are found by OpenCV, depth and poses by networks of `transformers`, which the user has or can fetch.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions

Annotator = Callable[[np.ndarray], np.ndarray]

LOW, HIGH = 100, 200  # thresholds of the gradient that ControlNets for edges were trained with
DEPTH = "depth-anything/Depth-Anything-V2-Small-hf"
POSE = "usyd-community/vitpose-base-simple"
PERSONS = "PekingU/rtdetr_r50vd_coco_o365"
PERSON, PERSON_THRESHOLD = 0, 0.5  # COCO's number of a person, and how sure of one to be
FILES = ["*.json", "*.safetensors"]
ABSENT = (OSError, ValueError, ImportError)  # what `from_pretrained` raises for what is not there


def load_annotator(kind: str, model: str | None = None, device: torch.device | str = "cpu") -> Annotator:
    """What makes the maps of this kind: "canny", "depth" or "pose".

    model: the folder or repository of another network for depth or poses than the usual one.

    Raises InputError for another kind, and when what it takes is not installed or not in reach.
    """
    makers: Mapping[str, Callable[[], Annotator]] = {
        "canny": lambda: canny,
        "depth": lambda: load_depth_annotator(model or DEPTH, device),
        "pose": lambda: load_pose_annotator(model or POSE, PERSONS, device),
    }
    if kind not in makers:
        raise InputError(
            f"nothing here makes maps of the kind {kind!r}, only of {', '.join(makers)}: give a video of ready maps, "
            f"--control {kind}-map=VIDEO"
        )
    return makers[kind]()


def canny(frame: np.ndarray, low: int = LOW, high: int = HIGH) -> np.ndarray:
    """White edges on black (Canny 1986), by OpenCV."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "edges are found by OpenCV, which is not installed: pip install 'kineograph[control]'"
        ) from error
    found = cv2.Canny(np.ascontiguousarray(frame), low, high)
    return np.repeat(found[..., None], 3, axis=2)


def load_depth_annotator(model: str, device: torch.device | str = "cpu") -> Annotator:
    """Depth as a network of `transformers` estimates it: what is near is bright, stretched from black to white.

    model: a folder or repository of one for depth estimation (Depth-Anything, DPT, ZoeDepth).
    """
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor, network = _pair(AutoImageProcessor, AutoModelForDepthEstimation, model, "depth", device)

    @torch.no_grad()
    def depth(frame: np.ndarray) -> np.ndarray:
        inputs = processor(images=Image.fromarray(frame), return_tensors="pt").to(device)
        (found,) = processor.post_process_depth_estimation(network(**inputs), target_sizes=[frame.shape[:2]])
        near: Tensor = found["predicted_depth"].float()
        span = (near.max() - near.min()).clamp(min=1e-12)
        grey = (255 * (near - near.min()) / span).round().byte().cpu().numpy()
        return np.repeat(grey[..., None], 3, axis=2)

    return depth


def load_pose_annotator(model: str, persons: str, device: torch.device | str = "cpu") -> Annotator:
    """The skeletons of all persons, in the colours of OpenPose that ControlNets for poses were trained with.

    model: a folder or repository of a ViTPose. persons: one of a detector that knows COCO's classes, such as RT-DETR.
    """
    from transformers import AutoImageProcessor, AutoModelForObjectDetection, VitPoseForPoseEstimation

    finder, detector = _pair(AutoImageProcessor, AutoModelForObjectDetection, persons, "pose", device)
    processor, network = _pair(AutoImageProcessor, VitPoseForPoseEstimation, model, "pose", device)

    @torch.no_grad()
    def pose(frame: np.ndarray) -> np.ndarray:
        picture, size = Image.fromarray(frame), frame.shape[:2]
        seen = detector(**finder(images=picture, return_tensors="pt").to(device))
        (found,) = finder.post_process_object_detection(seen, threshold=PERSON_THRESHOLD, target_sizes=[size])
        corners = found["boxes"][found["labels"] == PERSON].cpu().numpy()
        if not len(corners):
            return np.zeros_like(frame)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)  # x, y, width, height
        inputs = processor(picture, boxes=[boxes], return_tensors="pt").to(device)
        (people,) = processor.post_process_pose_estimation(network(**inputs), boxes=[boxes])
        return draw_skeletons(
            size, [(each["keypoints"].cpu().numpy(), each["scores"].cpu().numpy()) for each in people]
        )

    return pose


def _pair(processors: Any, networks: Any, model: str, kind: str, device: torch.device | str) -> tuple[Any, Any]:
    try:
        folder = hub.local_path(model) or hub.fetch_folder(model, FILES, HubOptions())
        return processors.from_pretrained(folder), networks.from_pretrained(folder).eval().to(device)
    except ABSENT as error:
        raise InputError(
            f"the {kind} of a picture is estimated by {model}, which is not to be had ({error}); or give a video of "
            f"ready maps, --control {kind}-map=VIDEO"
        ) from error


JOINT_THRESHOLD = 0.3  # how sure of a joint to be
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


def draw_skeletons(size: Sequence[int], people: Sequence[Joints]) -> np.ndarray:
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
    there = np.append(sure, sure[list(SHOULDERS)].min()) >= JOINT_THRESHOLD
    every = np.concatenate([places, neck[None]])
    return [(float(every[k][0]), float(every[k][1])) if there[k] else None for k in ORDER]


def _rainbow(count: int) -> list[tuple[int, int, int]]:
    """Colours around the wheel, from red on."""
    paints = [colorsys.hsv_to_rgb(k / len(ORDER), 1, 1) for k in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in paints]


NETWORK = "birefnet-general-lite"


def load_saliency_annotator() -> Callable[[np.ndarray], np.ndarray]:
    """What gives the mask of a frame: uint8 [h w 3] -> uint8 [h w], 255 on the object. Fetches its weights once.

    Raises InputError when rembg is not installed.
    """
    try:
        from rembg import new_session, remove  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError(
            "masks of salient objects are made by rembg, which is not installed: pip install 'kineograph[saliency]', "
            "or take the model's own attention (--masks attention)"
        ) from error
    session = new_session(NETWORK)
    return lambda frame: np.asarray(remove(Image.fromarray(frame), session=session, only_mask=True))
