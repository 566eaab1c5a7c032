"""Recorded steps: the same numbers as one by one, whatever a strategy does with its memory."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from continual import config, plugins
from continual.conformance import TRAINING, learners_of
from continual.learning import capture, step
from continual.learning.capture import Captured, Graph
from continual.learning.models import Net
from continual.learning.optimizers import Cosine
from continual.learning.seeds import Learners
from continual.learning.strategy import Chain, Memory, Step, Strategy
from continual.learning.train import Training, Watch, not_captured, program_of, train
from continual.strategies import EWC, Replay
from continual.streams.stream import Stream, Task

STRATEGIES = [
    *plugins.registered("strategies"), "ewc+replay", "si+replay:fill=reservoir,capacity=6", "ewc:terms=each+si+l2",
    "mas+shared-trunk:trunk=slowed,rate=0.5", "replay:capacity=7+replay:capacity=9,fill=reservoir",
]  # fmt: skip


def both(strategy: Strategy, seeds: list[int], training: Training = TRAINING) -> list[dict[str, torch.Tensor]]:
    """Everything that training gave, one by one and recorded."""
    found = []
    for program in ("eager", "captured"):
        learners = learners_of(strategy, seeds)
        arrays, stopped = train(learners, replace(training, program=program), Watch())
        assert not stopped
        found.append(arrays | {"θ": learners.theta.detach()} | learners.memory)
    return found


@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
@pytest.mark.parametrize("text", STRATEGIES)
def test_recorded_steps_give_the_same_numbers(text: str, seeds: list[int]) -> None:
    """Batches of 7 leave a partial one in every epoch; there are more steps than random numbers in a block."""
    eager, captured = both(config.make_strategy(text), seeds, replace(TRAINING, batch=7, epochs=3, evaluate_every=5))
    assert eager.keys() == captured.keys()
    for name, value in eager.items():
        assert torch.allclose(captured[name], value, rtol=1e-9, atol=1e-12, equal_nan=True), name


@pytest.mark.parametrize("program", ["eager", "captured"])
def test_a_task_leaves_nothing_to_the_garbage_collector(program: Any) -> None:
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
    steps = Captured(step.Program(learners, 0, len(batches)), batches, losses, [0.1] * len(batches))
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
    assert not_captured(learners_of(EWC(), [0]), auto) == "only a GPU gains by it"
    for training in (auto, asked):
        assert not_captured(On(ByHand()), training) == "the strategy cannot be captured"  # type: ignore[arg-type]
        assert not_captured(On(EWC()), training) == "images are read from their file"  # type: ignore[arg-type]
    assert not_captured(learners_of(EWC(), [0]), asked) == ""
    assert program_of(learners_of(EWC(), [0]), asked) == "eager: only a GPU gains by it", "what the record says"
    compiled = program_of(learners_of(EWC(), [0]), Training(compile=True))
    assert compiled == "eager: only a GPU gains by it; the forward pass is compiled"
    assert program_of(learners_of(ByHand(), [0]), asked) == "eager: the strategy cannot be captured"
    assert not_captured(On(EWC()), Training(program="eager")) == "as asked"  # type: ignore[arg-type]
    assert config.make_strategy("ewc+replay").can_be_captured
    assert not Chain((ByHand(), EWC())).can_be_captured


def test_on_a_cpu_a_graph_is_the_function() -> None:
    calls: list[int] = []
    graph = Graph(torch.device("cpu"))
    for _ in range(3):
        graph(lambda: calls.append(1))  # type: ignore[func-returns-value]
    assert len(calls) == 3
