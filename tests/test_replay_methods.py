"""Methods that store, choose or weigh replayed samples in a way of their own: against loops and avalanche-lib."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import continual as cl
from continual import config, plugins
from continual.conformance import TRAINING, check, learners_of, small_stream
from continual.errors import BadChain, BadOption
from continual.learning.models import MLP, Gated, LinearNet, Net, Out
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.learning.train import Watch, train
from continual.strategies import gss
from continual.strategies.der import DER
from continual.strategies.er_ace import ERACE
from continual.strategies.gdumb import GDumb, greedily
from continual.strategies.gss import GSS
from continual.strategies.mir import MIR
from continual.strategies.replay import Replay
from continual.streams.rng import Key, key
from continual.streams.stream import Stream, Task

STREAM = small_stream(0)  # six classes of 12 images, two in each of three tasks, class scenario
NET = MLP(layers=(6,)).build(STREAM.shape, STREAM.units)
NONE = torch.full((8,), -1)


def vector(seed: int, scale: float = 0.4) -> torch.Tensor:
    return torch.randn(NET.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def batch_of(task: Task, start: int = 0, size: int = 5, step: int = 0) -> Batch:
    """A batch before its hooks."""
    rows = task.train[start : start + size]
    return Batch(rows, task.samples.y[rows], task.samples.task[rows], key(0, task.index, step), own=len(rows))


def images(rows: torch.Tensor, stream: Stream = STREAM) -> torch.Tensor:
    return stream.samples.images(rows, torch.float64)


def loss_of(strategy: Strategy, theta: torch.Tensor, batch: Batch, task: Task) -> torch.Tensor:
    """The data term of a batch after its hooks."""
    batch = batch._replace(x=images(batch.row))
    return strategy.loss(NET, theta, {}, batch, NET.forward(theta, batch.images), task)


def stepped(strategy: Strategy, memory: Memory, batch: Batch, task: Task, theta: torch.Tensor) -> Memory:
    """The memory after a step on a batch."""
    batch = batch._replace(x=images(batch.row))
    out = Out(torch.zeros(len(batch.row), STREAM.units), torch.zeros(len(batch.row), 1))
    return strategy.after_step(NET, theta, memory, Step(batch, out, set()), task)[1]


def learner(strategy: Strategy, stream: Stream = STREAM) -> Learners:
    return Learners(Recipe(NET, strategy, SGD(lr=0.1), Constant(), True, "float64"), [stream], [0])


def filled(strategy: Strategy, tasks: int, size: int = 5) -> Memory:
    """The memory after one epoch of so many tasks, in batches of their rows in their order."""
    alone = learner(strategy)
    for task in STREAM.tasks[:tasks]:
        batches = alone.begin(task.index).split(size)
        program = Program(alone, task.index, batches)
        for number, rows in enumerate(batches):
            program(number, rows)
        alone.end(task.index)
    return alone.memory


def entropy(logits: torch.Tensor, y: torch.Tensor, units: list[int]) -> torch.Tensor:
    """The mean of -log p(y) over some units, sample by sample."""
    terms = [-torch.log(one[label].exp() / one[units].exp().sum()) for one, label in zip(logits, y, strict=True)]
    return torch.stack(terms).mean()


def avalanche() -> Any:
    """avalanche-lib, where it is installed, without what it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("avalanche.training", reason="avalanche-lib is not installed")


def close(got: torch.Tensor, wanted: Any) -> None:
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=got.dtype), rtol=1e-9, atol=1e-12)


# ---- what is replayed from a reservoir


ONLINE = [ERACE, MIR, GSS]
REPLAYING = [*ONLINE, Replay, partial(Replay, fill="reservoir")]


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("capacity", [4, 100])
def test_the_memory_has_no_row_twice_after_an_epoch_and_all_that_came_by_if_there_is_room(
    method: Any, capacity: int
) -> None:
    rows = filled(method(capacity=capacity), 2)["rows"]
    kept = rows[rows >= 0].tolist()
    assert len(set(kept)) == len(kept) == min(capacity, 48) and rows.shape == (capacity,)
    assert set(kept) <= {row for task in STREAM.tasks[:2] for row in task.train.tolist()}


@pytest.mark.parametrize("method", [*ONLINE, partial(ERACE, combine="mean"), partial(MIR, combine="sum")])
def test_as_long_as_nothing_is_stored_a_batch_is_learnt_alone(method: Any) -> None:
    strategy, theta, task = method(), vector(0), STREAM.tasks[0]
    memory = strategy.init(NET, theta, STREAM)
    batch = strategy.batch(NET, theta, memory, batch_of(task, start=9), task)
    close(loss_of(strategy, theta, batch, task), entropy(NET.logits(theta, images(batch.row[:5])), batch.y[:5], [0, 1]))
    assert batch.weight is not None and batch.weight[5:].tolist() == [0] * (len(batch.row) - 5)


def test_an_empty_slot_is_read_as_a_row_of_the_batch() -> None:
    some = torch.tensor([7, 5])
    batch = Batch(some, some, some, key(0), own=2)
    assert batch.readable(torch.tensor([3, -1, 0, -1])).tolist() == [3, 7, 0, 7]


@pytest.mark.parametrize("method", ONLINE)
def test_stored_samples_join_as_many_as_are_asked_for(method: Any) -> None:
    memory, theta, task = filled(method(), 1), vector(0), STREAM.tasks[1]
    for samples, count in ((None, 5), (3, 3)):
        batch = method(samples=samples).batch(NET, theta, memory, batch_of(task), task)
        joined = batch.row[5:].tolist()
        assert len(joined) == count and set(joined) <= set(memory["rows"].tolist()) - {-1}
        assert batch.weight is not None and batch.weight.tolist() == [1] * (5 + count)


@pytest.mark.parametrize("method", [*REPLAYING, DER])
def test_as_many_join_as_a_step_has_of_its_own_whoever_has_joined_before(method: Any) -> None:
    memory, theta, task = filled(method(), 1), vector(0), STREAM.tasks[1]
    joined = batch_of(task).join(torch.tensor([1, 2, 4]), task)
    assert len(method().batch(NET, theta, memory, joined, task).row) == 8 + 5


