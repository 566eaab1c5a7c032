"""What is recorded on a processor: the function's own bits, whatever it is made of, or a reason why not."""

from __future__ import annotations

import copy
import functools
import gc
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_gpu import PICTURES, SMALL, outcome, viewers
from torch.utils._python_dispatch import _get_current_dispatch_mode

import continual as cl
from continual import config
from continual.conformance import TRAINING, learners_of
from continual.errors import BadOption
from continual.learning import notes, recording, train
from continual.learning.capture import KEEPS, Graph
from continual.learning.models import Net, Out
from continual.learning.notes import LARGE, LIES, RANDOM, SHAPE, VALUE, Notes
from continual.learning.recording import IMPURE, Recording, recorded
from continual.learning.strategy import Batch, Memory, Strategy
from continual.learning.train import State, Watch, not_captured, program_of, steps_done
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


def any_function(seed: int, state: list[torch.Tensor], steady: list[torch.Tensor]) -> Function:
    """Forty operations on tensors that lie in place and on what came of others, some of which are written back.

    Half of them take what is steady, or came of that, alone; but any may write to whatever it takes.
    """
    numbers = np.random.default_rng(seed)
    names = [*numbers.permutation(list(OPERATIONS)), *numbers.choice(list(OPERATIONS), 13)]
    chosen = [(str(name), *(int(one) for one in numbers.integers(0, 10**6, 3))) for name in names]

    def function() -> torch.Tensor:
        there, still = [*state, *steady], list(steady)
        for name, a, b, place in chosen:
            taken = still if steady and place % 2 else there
            made = OPERATIONS[name](taken[a % len(taken)], taken[b % len(taken)])
            made = torch.nan_to_num(made).clamp(-3, 3) if place % 3 else made.clamp_(-3, 3).nan_to_num_()
            for one in (there, still) if taken is still else (there,):
                one.append(made)
            if place % 4 == 0:
                state[place % len(state)].copy_(made)
        return there[chosen[0][1] % len(there)]

    return function


