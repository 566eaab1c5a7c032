"""Parts of the network for each task, and the bounds: against the papers' equations in loops, and avalanche-lib."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import continual as cl
from continual.config import make_strategy
from continual.conformance import check, mapped_equals_looped, small_stream
from continual.errors import BadChain, BadOption
from continual.learning import importance
from continual.learning.evaluate import Evaluation
from continual.learning.models import MLP, LinearNet, Out
from continual.learning.optimizers import SGD, Adam, AdamW, Constant, Optimizer
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Chain, Step, Strategy
from continual.learning.train import Stopped, Watch, schedule, train
from continual.learning.training import Training
from continual.strategies import EWC, SI, Finetune, Joint, Replay
from continual.strategies.cumulative import Cumulative
from continual.strategies.from_scratch import FromScratch
from continual.strategies.hat import HAT
from continual.strategies.packnet import PackNet
from continual.strategies.xdg import ContextGates, XdG
from continual.streams.rng import key
from continual.streams.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore")  # what avalanche-lib and what it imports warn of
STREAM = small_stream(0, "task")  # six classes of 12 images, two in each of three tasks
LAYERS = (5, 4)
TRAINING = Training(seeds=1, epochs=2, batch=7, precision="float64", train_samples=0)
ALL = [HAT(), XdG(), PackNet(), Cumulative(), FromScratch(), Joint(every=False), Cumulative(every=False)]


def net_of(stream: Stream = STREAM, layers: tuple[int, ...] = LAYERS) -> LinearNet:
    net = MLP(layers=layers).build(stream.shape, stream.units)
    assert isinstance(net, LinearNet)
    return net


NET = net_of()


def vector(seed: int, size: int = NET.size) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.5


def learners(
    strategy: Strategy, streams: list[Stream] | None = None, optimizer: Optimizer | None = None, keep: bool = True,
    layers: tuple[int, ...] = LAYERS,
) -> Learners:  # fmt: skip
    streams = streams or [STREAM]
    recipe = Recipe(net_of(streams[0], layers), strategy, optimizer or SGD(lr=0.2), Constant(), keep, "float64")
    return Learners(recipe, streams, list(range(len(streams))))


def learn(alone: Learners, index: int, training: Training = TRAINING) -> list[torch.Tensor]:
    """Learn one task: the losses."""
    batches = schedule(alone.begin(index), training, alone.seed, index)
    program = Program(alone, index, batches)
    losses = [program(number, rows) for number, rows in enumerate(batches)]
    alone.end(index)
    return losses


def outcome(group: Learners, training: Training = TRAINING) -> dict[str, torch.Tensor]:
    found, stopped = train(group, training, Watch())
    assert not stopped
    return found


def scores(alone: Learners, index: int) -> torch.Tensor:
    """The answers to a task's test images."""
    task = STREAM.tasks[index]
    x, tasks = STREAM.test_samples.images(task.test, torch.float64), STREAM.test_samples.task[task.test]
    return alone.strategy.predict(alone.network(alone.memory), alone.theta, alone.memory, x, tasks)


@pytest.mark.parametrize("text", ["xdg+a-gem", "hat+a-gem", "xdg+gem", "xdg+mir", "hat+mir", "xdg+generative-replay"])
def test_gradients_within_hooks_are_taken_behind_gates_side_by_side_too(text: str) -> None:
    """The network with its gates is one more that is made in each step, and has to know of the seeds."""
    mapped_equals_looped(make_strategy(text))


@pytest.mark.parametrize("strategy", [*ALL, "xdg+si", "xdg+ewc"], ids=str)
def test_strategies_pass_the_conformance_suite(strategy: Any) -> None:
    chains = {"xdg+si": Chain((XdG(), SI())), "xdg+ewc": Chain((XdG(), EWC()))}
    check(chains.get(strategy, strategy) if isinstance(strategy, str) else strategy)


@pytest.mark.parametrize("kind", [HAT, XdG, PackNet])
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_where_tasks_are_not_told_they_are_refused(kind: Any, scenario: str) -> None:
    stream = small_stream(0, scenario)
    with pytest.raises(BadChain, match=f"scenario={scenario}, where the task .* not told; use scenario=task"):
        kind().suits(stream, net_of(stream))
    kind().suits(STREAM, NET)
    Chain((kind(), SI())).suits(STREAM, NET)


@pytest.mark.parametrize(
    ("kind", "message"), [(HAT, "at least one layer"), (XdG, "at least one"), (PackNet, "one layer")]
)
def test_networks_without_hidden_layers_are_refused(kind: Any, message: str) -> None:
    with pytest.raises(BadChain, match=message):
        kind().suits(STREAM, net_of(layers=()))


def test_two_with_gates_cannot_be_chained() -> None:
    """Neither two with fixed gates nor two of which one learns them."""
    for other in (HAT(), XdG()):
        with pytest.raises(BadChain, match=f"XdG and {type(other).__name__} cannot be chained: each puts a network"):
            Chain((XdG(), other))
    with pytest.raises(BadChain, match="has gates already"):
        ContextGates(ContextGates(NET, []), [])


# ---- XdG


@pytest.mark.parametrize(("gated", "closed"), [(0.0, 0), (0.5, 5), (0.8, 8), (0.34, 3), (0.26, 3), (0.95, 9)])
def test_exactly_so_many_units_of_a_layer_are_closed_but_never_all(gated: float, closed: int) -> None:
    net = net_of(layers=(10, 20))
    memory = XdG(gated=gated).init(net, vector(0, net.size), STREAM)
    for name, units in (("gates1", 10), ("gates2", 20)):
        table = memory[name]
        assert table.shape == (3, units) and table.dtype == torch.float64
        assert ((table == 0) | (table == 1)).all()
        assert (table == 0).sum(1).tolist() == [min(round(gated * units), units - 1)] * 3
    assert int((memory["gates1"][0] == 0).sum()) == closed