@pytest.mark.parametrize("method", REPLAYING)
def test_weights_of_an_earlier_part_of_a_chain_stay_in_proportion(method: Any) -> None:
    memory, theta, task = filled(method(), 1), vector(0), STREAM.tasks[1]
    given = batch_of(task)._replace(weight=torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2], dtype=torch.float64))
    batch = method(samples=2).batch(NET, theta, memory, given, task)
    assert batch.weight is not None
    close(batch.weight / batch.weight[-1], [0.5, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("given", [None, [0.1, 0.3, 0.0, 0.2, 0.2], [0.0] * 5])
def test_samples_that_join_with_no_word_of_their_weight_weigh_as_the_others_do(given: list[float] | None) -> None:
    """As those that a method of a user's joins, behind another part of a chain that has given weights."""
    task, weight = STREAM.tasks[1], None if given is None else torch.tensor(given, dtype=torch.float64)
    batch, made = batch_of(task)._replace(weight=weight), images(task.train[:2])
    rows, y, tasks = task.train[:2], *task.samples.labels(task.train[:2])
    for joined in (batch.join(rows, task), batch.join_images(made, y, tasks, task)):
        if given is None:
            assert joined.weight is None
        else:
            assert joined.weight is not None
            close(joined.weight, [*given, *([0.2] * 2 if any(given) else [1] * 2)])


@pytest.mark.parametrize("method", REPLAYING)
def test_where_an_earlier_part_gives_no_sample_weight_they_have_none(method: Any) -> None:
    memory, theta, task = filled(method(), 1), vector(0), STREAM.tasks[1]
    given = batch_of(task)._replace(weight=torch.zeros(5, dtype=torch.float64))
    batch = method(samples=2).batch(NET, theta, memory, given, task)
    assert batch.weight is not None and batch.weight[:5].tolist() == [0] * 5 and (batch.weight[5:] > 0).all()


WEIGHING = [
    *(name for name in plugins.registered("strategies") if any(map(config.make_strategy(name).has, ("batch", "loss")))),
    "generative-replay:soft=true", "icarl:outputs=softmax", "lwf:schedule=share", "mir:combine=sum",
    "replay:fill=reservoir", "replay:share=0.3",
]  # fmt: skip


@pytest.mark.parametrize("text", WEIGHING)
def test_a_sample_that_weighs_nothing_is_as_if_it_were_not_there(text: str) -> None:
    """In the data term, whoever makes the batch or the loss; the others, of 3 each, are as those of no given weight."""
    strategy, task, theta = config.make_strategy(text), STREAM.tasks[1], vector(1)
    strategy = replace(strategy, samples=3) if hasattr(strategy, "samples") else strategy  # type: ignore[call-arg]
    memory = strategy.before_task(NET, vector(2), filled(strategy, 1), task)[1]

    def loss(given: Batch) -> torch.Tensor:
        batch = strategy.batch(NET, theta, memory, given, task)
        batch = batch._replace(x=images(batch.row) if batch.x is None else batch.x)
        return strategy.loss(NET, theta, memory, batch, NET.forward(theta, batch.images), task)

    weight = torch.tensor([3.0, 3, 3, 3, 0], dtype=torch.float64)
    close(loss(batch_of(task, start=9)._replace(weight=weight)), loss(batch_of(task, start=9, size=4)))


@pytest.mark.parametrize(
    "text",
    [
        "er-ace+ewc",
        "replay+er-ace",
        "er-ace:capacity=7+replay:fill=reservoir,capacity=5",
        "er-ace+a-gem",
        "mir+replay",
        "mir:past=true+lwf",
        "gss+l2",
        "mir:combine=sum+ewc",
    ],
)
def test_chains(text: str) -> None:
    check(text)


# ---- ER-ACE


@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("current", ["batch", "task"])
@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_er_ace_tells_incoming_samples_from_current_classes_and_stored_ones_from_all(
    scenario: str, current: Any, combine: Any
) -> None:
    stream, theta = small_stream(0, scenario), vector(1)
    net = MLP(layers=(6,)).build(stream.shape, stream.units)
    theta, task = theta[: net.size], stream.tasks[1]
    # the first five rows are of one class of the task
    old, batch = torch.tensor([0, 13, 5]), batch_of(task)
    assert batch.y.unique().numel() == 1
    batch = ERACE().joined(batch, old, theta, task)
    batch = batch._replace(x=images(batch.row, stream))
    got = ERACE(current=current, combine=combine).loss(net, theta, {}, batch, net.forward(theta, batch.images), task)
    logits = net.logits(theta, batch.images)
    own_units = {"class": [2, 3], "task": [2, 3], "domain": [0, 1]}[scenario]
    incoming = entropy(logits[:5], batch.y[:5], own_units if current == "task" else [int(batch.y[0])])
    seen = {"class": [0, 1, 2, 3], "task": [0, 1], "domain": [0, 1]}[scenario]  # old samples have the first task's head
    replayed = entropy(logits[5:], batch.y[5:], seen)
    close(got, (incoming + replayed) / (2 if combine == "mean" else 1))


def test_er_ace_leaves_outputs_of_other_classes_alone() -> None:
    """The gradient of a batch of new classes does not reach the outputs of old ones; that of replay does."""
    task, theta = STREAM.tasks[1], vector(1).requires_grad_()
    for combine in ("sum", "mean"):
        strategy = ERACE(combine=combine)
        batch = batch_of(task, start=8, size=8)
        assert set(batch.y.tolist()) == {2, 3}
        for rows, reached in ((torch.tensor([-1, -1]), {2, 3}), (torch.tensor([0, 13]), {0, 1, 2, 3})):
            loss = loss_of(strategy, theta, strategy.joined(batch, rows, theta, task), task)
            gradient = NET.parameters(torch.autograd.grad(loss, theta)[0])["head.bias"]
            assert set(gradient.nonzero().squeeze(1).tolist()) == reached


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_er_ace_goes_by_the_weights_of_an_earlier_part_of_a_chain(combine: Any) -> None:
    task, theta, weight = STREAM.tasks[1], vector(1), torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    given = batch_of(task, start=10, size=4)._replace(weight=weight)
    batch = ERACE().joined(given, torch.tensor([0, 13]), theta, task)
    logits = NET.logits(theta, images(batch.row))
    each = torch.stack([entropy(logits[n : n + 1], batch.y[n : n + 1], [2, 3]) for n in range(4)])
    wanted = (each * weight).sum() / 10 + entropy(logits[4:], batch.y[4:], [0, 1, 2, 3])
    close(loss_of(ERACE(combine=combine), theta, batch, task), wanted / (2 if combine == "mean" else 1))


@pytest.mark.filterwarnings("ignore")
def test_er_ace_averaged_is_the_criterion_of_avalanche() -> None:
    criterion, task, theta = avalanche().ACECriterion(), STREAM.tasks[2], vector(2)
    batch = ERACE().joined(batch_of(task, start=9), torch.tensor([0, 13, 30, 44]), theta, task)
    out = NET.logits(theta, images(batch.row))
    wanted = criterion(out[:5], batch.y[:5], out[5:], batch.y[5:])
    close(loss_of(ERACE(combine="mean"), theta, batch, task), wanted)
    close(loss_of(ERACE(), theta, batch, task), 2 * wanted)


# ---- GDumb


def uneven(seed: int = 0) -> Stream:
    """Six classes with 9, 2, 7, 8, 5 and 30 training rows in three tasks."""
    y = torch.tensor([k for k, count in enumerate((9, 2, 7, 8, 5, 30)) for _ in range(count)])
    x = torch.zeros(len(y), 1, 3, 3, dtype=torch.uint8)
    return Stream.from_arrays(x, y, x, y, tasks=3).stream(seed)


def greedy_sampler(stored: list[int], task: Task, k: int) -> list[int]:
    """Algorithm 1, sample by sample, as a list without an order of its own."""
    n, label = len(task.train), task.samples.y.tolist()
    lots = task.key.bits("dropped", 2 * n).tolist()
    for number, index in enumerate(task.key.permutation("came", n).tolist()):
        row, classes = int(task.train[index]), list(dict.fromkeys(label[row] for row in stored))
        counts = Counter(label[row] for row in stored)
        y = label[row]
        if y in classes and counts[y] >= k / len(classes):
            continue
        if len(stored) >= k:
            largest = [one for one in classes if counts[one] == max(counts.values())]
            gone = largest[lots[2 * number] * len(largest) >> 32]
            members = [row for row in stored if label[row] == gone]
            stored = [row for row in stored if row != members[lots[2 * number + 1] * len(members) >> 32]]
        stored = [*stored, row]
    return stored


@pytest.mark.parametrize("capacity", [6, 7, 13, 20, 61, 200])
@pytest.mark.parametrize("make", [uneven, small_stream], ids=["uneven", "even"])
def test_gdumb_stores_as_its_algorithm_does(make: Any, capacity: int) -> None:
    for seed in range(4):
        stream = make(seed)
        memory, wanted = GDumb(capacity=capacity).init(NET, vector(0), stream), []
        for task in stream.tasks:
            before = memory["rows"].clone()
            theta, after = GDumb(capacity=capacity).before_task(NET, vector(1), memory, task)
            assert torch.equal(theta, vector(0)), "the network starts again"
            assert torch.equal(memory["rows"], before), "what is given stays"
            memory, kept = after, [row for row in after["rows"].tolist() if row >= 0]
            wanted = greedy_sampler([row for row in before.tolist() if row >= 0], task, capacity)
            assert sorted(kept) == sorted(wanted) and len(set(kept)) == len(kept) and len(after["rows"]) == capacity


def counts_of(stream: Stream, capacity: int, tasks: int = 3) -> list[int]:
    """How many samples of each class GDumb has stored after so many tasks."""
    rows = torch.full((capacity,), -1)
    for task in stream.tasks[:tasks]:
        rows = greedily(rows, task.train, task.samples, task.key)
    return stream.samples.y[rows[rows >= 0]].bincount(minlength=6).tolist()


def test_gdumb_balances_the_classes_that_have_enough() -> None:
    for seed in range(5):
        assert counts_of(small_stream(seed), 36) == [6] * 6
        assert counts_of(small_stream(seed), 36, tasks=1) == [12, 12, 0, 0, 0, 0]
        assert sorted(counts_of(small_stream(seed), 38)) in ([6] * 4 + [7] * 2, [6] * 5 + [8])
        nine, two, *others = counts_of(uneven(seed), 24)
        assert two == 2 and sum(others) + nine == 22 and max(nine, *others) <= 6
        assert counts_of(uneven(seed), 600) == [9, 2, 7, 8, 5, 30]


def test_gdumb_stores_every_row_of_a_class_equally_often() -> None:
    seeds, times = 800, Counter[int]()
    stream = small_stream(0)
    for seed in range(seeds):
        rows = torch.full((8,), -1)
        for index, task in enumerate(stream.tasks[:2]):
            rows = greedily(rows, task.train, task.samples, key(seed, index))
        times.update(rows.tolist())
    p = 2 / 12
    assert all(abs(times[row] - seeds * p) < 4.5 * (seeds * p * (1 - p)) ** 0.5 for row in range(48)), times


def test_gdumb_takes_classes_of_later_tasks_though_an_earlier_one_has_them() -> None:
    stream = small_stream(0, "domain")
    rows = torch.full((12,), -1)
    for task in stream.tasks:
        rows = greedily(rows, task.train, task.samples, task.key)
    assert Counter(stream.samples.task[rows].tolist()) == {0: 4, 1: 4, 2: 4}


def test_gdumb_learns_what_is_stored_so_often() -> None:
    for passes, capacity, times in ((None, 6, 4), (None, 500, 1), (None, 7, 3), (5, 6, 5)):
        alone = learner(GDumb(capacity=capacity, passes=passes))
        rows = alone.begin(0)
        kept = [row for row in alone.memory["rows"].tolist() if row >= 0]
        assert Counter(rows.tolist()) == dict.fromkeys(kept, times)


def test_gdumb_refuses_a_memory_without_room_for_each_class() -> None:
    with pytest.raises(BadChain, match="capacity=5 is too small for 6 classes; give 6 or more"):
        GDumb(capacity=5).suits(STREAM, NET)
    GDumb(capacity=6).suits(STREAM, NET)


def test_the_last_network_of_gdumb_is_the_one_that_learns_once_at_the_end() -> None:
    """Whatever was learnt before: θ starts again, with a fresh optimiser, and the memory depends on no θ."""

    def last(skipped: bool) -> torch.Tensor:
        alone = learner(GDumb(capacity=12))
        for task in STREAM.tasks:
            batches = alone.begin(task.index).split(5)
            program = Program(alone, task.index, batches)
            for number, rows in enumerate(batches if task.index == 2 or not skipped else []):
                program(number, rows)
        return alone.theta

    assert torch.equal(last(skipped=True), last(skipped=False))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("capacity", [12, 24, 36, 60])
def test_gdumb_of_avalanche_stores_equally_many_where_the_memory_divides_evenly(capacity: int) -> None:
    """Counts per class of what each task is learnt from."""
    avalanche()
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training.plugins import GDumbPlugin
    from avalanche.training.supervised import Naive

    class Seen(GDumbPlugin):
        counts: list[list[int]]

        def after_train_dataset_adaptation(self, strategy: Any, **options: Any) -> None:
            super().after_train_dataset_adaptation(strategy, **options)
            labels = torch.tensor(list(strategy.adapted_dataset.targets))
            self.counts.append(labels.bincount(minlength=6).tolist())

    plugin = Seen(capacity)
    plugin.counts = []
    net = torch.nn.Linear(9, 6).double()
    tensors = [(images(task.train).flatten(1), STREAM.samples.y[task.train]) for task in STREAM.tasks]
    their = Naive(
        model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=8, plugins=[plugin], evaluator=None,
    )  # fmt: skip
    for experience in tensors_benchmark(train_tensors=tensors, test_tensors=tensors, task_labels=[0] * 3).train_stream:
        their.train(experience)
    ours = [counts_of(STREAM, capacity, tasks) for tasks in (1, 2, 3)]
    assert plugin.counts == ours


# ---- MIR


def module_of(theta: torch.Tensor) -> torch.nn.Module:
    """The network as a module with the same weights."""
    net = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6)).double()
    torch.nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    return net