def some_state(seed: int, count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 6, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("steady", [0, 3])
@pytest.mark.parametrize("seed", range(60))
def test_a_replay_gives_the_functions_bits(seed: int, steady: int) -> None:
    """What is said to be steady changes with each doubt, and else where the function itself changes it."""
    mine, theirs = some_state(seed), some_state(seed)
    still, other = some_state(seed + 1, steady), some_state(seed + 1, steady)
    graph, plain, asked = Graph(CPU, 1), any_function(seed, theirs, other), list[int]()
    function = any_function(seed, mine, still)

    def counted() -> torch.Tensor | None:
        asked.append(1)
        return function()

    for turn in range(9):
        for one, two in zip(mine, theirs, strict=True):
            change = torch.randn(6, 6, generator=torch.Generator().manual_seed(turn))
            one.add_(change), two.add_(change)
        if turn == 5:
            graph.doubt()
            for one, two in zip(still, other, strict=True):
                one.mul_(-0.7), two.mul_(-0.7)
        got, wanted = graph(counted, steady=lambda: still), plain()
        assert got is not None and wanted is not None
        assert torch.equal(got, wanted), turn
        assert all(torch.equal(*pair) for pair in zip(mine + still, theirs + other, strict=True)), turn
    assert not graph.why and len(asked) == 4, "as it is, as it is noted, and twice as it is compared"


def test_operations_that_are_wrong_by_a_bit_are_found() -> None:
    """The comparison of the tests above, and that of a run, can fail."""
    x = torch.randn(6, 6)

    def function() -> None:
        x.mul_(x.tanh() + 1)

    noted, _ = recorded(function)
    assert noted is not None and noted.compared(function)[0]
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

    noted, _ = recorded(function)
    assert noted is not None and torch.equal(x, torch.ones(1000)), "what was noted is undone"
    held = {one.untyped_storage().data_ptr() for call in noted.calls for one in notes.tensors((call.args, call.kwargs))}
    assert len(noted.calls) == 101 and len(held) <= 3
    x.fill_(5)
    noted.again()
    torch.testing.assert_close(x, 1 + 9 * torch.tensor(0.5).pow(50) + torch.zeros(1000))


def test_what_is_the_same_each_time_is_left_out() -> None:
    x, y = torch.ones(3), torch.zeros(3)
    noted, _ = recorded(lambda: y.add_(x.view(1, 3)[0] + torch.arange(3.0).mul(2).sin()))
    assert noted is not None and len(noted.calls) == 2


def test_what_comes_of_what_is_steady_is_done_once() -> None:
    x, y, still = torch.ones(3), torch.zeros(3), torch.arange(3.0)
    noted, _ = recorded(lambda: y.copy_(x + (2 * still).add_(1)), [still])
    assert noted is not None and (len(noted.once), len(noted.calls)) == (2, 1)
    noted.again()
    assert torch.equal(y, 2 + 2 * torch.arange(3.0))
    still.add_(1)
    noted.again()
    assert torch.equal(y, 2 + 2 * torch.arange(3.0)), "that it has changed was not said"
    noted.stale = True
    noted.again()
    assert torch.equal(y, 4 + 2 * torch.arange(3.0))


ONCE: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any], int]] = {
    "nothing of it is steady": (lambda x, y, still: y.copy_(2 * x), 0),
    "something else is added in place": (lambda x, y, still: y.copy_((2 * still).add_(x)), 0),
    "and to a part": (lambda x, y, still: ((made := 2 * still)[:1].add_(x[:1]), y.copy_(made)), 0),
    "it is read before it is written to again": (
        lambda x, y, still: ((made := 2 * still), x.add_(made), made.mul_(3), y.copy_(made)), 0),
    "it is read behind that": (lambda x, y, still: ((made := 2 * still), made.mul_(3), x.add_(made), y.copy_(made)), 2),
    "what was read before stays": (
        lambda x, y, still: ((made := 2 * still), (more := made + 1), x.add_(more), made.mul_(x), y.copy_(made)), 0),
    "the function writes to it": (lambda x, y, still: (y.copy_(2 * still), still.add_(1)), 0),
    "a view of it is written to": (lambda x, y, still: (y.copy_(2 * still), still.view(1, 3)[0].add_(1)), 0),
    "it goes by how another lies": (lambda x, y, still: y.copy_((torch.ones_like(x) + still).mul_(x)), 1),
    "so do others": (lambda x, y, still: y.copy_(x.new_zeros(3) + torch.full_like(x, 3) + x), 3),
    "it is filled then": (lambda x, y, still: y.copy_(torch.zeros_like(x).add_(x)), 0),
    "an empty one is filled": (lambda x, y, still: y.copy_(torch.empty(3).copy_(still) + x), 1),
    "an empty one is filled by something else": (lambda x, y, still: y.copy_(torch.empty(3).copy_(x) + still), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE)
def test_no_more_is_done_once_than_what_stays(name: str) -> None:
    does, once = ONCE[name]
    mine, theirs = ([torch.ones(3), torch.zeros(3), torch.arange(3.0)] for _ in range(2))
    noted, _ = recorded(lambda: (does(*mine), None)[1], [mine[2]])
    assert noted is not None and len(noted.once) == once
    for _ in range(4):
        noted.again()
        does(*theirs)
        assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


def numbers_of(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.view(-1)[:8].view(4, 2))


IN_PLACE: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any], int]] = {
    "it is made where it is copied to": (lambda x, y, z: y.copy_(x + 1), 1),
    "of what lies there, number by number": (lambda x, y, z: y.copy_((y * 0.5).add_(x)), 2),
    "it is what ReLU leaves": (lambda x, y, z: y.copy_(x.relu()), 1),
    "of what lies there, in another order": (lambda x, y, z: y.copy_(y.cumsum(0) / 3), 2),
    "of what lies there, in one go": (lambda x, y, z: y.copy_(y.softmax(0)), 2),
    "of a part of what lies there": (lambda x, y, z: y.copy_(x + y[:1]), 2),
    "of what lies there, the other way round": (lambda x, y, z: y.copy_(x - y[torch.arange(2, -1, -1)]), 2),
    "the place is read before": (lambda x, y, z: ((made := x * 2), z.add_(y), y.copy_(made)), 3),
    "the place is written to before": (lambda x, y, z: ((made := x * 2), y.add_(1), z.add_(y), y.copy_(made)), 4),
    "what was made is changed before": (lambda x, y, z: ((made := x * 2), made.add_(z), y.copy_(made)), 2),
    "a part of it is changed before": (lambda x, y, z: ((made := x * 2), made[1:].add_(z[1:]), y.copy_(made)), 2),
    "it is read afterwards": (lambda x, y, z: ((made := x * 2), y.copy_(made), z.add_(made)), 2),
    "it is read afterwards, and the place changed": (
        lambda x, y, z: ((made := x * 2), y.copy_(made), y.add_(1), z.add_(made)), 4),
    "it is changed and read afterwards": (
        lambda x, y, z: ((made := x * 2), y.copy_(made), made.add_(1), z.add_(made)), 4),
    "the place is changed afterwards": (lambda x, y, z: ((made := x * 2), y.copy_(made), y.add_(1), z.add_(y)), 3),
    "it goes to two places": (lambda x, y, z: ((made := x * 2), y.copy_(made), z.copy_(made)), 2),
    "a copy of the place is changed": (lambda x, y, z: ((made := y.clone()), made.mul_(x).add_(z), y.copy_(made)), 2),
    "what was there is asked for then": (
        lambda x, y, z: ((made := y.clone()), made.add_(x), z.copy_(y), y.copy_(made)), 4),
    "two change places": (lambda x, y, z: ((a := y.clone()), (b := z.clone()), y.copy_(b), z.copy_(a)), 3),
    "the first part of the place": (lambda x, y, z: y[:2].copy_(x[:2] * 2), 1),
    "its last part": (lambda x, y, z: y[1:].copy_(x[1:] * 2), 2),
    "it is copied turned": (lambda x, y, z: ((made := x * z), y.copy_(made.T)), 2),
    "it was made turned": (lambda x, y, z: y.copy_(x.T * 2), 2),
    "a part of it is copied": (lambda x, y, z: ((made := torch.cat([x, z]) * 2), y.copy_(made[:3])), 3),
    "what was there before is copied": (lambda x, y, z: (z.add_(x * 2), y.copy_(x)), 3),
    "what is copied to is copied": (lambda x, y, z: ((a := x + 1), (b := x * 2), a.copy_(b), y.copy_(a)), 3),
    "and is another's, turned": (
        lambda x, y, z: ((a := x * z), (b := a.T.clone(memory_format=torch.contiguous_format)), y.copy_(a), y.copy_(b)),
        3),
    "and is another's product": (lambda x, y, z: ((a := x * z), (b := a @ x), y.copy_(a), y.copy_(b)), 3),
    "and is another's sum": (lambda x, y, z: ((a := x * z), (b := a + a.T), y.copy_(a), y.copy_(b)), 3),
    "and is another's rows": (
        lambda x, y, z: ((a := x * z), (b := a.index_select(0, z[0].argsort())), y.copy_(a), y.copy_(b)), 4),
    "its imaginary part is the other way round": (
        lambda x, y, z: numbers_of(y).copy_(torch.complex(x.view(-1)[:4], z.view(-1)[:4]).conj()), 2),
    "a complex quotient": (lambda x, y, z: numbers_of(y).copy_(numbers_of(y) / numbers_of(x)), 2),
    "another type": (lambda x, y, z: y.copy_(x.double() * 2), 3),
    "one number for all": (lambda x, y, z: y.copy_(x[:1] * 2), 2),
    "one of two results": (lambda x, y, z: y.copy_(x.topk(3).values), 2),
    "what is given": (lambda x, y, z: (made := x * 2, y.copy_(made))[0], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_copied_is_made_in_its_place_where_nobody_sees_it(name: str) -> None:
    """So many operations are left."""
    does, left = IN_PLACE[name]
    mine, theirs = ([one.clone() for one in torch.arange(27.0).reshape(3, 3, 3) * 7 % 5 - 2] for _ in range(2))

    def function() -> torch.Tensor | None:
        found = does(*mine)
        return found if name == "what is given" else None

    noted, _ = recorded(function)
    assert noted is not None and len(noted.calls) == left
    for turn in range(4):
        given = noted.again()
        does(*theirs)
        assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True)), turn
        assert given is None or torch.equal(given, theirs[0] * 2)
        for one in (mine, theirs):
            one[turn % 2].add_(turn + 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32])
