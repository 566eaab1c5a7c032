"""What a strategy keeps in Python is seen, and its steps are then not replayed."""

from __future__ import annotations

import argparse
import array
import contextvars
import functools
import importlib
import itertools
import logging
import os
import random
import re
import sys
import threading
import time
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_gpu import outcome
from test_recording import Asking
from tqdm import tqdm

from continual.conformance import TRAINING, learners_of
from continual.errors import BadChain, BadOption
from continual.learning.aside import Aside
from continual.learning.capture import KEEPS
from continual.learning.models import Net, Out
from continual.learning.notes import LIES, VALUE
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.learning.train import program_of, steps_done
from continual.streams.stream import Task

VARIABLES: dict[str, Any] = {}


@dataclass(slots=True)
class Slot:
    """Something without a dict of attributes."""

    n: int = 1


class Thing:
    """Something of a user's that is neither a number nor a list."""

    def __init__(self) -> None:
        self.inner = {"n": [1]}

    def method(self) -> None:
        self.inner["n"].append(2)

    class Inner:
        """It counts in itself."""

        n = 0


class Named(dict[str, int]):
    """A dict that may have attributes."""


class Private:
    """Its slot is nobody's business."""

    __slots__ = ("__n",)

    def __init__(self) -> None:
        self.__n = 0

    def add(self) -> None:
        self.__n += 1


class Part(torch.nn.Module):
    """A module that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 1
        self.register_buffer("buffer", torch.zeros(2))


def _named(value: Any) -> Any:
    value.n = 1
    return value


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a dict": (dict, lambda one: one.update(n=1)),
    "a list": (lambda: [1], lambda one: one.append(2)),
    "a list in a dict in a tuple": (lambda: ({"a": [1]},), lambda one: one[0]["a"].append(2)),
    "a set": (set, lambda one: one.add(1)),
    "a deque": (lambda: deque([1], maxlen=1), lambda one: one.append(2)),
    "a counter": (Counter, lambda one: one.update("a")),
    "an array": (lambda: np.zeros(3), lambda one: one.__setitem__(1, 2.0)),
    "a number in a namespace": (lambda: types.SimpleNamespace(n=1), lambda one: setattr(one, "n", 2)),
    "an object's attribute's part": (Thing, lambda one: one.inner["n"].append(2)),
    "another tensor": (lambda: {"f": torch.zeros(2)}, lambda one: one.update(f=one["f"] + 1)),
    "Python's generator": (lambda: random.Random(0), lambda one: one.random()),
    "NumPy's generator": (lambda: np.random.default_rng(0), lambda one: one.random()),
    "PyTorch's generator": (torch.Generator, lambda one: torch.rand(1, generator=one)),
    "a count": (itertools.count, next),
    "a slot": (Slot, lambda one: setattr(one, "n", 2)),
    "a function's attribute": (lambda: _around(0), lambda one: setattr(one, "n", 2)),
    "a variable around a function": (lambda: _around(0), lambda one: one()),
    "a list around a method's function": (lambda: Thing().method, lambda one: one()),
    "a default": (lambda: _around(0), lambda one: one.__kwdefaults__["steps"].append(1)),
    "what a call is given": (lambda: functools.partial(print, []), lambda one: one.args[0].append(1)),
    "numbers in an array": (lambda: array.array("d", [1.0]), lambda one: one.__setitem__(0, 2.0)),
    "bytes": (lambda: bytearray(2), lambda one: one.__setitem__(1, 3)),
    "an attribute of a dict": (lambda: Named(a=1), lambda one: setattr(one, "n", 2)),
    "an attribute of a tensor": (lambda: _named(torch.zeros(2)), lambda one: setattr(one, "n", 2)),
    "a class within a class": (lambda: Thing, lambda one: setattr(one.Inner, "n", one.Inner.n + 1)),
    "a private slot": (Private, lambda one: one.add()),
    "a part of a module": (lambda: torch.nn.Sequential(Part()), lambda one: setattr(one[0], "n", 2)),
    "a module's buffer": (Part, lambda one: setattr(one, "buffer", one.buffer + 1)),
    "an optimiser's rate": (
        lambda: torch.optim.SGD([torch.zeros(2)], 0.1),
        lambda one: one.param_groups[0].update(lr=0.2),
    ),
    "a variable of a context": (lambda: contextvars.ContextVar("n"), lambda one: one.set(1)),
    "one of a million numbers": (lambda: np.zeros(10**6), lambda one: one.__setitem__(999_999, 1.0)),
    "one of many numbers": (lambda: [0] * 50_000, lambda one: one.__setitem__(40_000, 1)),
    "one of many numbers by name": (lambda: dict.fromkeys(range(50_000), 0.0), lambda one: one.update({40_000: 1.0})),
}


def _around(n: int) -> Callable[[], None]:
    """A function that counts its calls outside of it."""

    def counts(*, steps: list[int] = []) -> None:  # noqa: B006
        nonlocal n
        n += 1

    return counts


@dataclass(frozen=True)
class Keeper(Strategy):
    """It has something beside memory."""

    thing: Any = field(default=None, compare=False)


def kept_by(strategy: Strategy) -> Aside:
    return Aside(learners_of(strategy, [0]))


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("where", ["attribute", "class", "variable"])
def test_a_change_is_seen_wherever_it_is(what: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, change = CHANGES[what]
    thing = make()
    if where == "class":
        monkeypatch.setattr(Keeper, "shared", thing, raising=False)
    elif where == "variable":
        monkeypatch.setitem(VARIABLES, "thing", thing)
    kept = kept_by(Keeper(thing if where == "attribute" else None))
    before = kept()
    assert kept() == before
    change(thing)
    assert kept() != before


BESIDE = {
    "mine": """
