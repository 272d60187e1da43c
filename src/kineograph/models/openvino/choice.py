"""Choice between torch and OpenVINO for a run, by what OpenVINO is expected to save and its conversion to cost."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from kineograph.errors import InputError
from kineograph.models.hooks import hooked_modules
from kineograph.models.openvino.cache import Conversions, GraphCache, hash_values

if TYPE_CHECKING:
    from kineograph.models.model import Model

Engine = Literal["torch", "openvino"]
DTYPES = (torch.float32, torch.bfloat16)

# Measured on 2 cores with avx512_bf16, of the built-in model and of SD 1.5 at 512 x 512: docs/results/speed.md.
TORCH_SECONDS = {torch.bfloat16: 1e-12, torch.float32: 2e-12}  # of 2 cores, for a weight and a latent pixel
SAVED_SHARE = 0.4  # of torch's time
CONVERSION_SECONDS, CONVERSION_SECONDS_A_WEIGHT = 5.0, 65e-9  # of one graph
OPENING_SECONDS = 0.6  # of openvino's import and a graph from the cache


class Work(NamedTuple):
    """Evaluations of a network in a run.

    evaluations   number of steps times that of guidance branches
    latent_pixels of all frames
    graphs        number of graphs, which differ in the number of frames or in what they read
    shape         everything that the graphs' shapes depend on
    """

    evaluations: float
    latent_pixels: int
    graphs: int
    shape: tuple[Any, ...]


class EngineChoice(NamedTuple):
    """The engine of a run, and why, as a clause. key: of its conversions, "" where none are needed or known."""

    engine: Engine
    reason: str
    key: str = ""


def is_installed() -> bool:
    """Return True if the package openvino can be imported."""
    return find_spec("openvino") is not None


def check_installed() -> None:
    """Raise InputError without openvino."""
    if not is_installed():
        raise InputError(
            "`engine` openvino needs the package openvino: pip install 'kineograph[cpu]', or take engine torch"
        )


def choose_engine(
    asked: Engine | Literal["auto"], model: Model, work: Work, cache: GraphCache | None = None
) -> EngineChoice:
    """Return the engine to use.

    With auto, OpenVINO is used if it is expected to save more than the conversion takes that is not stored yet. Savings
    that were missed for that reason in earlier runs of the same shape count too, so that a model in daily use is
    converted. Raises InputError if openvino is asked for and not installed, or cannot compute the model.
    """
    if asked == "torch":
        return EngineChoice("torch", "it was asked for")
    reason = refusal(model)
    if asked == "openvino":
        check_installed()
        if reason is not None:
            raise InputError(f"`engine` openvino cannot compute {model.name}: {reason}; take engine torch")
    elif reason is not None or not is_installed():
        return EngineChoice("torch", reason or "openvino is not installed (pip install 'kineograph[cpu]')")
    cache = GraphCache() if cache is None else cache
    network = model.net
    weights = sum(each.numel() for each in network.parameters())
    key = hash_values(network, work.shape)
    stored = cache.conversions(key)
    if asked == "openvino":
        return EngineChoice("openvino", "it was asked for", key)
    seconds = TORCH_SECONDS[model.dtype] * weights * work.latent_pixels * work.evaluations
    saved = SAVED_SHARE * seconds * 2 / torch.get_num_threads()
    cost = OPENING_SECONDS
    if not stored.done:
        cost += work.graphs * (CONVERSION_SECONDS + CONVERSION_SECONDS_A_WEIGHT * weights)
    if saved + stored.missed > cost:
        return EngineChoice("openvino", f"it saves about {saved:.0f} s, and to prepare it takes {cost:.0f} s", key)
    if not stored.done:
        cache.note(key, Conversions(missed=stored.missed + saved))
    return EngineChoice("torch", f"openvino would save about {saved:.1f} s, and to prepare it takes {cost:.0f} s")


def refusal(model: Model) -> str | None:
    """Return why OpenVINO cannot compute a model, as a clause; None if it can."""
    if model.device.type != "cpu":
        return f"the model is on {model.device}, and OpenVINO computes on the CPU"
    return network_refusal(model.net)


def network_refusal(network: nn.Module) -> str | None:
    """Return why OpenVINO cannot compute a network, as a clause; None if it can."""
    weights = list(network.parameters())
    if any(not each.is_floating_point() for each in weights):
        return "its weights are quantised"
    if weights[0].dtype not in DTYPES:
        return f"its weights are {str(weights[0].dtype).removeprefix('torch.')}, not float32 or bfloat16"
    if any(isinstance(each, nn.Dropout) and each.training and each.p > 0 for each in network.modules()):
        return "it is in training mode"
    if hooked_modules(network) or any(each._forward_hooks or each._forward_pre_hooks for each in network.modules()):
        return "its layers have hooks, such as offloading"
    return None