def test_gates_differ_between_tasks_layers_and_seeds_and_are_the_seeds_own() -> None:
    net = net_of(layers=(40, 40))
    found = [XdG().init(net, vector(0, net.size), small_stream(seed, "task")) for seed in (0, 1, 0)]
    lines = [line for memory in found[:2] for table in memory.values() for line in table]
    assert len({tuple(line.tolist()) for line in lines}) == 2 * 2 * 3
    assert all(torch.equal(found[0][name], found[2][name]) for name in found[0])
    counts = torch.stack(
        [XdG().init(net, vector(0, net.size), small_stream(n, "task"))["gates1"][0] for n in range(200)]
    )
    assert (counts.mean(0) - 0.2).abs().max() < 5 * math.sqrt(0.16 / 200), "every unit is as likely as any other"


def plain(theta: torch.Tensor, x: torch.Tensor, gates: list[torch.Tensor], layers: tuple[int, ...] = LAYERS) -> Any:
    """The logits of one sample, its hidden units multiplied one by one."""
    h, at = x.flatten(), 0
    for number, units in enumerate([*layers, 6]):
        weight = theta[at : at + units * len(h)].reshape(units, len(h))
        at += units * len(h)
        out = torch.stack([(weight[i] * h).sum() + theta[at + i] for i in range(units)])
        at += units
        h = (
            out
            if number == len(layers)
            else torch.stack([out[i].clamp_min(0) * gates[number][i] for i in range(units)])
        )
    return h


def test_gates_are_applied_to_each_sample_by_its_task() -> None:
    alone = learners(XdG(gated=0.5))
    memory, net = alone.memory, alone.network(alone.memory)
    rows = torch.tensor([0, 70, 30, 5, 40])
    x, tasks = STREAM.samples.images(rows, torch.float64), STREAM.samples.task[rows]
    assert tasks.tolist() == [0, 2, 1, 0, 1]
    got, layers = net.forward(vector(1), x, tasks), net.linear_layers(vector(1), x, tasks)
    assert layers is not None and torch.equal(layers[-1][2], got.logits)
    for n, task in enumerate(tasks.tolist()):
        gates = [memory[name][task] for name in ("gates1", "gates2")]
        torch.testing.assert_close(got.logits[n], plain(vector(1), x[n], gates))
        assert (got.features[n][gates[1] == 0] == 0).all()
    with pytest.raises(BadChain, match="tasks"):
        net.logits(vector(1), x)
    with pytest.raises(BadChain, match="tasks"):
        net.linear_layers(vector(1), x)


@pytest.mark.parametrize("label", ["true", "expected"])
def test_a_fisher_in_a_chain_sees_the_gates(label: Any) -> None:
    """Against one backward pass per sample and label, of the network with its gates written out."""
    alone = learners(Chain((XdG(gated=0.5), EWC(label=label))), optimizer=SGD(lr=0.0))
    task, theta = STREAM.tasks[0], alone.theta.clone()
    learn(alone, 0)
    gates = [alone.memory[f"0/gates{n}"][0] for n in (1, 2)]
    wanted = torch.zeros_like(theta)
    for row in task.train:
        live, x = theta.clone().requires_grad_(), STREAM.samples.images(row[None], torch.float64)
        log_p = torch.log_softmax(plain(live, x, gates)[:2], 0)
        for k in (0, 1):
            share = log_p[k].exp().detach() if label == "expected" else float(STREAM.samples.y[row] == k)
            wanted += share * torch.autograd.grad(log_p[k], live, retain_graph=True)[0] ** 2 / len(task.train)
    torch.testing.assert_close(alone.memory["1/fisher"], wanted, rtol=1e-9, atol=1e-14)
    parts = NET.parameters(alone.memory["1/fisher"])
    assert (parts["layer1.weight"][gates[0] == 0] == 0).all() and (parts["head.weight"][:, gates[1] == 0] == 0).all()
    assert (parts["layer2.weight"][:, gates[0] == 0] == 0).all() and parts["layer2.weight"].any()


def test_closed_weights_stay_as_they_are() -> None:
    alone = learners(XdG(gated=0.5))
    start, open_before = alone.theta.clone(), torch.zeros(5, dtype=torch.bool)
    for index in range(2):
        learn(alone, index)
        open_before |= alone.memory["gates1"][index] == 1
        moved = NET.parameters(alone.theta - start)["layer1.weight"].any(1)
        assert not (moved & ~open_before).any() and moved.any()


def test_a_network_with_learnt_gates_has_no_linear_layers() -> None:
    """The embeddings' gradient is not a product of what goes in and out of a layer: a Fisher takes the general way."""
    net = HAT().extend(NET, STREAM)
    theta, task = net.initial(key(0), torch.float64), STREAM.tasks[0]
    assert (
        net.linear_layers(theta, task.samples.images(task.train, torch.float64), task.samples.task[task.train]) is None
    )
    fisher = importance.fisher(net, theta, task, task.train[:3], "true")
    assert fisher.shape == theta.shape and fisher.isfinite().all()


# ---- HAT