from dataclasses import dataclass
from continual import Strategy
from THERE.near import bump

@dataclass(frozen=True)
class Mine(Strategy):
    "Keeps nothing itself."
""",
    "near": """
import numpy
import THERE.far as other

COUNTS = {"n": 0}

class Counter:
    n = 0

def bump():
    COUNTS["n"] += 1
""",
    "far": "TOTAL = 0",
}


@pytest.mark.parametrize("package", ["", "apart"])
@pytest.mark.parametrize("change", ["near.bump()", "setattr(near.Counter, 'n', 1)", "setattr(near.other, 'TOTAL', 1)"])
def test_a_change_is_seen_in_the_files_beside(
    package: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"{package}." if package else ""
    (tmp_path / package).mkdir(exist_ok=True)
    for name, text in BESIDE.items():
        (tmp_path / package / f"{name}.py").write_text(text.replace("THERE.", there))
    if package:
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [there + name for name in BESIDE]
    mine, near, _ = map(importlib.import_module, names)
    try:
        kept = kept_by(mine.Mine())
        before = kept()
        assert kept() == before and kept.modules == names
        eval(change, {"near": near})
        assert kept() != before
    finally:
        for name in (*names, package):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_draw_from_the_common_generators_is_seen(draw: Callable[[], float]) -> None:
    kept = kept_by(Keeper())
    before = kept()
    assert kept() == before
    draw()
    assert kept() != before


def test_writing_to_a_tensor_is_no_change_and_ours_keep_nothing() -> None:
    thing = {"f": torch.zeros(2)}
    kept = kept_by(Keeper(thing))
    before = kept()
    thing["f"].add_(1)
    assert kept() == before
    assert kept_by(Strategy())() == ()


def test_where_more_is_kept_than_is_looked_at_it_counts_as_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large table of constants hides nothing of what is behind it."""
    monkeypatch.setitem(VARIABLES, "table", [(f"{number}", number) for number in range(20_000)])
    monkeypatch.setitem(VARIABLES, "n", {"n": [0]})
    kept = kept_by(Keeper())
    before = kept()
    assert kept() == before
    VARIABLES["n"]["n"].append(1)
    assert kept() != before
    monkeypatch.setitem(VARIABLES, "lists", [[number] for number in range(20_000)])
    assert kept() != kept()


@pytest.mark.parametrize("make", [
    lambda: itertools.cycle([1, 2]), lambda: (n for n in range(9)), lambda: iter([1, 2]), lambda: enumerate("ab"),
])  # fmt: skip
def test_what_does_not_say_where_it_stands_counts_as_changed(make: Callable[[], Any]) -> None:
    kept = kept_by(Keeper(make()))
    assert kept() != kept()


