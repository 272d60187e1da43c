"""A model with adapters from files: one for its motion, and one of a subject or a style of the user's own."""

from __future__ import annotations

import warnings
from pathlib import Path

from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.formats import lora
from kineograph.models.formats.tensor_files import preview_names
from kineograph.models.loading import adapter_files
from kineograph.models.loading.adapter_files import AdapterFile, weight_signature
from kineograph.models.loading.components import Components
from kineograph.models.temporal.adapters import NO_TEMPORAL_LAYERS


def load_motion_adapter(opened: Components, source: str | Path, video: str, hub_options: HubOptions) -> Components:
    """A video model with a motion adapter, in place of the one it has.

    video: what its layers along time are called.
    Raises InputError for an image model, for a file that is none, and for an adapter of another model.
    """
    adapter = adapter_files.read_adapter_file(source, "motion", hub_options)
    if opened.temporal is None:
        raise InputError(f"{adapter.file} is a motion adapter, and {video} {NO_TEMPORAL_LAYERS}")
    return opened._replace(motion_adapter=adapter_files.build_motion_adapter(adapter, opened.temporal, video))


def load_customised_adapter(
    opened: Components, source: str | Path, image: str, video: str, hub_options: HubOptions
) -> Components:
    """A model that knows a subject or a style: the LoRA of a file on its networks, and before its layers along time, if
    it has any, the spatial adapter of the file.

    image, video: what its image network and its layers along time are called.
    Raises InputError for a file that is none, and for an adapter of a model of other shapes or with other layers along
    time; warns of an image network with other weights.
    """
    adapter = adapter_files.read_adapter_file(source, "customised", hub_options)
    _check_image(adapter, opened, image)
    spatial = None
    if opened.temporal is not None:
        spatial = adapter_files.build_spatial_adapter(adapter, opened.temporal, video)
    elif not adapter.lora:
        raise InputError(f"{adapter.file} holds a spatial adapter alone, and {image} {NO_TEMPORAL_LAYERS}")
    if adapter.lora:
        lora.add_lora(adapter.file, adapter.lora, opened.networks, 1.0)
    return opened._replace(spatial_adapter=spatial, subject=adapter.about.subject)


def _check_image(adapter: AdapterFile, opened: Components, name: str) -> None:
    made_for, here = adapter.about.image, weight_signature(opened.unet, name)
    if made_for is None or not here.has_shapes_of(made_for):
        whose = "an unnamed model" if made_for is None else made_for.name
        raise InputError(
            f"{adapter.file} was made for {whose}, and {name} has an image network of other shapes: take {whose}, or "
            f"customise {name}"
        )
    if strange := lora.unmatched_names(adapter.lora, opened.networks):
        raise InputError(
            f"{adapter.file} was made for {made_for.name}, and {name} has no layers for {preview_names(strange)}"
        )
    if not here.is_of(made_for):
        warnings.warn(
            f"{adapter.file} was made for {made_for.name}, and the image network of {name} has the same shapes and "
            f"other weights: {adapter.about.subject or 'what it was customised to'} may not come out well",
            InputWarning,
            stacklevel=4,
        )
