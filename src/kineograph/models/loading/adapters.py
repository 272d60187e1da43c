"""Still-Moving's adapters from files, added to the components of a model."""

from __future__ import annotations

import warnings
from pathlib import Path

from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.formats import adapter_files, lora
from kineograph.models.formats.tensor_files import preview_names
from kineograph.models.loading.components import Components
from kineograph.models.lora_layers import CUSTOMISED
from kineograph.models.temporal.adapters import NO_TEMPORAL_LAYERS


def load_motion_adapter(components: Components, source: str | Path, video: str, hub_options: HubOptions) -> Components:
    """Return a video model's components with the motion adapter of a file, instead of its own.

    video: name of the model that has the temporal layers. Raises InputError if the model has no temporal layers, or the
    file no motion adapter for them.
    """
    file = adapter_files.read_adapter_file(source, "motion", hub_options)
    if components.temporal is None:
        raise InputError(f"{file.path} is a motion adapter, and {video} {NO_TEMPORAL_LAYERS}")
    return components._replace(motion_adapter=adapter_files.build_motion_adapter(file, components.temporal, video))


def load_customised_adapter(
    components: Components, source: str | Path, image: str, video: str, hub_options: HubOptions
) -> Components:
    """Return a model's components customised to the subject or style of a file.

    The file's LoRA is added to the networks, and for a video model its spatial adapter too. `image` and `video` are the
    names of the image model and of the model that has the temporal layers. Raises InputError if the file is none of
    this kind, or for image networks of other shapes or other temporal layers. Warns of an image network with other
    weights.
    """
    file = adapter_files.read_adapter_file(source, "customised", hub_options)
    _check_image_network(file, components, image)
    spatial = None
    if components.temporal is not None:
        spatial = adapter_files.build_spatial_adapter(file, components.temporal, video)
    elif not file.lora:
        raise InputError(f"{file.path} holds a spatial adapter alone, and {image} {NO_TEMPORAL_LAYERS}")
    if file.lora:
        lora.add_lora(file.path, file.lora, components.networks, 1.0, prefix=CUSTOMISED)
    return components._replace(spatial_adapter=spatial, subject=file.header.subject)


def _check_image_network(file: adapter_files.AdapterFile, components: Components, name: str) -> None:
    expected, found = file.header.image, adapter_files.weight_signature(components.unet, name)
    if expected is None or found.shapes != expected.shapes:
        other = "an unnamed model" if expected is None else expected.name
        raise InputError(
            f"{file.path} was made for {other}, and {name} has an image network of other shapes: take {other}, or "
            f"customise {name}"
        )
    if unmatched := lora.match_tensors(file.lora, components.networks).elsewhere:
        names = preview_names(unmatched)
        raise InputError(f"{file.path} was made for {expected.name}, and {name} has no layers for {names}")
    if not found.same_weights(expected):
        warnings.warn(
            f"{file.path} was made for {expected.name}, and the image network of {name} has the same shapes and "
            f"other weights: {file.header.subject or 'its subject or style'} may not come out well",
            InputWarning,
            stacklevel=5,
        )
