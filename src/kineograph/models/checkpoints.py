"""Models from where they live: this package, a folder, the Hub, a single file, or a pipeline that is already open."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import load_file

from kineograph.errors import InputError
from kineograph.models import adapters, concepts, controls, hub, parts, placement, single_file
from kineograph.models.adapters import Loras
from kineograph.models.concepts import Concepts
from kineograph.models.hub import Hub
from kineograph.models.model import Model
from kineograph.models.parts import DAMAGE, INDEX, Parts, Pipeline
from kineograph.models.pictures import PictureReader
from kineograph.models.placement import Placement
from kineograph.models.schedule import Schedule
from kineograph.models.unet import VideoUNet

POCKET = Path(__file__).parents[1] / "pocket" / "weights"
POCKET_EDIT = "pocket-edit"
POCKETS = (None, "pocket", POCKET_EDIT)
VOCABULARY = "vocabulary.json"  # a list, beside a model that was trained on no other words
VAE_FILES = [f"{at}{name}" for at in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model*.safetensors")]

Source = str | Path | Pipeline


def load(
    source: Source | None = None,
    *,
    lora: Loras | None = None,
    textual_inversion: Concepts | None = None,
    controlnet: controls.Source | Mapping[str, controls.Source] | None = None,
    vae: str | Path | AutoencoderKL | None = None,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Model:
    """A text-to-image model of the SD 1.x, 2.x or SDXL family, ready to make videos.

    source: nothing, or "pocket", for the model that comes with Kineograph, and "pocket-edit" for the one that edits;
        a folder in diffusers layout; a repository on the Hub; a `.safetensors` or `.ckpt` file, of which no code is
        run; or an open diffusers pipeline, whose networks are then shared: what is put on them here is on them there.
    lora: a file, folder or repository, alone or as (lora, scale); or a list of those.
    textual_inversion: a file, folder or repository; a list of those; or {word: file} to choose the words.
    controlnet: {kind: folder, repository or network}, where the kind is any name, such as "canny"; or one alone, that
        serves whatever control is asked for. The pocket model comes with canny, depth and pose.
    vae: another VAE than the model's own: a file, folder, repository or network.
    config: for a single file, a folder or repository in diffusers layout with what the file does not hold.
    prediction_type: "epsilon", "v_prediction" or "sample", where the model does not say what its network predicts.
    device, dtype: chosen unless given, `placement.place` says why; `torch_dtype` is the older name of `dtype`.
    revision, variant, token, cache_dir, local_files_only: as for diffusers' `from_pretrained`.

    Raises InputError for what is missing, damaged, no model of the family, or made for another architecture.

    >>> import kineograph as kg
    >>> model = kg.load()
    >>> model = kg.load("path/to/checkpoint.safetensors", lora=("style.safetensors", 0.8))  # doctest: +SKIP
    """
    ask = Hub(revision, variant, token, cache_dir, local_files_only)
    wanted = dtype if dtype is not None else torch_dtype
    if isinstance(source, Pipeline):
        opened = parts.from_pipeline(source)
        place = _place_of(opened, device, wanted)
    else:
        place = placement.place(device, wanted)
        opened = _opened(source or "pocket", config, prediction_type, place, ask)
    for each, scale in adapters.listed(lora):
        adapters.attach(opened.networks, each, scale, ask)
    for word, each in concepts.listed(textual_inversion):
        concepts.learn(opened.text, word, each, ask)
    nets = {
        kind: controls.attach(opened.unet, each, opened.vae.config.latent_channels, place, ask)
        for kind, each in controls.listed(controlnet).items()
    }
    if source in POCKETS:
        nets = controls.of_pocket(POCKET, place) | nets
    if vae is not None:
        opened = opened._replace(vae=_another_vae(vae, opened.vae, ask))
    if prediction_type is not None:
        opened = opened._replace(scheduler={**opened.scheduler, "prediction_type": prediction_type})
    arguments = {
        "source": source or "pocket",
        "lora": adapters.listed(lora),
        "textual_inversion": textual_inversion,
        "controlnet": controlnet,
        "vae": vae,
        "config": config,
        "prediction_type": prediction_type,
        "revision": revision,
        "variant": variant,
    }
    return _model(opened, nets, place, arguments)


def _place_of(opened: Parts, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Placement:
    """An open pipeline stays where and as it is, unless asked."""
    here = Placement(opened.unet.device, opened.unet.dtype, "as the pipeline is")
    return here if device is None and dtype is None else placement.place(device or here.device, dtype or here.dtype)


def _opened(
    source: str | Path, config: str | Path | None, prediction_type: str | None, place: Placement, ask: Hub
) -> Parts:
    path = _pocket() if source in POCKETS else hub.local(source)
    if source == POCKET_EDIT:
        opened = _pocket_editor(POCKET)
    elif path is not None and path.is_file():
        opened = single_file.open_parts(path, config, prediction_type, place.dtype, ask)
    else:
        opened = parts.from_folder(path or hub.fetch_pipeline(str(source), ask), place.dtype, ask.variant)
    for network in (opened.unet, opened.vae):
        network.to(memory_format=place.memory_format)
    return opened


def _pocket_editor(folder: Path) -> Parts:
    from kineograph.pocket.low_rank import as_editor, restored

    opened = parts.from_folder(folder, torch.float32)
    return opened._replace(
        unet=restored(as_editor(opened.unet), load_file(folder / "edit" / "edit.safetensors")).eval()
    )


def _pocket() -> Path:
    if not (POCKET / INDEX).is_file():
        raise InputError(f"the pocket model is not in this installation ({POCKET} has no {INDEX}): install it again")
    return POCKET


def _another_vae(vae: str | Path | AutoencoderKL, own: AutoencoderKL, ask: Hub) -> AutoencoderKL:
    opened = vae if isinstance(vae, AutoencoderKL) else _opened_vae(vae, own, ask)
    here, expected = opened.config.latent_channels, own.config.latent_channels
    if here != expected:
        raise InputError(f"the VAE makes latents of {here} channels, and the model draws {expected}: pass another")
    return opened


def _opened_vae(vae: str | Path, own: AutoencoderKL, ask: Hub) -> AutoencoderKL:
    path = hub.local(vae) or hub.fetch_folder(str(vae), VAE_FILES, ask._replace(revision=None))
    if path.is_file():
        return single_file.open_vae(path, own)
    folder = path if (path / "config.json").is_file() else path / "vae"
    try:
        return AutoencoderKL.from_pretrained(folder, dtype=own.dtype, local_files_only=True)
    except DAMAGE as error:
        raise InputError(f"{vae} is no VAE in diffusers layout, or damaged: {error}") from error


def _model(opened: Parts, nets: Mapping[str, controls.Open], place: Placement, arguments: Mapping[str, Any]) -> Model:
    for network in (*opened.networks.values(), opened.vae):
        network.to(place.device)
        if network.dtype != place.dtype:
            network.to(place.dtype)
    given = [arguments["source"], arguments["vae"], *controls.listed(arguments["controlnet"]).values()]
    live = any(isinstance(each, Pipeline | AutoencoderKL | ControlNetModel) for each in given)
    return Model(
        net=VideoUNet(opened.unet),
        vae=_without_overflow(opened.vae),
        text=opened.text,
        schedule=Schedule.from_config(opened.scheduler),
        name=_name(arguments["source"]),
        device=place.device,
        dtype=place.dtype,
        force_zeros=opened.force_zeros,
        settings={} if live else {name: _plain(value) for name, value in arguments.items() if value},
        vocabulary=_vocabulary(arguments["source"]),
        reader=None if opened.image_encoder is None else PictureReader(opened.image_encoder),
        controls=nets,
    )


def _without_overflow(vae: AutoencoderKL) -> AutoencoderKL:
    """SDXL's VAE, and any that does not deny it, leaves the range of float16; an open pipeline keeps its own."""
    overflows = vae.dtype == torch.float16 and vae.config.force_upcast
    return copy.deepcopy(vae).float() if overflows else vae


def _name(source: Source) -> str:
    if isinstance(source, Pipeline):
        return source.config.get("_name_or_path") or type(source).__name__
    path = Path(source).expanduser()
    return path.name if path.exists() else str(source)


def _plain(value: Any) -> Any:
    """As JSON would bring it back."""
    if isinstance(value, Mapping):
        return {word: _plain(each) for word, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _vocabulary(source: Source) -> frozenset[str] | None:
    if isinstance(source, Pipeline):
        return None
    folder = POCKET if source in POCKETS else Path(source).expanduser()
    files = [folder / VOCABULARY, *([folder / "edit" / VOCABULARY] if source == POCKET_EDIT else [])]
    words = [word for file in files if file.is_file() for word in json.loads(file.read_text())]
    return frozenset(words) or None
