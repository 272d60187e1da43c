"""IP-Adapters from files and repositories, added to the components of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from transformers import CLIPVisionModelWithProjection

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.image_encoder import FACE_ID, ImageEncoder, wrong_encoder_error
from kineograph.models.formats import known_configurations, tensor_files
from kineograph.models.formats.architecture import report_missing_tensors
from kineograph.models.formats.key_map import select_prefix
from kineograph.models.formats.tensor_files import Tensors, as_input_error, preview_names
from kineograph.models.loading.components import Components
from kineograph.models.network_folders import read_config, read_network

SECTIONS = ("image_proj", "ip_adapter")  # of a file: nested dictionaries or prefixes of names
ENCODER, MODELS = "image_encoder", "models"
# in the layout of h94/IP-Adapter: folder and file by the channels of the U-Net's tokens
HUB_FILES = {768: (MODELS, "ip-adapter_sd15.safetensors"), 2048: ("sdxl_models", "ip-adapter_sdxl.safetensors")}
ENCODER_DEFAULTS = {"projection_dim": 512, "hidden_size": 768}  # of transformers
# tensor of the image projection -> what it reads of the encoder, as its configuration calls the number of channels
READS = {"proj.weight": "projection_dim", "proj.0.weight": "hidden_size", "proj_in.weight": "hidden_size"}


def load_ip_adapter(components: Components, source: str | Path, hub_options: HubOptions) -> Components:
    """Add an IP-Adapter to a model's U-Net and return the components with its image encoder.

    source: a file in the layout of IP-Adapter's authors, with the encoder in a folder `image_encoder` beside it or
    beside its folder; or a repository in the layout of h94/IP-Adapter. Raises InputError if it is no IP-Adapter, or one
    for another architecture, or has no encoder beside it that fits; nothing is changed then.
    """
    file = hub.local_path(source) or _fetch(str(source), components.unet, hub_options)
    if not file.is_file():
        raise InputError(f"{source} is a folder: pass the IP-Adapter's file in it, such as ip-adapter_sd15.safetensors")
    state = _read_sections(file)
    encoder = _read_encoder(file, state)
    _check_attentions(file, state["ip_adapter"], components.unet)
    with as_input_error(f"{file} is damaged, or of an unknown kind"):
        components.unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    return components._replace(unet=components.unet.eval(), image_encoder=ImageEncoder(encoder))


def _fetch(repository: str, unet: UNet2DConditionModel, hub_options: HubOptions) -> Path:
    width = unet.config.cross_attention_dim
    if width not in HUB_FILES:
        raise InputError(
            f"{repository} has no IP-Adapter for this image network, whose tokens are {width} wide: expected those of "
            "SD 1.x or SDXL"
        )
    folder, name = HUB_FILES[width]
    wanted = [f"{folder}/{name}", f"{folder}/{ENCODER}/*"]
    return hub.fetch_folder(repository, wanted, hub_options._replace(revision=None)) / folder / name


def _read_sections(file: Path) -> dict[str, dict[str, Any]]:
    content = tensor_files.read_content(file)
    nested = {section: content.get(section) for section in SECTIONS}
    sections = {
        section: each if isinstance(each, dict) else select_prefix(f"{section}.", content)
        for section, each in nested.items()
    }
    if missing := [section for section in SECTIONS if not sections[section]]:
        raise InputError(
            f"{file} is no IP-Adapter: it has no tensors under {' and none under '.join(missing)}. "
            f"{known_configurations.describe_tensors(content, 'ip_adapter')}"
        )
    return sections


def _check_attentions(file: Path, found: Tensors, unet: UNet2DConditionModel) -> None:
    """Raise InputError unless a file has keys and values of image tokens for the U-Net's cross-attention layers."""
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    tokens = unet.config.cross_attention_dim
    expected = {
        f"{2 * number + 1}.to_{part}_ip.weight": [unet.get_submodule(layer).to_q.out_features, tokens]
        for number, layer in enumerate(layers)
        for part in "kv"
    }
    shapes = {name: list(each.shape) for name, each in found.items()}
    if shapes != expected:
        wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise InputError(
            f"{file} does not fit the image network, whose tokens are {tokens} wide in {len(layers)} layers: take an "
            f"IP-Adapter made for the model's family ({len(wrong)} tensors differ: {preview_names(wrong)})"
        )


def _read_encoder(file: Path, sections: Mapping[str, Tensors]) -> CLIPVisionModelWithProjection:
    """Return the image encoder beside a file, the one that gives what its projection reads if there are several.

    Raises InputError if there is none.
    """
    projection = sections["image_proj"]
    layer = next((name for name in READS if name in projection), None)
    reads_face = "perceiver_resampler.proj_in.weight" in projection or any("lora" in e for e in sections["ip_adapter"])
    if reads_face or (layer == "proj.0.weight" and "proj.3.weight" not in projection):
        raise InputError(f"{file} is {FACE_ID}")
    if layer is None:
        raise InputError(f"{file} is an IP-Adapter of an unknown kind, with {preview_names(projection)}")
    with report_missing_tensors(projection, f"{file} looks like an IP-Adapter"):
        kind, reads = READS[layer], projection[layer].shape[1]
    beside = (file.parent, file.parent.parent, file.parent.parent / MODELS)
    folders = [folder / ENCODER for folder in dict.fromkeys(beside) if (folder / ENCODER).is_dir()]
    if not folders:
        raise InputError(
            f"there is no folder {ENCODER} beside {file}: put the image encoder there that the IP-Adapter was made "
            "with, such as models/image_encoder of h94/IP-Adapter"
        )
    gives = [read_config(each, CLIPVisionModelWithProjection).get(kind, ENCODER_DEFAULTS[kind]) for each in folders]
    if reads not in gives:
        raise wrong_encoder_error(str(file), kind, reads, gives[0])
    folder = folders[gives.index(reads)]
    return read_network(CLIPVisionModelWithProjection, folder)
