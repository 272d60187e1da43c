"""Descriptions of models that are not loaded, from configurations and the headers of files.

The networks are built on the meta device, which takes no memory, by the functions that load them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import diffusers
import torch

from kineograph import hub
from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.conditioning import textual_inversion
from kineograph.models.conditioning.textual_inversion import list_textual_inversions
from kineograph.models.description import Description, describe_configurations, vae_scale_factor
from kineograph.models.formats import animatediff, architecture, known_configurations, tensor_files, videocrafter, vidrd
from kineograph.models.formats.lora import LORA_FILES, check_kind, list_loras
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import (
    components,
    controlnets,
    single_file,
    video_checkpoints,
    video_folder,
)
from kineograph.models.loading.components import INDEX, Pipeline, read_index
from kineograph.models.loading.motion_modules import MotionSource
from kineograph.models.loading.options import LoadOptions
from kineograph.models.loading.provenance import source_name
from kineograph.models.loading.single_file import Checkpoint
from kineograph.models.network_folders import (
    Config,
    check_config,
    empty_network,
    read_config,
    read_generation_config,
    read_json,
)
from kineograph.models.placement import choose_placement
from kineograph.models.pocket import WEIGHTS
from kineograph.models.pocket import models as pocket
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae import vae_files
from kineograph.models.vae.autoencoder import VAE
from kineograph.options import validate

POCKET = "pocket"
CONFIG = video_folder.CONFIG


def check_load_options(source: str | Path | Pipeline, given: Mapping[str, Any]) -> None:
    """Raise InputError for options of `load` that nothing reads, and for files, a device or a dtype that are not there.

    given: all options. No file is read, and nothing is downloaded.
    """
    pocket.check_built_in(source, given)
    if unread := [name for name in unread_options(source) if given[name] is not None]:
        raise InputError(f"`{unread[0]}` does nothing here: {unread_options(source)[unread[0]]}")
    if given["dtype"] is not None and given["torch_dtype"] is not None:
        raise InputError("`torch_dtype` is the older name of `dtype`: give one of them")
    if not isinstance(source, Pipeline):
        place = choose_placement(given["device"], given["torch_dtype"] if given["dtype"] is None else given["dtype"])
        if given["offload"] is not None and place.device.type == "cpu":
            raise InputError("`offload` does nothing here: it moves weights to a GPU, and the device is the CPU")
    elif given["offload"] is not None:
        raise InputError(
            "`offload` does nothing for a pipeline of diffusers: switch offloading on in the pipeline, as by "
            "enable_model_cpu_offload, before it is loaded"
        )
    built_in = (*pocket.built_in_names(), *pocket.ADAPTERS, *pocket.DECODERS)
    parts = [given[name] for name in ("motion_module", "motion_adapter", "adapter", "ip_adapter", "vae", "decoder")]
    for part in (*parts, *controlnets.list_controlnets(given["controlnet"], source).values()):
        if isinstance(part, str | Path) and part not in built_in:
            hub.local_path(part, built_in)
    for names, parts in (
        (LORA_FILES, [lora for lora, _ in list_loras(given["lora"])]),
        (textual_inversion.FILES, [file for _, file in list_textual_inversions(given["textual_inversion"])]),
    ):
        for part in parts:
            if (path := hub.local_path(part)) is not None:
                hub.find_file(path, names, HubOptions())


def unread_options(source: str | Path | Pipeline) -> dict[str, str]:
    """Return the options of `load` that a source of this kind does not read, each with the reason."""
    name = source_name(source)
    if isinstance(source, Pipeline):
        kind, read = "a pipeline of diffusers", set[str]()
    elif source in (POCKET, *pocket.built_in_names()):
        kind, read = "built in", set()
    elif (path := hub.local_path(source, [POCKET, *pocket.built_in_names()])) is None:
        kind, read = "a repository", {"revision", "variant"}
    else:
        kind, read = ("a single file", {"config"}) if path.is_file() else ("a folder", {"variant"})
    reasons = {
        "config": f"it is the configuration of a single file, and {name} is {kind}",
        "revision": f"it is that of a repository, and {name} is {kind}",
        "variant": f"it is that of a repository or a folder, and {name} is {kind}",
    }
    return {option: reason for option, reason in reasons.items() if option not in read}


def describe(source: str | Path | Pipeline | None = None, **options: Unpack[LoadOptions]) -> Description | None:
    """Return the description of the model that `load` returns for the same arguments, without reading weights.

    None if only the weights determine it, or `load` refuses the model. Of a repository, configurations are downloaded.
    Raises the InputError of `load` for an invalid option, or if a source does not exist.
    """
    given = validate(options, LoadOptions)
    check_load_options(source or POCKET, given)
    for lora, _ in list_loras(given["lora"]):
        if (path := hub.local_path(lora)) is not None:
            check_kind(hub.find_file(path, LORA_FILES, HubOptions()))
    hub_options = HubOptions(**{name: given[name] for name in HubOptions._fields})
    given_apart = () if given["vae"] is None else ("vae",)
    found = _describe_source(source or POCKET, given["config"], hub_options, given_apart=given_apart)
    of_parts = hub_options._replace(revision=None, variant=None)  # these are the model's
    if found is not None and given["motion_module"] is not None:
        found = _with_motion_module(found, given["motion_module"], of_parts)
    if found is None:
        return None
    kinds = controlnets.list_controlnets(given["controlnet"], source)
    adapters = [given[name] for name in ("ip_adapter", "motion_adapter", "adapter")]
    for part in (*adapters, *kinds.values()):
        if isinstance(part, str | Path) and part not in pocket.ADAPTERS:
            _existing_path(part, of_parts)
    if given["motion_adapter"] is not None and not found.is_video:
        return None
    found = replace(
        found,
        takes_images=found.takes_images or given["ip_adapter"] is not None,
        has_motion_adapter=found.has_motion_adapter or given["motion_adapter"] is not None,
        controls=tuple(dict.fromkeys((*found.controls, *kinds))),
    )
    if found.scheduler is not None and given["prediction_type"] is not None:
        found = replace(found, scheduler={**found.scheduler, "prediction_type": given["prediction_type"]})
    if found.networks is not None and not isinstance(source, Pipeline):
        place = choose_placement(given["device"], given["torch_dtype"] if given["dtype"] is None else given["dtype"])
        files = [each for each in _unet_files(source or POCKET, given["variant"]) if each.suffix == ".safetensors"]
        stored = tensor_files.read_dtype(files[0]) if files else None
        networks = found.networks._replace(device=str(place.device), dtype=place.dtype, file_dtype=stored)
        found = replace(found, networks=networks._replace(offload=given["offload"]))
    return found if given["vae"] is None else _with_other_vae(found, given["vae"], of_parts)


def _unet_files(source: str | Path, variant: str | None) -> list[Path]:
    """Return the files of a U-Net on this machine, those that `load` opens first; none for a repository."""
    path = WEIGHTS if source in (POCKET, *pocket.built_in_names()) else hub.local_path(source)
    if path is None or path.is_file():
        return [] if path is None else [path]
    files = (path / "unet").glob("*.safetensors")
    return sorted(files, key=lambda file: (f".{variant}" not in file.name, len(file.name)))


def _describe_source(
    source: str | Path | Pipeline, config: str | Path | None, hub_options: HubOptions, *, given_apart: Sequence[str]
) -> Description | None:
    """Return the description of a model without what is added. given_apart: "vae" if another VAE is given."""
    name = source_name(source)
    if isinstance(source, Pipeline):
        parts = components.components_from_pipeline(source)
        temporal = None if parts.temporal is None else parts.temporal.config
        images = parts.image_encoder is not None
        unet, vae = parts.unet.config, parts.vae.config
        found = describe_configurations(name, unet, vae, temporal, takes_images=images, has_motion_adapter=False)
        return found and replace(found, scheduler=parts.scheduler)
    if source in (POCKET, *pocket.built_in_names()):
        return _describe_built_in(name) if (WEIGHTS / INDEX).is_file() else None
    path = hub.local_path(source, [POCKET, *pocket.built_in_names()])
    if path is not None:
        if path.is_file():
            return _describe_file(path, name, config, hub_options, given_apart=given_apart)
        return _describe_folder(path, name, given_apart=given_apart)
    folder = hub.fetch_folder(str(source), hub.CONFIGS, hub_options)
    temporal_layers = folder / video_folder.TEMPORAL
    if temporal_layers.is_dir() and not (temporal_layers / video_folder.NETWORK_WEIGHTS).is_file():
        return None  # the repository may have a motion adapter, which has no configuration
    return _describe_folder(folder, name, given_apart=given_apart)


def _describe_built_in(name: str) -> Description | None:
    found = _describe_folder(WEIGHTS, name)
    if found is None or name not in (POCKET, *pocket.MODELS, *pocket.LABORATORY_MODELS):
        return None  # another package's model, which only its own function opens
    found = replace(found, controls=tuple(sorted(file.stem for file in (WEIGHTS / "control").glob("*"))))
    if name == POCKET:
        return found
    own = WEIGHTS / pocket.built_in_model(name).folder
    if not own.is_dir():
        return None
    found = replace(found, recommended={**found.recommended, **read_generation_config(own)})
    if own == WEIGHTS / pocket.EDIT:
        return replace(found, in_channels=2 * found.in_channels)  # as in `initial_editing_unet`
    moving = own if (own / CONFIG).is_file() else WEIGHTS / pocket.VIDEO
    return replace(
        found,
        temporal=video_folder.read_temporal_config(moving),
        has_motion_adapter=(moving / video_folder.MOTION_ADAPTER_WEIGHTS).is_file(),
        takes_images=(own / "resampler.json").is_file(),
        scheduler=components.read_scheduler(WEIGHTS / pocket.VIDEO),
    )


def _describe_folder(folder: Path, name: str, *, given_apart: Sequence[str] = ()) -> Description | None:
    """Return the description of a pipeline in diffusers layout. given_apart: "vae" if another VAE is given."""
    index = read_index(folder)
    components.refuse_other_families(index, str(folder), given_apart=given_apart)
    temporal = _folder_temporal(folder, index)
    found = describe_configurations(
        name,
        read_config(folder / "unet", components.UNETS[index["unet"][1]]),
        components.read_vae_config(folder) or {},
        temporal,
        takes_images=(folder / video_folder.IMAGE_ADAPTER).is_dir(),
        has_motion_adapter=temporal is not None and (folder / video_folder.MOTION_ADAPTER).is_dir(),
    )
    return found and replace(
        found, scheduler=components.read_scheduler(folder), recommended=read_generation_config(folder)
    )


def _folder_temporal(folder: Path, index: Config) -> TemporalConfig | None:
    """Return the configuration of a pipeline's temporal layers, None if it has none."""
    if (folder / video_folder.TEMPORAL).is_dir():
        return video_folder.read_temporal_config(folder / video_folder.TEMPORAL)
    kind = index["unet"][1]
    if kind not in components.VIDEO_UNETS:
        return None
    config = read_config(folder / "unet", components.UNETS[kind])
    unet = empty_network(components.UNETS[kind], config, str(folder / "unet"))
    return _temporal_config(components.VIDEO_UNETS[kind](unet))


