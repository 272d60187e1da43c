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
from kineograph.models.formats.key_map import select_prefix
from kineograph.models.loading.components import READ_ERRORS, Components

SECTIONS = ("image_proj", "ip_adapter")  # of a file: nested dictionaries or prefixes of names
ENCODER = "image_encoder"
HUB_FILES = ["models/ip-adapter_sd15.safetensors", f"models/{ENCODER}/*"]  # in the layout of h94/IP-Adapter


def load_ip_adapter(components: Components, source: str | Path, hub_options: HubOptions) -> Components:
    """Add an IP-Adapter to a model's U-Net and return the components with its image encoder.

    source: a file in the layout of IP-Adapter's authors, with the encoder in a folder `image_encoder` beside it or
    beside its folder; or a repository in the layout of h94/IP-Adapter. Raises InputError if it is no IP-Adapter, or one
    for another architecture, or has no encoder beside it.
    """
    file = hub.local_path(source)
    if file is None:
        file = hub.fetch_folder(str(source), HUB_FILES, hub_options._replace(revision=None)) / HUB_FILES[0]
    if not file.is_file():
        raise InputError(f"{source} is a folder: pass the IP-Adapter's file in it, such as ip-adapter_sd15.safetensors")
    state = _read_sections(file)
    encoder = _read_encoder(file)
    try:
        components.unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        width = components.unet.config.cross_attention_dim
        raise InputError(
            f"{file} does not fit the image network, whose tokens are {width} wide: take an IP-Adapter made for the "
            f"model's family ({str(error).splitlines()[0]})"
        ) from error
    return components._replace(unet=components.unet.eval(), image_encoder=ImageEncoder(encoder))


def _read_sections(file: Path) -> dict[str, dict[str, Any]]:
    content = tensor_files.read_content(file)
    nested = {section: content.get(section) for section in SECTIONS}
    sections = {
        section: each if isinstance(each, dict) else select_prefix(f"{section}.", content)
        for section, each in nested.items()
    }
    if missing := [section for section in SECTIONS if not sections[section]]:
        raise InputError(
            f"{file} is no IP-Adapter: it has no tensors under {' and none under '.join(missing)}. Its tensors are "
            f"called {tensor_files.preview_names(map(str, content))}"
        )
    return sections


def _read_encoder(file: Path) -> CLIPVisionModelWithProjection:
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
