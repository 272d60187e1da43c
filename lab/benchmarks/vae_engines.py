"""Milliseconds of the built-in VAE by torch and by OpenVINO, 8 frames, medians of seven: run it without arguments."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

import kineograph as kg
from kineograph.models.openvino.graph import Threads, convert


def milliseconds(function: Callable[[], object]) -> float:
    """Return the median time of a function, after one call."""
    function()
    found = []
    for _ in range(7):
        started = time.perf_counter()
        function()
        found.append(1000 * (time.perf_counter() - started))
    return median(found)


with torch.no_grad():
    for dtype in (torch.bfloat16, torch.float32):
        vae = kg.load("pocket", dtype=dtype, device="cpu").vae
        for name, body, tensor in (
            ("decode", lambda net, given: [net.decode(given[0]).sample], torch.randn(8, 8, 16, 16)),
            (
                "encode",
                lambda net, given: [net.encode(given[0]).latent_dist.mode()],
                torch.rand(8, 3, 128, 128) * 2 - 1,
            ),
        ):
            given = [tensor.to(dtype)]
            graph, _ = convert(vae, body, given, Threads(torch.get_num_threads(), 1))
            by_torch = milliseconds(partial(body, vae, given))
            by_graph = milliseconds(partial(graph, given)) if graph else None
            print(dtype, name, by_torch, by_graph)