def raised(theta: torch.Tensor, batch: Batch, stored: list[int], seen: int, rate: float) -> list[float]:
    """By how much a step on a batch raises the loss of each stored sample, with copies of a module."""
    net, cross_entropy = module_of(theta), torch.nn.functional.cross_entropy
    future = copy.deepcopy(net)
    optimizer = torch.optim.SGD(future.parameters(), rate)
    cross_entropy(future(images(batch.row).flatten(1))[:, :seen], batch.y).backward()
    optimizer.step()
    found = []
    for row in stored:
        x, y = images(torch.tensor([row])).flatten(1), STREAM.samples.y[row][None]
        found.append((cross_entropy(future(x)[:, :seen], y) - cross_entropy(net(x)[:, :seen], y)).item())
    return found


def memory_of(*rows: int, capacity: int = 12) -> Memory:
    return {"rows": torch.tensor([*rows, *[-1] * (capacity - len(rows))]), "seen": torch.tensor(len(rows))}


STORED = (0, 3, 13, 14, 20, 24, 30, 47)  # five rows of the first task and three of the second


def interference(strategy: MIR, theta: torch.Tensor, rows: torch.Tensor, batch: Batch, task: Task) -> torch.Tensor:
    return strategy.interference(NET, theta, rows, strategy.incoming(NET, theta, batch, task)[1], task)


