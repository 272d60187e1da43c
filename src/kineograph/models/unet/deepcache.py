"""DeepCache (Ma et al. 2024): reuse of a U-Net's deep features at neighbouring steps.

A U-Net's skip connections are numbered from the outermost, that of its first convolution. With branch k, a full
evaluation keeps the tensor that enters the up layer which reads skip connection k. The evaluations after it compute the
down layers up to that skip connection and the up layers from there, with the kept tensor as the input.

The kept tensors, one for each chunk or window of frames, are inputs and outputs of the forward pass: the networks hold
none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.sigmas import TOLERANCE

if TYPE_CHECKING:  # these import this module
    from kineograph.models.unet.forward import AddedResiduals, LayerInputs
    from kineograph.models.unet.video_unet import RunLayers, TemporalSettings, VideoUNet


class DeepFeature(NamedTuple):
    """The part of DeepCache in one forward pass.

    branch  number of the skip connection: the layers inside of it are those that are not evaluated again
    tensor  what enters the up layer that reads this skip connection, of an earlier pass; None to evaluate all layers
    """

    branch: int
    tensor: Tensor | None = None


class DeepFeatures(NamedTuple):
    """The features of all chunks or windows of a video.

    branch   as in `DeepFeature`
    reuse    True to read `tensors`, False to write them
    tensors  by the number of the first frame
    """

    branch: int
    reuse: bool
    tensors: dict[int, Tensor]

    def feature(self, frame: int) -> DeepFeature:
        """Return the feature of the chunk or window that starts at this frame."""
        return DeepFeature(self.branch, self.tensors[frame] if self.reuse else None)


class DeepCache(NamedTuple):
    """Settings of DeepCache.

    branch  as in `DeepFeature`, the `cache_branch_id` of the released code
    sigmas  falling: the first evaluation at or below each, and above the next, is of all layers
    """

    branch: int
    sigmas: Sequence[float]


def reuse_features(bind: Callable[[DeepFeatures], Denoise], settings: DeepCache) -> Denoise:
    """Return the model with DeepCache; it keeps the features of its last full evaluation.

    An evaluation of another number of frames, or between two other sigmas of the settings, is a full one.

    bind: returns the model that reads or writes these features.
    """
    tensors, kept_for = dict[int, Tensor](), list[tuple[int, torch.Size]]()

    def denoise(x: Latents, sigma: float) -> Latents:
        now = sum(sigma <= each * (1 + TOLERANCE) for each in settings.sigmas), x.shape
        reuse = [now] == kept_for
        if not reuse:
            kept_for.clear()
            tensors.clear()
        x0 = bind(DeepFeatures(settings.branch, reuse, tensors))(x, sigma)
        kept_for[:] = [now]
        return x0

    return denoise


def with_features(run_layers: RunLayers, features: DeepFeatures) -> RunLayers:
    """Return the function that evaluates a network's layers with these features, and keeps what it returns."""

    def run(
        net: VideoUNet, x: Tensor, residuals: AddedResiduals, inputs: LayerInputs, settings: TemporalSettings
    ) -> tuple[Tensor, Tensor | None]:
        frame = inputs.groups.frames[0]
        output, feature = run_layers(net, x, residuals, inputs._replace(deep=features.feature(frame)), settings)
        assert feature is not None
        features.tensors[frame] = feature
        return output, feature

    return run


def check_branch(branch: int, skips: int) -> None:
    """Raise InputError for a branch that a network with so many skip connections does not have."""
    if branch >= skips:
        raise InputError(
            f"`deepcache_branch` is the number of a skip connection of the network, from 0 to {skips - 1}, not {branch}"
        )
