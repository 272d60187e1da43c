"""Networks of `transformers` that read videos: CLIP, which sees pictures and text, and VideoMAE, which sees motion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer, VideoMAEForVideoClassification, VideoMAEModel

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.metrics.features import FIRST, SPREAD, Extractor, Frames, Reading
from kineograph.models.conditioning.image_encoder import CLIP_MEAN, CLIP_STD, crop_to_square
from kineograph.models.loading.provenance import fingerprint

FILES = ["*.json", "*.txt", "*.safetensors", "*.bin"]
ABSENT = (OSError, ValueError, ImportError, KeyError)  # what `from_pretrained` raises for what is not there
SEEN = 16  # frames of a video that CLIP's features are the mean of
AT_ONCE = 32  # pictures
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Device = torch.device | str


class Tower(NamedTuple):
    """CLIP: embeddings of unit length of pictures and of texts.

    see   uint8 [f h w 3] -> [f d]
    read  a text -> [d]; of a long one, the beginning
    """

    name: str
    weights: str
    resize: str
    see: Callable[[Frames], Float[np.ndarray, "f d"]]
    read: Callable[[str], Float[np.ndarray, " d"]]

    def protocol(self) -> dict[str, Any]:
        """All that the embeddings depend on besides what is embedded."""
        return {"weights": self.weights, "resize": self.resize}


def open_clip(source: str | Path, device: Device = "cpu") -> Tower:
    """The CLIP in a folder or repository. Raises InputError when it is none, incomplete or out of reach."""
    folder = _folder(source, "clip")
    network = _whole(CLIPModel, folder, device)
    tokens = _read(lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True), folder)
    side = int(network.config.vision_config.image_size)
    to_pixels = _pixels(folder, side, CLIP_MEAN, CLIP_STD)

    @torch.no_grad()
    def see(frames: Frames) -> Float[np.ndarray, "f d"]:
        parts = [frames[k : k + AT_ONCE] for k in range(0, len(frames), AT_ONCE)]
        return np.concatenate([_unit(network.get_image_features(to_pixels(part).to(device))) for part in parts])

    @torch.no_grad()
    def read(text: str) -> Float[np.ndarray, " d"]:
        words = tokens([text], padding="max_length", truncation=True, return_tensors="pt").input_ids
        return _unit(network.get_text_features(words.to(device)))[0]

    return Tower(Path(source).name, fingerprint(network), _resize(side), see, read)


def clip_extractor(clip: Tower) -> Extractor:
    """The mean of CLIP's embeddings of frames: it sees what is shown, and nothing of the frames' order."""
    return Extractor(
        clip.name, clip.weights, clip.resize, SEEN, SPREAD, 1, lambda frames: Reading(clip.see(frames).mean(0))
    )


def open_videomae(source: str | Path, device: Device = "cpu") -> Extractor:
    """The VideoMAE in a folder or repository: its last layer's mean; one trained to classify gives classes too.

    Raises InputError when it is none, incomplete or out of reach.
    """
    folder = _folder(source, "videomae")
    kinds = _json(folder / "config.json").get("architectures") or []
    classifies = VideoMAEForVideoClassification.__name__ in kinds
    network = _whole(VideoMAEForVideoClassification if classifies else VideoMAEModel, folder, device)
    side, count = int(network.config.image_size), int(network.config.num_frames)
    to_pixels = _pixels(folder, side, IMAGENET_MEAN, IMAGENET_STD)

    @torch.no_grad()
    def read(frames: Frames) -> Reading:
        told = network(to_pixels(frames)[None].to(device), output_hidden_states=True)
        features = told.hidden_states[-1].mean(1)[0].double().cpu().numpy()
        classes = told.logits.double().softmax(-1)[0].cpu().numpy() if classifies else None
        return Reading(features, classes)

    return Extractor(Path(source).name, fingerprint(network), _resize(side), count, FIRST, count, read)


def _folder(source: str | Path, kind: str) -> Path:
    """The folder with a network of this kind, fetched if it is a repository's name."""
    folder = hub.local_path(source) or hub.fetch_folder(str(source), FILES, HubOptions())
    if not (folder / "config.json").is_file():
        raise InputError(f"{source} is no {kind} of transformers: expected a folder with a config.json")
    found = _json(folder / "config.json").get("model_type")
    if found != kind:
        raise InputError(f"{source} holds a model of the type {found}, expected {kind}")
    return folder


def _whole(network: Any, folder: Path, device: Device) -> Any:
    """The network with all of its weights: `from_pretrained` makes up what a file lacks."""
    opened, told = _read(
        lambda: network.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        ),
        folder,
    )  # fmt: skip
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise InputError(f"{folder} lacks {len(missing)} weights of {network.__name__}, such as {missing[0]}")
    return opened.eval().to(device)


def _read(load: Callable[[], Any], folder: Path) -> Any:
    try:
        return load()
    except ABSENT as error:
        raise InputError(f"{folder} cannot be opened by transformers: {error}") from error


def _pixels(
    folder: Path, side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Frames], Float[Tensor, "f 3 side side"]]:
    """What makes frames the pixels that a network was trained on, by the folder's preprocessor_config.json."""
    told = _json(folder / "preprocessor_config.json")
    middle, spread = (
        torch.tensor(told.get(name, usual)).view(3, 1, 1) for name, usual in (("image_mean", mean), ("image_std", std))
    )

    def pixels(frames: Frames) -> Tensor:
        pictures = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255
        return (crop_to_square(pictures, side) - middle) / spread

    return pixels


def _resize(side: int) -> str:
    return f"bicubic, the shorter side to {side}, the middle of the longer"


def _json(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return told if isinstance(told, dict) else {}


def _unit(found: Any) -> np.ndarray:
    found = getattr(found, "pooler_output", found)  # a tensor until transformers 5
    return normalize(found, dim=-1).double().cpu().numpy()