@pytest.mark.parametrize("rate", [0.1, 3.0])
@pytest.mark.parametrize("samples", [1, 4, 8])
def test_mir_takes_what_a_step_on_the_batch_would_harm_most(samples: int, rate: float) -> None:
    strategy, task = MIR(samples=samples, candidates=8, rate=rate), STREAM.tasks[1]
    for seed in range(4):
        theta, given = vector(seed, 1.0), batch_of(task, start=9)
        harm = raised(theta, given, list(STORED), 4, rate)
        batch = strategy.batch(NET, theta, memory_of(*STORED), given, task)
        wanted = [row for _, row in sorted(zip(harm, STORED, strict=True), reverse=True)]
        assert batch.row[5:].tolist() == wanted[:samples]
        assert torch.equal(batch.row[:5], given.row) and batch.own == 5
        scores = interference(strategy, theta, torch.tensor(STORED), given, task)
        torch.testing.assert_close(scores, torch.tensor(harm, dtype=torch.float64))


def test_mir_foresees_the_weights_of_the_batch() -> None:
    """Those that an earlier part of a chain has given it: a sample that weighs nothing has no part in the step."""
    theta, task, stored = vector(3, 1.0), STREAM.tasks[1], torch.tensor(STORED)
    given = batch_of(task, start=9)
    weighted = given._replace(weight=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    first = batch_of(task, start=9, size=3)
    got, wanted = (interference(MIR(), theta, stored, one, task) for one in (weighted, first))
    close(got, wanted)
    assert not torch.allclose(wanted, interference(MIR(), theta, stored, given, task))


@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
@pytest.mark.parametrize(("text", "spared"), [
    ("mir", True), ("mir:past=true,rate=1", True), ("mir:combine=sum", False), ("mir+replay:capacity=9", False),
    ("replay:capacity=9+mir", False), ("mir+ewc", False), ("mir+a-gem", False),
])  # fmt: skip
def test_samples_that_have_passed_in_a_hook_need_not_pass_again(
    monkeypatch: pytest.MonkeyPatch, text: str, spared: bool, seeds: list[int]
) -> None:
    """The step passes the joined ones alone, and comes to the same."""
    passed, forward = [], LinearNet.forward

    def outcome() -> dict[str, torch.Tensor]:
        alone = learners_of(config.make_strategy(text), seeds)
        arrays, _ = train(alone, replace(TRAINING, batch=5, last="drop"), Watch())
        return {"θ": alone.theta, "loss": arrays["loss"]} | alone.memory

    def counted(self: LinearNet, theta: torch.Tensor, x: torch.Tensor, *rest: Any) -> Any:
        passed.append(len(x))
        return forward(self, theta, x, *rest)

    monkeypatch.setattr(Net, "learn", lambda self, theta, x, tasks, fixed: (counted(self, theta, x, tasks), None))
    found, joined = outcome(), 10 if "replay" in text else 5
    assert max(passed) == (joined if spared else joined + 5)
    monkeypatch.setattr(Program, "_spares", lambda self: False)
    passed.clear()
    wanted = outcome()
    assert max(passed) == joined + 5
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


class Centred(LinearNet):
    """Centres what comes out by its batch while it learns."""

    def learn(self, theta: torch.Tensor, x: torch.Tensor, tasks: torch.Tensor, fixed: bool = False) -> tuple[Out, None]:
        out = self.forward(theta, x, tasks)
        return Out(out.logits - out.logits.mean(0), out.features), None


@pytest.mark.parametrize(("change", "spares"), [
    ({}, True), ({"augmentation": config.make("augmentations", "images:flip=true")}, False),
    ({"precision": "bfloat16"}, False), ({"net": Centred((9, 6, 6))}, False),
    ({"net": config.make("models", "resnet18:norm=batch,width=4").build((1, 8, 8), 6, 3)}, False),
    ({"net": config.make("models", "resnet18:norm=group,width=4").build((1, 8, 8), 6, 3)}, True),
])  # fmt: skip
def test_samples_pass_again_where_the_step_passes_them_otherwise(change: dict[str, Any], spares: bool) -> None:
    recipe = replace(learners_of(MIR(), [0]).recipe, **change)
    assert Program(Learners(recipe, [STREAM], [0]), 0, []).spares is spares


def test_mir_foresees_by_the_images_that_a_hook_has_put_there() -> None:
    task, theta = STREAM.tasks[1], vector(0)
    batch = batch_of(task)
    other = batch._replace(x=images(batch.row).flip(-1))
    (_, plain), (_, flipped) = (MIR().incoming(NET, theta, one, task) for one in (batch, other))
    live = theta.clone().requires_grad_()
    logits = task.outputs.apply(NET.logits(live, other.images), task.index, batch.task)
    (wanted,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, batch.y), live)
    torch.testing.assert_close(flipped, wanted)
    assert not torch.allclose(plain, flipped)