def test_what_relu_leaves_is_noted_to_the_bit(dtype: torch.dtype) -> None:
    """Of what is no number, of 0 with a sign and of whole numbers, too."""
    x = torch.tensor([torch.nan, -torch.nan, -0.0, 0.0, torch.inf, -torch.inf, -1.0, 2.0])
    x = torch.cat([x, torch.linspace(-3, 3, 25)]).to(dtype)
    noted, _ = recorded(x.relu)
    assert noted is not None
    found = noted.again()
    assert found is not None and torch.equal(found.view(torch.uint8), x.relu().view(torch.uint8))


OF_USE: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any], int]] = {
    "nobody reads it": (lambda x, y, z: ((x + z).exp().sum(), y.add_(x)), 1),
    "nobody reads what it is written to": (lambda x, y, z: ((x + z).add_(y), y.add_(x)), 1),
    "it is written to once more than it is read": (
        lambda x, y, z: ((made := x * 2), y.add_(made), made.add_(z).sum()), 2),
    "a part of it is read": (lambda x, y, z: ((made := x * z), made[:1].add_(1), y.add_(made[1:].sum())), 4),
    "one of two results is read": (lambda x, y, z: y.add_((x * z).topk(2).values.sum()), 4),
    "of a loss only the gradient is read": (lambda x, y, z: y.add_(gradient(lambda t: t * z, x)), 8),
    "its value is read, too": (
        lambda x, y, z: (y.add_(gradient(lambda t: t * z, x)), z.add_((x * z).square().sum())), 12),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_USE)
