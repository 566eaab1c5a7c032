"""Methods that store, choose or weigh replayed samples in a way of their own: against loops and avalanche-lib."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from continual.conformance import check, small_stream
from continual.learning.models import MLP, Out
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.strategies.er_ace import ERACE
from continual.streams.rng import key
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
        program = Program(alone, task.index, len(batches))
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


ONLINE = [ERACE]


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("capacity", [4, 100])
def test_the_memory_has_no_row_twice_after_an_epoch_and_all_that_came_by_if_there_is_room(
    method: Any, capacity: int
) -> None:
    rows = filled(method(capacity=capacity), 2)["rows"]
    kept = rows[rows >= 0].tolist()
    assert len(set(kept)) == len(kept) == min(capacity, 48) and rows.shape == (capacity,)
    assert set(kept) <= {row for task in STREAM.tasks[:2] for row in task.train.tolist()}


@pytest.mark.parametrize("method", ONLINE)
def test_as_long_as_nothing_is_stored_a_batch_is_learnt_alone(method: Any) -> None:
    strategy, theta, task = method(), vector(0), STREAM.tasks[0]
    memory = strategy.init(NET, theta, STREAM)
    batch = strategy.batch(NET, theta, memory, batch_of(task, start=9), task)
    close(loss_of(strategy, theta, batch, task), entropy(NET.logits(theta, images(batch.row[:5])), batch.y[:5], [0, 1]))
    assert batch.weight is not None and batch.weight[5:].tolist() == [0] * (len(batch.row) - 5)


@pytest.mark.parametrize("method", ONLINE)
def test_stored_samples_join_as_many_as_are_asked_for(method: Any) -> None:
    memory, theta, task = filled(method(), 1), vector(0), STREAM.tasks[1]
    for samples, count in ((None, 5), (3, 3)):
        batch = method(samples=samples).batch(NET, theta, memory, batch_of(task), task)
        joined = batch.row[5:].tolist()
        assert len(joined) == count and set(joined) <= set(memory["rows"].tolist()) - {-1}
        assert batch.weight is not None and batch.weight.tolist() == [1] * (5 + count)


@pytest.mark.parametrize("method", ONLINE)
def test_weights_of_an_earlier_part_of_a_chain_stay_in_proportion(method: Any) -> None:
    memory, theta, task = filled(method(), 1), vector(0), STREAM.tasks[1]
    given = batch_of(task)._replace(weight=torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2], dtype=torch.float64))
    batch = method(samples=2).batch(NET, theta, memory, given, task)
    assert batch.weight is not None
    close(batch.weight, [0.5, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "text", ["er-ace+ewc", "replay+er-ace", "er-ace:capacity=7+replay:fill=reservoir,capacity=5", "er-ace+a-gem"]
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


@pytest.mark.filterwarnings("ignore")
def test_er_ace_averaged_is_the_criterion_of_avalanche() -> None:
    criterion, task, theta = avalanche().ACECriterion(), STREAM.tasks[2], vector(2)
    batch = ERACE().joined(batch_of(task, start=9), torch.tensor([0, 13, 30, 44]), theta, task)
    out = NET.logits(theta, images(batch.row))
    wanted = criterion(out[:5], batch.y[:5], out[5:], batch.y[5:])
    close(loss_of(ERACE(combine="mean"), theta, batch, task), wanted)
    close(loss_of(ERACE(), theta, batch, task), 2 * wanted)
