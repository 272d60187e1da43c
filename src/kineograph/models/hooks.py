"""Hooks of accelerate, diffusers and torch on the networks of a live pipeline.

The forward pass calls the layers of a U-Net one by one, see `unet.forward`. A hook on a layer runs then; one on a
module around the layers (the network, a block, an attention) does not. That of model offload is run by `onload`, and
any other is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import accelerate
import torch
from accelerate.hooks import CpuOffload, SequentialHook
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from kineograph.errors import InputError

GROUP_OFFLOAD, LAZY_PREFETCH = "group_offloading", "lazy_prefetch_group_offloading"  # diffusers' names of the hooks
Network = TypeVar("Network", bound=nn.Module)
_HOOKS = {"_hf_hook", "_diffusers_hook"}  # attributes in which accelerate and diffusers keep a module's hooks
BLOCKS = ("down_blocks", "mid_block", "up_blocks")


def execution_device(network: nn.Module) -> torch.device:
    """Return the device on which a network computes: that of its offload hooks, or that of its weights."""
    own = next(network.parameters()).device
    if own.type == "cpu" and not torch.accelerator.is_available():
        return own  # without a walk through all modules, which takes as long as a small layer
    device = next(filter(None, map(_hook_device, hooked_modules(network))), None)
    return own if device is None else device


def is_offloaded(network: nn.Module) -> bool:
    """Return True for a network whose weights are moved by hooks."""
    return any(_hook_device(module) is not None for module in hooked_modules(network))


def has_weights(network: nn.Module) -> bool:
    """Return True for a network whose weights are in memory between its calls, not on disk or in a hook's own map."""
    groups = (_diffusers_hooks(module).get(GROUP_OFFLOAD) for module in network.modules())
    on_disk = any(hook is not None and hook.group.offload_to_disk_path for hook in groups)
    return not on_disk and not any(weight.is_meta for weight in network.parameters())


def refuse_offloaded(networks: Mapping[str, nn.Module], reason: str) -> None:
    """Raise InputError if one of these networks is offloaded. reason: beginning of the message."""
    if offloaded := [name for name, network in networks.items() if is_offloaded(network)]:
        raise InputError(f"{reason} ({', '.join(offloaded)}): do it before you switch offloading on")


def copy_network(network: Network) -> Network:
    """Return a copy where the network computes, without the hook of model offload.

    Raises InputError for a network whose weights are offloaded in parts.
    """
    if any(_hook_device(module) is not None for module in network.modules() if module is not network):
        raise InputError(
            "the VAE overflows in float16, and offloaded in parts it cannot be copied in float32: load the pipeline in "
            "bfloat16 or float32, or use enable_model_cpu_offload"
        )
    hook, device = getattr(network, "_hf_hook", None), execution_device(network)
    copied = copy.deepcopy(network, {id(hook): None})  # the hook has references to the other networks
    for name in ("_hf_hook", "_old_forward", "forward"):
        vars(copied).pop(name, None)
    return copied.to(device)


def add_offloading(
    networks: Sequence[nn.Module], device: torch.device, way: Literal["model", "sequential", "group"]
) -> None:
    """Keep the weights of networks on the CPU, and have hooks move them to a device while they are used.

    networks: on the CPU, in the order in which they are used. way: as the option `offload` of `load`; the hooks are
    those of a pipeline's enable_model_cpu_offload, enable_sequential_cpu_offload and enable_group_offload.
    """
    if way == "model":
        hook = None
        for network in networks:
            _, hook = accelerate.cpu_offload_with_hook(network, device, hook)
        return
    for network in networks:
        if way == "sequential":
            accelerate.cpu_offload(network, device, offload_buffers=True)
        else:
            apply_group_offloading(
                network, onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level"
            )


