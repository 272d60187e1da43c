"""CLIP and VideoMAE of transformers, as encoders and feature extractors."""

from __future__ import annotations

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
from kineograph.errors import InputError, load_json
from kineograph.hub import HubOptions
from kineograph.metrics.features import EVENLY_SPACED, FROM_START, Extractor, Frames, VideoFeatures
from kineograph.models.conditioning.image_encoder import CLIP_MEAN, CLIP_STD, crop_to_square
from kineograph.models.formats.tensor_files import as_input_error
from kineograph.models.loading.provenance import fingerprint

FILES = ["*.json", "*.txt", "*.safetensors", "*.bin"]
CLIP_FRAMES = 16  # frames of a video whose CLIP embeddings are averaged
BATCH_SIZE = 32  # frames
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Device = torch.device | str


class ClipEncoder(NamedTuple):
    """A CLIP, as functions that give embeddings of unit length.

    encode_frames  uint8 [f h w 3] -> [f d]
    encode_text    a text -> [d]; a long one is truncated
    """

    name: str
    weights: str
    resize: str
    encode_frames: Callable[[Frames], Float[np.ndarray, "f d"]]
    encode_text: Callable[[str], Float[np.ndarray, " d"]]

    def protocol(self) -> dict[str, Any]:
        """Return everything that the embeddings depend on besides the input."""
        return {"weights": self.weights, "resize": self.resize}


def load_clip_encoder(source: str | Path, device: Device = "cpu") -> ClipEncoder:
    """Load the CLIP in a folder or hub repository. Raises InputError when it is not one, incomplete or unreachable."""
    folder = _model_folder(source, "clip")
    network = _load_complete(CLIPModel, folder, device)
    tokenizer = _load_or_refuse(lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True), folder)
    side = int(network.config.vision_config.image_size)
    preprocess = _preprocessor(folder, side, CLIP_MEAN, CLIP_STD)

    @torch.no_grad()
    def encode_frames(frames: Frames) -> Float[np.ndarray, "f d"]:
        batches = [frames[k : k + BATCH_SIZE] for k in range(0, len(frames), BATCH_SIZE)]
        return np.concatenate([_unit(network.get_image_features(preprocess(each).to(device))) for each in batches])

    @torch.no_grad()
    def encode_text(text: str) -> Float[np.ndarray, " d"]:
        tokens = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt").input_ids
        return _unit(network.get_text_features(tokens.to(device)))[0]

    return ClipEncoder(Path(source).name, fingerprint(network), _resize_text(side), encode_frames, encode_text)


def clip_extractor(clip: ClipEncoder) -> Extractor:
    """Return the extractor of the mean CLIP embedding of frames, which does not depend on the frames' order."""

    def forward(frames: Frames) -> VideoFeatures:
        return VideoFeatures(clip.encode_frames(frames).mean(0))

    return Extractor(clip.name, clip.weights, clip.resize, CLIP_FRAMES, EVENLY_SPACED, 1, forward)


def load_videomae(source: str | Path, device: Device = "cpu") -> Extractor:
    """Load the VideoMAE in a folder or hub repository.

    Features are the mean of its last hidden state; a model for video classification gives class probabilities too.

    Raises InputError when it is not a VideoMAE, incomplete or unreachable.
    """
    folder = _model_folder(source, "videomae")
    architectures = _read_json(folder / "config.json").get("architectures") or []
    classifies = VideoMAEForVideoClassification.__name__ in architectures
    network = _load_complete(VideoMAEForVideoClassification if classifies else VideoMAEModel, folder, device)
    side, num_frames = int(network.config.image_size), int(network.config.num_frames)
    preprocess = _preprocessor(folder, side, IMAGENET_MEAN, IMAGENET_STD)

    @torch.no_grad()
    def forward(frames: Frames) -> VideoFeatures:
        output = network(preprocess(frames)[None].to(device), output_hidden_states=True)
        features = output.hidden_states[-1].mean(1)[0].cpu().double().numpy()
        probabilities = output.logits.cpu().double().softmax(-1)[0].numpy() if classifies else None
        return VideoFeatures(features, probabilities)

    return Extractor(
        Path(source).name, fingerprint(network), _resize_text(side), num_frames, FROM_START, num_frames, forward
    )


def _model_folder(source: str | Path, model_type: str) -> Path:
    """Return the folder of a model of this type, downloaded if `source` is a hub id."""
    folder = hub.local_path(source) or hub.fetch_folder(str(source), FILES, HubOptions())
    if not (folder / "config.json").is_file():
        raise InputError(f"{source} is no {model_type} of transformers: expected a folder with a config.json")
    found = _read_json(folder / "config.json").get("model_type")
    if found != model_type:
        raise InputError(f"{source} holds a model of the type {found}, expected {model_type}")
    return folder


def _load_complete(network: Any, folder: Path, device: Device) -> Any:
    """Load a network and refuse missing weights, which `from_pretrained` would initialise at random."""
    options = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    loaded, info = _load_or_refuse(lambda: network.from_pretrained(folder, **options), folder)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(f"{folder} lacks {len(missing)} weights of {network.__name__}, such as {missing[0]}")
    return loaded.eval().to(device)


def _load_or_refuse(load: Callable[[], Any], folder: Path) -> Any:
    with as_input_error(f"{folder} cannot be opened by transformers"):
        return load()


def _preprocessor(
    folder: Path, side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Frames], Float[Tensor, "f 3 side side"]]:
    """Return the resize and normalisation of a network; the folder's preprocessor_config.json has precedence."""
    config = _read_json(folder / "preprocessor_config.json")
    image_mean, image_std = (
        torch.tensor(config.get(name, default)).view(3, 1, 1)
        for name, default in (("image_mean", mean), ("image_std", std))
    )

    def preprocess(frames: Frames) -> Tensor:
        images = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255
        return (crop_to_square(images, side) - image_mean) / image_std

    return preprocess


def _resize_text(side: int) -> str:
    return f"bicubic, the shorter side to {side}, the middle of the longer"


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = load_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _unit(output: Any) -> np.ndarray:
    output = getattr(output, "pooler_output", output)  # a tensor until transformers 5
    return normalize(output, dim=-1).cpu().double().numpy()
