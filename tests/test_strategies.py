"""Each strategy against its equation written out, and against plain training loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from continual.config import make_strategy
from continual.conformance import small_stream
from continual.errors import BadChain
from continual.learning import importance
from continual.learning.models import MLP, Net, Out
from continual.learning.optimizers import SGD, Adam, AdamW, Constant, Optimizer
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Chain, Memory, Step, Strategy
from continual.learning.train import Watch, schedule, train
from continual.learning.training import Training
from continual.strategies import (
    EWC,
    L1,
    L2,
    MAS,
    SI,
    Cumulative,
    Finetune,
    FromScratch,
    Joint,
    OnlineEWC,
    PackNet,
    Replay,
    SharedTrunk,
)
from continual.streams.stream import Stream, Task

HIDDEN = 6
TRAINING = Training(seeds=1, epochs=2, batch=7, precision="float64", train_samples=0)
STREAM = small_stream(0)  # six classes of 12 images, two in each of three tasks, class scenario
Plain = torch.nn.Sequential


def net_of(stream: Stream) -> Net:
    return MLP(layers=(HIDDEN,)).build(stream.shape, stream.units)


NET = net_of(STREAM)


def vector(seed: int, size: int = NET.size) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.4


def batch_of(task: Task, rows: torch.Tensor) -> Batch:
    samples = task.samples
    x = samples.images(rows, torch.float64)
    return Batch(rows, samples.y[rows], samples.task[rows], task.key, own=len(rows), x=x)


def penalty_of(strategy: Strategy, theta: torch.Tensor, memory: Memory, task: Task) -> torch.Tensor:
    batch = batch_of(task, task.train[:4])
    return strategy.penalty(NET, theta, memory, batch, NET.forward(theta, batch.images), task)


def gradient_of(function: Callable[[torch.Tensor], torch.Tensor], theta: torch.Tensor) -> torch.Tensor:
    live = theta.clone().requires_grad_()
    value = function(live)
    return torch.autograd.grad(value, live)[0]


def same_penalty(
    strategy: Strategy, memory: Memory, task: Task, wanted: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The same function of θ up to a constant: equal gradients, equal differences."""
    points = [vector(100 + n) for n in range(3)]
    got = [penalty_of(strategy, theta, memory, task) for theta in points]
    assert got[0].shape == ()
    for n, theta in enumerate(points):
        gradient = gradient_of(lambda live: penalty_of(strategy, live, memory, task), theta)
        torch.testing.assert_close(gradient, gradient_of(wanted, theta), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got[n] - got[0], wanted(theta) - wanted(points[0]), rtol=1e-9, atol=1e-12)


# ---- training, ours and a plain loop


def learner(
    strategy: Strategy, stream: Stream = STREAM, optimizer: Optimizer | None = None, keep: bool = True, seed: int = 0
) -> Learners:
    recipe = Recipe(net_of(stream), strategy, optimizer or SGD(lr=0.1), Constant(), keep, "float64")
    return Learners(recipe, [stream], [seed])


def trained(alone: Learners, training: Training = TRAINING) -> torch.Tensor:
    """The losses of all steps."""
    found, stopped = train(alone, training, Watch())
    assert not stopped
    return found["loss"]


def module(theta: torch.Tensor, units: int) -> Plain:
    layers = torch.nn.Linear(9, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, units)
    net = Plain(torch.nn.Flatten(), *layers).double()
    torch.nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    return net


def flat(net: Plain) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(net.parameters())


def active_loss(net: Plain, stream: Stream, rows: torch.Tensor, seen: int) -> torch.Tensor:
    """The loss of each sample over the classes of the first ``seen`` tasks, in the class scenario: (B,)."""
    logits = net(stream.samples.images(rows, torch.float64))[:, : 2 * seen]
    return torch.nn.functional.cross_entropy(logits, stream.samples.y[rows], reduction="none")