def test_what_nobody_reads_is_left_out(name: str) -> None:
    does, left = OF_USE[name]
    mine, theirs = ([torch.ones(3), torch.zeros(3), torch.arange(3.0)] for _ in range(2))
    noted, _ = recorded(lambda: (does(*mine), None)[1])
    assert noted is not None and len(noted.once) + len(noted.calls) == left
    for _ in range(4):
        noted.again()
        does(*theirs)
        assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


def test_what_operations_of_others_do_besides_is_done_each_time() -> None:
    """Also where they give nothing, or read nothing that changes."""
    asked = list[str]()

    @torch.library.custom_op("continual_tests::telling", mutates_args=())
    def telling(x: torch.Tensor) -> torch.Tensor:
        asked.append("telling")
        return x + 1

    @torch.library.custom_op("continual_tests::silent", mutates_args=())
    def silent(x: torch.Tensor) -> None:
        asked.append("silent")

    x, y, still = torch.ones(3), torch.zeros(3), torch.ones(3)
    noted, _ = recorded(lambda: (telling(x), silent(x), y.add_(x), y.add_(telling(still)), None)[-1], [still])
    assert noted is not None
    for _ in range(3):
        noted.again()
    assert asked == 4 * ["telling", "silent", "telling"] and torch.equal(y, torch.full((3,), 9.0))


def test_what_was_said_to_be_steady_and_is_not_ends_the_run() -> None:
    x, y = torch.ones(3), torch.zeros(3)
    graph = Graph(CPU, 1)

    def function() -> None:
        y.add_(x * 2)

    with pytest.raises(BadOption, match=r"after 8 replays.*--program eager, or set can_be_captured"):
        for turn in range(40):
            x.fill_(1.0 if turn < 5 else 2.0)
            graph(function, steady=lambda: [x])
    assert turn == 9


# ---- what cannot be recorded


SPARSE = torch.eye(6).to_sparse()


def refusing(x: torch.Tensor) -> torch.Tensor:
    """As some of PyTorch's own functions do."""
    if _get_current_dispatch_mode() is not None:
        raise RuntimeError("not while something listens")
    return x + 1


GENERATOR = torch.Generator()


