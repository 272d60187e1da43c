"""Training loop: equal to steps written out by hand, for any division of a step, and its errors."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import WIDTH, load_batch, loss, numbers, tiny_net
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.training import TrainingSettings, fit, load_weights, use_averages
from kineograph.training.gradients import sample_seed, seeded
from kineograph.training.optimisers import build_optimisers, load_optimiser_state, optimiser_state
from kineograph.training.processes import start_workers
from kineograph.training.settings import learning_rate_at
from kineograph.training.temporal_layers.dry_run import loop_memory

BASE = {"max_train_steps": 6, "train_batch_size": 4, "learning_rate": 0.01, "log_every": 2}


def settings(**given: object) -> TrainingSettings:
    return TrainingSettings.model_validate(BASE | given)


def trained(net: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in net.named_parameters() if weight.requires_grad}


def after(folder: Path, chosen: TrainingSettings, net: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the weights at the end of a training."""
    net = net or tiny_net()
    for _ in fit(net, chosen, folder, load_batch=load_batch, loss=loss):
        pass
    return trained(net)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], atol=1e-5, rtol=1e-4) for name in one)


def test_seeding_a_block_leaves_every_generator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would seed the generators of all GPUs, and leave them so."""
    seeded_gpus = list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_gpus.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded_gpus.append)
    before = torch.get_rng_state()
    with seeded(7):
        one = torch.rand(3)
    with pytest.raises(ZeroDivisionError), seeded(7):
        _ = torch.rand(3) / (1 // 0)
    assert torch.equal(one, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.get_rng_state(), before) and not seeded_gpus


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def by_hand(chosen: TrainingSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and averages after plain steps of AdamW on whole batches."""
    net = tiny_net()
    optimiser = torch.optim.AdamW(
        [w for w in net.parameters() if w.requires_grad], weight_decay=chosen.adam_weight_decay
    )
    average = trained(net)
    for step in range(chosen.max_train_steps):
        samples = range(4 * step, 4 * step + 4)
        sum(loss(net, load_batch(step, samples), sample_seed(chosen.seed, samples.start)).values()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), chosen.max_grad_norm)
        optimiser.param_groups[0]["lr"] = learning_rate_at(chosen, step)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(chosen.ema_decay, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * value for name, value in trained(net).items()}
    return trained(net), average


def test_training_equals_steps_written_out(tmp_path: Path) -> None:
    chosen = settings(lr_scheduler="cosine", lr_warmup_steps=2, max_grad_norm=0.5)
    net = tiny_net()
    frozen = net[0].weight.clone()
    norms = [progress.gradient_norm for progress in fit(net, chosen, tmp_path, load_batch=load_batch, loss=loss)]
    expected, average = by_hand(chosen)
    assert max(norms) > 0.5, "clipping has an effect"
    assert close(trained(net), expected)
    assert close(load_weights(tmp_path), average)
    assert torch.equal(net[0].weight, frozen)


def test_loss_falls(tmp_path: Path) -> None:
    losses = [
        p.losses["near"]
        for p in fit(tiny_net(), settings(max_train_steps=60), tmp_path, load_batch=load_batch, loss=loss)
    ]
    assert sum(losses[-10:]) < sum(losses[:10]) / 3


def test_gradient_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole = after(tmp_path / "whole", settings())
    halves = after(tmp_path / "halves", settings(train_batch_size=2, gradient_accumulation_steps=2))
    assert close(whole, halves)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_threads_change_nothing_and_repeat_bit_for_bit(tmp_path: Path, precision: str) -> None:
    chosen = settings(train_batch_size=5, mixed_precision=precision, max_train_steps=10)
    threads = after(tmp_path / "one", chosen)
    assert equal(threads, after(tmp_path / "again", chosen))
    torch.set_num_threads(1)
    alone = after(tmp_path / "alone", chosen)
    if precision == "no":
        assert close(threads, alone)