class PlainHAT:
    """Eq. 1-7 in loops over plain tensors, for gradient descent; biases and head as in the authors' code."""

    def __init__(self, theta: torch.Tensor, s_max: float, c: float, clamp: float, rate: float) -> None:
        self.s_max, self.c, self.clamp, self.rate = s_max, c, clamp, rate
        self.weights, self.biases, self.embeddings, at = [], [], [], 0
        for units in LAYERS:
            self.embeddings.append(theta[at : at + 3 * units].reshape(3, units).clone())
            at += 3 * units
        for inputs, outputs in ((9, 5), (5, 4), (4, 6)):
            self.weights.append(theta[at : at + inputs * outputs].reshape(outputs, inputs).clone())
            self.biases.append(theta[at + inputs * outputs : at + (inputs + 1) * outputs].clone())
            at += (inputs + 1) * outputs
        assert at == len(theta)
        self.before = [theta.new_zeros(units) for units in LAYERS]

    def step(self, x: torch.Tensor, y: torch.Tensor, t: int, b: int, batches: int) -> float:
        s = 1 / self.s_max + (self.s_max - 1 / self.s_max) * (b - 1) / (batches - 1)
        live = [p.clone().requires_grad_() for p in (*self.weights, *self.biases)]
        weights, biases = live[:3], live[3:]
        a = [torch.sigmoid(s * e[t]).requires_grad_() for e in self.embeddings]
        h = x.flatten(1)
        for layer in range(2):
            h = (h @ weights[layer].T + biases[layer]).relu() * a[layer]
        logits = (h @ weights[2].T + biases[2])[:, 2 * t : 2 * t + 2]
        cost = sum((a[n] * (1 - self.before[n])).sum() for n in range(2)) / sum((1 - u).sum() for u in self.before)
        loss = torch.nn.functional.cross_entropy(logits, y - 2 * t) + self.c * cost
        gradients = torch.autograd.grad(loss, [*live, *a])
        for layer in range(2):
            for i in range(len(self.before[layer])):
                used = float(self.before[layer][i])
                for j in range(self.weights[layer].shape[1]):
                    lower = float(self.before[layer - 1][j]) if layer else 1.0
                    self.weights[layer][i, j] -= self.rate * (1 - min(used, lower)) * gradients[layer][i, j]
                self.biases[layer][i] -= self.rate * (1 - used) * gradients[3 + layer][i]
                # (4-6): what the gradient would be if the gate were σ(e), of slope s_max
                e = float(self.embeddings[layer][t, i])
                slope = 1 / (1 + math.exp(-e)) * (1 - 1 / (1 + math.exp(-e)))
                new = e - self.rate * self.s_max * slope * float(gradients[6 + layer][i])
                self.embeddings[layer][t, i] = min(max(new, -self.clamp), self.clamp)
        self.weights[2] -= self.rate * gradients[2]
        self.biases[2] -= self.rate * gradients[5]
        return float(loss)

    def end(self, t: int) -> None:
        for n, e in enumerate(self.embeddings):
            self.before[n] = torch.maximum(self.before[n], torch.sigmoid(self.s_max * e[t]))

    @property
    def theta(self) -> torch.Tensor:
        layers = [part.flatten() for pair in zip(self.weights, self.biases, strict=True) for part in pair]
        return torch.cat([*(e.flatten() for e in self.embeddings), *layers])


@pytest.mark.parametrize("batch", [7, 8, 24])
@pytest.mark.parametrize("scaled", ["gradient", "step"])
@pytest.mark.parametrize(("s_max", "c", "clamp"), [(8.0, 0.75, 6.0), (3.0, 0.0, 0.4), (12.0, 5.0, 1.0)])
def test_hat_is_its_equations(s_max: float, c: float, clamp: float, scaled: Any, batch: int) -> None:
    """With gates that are steep, but not so steep that nothing is half protected.

    Tolerances allow for 1 - σ(s e) in the gate's own gradient, of which a large s e leaves few digits.
    """
    training = dataclasses.replace(TRAINING, batch=batch)
    alone = learners(HAT(strength=c, s_max=s_max, clamp=clamp, scaled=scaled), optimizer=SGD(lr=0.05))
    by_hand = PlainHAT(alone.theta, s_max, c, clamp, 0.05)
    per_epoch = math.ceil(24 / batch)
    for index, task in enumerate(STREAM.tasks):
        batches, wanted = schedule(task.train, training, alone.seed, index), []
        for number, rows in enumerate(batches):
            x, y = STREAM.samples.images(rows, torch.float64), STREAM.samples.y[rows]
            # of epochs of one batch the first is at 1/s_max and the others at s_max
            place = (number % per_epoch + 1, per_epoch) if per_epoch > 1 else (min(number, 1) + 1, 2)
            wanted.append(by_hand.step(x, y, index, *place))
        by_hand.end(index)
        got = torch.stack(learn(alone, index, training))
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(alone.theta, by_hand.theta, rtol=1e-6, atol=1e-7)
        for n, used in enumerate(by_hand.before, start=1):
            torch.testing.assert_close(alone.memory[f"used{n}"], used, rtol=1e-6, atol=1e-7)


def risen(alone: Learners, index: int, batches: list[torch.Tensor]) -> list[float]:
    """HAT's s at each step of a task that has begun."""
    program, seen = Program(alone, index, batches), []
    for number, rows in enumerate(batches):
        seen.append(float(alone.memory["s"]))
        program(number, rows)
    return seen