@pytest.mark.filterwarnings("ignore")
def test_difference_candidates_of_avalanche_are_not_of_the_last_batch_s_classes() -> None:
    """Its memory has samples of the task that was learnt last, none of which is looked at in the next one."""
    avalanche()
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training.plugins import MIRPlugin
    from avalanche.training.supervised import Naive

    net, plugin = torch.nn.Linear(9, 6).double(), MIRPlugin(batch_size_mem=3, mem_size=24, subsample=24)
    tensors = [(images(task.train).flatten(1), STREAM.samples.y[task.train]) for task in STREAM.tasks]
    their = Naive(
        model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=24, plugins=[plugin], evaluator=None,
    )  # fmt: skip
    seen = []
    for experience in tensors_benchmark(train_tensors=tensors, test_tensors=tensors, task_labels=[0] * 3).train_stream:
        their.train(experience)
        looked_at = set() if plugin.replay_loader is None else set(next(plugin.replay_loader)[1].tolist())
        seen.append((set(plugin.storage_policy.buffer_groups), looked_at))
    assert seen == [({0, 1}, set()), ({0, 1, 2, 3}, {0, 1}), ({0, 1, 2, 3, 4, 5}, {0, 1, 2, 3})]
    task, theta = STREAM.tasks[1], vector(0)
    ours = MIR(samples=9, candidates=9).batch(NET, theta, memory_of(*STORED), batch_of(task), task)
    assert STREAM.samples.y[ours.row[5:]].max() >= 2, "ours are of the whole memory"


def test_mir_draws_its_candidates_without_replacement() -> None:
    """As many as asked for, five for each that joins by default; all of them where fewer are stored."""
    theta, task, counts = vector(0), STREAM.tasks[1], Counter[int]()
    for step in range(400):
        batch = MIR(samples=3, candidates=3).batch(NET, theta, memory_of(*STORED), batch_of(task, step=step), task)
        assert len(set(batch.row[5:].tolist())) == 3 and set(batch.row[5:].tolist()) <= set(STORED)
        counts.update(batch.row[5:].tolist())
    assert all(110 < counts[row] < 190 for row in STORED), counts
    firsts = {
        candidates: {
            int(MIR(samples=1, candidates=candidates).batch(NET, theta, memory_of(*STORED), one, task).row[5])
            for one in (batch_of(task, step=step) for step in range(30))
        }
        for candidates in (None, 5, 8, 2)
    }
    assert firsts[None] == firsts[5] and len(firsts[8]) == 1 and firsts[8] < firsts[5] <= firsts[2]
    fewer = MIR(candidates=4).batch(NET, theta, memory_of(*STORED), batch_of(task), task)
    assert len(fewer.row) == 5 + 4, "no more can join than there are candidates"
    with pytest.raises(BadOption, match="mir: of candidates=4 not samples=9 can be chosen"):
        MIR(samples=9, candidates=4)


def test_mir_of_past_tasks_alone() -> None:
    theta, strategy = vector(0), MIR(past=True, samples=6)
    batch = strategy.batch(NET, theta, memory_of(*STORED), batch_of(STREAM.tasks[1]), STREAM.tasks[1])
    assert set(batch.row[5:][:5].tolist()) == set(STORED[:5])
    assert batch.weight is not None and batch.weight.tolist() == [1] * 10 + [0]
    assert strategy.first_task_like_finetuning and not MIR().first_task_like_finetuning


