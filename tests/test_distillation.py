"""Distillation and what lives on it, against formulas, plain loops, torch modules and avalanche-lib."""

from __future__ import annotations

import dataclasses
import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import continual as cl
from continual.conformance import check, small_stream
from continual.errors import BadChain
from continual.learning import distill
from continual.learning.models import MLP, Out
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.learning.train import Watch, train
from continual.learning.training import Training
from continual.strategies import fdr
from continual.strategies.der import DER
from continual.strategies.der_pp import DERPlusPlus
from continual.strategies.fdr import FDR
from continual.strategies.finetune import Finetune
from continual.strategies.generative_replay import GenerativeReplay, _bound
from continual.strategies.lwf import LwF
from continual.streams.stream import Stream, Task

STREAM = small_stream(0)  # six classes of 12 images, two in each of three tasks, class scenario
NET = MLP(layers=(6,)).build(STREAM.shape, STREAM.units)
SMALL = {"layers": (5, 4), "latent": 3}


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(seed: int) -> torch.Tensor:
    return 0.4 * numbers(seed, NET.size)


def images(rows: torch.Tensor, stream: Stream = STREAM) -> torch.Tensor:
    return stream.samples.images(rows, torch.float64)


def batch_of(task: Task, size: int = 5, step: int = 0) -> Batch:
    rows, samples = task.train[step * size : (step + 1) * size], task.samples
    key = dataclasses.replace(task.key, step=torch.tensor(step))
    return Batch(rows, samples.y[rows], samples.task[rows], key, own=len(rows), x=samples.images(rows, torch.float64))


def penalty(strategy: Strategy, theta: torch.Tensor, memory: Memory, batch: Batch, task: Task) -> torch.Tensor:
    """The penalty of a step of this batch and what joins it."""
    batch = strategy.batch(NET, theta, memory, batch, task)
    return strategy.penalty(NET, theta, memory, batch, NET.forward(theta, batch.images, batch.task), task)


def close(got: Any, wanted: Any, **options: float) -> None:
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(wanted).to(got.dtype), **options)


def softened(logits: torch.Tensor, units: list[int], temperature: float) -> torch.Tensor:
    """Probabilities to the power 1/T, normalised, over some units."""
    p = torch.softmax(logits[:, units], 1) ** (1 / temperature)
    return p / p.sum(1, keepdim=True)


def divergence(logits: torch.Tensor, teacher: torch.Tensor, units: list[int], temperature: float) -> torch.Tensor:
    """Of each sample, with the loops of the formula: (B,)."""
    q, p = softened(logits, units, temperature), softened(teacher, units, temperature)
    return torch.stack([sum(p[b, k] * (p[b, k] / q[b, k]).log() for k in range(len(units))) for b in range(len(q))])


# ---- the losses


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("squared", [False, True])
def test_soft_targets_are_the_formula(temperature: float, squared: bool) -> None:
    logits, teacher, weight = numbers(0, 4, 6), numbers(1, 4, 6), torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
    units, factor = [0, 2, 3], temperature**2 if squared else 1
    active = torch.zeros(6, dtype=torch.bool)
    active[units] = True
    each = factor * divergence(logits, teacher, units, temperature)
    close(distill.soft_targets(logits, teacher, active, temperature, squared=squared), each.mean())
    got = distill.soft_targets(logits, teacher, active, temperature, squared=squared, weight=weight)
    close(got, (each * weight).sum() / weight.sum())
    every = factor * divergence(logits, teacher, list(range(6)), temperature).mean()
    close(distill.soft_targets(logits, teacher, None, temperature, squared=squared), every)
    heads = torch.stack([active, ~active])[:, None]
    other = factor * divergence(logits, teacher, [1, 4, 5], temperature)
    got = distill.soft_targets(logits, teacher, heads, temperature, squared=squared)
    close(got, (each.mean() + other.mean()) / 2)
    got = distill.soft_targets(logits, teacher, heads, temperature, squared=squared, weight=weight)
    close(got, (weight * (each + other) / 2).sum() / weight.sum())


def test_soft_targets_have_the_gradient_of_a_cross_entropy_and_are_zero_at_the_teacher() -> None:
    logits, teacher = numbers(0, 4, 6).requires_grad_(), numbers(1, 4, 6)
    active = torch.tensor([True] * 4 + [False] * 2)
    got = torch.autograd.grad(distill.soft_targets(logits, teacher, active, 2.0, squared=True), logits)[0]
    wanted = torch.zeros(4, 6, dtype=torch.float64)
    wanted[:, :4] = 2 * (torch.softmax(logits[:, :4] / 2, 1) - torch.softmax(teacher[:, :4] / 2, 1)) / 4
    close(got, wanted.detach())
    assert float(distill.soft_targets(teacher, teacher, active, 3.0, squared=True)) == 0