@pytest.mark.parametrize("batch", [5, 8, 24])
def test_s_rises_in_each_epoch_from_its_inverse_to_its_most(batch: int) -> None:
    alone, training = learners(HAT(s_max=50)), dataclasses.replace(TRAINING, batch=batch)
    batches = schedule(alone.begin(0), training, alone.seed, 0)
    seen = risen(alone, 0, batches)
    count = math.ceil(24 / batch)
    once = [1 / 50 + (50 - 1 / 50) * b / max(count - 1, 1) for b in range(count)]
    assert seen == pytest.approx(once * 2 if count > 1 else [1 / 50, 50])


def test_where_an_epoch_drops_its_last_rows_s_is_late_by_one_step_only() -> None:
    alone, training = learners(HAT(s_max=50)), dataclasses.replace(TRAINING, batch=7, last="drop", epochs=3)
    batches = schedule(alone.begin(0), training, alone.seed, 0)
    seen = risen(alone, 0, batches)
    low, step = 1 / 50, (50 - 1 / 50) / 3
    assert seen == pytest.approx([low, low + step, low + 2 * step] + [50, low + step, low + 2 * step] * 2)


def test_s_begins_anew_where_a_task_ended_within_an_epoch() -> None:
    alone, low, step = learners(HAT(s_max=50)), 1 / 50, (50 - 1 / 50) / 2
    for index in range(2):
        batches = alone.begin(index).split(8)  # three of an epoch, and one of the next
        assert risen(alone, index, [*batches, batches[0]]) == pytest.approx([low, low + step, 50, low])
        alone.end(index)


def test_s_is_its_most_however_many_rows_an_epoch_has() -> None:
    """As a part of a chain may make them."""
    alone = learners(HAT(s_max=50))
    train = alone.begin(0)
    seen = risen(alone, 0, [train[:size] for size in (7, 1, 7, 1, 7, 7)])
    assert max(seen) <= 50 and seen[-1] == pytest.approx(50)


def test_rows_that_join_are_none_of_an_epoch() -> None:
    strategy, task = HAT(s_max=50), STREAM.tasks[1]
    net = strategy.extend(NET, STREAM)
    theta, rows = net.initial(key(0), torch.float64), task.train[:8]
    memory = strategy.before_task(net, theta, strategy.init(net, theta, STREAM), task)[1]
    batch = Batch(rows, task.samples.y[rows], task.samples.task[rows], task.key, own=8)
    step = Step(batch.join(torch.tensor([0, 13, 5]), task), Out(theta, theta), set(), before=theta)
    after = strategy.after_step(strategy.network(net, memory), theta, memory, step, task)[1]
    assert int(after["done"]) == 8 and float(after["s"]) == pytest.approx(1 / 50 + (50 - 1 / 50) / 2)


def test_the_compensation_is_bounded() -> None:
    """|s e| counts as 50 at most, so an embedding that is far out does not run away in single precision."""
    strategy = HAT()
    net = strategy.extend(NET, STREAM)
    theta = torch.full((net.size,), 6.0)
    memory = strategy.init(net, theta, STREAM) | {"s": torch.tensor(400.0)}
    gradient = torch.full_like(theta, 1e-20)
    got = strategy.gradient(strategy.network(net, memory), theta, memory, gradient, None, STREAM.tasks[0])  # type: ignore[arg-type]
    wanted = 1e-20 * (math.cosh(50) + 1) / (math.cosh(6) + 1)
    torch.testing.assert_close(got[: -NET.size], torch.full_like(got[: -NET.size], wanted))
    torch.testing.assert_close(got[-NET.size :], gradient[-NET.size :])


@pytest.mark.parametrize("scaled", ["gradient", "step"])
@pytest.mark.parametrize("optimizer", [Adam(lr=0.05), SGD(lr=0.1, momentum=0.9), AdamW(lr=0.05, weight_decay=0.1)])
def test_what_is_fully_protected_is_bit_equal(optimizer: Optimizer, scaled: Any) -> None:
    alone = learners(HAT(strength=0.1, scaled=scaled), optimizer=optimizer, layers=(12, 10))
    kept = []
    for index in range(3):
        learn(alone, index)
        after = {name: part.clone() for name, part in alone.net.parameters(alone.theta).items()}
        kept.append((index, after, [alone.memory[f"used{n}"].clone() for n in (1, 2)]))
    protected = 0
    for index, then, (first, second) in kept[:2]:
        now = alone.net.parameters(alone.theta)
        one, two = first == 1, second == 1
        assert torch.equal(now["layer1.weight"][one], then["layer1.weight"][one])
        assert torch.equal(now["layer1.bias"][one], then["layer1.bias"][one])
        assert torch.equal(now["layer2.weight"][two][:, one], then["layer2.weight"][two][:, one])
        assert torch.equal(now["layer2.bias"][two], then["layer2.bias"][two])
        own = slice(2 * index, 2 * index + 2)
        assert torch.equal(now["head.weight"][own], then["head.weight"][own])
        assert torch.equal(now["head.bias"][own], then["head.bias"][own])
        for n in (1, 2):
            assert torch.equal(now[f"embedding{n}"][: index + 1], then[f"embedding{n}"][: index + 1])
        protected += int(one.sum() * two.sum())
        assert not torch.equal(now["layer1.weight"], then["layer1.weight"]), "and the rest learns on"
    assert protected > 0