def test_mir_one_loss_of_all_or_two_added() -> None:
    theta, task = vector(2), STREAM.tasks[1]
    for samples in (2, 5):
        batch = MIR(samples=samples).batch(NET, theta, memory_of(*STORED), batch_of(task, start=9), task)
        logits, seen = NET.logits(theta, images(batch.row)), [0, 1, 2, 3]
        close(loss_of(MIR(), theta, batch, task), entropy(logits, batch.y, seen))
        added = entropy(logits[:5], batch.y[:5], seen) + entropy(logits[5:], batch.y[5:], seen)
        close(loss_of(MIR(combine="sum"), theta, batch, task), added)
    assert MIR(combine="sum").has("loss") and not MIR().has("loss")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_mir_with_added_losses_is_the_plugin_of_avalanche(seed: int) -> None:
    """The same batch and candidates, all outputs active: the same choice, and so the same loss."""
    avalanche()
    from avalanche.training.plugins import MIRPlugin

    stream = small_stream(0)
    all_active = dataclasses.replace(stream.tasks[1].outputs, active="all")
    task, theta = dataclasses.replace(stream.tasks[1], outputs=all_active), vector(seed, 1.0)
    rate, given, stored = 0.7, batch_of(task, start=9), torch.tensor(STORED)
    strategy = MIR(samples=3, rate=rate, combine="sum")
    batch = strategy.batch(NET, theta, memory_of(*STORED), given, task)
    net, criterion = module_of(theta), torch.nn.CrossEntropyLoss()
    plugin = MIRPlugin(batch_size_mem=3, subsample=8)
    labels = STREAM.samples.y[stored]
    plugin.replay_loader = iter([(images(stored).flatten(1), labels, torch.zeros_like(labels))])
    their = SimpleNamespace(
        model=net, device="cpu", _criterion=criterion, optimizer=torch.optim.SGD(net.parameters(), rate),
        loss=criterion(net(images(given.row).flatten(1)), given.y),
    )  # fmt: skip
    plugin.before_backward(their)
    close(loss_of(strategy, theta, batch, task), their.loss.detach())


# ---- GSS


def gradient_of(theta: torch.Tensor, row: int, seen: int) -> torch.Tensor:
    """The gradient of one sample's cross-entropy over the outputs seen, of a module."""
    net = module_of(theta)
    logits = net(images(torch.tensor([row])).flatten(1))[:, :seen]
    torch.nn.functional.cross_entropy(logits, STREAM.samples.y[row][None]).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


