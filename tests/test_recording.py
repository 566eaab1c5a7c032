"""What is recorded on a processor: the function's own bits, whatever it is made of, or a reason why not."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from test_gpu import PICTURES, SMALL, outcome, viewers

import continual as cl
from continual import config
from continual.conformance import TRAINING, learners_of
from continual.learning import capture, recording
from continual.learning.capture import Graph
from continual.learning.models import Net, Out
from continual.learning.recording import IMPURE, LARGE, RANDOM, SHAPE, VALUE, Notes, Recording
from continual.learning.strategy import Batch, Memory, Strategy
from continual.learning.train import program_of
from continual.learning.vision import ReducedResNet18
from continual.streams.stream import Task

CPU = torch.device("cpu")
Function = Callable[[], "torch.Tensor | None"]

# ---- operations: on two tensors (6, 6), one of which may be changed; each gives another
OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": lambda a, b: a + 0.5 * b,
    "in place": lambda a, b: a.mul_(0.9).add_(b),
    "in place, in a part": lambda a, b: (a[1:3, ::2].copy_(b[:2, :3]), a)[1],
    "product": lambda a, b: a @ b.T / 6,
    "many products": lambda a, b: (a.view(2, 3, 6) @ b.view(2, 6, 3) / 6).flatten().repeat(2).view(6, 6),
    "a view of a view": lambda a, b: a.T.reshape(4, 9)[:, :].flatten().view(6, 6) - b,
    "a mask": lambda a, b: a.masked_fill(b > 0, 0.25),
    "where": lambda a, b: torch.where(a < b, a, b.T),
    "rows": lambda a, b: a.index_select(0, b[0].argsort()),
    "gathered": lambda a, b: a.gather(1, b.argsort(1)),
    "by places": lambda a, b: a[b[0].argsort(), b[1].argsort()].expand(6, 6) + a,
    "a constant": lambda a, b: a + torch.arange(6.0) * torch.eye(6),
    "a table that is filled": lambda a, b: torch.zeros(6, 6).index_copy_(0, torch.arange(5, -1, -1), a) + b,
    "as it was made": lambda a, b: torch.ones_like(a).scatter_add_(0, b.argsort(0), a),
    "cut and joined": lambda a, b: torch.cat([one * (n + 1) for n, one in enumerate(a.split([1, 2, 3]))]).tanh(),
    "two results": lambda a, b: sum(a.topk(6)) / 7 + b,
    "a convolution": lambda a, b: torch.nn.functional.conv2d(a[None, None], b[None, None, :3, :3], padding=1)[0, 0] / 9,
    "a pool": lambda a, b: torch.nn.functional.max_pool2d(a[None], 3, 1, 1)[0] - b,
    "normalised": lambda a, b: torch.nn.functional.batch_norm(a, None, None, training=True) + b,
    "softmax": lambda a, b: torch.nn.functional.log_softmax(a, 1) / 3,
    "a gradient": lambda a, b: gradient(lambda x: torch.nn.functional.cross_entropy(x @ b, b.argmax(1)), a),
    "mapped": lambda a, b: torch.vmap(lambda x, y: torch.outer(x, y).amax(0))(a, b).sin(),
    "rounded and back": lambda a, b: (a.double() * b.double()).float().bfloat16().float(),
    "as it is": lambda a, b: a.contiguous().reshape(6, 6),
    "a copy": lambda a, b: a.clone().sub_(b),
    "sums": lambda a, b: a - a.mean(0) + b.sum(1, keepdim=True) / 6,
    "nothing": lambda a, b: torch.cat([a, b[:0]]),
}


def gradient(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        live = at.detach().clone().requires_grad_()
        return torch.autograd.grad(function(live).square().sum(), live)[0]


def any_function(seed: int, state: list[torch.Tensor]) -> Function:
    """Forty operations on tensors that lie in place and on what came of others, some of which are written back."""
    numbers = np.random.default_rng(seed)
    names = [*numbers.permutation(list(OPERATIONS)), *numbers.choice(list(OPERATIONS), 13)]
    chosen = [(str(name), *(int(one) for one in numbers.integers(0, 10**6, 3))) for name in names]

    def function() -> torch.Tensor:
        there = list(state)
        for name, a, b, place in chosen:
            made = OPERATIONS[name](there[a % len(there)], there[b % len(there)])
            there.append(torch.nan_to_num(made).clamp(-3, 3) if place % 3 else made.clamp_(-3, 3).nan_to_num_())
            if place % 4 == 0:
                state[place % len(state)].copy_(made)
        return there[chosen[0][1] % len(there)]

    return function


def some_state(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 6, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("seed", range(60))
def test_a_replay_gives_the_functions_bits(seed: int) -> None:
    mine, theirs = some_state(seed), some_state(seed)
    graph, plain, asked = Graph(CPU, 1), any_function(seed, theirs), list[int]()
    function = any_function(seed, mine)

    def counted() -> torch.Tensor | None:
        asked.append(1)
        return function()

    for turn in range(7):
        for one, other in zip(mine, theirs, strict=True):
            change = torch.randn(6, 6, generator=torch.Generator().manual_seed(turn))
            one.add_(change), other.add_(change)
        got, wanted = graph(counted), plain()
        assert got is not None and wanted is not None
        assert torch.equal(got, wanted), turn
        assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True)), turn
    assert not graph.why and len(asked) == 3, "as it is, as it is noted, and as it is compared"


def test_operations_that_are_wrong_by_a_bit_are_found() -> None:
    """The comparison of the tests above, and that of a run, can fail."""
    x = torch.randn(6, 6)

    def function() -> None:
        x.mul_(x.tanh() + 1)

    with Notes() as notes:
        function()
    noted = Recording(notes.done, None)
    assert noted.compared(function)[0]
    (place,) = (n for n, call in enumerate(noted.calls) if call.function is torch.ops.aten.tanh.out._op)
    noted.calls[place] = noted.calls[place]._replace(function=torch.ops.aten.sin.out._op)
    wanted = x * (x.tanh() + 1)
    assert not noted.compared(function)[0]
    assert torch.equal(x, wanted), "the function has the last word"


def test_what_is_made_lies_in_little_memory() -> None:
    x = torch.ones(1000)

    def function() -> None:
        made = x * 2
        for _ in range(50):
            made = (made + 1) / 2
        x.copy_(made)

    with Notes() as notes:
        function()
    noted = Recording(notes.done, None)
    held = {
        one.untyped_storage().data_ptr() for call in noted.calls for one in recording._tensors((call.args, call.kwargs))
    }
    assert len(notes.done) == 102 and len(held) <= 3
    x.fill_(5)
    noted.again()
    torch.testing.assert_close(x, 1 + 9 * torch.tensor(0.5).pow(50) + torch.zeros(1000))


def test_what_is_the_same_each_time_is_left_out() -> None:
    x, y = torch.ones(3), torch.zeros(3)
    with Notes() as notes:
        y.copy_(x.view(1, 3)[0] + torch.arange(3.0).mul(2).sin())
    calls = Recording(notes.done, None).calls
    assert len(calls) == 2 and len(notes.done) > 5


# ---- what cannot be recorded


def embedded(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(x, 0.5)


@pytest.mark.parametrize(("made", "why"), [
    (lambda x: x * x.sum().item(), VALUE), (lambda x: x if x.sum() > 0 else -x, VALUE),
    (lambda x: x if torch.equal(x, x) else -x, VALUE), (lambda x: x[x > 0], SHAPE), (lambda x: x.nonzero(), SHAPE),
    (lambda x: x.masked_select(x > 0), SHAPE), (lambda x: x.clone().unsqueeze_(0), SHAPE),
    (lambda x: x.clone().resize_(2), SHAPE), (lambda x: x + torch.rand(6, 6), RANDOM), (embedded, RANDOM),
    (lambda x: torch.randperm(4), RANDOM), (lambda x: torch.nn.functional.one_hot((x > 0).long(), 3), VALUE),
    (lambda x: x.to_sparse(), "aten._to_sparse.default gives what is no plain tensor on the CPU"), (lambda x: (x + 0.0).expand(99, 6, 6).clone(), LARGE),
])  # fmt: skip
def test_what_cannot_be_recorded_is_done_and_said(made: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST", 6 * 6 * 4 * 50)
    graph, x, calls = Graph(CPU, 1), torch.randn(6, 6), list[int]()

    def function() -> Any:
        calls.append(1)
        return made(x)

    for turn in range(5):
        x += 1
        gave = graph(function)
        if why is not RANDOM:
            assert torch.equal(gave.to_dense(), made(x).to_dense()), turn
    assert graph.why == why and len(calls) == 5 and graph.recording is None


def test_a_plain_index_is_no_mask() -> None:
    graph, x, found = Graph(CPU, 1), torch.randn(6, 6), list[torch.Tensor]()
    for _ in range(4):
        found.append(graph(lambda: x[torch.tensor([0, 2]).clone()]))  # type: ignore[arg-type]
    assert not graph.why


@pytest.mark.parametrize("kind", ["counts", "numpy", "keeps"])
def test_a_function_that_does_something_else_each_time_is_done_as_it_is(kind: str) -> None:
    x, y, kept = torch.ones(3), torch.zeros(3), [1.0, torch.ones(3)]

    def function() -> None:
        if kind == "counts":
            kept[0] += 1
            y.add_(x * kept[0])
        elif kind == "numpy":
            y.add_(torch.from_numpy(np.square(y.numpy() + 1)))
        else:
            y.add_(kept[1])
            kept[1] = y * 2 + x

    graph = Graph(CPU, 1)
    for _ in range(6):
        graph(function)
    assert graph.why == IMPURE
    mine = y.clone()
    kept[:] = [1.0, torch.ones(3)]
    y.zero_()
    for _ in range(6):
        function()
    assert torch.equal(mine, y)


@dataclass(frozen=True)
class Aside(Strategy):
    """It keeps θ* where it must not: beside memory."""

    kept: dict[str, torch.Tensor] = field(default_factory=dict, compare=False)

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return (theta - self.kept["θ*"]).square().sum() if self.kept else 0 * theta.sum()

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        self.kept["θ*"] = theta.clone()
        return theta, memory


@dataclass(frozen=True)
class Asking(Strategy):
    """It branches on a value, and does not say so."""

    def loss(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        loss = super().loss(net, theta, memory, batch, out, task)
        return loss if loss > 0.5 else 2 * loss


@pytest.mark.parametrize(("kind", "why"), [(Aside, IMPURE), (Asking, VALUE)])
def test_a_strategy_against_the_rules_still_does_what_it_does(
    kind: type[Strategy], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay is compared again in each task, as what it has not noticed may have changed between them."""
    monkeypatch.setattr(capture, "OFTEN", 1)
    found = []
    for program in ("eager", "auto"):
        learners = learners_of(kind(), [0])
        found.append(outcome(learners, replace(TRAINING, program=program)))
    assert all(torch.equal(value.nan_to_num(), found[1][name].nan_to_num()) for name, value in found[0].items())
    assert program_of(learners, TRAINING) == f"eager: {why}"