def _describe_file(
    path: Path, name: str, config: str | Path | None, hub_options: HubOptions, *, given_apart: Sequence[str]
) -> Description | None:
    """Return the description of a checkpoint in a single file. config: as in `load`."""
    tensors = tensor_files.read_header(path)
    if tensors is None:
        return None
    if videocrafter.is_videocrafter(tensors):
        with video_checkpoints.open_videocrafter_configuration(config, hub_options) as folder_of:
            settings = architecture.read_assumed_settings(folder_of("unet").parent)
            net = videocrafter.video_unet_from_videocrafter(tensors, str(path), settings)
            unet, vae = net.image_unet.config, read_config(folder_of("vae"), diffusers.AutoencoderKL)
        images = bool(net.image_unet.encoder_hid_proj)
        temporal = _temporal_config(net)
        return describe_configurations(name, unet, vae, temporal, takes_images=images, has_motion_adapter=False)
    if vidrd.is_vidrd(tensors):
        return None if config is None else _describe_vidrd(path, name, tensors, _existing_path(config, hub_options))
    known_configurations.refuse_partial_checkpoint(path, tensors, given_apart=given_apart)
    file = Checkpoint(path, tensors, config, None, torch.float32, hub_options, given_apart)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # which `load` gives
        with single_file.open_configuration(file) as folder:
            unet = read_config(folder / "unet", diffusers.UNet2DConditionModel)
            vae = components.read_vae_config(folder) or {}
            scheduler = single_file.scheduler_of_file(file, folder)
    found = describe_configurations(name, unet, vae, None, takes_images=False, has_motion_adapter=False)
    return found and replace(found, scheduler=scheduler)


