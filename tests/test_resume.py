"""A run that is killed goes on, and ends as if it had not been: the same bits, whatever is trained and however."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result as Said

import continual as cl
from continual import cli, config, execution, plugins, resume, runner
from continual.conformance import TRAINING, learners_of
from continual.errors import BadFolder, BadOption
from continual.learning import step as steps
from continual.learning.models import Net
from continual.learning.seeds import Learners
from continual.learning.strategy import Memory, Step, Strategy
from continual.learning.train import State, Training, Watch, train
from continual.results import store
from continual.results.checkpoints import Checkpoints
from continual.streams.stream import Stream, Task

STRATEGIES = [
    *plugins.registered("strategies"), "ewc+replay", "si+replay:fill=reservoir,capacity=6", "ewc:terms=each+si+l2",
    "hat+replay:capacity=9", "generative-replay:soft=true+ewc",
]  # fmt: skip
Arrays = dict[str, torch.Tensor]


class Killed(Exception):
    """Where the process would be gone."""


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: value.detach().cpu().contiguous().numpy().tobytes() for name, value in arrays.items()}


def outcome(learners: Learners, arrays: Arrays) -> dict[str, bytes]:
    memory = {f"memory/{name}": value for name, value in learners.memory.items()}
    return bits(arrays | {"θ": learners.theta} | memory)


def made(text: str, seeds: list[int], training: Training, optimizer: str) -> Learners:
    """New learners, as another process would make them."""
    learners = learners_of(config.make_strategy(text), seeds)
    given = config.make("optimizers", optimizer)
    keep = training.optimizer_state == "keep"
    recipe = replace(learners.recipe, optimizer=given, keep_optimizer=keep)  # type: ignore[arg-type]
    return Learners(recipe, learners.streams, seeds)


def killed_often(
    text: str, seeds: list[int], training: Training, optimizer: str, folder: Path, times: int = 3
) -> dict[str, bytes]:
    """What training gives that is killed before some random steps, each time a little after a checkpoint."""
    chance = random.Random(zlib.crc32(f"{text} {seeds} {optimizer}".encode()))
    kept = Checkpoints(folder / ".checkpoints", {"run": text})
    start: list[State] = []
    every = chance.randrange(1, 4)

    def keep(state: State) -> None:
        kept.write("one", state.tensors, state.facts)
        start[:] = [State(*kept.read(kept.folder / "one.safetensors"))]

    for task, number in [*sorted((chance.randrange(3), chance.randrange(6)) for _ in range(times)), (99, 99)]:

        def kill(*at: int, here: tuple[int, int] = (task, number)) -> None:
            if at[:2] == here:
                raise Killed

        learners = made(text, seeds, training, optimizer)
        begin = start[0] if start else None
        with contextlib.suppress(Killed):
            arrays, stopped = train(learners, training, Watch(kill, lambda done: done % every == 0, keep, begin))
            assert not stopped and task == 99
    assert start[0].facts["task"] == 2
    return outcome(learners, arrays)


def unharmed(text: str, seeds: list[int], training: Training, optimizer: str) -> dict[str, bytes]:
    learners = made(text, seeds, training, optimizer)
    return outcome(learners, train(learners, training, Watch())[0])


def same_bits(text: str, seeds: list[int], training: Training, optimizer: str, folder: Path) -> None:
    whole, again = unharmed(text, seeds, training, optimizer), killed_often(text, seeds, training, optimizer, folder)
    assert whole.keys() == again.keys()
    assert [name for name, value in whole.items() if again[name] != value] == []


@pytest.mark.parametrize("text", STRATEGIES)
@pytest.mark.parametrize(("seeds", "program"), [([3], "eager"), ([1, 2], "captured")], ids=["alone", "mapped"])
def test_every_strategy_goes_on(text: str, seeds: list[int], program: str, tmp_path: Path) -> None:
    """In float64, and with partial batches, so that a step's program comes in two sizes."""
    training = replace(TRAINING, batch=9, program=program, evaluate_every=2, evaluate_rows="all", train_samples=20)
    same_bits(text, seeds, training, "adam:lr=0.01", tmp_path)


@pytest.mark.parametrize("text", ["finetune", "ewc+replay:capacity=9", "si", "packnet"])
@pytest.mark.parametrize(("seeds", "program"), [([1, 2], "eager"), ([3], "captured")], ids=["mapped", "alone"])
def test_the_other_way_round(text: str, seeds: list[int], program: str, tmp_path: Path) -> None:
    training = replace(TRAINING, program=program, precision="float32", optimizer_state="reset")
    same_bits(text, seeds, training, "sgd:lr=0.1,momentum=0.9", tmp_path)


@pytest.mark.parametrize("state", ["keep", "reset"])
@pytest.mark.parametrize(
    "optimizer", ["sgd:lr=0.1", "sgd:lr=0.1,momentum=0.9,nesterov=true", "adam", "adamw", "adagrad"]
)
def test_every_optimiser_goes_on(optimizer: str, state: Any, tmp_path: Path) -> None:
    same_bits("l2", [0], replace(TRAINING, optimizer_state=state), optimizer, tmp_path)


@pytest.mark.parametrize("program", ["eager", "captured"])
def test_a_block_of_random_numbers_begins_where_it_began(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "POOLED_STEPS", 4)
    monkeypatch.setattr("continual.learning.capture.POOLED_STEPS", 4)
    training = replace(TRAINING, program=program, batch=5)
    same_bits("replay:fill=reservoir,capacity=8", [2], training, "adam", tmp_path)


@dataclass(frozen=True)
class Askew(Strategy):
    """Its memory lies in odd ways: transposed, repeated, a part of something, shared."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        table = torch.linspace(-1, 1, 12 * len(theta), dtype=theta.dtype).unflatten(0, (len(theta), 12))
        return {"table": table.T, "wide": theta[0].expand(7), "part": theta[3:], "shared": theta, "none": theta[:0]}

    def penalty(self, net: Net, theta: torch.Tensor, memory: Memory, *rest: Any) -> torch.Tensor:
        return (memory["table"] @ theta).square().mean() + memory["wide"].sum() * memory["part"].sum() * 1e-3

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        table = torch.outer(theta, memory["table"].sum(1)).T / 9
        return theta, memory | {"table": table, "wide": theta[1].expand(7), "part": theta[3:], "shared": theta}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
def test_it_does_not_matter_how_memory_lies(
    seeds: list[int], precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "make_strategy", lambda text: Askew())
    same_bits("askew", seeds, replace(TRAINING, precision=precision), "adam", tmp_path)
    learners = made("askew", seeds, TRAINING, "adam")
    train(learners, TRAINING, Watch())
    assert all(value.is_contiguous() and not value.storage_offset() for value in learners.memory.values())
