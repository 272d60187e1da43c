"""Annotators: control maps (edges, depth, poses) and masks of salient objects from frames.

Frames and maps are uint8 [h w 3]. Edges come from OpenCV, depth and poses from networks of `transformers`, masks from
rembg.
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
from kineograph.media.images import import_opencv

Annotator = Callable[[np.ndarray], np.ndarray]

CANNY_LOW, CANNY_HIGH = 100, 200  # thresholds of the gradient that ControlNets for edges were trained with
DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
POSE_MODEL = "usyd-community/vitpose-base-simple"
PERSON_DETECTOR = "PekingU/rtdetr_r50vd_coco_o365"
SALIENCY_MODEL = "birefnet-general-lite"
MODEL_FILES = ["*.json", "*.safetensors"]
LOAD_ERRORS = (OSError, ValueError, ImportError)  # raised by `from_pretrained` for a model that cannot be loaded

COCO_PERSON, PERSON_THRESHOLD = 0, 0.5  # class of a person, and the least score of a detection
JOINT_THRESHOLD = 0.3  # least score of a joint
SHOULDERS = (5, 6)
# COCO's 17 joints in the order of OpenPose's, where a neck comes second: half way between the shoulders
JOINT_ORDER = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# OpenPose's bones, as pairs of its own joints
BONES = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
BONE_BRIGHTNESS = 0.6  # bones are darker than joints

ANNOTATED = ("canny", "depth", "pose")  # kinds of maps that annotators make
Joints = tuple[np.ndarray, np.ndarray]  # positions [17, 2] in pixels, x then y, and scores [17]


def load_annotator(kind: str, model: str | None = None, device: torch.device | str = "cpu") -> Annotator:
    """Return the function that turns a frame into a control map of a kind: "canny", "depth" or "pose".

    model: folder or repository of a network for depth or poses, in place of the default one.

    Raises InputError for another kind, and when a package or a network cannot be loaded.
    """
    check_annotator(kind)
    loaders: Mapping[str, Callable[[], Annotator]] = {
        "canny": lambda: canny,
        "depth": lambda: load_depth_annotator(model or DEPTH_MODEL, device),
        "pose": lambda: load_pose_annotator(model or POSE_MODEL, PERSON_DETECTOR, device),
    }
    return loaders[kind]()


def check_annotator(kind: str) -> None:
    """Raise InputError for a kind of maps that no annotator makes, and for a missing package."""
    if kind not in ANNOTATED:
        raise InputError(
            f"there is no annotator for maps of the kind {kind!r}, only for {', '.join(ANNOTATED)}: give a video of "
            f"finished maps, `control` {kind}-map=VIDEO"
        )
    if kind == "canny":
        import_opencv("edge detection")


def canny(frame: np.ndarray, low: int = CANNY_LOW, high: int = CANNY_HIGH) -> np.ndarray:
    """Return white edges on black (Canny 1986)."""
    edges = import_opencv("edge detection").Canny(np.ascontiguousarray(frame), low, high)
    return np.repeat(edges[..., None], 3, axis=2)


def load_depth_annotator(model: str, device: torch.device | str = "cpu") -> Annotator:
    """Load a depth estimator; its maps are bright where it is near, stretched from black to white.

    model: folder or repository of a network for depth estimation (Depth-Anything, DPT, ZoeDepth).
    """
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor, network = _load_pair(AutoImageProcessor, AutoModelForDepthEstimation, model, "depth", device)

    @torch.no_grad()
    def depth(frame: np.ndarray) -> np.ndarray:
        inputs = processor(images=Image.fromarray(frame), return_tensors="pt").to(device)
        (result,) = processor.post_process_depth_estimation(network(**inputs), target_sizes=[frame.shape[:2]])
        near: Tensor = result["predicted_depth"].float()
        span = (near.max() - near.min()).clamp(min=1e-12)
        grey = (255 * (near - near.min()) / span).round().byte().cpu().numpy()
        return np.repeat(grey[..., None], 3, axis=2)

    return depth


def load_pose_annotator(model: str, detector: str, device: torch.device | str = "cpu") -> Annotator:
    """Load a pose estimator; its maps are skeletons in OpenPose's colours, as ControlNets were trained with.

    Args:
        model: folder or repository of a ViTPose.
        detector: folder or repository of a detector of COCO's classes, such as RT-DETR, which finds the persons.
    """
    from transformers import AutoImageProcessor, AutoModelForObjectDetection, VitPoseForPoseEstimation

    box_processor, detect = _load_pair(AutoImageProcessor, AutoModelForObjectDetection, detector, "pose", device)
    processor, network = _load_pair(AutoImageProcessor, VitPoseForPoseEstimation, model, "pose", device)

    @torch.no_grad()
    def pose(frame: np.ndarray) -> np.ndarray:
        image, size = Image.fromarray(frame), frame.shape[:2]
        outputs = detect(**box_processor(images=image, return_tensors="pt").to(device))
        (objects,) = box_processor.post_process_object_detection(
            outputs, threshold=PERSON_THRESHOLD, target_sizes=[size]
        )
        corners = objects["boxes"][objects["labels"] == COCO_PERSON].cpu().numpy()
        if not len(corners):
            return np.zeros_like(frame)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)  # x, y, width, height
        inputs = processor(image, boxes=[boxes], return_tensors="pt").to(device)
        (people,) = processor.post_process_pose_estimation(network(**inputs), boxes=[boxes])
        joints = [(each["keypoints"].cpu().numpy(), each["scores"].cpu().numpy()) for each in people]
        return draw_skeletons(size, joints)

    return pose


def _load_pair(processors: Any, networks: Any, model: str, kind: str, device: torch.device | str) -> tuple[Any, Any]:
    """Load the preprocessor and the network of a folder or repository."""
    try:
        folder = hub.local_path(model) or hub.fetch_folder(model, MODEL_FILES, HubOptions())
        return processors.from_pretrained(folder), networks.from_pretrained(folder).eval().to(device)
    except LOAD_ERRORS as error:
        raise InputError(
            f"the {kind} of an image is estimated by {model}, which cannot be loaded ({error}); or give a video of "
            f"finished maps, `control` {kind}-map=VIDEO"
        ) from error


def draw_skeletons(size: Sequence[int], people: Sequence[Joints]) -> np.ndarray:
    """Draw the skeletons of people on black: uint8 [h w 3]. size: height and width in pixels."""
    height, width = size
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    radius = max(1, round(min(size) / 128))
    for positions, scores in people:
        joints = _openpose_joints(positions, scores)
        for (start, end), colour in zip(BONES, _rainbow(len(BONES)), strict=True):
            ends = [each for each in (joints[start], joints[end]) if each is not None]
            if len(ends) == 2:
                draw.line(ends, tuple(int(BONE_BRIGHTNESS * c) for c in colour), 2 * radius)
        for joint, colour in zip(joints, _rainbow(len(joints)), strict=True):
            if joint is not None:
                x, y = joint
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    return np.asarray(image)


def _openpose_joints(positions: np.ndarray, scores: np.ndarray) -> list[tuple[float, float] | None]:
    """Return the joints in OpenPose's order, with a neck; None for those with a low score."""
    neck = positions[list(SHOULDERS)].mean(0)
    found = np.append(scores, scores[list(SHOULDERS)].min()) >= JOINT_THRESHOLD
    joints = np.concatenate([positions, neck[None]])
    return [(float(joints[k][0]), float(joints[k][1])) if found[k] else None for k in JOINT_ORDER]


def _rainbow(count: int) -> list[tuple[int, int, int]]:
    """Return colours around the wheel, from red on."""
    colours = [colorsys.hsv_to_rgb(k / len(JOINT_ORDER), 1, 1) for k in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def load_saliency_annotator() -> Annotator:
    """Return the function that masks the salient object of a frame: uint8 [h w 3] -> uint8 [h w], 255 on the object.

    Downloads the weights once. Raises InputError when rembg is not installed.
    """
    check_saliency_annotator()
    from rembg import new_session, remove  # type: ignore[import-not-found,unused-ignore]

    session = new_session(SALIENCY_MODEL)
    return lambda frame: np.asarray(remove(Image.fromarray(frame), session=session, only_mask=True))


def check_saliency_annotator() -> None:
    """Raise InputError when rembg is not installed."""
    try:
        import rembg  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise InputError(
            "masks of salient objects are made by rembg, which is not installed: pip install 'kineograph[saliency]', "
            "or use the model's own attention (`foreground_masks` attention)"
        ) from error