def _describe_vidrd(path: Path, name: str, tensors: Tensors, folder: Path) -> Description | None:
    """Return the description of a VidRD checkpoint. folder: the model that it was trained from."""
    net = vidrd.video_unet_from_vidrd(tensors, str(path), architecture.read_assumed_settings(folder))
    base = _describe_folder(folder, name)
    return base and describe_configurations(
        name,
        net.image_unet.config,
        components.read_vae_config(folder) or {},
        _temporal_config(net),
        takes_images=base.takes_images,
        has_motion_adapter=base.has_motion_adapter,
    )


def _with_motion_module(found: Description, source: MotionSource, hub_options: HubOptions) -> Description | None:
    if isinstance(source, str) and source in pocket.built_in_names():
        own = _describe_built_in(source)
        temporal, has_motion_adapter = (own.temporal, own.has_motion_adapter) if own else (None, False)
    else:
        temporal = _motion_config(source, hub_options)
        has_motion_adapter = not isinstance(source, diffusers.MotionAdapter) and _has_motion_adapter(
            _existing_path(source, hub_options, pocket.built_in_names())
        )
    if temporal is None:
        return None
    scheduler = None  # of other layers than AnimateDiff's it is with their weights
    if temporal.is_motion_module and found.scheduler is not None:
        scheduler = {**found.scheduler, **animatediff.ANIMATEDIFF_SCHEDULER}
    return replace(found, temporal=temporal, has_motion_adapter=has_motion_adapter, scheduler=scheduler)