# ---- steps


@pytest.mark.parametrize("seeds", [1, 2], ids=["alone", "mapped"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [SMALL, ReducedResNet18(width=2), ReducedResNet18(width=4, statistics="task"),
                                   ReducedResNet18(width=4, norm="group")], ids=str)  # fmt: skip
def test_networks_for_images_learn_the_same_bits(
    model: Any, precision: str, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "OFTEN", 1)
    found = []
    for program in ("eager", "captured"):
        learners = viewers(model, "der++:capacity=12", precision, seeds=seeds, device="cpu", last=seeds == 1)
        found.append(outcome(learners, replace(PICTURES, program=program, evaluate_every=3)))
        assert not learners.unrecorded
    for name, value in found[0].items():
        assert torch.equal(value.nan_to_num(), found[1][name].nan_to_num()), name


def test_evaluations_between_steps_are_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "OFTEN", 1)
    graphs = []

    class Kept(Graph):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            graphs.append(self)

    monkeypatch.setattr("continual.learning.train.Graph", Kept)
    found = []
    for program in ("eager", "captured"):
        training = replace(TRAINING, program=program, evaluate_every=1)
        found.append(outcome(learners_of(config.make_strategy("ncm"), [0]), training))
    assert torch.equal(found[0]["trace"].nan_to_num(), found[1]["trace"].nan_to_num())
    assert graphs and all(one.recording is not None for one in graphs)


