"""ControlNets and T2I-Adapters from a folder, a file, the Hub or a live network, and those of the pocket model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, MultiAdapter, MultiControlNetModel, T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.description import ANY_CONTROL
from kineograph.models.formats import key_map, known_configurations, ldm, tensor_files
from kineograph.models.formats.architecture import block_indices, report_missing_tensors
from kineograph.models.formats.key_map import KeyMap, select_prefix
from kineograph.models.formats.known_configurations import CONTROL_LORA, CONTROLNET, T2I_ADAPTER
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.hooks import Network, is_offloaded, refuse_offloaded, refuse_unused_hooks
from kineograph.models.loading.components import Components, Pipeline, quiet_loading
from kineograph.models.lora_layers import original_state
from kineograph.models.network_folders import empty_weights, read_json, read_network
from kineograph.models.placement import Placement, placed
from kineograph.models.unet.controlnet import VideoControlNet
from kineograph.models.unet.supported_layers import check_attention_processors
from kineograph.models.unet.t2i_adapter import VideoT2IAdapter

ControlNetSource = str | Path | nn.Module
ControlNetwork = VideoControlNet | VideoT2IAdapter
OpenControlNet = Callable[[], ControlNetwork]

FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]
CLASSES = {each.__name__: each for each in (ControlNetModel, T2IAdapter)}
# settings that a ControlNet and its U-Net have in common
SHARED_SETTINGS = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")
FAMILIES = "take one made for the model's family (SD 1.x, SD 2.x or SDXL)"
# keys that mark files whose weights are to be added to those of the U-Net
LORA_MARK, DIFFERENCE_MARK = "lora_controlnet", "difference"
# pixels that a T2I-Adapter folds into channels: 8 x 8, or 16 x 16 in those for SDXL
PIXELS, XL_PIXELS = 64, 256


def list_controlnets(
    controlnet: ControlNetSource | Mapping[str, ControlNetSource] | None, source: object = None
) -> dict[str, ControlNetSource]:
    """Return the sources of ControlNets and T2I-Adapters by kind of control.

    source: of the model; that of a live pipeline is used if none is given. Raises InputError if it has several.
    """
    if isinstance(controlnet, Mapping):
        return dict(controlnet)
    if controlnet is not None:
        return {ANY_CONTROL: controlnet}
    parts = source.components if isinstance(source, Pipeline) else {}
    found: list[Any] = [each for name in ("controlnet", "adapter") if (each := parts.get(name)) is not None]
    names = [type(each).__name__ for each in found]
    if len(found) > 1 or isinstance(found[0] if found else None, MultiControlNetModel | MultiAdapter):
        raise InputError(
            f"this pipeline has several networks that read control images ({', '.join(names)}), and no names for them: "
            'pass them by kind of control, as controlnet={"canny": pipe.controlnet.nets[0], ...}, or adapter.adapters'
        )
    return {ANY_CONTROL: found[0]} if found else {}


def load_controlnet(
    components: Components, source: ControlNetSource, placement: Placement, hub_options: HubOptions
) -> OpenControlNet:
    """Return a ControlNet or T2I-Adapter for a model's U-Net.

    Raises InputError if it is none, or one for another architecture.
    """
    unet = components.unet
    if isinstance(source, str | Path):
        name = str(source)
        net = _place(_read(source, unet, placement, hub_options).eval(), placement)
    else:
        net, name = source, "this network"
    if isinstance(net, T2IAdapter):
        opened: ControlNetwork = VideoT2IAdapter(placed(net, placement), unet)
    elif isinstance(net, ControlNetModel):
        _check_fits(net, components, name)
        opened = VideoControlNet(placed(net, placement))
    else:
        raise InputError(
            f"{name} is a {type(net).__name__}, which is not supported: expected a ControlNetModel or T2IAdapter"
        )
    return lambda: opened


def _check_fits(net: ControlNetModel, components: Components, name: str) -> None:
    """Raise InputError unless a ControlNet is for the architecture of a model, and nothing on it would be left out."""
    unet, latent_channels = components.unet, components.vae.config.latent_channels
    for setting in SHARED_SETTINGS:
        found, expected = (_setting_text(each.config[setting]) for each in (net, unet))
        if found != expected:
            raise InputError(
                f"{name} is a ControlNet for another architecture: its {setting} is {found}, the model's "
                f"{expected}. Take one made for the model's family (SD 1.x, SD 2.x or SDXL)"
            )
    if net.config.in_channels != latent_channels:
        raise InputError(
            f"{name} reads latents of {net.config.in_channels} channels, and the model's have "
            f"{latent_channels}: take a ControlNet made for the model's family"
        )
    refuse_unused_hooks(net, "the ControlNet")
    check_attention_processors(net)


def _read(
    source: str | Path, unet: UNet2DConditionModel, placement: Placement, hub_options: HubOptions
) -> ControlNetModel | T2IAdapter:
    path = hub.local_path(source) or hub.fetch_folder(str(source), FILES, hub_options._replace(revision=None))
    if path.is_file():
        return _from_file(path, unet)
    kind = read_json(path / "config.json").get("_class_name") if (path / "config.json").is_file() else "nothing"
    if kind not in tuple(CLASSES):
        raise InputError(
            f"{source} is no ControlNet: expected a folder with the config.json of a ControlNetModel or T2IAdapter and "
            f"its weights, diffusion_pytorch_model.safetensors, or a single file; found {kind}"
        )
    return read_network(CLASSES[kind], path, dtype=placement.dtype)


def _from_file(path: Path, unet: UNet2DConditionModel) -> ControlNetModel | T2IAdapter:
    """Return the ControlNet or T2I-Adapter in a single file, of diffusers or in the original layout."""
    content = tensor_files.read_tensors(path)
    kind = known_configurations.file_kind(content)
    if kind not in (CONTROLNET, CONTROL_LORA, T2I_ADAPTER):
        description = known_configurations.describe_tensors(content)
        raise InputError(f"{path} is not a ControlNet for the model's architecture. {description}")
    if kind == CONTROLNET and "shuffle" in path.stem.lower():  # its tensors are those of any other
        raise InputError(f"{path} is by its name a ControlNet for shuffled images, which is not supported")
    tensors = select_prefix("control_model.", content) or content
    tensors |= {mark: content[mark] for mark in (LORA_MARK, DIFFERENCE_MARK) if mark in content}
    convert = _t2i_adapter_from_tensors if kind == T2I_ADAPTER else _controlnet_from_tensors
    article = kind.partition(":")[0]
    with report_missing_tensors(content, f"{path} looks like {article}"):
        return convert(tensors, unet, f"{path} is {article} for another architecture, or damaged ({FAMILIES})")


def _controlnet_from_tensors(tensors: dict[str, Tensor], unet: UNet2DConditionModel, what: str) -> ControlNetModel:
    """Return a ControlNet with these tensors; the architecture is the U-Net's where they do not determine it."""
    added_to_unet = {name for name in (LORA_MARK, DIFFERENCE_MARK) if tensors.pop(name, None) is not None}
    is_original = "input_hint_block.0.weight" in tensors or LORA_MARK in added_to_unet
    hint = _hint_convolutions(tensors, "input_hint_block" if is_original else ldm.CONTROL_HINT)
    first = tensors.get("input_blocks.0.0.weight" if is_original else "conv_in.weight")  # which a Control-LoRA may lack
    known = inspect.signature(ControlNetModel.__init__).parameters
    config = {name: value for name, value in unet.config.items() if name in known}
    config |= {
        "encoder_hid_dim_type": None,  # that of an IP-Adapter, which ControlNets do not read
        "in_channels": unet.config.in_channels if first is None else first.shape[1],
        "conditioning_channels": hint[0].shape[1],
        "conditioning_embedding_out_channels": tuple(len(weight) for weight in hint[:-1:2]),
    }
    if not is_original:
        config |= _attention_config(tensors, len(unet.config.down_block_types))
    with empty_weights():
        net = ControlNetModel(**config)
    names = ldm.controlnet_key_map(net) if is_original else key_map.identity_key_map(net.state_dict())
    if added_to_unet:
        tensors = _add_to_unet(tensors, names, unet, is_difference=DIFFERENCE_MARK in added_to_unet)
    key_map.load_tensors(net, tensors, names, what)
    return net


