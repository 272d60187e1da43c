"""IP-Adapters from files and repositories, added to the components of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPVisionModelWithProjection

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.image_encoder import ImageEncoder
from kineograph.models.formats import tensor_files
from kineograph.models.loading.components import READ_ERRORS, Components

SECTIONS = ("image_proj", "ip_adapter")  # of a file: nested dictionaries or prefixes of names
ENCODER = "image_encoder"
HUB_FILES = ["models/ip-adapter_sd15.safetensors", f"models/{ENCODER}/*"]  # in the layout of h94/IP-Adapter


def load_ip_adapter(opened: Components, source: str | Path, hub_options: HubOptions) -> Components:
    """The model with an IP-Adapter on its image network, and the encoder that lies beside it in `image_encoder`.

    source: a file as IP-Adapter's authors release them, or a repository laid out like theirs.
    Raises InputError when it is none, is for another architecture, or has no encoder beside it.
    """
    file = (
        hub.local_path(source)
        or hub.fetch_folder(str(source), FETCHED, hub_options._replace(revision=None)) / FETCHED[0]
    )
    if not file.is_file():
        raise InputError(f"{source} is a folder: pass the IP-Adapter's file in it, such as ip-adapter_sd15.safetensors")
    state = _divided(file)
    encoder = _encoder(file)
    try:
        opened.unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        reads = opened.unet.config.cross_attention_dim
        raise InputError(
            f"{file} does not fit the image network, whose tokens are {reads} wide: take an IP-Adapter made for the "
            f"model's family ({str(error).splitlines()[0]})"
        ) from error
    return opened._replace(unet=opened.unet.eval(), image_encoder=ImageEncoder(encoder))


def _divided(file: Path) -> dict[str, dict[str, Any]]:
    content = tensor_files.read_content(file)
    found = {
        part: content[part]
        if isinstance(content.get(part), dict)
        else {name.removeprefix(f"{part}."): each for name, each in content.items() if name.startswith(f"{part}.")}
        for part in PARTS
    }
    if missing := [part for part in PARTS if not found[part]]:
        raise InputError(
            f"{file} is no IP-Adapter: it has no tensors under {' and none under '.join(missing)}. Its tensors are "
            f"called {tensor_files.preview_names(map(str, content))}"
        )
    return found


def _encoder(file: Path) -> CLIPVisionModelWithProjection:
    folder = next((each / ENCODER for each in (file.parent, file.parent.parent) if (each / ENCODER).is_dir()), None)
    if folder is None:
        raise InputError(
            f"there is no folder {ENCODER} beside {file}: put the image encoder there that the IP-Adapter was made "
            "with, such as models/image_encoder of h94/IP-Adapter"
        )
    try:
        return CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True).eval()
    except READ_ERRORS as error:
        raise InputError(f"{folder} is no image encoder, or damaged: {error}") from error
