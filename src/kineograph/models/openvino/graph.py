"""Conversion of a function of a network and tensors to an OpenVINO graph, its check against torch, and its use.

A graph has fixed shapes. Its inputs and outputs are float32; inside, weights and activations are bfloat16 where the
network's are. It is traced from a float32 copy of the network: traced from bfloat16 weights, OpenVINO 2026.4 gives NaN.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from kineograph.models.memory import trim_heap

Body = Callable[[nn.Module, Sequence[Tensor]], Sequence[Tensor]]  # (network, tensors) -> tensors
Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]

PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "f32"}
MAX_FLOAT32_ERROR = 1e-4  # relative to the largest output
MAX_ERROR_RATIO = 2.0  # of a bfloat16 graph's error over that of torch in bfloat16
TRAJECTORY_STEPS, STEP_SIZE, MAX_DEVIATION = 4, 0.3, 0.02


class Threads(NamedTuple):
    """Cores of a graph, and number of evaluations that run on them at the same time."""

    cores: int
    streams: int


@dataclass(frozen=True, eq=False)
class Graph:
    """A compiled graph. Calls from several threads run at the same time, each with a request of its own.

    source: memory that the compiled graph reads.
    """

    compiled: openvino.CompiledModel
    source: object = None
    _requests: SimpleQueue[openvino.InferRequest] = field(default_factory=SimpleQueue)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs, float32, for tensors of the shapes that the graph was converted for."""
        arrays = [each.float().contiguous().numpy(force=True) for each in tensors]  # also of a tensor with gradients
        try:
            request = self._requests.get_nowait()
        except Empty:
            request = self.compiled.create_infer_request()
        try:
            request.infer(dict(enumerate(arrays)), share_inputs=True)
            outputs = [request.get_output_tensor(k).data for k in range(len(self.compiled.outputs))]
            return [torch.from_numpy(each.copy()) for each in outputs]  # the request writes there again
        finally:
            self._requests.put(request)

    def export(self) -> np.ndarray:
        """Return the compiled graph as uint8, for `open_graph` with the same OpenVINO on the same kind of CPU."""
        stream = io.BytesIO()
        self.compiled.export_model(stream)
        return np.frombuffer(stream.getbuffer(), np.uint8)


def open_graph(exported: np.ndarray, precision: str, threads: Threads) -> Graph:
    """Return the graph that `Graph.export` returned, from memory that can be written, which is not copied."""
    tensor = openvino.Tensor(exported, shared_memory=True)
    return Graph(openvino.Core().import_model(tensor, "CPU", _settings(precision, threads)), (exported, tensor))


def convert(network: nn.Module, body: Body, tensors: Sequence[Tensor], threads: Threads) -> tuple[Graph | None, str]:
    """Return a function of a network as a graph, and its precision; None if no graph passes `computes_like_torch`.

    A network in bfloat16 whose graph fails is computed in float32.
    """
    reference = copy.deepcopy(network).float() if network_dtype(network) != torch.float32 else network
    model = _trace(reference, body, [each.detach().float() for each in tensors])
    trim_heap()  # of what the trace took, a fifth of the peak at SD 1.5's size
    wanted = PRECISIONS[network_dtype(network)]
    for precision in dict.fromkeys((wanted, "f32")):
        graph = Graph(openvino.Core().compile_model(model, "CPU", _settings(precision, threads)))
        if computes_like_torch(graph, precision, network, reference, body, tensors):
            return graph, precision
    return None, wanted


def network_dtype(network: nn.Module) -> torch.dtype:
    """Return the dtype of a network's weights: the first's."""
    return next(network.parameters()).dtype


def _settings(precision: str, threads: Threads) -> dict[str, Any]:
    # by default OpenVINO computes in bfloat16 on a CPU that has it, whatever the model's dtype
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads.cores,
        "NUM_STREAMS": str(threads.streams),
        "ENABLE_CPU_PINNING": False,
    }


class _Traced(nn.Module):
    def __init__(self, network: nn.Module, body: Body) -> None:
        super().__init__()
        self.network = network
        self.body = body

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.float() for each in self.body(self.network, tensors))


def _trace(network: nn.Module, body: Body, tensors: Sequence[Tensor]) -> openvino.Model:
    """Return an OpenVINO model with the shapes of these tensors."""
    with _quiet(), torch.no_grad():
        model = openvino.convert_model(_Traced(network, body), example_input=tuple(tensors))
    if len(model.inputs) != len(tensors):
        raise RuntimeError(f"the graph has {len(model.inputs)} inputs, and the function reads {len(tensors)} tensors")
    model.reshape({port: list(each.shape) for port, each in zip(model.inputs, tensors, strict=True)})
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warnings about Python values in a trace, and restore the root logger, which OpenVINO changes."""
    root = logging.getLogger()
    level, handlers, filters = root.level, list(root.handlers), list(root.filters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        try:
            yield
        finally:
            root.setLevel(level)
            root.handlers[:], root.filters[:] = handlers, filters


@torch.no_grad()
def computes_like_torch(
    graph: Compute, precision: str, network: nn.Module, reference: nn.Module, body: Body, tensors: Sequence[Tensor]
) -> bool:
    """Return True if a graph computes what torch does on this machine: see openvinotoolkit issues 38256 and 36715.

    One evaluation is compared with torch in float32: in float32 within `MAX_FLOAT32_ERROR`; in bfloat16 with an error
    of at most `MAX_ERROR_RATIO` times that of torch in bfloat16. Then the standard deviation over a short trajectory
    x - STEP_SIZE * f(x) is compared with torch's, if the output has the shape of the first tensor.
    """
    exact, found = body(reference, [each.float() for each in tensors]), graph(tensors)
    if not all(torch.isfinite(each).all() for each in found):
        return False
    if precision == "f32":
        within = all(_largest(a - b) <= MAX_FLOAT32_ERROR * _largest(b) for a, b in zip(found, exact, strict=True))
    else:
        torch_errors = [_spread(a - b) for a, b in zip(body(network, tensors), exact, strict=True)]
        errors = [_spread(a - b) for a, b in zip(found, exact, strict=True)]
        within = sum(errors) <= MAX_ERROR_RATIO * sum(torch_errors)
    if not within or found[0].shape != tensors[0].shape:
        return within
    first, *others = tensors
    by_graph, by_torch = first.float(), first.float()
    for _ in range(TRAJECTORY_STEPS):
        by_graph = by_graph - STEP_SIZE * graph([by_graph, *others])[0]
        by_torch = by_torch - STEP_SIZE * body(network, [by_torch, *others])[0].float()
    return abs(_spread(by_graph) / _spread(by_torch) - 1) <= MAX_DEVIATION


def _largest(x: Tensor) -> float:
    return float(x.float().abs().max())


def _spread(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())