def _has_motion_adapter(path: Path) -> bool:
    """Return True for a video model with a motion adapter, or its folder of temporal layers."""
    folder = path if (path / INDEX).is_file() else path.parent
    return path.is_dir() and (folder / INDEX).is_file() and (folder / video_folder.MOTION_ADAPTER).is_dir()


def _motion_config(source: MotionSource, hub_options: HubOptions) -> TemporalConfig | None:
    """Return the configuration of the temporal layers of a source, None if it cannot be told."""
    if isinstance(source, diffusers.MotionAdapter):
        return animatediff.animatediff_config(source.state_dict(), source.config)
    path = _existing_path(source, hub_options, pocket.built_in_names())
    if path.is_file():
        return _motion_file_config(path)
    if not (path / INDEX).is_file() and (path / CONFIG).is_file():
        config = read_json(path / CONFIG)
        if config.get("_class_name") == "MotionAdapter":
            check_config(config, [diffusers.MotionAdapter], path / CONFIG)
            adapter = empty_network(diffusers.MotionAdapter, config, str(path))
            return animatediff.animatediff_config(adapter.state_dict(), config)
        if not (path.parent / INDEX).is_file():
            return video_folder.read_temporal_config(path)
        path = path.parent
    return _folder_temporal(path, read_index(path)) if (path / INDEX).is_file() else None


def _motion_file_config(path: Path) -> TemporalConfig | None:
    tensors = tensor_files.read_header(path)
    if tensors is None:
        return None
    if animatediff.is_animatediff(tensors):
        with architecture.report_missing_tensors(tensors, f"{path} looks like AnimateDiff's motion modules"):
            return animatediff.animatediff_config(animatediff.to_diffusers_names(tensors), {})
    if videocrafter.is_videocrafter(tensors):
        return _temporal_config(videocrafter.video_unet_from_videocrafter(tensors, str(path)))
    return _temporal_config(vidrd.video_unet_from_vidrd(tensors, str(path))) if vidrd.is_vidrd(tensors) else None


def _temporal_config(net: VideoUNet) -> TemporalConfig | None:
    return None if net.temporal is None else net.temporal.config


def _with_other_vae(found: Description, vae: str | Path | VAE, hub_options: HubOptions) -> Description:
    """Return the description of a model with another VAE, whose latents must be like those of its own, if it has one.

    Without one, the scale factor is that of `vae_scale_factor` for an empty configuration.
    """
    if isinstance(vae, str | Path):
        config = vae_files.vae_configuration(vae_files.find_vae(vae, hub_options, hub.CONFIGS))
    else:
        config = vae.config
    if found.vae_scale_factor > vae_scale_factor({}):
        if config is not None:
            vae_files.refuse_other_latents(config, found.latent_channels, found.vae_scale_factor)
        return found
    factor = vae_scale_factor(known_configurations.VAE if config is None else config)
    height, width = (factor * length for length in found.default_size)
    return replace(found, vae_scale_factor=factor, default_size=(height, width))


def _existing_path(source: str | Path, hub_options: HubOptions, built_in: Iterable[str] = ()) -> Path:
    """Return the path of a file or folder, or a folder with the configurations of a repository."""
    return hub.local_path(source, built_in) or hub.fetch_folder(str(source), hub.CONFIGS, hub_options)
