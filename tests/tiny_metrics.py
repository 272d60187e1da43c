"""Tiny networks and random videos for the tests of metrics."""

import numpy as np
import torch
from torch import nn
from transformers import VideoMAEConfig

from kineograph.media.video import Video
from kineograph.metrics.collection import DecodedVideo


def noise(seed: int, frames: int = 4, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


def folder_of(path, count=3, first=0, **shape):
    """Write `count` videos of noise with the prompts "prompt 0", "prompt 1", ..."""
    path.mkdir()
    for number in range(count):
        Video(noise(first + number, **shape), 8, {"prompt": f"prompt {number}"}).save(path / f"{number}.mp4")
    return path


class Network(nn.Module):
    """A linear layer on the means of the two halves of a clip [b c t h w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(6, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool3d(x, (2, 1, 1)).flatten(1))


class I3DLike(nn.Module):
    """A network with the arguments of StyleGAN-V's I3D, which checks their values."""

    def forward(self, x, rescale: bool, resize: bool, return_features: bool):  # noqa: FBT001 (the names of the released file)
        assert rescale and resize and return_features
        return x.mean((2, 3, 4))


def scripted(path, network):
    torch.manual_seed(0)
    torch.jit.script(network.eval()).save(str(path))
    return path


def save_videomae(folder, kind, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    shape = {"image_size": 32, "patch_size": 16, "num_frames": 4, **settings}
    kind(VideoMAEConfig(**sizes, **decoder, **shape)).save_pretrained(folder)
    return folder


def decoded(frames, prompt=None, fps=8.0) -> DecodedVideo:
    """Return frames as `decode_video` does."""
    return DecodedVideo("a.mp4", frames, fps, prompt)