@pytest.mark.parametrize(("made", "why"), [
    (lambda x: x * x.sum().item(), VALUE), (lambda x: x if x.sum() > 0 else -x, VALUE),
    (lambda x: x if torch.equal(x, x) else -x, VALUE), (lambda x: x[x > 0], SHAPE), (lambda x: x.nonzero(), SHAPE),
    (lambda x: x.masked_select(x > 0), SHAPE), (lambda x: x.clone().unsqueeze_(0), LIES),
    (lambda x: x.clone().resize_(2), LIES), (lambda x: x + torch.rand(6, 6, generator=GENERATOR), RANDOM),
    (lambda x: torch.empty(6, 6).normal_(generator=GENERATOR), RANDOM),
    (lambda x: torch.nn.functional.one_hot((x > 0).long(), 3), VALUE),
    (lambda x: x.to_sparse(), "PyTorch cannot record it (NotImplementedError)"),
    (lambda x: torch.sparse.mm(SPARSE, x), "PyTorch cannot record it (NotImplementedError)"),
    (lambda x: x * max(max(row) for row in x.tolist()), VALUE), (lambda x: x * float(x.numpy().max()), VALUE),
    (refusing, "PyTorch cannot record it (RuntimeError)"),
    (lambda x: (x + 0.0).expand(99, 6, 6).clone(), LARGE),
])  # fmt: skip
def test_what_cannot_be_recorded_is_done_and_said(made: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "MOST", 6 * 6 * 4 * 50)
    graph, x, calls = Graph(CPU, 1), torch.randn(6, 6), list[int]()

    def function() -> Any:
        calls.append(1)
        return made(x)

    for turn in range(5):
        x += 1
        gave = graph(function)
        if why is not RANDOM:
            assert torch.equal(gave.to_dense(), made(x).to_dense()), turn
    assert graph.why == why
    assert len(calls) == 6 and graph.recording is None, "once it was noted, and undone"


def test_a_plain_index_is_no_mask() -> None:
    graph, x = Graph(CPU, 1), torch.randn(6, 6)
    for _ in range(4):
        x.add_(1)
        got = graph(lambda: x[torch.tensor([0, 2]).clone()])
        assert got is not None and torch.equal(got, x[::2][:2])
    assert not graph.why


@pytest.mark.parametrize("kind", ["counts", "keeps"])
def test_a_function_that_does_something_else_each_time_is_refused(kind: str) -> None:
    """It is called once more as it is noted, and what it keeps by itself cannot be undone."""
    x, y, kept = torch.ones(3), torch.zeros(3), [1.0, torch.ones(3)]

    def function() -> None:
        if kind == "counts":
            kept[0] += 1
            y.add_(x * kept[0])
        else:
            y.add_(kept[1])
            kept[1] = y * 2 + x

    graph = Graph(CPU, 1)
    graph(function)
    with pytest.raises(BadOption, match=IMPURE):
        graph(function)


def test_a_function_that_keeps_something_where_it_is_seen_is_called_each_time() -> None:
    x, y, kept, calls = torch.ones(3), torch.zeros(3), {"n": 1.0}, list[int]()

    def function() -> None:
        calls.append(1)
        kept["n"] += 1
        y.add_(x * kept["n"])

    graph = Graph(CPU, 2, kept=lambda: kept["n"])
    for _ in range(6):
        graph(function)
    assert graph.why == KEEPS and graph.recording is None and len(calls) == 6 and torch.equal(y, x * 27)


def test_what_a_function_begins_to_keep_later_is_seen_when_it_is_compared() -> None:
    x, y, kept = torch.ones(3), torch.zeros(3), {"n": 0.0, "more": 0.0}

    def function() -> None:
        kept["n"] += kept["more"]
        y.add_(x * (1 + kept["n"]))

    graph = Graph(CPU, 1, kept=lambda: kept["n"])
    for _ in range(4):
        graph(function)
    assert graph.recording is not None and not graph.why
    kept["more"] = 1.0
    graph.doubt()
    for _ in range(4):
        graph(function)
    assert graph.why == KEEPS and torch.equal(y, x * (4 + 2 + 3 + 4 + 5))


def test_what_cannot_be_done_again_is_done_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(self: Recording) -> None:
        self.outside[0].add_(100)
        raise RuntimeError("no")

    monkeypatch.setattr(Recording, "again", again)
    y, graph = torch.zeros(3), Graph(CPU, 1)
    for _ in range(5):
        graph(lambda: y.add_(1))
    assert torch.equal(y, torch.full((3,), 5.0)) and "cannot do it again (RuntimeError)" in graph.why