class Whole(LinearNet):
    """A network that does not say that its layers are linear."""

    def linear_layers(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("held", [gss.HELD, 3 * NET.size, 1])
@pytest.mark.parametrize("kind", [LinearNet, Whole])
def test_cosines_of_gradients(kind: Any, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From layers, or from whole gradients of which a few are held at a time."""
    monkeypatch.setattr(gss, "HELD", held)
    net, task = kind((9, 6, 6)), STREAM.tasks[1]
    for seed in range(2):
        theta, own, others = vector(seed, 1.0), task.train[9:16], torch.tensor(STORED)
        a, b = ([gradient_of(theta, int(row), 4) for row in rows] for rows in (own, others))
        wanted = torch.tensor([[cosine(g, h) for h in b] for g in a], dtype=torch.float64)
        close(gss.cosines(net, theta, own, others, task), wanted)
        mapped = torch.vmap(lambda theta: gss.cosines(net, theta, own, others, task))(torch.stack([theta, 2 * theta]))  # noqa: B023
        close(mapped[0], wanted)


def test_cosines_with_gates_and_of_gradients_that_vanish() -> None:
    class Half(Gated):
        def gates(self, p: dict[str, torch.Tensor], tasks: torch.Tensor) -> list[torch.Tensor]:
            return [torch.stack([tasks, 1 - tasks, tasks, tasks, 1 - tasks, tasks], 1).double()]

    theta, task, others = vector(0, 1.0), STREAM.tasks[1], torch.tensor(STORED)
    layers, whole = (gss.cosines(Half(kind((9, 6, 6))), theta, task.train, others, task) for kind in (LinearNet, Whole))
    close(layers, whole)
    assert not torch.allclose(layers, gss.cosines(NET, theta, task.train, others, task))
    certain = NET.parameters(sure := vector(0))["head.bias"]
    certain[2] = 1e6
    row = torch.tensor([int(task.train[0])])
    assert int(STREAM.samples.y[row]) == 2 and gss.cosines(NET, sure, row, others, task).tolist() == [[0.0] * 8]


def scores_of(strategy: GSS, *pairs: tuple[int, float]) -> Memory:
    """A memory with rows and their scores."""
    memory = strategy.init(NET, vector(0), STREAM)
    for slot, (row, score) in enumerate(pairs):
        memory["rows"][slot], memory["scores"][slot] = row, score
    return memory


@pytest.mark.parametrize("compare", [1, 4, 10])
@pytest.mark.parametrize("seed", range(3))
def test_gss_of_single_samples_is_its_algorithm(seed: int, compare: int) -> None:
    """Algorithm 2, one by one, in numpy, with gradients of a module and the same draws."""
    strategy, capacity = GSS(capacity=7, compare=compare), 7
    memory, rows, scores = strategy.init(NET, vector(0), STREAM), [], []
    replaced = 0
    for step in range(48):
        task, theta = STREAM.tasks[step // 24], vector(100 * seed + step, 1.0)
        start = step % 24 if seed else (7 * step) % 24
        batch = batch_of(task, start, size=1, step=step)._replace(key=key(seed, task.index, step))
        memory = stepped(strategy, memory, batch, task, theta)
        row, seen = int(batch.row[0]), 2 * (task.index + 1)
        lots = batch.key.bits("drawn", capacity).tolist()
        subset = sorted(range(len(rows)), key=lambda slot: -lots[slot])[:compare]
        g = gradient_of(theta, row, seen)
        c = 1 + max((cosine(g, gradient_of(theta, rows[slot], seen)) for slot in subset), default=0.1)
        if len(rows) < capacity:
            rows, scores = [*rows, row], [*scores, c]
        elif c < 1:
            u, r = batch.key.uniform("slot", 2, 1).double().flatten().tolist()
            p = np.array(scores) / np.sum(scores)
            slot = int(np.searchsorted(np.cumsum(p), u, side="right"))
            if r < scores[slot] / (scores[slot] + c):
                rows[slot], scores[slot] = row, c
                replaced += 1
        assert memory["rows"].tolist() == rows + [-1] * (capacity - len(rows))
        close(memory["scores"][: len(rows)], scores)
    assert replaced


def gss_of_avalanche(theta: torch.Tensor, capacity: int, compare: int) -> tuple[Any, Any]:
    """Its plug-in, and a strategy whose current batch is of the rows given."""
    avalanche()
    from avalanche.training.plugins import GSS_greedyPlugin

    net, criterion = module_of(theta).float(), torch.nn.CrossEntropyLoss()
    plugin = GSS_greedyPlugin(capacity, compare, [9])

    def batch(rows: torch.Tensor) -> Any:
        x, y = images(rows).flatten(1).float(), STREAM.samples.y[rows]
        return SimpleNamespace(model=net, device="cpu", _criterion=criterion, mb_x=x, mb_y=y)

    return plugin, batch


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_single_samples_are_those_of_the_plugin_of_avalanche(seed: int) -> None:
    """In batches of one sample, compared with all that is stored, until that is full; its are cosines, ours 1 more."""
    task, theta = STREAM.tasks[2], vector(seed, 1.0)  # all six outputs are active
    strategy, (plugin, of) = GSS(capacity=9, compare=9), gss_of_avalanche(theta, 9, 9)
    memory = strategy.init(NET, theta, STREAM)
    for start in range(9):
        batch = batch_of(task, start, size=1, step=start)
        memory = stepped(strategy, memory, batch, task, theta)
        plugin.after_forward(of(batch.row))
    assert memory["rows"].tolist() == task.train[:9].tolist() and plugin.ext_mem_list_current_index == 9
    scores = plugin.buffer_score.double() + 1
    torch.testing.assert_close(memory["scores"], scores, rtol=1e-5, atol=1e-6)
    assert scores.std() > 0.1


def test_difference_gss_of_avalanche_compares_with_gradients_of_batches() -> None:
    """Batches of four: what comes is compared with the mean gradient of four stored samples, and not with theirs."""
    task, theta = STREAM.tasks[2], vector(0, 1.0)
    strategy, (plugin, of) = GSS(capacity=8, compare=8), gss_of_avalanche(theta, 8, 1)
    memory, batches = strategy.init(NET, theta, STREAM), task.train[[0, 12, 1, 13, 2, 14, 3, 15]].split(4)
    for step, rows in enumerate(batches):
        batch = batch_of(task, size=4, step=step)._replace(row=rows, y=STREAM.samples.y[rows])
        memory = stepped(strategy, memory, batch, task, theta)
        plugin.after_forward(of(rows))
    stored, came = ([gradient_of(theta, int(row), 6) for row in rows] for rows in batches)
    mean = torch.stack(stored).mean(0)
    near = {"rtol": 1e-5, "atol": 1e-6}
    theirs = torch.tensor([cosine(g, mean) for g in came])
    ours = torch.tensor([max(cosine(g, h) for h in stored) for g in came])
    torch.testing.assert_close(plugin.buffer_score[4:], theirs, **near)
    torch.testing.assert_close(memory["scores"][4:].float() - 1, ours, **near)
    assert (ours - theirs).abs().max() > 0.1


def test_difference_gss_of_avalanche_leaves_a_batch_out_whose_own_cosine_is_positive() -> None:
    """The memory is full, and the batch mostly like it; the one sample that is not would find a place alone."""
    task, theta = STREAM.tasks[2], vector(0, 1.0)
    plugin, of = gss_of_avalanche(theta, 4, 1)
    plugin.after_forward(of(task.train[:4]))
    before = plugin.ext_mem_list_x.clone()
    cosines = gss.cosines(NET, theta, task.train, task.train[:4], task).amax(1)
    apart, alike = task.train[cosines < 0], task.train[:3]
    assert len(apart)
    for _ in range(20):
        plugin.after_forward(of(torch.cat([alike, apart[:1]])))
        assert plugin.ext_mem_list_x.equal(before)
    batch = batch_of(task)._replace(row=apart[:1], y=STREAM.samples.y[apart[:1]], own=1)
    memory = scores_of(GSS(capacity=4), *[(int(row), 1.9) for row in task.train[:4]])
    stored = [
        stepped(GSS(capacity=4), memory, batch._replace(key=key(0, 2, step)), task, theta)["rows"] for step in range(20)
    ]
    assert sum(int(apart[0]) in rows.tolist() for rows in stored) > 5


def test_gss_stores_with_the_probability_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot i with C_i / Σ C, and then the sample with C_i / (C_i + c); of two that win a slot the later has it."""
    cos = torch.tensor([-0.4, 0.3, -0.9], dtype=torch.float64)
    monkeypatch.setattr(gss, "cosines", lambda *_: cos[:, None].expand(3, 3) - torch.tensor([0.0, 0.2, 0.4]))
    C, c = torch.tensor([1.5, 0.3, 0.9], dtype=torch.float64), cos + 1
    task, theta, runs, counts = STREAM.tasks[1], vector(0), 6000, Counter[tuple[int, int]]()
    own = task.train[:3]
    before = scores_of(GSS(capacity=3, compare=3), *zip((0, 3, 13), C.tolist(), strict=True))

    def one(seed: torch.Tensor) -> torch.Tensor:
        batch = batch_of(task, size=3)._replace(key=Key(seed, 0, torch.tensor(0)))
        return stepped(GSS(capacity=3, compare=3), before, batch, task, theta)["rows"]

    for rows in torch.vmap(one)(torch.arange(runs)).tolist():
        counts.update((slot, row) for slot, row in enumerate(rows))
    first, last = (C / C.sum() * C / (C + c[sample]) for sample in (0, 2))
    for slot in range(3):
        for row, p in ((int(own[0]), first[slot] * (1 - last[slot])), (int(own[1]), 0.0), (int(own[2]), last[slot])):
            assert abs(counts[slot, row] - runs * p) <= 4.5 * (runs * p * (1 - p)) ** 0.5, (slot, row, counts, p)


def test_gss_fills_its_memory_first_and_a_batch_sees_what_was_stored_before_it() -> None:
    """Samples of one batch are not compared with each other: the first ones all have the cosine that is given."""
    theta, task = vector(0, 1.0), STREAM.tasks[0]
    strategy = GSS(capacity=8, first=0.25)
    memory = stepped(strategy, strategy.init(NET, theta, STREAM), batch_of(task, 0, 5), task, theta)
    assert memory["rows"].tolist() == [*task.train[:5].tolist(), -1, -1, -1]
    close(memory["scores"], [1.25] * 5 + [0.0] * 3)
    after = stepped(strategy, memory, batch_of(task, 9, 8, step=1), task, theta)
    assert after["rows"][5:].tolist() == task.train[9:12].tolist()
    stored = [gradient_of(theta, int(row), 2) for row in task.train[:5]]
    wanted = [1 + max(cosine(gradient_of(theta, int(row), 2), g) for g in stored) for row in task.train[9:12]]
    close(after["scores"][5:], wanted)
    small = GSS(capacity=2)
    full = stepped(small, small.init(NET, theta, STREAM), batch_of(task, 0, 5), task, theta)
    assert full["rows"].tolist() == task.train[:2].tolist(), "what comes with the first has no slot to draw"


def test_gss_keeps_out_what_is_like_what_it_has() -> None:
    """A stored sample that comes again has the cosine 1 with itself, so it is not stored twice."""
    theta, task = vector(0, 1.0), STREAM.tasks[0]
    strategy = GSS(capacity=5)
    memory = stepped(strategy, strategy.init(NET, theta, STREAM), batch_of(task, 0, 5), task, theta)
    for step in range(20):
        again = stepped(strategy, memory, batch_of(task, 0, 5, step=1 + step), task, theta)
        assert again["rows"].tolist() == memory["rows"].tolist()


def test_gss_compares_with_so_many() -> None:
    theta, task = vector(0, 1.0), STREAM.tasks[1]
    scores = {}
    for compare in (1, 2, 8):
        strategy = GSS(capacity=12, compare=compare)
        memory = scores_of(strategy, *((row, 1.0) for row in STORED))
        runs = [stepped(strategy, memory, batch_of(task, 9, 1, step), task, theta)["scores"][8] for step in range(100)]
        scores[compare] = {round(float(score), 9) for score in runs}
    assert (len(scores[1]), len(scores[8])) == (8, 1) and 1 < len(scores[2]) < 8
    assert max(scores[1]) == max(scores[8]) and scores[2] < scores[1]


@pytest.mark.parametrize("text", ["gss+ewc", "gss:capacity=9+mir:capacity=5", "gss:capacity=6,compare=20,samples=2"])
def test_chains_of_gss(text: str) -> None:
    check(text)


# ---- chains


@pytest.mark.parametrize(("text", "wanted"), [
    ("replay:capacity=8+der:capacity=20,samples=3", {"0/": (5, 10), "1/": (10, 13)}),
    ("der++:capacity=20,samples=3+replay:capacity=8,samples=2", {"0/": (5, 11), "1/": (11, 13)}),
    ("er-ace:capacity=20+ewc", {"0/": (5, 10), "1/": (10, 10)}),
])  # fmt: skip
def test_each_part_of_a_chain_knows_what_it_has_joined(text: str, wanted: dict[str, tuple[int, int]]) -> None:
    """And replayed samples weigh as much as the step's own, whatever other parts have joined at no weight."""
    chain, task = config.make_strategy(text), STREAM.tasks[1]
    memory = chain.init(NET, vector(0), STREAM)
    for name, value in memory.items():
        if name.endswith("rows"):
            value[: len(STORED)] = torch.tensor(STORED)[: len(value)]
        elif name.endswith("seen"):
            value.fill_(len(STORED))
    batch = chain.batch(NET, vector(0), memory, batch_of(task), task)
    for path, places in wanted.items():
        joined = batch._replace(key=batch.key.child(path)).joined
        assert (joined.start, joined.stop) == places
    assert len(batch.row) == max(last for _, last in wanted.values()) and batch.weight is not None
    shares = {path: float(batch.weight[slice(*places)].sum()) for path, places in wanted.items()}
    own = float(batch.weight[:5].sum())
    for (path, (first, last)), part in zip(wanted.items(), chain.parts, strict=True):
        per_sample = shares[path] / max(last - first, 1)
        assert per_sample == pytest.approx(0 if "DER" in type(part).__name__ or first == last else own / 5)


@pytest.mark.parametrize("first", ["er-ace", "mir:combine=sum"])
def test_what_another_part_of_a_chain_joins_is_learnt(first: str) -> None:
    def losses(chain: str) -> list[float]:
        run = cl.run("split-digits:limit=12,tasks=3", chain, seeds=1, epochs=1, batch=16, model="mlp:layers=8")
        return run.arrays["loss"][0].tolist()  # type: ignore[no-any-return]

    alone, few, many = losses(first), losses(f"{first}+replay:capacity=6"), losses(f"{first}+replay:capacity=60")
    assert alone != few != many != alone


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("gem:repeat=once", "repeat=once does nothing without rehearse=true"),
        ("fdr:distance=square,rounding=0.1", "rounding=0.1 does nothing with distance=square"),
        ("icarl:outputs=softmax,reduce=mean", "reduce=mean does nothing with outputs=softmax"),
        ("shared-trunk:trunk=frozen,rate=0.5", "rate=0.5 does nothing with trunk=frozen"),
        ("packnet:retrain=0,retrain_lr=0.1", "retrain_lr=0.1 does nothing with retrain=0"),
        ("ewc:fisher_batch=4", "and label=expected takes all; give label=true, sampled or argmax"),
    ],
)
def test_options_that_do_nothing_are_refused(strategy: str, told: str) -> None:
    with pytest.raises(BadOption, match=told):
        config.make_strategy(strategy)
