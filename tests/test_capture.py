"""Recorded steps: the same numbers as one by one, whatever a strategy does with its memory."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import continual as cl
from continual import config, plugins
from continual.conformance import TRAINING, check, learners_of, small_stream
from continual.learning import capture, step
from continual.learning.capture import RARE, Captured, Graph
from continual.learning.models import Net, Out
from continual.learning.optimizers import Cosine
from continual.learning.seeds import Learners
from continual.learning.strategy import Batch, Chain, Memory, Step, Strategy
from continual.learning.train import Course, Watch, not_captured, program_of, steps_done, train
from continual.learning.training import Training
from continual.strategies import EWC, Replay
from continual.streams.rng import Draw, draws, key
from continual.streams.stream import Stream, Task

pytestmark = pytest.mark.usefixtures("often")

STRATEGIES = [
    *plugins.registered("strategies"), "ewc+replay", "si+replay:fill=reservoir,capacity=6", "ewc:terms=each+si+l2",
    "mas+shared-trunk:trunk=slowed,rate=0.5", "replay:capacity=7+replay:capacity=9,fill=reservoir",
]  # fmt: skip


WITHOUT_STEPS = ["joint:every=false", "cumulative:every=false+replay:capacity=9,fill=reservoir+ewc"]
"""All tasks but the last have none."""


def both(strategy: Strategy, seeds: list[int], training: Training = TRAINING) -> list[dict[str, torch.Tensor]]:
    """Everything that training gave, one by one and recorded."""
    found = []
    for program in ("eager", "auto"):
        learners = learners_of(strategy, seeds)
        arrays, stopped = train(learners, replace(training, program=program), Watch())
        assert not stopped
        found.append(arrays | {"θ": learners.theta.detach()} | learners.memory)
    return found


@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
@pytest.mark.parametrize("text", [*STRATEGIES, *WITHOUT_STEPS])
def test_recorded_steps_give_the_same_numbers(text: str, seeds: list[int]) -> None:
    """Batches of 7 leave a partial one in every epoch; there are more steps than random numbers in a block."""
    eager, captured = both(config.make_strategy(text), seeds, replace(TRAINING, batch=7, epochs=3, evaluate_every=5))
    assert eager.keys() == captured.keys()
    for name, value in eager.items():
        assert torch.allclose(captured[name], value, rtol=1e-9, atol=1e-12, equal_nan=True), name


@pytest.mark.parametrize("program", ["eager", "captured"])
def test_a_course_leaves_nothing_to_the_garbage_collector(program: Any) -> None:
    """Its random numbers and its graphs may be large, and the collector seldom comes."""
    gc.collect()
    gc.disable()
    try:
        train(learners_of(Replay(capacity=5), [0]), replace(TRAINING, program=program), Watch())
        left = [one for one in gc.get_objects() if type(one) in (step.Program, Captured, Graph)]
    finally:
        gc.enable()
    assert not left


def test_random_numbers_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "POOLED_STEPS", 4)
    monkeypatch.setattr(step, "POOLED_STEPS", 4)
    eager, captured = both(Replay(capacity=5, fill="reservoir"), [0, 3], replace(TRAINING, epochs=5))
    assert all(torch.equal(captured[name], value) for name, value in eager.items())


@dataclass(frozen=True)
class Draws(Strategy):
    """It draws a number for each sample of a batch."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"sum": torch.zeros_like(theta[0])}

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        return theta, {"sum": memory["sum"] + step.batch.key.uniform("lots", step.batch.own).sum()}