def test_adam_undoes_a_scaled_gradient_but_not_a_scaled_step() -> None:
    moved = {}
    for scaled in ("gradient", "step"):
        alone = learners(HAT(s_max=3, scaled=scaled), optimizer=Adam(lr=0.01), keep=False)  # type: ignore[arg-type]
        learn(alone, 0)
        before = alone.theta.clone()
        learn(alone, 1)
        moved[scaled] = (alone.theta - before).abs()
        factor = alone.memory["factor"]
        held = (factor > 0) & (factor < 0.2)
        assert held.sum() > 3
        moved[scaled] = moved[scaled][held].mean()
    assert moved["step"] < 0.4 * moved["gradient"]


def test_hat_answers_with_hard_gates_also_between_steps() -> None:
    alone = learners(HAT())
    learn(alone, 0)
    wanted = scores(alone, 0)
    gates = [torch.sigmoid(400 * alone.net.parameters(alone.theta)[f"embedding{n}"][0]) for n in (1, 2)]
    x = STREAM.test_samples.images(STREAM.tasks[0].test, torch.float64)
    torch.testing.assert_close(wanted[3], plain(alone.theta[-NET.size :], x[3], gates))
    alone.begin(1)
    assert float(alone.memory["s"]) == 1 / 400
    assert torch.equal(scores(alone, 0), wanted), "whatever s a step has"


def test_hat_forgets_nothing() -> None:
    found = outcome(learners(HAT(), layers=(30,), optimizer=Adam(lr=0.03)), dataclasses.replace(TRAINING, epochs=15))
    matrix = found["accuracy"]
    for j in range(3):
        assert (matrix[j + 1 :, j] == matrix[j + 1, j]).all() and matrix[j + 1, j] > 0.8


def test_the_cost_of_attention_frees_units() -> None:
    used = []
    for strength in (0.0, 20.0):
        alone = learners(HAT(strength=strength), layers=(40, 40), optimizer=SGD(lr=0.1))
        learn(alone, 0, dataclasses.replace(TRAINING, epochs=10))
        used.append(float(alone.memory["used1"].sum() + alone.memory["used2"].sum()))
    assert used[1] < 0.5 * used[0]


# ---- PackNet


def trunk(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: part for name, part in parts.items() if name.startswith("layer") and name.endswith("weight")}


def brute_prune(weight: torch.Tensor, owner: torch.Tensor, task: int, share: float) -> torch.Tensor:
    """A layer's owners after pruning, in a loop over its sorted weights."""
    places = [(i, j) for i in range(len(weight)) for j in range(weight.shape[1]) if owner[i, j] == -1]
    places.sort(key=lambda place: abs(float(weight[place])))
    after = owner.clone()
    for rank, place in enumerate(places):
        after[place] = -1 if rank < round(share * len(places)) else task
    return after


@pytest.mark.parametrize("prune", [0.0, 0.3, 0.5, 0.75, "equal"])
def test_the_smallest_of_each_layer_are_freed(prune: Any) -> None:
    strategy = PackNet(prune=prune, retrain=0)
    memory, theta = strategy.init(NET, vector(0), STREAM), vector(1)
    for index, task in enumerate(STREAM.tasks):
        theta = torch.where(memory["owner"] == -1, vector(index + 1), theta)
        wanted = {
            name: brute_prune(
                NET.parameters(theta)[name], part, index, 1 - 1 / (3 - index) if prune == "equal" else prune
            )
            for name, part in trunk(NET.parameters(memory["owner"])).items()
        }
        before = theta
        theta, memory = strategy.after_task(NET, theta, memory, task)
        owner = NET.parameters(memory["owner"])
        for name, part in trunk(owner).items():
            assert torch.equal(part, wanted[name])
            assert (NET.parameters(theta)[name][part == -1] == 0).all()
        assert torch.equal(theta[memory["owner"] != -1], before[memory["owner"] != -1])
        assert (owner["layer1.bias"] == 0).all() and (owner["layer2.bias"] == 0).all(), "the first task's"
        assert owner["head.weight"][:, 0].tolist() == owner["head.bias"].tolist() == [0, 0, 1, 1, 2, 2]
    if prune == "equal":
        counts = trunk(NET.parameters(memory["owner"]))["layer1.weight"].flatten().bincount()
        assert counts.tolist() == [15, 15, 15]


@pytest.mark.parametrize("freed", ["zero", "kept"])
@pytest.mark.parametrize("optimizer", [Adam(lr=0.02), SGD(lr=0.1, momentum=0.9), AdamW(lr=0.02, weight_decay=0.2)])
def test_what_a_task_owns_is_bit_equal_for_good_and_so_are_its_answers(optimizer: Optimizer, freed: Any) -> None:
    alone = learners(PackNet(freed=freed, retrain=2, retrain_batch=7), optimizer=optimizer)
    thetas, answers = [], []
    for index in range(3):
        learn(alone, index)
        thetas.append(alone.theta.clone())
        answers.append(scores(alone, index))
    owner = alone.memory["owner"]
    for index in range(3):
        own = owner == index
        assert own[: NET.size - 30].any() and torch.equal(alone.theta[own], thetas[index][own])
        assert torch.equal(scores(alone, index), answers[index])
    assert not torch.equal(thetas[0], thetas[2])
    assert (alone.theta[owner == -1] == 0).all() == (freed == "zero")


@pytest.mark.parametrize("seeds", [1, 3])
def test_accuracies_of_old_tasks_do_not_move(seeds: int) -> None:
    streams = [small_stream(seed, "task") for seed in range(seeds)]
    group = learners(PackNet(retrain=5), streams, Adam(lr=0.01), layers=(20,))
    matrix = outcome(group, dataclasses.replace(TRAINING, epochs=20, evaluate_every=3))
    accuracy, trace, task = matrix["accuracy"], matrix["trace"], matrix["trace_task"]
    for j in range(3):
        assert (accuracy[..., j + 1 :, j] == accuracy[..., j + 1, j, None]).all()
        later = trace[..., task > j, j]
        assert (later == accuracy[..., j + 1, j, None]).all(), "nor while later tasks are learnt"
    assert accuracy[..., -1, :].mean() > 0.9


