"""A training of milliseconds a step, and functions that run it in other processes."""

import multiprocessing
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.training import TrainingProgress, TrainingSettings, fit

WIDTH = 16


def tiny_net() -> nn.Module:
    """Two convolutions and two matrices, the first of each frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(4, WIDTH, 3), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3), nn.Flatten()]
        net = nn.Sequential(*layers, nn.Linear(WIDTH * 16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
    net[0].requires_grad_(requires_grad=False)
    return net


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load_batch(step: int, samples: range) -> tuple[Tensor]:
    """Return a batch of a data set of eight images."""
    return (torch.stack([numbers(sample % 8, 4, 8, 8) for sample in samples]),)


def loss(net: nn.Module, batch: tuple[Tensor], seed: int) -> dict[str, Tensor]:
    """Return two losses whose noise depends on the sample alone, as a diffusion model's should."""
    (clean,) = batch
    noise = torch.stack([numbers(seed + sample, 4, 8, 8) for sample in range(len(clean))])
    error = net(clean + 0.1 * noise) - 10 * clean.mean((2, 3)).repeat(1, WIDTH // 4)
    return {"near": error.square().mean(), "far": 0.1 * error.abs().mean()}


def train(folder: Path, settings: TrainingSettings, threads: int = 1) -> None:
    """Run the training, and log a figure at every third step."""
    torch.set_num_threads(threads)
    for progress in fit(tiny_net(), settings, folder, load_batch=load_batch, loss=loss):
        if progress.step % 3 == 0:
            progress.log.write(progress.step, {"validation/norm": validated(progress)})


def validated(progress: TrainingProgress) -> float:
    return float(sum(weight.norm() for weight in progress.average.values()))


def train_as_one_of(rank: int, processes: int, port: int, folder: Path, settings: TrainingSettings) -> None:
    """Run what `accelerate launch --cpu` runs in each process, with different initial weights in each."""
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    net = tiny_net()
    with torch.no_grad():
        net[2].weight += rank
    for _ in fit(net, settings, folder, load_batch=load_batch, loss=loss):
        pass
    torch.distributed.destroy_process_group()


def train_with_small_files(folder: Path, settings: TrainingSettings, most: int) -> None:
    """Run a training whose files may have `most` bytes; its error is written to the file `message`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        train(folder, settings)
    except InputError as error:
        (folder / "message").write_text(str(error))


def begin(work: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """Start work in a process forked from one that has done the slow imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "kineograph.training"])
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]