def test_what_holds_itself_is_looked_at_once() -> None:
    thing: dict[str, Any] = {}
    thing["self"] = thing
    kept = kept_by(Keeper(thing))
    before = kept()
    thing["n"] = 1
    assert kept() != before


def test_what_stands_about_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar, a file, a logger, numbers and words in the variables of a module, which no step uses."""
    with open(os.devnull, "w") as file:
        about = {"bar": tqdm(total=9, file=file), "file": file, "log": logging.getLogger("x"), "path": Path("/"),
                 "array": np.zeros((9, 9)), "words": ["w"] * 20_000, "frame": types.SimpleNamespace(n=[1, {"a": 2}]),
                 "lock": threading.Lock(), "proxy": weakref.proxy(file), "pattern": re.compile("a"),
                 "timer": time.monotonic, "module": torch.nn.Linear(2, 2),
                 "parser": argparse.ArgumentParser()}  # fmt: skip
        for name, thing in about.items():
            monkeypatch.setitem(VARIABLES, name, thing)
        kept = kept_by(Keeper())
        assert kept() == kept()


@dataclass(frozen=True)
class Counts(Strategy):
    """Its penalty begins with its hundredth call."""

    calls: list[int] = field(default_factory=list, compare=False)

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        self.calls.append(1)
        return theta.square().sum() * (1.0 if len(self.calls) > 20 else 0.0)


class Shared(Strategy):
    """It counts in its class."""

    steps: ClassVar[int] = 0

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        type(self).steps += 1
        return theta * (0.5 if type(self).steps % 11 == 0 else 1.0), memory


@dataclass(frozen=True)
class Sums(Strategy):
    """It adds up gradients in a variable of its module."""

    def init(self, net: Net, theta: torch.Tensor, stream: Any) -> Memory:
        VARIABLES.clear()
        return {"omega": torch.zeros_like(theta)}

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return (memory["omega"] * theta.square()).sum()

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        assert step.gradient is not None
        VARIABLES["sum"] = VARIABLES.get("sum", 0) + step.gradient.square()
        return theta, memory

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta, {"omega": VARIABLES["sum"]}


@dataclass(frozen=True)
class Draws(Strategy):
    """It draws from PyTorch's generator."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return (torch.rand_like(theta) * theta).sum()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("make", "why"), [(Counts, KEEPS), (Shared, KEEPS), (Sums, KEEPS)])
def test_a_strategy_that_keeps_something_does_what_it_does(make: Callable[[], Strategy], why: str) -> None:
    found = []
    for program in ("eager", "auto"):
        torch.manual_seed(0)
        Shared.steps = 0
        learners = learners_of(make(), [0])
        found.append(outcome(learners, replace(TRAINING, program=program, epochs=4)))
    assert all(torch.equal(value.nan_to_num(), found[1][name].nan_to_num()) for name, value in found[0].items())
    assert program_of(steps_done(learners, TRAINING)) == f"eager: {why}"


@dataclass(frozen=True)
class ByTask(Strategy):
    """A strength that is set between tasks, of a penalty that is nothing as long as θ is near where it was."""

    def init(self, net: Net, theta: torch.Tensor, stream: Any) -> Memory:
        object.__setattr__(self, "strength", 0.0)
        return {"anchor": theta.clone()}

    def before_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        object.__setattr__(self, "strength", 100.0 * task.index)
        return theta, memory

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        strength: float = self.strength  # type: ignore[attr-defined]
        return strength * ((theta - memory["anchor"]).abs() - 0.02).relu().square().sum()

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta, {"anchor": theta}


@dataclass(frozen=True)
class OwnGradient(Strategy):
    """It keeps the gradient of a tensor of its own where PyTorch puts it."""

    def init(self, net: Net, theta: torch.Tensor, stream: Any) -> Memory:
        object.__setattr__(self, "own", torch.ones(6, dtype=theta.dtype, requires_grad=True))
        return {"anchor": theta.clone(), "strength": theta.new_zeros(())}

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return memory["strength"] * (theta - memory["anchor"]).square().sum()

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        own: torch.Tensor = self.own  # type: ignore[attr-defined]
        own.grad = None
        with torch.enable_grad():
            (own * step.out.logits.detach().mean(0)).square().sum().backward()
        return theta, memory

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        own: torch.Tensor = self.own  # type: ignore[attr-defined]
        assert own.grad is not None
        return theta, {"anchor": theta, "strength": own.grad.abs().mean()}