@pytest.mark.parametrize("program", ["eager", "captured"])
def test_a_step_draws_for_its_own_size_of_batch_and_no_other(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of 24, 18 and 20 rows, by sevens: each has another last batch, which is one step of an epoch."""
    whole = small_stream(0)
    rows = torch.cat([task.train[:keep] for task, keep in zip(whole.tasks, (24, 18, 20), strict=True)])
    x, y = whole.samples.pixels[whole.samples.image[rows]], whole.samples.y[rows]
    stream = Stream.from_arrays(x, y, x, y, tasks=3, scenario="class")
    learners = Learners(learners_of(Draws(), [0]).recipe, [stream], [0])
    course = Course(learners, replace(TRAINING, batch=7, epochs=4, program=program), Watch())
    drawn: list[tuple[int, int]] = []

    def noting(seed: torch.Tensor, wanted: set[Draw], task: int, steps: torch.Tensor) -> Any:
        assert course.program is not None and len(wanted) <= 1
        for _, n, *_ in wanted:
            assert {course.program.sizes[number] for number in steps.tolist()} == {n}
            drawn.extend((task, number) for number in steps.tolist())
        return draws(seed, wanted, task, steps)

    monkeypatch.setattr(step, "draws", noting)
    expected, sizes = 0.0, []
    while course.task < course.tasks:
        index = course.task
        course.learn()
        assert course.program is not None
        sizes.append(course.program.sizes)
        for number, size in enumerate(course.program.sizes):
            expected += float(key(0, index, number).child("step").uniform("lots", size).sum())
    assert [found[-1] for found in sizes] == [3, 4, 6] and len(drawn) == len(set(drawn))
    # what is noted as it is asked for is not in a block: the first of all, of each task's, and of each other size
    assert len(drawn) >= sum(map(len, sizes)) - 3 - 3
    assert float(learners.memory["sum"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd:lr=0.1", "adam", "adamw", "adagrad"])
def test_learning_rates_follow_the_schedule(optimizer: str) -> None:
    found = []
    for program in ("eager", "captured"):
        learners = learners_of(EWC(), [0])
        recipe = replace(learners.recipe, optimizer=config.make("optimizers", optimizer), schedule=Cosine())
        learners = Learners(recipe, learners.streams, [0])
        train(learners, replace(TRAINING, program=program), Watch())
        found.append(learners.theta.detach())
    assert torch.equal(*found)


@dataclass(frozen=True)
class Juggles(Strategy):
    """Its memory's values change names in every step, share one place at a task's end, and lie in odd ways."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        one = torch.arange(4, dtype=theta.dtype, device=theta.device)
        return {"a": one, "b": one + 10, "c": one.expand(3, 4), "d": one, "sum": torch.zeros_like(one[0])}

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        a, b, c, d = (memory[name] for name in "abcd")
        return theta, {"a": b, "b": d + 1, "c": c.flip(0), "d": a, "sum": memory["sum"] + a[0] * b[1] + d[2]}

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta, memory | {"b": memory["a"], "d": memory["a"]}


@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
def test_memory_may_change_places(seeds: list[int]) -> None:
    eager, captured = both(Juggles(), seeds)
    assert float(eager["sum"].max()) > 400
    for name in (*"abcd", "sum"):
        assert torch.equal(eager[name], captured[name]), name


def test_memory_stays_where_it_lies() -> None:
    """What a graph has recorded are addresses."""
    learners = learners_of(config.make_strategy("si+replay:fill=reservoir,capacity=6"), [0])
    learners.begin(0)
    batches = [rows.clone() for rows in learners.streams[0].tasks[0].train.split(4)]
    losses = torch.zeros(len(batches), dtype=torch.float64)
    steps = Captured(learners)
    steps.begin(step.Program(learners, 0, batches), batches, losses, [0.1] * len(batches))
    steps(0)
    places = {name: value.data_ptr() for name, value in learners.memory.items()}
    before = {name: value.clone() for name, value in learners.memory.items()}
    for number in range(1, len(batches)):
        steps(number)
    assert {name: value.data_ptr() for name, value in learners.memory.items()} == places
    assert len(set(places.values())) == len(places)
    assert any(not torch.equal(before[name], value) for name, value in learners.memory.items())
    assert losses.all()


@dataclass(frozen=True)
class ByHand(Strategy):
    """Something that PyTorch cannot record."""

    can_be_captured = False


def test_why_steps_are_not_recorded() -> None:
    class On:
        """Learners as they would be on a GPU."""

        def __init__(self, strategy: Any, mapped: bool = False) -> None:
            learners = learners_of(EWC(), [0])
            self.device, self.strategy, self.streams = torch.device("cuda"), strategy, learners.streams

    auto, asked = Training(), Training(program="captured")
    for training in (auto, asked):
        assert not_captured(On(ByHand()), training) == "the strategy cannot be captured"  # type: ignore[arg-type]
        assert not_captured(On(EWC()), training) == "images are read from their file"  # type: ignore[arg-type]
        assert not_captured(learners_of(EWC(), [0]), training) == ""
        assert program_of(steps_done(learners_of(EWC(), [0]), training)) == f"eager: {RARE}", (
            "the record, where no step was done"
        )
    compiled = program_of(steps_done(learners_of(EWC(), [0]), Training(compile=True)))
    assert compiled == "eager: what is compiled is not recorded on a CPU; the forward pass is compiled"
    mapped = learners_of(EWC(), [0])
    mapped.streams = [replace(mapped.streams[0], samples=replace(mapped.streams[0].samples, in_file=True))]
    assert not_captured(mapped, auto) == "images are read from their file"
    assert program_of(steps_done(learners_of(ByHand(), [0]), asked)) == "eager: the strategy cannot be captured"
    assert not_captured(On(EWC()), Training(program="eager")) == "as asked"  # type: ignore[arg-type]
    assert config.make_strategy("ewc+replay").can_be_captured
    assert not Chain((ByHand(), EWC())).can_be_captured


class Operations(TorchDispatchMode):
    """What a graph would record: operations, their numbers, and where the tensors lie that come from elsewhere."""

    def __init__(self, captured: Captured) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = kept_by(captured)
        self.found: list[Any] = []
        self.made: dict[int, torch.Tensor] = {}  # alive, so that no address is taken twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See :class:`TorchDispatchMode`."""
        given, _ = tree_flatten((args, kwargs or {}))
        read, said = places(one for one in given if torch.is_tensor(one)), [self.said(one) for one in given]
        gave = func(*args, **(kwargs or {}))
        new = places(one for one in tree_flatten(gave)[0] if torch.is_tensor(one)) - read
        self.made |= dict.fromkeys(new, gave)
        self.found.append((str(func), said))
        return gave

    def said(self, one: Any) -> Any:
        if not torch.is_tensor(one):
            return one
        form = tuple(one.shape), one.stride(), one.dtype
        if places([one]) <= self.made.keys():
            return form
        # a number that takes part in an operation is a tensor too, a new one each time
        return (*form, one.item() if one.ndim == 0 and not places([one]) <= self.kept else one.data_ptr())


def places(tensors: Iterable[torch.Tensor]) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in tensors}