def test_dropout_repeats_bit_for_bit(tmp_path: Path) -> None:
    nets = [nn.Sequential(nn.Dropout(0.5), tiny_net()) for _ in range(2)]
    state = torch.get_rng_state()
    one, other = (after(tmp_path / str(number), settings(), net) for number, net in enumerate(nets))
    assert equal(one, other)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not advanced"


@pytest.mark.usefixtures("two_threads")
def test_a_network_with_dropout_uses_one_thread() -> None:
    threads = {}
    for name, net in {"plain": tiny_net(), "dropout": nn.Sequential(nn.Dropout(0.5), tiny_net())}.items():
        with start_workers(net, settings()) as processes:
            threads[name] = processes.threads
    assert threads == {"plain": 2, "dropout": 1}


def test_weights_outside_the_loss_do_not_change(tmp_path: Path) -> None:
    net = nn.ModuleDict({"used": nn.Linear(4, WIDTH), "idle": nn.Linear(4, WIDTH)})
    before = trained(net)

    def one(net: nn.Module, batch: tuple[Tensor], seed: int) -> dict[str, Tensor]:
        return {"size": net["used"](batch[0].mean((2, 3))).square().mean()}

    for _ in fit(net, settings(), tmp_path, load_batch=load_batch, loss=one):
        pass
    now = trained(net)
    assert [name for name in now if torch.equal(now[name], before[name])] == ["idle.weight", "idle.bias"]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_is_bit_exact(tmp_path: Path, optimizer: str, memory: torch.memory_format) -> None:
    chosen = settings(optimizer=optimizer)
    whole = after(tmp_path / "whole", chosen, tiny_net().to(memory_format=memory))
    for progress in fit(
        tiny_net().to(memory_format=memory), chosen, tmp_path / "cut", load_batch=load_batch, loss=loss
    ):
        if progress.step == 3:
            break
    assert equal(whole, after(tmp_path / "cut", chosen, tiny_net().to(memory_format=memory)))


def test_memory_format_changes_nothing(tmp_path: Path) -> None:
    # Muon works in bfloat16, where the order of a matrix' columns has an effect: of 0.0023 where weights move by 0.04
    for optimizer, off in {"adamw": 1e-5, "muon": 5e-3}.items():
        nets = tiny_net(), tiny_net().to(memory_format=torch.channels_last)
        ends = [after(tmp_path / f"{optimizer}{n}", settings(optimizer=optimizer), net) for n, net in enumerate(nets)]
        assert all(torch.allclose(ends[0][name], ends[1][name], atol=off) for name in ends[0])


def test_muon_state_does_not_depend_on_the_number_of_cores() -> None:
    nets = tiny_net(), tiny_net()
    both = [build_optimisers(net, settings(optimizer="muon"), cores) for net, cores in zip(nets, (2, 1), strict=True)]

    def step(number: int) -> None:
        for parameter in both[number].parameters.values():
            parameter.grad = numbers(parameter.numel(), *parameter.shape)
        for optimiser in both[number].members:
            optimiser.step()

    step(0)
    nets[1].load_state_dict(nets[0].state_dict())
    load_optimiser_state(both[1], optimiser_state(both[0]))
    step(0)
    step(1)
    assert [len(each.members) for each in both] == [3, 2]
    assert equal(optimiser_state(both[0]), optimiser_state(both[1])) and equal(trained(nets[0]), trained(nets[1]))


def test_averaged_weights_are_put_in_and_taken_out(tmp_path: Path) -> None:
    net = tiny_net()
    for progress in fit(net, settings(), tmp_path, load_batch=load_batch, loss=loss):
        own = trained(net)
        with use_averages(net, progress.average):
            assert equal(trained(net), dict(progress.average))
        assert equal(trained(net), own) and not equal(own, dict(progress.average))


def test_without_averages_the_last_weights_are_loaded(tmp_path: Path) -> None:
    assert equal(after(tmp_path, settings(ema_decay=0)), load_weights(tmp_path))