def _hint_convolutions(tensors: Tensors, prefix: str) -> list[Tensor]:
    """Return the weights of the convolutions that embed a control map, in order."""
    found = [name for name in tensors if re.fullmatch(rf"{prefix}\.\D*\d*\.weight", name)]
    ends = {"conv_in": -1, "conv_out": len(found)}
    layers = {name: name.split(".")[-2] for name in found}
    return [tensors[name] for name in sorted(found, key=lambda name: ends.get(layers[name]) or int(layers[name]))]


def _attention_config(tensors: Tensors, blocks: int) -> dict[str, Any]:
    """Return which blocks of a ControlNet in diffusers layout have transformers, and of how many layers."""

    def depth(block: str) -> int:
        pattern = re.compile(rf"{block}\.attentions\.0\.transformer_blocks\.\d+\.norm1\.weight")
        return sum(pattern.fullmatch(name) is not None for name in tensors)

    depths, middle = [depth(rf"down_blocks\.{number}") for number in range(blocks)], depth("mid_block")
    return {
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "transformer_layers_per_block": [*(each or 1 for each in depths[:-1]), depths[-1] or middle or 1],
    }


def _add_to_unet(
    tensors: Tensors, names: KeyMap, unet: UNet2DConditionModel, *, is_difference: bool
) -> dict[str, Tensor]:
    """Return the tensors of a ControlNet from those of a file that are to be added to the U-Net's.

    A Control-LoRA has low-rank matrices, and leaves out what is the U-Net's own; a difference has whole tensors.
    Source: ComfyUI, which reads both.
    """
    refuse_offloaded({"unet": unet}, "the ControlNet is made from the U-Net's weights")
    own = original_state(unet)
    added = dict(tensors)
    for name in names.keys() & own.keys():
        target, weight = names[name].name, own[name].float().cpu()
        layer = target.removesuffix(".weight")
        up, down = (added.pop(f"{layer}.{side}", None) for side in ("up", "down"))
        if is_difference and target in added:
            added[target] = weight + added[target].float()
        added.setdefault(target, weight)
        if up is not None and down is not None:
            added[target] = added[target].float() + (up.float().flatten(1) @ down.float().flatten(1)).view(weight.shape)
    return added