def kept_by(captured: Captured) -> set[int]:
    """Where everything lies that a step may read or write."""
    learners, program = captured.learners, captured.program
    assert program is not None and captured.losses is not None
    samples = program.task.samples
    lies = [
        learners.theta,
        *captured.memory.values(),
        *(block for blocks in captured.blocks.values() for block, _ in blocks),
        *program.held.values(),
        captured.at,
    ]
    lies += [
        captured.table,
        captured.rates,
        captured.line,
        captured.losses,
        learners.seed,
        *program.tables,
        *samples.tables,
    ]
    lies += [piece for pieces in learners.optimizer.values() for piece in pieces]
    return places([*lies, samples.pixels])


@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
@pytest.mark.parametrize("text", STRATEGIES)
def test_what_is_recorded_once_serves_later_tasks(text: str, seeds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay does the operations that were recorded, on what lies in the same places: so they must be the same."""
    compared = 0

    class Strict(Graph):
        """A graph that holds each later call against the second one, which would be recorded."""

        def __call__(self, function: Any, left: int = 0, steady: Any = ()) -> Any:
            nonlocal compared
            self.calls += 1
            assert course.captured is not None
            with Operations(course.captured) as operations:
                gave = function()
            if self.calls == 2:
                self.recorded = operations.found
            elif self.calls > 2:
                compared += 1
                assert operations.found == self.recorded
            return gave

    monkeypatch.setattr(capture, "Graph", Strict)
    strategy = config.make_strategy(text)
    course = Course(learners_of(strategy, seeds), replace(TRAINING, program="captured", batch=7), Watch())
    programs = []
    while course.task < course.tasks:
        course.learn()
        assert course.captured is not None
        programs.append(course.captured.program)
    # where rows of earlier tasks join, the third task is the first that finds enough room
    assert (programs[1] is programs[2]) != (text == "gem"), "which has a gradient for each task"
    assert compared > 5


@dataclass(frozen=True)
class Asks(Strategy):
    """It asks for something of the task in each step."""

    what: str = "first"

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        if self.what == "replaced":
            task = replace(task, key=task.key.child("mine"))
            assert type(task) is Task
            return 0 * theta.sum() + task.index + task.number * 0
        found = getattr(task, self.what)
        return 0 * theta.sum() + (len(found) if self.what in ("classes", "train") else found.sum() if
                                  torch.is_tensor(found) else found)  # fmt: skip


@pytest.mark.parametrize(("what", "same"), [
    ("first", [False, True]), ("count", [True, True]), ("classes", [False, False]), ("index", [False, False]),
    ("train", [False, False]), ("replaced", [False, False]), ("number", [True, True]), ("seen_units", [True, True]),
    ("past_units", [True, True]), ("own_units", [True, True]),
])  # fmt: skip
@pytest.mark.parametrize("program", ["eager", "captured"])
def test_a_program_is_that_of_tasks_which_answer_alike(what: str, same: list[bool], program: Any) -> None:
    found = []
    course = Course(learners_of(Asks(what), [0]), replace(TRAINING, program=program), Watch())
    while course.task < course.tasks:
        course.learn()
        assert course.program is not None
        found.append(course.program.later)
    assert [one is other for one, other in pairwise(found)] == same
    stream = course.learners.streams[0]
    asked = [len(task.train) if what == "train" else len(task.classes) if what == "classes" else
             task.index if what == "replaced" else int(torch.as_tensor(getattr(task, what)).sum())
             for task in stream.tasks]  # fmt: skip
    plain = Course(learners_of(Strategy(), [0]), replace(TRAINING, program=program), Watch())
    while plain.task < plain.tasks:
        plain.learn()
    for more, one, other in zip(asked, course.losses, plain.losses, strict=True):
        assert torch.allclose(one, other + more, rtol=1e-12)


@pytest.mark.parametrize("text", WITHOUT_STEPS)
def test_a_program_without_steps_serves_nobody(text: str) -> None:
    """What its first step would have noted is not known, nor is it compiled."""
    course = Course(learners_of(config.make_strategy(text), [0]), TRAINING, Watch())
    found = []
    while course.task < course.tasks:
        course.learn()
        assert course.program is not None
        found.append(course.program)
    assert [len(loss) for loss in course.losses[:-1]] == [0, 0] and len(course.losses[-1])
    assert found[-1].later is found[-1] and found[-1].first_is_done and not found[0].first_is_done


@dataclass(frozen=True)
class Tail(Strategy):
    """Its memory changes with the small batch at an epoch's end, of 130 rows by seven, and is read in every step."""

    def init(self, net: Any, theta: Any, stream: Any) -> Any:
        return {"scale": torch.ones((), dtype=theta.dtype)}

    def penalty(self, net: Any, theta: Any, memory: Any, batch: Any, out: Any, task: Any) -> Any:
        return (memory["scale"] * 2).exp() * theta.square().sum() * 1e-3

    def after_step(self, net: Any, theta: Any, memory: Any, step: Any, task: Any) -> Any:
        small = len(step.batch.y) < 5
        return theta, memory | {"scale": memory["scale"] + 0.1} if small else memory


@pytest.mark.parametrize("epochs", [2, 6])
def test_what_a_step_of_one_size_writes_a_step_of_another_reads(epochs: int) -> None:
    found = [
        cl.run("split-digits:limit=65", Tail(), seeds=1, epochs=epochs, batch=7, program=program, out=None)
        for program in ("eager", "captured")
    ]
    for name, values in found[0].arrays.items():
        assert np.array_equal(values, found[1].arrays[name], equal_nan=True), name


@dataclass(frozen=True)
class Start(Strategy):
    """Memory that is θ itself, as ``init`` was given it."""

    first_task_like_finetuning = False

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"anchor": theta}

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return 0.5 * (theta - memory["anchor"]).square().sum()