def test_progress_and_log(tmp_path: Path) -> None:
    seen = []
    for progress in fit(tiny_net(), settings(), tmp_path, load_batch=load_batch, loss=loss):
        seen.append((progress.step, progress.samples_seen, progress.learning_rate))
        last = progress
    assert seen == [(step, 4 * step, 0.01) for step in range(1, 7)]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    names = ["step", "loss", "loss/near", "loss/far", "gradient_norm", "learning_rate", "seconds", "samples_seen"]
    assert all(list(line) == names for line in lines)
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["loss/near"] + lines[-1]["loss/far"], rel=1e-4)
    assert lines[-1]["gradient_norm"] == pytest.approx(last.gradient_norm, rel=1e-4)


def test_learning_rates() -> None:
    chosen = settings(max_train_steps=10, lr_warmup_steps=4, lr_scheduler="linear", learning_rate=1.0)
    expected = [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [learning_rate_at(chosen, step) for step in range(10)] == pytest.approx(expected)
    half = chosen.model_copy(update={"lr_scheduler": "cosine"})
    assert learning_rate_at(half, 7) == pytest.approx(0.5)
    assert learning_rate_at(settings(), 5) == 0.01


def test_loop_memory() -> None:
    net = tiny_net()
    memory = loop_memory(settings(optimizer="muon", gradient_accumulation_steps=3), net)
    every = sum(weight.numel() for weight in net.parameters())
    trained = every - sum(weight.numel() for weight in net[0].parameters())
    biases = sum(layer.bias.numel() for layer in (net[2], net[4], net[6]))
    assert memory.weights == 4 * every
    assert memory.optimiser == 4 * (trained + biases)  # a momentum of all, and a second moment of the biases
    assert memory.held == memory.weights + memory.optimiser + 4 * 3 * trained


def refused(folder: Path, net: nn.Module, chosen: TrainingSettings, **given: object) -> str:
    with pytest.raises(InputError) as raised:
        list(fit(net, chosen, folder, **{"load_batch": load_batch, "loss": loss} | given))
    return str(raised.value)


def test_untrainable_networks_are_refused(tmp_path: Path) -> None:
    assert "nothing to train" in refused(tmp_path, tiny_net().requires_grad_(requires_grad=False), settings())
    assert "2.weight (torch.bfloat16)" in refused(tmp_path, tiny_net().bfloat16(), settings())
    assert "fp16 needs a GPU" in refused(tmp_path, tiny_net(), settings(mixed_precision="fp16"))
    assert "0 is a batch norm" in refused(tmp_path, nn.Sequential(nn.BatchNorm2d(4), tiny_net()), settings())
    assert list(tmp_path.iterdir()) == []
    apart = {"loss": lambda net, batch, seed: {"size": batch[0].square().mean()}}
    assert "the loss of step 0 depends on no weight that is trained" in refused(
        tmp_path, tiny_net(), settings(), **apart
    )


def test_a_diverged_run_stops_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    def breaking(net: nn.Module, batch: tuple[Tensor], seed: int) -> dict[str, Tensor]:
        broken = seed - sample_seed(0, 0) >= 16
        return {"near": loss(net, batch, seed)["near"] * (math.nan if broken else 1)}

    message = refused(tmp_path, tiny_net(), settings(checkpointing_steps=1), loss=breaking)
    assert "step 4 came to a loss of near nan" in message and "lower the learning_rate" in message
    assert all(value.isfinite().all() for value in load_weights(tmp_path).values())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == "step-000004"


def test_an_error_while_loading_reaches_the_consumer(tmp_path: Path) -> None:
    def broken(step: int, samples: range) -> tuple[Tensor]:
        if step == 2:
            raise OSError("the disk is gone")
        return load_batch(step, samples)

    with pytest.raises(OSError, match="the disk is gone"):
        list(fit(tiny_net(), settings(), tmp_path, load_batch=broken, loss=loss))