def onload(network: nn.Module) -> None:
    """Run the hook of a network whose layers are called one by one, which moves its weights to where it computes."""
    hook = getattr(network, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(network)


def offload(network: nn.Module) -> None:
    """Move a network with model offload, or those inside, back to the CPU, as a pipeline does at the end of a call."""
    for module in network.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for each in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
            if isinstance(each, CpuOffload):
                each.init_hook(module)


def hooked_modules(network: nn.Module) -> list[nn.Module]:
    """Return the modules with a hook of accelerate or diffusers; most networks, asked at each evaluation, have none."""
    return [module for module in network.modules() if not _HOOKS.isdisjoint(vars(module))]


def _hook_device(module: nn.Module) -> torch.device | None:
    """Return the device to which the offload hooks of a module move its weights; None without such a hook."""
    hook: Any = getattr(module, "_hf_hook", None)
    for each in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if getattr(each, "execution_device", None) is not None:
            return torch.device(each.execution_device)
    group = _diffusers_hooks(module).get(GROUP_OFFLOAD)
    return None if group is None else torch.device(group.group.onload_device)


def _diffusers_hooks(module: nn.Module) -> dict[str, Any]:
    registry: Any = getattr(module, "_diffusers_hook", None)
    return {} if registry is None else registry.hooks


def refuse_unused_hooks(network: nn.Module, what: str) -> None:
    """Raise InputError for what is switched on on a U-Net or ControlNet and would not run here.

    what: the network, for the message.
    """
    for name, module in _modules_around_layers(network):
        if reason := _unused(module, is_network=module is network):
            where = f"{name} of {what}" if name else what
            raise InputError(f"{where} {reason}")


def refuse_any_hooks(network: nn.Module, what: str) -> None:
    """Raise InputError for a network with hooks, or compiled, where a conversion would lose that.

    what: the network, for the message.
    """
    for module in network.modules():
        reason = _unused(module, is_network=False)
        if reason is not None or is_offloaded(module):
            raise InputError(
                f"{what} has hooks (offloading, layerwise casting, caches) or compiled layers, which its conversion "
                "here would lose: load the pipeline before you switch them on"
            )


def _modules_around_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose layers the forward pass calls in their place, with their names."""
    yield "", network
    kinds = (BasicTransformerBlock, Attention, Transformer2DModel)
    for name, module in network.named_modules():
        side, *path = name.split(".")
        is_block = side in BLOCKS and len(path) == (side != "mid_block")
        if is_block or (side in BLOCKS and isinstance(module, kinds)):
            yield name, module


def _unused(module: Any, *, is_network: bool) -> str | None:
    """Return what is switched on on a module and would not run, and what to do; None for nothing."""
    if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
        return (
            "is compiled, and its layers are called one by one here, past the compiled code: load the pipeline before "
            "you compile it, then compile the model, as in model.net.compile()"
        )
    hooks = _diffusers_hooks(module)
    if LAZY_PREFETCH in hooks:
        return "is offloaded in groups with a stream, which expects another order of the layers: set use_stream=False"
    if GROUP_OFFLOAD in hooks:
        return (
            "is offloaded in groups of blocks, and its layers are called one by one here: take "
            "offload_type='leaf_level' in enable_group_offload, or enable_model_cpu_offload"
        )
    if hooks:
        return (
            f"has the hook {', '.join(hooks)}, which does not run here, where its layers are called one by one: take "
            "it off (`disable_cache`, or `_diffusers_hook.remove_hook`)"
        )
    has_accelerate_hook = hasattr(module, "_hf_hook")
    if has_accelerate_hook and not is_network:
        return "is on a device of its own: put the whole network on one, or use enable_model_cpu_offload"
    is_replaced = "forward" in vars(module) and not has_accelerate_hook
    kind = next((each for each in (BasicTransformerBlock, Attention) if isinstance(module, each)), None)
    if is_replaced or (kind is not None and type(module) is not kind):
        by = f" by {type(module).__name__}" if kind is not None and type(module) is not kind else ""
        return (
            f"has another forward pass{by}, which does not run here, where its layers are called one by one: take off "
            "what replaced it, such as DeepCache or token merging"
        )
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks, which do not run here, where its layers are called one by one: remove them"
    return None