@dataclass(frozen=True)
class Last(Strategy):
    """Memory that is θ itself, as ``after_step`` was given it."""

    first_task_like_finetuning = False

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"last": theta.clone()}

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        return theta + 0.5 * (theta - memory["last"]), memory | {"last": theta}


ZEROS = torch.zeros(1)


@dataclass(frozen=True)
class Constant(Strategy):
    """Memory that begins as a tensor of the module's."""

    first_task_like_finetuning = False

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"count": ZEROS}

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        return theta * (1 - 1e-3 * memory["count"]), {"count": memory["count"] + 1}


@dataclass(frozen=True)
class Queue(Strategy):
    """Memory that begins as rows of the stream's."""

    first_task_like_finetuning = False

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"rows": stream.tasks[0].train[:6]}

    def batch(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        return batch.join(memory["rows"], task)

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        return theta, memory | {"rows": torch.cat([memory["rows"][3:], step.batch.row[:3]])}


@dataclass(frozen=True)
class Rehearsed(Strategy):
    """Rows to learn from that are memory, which steps change."""

    first_task_like_finetuning = False

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"rows": stream.tasks[0].train}

    def rows(self, memory: Memory, task: Task) -> torch.Tensor:
        return memory["rows"]

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        return theta, {"rows": memory["rows"].roll(1)}