def test_the_network_s_probabilities_may_be_among_more_outputs() -> None:
    logits, teacher = numbers(0, 4, 6), numbers(1, 4, 6)
    old, now = torch.arange(6) < 2, torch.arange(6) < 4
    q, p = softened(logits, [0, 1, 2, 3], 2.0)[:, :2], softened(teacher, [0, 1], 2.0)
    got = distill.soft_targets(logits, teacher, old, 2.0, squared=False, among=now)
    close(got, (p * (p / q).log()).sum(1).mean())


@pytest.mark.parametrize("temperature", [0.1, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_logits_give_no_nan(dtype: torch.dtype, temperature: float) -> None:
    """With the mask, without it, and where a sample weighs nothing or has no active output."""
    active = torch.tensor([True, True, False, False])
    lowest = torch.finfo(dtype).min
    logits, teacher = ((30 * numbers(n, 3, 4).to(dtype)).masked_fill(~active, lowest) for n in range(2))
    logits.requires_grad_()
    none = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    for mask in (None, active, none):
        for weight in (None, torch.zeros(3, dtype=dtype)):
            found = distill.soft_targets(logits, teacher, mask, temperature, squared=True, weight=weight)
            targets = teacher.sigmoid()
            found = found + distill.sigmoid_targets(logits, targets, active if mask is None else mask, weight)
            gradient = torch.autograd.grad(found, logits)[0]
            assert found.isfinite() and gradient.isfinite().all()
            assert (gradient[:, 2:][:2] == 0).all()


def test_sigmoid_targets_are_the_formula() -> None:
    logits, targets, weight = numbers(0, 4, 6), numbers(1, 4, 6).sigmoid(), torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
    active = torch.arange(6) < 4
    g = 1 / (1 + (-logits).exp())
    each = -(targets * g.log() + (1 - targets) * (1 - g).log())
    close(distill.sigmoid_targets(logits, targets, torch.ones_like(active)), each.sum(1).mean())
    close(distill.sigmoid_targets(logits, targets, active), each[:, :4].sum(1).mean())
    got = distill.sigmoid_targets(logits, targets, active, weight)
    close(got, (each[:, :4].sum(1) * weight).sum() / weight.sum())


def test_squared_error_is_the_formula() -> None:
    a, b = numbers(0, 4, 6), numbers(1, 4, 6)
    active = torch.arange(6) <= torch.arange(4)[:, None]
    close(distill.squared_error(a, b), torch.nn.functional.mse_loss(a, b))
    close(distill.squared_error(a, b, error="sum"), (a - b).norm(dim=1).square().mean())
    rows = [(a[n, : n + 1] - b[n, : n + 1]).square() for n in range(4)]
    close(distill.squared_error(a, b, active), sum(row.mean() for row in rows) / 4)
    close(distill.squared_error(a, b, active, "sum"), sum(row.sum() for row in rows) / 4)


# ---- every strategy keeps to the contract, with its options


@pytest.mark.parametrize(
    "strategy",
    [
        LwF(), LwF(schedule="share", among="active"), DER(capacity=10), DER(capacity=10, over="seen", error="sum"),
        DERPlusPlus(capacity=10, samples=3), FDR(capacity=9), FDR(distance="root"), GenerativeReplay(**SMALL),
        GenerativeReplay(**SMALL, soft=True),
    ],
    ids=repr,
)  # fmt: skip
def test_conformance(strategy: Strategy) -> None:
    check(strategy)


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize(
    "strategy",
    [
        LwF(), LwF(among="active"), DERPlusPlus(over="seen"), FDR(), GenerativeReplay(**SMALL),
        GenerativeReplay(**SMALL, soft=True),
    ],
    ids=repr,
)  # fmt: skip
def test_every_scenario_works_mapped_as_looped(strategy: Strategy, scenario: str) -> None:
    def trained(seeds: list[int]) -> torch.Tensor:
        recipe = Recipe(NET_OF[scenario], strategy, SGD(lr=0.1), Constant(), True, "float64")
        learners = Learners(recipe, [small_stream(seed, scenario) for seed in seeds], seeds)
        assert not train(learners, Training(epochs=1, batch=8, precision="float64", train_samples=0), Watch())[1]
        return learners.theta.detach()

    close(trained([0, 1])[1], trained([1]), rtol=1e-7, atol=1e-9)


NET_OF = {name: MLP(layers=(6,)).build((1, 3, 3), small_stream(0, name).units) for name in ("task", "domain", "class")}


# ---- LwF


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("heads", ["mean", "sum"])
@pytest.mark.parametrize("squared", [False, True])
def test_lwf_is_its_equation(scenario: str, heads: Any, squared: bool) -> None:
    """Each old task's outputs by themselves, all old ones together, or all outputs."""
    net, task = NET_OF[scenario], small_stream(0, scenario).tasks[2]
    theta, teacher = (0.4 * numbers(n, net.size) for n in range(2))
    strategy, batch = LwF(strength=1.5, temperature=3, heads=heads, squared=squared), batch_of(task)
    out = net.forward(theta, batch.images)
    got = strategy.penalty(net, theta, {"teacher": teacher}, batch, out, task)
    groups = {"class": [[0, 1, 2, 3]], "task": [[0, 1], [2, 3]], "domain": [[0, 1]]}[scenario]
    each = [divergence(out.logits, net.logits(teacher, batch.images), units, 3).mean() for units in groups]
    factor = (9 if squared else 1) / (len(each) if heads == "mean" else 1)
    close(got, 1.5 * factor * sum(each))
    first = small_stream(0, scenario).tasks[0]
    assert float(strategy.penalty(net, theta, {"teacher": teacher}, batch, out, first)) == 0


def test_lwf_takes_the_network_as_teacher_and_leaves_joined_samples_out() -> None:
    task, theta, strategy = STREAM.tasks[1], vector(0), LwF()
    memory = strategy.after_task(NET, vector(1), strategy.init(NET, theta, STREAM), STREAM.tasks[0])[1]
    batch = batch_of(task)
    assert torch.equal(memory["teacher"], vector(1))
    joined = batch.join(torch.tensor([3, 4]), task)
    close(penalty(strategy, theta, memory, joined, task), penalty(strategy, theta, memory, batch, task))


def test_lwf_shares_are_those_of_the_tasks_and_new_outputs_can_count() -> None:
    """1/t of the data term and 1 - 1/t of the distillation; the cross-entropy of van de Ven's code, with appended
    zeros, differs by the entropy of the targets."""
    theta, memory = vector(0), {"teacher": vector(1)}
    shared, fixed = LwF(schedule="share", among="active"), LwF(among="active")
    assert shared.has("loss") and not fixed.has("loss")
    for index, task in enumerate(STREAM.tasks):
        batch = batch_of(task)
        out = NET.forward(theta, batch.images)
        new = 1 / (index + 1)
        data = shared.loss(NET, theta, memory, batch, out, task)
        close(data, new * Finetune().loss(NET, theta, memory, batch, out, task))
        full = penalty(fixed, theta, memory, batch, task)
        close(penalty(shared, theta, memory, batch, task), (1 - new) * full)
        if index:
            log_q = torch.log_softmax(out.logits[:, : 2 * index + 2] / 2, 1)[:, : 2 * index]
            p = torch.softmax(NET.logits(memory["teacher"], batch.images)[:, : 2 * index] / 2, 1)
            close(full, (p * p.log() - p * log_q).sum(1).mean())


def test_lwf_trains_as_the_plug_in_of_avalanche_does() -> None:
    """Their loss and gradient for the same logits and teacher; one head, and two heads, whose losses they add up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
        from avalanche.training.plugins import LwFPlugin
    task, theta, teacher = STREAM.tasks[2], vector(0), vector(1)
    modules = []
    for weights in (theta, teacher):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6))
        torch.nn.utils.vector_to_parameters(weights.clone(), net.double().parameters())
        modules.append(net)
    plugin = LwFPlugin(alpha=0.7, temperature=3)
    plugin.lwf.prev_model, plugin.lwf.prev_classes_by_task = modules[1], {0: {0, 1, 2, 3}}
    batch = batch_of(task)
    state = SimpleNamespace(mb_x=batch.images, mb_output=modules[0](batch.images), model=modules[0], loss=0)
    plugin.before_backward(state)
    parameters = list(modules[0].parameters())
    wanted = torch.cat([part.flatten() for part in torch.autograd.grad(state.loss, parameters)])
    live, strategy = theta.clone().requires_grad_(), LwF(strength=0.7, temperature=3)
    got = penalty(strategy, live, {"teacher": teacher}, batch, task)
    close(got, state.loss)
    close(torch.autograd.grad(got, live)[0], wanted)

    logits, before = (NET.logits(weights, batch.images) for weights in (theta, teacher))
    apart = sum(plugin.lwf._distillation_loss(logits, before, units) for units in ({0, 1}, {2, 3}))
    by_head = dataclasses.replace(STREAM.tasks[2], outputs=small_stream(0, "task").tasks[2].outputs)
    got = penalty(LwF(temperature=3, heads="sum"), theta, {"teacher": teacher}, batch, by_head)
    close(got, apart)


# ---- DER


def filled(strategy: DER, theta: torch.Tensor, tasks: int = 2, size: int = 5) -> tuple[Memory, dict[str, Any]]:
    """The memory after some tasks came by, and the same by a loop over samples."""
    memory = strategy.init(NET, theta, STREAM)
    rows, logits, seen = [-1] * strategy.capacity, torch.zeros(strategy.capacity, 6, dtype=torch.float64), 0
    for task in STREAM.tasks[:tasks]:
        for step in range(len(task.train) // size):
            batch = batch_of(task, size, step)
            out = NET.forward(theta + 0.01 * step, batch.images)
            joined = batch.join(torch.tensor([0]), task)  # not the step's own: must not be stored
            more = Out(*(torch.cat([part, part[:1]]) for part in out))
            memory = strategy.after_step(NET, theta, memory, Step(joined, more, set()), task)[1]
            order = torch.arange(seen, seen + size)
            drawn = batch.key.integers("reservoir", size, order + 1)
            for n, row in enumerate(batch.row.tolist()):
                slot = seen if seen < strategy.capacity else int(drawn[n])
                if slot < strategy.capacity:
                    rows[slot], logits[slot] = row, out.logits[n]
                seen += 1
    return memory, {"rows": rows, "logits": logits, "seen": seen}


@pytest.mark.parametrize("capacity", [4, 17, 100])
def test_the_reservoir_of_der_keeps_rows_with_their_logits(capacity: int) -> None:
    memory, loop = filled(DER(capacity=capacity), vector(0))
    assert memory["rows"].tolist() == loop["rows"] and int(memory["seen"]) == loop["seen"] == 40
    close(memory["logits"], loop["logits"])
    assert capacity == 4 or set(STREAM.samples.task[memory["rows"].clamp_min(0)].tolist()) == {0, 1}


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("error", ["mean", "sum"])
@pytest.mark.parametrize("over", ["all", "seen"])
@pytest.mark.parametrize("samples", [None, 7])
@pytest.mark.parametrize("capacity", [9, 100])
def test_der_and_der_pp_are_their_equations(
    error: Any, over: Any, samples: int | None, capacity: int, index: int
) -> None:
    """Two independent draws, the labels' one over the active outputs; written out sample by sample."""
    options: Any = {"capacity": capacity, "samples": samples, "error": error, "over": over}
    theta, task = vector(1), STREAM.tasks[index]
    memory, _ = filled(DER(capacity=capacity), vector(0))
    batch = batch_of(task)
    n, stored = samples or 5, min(40, capacity)
    first, second = (batch.key.integers(purpose, n, stored).tolist() for purpose in ("logits", "labels"))
    assert first != second
    dark = []
    for slot in first:
        row = memory["rows"][slot]
        units = 6 if over == "all" else 2 * int(STREAM.samples.task[row]) + 2
        gap = (NET.logits(theta, images(row[None]))[0] - memory["logits"][slot])[:units].square()
        dark.append(gap.mean() if error == "mean" else gap.sum())
    labels = []
    for slot in second:
        row = memory["rows"][slot]
        active = NET.logits(theta, images(row[None]))[0, : 2 * index + 2]
        labels.append(-torch.log_softmax(active, 0)[STREAM.samples.y[row]])
    wanted = 0.3 * sum(dark) / n
    close(penalty(DER(alpha=0.3, **options), theta, memory, batch, task), wanted)
    got = penalty(DERPlusPlus(alpha=0.3, beta=0.8, **options), theta, memory, batch, task)
    close(got, wanted + 0.8 * sum(labels) / n)


@pytest.mark.parametrize("strategy", [DER(), DERPlusPlus()], ids=repr)
def test_der_has_no_penalty_until_something_is_stored(strategy: DER) -> None:
    theta, task = vector(0).requires_grad_(), STREAM.tasks[0]
    found = penalty(strategy, theta, strategy.init(NET, vector(0), STREAM), batch_of(task), task)
    assert float(found.detach()) == 0 and not torch.autograd.grad(found, theta)[0].any()


def test_der_replays_a_single_stored_sample() -> None:
    strategy, task, theta = DER(alpha=0.3, capacity=4), STREAM.tasks[1], vector(1)
    memory = strategy.init(NET, theta, STREAM) | {"seen": torch.tensor(1)}
    memory["rows"][0], memory["logits"][0] = 13, numbers(7, 6)
    gap = NET.logits(theta, images(torch.tensor([13])))[0] - memory["logits"][0]
    close(penalty(strategy, theta, memory, batch_of(task, 1), task), 0.3 * gap.square().mean())


def test_der_pp_has_the_loss_of_avalanche_s_der_for_one_draw() -> None:
    """Theirs uses one draw for both terms, all outputs, and a memory that is filled after a task: with our memory's
    images, logits and labels in its replay batch, and our two draws made one, loss and gradient are equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
        from avalanche.training.supervised.der import DER as Theirs
    theta, task = vector(1), STREAM.tasks[2]
    ours = OneDraw(alpha=0.3, beta=0.8, capacity=100, samples=5)
    memory, _ = filled(ours, vector(0))
    batch = batch_of(task)
    slots = ours._draw("logits", memory, batch)
    rows = memory["rows"][slots]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6))
    torch.nn.utils.vector_to_parameters(theta.clone(), net.double().parameters())
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    theirs = Theirs(model=net, optimizer=optimizer, mem_size=100, batch_size_mem=5, alpha=0.3, beta=0.8,
                    train_mb_size=5, evaluator=None)  # fmt: skip
    theirs.replay_loader = iter(
        [(images(rows), STREAM.samples.y[rows], STREAM.samples.task[rows], memory["logits"][slots])]
    )
    theirs.dataloader = [[batch.images, batch.y, batch.task]]
    theirs._stop_training = False
    theirs.training_epoch()
    live = theta.clone().requires_grad_()
    loss = Finetune().loss(NET, live, {}, batch, NET.forward(live, batch.images), task)
    loss = loss + penalty(ours, live, memory, batch, task)
    close(theirs.loss.double().squeeze(), loss.detach(), rtol=1e-5, atol=1e-6)
    moved = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    close(theta - moved, torch.autograd.grad(loss, live)[0], rtol=1e-6, atol=1e-8)


class OneDraw(DERPlusPlus):
    """DER++ whose second draw is the first."""

    def _draw(self, purpose: str, memory: Memory, batch: Batch) -> torch.Tensor:
        return super()._draw("logits", memory, batch)


# ---- FDR


def remembered(strategy: FDR, thetas: list[torch.Tensor]) -> Memory:
    memory = strategy.init(NET, thetas[0], STREAM)
    for task, theta in zip(STREAM.tasks, thetas, strict=False):
        memory = strategy.after_task(NET, theta, memory, task)[1]
    return memory


@pytest.mark.parametrize("chunk", [4, fdr.CHUNK])
def test_fdr_stores_the_outputs_of_each_task_s_end(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """A row of task t has the softmax, over the outputs seen then, of the network at the end of task t."""
    monkeypatch.setattr(fdr, "CHUNK", chunk)
    thetas = [vector(n) for n in range(3)]
    memory = remembered(FDR(capacity=13), thetas)
    kept = [int(row) for row in memory["rows"] if row >= 0]
    assert len(kept) == 12 and memory["rows"][12] == -1 and not memory["outputs"][12].any()
    for slot, row in enumerate(kept):
        t = int(STREAM.samples.task[row])
        wanted = torch.zeros(6, dtype=torch.float64)
        logits = NET.logits(thetas[t], images(torch.tensor([row])))[0]
        wanted[: 2 * t + 2] = torch.softmax(logits[: 2 * t + 2], 0)
        close(memory["outputs"][slot], wanted)


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("distance", ["norm", "root", "square"])
@pytest.mark.parametrize("samples", [None, 9])
def test_fdr_is_its_equation(distance: Any, samples: int | None, index: int) -> None:
    """Over the outputs that are active now."""
    options: Any = {"distance": distance, "samples": samples} | ({} if distance == "square" else {"rounding": 0.01})
    strategy, task = FDR(strength=1.5, capacity=13, **options), STREAM.tasks[index]
    memory, theta = remembered(strategy, [vector(n) for n in range(index)]), vector(2)
    batch, n = batch_of(task), samples or 5
    squares = []
    for slot in batch.key.integers("replay", n, 12).tolist():
        now = torch.softmax(NET.logits(theta, images(memory["rows"][slot][None]))[0, : 2 * index + 2], 0)
        squares.append(float((now - memory["outputs"][slot, : 2 * index + 2]).square().sum()))
    wanted = {
        "norm": sum(math.hypot(math.sqrt(square), 0.01) - 0.01 for square in squares) / n,
        "root": math.hypot(math.sqrt(sum(squares) / n), 0.01) - 0.01,
        "square": sum(squares) / n,
    }[distance]
    close(penalty(strategy, theta, memory, batch, task), 1.5 * wanted)
    assert float(penalty(strategy, theta, memory, batch_of(STREAM.tasks[0]), STREAM.tasks[0])) == 0


def test_fdr_draws_as_many_as_the_step_s_own_samples() -> None:
    """Whatever other parts of a chain have joined."""
    strategy, task, theta = FDR(capacity=12), STREAM.tasks[1], vector(1)
    memory, batch = remembered(strategy, [vector(0)]), batch_of(task)
    joined = batch.join(torch.tensor([0, 13, 5]), task)
    close(penalty(strategy, theta, memory, joined, task), penalty(strategy, theta, memory, batch, task))


@pytest.mark.parametrize("distance", ["norm", "root", "square"])
def test_fdr_has_a_gradient_where_nothing_has_changed(distance: Any) -> None:
    """In the domain scenario the outputs are exactly those that were stored: the gradient is 0, not NaN."""
    stream = small_stream(0, "domain")
    net, strategy = NET_OF["domain"], FDR(distance=distance)
    theta = (0.4 * numbers(0, net.size)).requires_grad_()
    memory = strategy.after_task(net, theta.detach(), strategy.init(net, theta.detach(), stream), stream.tasks[0])[1]
    batch = batch_of(stream.tasks[1])
    found = strategy.penalty(net, theta, memory, batch, net.forward(theta, batch.images), stream.tasks[1])
    assert abs(float(found.detach())) < 1e-12 and torch.autograd.grad(found, theta)[0].abs().max() < 1e-9


# ---- generative replay


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(("normalize", "top", "told"), [
    ("channel", 255.0, "all scaled alike; use normalize=unit"), ("unit", 100.0, "values from 0 to 255 where 100"),
])  # fmt: skip
def test_generative_replay_refuses_images_that_its_generator_cannot_make(
    normalize: str, top: float, told: str, dtype: str
) -> None:
    numbers = np.random.default_rng(0)
    x, y = numbers.integers(0, 256, (2, 64, 3, 4, 4)).astype(dtype), np.repeat(np.arange(4), 16)
    x[:, 0, 0, 0, :2] = 0, 255
    refused = Stream.from_arrays(x[0], y, x[1], y, tasks=2, top=top, normalize=normalize)
    with pytest.raises(BadChain, match=told):
        cl.run(refused, "generative-replay", seeds=1)
    allowed = Stream.from_arrays(x[0], y, x[1], y, tasks=2, top=255.0)
    assert cl.run(allowed, "generative-replay:layers=8,latent=2", seeds=1, model="mlp:layers=8").accuracy.shape[0] == 1


class VAE(torch.nn.Module):
    """A variational autoencoder of torch modules, for 3x3 images, with our flat weights."""

    def __init__(self, flat: torch.Tensor) -> None:
        super().__init__()
        (a, b), z = SMALL["layers"], SMALL["latent"]  # type: ignore[misc]
        relu, linear = torch.nn.ReLU, torch.nn.Linear
        self.encoder = torch.nn.Sequential(linear(9, a), relu(), linear(a, b), relu(), linear(b, 2 * z))  # type: ignore[operator, arg-type]
        self.decoder = torch.nn.Sequential(linear(z, b), relu(), linear(b, a), relu(), linear(a, 9), torch.nn.Sigmoid())  # type: ignore[arg-type]
        self.double()
        torch.nn.utils.vector_to_parameters(flat.clone(), self.parameters())

    def bound(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The negative bound of each image over its pixels, by torch.distributions: (B,)."""
        mean, log_variance = self.encoder(x).split(SMALL["latent"], 1)
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
        prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
        p = self.decoder(mean + posterior.scale * noise)
        missed = torch.nn.functional.binary_cross_entropy(p, x, reduction="none").sum(1)
        return (missed + torch.distributions.kl_divergence(posterior, prior).sum(1)) / 9


def started(strategy: GenerativeReplay, stream: Stream = STREAM) -> Memory:
    """A memory whose every part is another."""
    net = NET_OF[stream.scenario]
    memory = strategy.init(net, 0.4 * numbers(7, net.size), stream)
    size = len(memory["generator"])
    changed = {"generator": 0.4 * numbers(8, size), "previous": 0.4 * numbers(9, size)}
    return memory | changed | {"teacher": 0.4 * numbers(10, net.size)}


def normalised(stream: Stream, standard: bool) -> Stream:
    """The stream, or one whose pixel values are shown as v / 50 - 1.5."""
    if not standard:
        return stream
    samples = dataclasses.replace(stream.samples, scale=1 / 50, shift=-1.5)
    tasks = tuple(dataclasses.replace(task, samples=samples) for task in stream.tasks)
    return dataclasses.replace(stream, samples=samples, tasks=tasks)


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("ratio", [None, 0.2])
def test_the_generator_takes_the_steps_of_torch_s_adam_on_the_loss_of_torch_modules(
    ratio: float | None, standard: bool
) -> None:
    """Over two tasks; real images weigh r together and generated ones 1 - r."""
    strategy, stream = GenerativeReplay(**SMALL, lr=0.01, ratio=ratio, samples=3), normalised(STREAM, standard)
    memory, theta = strategy.init(NET, vector(0), stream), vector(0)
    vae = VAE(memory["generator"])
    adam = torch.optim.Adam(vae.parameters(), lr=0.01)
    for task in stream.tasks[:2]:
        for step in range(3):
            plain = batch_of(task, step=step)
            batch = strategy.batch(NET, theta, memory, plain, task)
            memory = strategy.after_step(NET, theta, memory, Step(batch, None, set()), task)[1]  # type: ignore[arg-type]
            real = stream.samples.pixels[stream.samples.image[plain.row]].flatten(1).double() / 255
            x = torch.cat([real, made(memory["previous"], batch, 3)] if task.index else [real])
            noise = batch.key.normal("noise", len(x), 3).double()
            each = vae.bound(x, noise)
            r = (1 / 2 if ratio is None else ratio) if task.index else 1.0
            loss = r * each[:5].mean() + ((1 - r) * each[5:].mean() if task.index else 0)
            adam.zero_grad()
            loss.backward()
            adam.step()
            flat = torch.nn.utils.parameters_to_vector(vae.parameters()).detach()
            close(memory["generator"], flat, rtol=1e-6, atol=1e-9)
        memory = strategy.after_task(NET, theta, memory, task)[1]
    assert int(memory["steps"]) == 6


def test_the_generator_goes_by_the_batch_s_weights() -> None:
    """As where a chain has changed them; and where nothing weighs anything it stays."""
    strategy, task = GenerativeReplay(**SMALL, lr=0.01), STREAM.tasks[0]
    memory, weight = started(strategy), torch.tensor([3.0, 0, 1, 2, 2], dtype=torch.float64)
    vae = VAE(memory["generator"])
    batch = batch_of(task)._replace(weight=weight)
    each = vae.bound(batch.images.flatten(1), batch.key.normal("noise", 5, 3).double())
    (weight * each / 8).sum().backward()
    wanted = torch.cat([one.grad.flatten() for one in vae.parameters() if one.grad is not None])
    for given, factor in ((batch, 1.0), (batch._replace(weight=0 * weight), 0.0)):
        step = Step(given, None, set())  # type: ignore[arg-type]
        found = strategy.after_step(NET, vector(0), memory, step, task)[1]
        close(found["first"], factor * wanted / 10, rtol=1e-6, atol=1e-9)


def made(generator: torch.Tensor, batch: Batch, n: int) -> torch.Tensor:
    """The images of a generator for the numbers that a batch draws, in [0, 1]."""
    with torch.no_grad():
        found: torch.Tensor = VAE(generator).decoder(batch.key.normal("latent", n, 3).double())
    return found


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_images_come_from_the_previous_generator_and_labels_from_the_previous_network(
    scenario: str, standard: bool
) -> None:
    """And from neither of the present ones, in the stream's normalisation; labels are of earlier tasks only."""
    stream, strategy = normalised(small_stream(0, scenario), standard), GenerativeReplay(**SMALL, samples=40)
    net, task, memory = NET_OF[scenario], stream.tasks[2], started(GenerativeReplay(**SMALL), stream)
    plain = batch_of(task)
    batch = strategy.batch(net, 0.4 * numbers(0, net.size), memory, plain, task)
    x = made(memory["previous"], batch, 40) * (5.1 if standard else 1) - (1.5 if standard else 0)
    close(batch.images[5:].flatten(1), x)
    close(batch.images[:5], plain.images)
    logits = net.logits(memory["teacher"], x)
    tasks = batch.task[5:]
    if scenario == "task":
        assert set(tasks.tolist()) == {0, 1}
        wanted = torch.stack([2 * t + row[2 * t : 2 * t + 2].argmax() for t, row in zip(tasks, logits, strict=True)])
    else:
        assert (tasks == 1).all()
        wanted = logits[:, :4].argmax(1)
    assert torch.equal(batch.y[5:], wanted) and (batch.row[5:] == -1).all() and batch.own == 5
    other = memory | {"generator": 2 * memory["generator"]}
    assert torch.equal(strategy.batch(net, numbers(3, net.size), other, plain, task).images, batch.images)
    first = stream.tasks[0]
    assert strategy.batch(net, memory["teacher"], memory, batch_of(first), first) is not None
    assert len(strategy.batch(net, memory["teacher"], memory, batch_of(first), first).row) == 5


def test_after_a_task_generator_and_network_are_frozen() -> None:
    strategy = GenerativeReplay(**SMALL)
    memory = started(strategy)
    after = strategy.after_task(NET, vector(1), memory, STREAM.tasks[0])[1]
    assert torch.equal(after["previous"], memory["generator"]) and torch.equal(after["teacher"], vector(1))


@pytest.mark.parametrize("ratio", [None, 0.2, 1.0])
def test_hard_labels_share_the_loss(ratio: float | None) -> None:
    """r cross-entropy of the data + (1 - r) that of the generated images, over the outputs seen."""
    strategy, task, theta = GenerativeReplay(**SMALL, ratio=ratio, samples=7), STREAM.tasks[2], vector(1)
    batch = strategy.batch(NET, theta, started(strategy), batch_of(task), task)
    out = NET.forward(theta, batch.images)
    r = 1 / 3 if ratio is None else ratio
    each = torch.nn.functional.cross_entropy(out.logits, batch.y, reduction="none")
    close(strategy.loss(NET, theta, {}, batch, out, task), r * each[:5].mean() + (1 - r) * each[5:].mean())
    assert not strategy.has("loss")


@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
@pytest.mark.parametrize("squared", [False, True])
def test_soft_labels_are_distilled(scenario: str, squared: bool) -> None:
    """With 0 for the new outputs in the class scenario, and one distribution for each earlier task in the other."""
    strategy = GenerativeReplay(**SMALL, soft=True, temperature=3, squared=squared, ratio=0.2, samples=7)
    stream, net = small_stream(0, scenario), NET_OF[scenario]
    task, theta, memory = stream.tasks[2], 0.4 * numbers(0, net.size), started(strategy, stream)
    batch = strategy.batch(net, theta, memory, batch_of(task), task)
    out = net.forward(theta, batch.images)
    mask = task.outputs.apply(out.logits, 2, batch.task)
    data = torch.nn.functional.cross_entropy(mask[:5], batch.y[:5])
    now, before = out.logits[5:], net.logits(memory["teacher"], batch.images[5:])
    if scenario == "class":
        p, q = softened(before, [0, 1, 2, 3], 3), softened(now, list(range(6)), 3)[:, :4]
        old = (p * (p / q).log()).sum(1).mean()
    else:
        groups = [[0, 1], [2, 3]] if scenario == "task" else [[0, 1]]
        old = sum(divergence(now, before, units, 3).mean() for units in groups) / len(groups)
    close(strategy.loss(net, theta, memory, batch, out, task), 0.2 * data + 0.8 * (9 if squared else 1) * old)


def test_pixels_are_told_their_top() -> None:
    """Where images are standardised the value that stands for 1 is the data's."""
    samples = normalised(STREAM, True).samples
    x = samples.images(torch.arange(4), torch.float64)
    pixels = samples.pixels[samples.image[:4]].flatten(1).double()
    close(GenerativeReplay()._unit(x, samples), pixels / 255)
    close(GenerativeReplay()._unit(x, dataclasses.replace(samples, top=100.0)), pixels / 100)
    plain = STREAM.samples.images(torch.arange(4), torch.float64)
    close(GenerativeReplay()._unit(plain, STREAM.samples), plain.flatten(1))


def test_the_generator_learns_what_the_images_are() -> None:
    """Pixel by pixel, the mean of what it generates becomes that of the task's images."""
    strategy, task = GenerativeReplay(layers=(20, 20), latent=4, lr=0.01), STREAM.tasks[0]
    memory, theta = strategy.init(NET, vector(0), STREAM), vector(0)
    batch, latent = batch_of(task, 24), numbers(0, 1000, 4)
    wanted = batch.images.mean(0)

    def gap() -> float:
        return float((strategy._generate(memory["generator"], latent, STREAM.samples).mean(0) - wanted).abs().max())

    before = gap()
    for step in range(200):
        keyed = batch._replace(key=dataclasses.replace(batch.key, step=torch.tensor(step)))
        memory = strategy.after_step(NET, theta, memory, Step(keyed, None, set()), task)[1]  # type: ignore[arg-type]
    assert before > 0.2
    assert gap() < 0.03


def test_avalanche_s_generator_has_another_error_and_another_deviation() -> None:
    """The same divergence; squared errors in place of a likelihood; σ = e^(log σ²) / 2 in place of e^(log σ² / 2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
        from avalanche.models.generator import MlpVAE, VAE_loss
    strategy, batch = GenerativeReplay(**SMALL), batch_of(STREAM.tasks[0])
    generator = started(strategy)["generator"]
    x, noise = batch.images.flatten(1), numbers(0, 5, 3)
    vae = VAE(generator)
    mean, log_variance = vae.encoder(x).split(3, 1)
    p = vae.decoder(mean + (log_variance / 2).exp() * noise)
    weight = torch.ones(5, dtype=torch.float64)
    missed = torch.nn.functional.binary_cross_entropy(p, x, reduction="sum")
    ours = 9 * _bound(strategy._net(STREAM.samples), generator, x, noise, weight) - missed
    close(ours, (VAE_loss(x, (p, mean, log_variance)) - (p - x).square().sum()).detach())
    theirs = MlpVAE((1, 3, 3), nhid=3)
    torch.manual_seed(0)
    sampled = theirs.sampling(mean.float(), log_variance.float())
    torch.manual_seed(0)
    close(sampled, mean.float() + torch.randn(5, 3) * log_variance.float().exp() / 2)


def test_avalanche_s_replay_differs_in_weights_and_outputs() -> None:
    """The same images and teacher: theirs weigh as much as the data, labelled among outputs not learnt yet too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
        from avalanche.training.plugins.generative_replay import GenerativeReplayPlugin
    strategy, task = GenerativeReplay(**SMALL, samples=40), STREAM.tasks[2]
    memory = started(strategy)
    batch = strategy.batch(NET, vector(0), memory, batch_of(task), task)
    x = batch.images[5:]
    plugin = GenerativeReplayPlugin(replay_size=40)
    plugin.untrained_solver = False
    plugin.old_generator = SimpleNamespace(generate=lambda count: x[:count])
    plugin.old_model = lambda images: NET.logits(memory["teacher"], images)
    state = SimpleNamespace(mbatch=[batch.images[:5], batch.y[:5], batch.task[:5]], device="cpu")
    plugin.before_training_iteration(state)
    images, y, _ = state.mbatch
    close(batch.images, images)
    logits, new = NET.logits(memory["teacher"], x), y[5:] > 3
    assert new.any() and torch.equal(y[5:][~new], batch.y[5:][~new])
    assert torch.equal(y[5:], logits.argmax(1)) and (batch.y <= 5).all() and (batch.y[5:] <= 3).all()
    assert batch.weight is not None
    close(batch.weight.unique(), torch.tensor([2 / 3 / 40, 1 / 3 / 5], dtype=torch.float64))