def descend(net: Plain, loss: torch.Tensor) -> None:
    """A step of plain gradient descent."""
    parameters = list(net.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.sub_(0.1 * gradient)


def order(rows: torch.Tensor, index: int, training: Training = TRAINING, seed: int = 0) -> list[torch.Tensor]:
    return schedule(rows, training, torch.tensor(seed), index)


JOINED: list[list[int]] = []  # the rows of each batch, in order


@dataclass(frozen=True)
class Noting(Strategy):
    """Writes down, as the last part of a chain, the rows of each batch."""

    def batch(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        JOINED.append(batch.row.tolist())
        return batch


# ---- EWC


def brute_fishers(label: Any, thetas: list[torch.Tensor], batch: int = 1) -> list[torch.Tensor]:
    """The Fisher of each task at its own θ*, stored one by one."""
    return [
        importance.fisher(NET, theta, task, task.train, label, batch)
        for theta, task in zip(thetas, STREAM.tasks, strict=False)
    ]


def learnt(strategy: Strategy, thetas: list[torch.Tensor]) -> Memory:
    """The memory after tasks that ended with these θ."""
    memory = strategy.init(NET, vector(0), STREAM)
    for theta, task in zip(thetas, STREAM.tasks, strict=False):
        after, memory = strategy.after_task(NET, theta.clone(), memory, task)
        assert torch.equal(after, theta)
    return memory


@pytest.mark.parametrize("label", ["expected", "true", "argmax"])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("decay", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_ewc_is_a_sum_over_tasks(tasks: int, decay: float, half: bool, label: Any) -> None:
    """½ λ Σ_t γ^(T-t) F_t (θ - θ*_t)²."""
    thetas = [vector(n + 1) for n in range(tasks)]
    fishers = brute_fishers(label, thetas)

    def wanted(theta: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for t, (fisher, anchor) in enumerate(zip(fishers, thetas, strict=True)):
            total = total + decay ** (tasks - 1 - t) * (fisher * (theta - anchor) ** 2).sum()
        return (0.5 if half else 1.0) * 13.0 * total

    strategy = EWC(strength=13, half=half, label=label, decay=decay)
    same_penalty(strategy, learnt(strategy, thetas), STREAM.tasks[-1], wanted)


@pytest.mark.parametrize("decay", [1.0, 0.7])
@pytest.mark.parametrize("kind", [EWC, OnlineEWC])
def test_ewc_around_the_last_weights(kind: type[EWC], decay: float) -> None:
    """½ λ (Σ_t γ^(T-t) F_t) (θ - θ*_T)², here no constant is left out."""
    thetas = [vector(n + 1) for n in range(3)]
    f1, f2, f3 = brute_fishers("expected", thetas)
    strategy = kind(strength=13, terms="last", decay=decay)
    memory = learnt(strategy, thetas)

    def wanted(theta: torch.Tensor) -> torch.Tensor:
        return 6.5 * ((decay**2 * f1 + decay * f2 + f3) * (theta - thetas[-1]) ** 2).sum()

    same_penalty(strategy, memory, STREAM.tasks[-1], wanted)
    theta = vector(9)
    torch.testing.assert_close(penalty_of(strategy, theta, memory, STREAM.tasks[-1]), wanted(theta))


def test_online_ewc_is_ewc_with_other_defaults() -> None:
    thetas = [vector(n + 1) for n in range(3)]
    strategies: tuple[EWC, EWC] = OnlineEWC(), EWC(terms="last", decay=0.9)
    a, b = (learnt(strategy, thetas) for strategy in strategies)
    assert all(torch.equal(a[name], b[name]) for name in b)
    each = learnt(EWC(), thetas)
    assert not torch.allclose(a["anchor"], each["anchor"]) and not torch.allclose(a["fisher"], each["fisher"])


def test_one_term_per_task_is_not_one_term_around_the_last_weights() -> None:
    thetas = [vector(n + 1) for n in range(2)]
    grads = []
    for terms in ("each", "last"):
        strategy = EWC.read({"terms": terms})
        memory = learnt(strategy, thetas)
        grads.append(gradient_of(lambda live, s=strategy, m=memory: penalty_of(s, live, m, STREAM.tasks[1]), vector(9)))
    assert not torch.allclose(grads[0], grads[1], rtol=0.05)


@pytest.mark.parametrize("half", [True, False])
def test_ewc_pulls_at_nothing_before_the_first_task_ends(half: bool) -> None:
    strategy = EWC(strength=1e6, half=half)
    memory = strategy.init(NET, vector(0), STREAM)
    assert gradient_of(lambda live: penalty_of(strategy, live, memory, STREAM.tasks[0]), vector(1)).abs().max() == 0


def test_where_nothing_was_important_the_anchor_is_finite() -> None:
    """Outputs that no task has used yet have no Fisher: 0/0 must not come up."""
    memory = learnt(EWC(), [vector(1)])
    unused = memory["fisher"] == 0
    assert unused.any() and memory["anchor"].isfinite().all()


@pytest.mark.parametrize("samples", [None, 1, 5, 1000])
def test_ewc_computes_the_fisher_on_some_of_the_task(monkeypatch: pytest.MonkeyPatch, samples: int | None) -> None:
    seen: list[list[int]] = []
    usual = importance.fisher

    def noting(net: Any, theta: Any, task: Any, rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(rows.tolist())
        return usual(net, theta, task, rows, *rest)

    monkeypatch.setattr(importance, "fisher", noting)
    for seed in range(4):
        stream = small_stream(seed)
        strategy = EWC(fisher_samples=samples)
        strategy.after_task(NET, vector(1), strategy.init(NET, vector(0), stream), stream.tasks[1])
    own = set(STREAM.tasks[1].train.tolist())
    assert all(len(rows) == len(set(rows)) == min(samples or 24, 24) and set(rows) <= own for rows in seen)
    assert len({tuple(rows) for rows in seen}) > 1, "other rows (or another order) with another seed"


@pytest.mark.parametrize("batch", [1, 24])
def test_ewc_hands_its_fisher_options_on(batch: int) -> None:
    theta = vector(1)
    memory = learnt(EWC(label="true", fisher_batch=batch), [theta])
    torch.testing.assert_close(memory["fisher"], brute_fishers("true", [theta], batch)[0])


# ---- L2 and L1


@pytest.mark.parametrize("tasks", [0, 1, 3])
@pytest.mark.parametrize("towards", ["last", "zero"])
def test_l2_and_l1(towards: Any, tasks: int) -> None:
    thetas = [vector(n + 1) for n in range(tasks)]
    anchor = torch.zeros(NET.size, dtype=torch.float64) if towards == "zero" or not tasks else thetas[-1]
    weight = 0.7 if towards == "zero" or tasks else 0.0
    theta = vector(9)
    forms = {
        L2: (weight * ((theta - anchor) ** 2).sum(), 2 * weight * (theta - anchor)),
        L1: (weight * (theta - anchor).abs().sum(), weight * (theta - anchor).sign()),
    }
    for kind, (value, gradient) in forms.items():
        strategy = kind(strength=0.7, towards=towards)
        memory = learnt(strategy, thetas)
        torch.testing.assert_close(penalty_of(strategy, theta, memory, STREAM.tasks[-1]), value)
        got = gradient_of(lambda live, s=strategy, m=memory: penalty_of(s, live, m, STREAM.tasks[-1]), theta)
        torch.testing.assert_close(got, gradient)
        still = gradient_of(lambda live, s=strategy, m=memory: penalty_of(s, live, m, STREAM.tasks[-1]), anchor)
        assert (still == 0).all(), "no pull at the anchor itself"
        assert strategy.first_task_like_finetuning == (towards == "last")


@pytest.mark.parametrize("kind", [L1, L2])
@pytest.mark.parametrize("towards", ["last", "zero"])
def test_a_pull_in_training_is_a_plain_loop(towards: Any, kind: Any) -> None:
    alone = learner(kind(strength=0.02, towards=towards))
    net = module(alone.theta, 6)
    got = trained(alone)
    anchor, losses = torch.zeros(NET.size, dtype=torch.float64), []
    for index, task in enumerate(STREAM.tasks):
        for rows in order(task.train, index):
            difference = flat(net) - anchor
            pull = difference.square().sum() if kind is L2 else difference.abs().sum()
            on = 0.02 if towards == "zero" or index else 0.0
            loss = active_loss(net, STREAM, rows, index + 1).mean() + on * pull
            losses.append(loss.item())
            descend(net, loss)
        if towards == "last":
            anchor = flat(net).detach()
    torch.testing.assert_close(got, torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(alone.theta, flat(net).detach())


# ---- MAS and SI


@pytest.mark.parametrize(("mean", "batch"), [(True, 1), (False, 1), (True, 5), (False, 128)])
def test_mas_is_the_absolute_gradient_of_squared_active_outputs(mean: bool, batch: int) -> None:
    thetas = [vector(1), vector(2)]
    wanted = torch.zeros(NET.size, dtype=torch.float64)
    for index, theta in enumerate(thetas):
        rows = STREAM.tasks[index].train
        for start in range(0, len(rows), batch):
            total = torch.zeros_like(wanted)
            chunk = rows[start : start + batch]
            for row in chunk:  # one backward pass per sample
                net = module(theta, 6)
                outputs = net(STREAM.samples.images(row[None], torch.float64))[0, : 2 * (index + 1)]
                square = outputs.square().mean() if mean else outputs.square().sum()
                total += torch.cat([g.flatten() for g in torch.autograd.grad(square, list(net.parameters()))])
            wanted += (total / len(chunk)).abs() * len(chunk) / len(rows)
    strategy = MAS(strength=3, mean=mean, batch_size=batch)
    memory = learnt(strategy, thetas)
    torch.testing.assert_close(memory["importance"], wanted, rtol=1e-9, atol=1e-13)
    same_penalty(strategy, memory, STREAM.tasks[-1], lambda theta: 3 * (wanted * (theta - thetas[-1]) ** 2).sum())


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("rate", "momentum"), [(0.1, 0.0), (0.5, 0.9)])
def test_si_is_a_plain_loop(rate: float, momentum: float, clamp: bool) -> None:
    """ω = Σ -g·(θ' - θ) with g of the data term, Ω = Σ_t ω / (Δ² + ξ)."""
    strategy = SI(strength=0.01, damping=0.1, clamp=clamp)
    alone = learner(strategy, optimizer=SGD(lr=rate, momentum=momentum))
    net = module(alone.theta, 6)
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=momentum)
    got, losses, negative = trained(alone), [], False
    anchor = flat(net).detach()
    total = torch.zeros_like(anchor)
    for index, task in enumerate(STREAM.tasks):
        path = torch.zeros_like(anchor)
        for rows in order(task.train, index):
            before = flat(net).detach()
            data = active_loss(net, STREAM, rows, index + 1).mean()
            loss = data + 0.01 * (total * (flat(net) - anchor) ** 2).sum()
            grads = torch.autograd.grad(data, list(net.parameters()), retain_graph=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            path -= torch.cat([g.flatten() for g in grads]) * (flat(net).detach() - before)
        new = path / ((flat(net).detach() - anchor) ** 2 + 0.1)
        total += new.clamp_min(0) if clamp else new
        negative = negative or bool((new < 0).any())
        anchor = flat(net).detach()
    torch.testing.assert_close(got, torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(alone.theta, anchor)
    torch.testing.assert_close(alone.memory["importance"], total, rtol=1e-7, atol=1e-10)
    assert negative == (momentum > 0), "momentum goes uphill here, so that clamping matters"


# ---- replay


STORED = [2, 19, 30, 44]


def stored_memory(strategy: Replay, rows: list[int]) -> Memory:
    memory = strategy.init(NET, vector(0), STREAM)
    held = torch.full_like(memory["rows"], -1)
    held[: len(rows)] = torch.tensor(rows, dtype=torch.int64)
    return memory | {"rows": held}


def joined(strategy: Strategy, memory: Memory, task: Task, rows: torch.Tensor, step: int = 0) -> Batch:
    drawn = replace(task.key, step=torch.tensor(step), path="step/")
    samples = task.samples
    batch = Batch(rows, samples.y[rows], samples.task[rows], drawn, own=len(rows))
    return strategy.batch(NET, vector(0), memory, batch, replace(task, key=drawn))


def loss_of(strategy: Strategy, memory: Memory, batch: Batch, task: Task, theta: torch.Tensor) -> torch.Tensor:
    out = NET.forward(theta, task.samples.images(batch.row, torch.float64))
    return strategy.loss(NET, theta, memory, batch, out, task)


SHARES: list[Any] = [None, 0.0, 0.25, 1.0, "task"]
FILLS = ["balanced", "reservoir"]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("samples", [None, 1, 9])
@pytest.mark.parametrize("fill", FILLS)
def test_stored_samples_join_behind_the_batch(fill: Any, samples: int | None, share: Any) -> None:
    strategy, task = Replay(capacity=6, fill=fill, samples=samples, share=share), STREAM.tasks[2]
    memory, own = stored_memory(strategy, STORED), task.train[:5]
    batch = joined(strategy, memory, task, own)
    count = samples or 5
    assert batch.row[:5].tolist() == own.tolist() and batch.own == 5 and len(batch.row) == 5 + count
    behind = batch.row[5:].tolist()
    assert set(behind) <= set(STORED)
    assert batch.y.tolist() == [STREAM.samples.y[row] for row in batch.row]
    assert batch.task.tolist() == [2] * 5 + [int(STREAM.samples.task[row]) for row in behind]
    # the loss by hand
    theta = vector(3)
    each = active_loss(module(theta, 6), STREAM, batch.row, 3)
    part = 2 / 3 if share == "task" else share
    wanted = each.mean() if part is None else (1 - part) * each[:5].mean() + part * each[5:].mean()
    torch.testing.assert_close(loss_of(strategy, memory, batch, task, theta), wanted.detach())
    if batch.weight is not None:
        assert batch.weight.dtype == torch.float64 and batch.weight.shape == batch.row.shape


@pytest.mark.parametrize("fill", FILLS)
def test_stored_samples_are_drawn_with_replacement_and_equally_often(fill: Any) -> None:
    strategy, task = Replay(capacity=9, fill=fill, samples=50), STREAM.tasks[2]
    memory = stored_memory(strategy, STORED)
    drawn = [joined(strategy, memory, task, task.train[:2], step).row[2:] for step in range(80)]
    assert not torch.equal(drawn[0], drawn[1])
    counts = torch.stack([(torch.cat(drawn) == row).sum() for row in STORED])
    assert counts.sum() == 4000
    assert ((counts - 1000).abs() < 4.5 * 750**0.5).all(), counts


@pytest.mark.parametrize("share", SHARES)
def test_balanced_replay_learns_the_first_task_alone(share: Any) -> None:
    strategy, task = Replay(capacity=6, share=share), STREAM.tasks[0]
    batch = joined(strategy, strategy.init(NET, vector(0), STREAM), task, task.train[:5])
    assert batch.row.tolist() == task.train[:5].tolist() and batch.weight is None
    assert strategy.first_task_like_finetuning and not strategy.has("after_step")


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("share", SHARES)
def test_a_reservoir_with_nothing_stored_learns_the_batch_alone(share: float | None, samples: int | None) -> None:
    strategy, task = Replay(capacity=6, fill="reservoir", share=share, samples=samples), STREAM.tasks[0]
    memory, theta = strategy.init(NET, vector(0), STREAM), vector(3)
    batch = joined(strategy, memory, task, task.train[:5])
    alone = active_loss(module(theta, 6), STREAM, task.train[:5], 1).mean().detach()
    torch.testing.assert_close(loss_of(strategy, memory, batch, task, theta), alone)
    assert not strategy.first_task_like_finetuning


def test_a_reservoir_replays_the_first_task_from_its_second_step_on() -> None:
    JOINED.clear()
    strategy = Chain((Replay(capacity=5, fill="reservoir"), Noting()))
    trained(learner(strategy), replace(TRAINING, epochs=1))
    batches = order(STREAM.tasks[0].train, 0, replace(TRAINING, epochs=1))
    first, second = JOINED[0], JOINED[1]
    assert second[:7] == batches[1].tolist() and set(second[7:]) <= set(batches[0].tolist())
    assert first[:7] == batches[0].tolist() and len(first) == 14, "a step's shapes do not depend on what is stored"


def test_a_reservoir_takes_each_step_s_own_samples_once() -> None:
    strategy = Replay(capacity=100, fill="reservoir")
    alone = learner(strategy)
    trained(alone, replace(TRAINING, epochs=1))
    rows = alone.memory["rows"]
    wanted = torch.cat([torch.cat(order(task.train, t, replace(TRAINING, epochs=1)))
                        for t, task in enumerate(STREAM.tasks)])  # fmt: skip
    assert rows[:72].tolist() == wanted.tolist() and (rows[72:] == -1).all() and int(alone.memory["seen"]) == 72


@pytest.mark.parametrize("share", [None, 0.3, "task"])
@pytest.mark.parametrize("fill", FILLS)
def test_replay_in_training_is_a_plain_loop(fill: Any, share: Any) -> None:
    """The rows that joined are taken from training; what is learnt from them is computed by hand."""
    JOINED.clear()
    replay = Replay(capacity=8, fill=fill, share=share, samples=4)
    alone = learner(Chain((replay, Noting())))
    net = module(alone.theta, 6)
    got, losses, seen = trained(alone), [], iter(JOINED)
    for index, task in enumerate(STREAM.tasks):
        for number, own in enumerate(order(task.train, index)):
            rows = next(seen)
            assert rows[: len(own)] == own.tolist()
            alone_here = (index == 0) if fill == "balanced" else (index == number == 0)
            each = active_loss(net, STREAM, torch.tensor(rows), index + 1)
            new, old = each[: len(own)], each[len(own) :]
            if alone_here:
                loss = new.mean()
            elif share is None:
                loss = each.mean()
            else:
                part = index / (index + 1) if share == "task" else share
                loss = (1 - part) * new.mean() + part * old.mean()
            losses.append(loss.item())
            descend(net, loss)
            if fill == "balanced" and index:
                assert len(old) == 4 and all(STREAM.samples.task[row] < index for row in rows[len(own) :])
    assert next(seen, None) is None
    torch.testing.assert_close(got, torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(alone.theta, flat(net).detach())


# ---- joint training


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("make", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01)], ids=["sgd", "adam"])
def test_joint_is_a_fresh_network_on_all_data_so_far(make: Optimizer, keep: bool) -> None:
    alone = learner(Joint(), optimizer=make, keep=keep)
    start = alone.theta.clone()
    found, _ = train(alone, TRAINING, Watch())
    losses = []
    for index in range(3):
        net = module(start, 6)
        optimizer = (
            torch.optim.Adam(net.parameters(), 0.01) if isinstance(make, Adam)
            else torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        )  # fmt: skip
        for rows in order(torch.arange(24 * (index + 1)), index):
            loss = active_loss(net, STREAM, rows, index + 1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    torch.testing.assert_close(found["loss"], torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(alone.theta, flat(net).detach(), rtol=1e-6, atol=1e-9)
    assert found["stored_samples"].tolist() == [24, 48, 72]
    assert len(losses) == 2 * (4 + 7 + 11)


# ---- shared trunk


def head_of(net: Net, theta: torch.Tensor, units: list[int]) -> torch.Tensor:
    """The weights and biases of output units, cut from θ by hand."""
    trunk = HIDDEN * 10
    units_in_all = net.shapes["head.bias"][0]
    weight = theta[trunk : trunk + units_in_all * HIDDEN].reshape(-1, HIDDEN)
    return torch.cat([weight[units].flatten(), theta[trunk + units_in_all * HIDDEN :][units]])


def trunk_of(theta: torch.Tensor) -> torch.Tensor:
    return theta[: HIDDEN * 10]


@dataclass(frozen=True)
class Milestones(Strategy):
    """Keeps θ as it was after each task, under ``after``."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"after": theta.repeat(4, 1)}

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        after = memory["after"].clone()
        after[task.index + 1] = theta
        return theta, {"after": after}


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("trunk", ["trained", "slowed", "frozen"])
@pytest.mark.parametrize("make", [SGD(lr=0.1, momentum=0.9, weight_decay=0.1), AdamW(lr=0.01)], ids=["sgd", "adamw"])
def test_a_task_leaves_the_heads_of_others_alone_bit_by_bit(make: Optimizer, trunk: Any, scenario: str) -> None:
    alone = learner(Chain((SharedTrunk(trunk=trunk), Milestones())), small_stream(0, scenario), make)
    trained(alone)
    thetas = alone.memory["1/after"]
    for index in range(3):
        before, after = thetas[index], thetas[index + 1]
        own = [2 * index, 2 * index + 1]
        others = [k for k in range(6) if k not in own]
        assert torch.equal(head_of(NET, before, others), head_of(NET, after, others))
        assert (head_of(NET, before, own) != head_of(NET, after, own)).all()
        still = torch.equal(trunk_of(before), trunk_of(after))
        assert still == (trunk == "frozen" and index > 0)


@pytest.mark.parametrize(("trunk", "rate"), [("trained", 1.0), ("slowed", 0.1), ("slowed", 0.45), ("frozen", 0.0)])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_trunk_is_slowed_by_the_rate(scenario: str, trunk: Any, rate: float) -> None:
    """A plain loop: Adam says where θ goes, the trunk goes ``rate`` of the way, and the loss is the own head's."""
    stream = small_stream(0, scenario)
    alone = learner(SharedTrunk(trunk=trunk, rate=rate if trunk == "slowed" else 0.1), stream, Adam(lr=0.02))
    theta = alone.theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], 0.02)
    got, losses = trained(alone), []
    for index, task in enumerate(stream.tasks):
        for rows in order(task.train, index):
            x = stream.samples.images(rows, torch.float64).flatten(1)
            w1, b1 = theta[:54].reshape(HIDDEN, 9), theta[54:60]
            w2, b2 = theta[60:96].reshape(6, HIDDEN), theta[96:]
            logits = torch.relu(x @ w1.T + b1) @ w2.T + b2
            own = logits[:, 2 * index : 2 * index + 2]
            loss = torch.nn.functional.cross_entropy(own, stream.samples.y[rows] - 2 * index)
            optimizer.zero_grad()
            loss.backward()
            before = theta.detach().clone()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                slow = 1.0 if index == 0 else rate
                theta[:60] = before[:60] + slow * (theta[:60] - before[:60])
                for k in (k for k in range(6) if k // 2 != index):
                    theta[60 + HIDDEN * k : 60 + HIDDEN * (k + 1)] = before[60 + HIDDEN * k : 60 + HIDDEN * (k + 1)]
                    theta[96 + k] = before[96 + k]
    torch.testing.assert_close(got, torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(alone.theta, theta.detach(), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_loss_of_a_shared_trunk_is_over_each_sample_s_own_outputs(scenario: str) -> None:
    stream, theta = small_stream(0, scenario), vector(3)
    task, rows = stream.tasks[2], torch.tensor([0, 13, 30, 47, 50, 71])
    batch = batch_of(task, rows)._replace(weight=torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64))
    strategy = SharedTrunk()
    logits = module(theta, 6)(batch.images)
    wanted = torch.zeros((), dtype=torch.float64)
    for n, row in enumerate(rows.tolist()):
        head = row // 24
        own = torch.log_softmax(logits[n, 2 * head : 2 * head + 2], 0)
        wanted = wanted - (n + 1) * own[row // 12 - 2 * head] / 21
    got = strategy.loss(NET, theta, {}, batch, NET.forward(theta, batch.images), task)
    torch.testing.assert_close(got, wanted.detach())


def test_with_shared_outputs_there_is_one_head_that_every_task_trains() -> None:
    stream = small_stream(0, "domain")
    net = net_of(stream)
    alone = learner(Chain((SharedTrunk(trunk="frozen"), Milestones())), stream)
    trained(alone)
    thetas = alone.memory["1/after"]
    for before, after in itertools.pairwise(thetas[1:]):
        assert torch.equal(trunk_of(before), trunk_of(after))
        assert (head_of(net, before, [0, 1]) != head_of(net, after, [0, 1])).any()


# ---- fine-tuning


def test_finetuning_has_no_hook() -> None:
    assert not any(Finetune().has(hook) for hook in ("init", "batch", "loss", "penalty", "after_step", "after_task"))


# ---- chains


def test_penalties_add() -> None:
    parts: tuple[Strategy, ...] = (EWC(strength=7), L2(strength=0.3), Finetune(), L1(strength=0.2))
    thetas, theta = [vector(1), vector(2)], vector(3)
    memory = learnt(Chain(parts), thetas)
    wanted = sum(penalty_of(part, theta, learnt(part, thetas), STREAM.tasks[2]) for part in parts)
    torch.testing.assert_close(penalty_of(Chain(parts), theta, memory, STREAM.tasks[2]), wanted)


def test_each_part_has_a_memory_of_its_own() -> None:
    chain = Chain((EWC(), OnlineEWC(), L2()))
    thetas = [vector(1), vector(2)]
    memory = learnt(chain, thetas)
    assert set(memory) == {"0/fisher", "0/anchor", "1/fisher", "1/anchor", "2/anchor", "2/weight"}
    for number, part in enumerate(chain.parts):
        for name, value in learnt(part, thetas).items():
            torch.testing.assert_close(memory[f"{number}/{name}"], value)
    assert not torch.equal(memory["0/fisher"], memory["1/fisher"])


def test_a_chain_of_more_than_ten_parts_keeps_memories_apart() -> None:
    strengths = [0.1 * (n + 1) for n in range(12)]
    chain = Chain(tuple(L2(strength=strength) for strength in strengths))
    memory, theta = learnt(chain, [vector(1)]), vector(3)
    assert [float(memory[f"{n}/weight"]) for n in range(12)] == pytest.approx(strengths)
    wanted = sum(strengths) * (theta - vector(1)).square().sum()
    torch.testing.assert_close(penalty_of(chain, theta, memory, STREAM.tasks[1]), wanted)


def test_chains_in_chains_are_one_chain() -> None:
    a, b, c = EWC(), L2(), Replay()
    assert Chain((Chain((a, b)), c)).parts == Chain((a, Chain((b, c)))).parts == (a, b, c)
    assert Chain((a, b)) == Chain((a, b)) != Chain((b, a)) and hash(Chain((a, b))) == hash(Chain((a, b)))
    with pytest.raises(BadChain, match="at least one"):
        Chain(())


@pytest.mark.parametrize(
    "other", [SI(), SharedTrunk(), Replay(capacity=9, fill="reservoir"), EWC()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("first", [True, False])
def test_a_balanced_replay_stays_balanced_beside_a_part_that_acts_after_each_step(first: bool, other: Strategy) -> None:
    replay = Replay(capacity=13)
    alone = learner(Chain((replay, other) if first else (other, replay)))
    for index, task in enumerate(STREAM.tasks):
        batches = alone.begin(index).split(6)
        program = Program(alone, index, batches)
        for number, rows in enumerate(batches):
            program(number, rows)
            own = alone.memory[f"{int(not first)}/rows"]
            assert (STREAM.samples.task[own[own >= 0]] < index).all(), "it stores nothing within a task"
        alone.end(index)
        own = alone.memory[f"{int(not first)}/rows"]
        counts = torch.bincount(STREAM.samples.y[own[own >= 0]], minlength=6).tolist()
        seen = 2 * (task.index + 1)
        assert counts == [13 // seen] * seen + [0] * (6 - seen)


def test_two_replays_in_a_chain_store_and_draw_other_samples() -> None:
    chain, task = Chain((Replay(capacity=12), Replay(capacity=12))), STREAM.tasks[0]
    memory = learnt(chain, [vector(1)])
    assert not torch.equal(memory["0/rows"], memory["1/rows"]), "other rows are chosen"
    held = memory["0/rows"]
    batch = joined(chain, memory | {"1/rows": held}, STREAM.tasks[1], STREAM.tasks[1].train[:8])
    first, second = batch.row[8:16], batch.row[16:]
    assert len(batch.row) == 24 and batch.own == 8 and not torch.equal(first, second)
    assert set(batch.row[8:].tolist()) <= set(held.tolist()) <= set(task.train.tolist())


def test_two_reservoirs_with_nothing_stored_learn_the_batch_alone() -> None:
    chain, task = Chain((Replay(capacity=6, fill="reservoir"), Replay(capacity=6, fill="reservoir"))), STREAM.tasks[0]
    memory, theta = chain.init(NET, vector(0), STREAM), vector(3)
    batch = joined(chain, memory, task, task.train[:5])
    alone = active_loss(module(theta, 6), STREAM, task.train[:5], 1).mean().detach()
    torch.testing.assert_close(loss_of(chain, memory, batch, task, theta), alone)


def test_two_reservoirs_in_a_chain_keep_other_samples() -> None:
    alone = learner(Chain((Replay(capacity=9, fill="reservoir"), Replay(capacity=9, fill="reservoir"))))
    trained(alone)
    assert int(alone.memory["0/seen"]) == int(alone.memory["1/seen"]) == 2 * 72
    assert not torch.equal(alone.memory["0/rows"], alone.memory["1/rows"])


@dataclass(frozen=True)
class OwnLoss(Strategy):
    def loss(self, net: Net, theta: Any, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        return super().loss(net, theta, memory, batch, out, task)


@dataclass(frozen=True)
class OwnPredict(Strategy):
    def predict(self, net: Net, theta: Any, memory: Memory, x: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        return super().predict(net, theta, memory, x, tasks) + memory["bonus"]

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"bonus": theta.new_tensor(5.0)}


@pytest.mark.parametrize(
    ("parts", "names", "hook"),
    [
        ((SharedTrunk(), OwnLoss()), ("SharedTrunk", "OwnLoss"), "loss"),
        ((OwnLoss(), EWC(), OwnLoss()), ("OwnLoss",), "loss"),
        ((Cumulative(), Replay(), Cumulative()), ("Cumulative",), "rows"),
        ((OwnPredict(), OwnPredict()), ("OwnPredict",), "predict"),
    ],
    ids=["loss", "loss apart", "rows", "predict"],
)
def test_two_losses_rows_or_predictions_are_refused(
    parts: tuple[Strategy, ...], names: tuple[str, ...], hook: str
) -> None:
    with pytest.raises(BadChain, match=f"'{hook}'") as refused:
        Chain(parts)
    assert all(name in str(refused.value) for name in names)


@pytest.mark.parametrize("one", [Joint(), FromScratch()])
def test_what_begins_each_task_with_another_network_is_not_chained(one: Strategy) -> None:
    for parts in ((one, EWC()), (Replay(), one)):
        with pytest.raises(BadChain, match=f"{type(one).__name__} begins each task with a network of its own.*alone"):
            Chain(parts)
    assert Chain((one,)).parts == (one,)


@pytest.mark.parametrize("part", ["ewc", EWC, None], ids=str)
def test_a_chain_is_made_of_strategies(part: Any) -> None:
    with pytest.raises(BadChain, match=r"a chain is made of strategies, not of .*'ewc\+replay'"):
        Chain((Replay(), part))


def test_a_method_whose_name_is_nearly_a_hooks_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Mine.penalti is no hook.*did you mean 'penalty'\?"):
        type("Mine", (Strategy,), {"penalti": lambda self: 0})
    for name in ("befor_task", "after_tasks", "gradients"):
        with pytest.raises(TypeError, match="is no hook"):
            type("Mine", (Strategy,), {name: lambda self: 0})
    type("Mine", (Strategy,), {"_penalti": lambda self: 0, "herd": lambda self: 0, "batch_size": 3})


class Bending(Strategy):
    """A gradient hook beside a hook that reads the data term's gradient, and no penalty."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"read": torch.zeros_like(theta), "given": torch.zeros_like(theta)}

    def gradient(self, net: Any, theta: Any, memory: Any, gradient: Any, batch: Any, task: Any) -> torch.Tensor:
        return 3 * gradient

    def after_step(self, net: Any, theta: Any, memory: Memory, step: Step, task: Any) -> tuple[Any, Memory]:
        moved = (step.before - theta) / 0.1
        return theta, {"read": memory["read"] + step.gradient, "given": memory["given"] + moved}


def test_the_gradient_that_a_step_tells_is_not_the_bent_one() -> None:
    alone = learner(Bending(), optimizer=SGD(lr=0.1))
    trained(alone)
    memory = alone.memory
    torch.testing.assert_close(memory["given"], 3 * memory["read"])
    assert memory["read"].abs().max() > 0.01


@pytest.mark.parametrize("first", [True, False])
def test_the_one_loss_prediction_and_rows_hold_wherever_they_stand(first: bool) -> None:
    def chain(one: Strategy) -> Chain:
        return Chain((one, L2()) if first else (L2(), one))

    theta, task = vector(3), STREAM.tasks[1]
    batch = batch_of(task, torch.tensor([0, 25, 47]))
    out = NET.forward(theta, batch.images)
    got = chain(SharedTrunk()).loss(NET, theta, chain(SharedTrunk()).init(NET, theta, STREAM), batch, out, task)
    assert torch.equal(got, SharedTrunk().loss(NET, theta, {}, batch, out, task))
    predicting = chain(OwnPredict())
    scores = predicting.predict(NET, theta, predicting.init(NET, theta, STREAM), batch.images, batch.task)
    assert torch.equal(scores, out.logits + 5)
    cumulative = chain(Cumulative())
    memory = learnt(cumulative, [vector(1)])
    assert cumulative.rows(memory, task).tolist() == list(range(48)) and not cumulative.restarts_optimizer
    assert chain(PackNet()).restarts_optimizer
    assert not chain(Replay(fill="reservoir")).first_task_like_finetuning
    assert chain(Replay()).first_task_like_finetuning


def test_a_chain_without_a_penalty_has_none() -> None:
    """As a single strategy without the hook: a zero."""
    theta = vector(3)
    single, chain = (
        penalty_of(one, theta, {}, STREAM.tasks[0]) for one in (Finetune(), Chain((Finetune(), Cumulative())))
    )
    assert float(single) == float(chain) == 0


@dataclass(frozen=True)
class Added(Strategy):
    """Adds 1 to the gradient and to θ."""

    def gradient(
        self, net: Net, theta: Any, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return gradient + 1

    def after_step(self, net: Net, theta: Any, memory: Memory, step: Step, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta + 1, memory

    def before_task(self, net: Net, theta: Any, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta + 1, memory

    after_task = before_task


@dataclass(frozen=True)
class Doubled(Strategy):
    def gradient(
        self, net: Net, theta: Any, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return 2 * gradient

    def after_step(self, net: Net, theta: Any, memory: Memory, step: Step, task: Task) -> tuple[torch.Tensor, Memory]:
        return 2 * theta, memory

    def before_task(self, net: Net, theta: Any, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return 2 * theta, memory

    after_task = before_task


def test_gradients_and_theta_pass_from_left_to_right() -> None:
    task, theta = STREAM.tasks[0], vector(3)
    batch = batch_of(task, task.train[:3])
    step = Step(batch, NET.forward(theta, batch.images), set(), before=theta, gradient=theta)
    for parts, wanted in (((Added(), Doubled()), 2 * (theta + 1)), ((Doubled(), Added()), 2 * theta + 1)):
        chain = Chain(parts)
        torch.testing.assert_close(chain.gradient(NET, theta, {}, theta, batch, task), wanted)
        torch.testing.assert_close(chain.after_step(NET, theta, {}, step, task)[0], wanted)
        torch.testing.assert_close(chain.before_task(NET, theta, {}, task)[0], wanted)
        torch.testing.assert_close(chain.after_task(NET, theta, {}, task)[0], wanted)


DRAWN: dict[tuple[str, str], list[float]] = {}  # (hook, key of): what each part drew


def note(hook: str, batch: Batch | None, task: Task) -> None:
    for name, drawn in (("task", task.key), *((("batch", batch.key),) if batch else ())):
        DRAWN.setdefault((hook, name), []).append(float(drawn.uniform("number", 1)))


@dataclass(frozen=True)
class Drawing(Strategy):
    """Draws a number for one purpose in every hook of a step."""

    def batch(self, net: Net, theta: Any, memory: Memory, batch: Batch, task: Task) -> Batch:
        note("batch", batch, task)
        return batch

    def penalty(self, net: Net, theta: Any, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        note("penalty", batch, task)
        return theta.new_zeros(())

    def gradient(
        self, net: Net, theta: Any, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        note("gradient", batch, task)
        return gradient

    def after_step(self, net: Net, theta: Any, memory: Memory, step: Step, task: Task) -> tuple[torch.Tensor, Memory]:
        note("after_step", step.batch, task)
        return theta, memory


@dataclass(frozen=True)
class DrawingLoss(Drawing):
    """Also in its loss."""

    def loss(self, net: Net, theta: Any, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        note("loss", batch, task)
        return super().loss(net, theta, memory, batch, out, task)


@pytest.mark.parametrize("source", ["batch", "task"])
@pytest.mark.parametrize("hook", ["batch", "penalty", "gradient", "after_step"])
def test_parts_of_a_chain_draw_other_numbers(hook: str, source: str) -> None:
    DRAWN.clear()
    trained(learner(Chain((Drawing(), Drawing()))), replace(TRAINING, epochs=1, iterations=1))
    a, b = DRAWN[hook, source][:2]
    assert a != b, f"both parts draw {a} in {hook}, from the key of the {source}"


@pytest.mark.parametrize("source", ["batch", "task"])
@pytest.mark.parametrize("hook", ["loss", "penalty", "gradient", "after_step"])
def test_a_part_of_a_chain_draws_the_same_for_one_purpose_in_every_hook_of_a_step(hook: str, source: str) -> None:
    """As it does alone."""
    for strategy in (DrawingLoss(), Chain((EWC(), DrawingLoss()))):
        DRAWN.clear()
        trained(learner(strategy), replace(TRAINING, epochs=1, iterations=1))
        wanted = DRAWN["batch", "batch"][0]
        assert DRAWN[hook, source][0] == wanted, f"{strategy}: {hook} draws another number than batch"


@pytest.mark.parametrize("text", ["ewc:strength=40+replay:capacity=8", "replay:capacity=8+ewc:strength=40"])
def test_ewc_and_replay_together_are_a_plain_loop(text: str) -> None:
    JOINED.clear()
    chain = Chain((make_strategy(text), Noting()))
    alone = learner(chain, optimizer=Adam(lr=0.01))
    net, seen = module(alone.theta, 6), iter(JOINED)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    got, losses = trained(alone), []
    terms: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index, task in enumerate(STREAM.tasks):
        for own in order(task.train, index):
            rows = torch.tensor(next(seen))
            assert len(rows) == (2 if index else 1) * len(own) and (STREAM.samples.task[rows[len(own) :]] < index).all()
            loss = active_loss(net, STREAM, rows, index + 1).mean()
            # one term for each task; what EWC leaves out does not depend on θ, but it is part of the loss
            pull = sum((f * (flat(net) - anchor) ** 2).sum() for f, anchor in terms)
            total = loss + 0.5 * 40 * pull
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            fisher = sum((f for f, _ in terms), torch.zeros(NET.size, dtype=torch.float64))
            middle = sum((f * anchor for f, anchor in terms), torch.zeros_like(fisher))
            squares = sum((f * anchor**2 for f, anchor in terms), torch.zeros_like(fisher))
            used = fisher > 0
            constant = 0.5 * 40 * (squares[used] - middle[used] ** 2 / fisher[used]).sum()
            losses.append(total.item() - constant.item())
        theta = flat(net).detach()
        terms.append((importance.fisher(NET, theta, task, task.train, "expected"), theta))
    torch.testing.assert_close(got, torch.tensor(losses, dtype=torch.float64), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(alone.theta, flat(net).detach(), rtol=1e-6, atol=1e-8)