@dataclass(frozen=True)
class OwnRows(Strategy):
    """Rows of the step's task, which are each seed's own."""

    first_task_like_finetuning = False

    def batch(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        return batch.join(task.train[batch.key.integers("which", 4, len(task.train))], task)


@dataclass(frozen=True)
class Sum(Strategy):
    """A penalty that is added up in a constant."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        total, parts = torch.tensor(0.0), torch.tensor([1.0, 0.0])
        parts[1] = 2
        total += 1e-2 * theta.square().sum().float()
        return total.to(theta.dtype) * parts.sum()


OWNERS = [Start, Last, Constant, Queue, Rehearsed, OwnRows]


@pytest.mark.parametrize("strategy", OWNERS)
def test_what_a_hook_gives_is_no_longer_its_own(strategy: type[Strategy]) -> None:
    """It may be the step's θ, a constant or a part of the stream: neither that nor memory changes with the other.

    And a run that goes on has the rows with which its task began.
    """
    check(strategy())
    training = replace(TRAINING, batch=7, epochs=3)
    streams = learners_of(strategy(), [1, 2]).streams
    before = [task.train.clone() for stream in streams for task in stream.tasks]
    alone = [both(strategy(), [seed], training) for seed in (1, 2)]
    eager, captured = both(strategy(), [1, 2], training)
    for r, (one, other) in enumerate(alone):
        for name, value in one.items():
            assert torch.equal(value, other[name]) or name == "θ", name
            for mapped in (eager, captured):
                assert torch.allclose(mapped[name][r], value, rtol=1e-6, atol=1e-9, equal_nan=True), name
        assert torch.allclose(one["θ"], other["θ"], rtol=1e-9, atol=1e-12)
    assert not ZEROS.any()
    learners = learners_of(strategy(), [1, 2])
    train(learners, replace(training, program="captured"), Watch())
    after = [task.train for stream in learners.streams for task in stream.tasks]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_constants_may_be_written_to() -> None:
    learners = learners_of(Sum(), [0])
    train(learners, replace(TRAINING, epochs=5, program="captured"), Watch())
    assert learners.replayed and not learners.unrecorded
    eager, captured = both(Sum(), [0], replace(TRAINING, epochs=5))
    assert all(torch.equal(captured[name], value) for name, value in eager.items())


@dataclass(frozen=True)
class BySize(Strategy):
    """Reads θ before the step in the partial batches alone."""

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        return (theta if len(step.batch.row) == 7 else theta + 0 * step.before), memory


@pytest.mark.parametrize("program", ["eager", "auto"])
def test_what_a_hook_reads_depends_on_no_size(program: Any) -> None:
    with pytest.raises(cl.errors.BadChain, match=r"step\.before.*first step of the task.*in every step"):
        train(learners_of(BySize(), [0]), replace(TRAINING, batch=7, program=program), Watch())