def drops(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(x, 0.5)


def draws_in_vain(x: torch.Tensor) -> torch.Tensor:
    torch.rand(5)
    return x * torch.rand(6, 6)


def draws_into(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(6, 6).copy_(torch.rand(6, 6)).mul_(x)


def draws_gradient(x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(drops(leaf * 3).square().sum(), leaf)[0]


@pytest.mark.parametrize("function", [
    drops, draws_in_vain, draws_into, draws_gradient, torch.rand_like, torch.bernoulli, torch.normal,
    lambda x: torch.randperm(4), lambda x: torch.randint(9, (6, 6)), lambda x: torch.multinomial(x, 3),
    lambda x: torch.randn(6, 6).cumsum(0) + torch.rand(6),
])  # fmt: skip
def test_random_numbers_of_a_replay_are_those_of_a_call(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """None is drawn as it is tried, all are as it is done again, and they are other ones each time."""
    x, graph = torch.linspace(0.1, 0.9, 36).view(6, 6), Graph(CPU, 1)
    found: list[list[torch.Tensor]] = []
    for call in (lambda: function(x), lambda: graph(lambda: function(x), steady=lambda: [x])):
        torch.manual_seed(3)
        found.append([call().clone() for _ in range(70)] + [torch.rand(3)])
    assert graph.recording is not None and graph.recording.draws and graph.draws and graph.replays > 60
    assert all(map(torch.equal, *found)) and not torch.equal(found[0][60], found[0][61])


def test_that_sizes_are_asked_for_hinders_nothing() -> None:
    """``jvp`` of a gradient asks whether sizes are alike, and has zeros that nobody may write to."""
    x, graph = torch.ones(3), Graph(CPU, 1)

    def function() -> torch.Tensor:
        found: torch.Tensor = torch.func.jvp(torch.func.grad(lambda t: t.pow(3).sum()), (x,), (x + 1,))[1]
        return found

    for _ in range(5):
        x.add_(1)
        got, wanted = graph(function), function()
        assert got is not None and torch.equal(got, wanted)
    assert VALUE not in graph.why


@pytest.mark.parametrize("made", [lambda x: torch.fft.fft(x).conj(), lambda x: torch.fft.fft(x).conj().imag])
def test_results_may_be_conjugate(made: Any) -> None:
    x, graph = torch.randn(6, 6), Graph(CPU, 1)
    for _ in range(4):
        x.add_(1)
        got = graph(functools.partial(made, x))
        assert got is not None and torch.equal(got, made(x))
    assert not graph.why


@pytest.mark.parametrize("inside", [False, True])
def test_operations_are_replayed_under_the_gradients_that_they_had(inside: bool) -> None:
    """An LSTM keeps what a backward pass needs only where there may be one."""
    torch.manual_seed(0)
    lstm, x, graph = torch.nn.LSTM(6, 6, batch_first=True), torch.randn(2, 3, 6), Graph(CPU, 1)

    def function() -> torch.Tensor:
        with torch.set_grad_enabled(inside):
            found: torch.Tensor = lstm(x)[0].detach()
            return found

    for _ in range(5):
        x += 0.1
        with torch.set_grad_enabled(not inside):
            got, wanted = graph(function), function()
        assert got is not None and torch.equal(got, wanted)


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


PLACE = types.ModuleType("place")  # what is in a module is not looked at


@dataclass(frozen=True)
class Elsewhere(Strategy):
    """It keeps θ* where nobody looks."""

    def init(self, net: Net, theta: torch.Tensor, stream: Any) -> Memory:
        vars(PLACE).pop("star", None)
        return {}

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return (theta - PLACE.star).square().sum() if hasattr(PLACE, "star") else 0 * theta.sum()

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        vars(PLACE)["star"] = theta.clone()
        return theta, memory


@dataclass(frozen=True)
class Asking(Strategy):
    """It branches on a value, and does not say so."""

    def loss(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        loss = super().loss(net, theta, memory, batch, out, task)
        return loss if loss > 0.5 else 2 * loss


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("kind", "told"), [
    (Aside, "captured"), (Elsewhere, f"captured, but for 10 steps: {IMPURE}"), (Asking, f"eager: {VALUE}"),
])  # fmt: skip
def test_a_strategy_against_the_rules_still_does_what_it_does(kind: type[Strategy], told: str) -> None:
    """A replay is compared again in each task, as what it has not noticed may have changed between them."""
    found = []
    for program in ("eager", "auto"):
        learners = learners_of(kind(), [0])
        found.append(outcome(learners, replace(TRAINING, program=program)))
    assert all(torch.equal(value.nan_to_num(), found[1][name].nan_to_num()) for name, value in found[0].items())
    assert program_of(steps_done(learners, TRAINING)) == told


@dataclass(frozen=True)
class AskingAtTimes(Strategy):
    """It branches on a value where a batch is partial."""

    def loss(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        loss = super().loss(net, theta, memory, batch, out, task)
        return loss if len(batch.row) == 7 or loss > 0.5 else 2 * loss


@dataclass(frozen=True)
class AskingOfNone(Strategy):
    """It branches on a value where the class 0 is learnt first."""

    def loss(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        loss = super().loss(net, theta, memory, batch, out, task)
        return loss if "0" not in task.classes or task.index or loss > 0.5 else 2 * loss


@pytest.mark.usefixtures("often")
def test_the_record_says_how_many_steps_could_not_be_recorded() -> None:
    """Of a task's 24 rows a fourth batch of 3 is left in each of two epochs; the first of all is only done."""
    found, training, states = [], replace(TRAINING, batch=7), list[State]()
    keeps = Watch(due=lambda done: done == 0, keep=lambda state: states.append(copy.deepcopy(state)))
    for program in ("eager", "auto"):
        learners = learners_of(AskingAtTimes(), [0])
        found.append(outcome(learners, replace(training, program=program)))
    assert all(torch.equal(value.nan_to_num(), found[1][name].nan_to_num()) for name, value in found[0].items())
    assert program_of(steps_done(learners, training)) == f"captured, but for 5 steps: {VALUE}"
    train.train(learners_of(AskingAtTimes(), [0]), training, keeps)
    again = learners_of(AskingAtTimes(), [0])
    train.train(again, training, Watch(start=states[-1]))
    assert program_of(steps_done(again, training)) == f"captured, but for {5 - 1} steps: {VALUE}", (
        "one more is done anew"
    )


def test_the_record_is_of_all_seeds() -> None:
    """Seeds one after the other may differ in what of their steps could be recorded."""
    done: list[dict[str, Any]] = []
    for why, unrecorded in (("", {}), ("", {VALUE: 3, IMPURE: 1}), ("", {VALUE: 2})):
        done.append({"why": why, "replayed": unrecorded == {}, "unrecorded": unrecorded, "compiled": False})
    assert program_of(*done) == f"captured, but for 5 steps: {VALUE}, but for 1 steps: {IMPURE}"
    assert program_of(*done[1:]) == f"eager: {VALUE}, {IMPURE}"
    assert program_of(done[0], done[0]) == "captured"


@pytest.mark.parametrize("how", ["loop", "processes"])
def test_seeds_that_differ_in_it_are_all_in_the_record(how: Any) -> None:
    stream, asked = "split-digits:limit=8,order=seed", {"epochs": 12, "batch": 4, "out": None}
    first = {seed: cl.benchmarks.SplitDigits(order="seed").stream(seed).tasks[0].classes for seed in range(20)}
    asks = next(seed for seed, classes in first.items() if "0" in classes)
    other = next(seed for seed, classes in first.items() if "0" not in classes)
    alone = [cl.run(stream, AskingOfNone(), seeds=(seed,), **asked).record["program"] for seed in (asks, other)]
    assert alone[0].startswith("captured, but for ") and alone[0].endswith(f" steps: {VALUE}")
    assert alone[1] == "captured"
    for seeds in ((other, asks), (asks, other)):
        assert cl.run(stream, AskingOfNone(), seeds=seeds, seeds_as=how, **asked).record["program"] == alone[0]


# ---- steps


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("seeds", [1, 2], ids=["alone", "mapped"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [SMALL, ReducedResNet18(width=2), ReducedResNet18(width=4, statistics="task"),
                                   ReducedResNet18(width=4, norm="group")], ids=str)  # fmt: skip
def test_networks_for_images_learn_the_same_bits(model: Any, precision: str, seeds: int) -> None:
    found = []
    for program in ("eager", "captured"):
        learners = viewers(model, "der++:capacity=12", precision, seeds=seeds, device="cpu", last=seeds == 1)
        found.append(outcome(learners, replace(PICTURES, program=program, evaluate_every=3)))
        assert learners.replayed == (program == "captured") and not learners.unrecorded
    for name, value in found[0].items():
        assert torch.equal(value.nan_to_num(), found[1][name].nan_to_num()), name


@pytest.mark.usefixtures("often")
def test_evaluations_between_steps_are_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    class Kept(Graph):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            graphs.append(self)

    monkeypatch.setattr("continual.learning.train.Graph", Kept)
    found = []
    for program in ("eager", "captured"):
        training = replace(TRAINING, program=program, evaluate_every=1)
        found.append(outcome(learners_of(config.make_strategy("ncm"), [0]), training))
    assert torch.equal(found[0]["trace"].nan_to_num(), found[1]["trace"].nan_to_num())
    assert graphs and all(one.recording is not None for one in graphs)


def test_many_parameters_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a strategy makes of a long vector at each step would be copied to where it lies."""
    learners = learners_of(config.make_strategy("si"), [0])
    assert not not_captured(learners, TRAINING)
    monkeypatch.setattr(train, "MOST", 16 * learners.net.size - 1)
    assert not_captured(learners, TRAINING) == "there are many parameters"


@pytest.mark.usefixtures("often")
def test_a_recording_leaves_nothing_to_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        outcome(learners_of(config.make_strategy("gem"), [0]), TRAINING)
        left = [one for one in gc.get_objects() if type(one) in (Recording, Notes, notes.Done, recording.Call)]
    finally:
        gc.enable()
    assert not left


def test_a_rare_step_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording takes as long as some twenty replays save: GEM has a program for each task."""
    made = list[int]()
    monkeypatch.setattr(recording, "recorded", lambda *given: made.append(1) or recorded(*given))
    for strategy, epochs, times in (("finetune", 1, 0), ("finetune", 20, 1), ("gem", 12, 0), ("gem", 20, 3)):
        made.clear()
        outcome(learners_of(config.make_strategy(strategy), [0]), replace(TRAINING, batch=12, epochs=epochs))
        assert len(made) == times, (strategy, epochs)


STARTS = """
import sys
import continual as cl

cl.run("split-digits:limit=40", "finetune", seeds=1, epochs=20, out=None)
assert "torch._dynamo" not in sys.modules, "the compiler takes a second to import"
"""


def test_recording_imports_no_compiler(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-P", "-c", STARTS], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(("program", "epochs", "told"), [
    ("auto", 20, "captured"), ("captured", 20, "captured"), ("eager", 20, "eager: as asked"),
    ("auto", 1, "eager: there are too few steps"),
])  # fmt: skip
def test_the_record_says_how_steps_were_done(
    program: Any, epochs: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed, again = list[int](), Recording.again
    monkeypatch.setattr(Recording, "again", lambda self: replayed.append(1) or again(self))
    result = cl.run("split-digits:limit=20", "finetune", seeds=1, epochs=epochs, program=program, out=None)
    assert result.record["program"] == told
    assert (len(replayed) > 30) == (told == "captured")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
@pytest.mark.parametrize("text", ["si", "generative-replay:layers=9,latent=3"])
def test_a_recording_that_ends_anywhere_leaves_nothing_behind(
    text: str, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends where its tensors are large, be that as the step is done or as what it made goes into memory."""
    training, strategy = replace(TRAINING, program="auto"), config.make_strategy(text)
    counted = list[int]()
    count = Notes._count

    def noted(self: Notes, more: int) -> None:
        count(self, more)
        counted.append(self.bytes)

    monkeypatch.setattr(Notes, "_count", noted)
    wanted = outcome(learners_of(strategy, seeds), training)
    for most in sorted(set(counted))[::-1][::3][:40]:
        monkeypatch.setattr(notes, "MOST", most - 1)
        found = outcome(learners_of(strategy, seeds), training)
        for name, value in wanted.items():
            assert torch.equal(value.nan_to_num(), found[name].nan_to_num()), (most, name)


def test_a_run_that_goes_on_for_a_few_steps_says_how_the_others_were_done() -> None:
    training, states = replace(TRAINING, epochs=10), list[State]()
    watch = Watch(due=lambda done: done == 28, keep=lambda state: states.append(copy.deepcopy(state)))
    learners = learners_of(Strategy(), [0])
    train.train(learners, training, watch)
    assert program_of(steps_done(learners, training)) == "captured"
    again = learners_of(Strategy(), [0])
    train.train(again, training, Watch(start=states[-1]))
    assert program_of(steps_done(again, training)) == "captured"