def test_a_recording_leaves_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "OFTEN", 1)
    gc.collect()
    gc.disable()
    try:
        outcome(learners_of(config.make_strategy("gem"), [0]), TRAINING)
        left = [one for one in gc.get_objects() if type(one) in (Recording, Notes, recording.Done, recording.Call)]
    finally:
        gc.enable()
    assert not left


def test_a_rare_step_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording takes as long as some ten steps save."""
    made = []
    monkeypatch.setattr(recording, "Notes", lambda: made.append(1) or Notes())
    outcome(learners_of(config.make_strategy("finetune"), [0]), replace(TRAINING, epochs=4))
    assert not made
    outcome(learners_of(config.make_strategy("finetune"), [0]), replace(TRAINING, epochs=12))
    assert made


STARTS = """
import sys
import continual as cl

cl.run("split-digits:limit=40", "finetune", seeds=1, epochs=20, out=None)
assert "torch._dynamo" not in sys.modules, "the compiler takes a second to import"
"""


def test_recording_imports_no_compiler() -> None:
    said = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    ("program", "told"), [("auto", "captured"), ("captured", "captured"), ("eager", "eager: as asked")]
)
def test_the_record_says_how_steps_were_done(program: Any, told: str) -> None:
    result = cl.run("split-digits:limit=20", "finetune", seeds=1, epochs=1, program=program, out=None)
    assert result.record["program"] == told