def test_a_sample_is_answered_with_its_own_tasks_weights() -> None:
    alone = learners(PackNet())
    for index in range(3):
        learn(alone, index)
    rows = torch.tensor([0, 70, 30, 5, 40])
    x, tasks = STREAM.samples.images(rows, torch.float64), STREAM.samples.task[rows]
    got = alone.strategy.predict(alone.net, alone.theta, alone.memory, x, tasks)
    owner = alone.memory["owner"]
    for n, task in enumerate(tasks.tolist()):
        theta = alone.theta.clone()
        for i in range(len(theta)):
            theta[i] = theta[i] if 0 <= owner[i] <= task else 0.0
        wanted = plain(theta, x[n], [torch.ones(units) for units in LAYERS])
        torch.testing.assert_close(got[n], wanted)


@pytest.mark.parametrize(
    "streams", [[STREAM], [small_stream(seed, "task") for seed in (0, 1)]], ids=["alone", "mapped"]
)
@pytest.mark.parametrize("around", [lambda one: one, lambda one: Chain((one, Replay(capacity=4)))], ids=["", "chain"])
def test_evaluation_asks_for_one_task_at_a_time_where_that_is_less(
    streams: list[Stream], around: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers, of a pass for each batch instead of one for each task; some batches hold a part of a task."""
    group = learners(around(PackNet()), streams)
    outcome(group)
    rows = [[task.test for task in stream.tasks] for stream in streams]
    rows = [[one[:0] if number == 1 else one for number, one in enumerate(own)] for own in rows]
    asked = list[torch.Size]()
    usual = PackNet.used

    def used(self: PackNet, *given: Any) -> torch.Tensor:
        asked.append(given[-1].shape)
        return usual(self, *given)

    monkeypatch.setattr(PackNet, "used", used)
    monkeypatch.setattr(group, "rows_at_once", 6)
    found = []
    for by_task in (True, False):
        monkeypatch.setattr(PackNet, "answers_by_task", by_task)
        asked.clear()
        found.append((Evaluation(group, "test_samples", rows)(2), len(asked)))
    assert torch.equal(found[0][0].nan_to_num(), found[1][0].nan_to_num())
    batches = sum(-(-len(one) // 6) for one in rows[0])
    whole = -(-sum(len(one) for one in rows[0]) // 6)
    assert (found[0][1], found[1][1]) == (batches, 3 * whole)


def test_a_task_that_is_not_learnt_is_answered_with_free_weights_too() -> None:
    alone = learners(PackNet())
    x = STREAM.test_samples.images(STREAM.tasks[0].test, torch.float64)
    wanted = alone.net.logits(alone.theta, x)
    assert torch.equal(scores(alone, 0)[:, :2], wanted[:, :2])
    learn(alone, 0)
    batches = schedule(alone.begin(1), TRAINING, alone.seed, 1)
    program = Program(alone, 1, batches)
    for number, batch in enumerate(batches):
        program(number, batch)
    x = STREAM.test_samples.images(STREAM.tasks[1].test, torch.float64)
    whole = alone.net.logits(alone.theta, x)
    assert torch.equal(scores(alone, 1)[:, 2:4], whole[:, 2:4]), "in training"
    alone.end(1)


@pytest.mark.parametrize(("epochs", "rate", "size"), [(0, 0.001, 128), (3, 0.02, 7), (1, 0.01, 128)])
def test_retraining_is_a_plain_loop_over_the_kept_weights(epochs: int, rate: float, size: int) -> None:
    strategy, task, theta = PackNet(retrain=epochs, retrain_lr=rate, retrain_batch=size), STREAM.tasks[1], vector(5)
    memory = strategy.init(NET, theta, STREAM)
    start, memory = strategy.after_task(NET, theta, memory, STREAM.tasks[0])
    start = torch.where(memory["owner"] == -1, vector(6), start)
    got, after = strategy.after_task(NET, start, memory, task)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(9, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4), torch.nn.ReLU(),
        torch.nn.Linear(4, 6),
    ).double()  # fmt: skip
    torch.nn.utils.vector_to_parameters(start * (after["owner"] != -1), net.parameters())
    kept = [part == 1 for part in NET.parameters(after["owner"]).values()]
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for epoch in range(epochs):
        order = task.train[task.key.permutation(f"retrain {epoch}", 24)]
        for rows in order.split(size):
            logits = net(STREAM.samples.images(rows, torch.float64))[:, 2:4]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, STREAM.samples.y[rows] - 2).backward()
            for parameter, mine in zip(net.parameters(), kept, strict=True):
                assert parameter.grad is not None
                parameter.grad *= mine
            optimizer.step()
    torch.testing.assert_close(got, torch.nn.utils.parameters_to_vector(net.parameters()).detach())
    assert torch.equal(got, start * (after["owner"] != -1)) == (epochs == 0)


def test_training_before_pruning_is_fine_tuning_of_what_is_free() -> None:
    """The first task has all weights; a later one what is free and its own outputs, at zero or where it was."""
    alone, usual = learners(PackNet(retrain=0)), learners(Finetune())
    assert torch.equal(torch.stack(learn(alone, 0)), torch.stack(learn(usual, 0)))
    before, owner = alone.theta.clone(), alone.memory["owner"].clone()
    learn(alone, 1)
    moved = alone.theta != before
    assert moved.any() and not moved[(owner != -1) & (owner != 1)].any()
    kept = learners(PackNet(retrain=0, freed="kept"))
    learn(kept, 0)
    assert torch.equal(kept.theta, usual.theta) and not torch.equal(before, usual.theta)


@pytest.mark.parametrize("given", [1.0, -0.1, "most"])
def test_a_share_to_prune_is_below_one(given: Any) -> None:
    with pytest.raises(BadOption, match="prune"):
        PackNet.read({"prune": given})


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_avalanche_prunes_the_same_weights(share: float) -> None:
    models = packnet()
    strategy = PackNet(prune=share, retrain=0)
    theta, memory = vector(3), strategy.init(NET, vector(3), STREAM)
    _, memory = strategy.after_task(NET, theta, memory, STREAM.tasks[0])
    for name, part in trunk(NET.parameters(memory["owner"])).items():
        wrapped = linear_of(models, NET.parameters(theta)[name])
        wrapped.prune(share)
        assert share * part.numel() == round(share * part.numel())
        assert torch.equal(part == -1, wrapped.pruned_mask)


def test_differences_avalanche_rounds_down_and_keeps_what_it_frees() -> None:
    models = packnet()
    weight = NET.parameters(vector(3))["layer1.weight"]
    wrapped = linear_of(models, weight)
    wrapped.prune(0.5)
    assert weight.numel() == 45 and int(wrapped.pruned_mask.sum()) == 22
    wrapped = linear_of(models, weight)
    wrapped.prune(0.35)  # 15.75
    strategy = PackNet(prune=0.35, retrain=0)
    theta, memory = strategy.after_task(NET, vector(3), strategy.init(NET, vector(3), STREAM), STREAM.tasks[0])
    assert int(wrapped.pruned_mask.sum()) == 15
    assert int((NET.parameters(memory["owner"])["layer1.weight"] == -1).sum()) == 16
    wrapped.freeze_pruned()
    wrapped.activate_task(1)
    assert torch.equal(wrapped.available_weights(), weight), "at the next task's start"
    assert (NET.parameters(theta)["layer1.weight"] == 0).sum() == 16


def packnet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
        from avalanche.models import packnet as models
    return models


def linear_of(models: Any, weight: torch.Tensor) -> Any:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return models.PackNetModel.wrap(layer)


# ---- the bounds


CLASSES = small_stream(0)  # the class scenario


def last_row(strategy: Strategy, epochs: int = 15) -> torch.Tensor:
    return outcome(learners(strategy, [CLASSES], layers=(20,)), dataclasses.replace(TRAINING, epochs=epochs))[
        "accuracy"
    ]


def test_the_bounds_lie_where_they_should() -> None:
    finetune, scratch, cumulative, joint, offline = (
        last_row(one) for one in (Finetune(), FromScratch(), Cumulative(), Joint(), Joint(every=False))
    )
    for upper in (cumulative, joint, offline):
        assert upper[-1].mean() > 0.85 and upper[-1].mean() > finetune[-1].mean() + 0.3
    assert torch.equal(joint[-1], offline[-1])
    assert (scratch[-1, :2] == 0).all() and scratch[-1, 2] > 0.9, "what came before is not in the network"
    assert offline[1:-1].isnan().all() and torch.equal(offline[0], joint[0])


@pytest.mark.parametrize("keep", [True, False])
def test_cumulative_training_goes_on_with_all_data(keep: bool) -> None:
    make = SGD(lr=0.2, momentum=0.9)
    alone, by_hand = learners(Cumulative(), [CLASSES], make, keep), learners(Finetune(), [CLASSES], make, keep)
    for index in range(3):
        learn(alone, index)
        by_hand.begin(index)
        rows = torch.cat([task.train for task in CLASSES.tasks[: index + 1]])
        batches = schedule(rows, TRAINING, by_hand.seed, index)
        program = Program(by_hand, index, batches)
        for number, batch in enumerate(batches):
            program(number, batch)
        assert torch.equal(alone.theta, by_hand.theta)
        assert sorted(row for row in alone.memory["rows"].tolist() if row >= 0) == sorted(rows.tolist())
        assert int(alone.stored()) == 24 * (index + 1)


def test_from_scratch_is_fine_tuning_on_each_task_alone() -> None:
    make = SGD(lr=0.2, momentum=0.9)
    alone = learners(FromScratch(), [CLASSES], make)
    for index in range(3):
        learn(alone, index)
        single = learners(Finetune(), [CLASSES], make, keep=False)
        learn(single, index)
        assert torch.equal(alone.theta, single.theta)
        assert int(alone.stored()) == 0


@pytest.mark.parametrize(("kind", "name"), [(Cumulative, "Cumulative"), (FromScratch, "FromScratchTraining")])
def test_avalanche_has_the_same_bounds(kind: Any, name: str) -> None:
    packnet()
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training import supervised

    stream = small_stream(0, "domain")  # all outputs are active, as in avalanche-lib
    x, y = stream.samples.images(torch.arange(72), torch.float64).flatten(1), stream.samples.y
    parts = [(x[task.train], y[task.train]) for task in stream.tasks]
    alone = learners(kind(), [stream], SGD(lr=0.2, momentum=0.9))
    net = torch.nn.Sequential(
        torch.nn.Linear(9, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
    ).double()
    torch.nn.utils.vector_to_parameters(alone.theta.clone(), net.parameters())
    theirs = getattr(supervised, name)(
        model=net, optimizer=torch.optim.SGD(net.parameters(), 0.2, momentum=0.9),
        criterion=torch.nn.CrossEntropyLoss(), train_mb_size=72, train_epochs=4, evaluator=None,
    )  # fmt: skip
    whole = dataclasses.replace(TRAINING, batch=72, epochs=4)
    for index, experience in enumerate(
        tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0] * 3).train_stream
    ):
        theirs.train(experience, shuffle=False)
        learn(alone, index, whole)
        wanted = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        torch.testing.assert_close(alone.theta, wanted, rtol=1e-7, atol=1e-9)


# ---- tasks without a step


OFFLINE = [Joint(every=False), Cumulative(every=False)]


@pytest.mark.parametrize("strategy", OFFLINE, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"epochs": 1, "iterations": 5}, {"last": "drop"}, {"evaluate_every": 2}], ids=str
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_all_is_learnt_when_the_last_task_is_there(strategy: Strategy, options: dict[str, Any], seeds: int) -> None:
    training = dataclasses.replace(TRAINING, **options)
    streams = [small_stream(seed) for seed in range(seeds)]
    group = learners(strategy, streams)
    start = group.theta.clone()
    found = outcome(group, training)
    usual = learners(Joint(), streams)
    wanted = outcome(usual, training)
    steps = training.steps(72)
    assert found["loss"].shape[-1] == steps and wanted["loss"].shape[-1] > steps
    torch.testing.assert_close(found["loss"], wanted["loss"][..., -steps:], rtol=0, atol=0)
    assert torch.equal(group.theta, usual.theta) and not torch.equal(group.theta, start)
    accuracy = found["accuracy"]
    assert torch.equal(accuracy[..., 0, :], wanted["accuracy"][..., 0, :])
    assert accuracy[..., 1:-1, :].isnan().all(), "what has learnt nothing yet is not measured"
    assert torch.equal(accuracy[..., -1, :], wanted["accuracy"][..., -1, :])
    assert found["stored_samples"].reshape(seeds, 3).tolist() == [[24, 48, 72]] * seeds
    if "evaluate_every" in options:
        assert found["trace_task"].unique().tolist() == [2] and int(found["trace_step"].max()) == steps
        assert found["trace"].shape[-2] == len(found["trace_task"])


def test_no_step_is_taken_where_there_are_no_rows() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for options in ({}, {"epochs": 1, "iterations": 4}, {"last": "drop"}):
        training = dataclasses.replace(TRAINING, **options)
        assert training.steps(0) == 0 and training.steps(1) > 0
        assert schedule(none, training, torch.tensor(0), 0) == []
        assert schedule(none.expand(3, 0), training, torch.arange(3), 0) == []


@dataclasses.dataclass(frozen=True)
class Lost(Strategy):
    """Makes every step one to nowhere."""

    def gradient(self, net: Any, theta: Any, memory: Any, gradient: torch.Tensor, *rest: Any) -> torch.Tensor:
        return gradient * torch.inf


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_seed_whose_loss_is_lost_is_still_found(seeds: int) -> None:
    """In the task that has steps, and its number is right."""
    streams = [small_stream(seed) for seed in range(seeds)]
    group = learners(Chain((Cumulative(every=False), Lost())), streams)
    found, stopped = train(group, TRAINING, Watch())
    assert stopped == [Stopped(seed, task=3, step=2) for seed in range(seeds)]
    assert found["accuracy"][..., -1, :].isnan().all() and not found["accuracy"][..., 0, :].isnan().any()


def test_progress_is_told_of_steps_only() -> None:
    told: list[tuple[int, int, int]] = []
    train(learners(Joint(every=False), [CLASSES]), TRAINING, Watch(lambda *where: told.append(where)))
    steps = TRAINING.steps(72)
    assert told == [(2, number, steps) for number in range(steps)]


def test_a_run_without_steps_is_measured_stored_and_read(tmp_path: Path) -> None:
    from continual.results.metrics import METRICS

    options: dict[str, Any] = {
        "seeds": 2,
        "epochs": 20,
        "optimizer": "adam:lr=0.03",
        "out": tmp_path,
        "evaluate_every": 3,
    }
    result = cl.run(CLASSES, Joint(every=False), **options)
    again = cl.run(CLASSES, Joint(every=False), **options)
    assert result.accuracy.shape == (2, 4, 3)
    np.testing.assert_array_equal(again.accuracy, result.accuracy)
    values = {name: one(result, result) for name, one in METRICS.items() if one.fits(result, result)}
    assert len(values) > 15 and {"learning-accuracy", "forward-transfer"} < set(values)
    assert (values["average-accuracy"] > 0.8).all() and np.isfinite(values["samples-storage-efficiency"]).all()
    for name in ("learning-accuracy", "forgetting", "backward-transfer", "average-incremental-accuracy"):
        assert np.isnan(values[name]).all(), "it needs rows after tasks of which nothing was learnt"


def test_the_option_is_read_from_text() -> None:
    assert make_strategy("joint:every=false") == Joint(every=False)
    assert not Joint(every=False).first_task_like_finetuning and Joint().first_task_like_finetuning


def test_what_the_three_share_is_one_hook_each() -> None:
    memories = [set(one.init(NET, vector(0), STREAM)) for one in (Joint(), Cumulative(), FromScratch())]
    assert memories == [{"start", "rows"}, {"rows"}, {"start"}]
    assert Joint.restarts_optimizer and FromScratch.restarts_optimizer and not Cumulative.restarts_optimizer