def _t2i_adapter_from_tensors(tensors: dict[str, Tensor], unet: UNet2DConditionModel, what: str) -> T2IAdapter:
    """Return a T2I-Adapter with these tensors; the original layout does not determine the number of its levels."""
    body = select_prefix("adapter.", tensors) or tensors
    is_light, is_original = "body.0.out_conv.weight" in body, body is tensors
    unshuffled = body["body.0.in_conv.weight" if is_light else "conv_in.weight"].shape[1]
    is_xl = not is_light and unshuffled % XL_PIXELS == 0
    parts = block_indices(body, r"body\.(\d+)\..+")
    if is_light or not is_original:
        blocks = len(block_indices(body, r"body\.0\.(?:resnets|body)\.(\d+)\.block1\.weight"))
        last = "out_conv" if is_light else "resnets.0.block1"
        widths = [len(body[f"body.{number}.{last}.weight"]) for number in parts]
    else:
        blocks = max(1, len(parts) // (len(unet.config.block_out_channels) + int(is_xl)))
        widths = [len(body[f"body.{number}.block1.weight"]) for number in parts[::blocks]]
    kind = "light_adapter" if is_light else "full_adapter_xl" if is_xl else "full_adapter"
    with empty_weights():
        net = T2IAdapter(
            in_channels=unshuffled // (XL_PIXELS if is_xl else PIXELS),
            channels=widths[:-1] if is_light else widths,
            num_res_blocks=blocks,
            downscale_factor=16 if is_xl else 8,
            adapter_type=kind,
        )
    names = ldm.t2i_adapter_key_map(net) if is_original else key_map.identity_key_map(net.state_dict())
    key_map.load_tensors(net, tensors, names, what)
    return net


def pocket_controlnets(folder: Path, placement: Placement) -> dict[str, OpenControlNet]:
    """Return the pocket model's ControlNets by kind; each is restored when it is first used, see `pocket.networks`."""
    files = sorted((folder / "control").glob("*"))
    return {file.stem: cache(partial(_restore, file, folder, placement)) for file in files}


def _restore(file: Path, folder: Path, placement: Placement) -> VideoControlNet:
    from kineograph.models.pocket.networks import initial_controlnet, restore_network

    unet = read_network(UNet2DConditionModel, folder / "unet", dtype=torch.float32)
    net = restore_network(initial_controlnet(unet), tensor_files.read_tensors(file))
    return VideoControlNet(_place(net.eval(), placement))


def move_controlnet(control: OpenControlNet, placement: Placement) -> OpenControlNet:
    """Move a ControlNet, at once or when it is first used; return the function that returns it there."""
    moved = cache(partial(_open_and_place, control, placement))
    is_restored_later = hasattr(control, "cache_info") and control.cache_info().currsize == 0
    if not is_restored_later:
        moved()
    return moved


def _open_and_place(control: OpenControlNet, placement: Placement) -> ControlNetwork:
    return _place(control(), placement)


def _place(net: Network, placement: Placement) -> Network:
    if is_offloaded(net):
        return net
    with quiet_loading():
        return net.to(placement.device, placement.dtype, memory_format=placement.memory_format)  # type: ignore[call-overload]  # of torch's stub


def _setting_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