@dataclass(frozen=True)
class Turns(Strategy):
    """It turns a matrix of its own in each step: transposed, or a part of another memory each time."""

    how: str = "t_"

    def init(self, net: Net, theta: torch.Tensor, stream: Any) -> Memory:
        object.__setattr__(self, "matrix", torch.arange(36.0, dtype=theta.dtype).reshape(6, 6) / 36)
        return {}

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        matrix: torch.Tensor = self.matrix  # type: ignore[attr-defined]
        matrix.t_() if self.how == "t_" else matrix.set_(matrix.flip(0) * 1.01)
        return (out.logits @ matrix).square().mean() + (matrix[0] * out.logits.mean(0)).sum()


@dataclass(frozen=True)
class Aliases(Strategy):
    """Against the rules, it writes to its memory, of which two names are one tensor."""

    def init(self, net: Net, theta: torch.Tensor, stream: Any) -> Memory:
        both = torch.zeros_like(theta)
        return {"a": both, "b": both}

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return (memory["b"] * theta).sum()

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        memory["a"].add_(theta)
        return theta, memory


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("make", "said"),
    [(ByTask, "captured"), (OwnGradient, f"eager: {KEEPS}"), (Turns, f"eager: {LIES}"),
     (lambda: Turns("set_"), f"eager: {LIES}"), (Aliases, "captured")],
)  # fmt: skip
def test_what_is_set_between_tasks_or_changed_by_other_means_counts(make: Callable[[], Strategy], said: str) -> None:
    found = []
    for program in ("eager", "auto"):
        learners = learners_of(make(), [0])
        found.append(outcome(learners, replace(TRAINING, program=program, epochs=8, last="drop", batch=8)))
    assert all(torch.equal(value.nan_to_num(), found[1][name].nan_to_num()) for name, value in found[0].items())
    assert program_of(steps_done(learners, TRAINING)) == said


@pytest.mark.usefixtures("often")
def test_what_a_strategy_draws_from_pytorch_s_generator_a_replay_draws() -> None:
    found = []
    for program in ("eager", "auto"):
        learners = learners_of(Draws(), [0])
        found.append(outcome(learners, replace(TRAINING, program=program, epochs=4)))
    assert all(torch.equal(value.nan_to_num(), found[1][name].nan_to_num()) for name, value in found[0].items())
    assert program_of(steps_done(learners, TRAINING)) == "captured"


@dataclass(frozen=True)
class Refuses(Strategy):
    """Its class says so."""

    can_be_captured: ClassVar[bool] = False


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("make", "why"), [(Refuses, "the strategy cannot be captured"), (Asking, VALUE), (Counts, KEEPS)]
)
def test_what_has_to_be_recorded_and_cannot_be_is_refused(make: Callable[[], Strategy], why: str) -> None:
    with pytest.raises(BadOption, match=rf"program=captured: steps cannot be recorded \({why}\)"):
        outcome(learners_of(make(), [0]), replace(TRAINING, program="captured"))


@dataclass(frozen=True)
class Grows(Strategy):
    """Its memory gets longer in each step, or another name."""

    named: bool = False

    def init(self, net: Net, theta: torch.Tensor, stream: Any) -> Memory:
        return {"a": torch.zeros(1)}

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        more = torch.zeros(1)
        return theta, memory | ({"b": more} if self.named else {"a": torch.cat([memory["a"], more])})


@pytest.mark.parametrize(
    ("named", "became"), [(False, r"a \(2,\) float32"), (True, r"a \(1,\) float32, b \(1,\) float32")]
)
def test_memory_keeps_its_form_within_a_task(named: bool, became: str) -> None:
    with pytest.raises(
        BadChain, match=rf"Grows gave memory another form in a step \(a \(1,\) float32 became {became}\)"
    ):
        outcome(learners_of(Grows(named), [0]), TRAINING)
