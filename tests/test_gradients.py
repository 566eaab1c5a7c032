"""Rehearsal's epochs, and gradients that are projected: against brute force, trusted solvers and avalanche-lib."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls

from continual.config import make_strategy
from continual.conformance import check, small_stream
from continual.errors import BadChain, BadOption
from continual.learning import projection
from continual.learning.models import MLP, Gated, LinearNet, Net, Out
from continual.learning.optimizers import SGD, Adam, Constant, Optimizer
from continual.learning.projection import BLOCK, FEW, ITERATIONS, drawn, nonnegative, room_above, stored_gradients
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Chain, Memory, Strategy
from continual.learning.vision import CNN
from continual.strategies.a_gem import AGEM
from continual.strategies.gem import GEM
from continual.strategies.owm import OWM
from continual.strategies.rehearsal import Rehearsal
from continual.streams.rng import key
from continual.streams.stream import Stream, Task

STREAM = small_stream(0)  # six classes of 12 images, two in each of three tasks, class scenario
NET = MLP(layers=(6,)).build(STREAM.shape, STREAM.units)
PER_TASK = 24


def unopposed(g: torch.Tensor, G: torch.Tensor, **options: float) -> torch.Tensor:
    """The gradient that opposes none of G (t, P)."""
    room = room_above(g, len(G))
    room[:-1, : len(g)].copy_(G)
    return projection.unopposed(room, g, **options)


class Halves(Gated):
    """Even tasks have the first half of the hidden units, odd ones the second."""

    def gates(self, p: dict[str, torch.Tensor], tasks: torch.Tensor) -> list[torch.Tensor]:
        first = torch.arange(6) < 3
        return [torch.where((tasks % 2 == 0)[:, None], first, ~first).double()]


class Colder(LinearNet):
    """A forward pass of its own around linear layers."""

    def apply(self, p: dict[str, torch.Tensor], x: torch.Tensor, gates: Any = None) -> Out:
        logits, features = super().apply(p, x, gates)
        return Out(3 * logits, features)


def vector(seed: int, size: int = NET.size) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.4


def learnt(strategy: Strategy, tasks: int, stream: Stream = STREAM) -> Memory:
    """The memory after so many tasks."""
    memory = strategy.init(NET, vector(0), stream)
    for task in stream.tasks[:tasks]:
        _, memory = strategy.after_task(NET, vector(0), memory, task)
    return memory


def learner(strategy: Strategy, optimizer: Optimizer | None = None) -> Learners:
    recipe = Recipe(NET, strategy, optimizer or SGD(lr=0.1), Constant(), True, "float64")
    return Learners(recipe, [STREAM], [0])


def batch_of(task: Task, step: int = 0) -> Batch:
    samples, rows = task.samples, task.train[:4]
    x = samples.images(rows, torch.float64)
    return Batch(rows, samples.y[rows], samples.task[rows], key(0, task.index, step), len(rows), x=x)


def gradient_by_hand(theta: torch.Tensor, rows: torch.Tensor, task: Task) -> torch.Tensor:
    """The gradient of the mean cross-entropy over the outputs seen so far."""
    live = theta.clone().requires_grad_()
    logits = NET.logits(live, task.samples.images(rows, torch.float64))[:, : 2 * (task.index + 1)]
    loss = -logits.log_softmax(1)[torch.arange(len(rows)), task.samples.y[rows]].mean()
    return torch.autograd.grad(loss, live)[0]


def of_each_task(rows: torch.Tensor) -> list[list[int]]:
    """The rows in memory, task by task."""
    kept = [int(row) for row in rows if row >= 0]
    assert len(set(kept)) == len(kept)
    return [[row for row in kept if STREAM.samples.task[row] == task] for task in range(3)]


# ---- the quadratic programme


def problem(kind: str, tasks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of past tasks (t, P) and of a step (P,), which may be awkward."""
    numbers = torch.Generator().manual_seed(100 * seed + tasks)
    G, common, g = (torch.randn(n, 50, generator=numbers, dtype=torch.float64) for n in (tasks, 1, 1))
    side = torch.where(torch.arange(tasks) % 2 == 0, 1.0, -1.0).double()[:, None]
    scales = 10 ** torch.linspace(-6, 3, tasks, dtype=torch.float64)[:, None]
    G = {
        "plain": G,
        "nearly the same": common + 1e-3 * G,
        "the same in pairs": G[torch.arange(tasks) // 2],
        "nearly contradicting": 1e-3 * G + side * common,
        "contradicting": side * common,
        "of all sizes": scales * G,
        "tiny": 1e-8 * G,
        "none": torch.zeros_like(G),
        "in few dimensions": G[:, :3] @ torch.randn(3, 50, generator=numbers, dtype=torch.float64),
    }[kind]
    return G, g[0] - 0.3 * G.sum(0) / G.norm().clamp_min(1e-300)


KINDS = [
    "plain", "nearly the same", "the same in pairs", "nearly contradicting", "contradicting", "of all sizes", "tiny",
    "none", "in few dimensions",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 10, 20])
@pytest.mark.parametrize("few", [FEW, 0])
def test_the_programme_is_solved(few: int, tasks: int, kind: str) -> None:
    """No constraint is broken and Karush, Kuhn and Tucker's conditions hold, which make it the one solution."""
    for seed in range(10):
        G, g = problem(kind, tasks, seed)
        u = nonnegative(G @ G.T, G @ g, few)
        projected = G.T @ u + g
        assert bool(u.isfinite().all()) and float(u.min()) >= 0
        products = G @ projected
        assert float((products / (G.norm(dim=1) * g.norm()).clamp_min(1e-300)).min()) > -1e-9
        assert abs(float(u @ products)) < 1e-7 * float(g.norm()) ** 2, "what is not tight weighs nothing"
        if kind != "in few dimensions":  # where scipy's answer breaks constraints
            trusted, _ = nnls(G.T.numpy(), -g.numpy(), maxiter=1000)
            wanted = G.T @ torch.from_numpy(trusted) + g
            assert float((projected - wanted).norm()) < 1e-6 * float(g.norm())


def test_so_many_iterations_are_needed_and_no_more() -> None:
    """22 reach rounding on the worst of these problems; 15 do not, and more change nothing."""
    worst = dict.fromkeys((15, ITERATIONS, 60), 0.0)
    for kind, tasks, seed in itertools.product(("plain", "nearly contradicting", "of all sizes"), (5, 20), range(10)):
        G, g = problem(kind, tasks, seed)
        exact = G.T @ torch.from_numpy(nnls(G.T.numpy(), -g.numpy(), maxiter=1000)[0]) + g
        for count in worst:
            off = float((G.T @ nonnegative(G @ G.T, G @ g, 0, count) + g - exact).norm() / g.norm())
            worst[count] = max(worst[count], off)
    assert worst[15] > 1e-5 and worst[ITERATIONS] < 1e-6 and worst[ITERATIONS] < 2 * worst[60] + 1e-12


@pytest.mark.parametrize("ridge", [0.0, 0.001, 1.0])
@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_bound_and_ridge_are_those_of_the_dual(bound: float, ridge: float) -> None:
    """Against a general solver of constrained problems."""
    for seed in range(5):
        G, g = problem("plain", 4, seed)
        A, q = (G @ G.T + ridge * torch.eye(4)).numpy(), (G @ g).numpy()
        found = minimize(
            lambda v, A=A, q=q: (0.5 * v @ A @ v + q @ v, A @ v + q), np.ones(4), jac=True, method="SLSQP",
            bounds=[(bound, None)] * 4, options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        opposed = bool((G @ g < 0).any())
        wanted = G.T @ torch.from_numpy(found.x) + g if opposed else g
        torch.testing.assert_close(unopposed(g, G, bound=bound, ridge=ridge), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tasks", [3, FEW, FEW + 3])
@pytest.mark.parametrize("options", [{}, {"bound": 0.5}, {"added": 0.5, "ridge": 0.1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_zeros_opposes_nothing(dtype: torch.dtype, options: dict[str, float], tasks: int) -> None:
    """As a task has of which nothing is stored: the others are projected as without it."""
    for seed in range(5):
        G, g = (part.to(dtype) for part in problem("plain", tasks, seed))
        empty = torch.zeros_like(G[:1])
        found = unopposed(g, torch.cat([G[:1], empty, G[1:], empty]), **options)
        torch.testing.assert_close(found, unopposed(g, G, **options), rtol=1e-5, atol=1e-6)


def test_what_is_added_comes_after_the_programme() -> None:
    G, g = problem("plain", 4, 0)
    plain = unopposed(g, G)
    torch.testing.assert_close(unopposed(g, G, added=0.5), plain + 0.5 * G.sum(0))
    assert not torch.allclose(unopposed(g, G, bound=0.5), plain + 0.5 * G.sum(0), rtol=0.01)


@pytest.mark.parametrize("options", [{}, {"bound": 0.5}, {"added": 0.5, "ridge": 0.1}])
def test_a_gradient_that_opposes_none_stays(options: dict[str, float]) -> None:
    G, _ = problem("plain", 3, 0)
    friendly = torch.linalg.lstsq(G, torch.tensor([1.0, 2.0, 1e-6], dtype=torch.float64)[:, None]).solution[:, 0]
    assert torch.equal(unopposed(friendly, G, **options), friendly)
    assert not torch.equal(unopposed(-friendly, G, **options), -friendly)


@pytest.mark.parametrize("options", [{}, {"bound": 0.5}, {"added": 0.5}, {"ridge": 0.1, "bound": 0.5}], ids=str)
def test_what_lies_at_right_angles_is_not_opposed(options: dict[str, float]) -> None:
    """As gradients of tasks do that share no weight."""
    g, G = torch.zeros(8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64)
    g[:3], G[0, 3:5], G[1, 5:] = vector(0, 3), vector(1, 2), vector(2, 3)
    assert torch.equal(unopposed(g, G, **options), g)


def test_single_precision_is_solved_in_double() -> None:
    G, g = (part.float() for part in problem("nearly contradicting", 6, 1))
    torch.testing.assert_close(unopposed(g, G), unopposed(g.double(), G.double()).float(), rtol=0, atol=0)


def test_the_programme_can_be_mapped_over_seeds() -> None:
    pairs = [problem(kind, 3, 5) for kind in KINDS]
    G, g = (torch.stack(column) for column in zip(*pairs, strict=True))
    mapped = torch.vmap(lambda g, G: unopposed(g, G, bound=0.5))(g, G)
    for r in range(len(pairs)):
        torch.testing.assert_close(mapped[r], unopposed(g[r], G[r], bound=0.5))


# ---- drawing stored rows


def test_rows_are_drawn_from_each_line_none_twice() -> None:
    rows = torch.tensor([[3, 5, 7, -1, -1], [11, 13, 17, 19, 23], [-1, -1, -1, -1, -1]])
    counts: Counter[int] = Counter()
    for step in range(300):
        got = drawn(rows, 2, key(0, step=step)).tolist()
        assert len(set(got[0])) == len(set(got[1])) == 2 and got[2] == [-1, -1]
        assert set(got[0]) <= {3, 5, 7} and set(got[1]) <= {11, 13, 17, 19, 23}
        counts.update(got[0] + got[1])
    assert all(160 < counts[row] < 240 for row in (3, 5, 7)) and all(85 < counts[n] < 155 for n in (11, 13, 17, 19, 23))
    four = drawn(rows, 4, key(0))
    assert sorted(four[0].tolist()) == [-1, 3, 5, 7], "all of them where there are fewer"
    assert drawn(rows, 5, key(0)) is rows


# ---- what is stored


@pytest.mark.parametrize("capacity", [13, 30, 1000])
@pytest.mark.parametrize("strategy", [Rehearsal, lambda **o: GEM(divide="seen", **o)])
def test_shares_of_past_tasks_are_equal_and_shrink(strategy: Any, capacity: int) -> None:
    """After each task every one so far has its share, the beginning of what it had before."""
    alone, before = strategy(capacity=capacity), [[], [], []]
    for tasks in (1, 2, 3):
        share, rows = min(capacity // tasks, PER_TASK), learnt(alone, tasks)["rows"]
        got = of_each_task(rows)
        assert [len(part) for part in got] == [share] * tasks + [0] * (3 - tasks)
        assert all(new == old[: len(new)] for new, old in zip(got[: tasks - 1], before, strict=False))
        assert len(rows) == 3 * min(capacity, PER_TASK)
        if tasks < 3:
            table = alone.stored(learnt(alone, tasks), STREAM.tasks[tasks])
            assert table.tolist() == got[:tasks], "without a slot that is empty"
        before = got


def test_rehearsal_stores_random_rows_of_a_task() -> None:
    one, two = (of_each_task(learnt(Rehearsal(capacity=6), 1, small_stream(seed))["rows"])[0] for seed in (0, 1))
    assert one != two and one not in (STREAM.tasks[0].train[:6].tolist(), STREAM.tasks[0].train[-6:].tolist())


def test_gem_stores_each_tasks_last_rows_and_divides_by_the_stream() -> None:
    for tasks in (1, 2, 3):
        got = of_each_task(learnt(GEM(capacity=16), tasks)["rows"])
        wanted = [task.train[-5:].flip(0).tolist() for task in STREAM.tasks[:tasks]]
        assert got == wanted + [[]] * (3 - tasks)


def test_gem_may_store_random_rows() -> None:
    last, chosen = (of_each_task(learnt(GEM(capacity=16, fill=fill), 1)["rows"])[0] for fill in ("last", "random"))
    assert len(chosen) == 5 and set(chosen) <= set(STREAM.tasks[0].train.tolist()) and set(chosen) != set(last)


@pytest.mark.parametrize("strategy", [Rehearsal(capacity=2), GEM(capacity=2)])
def test_too_small_a_memory_is_refused(strategy: Strategy) -> None:
    with pytest.raises(BadChain, match="capacity=2 is too small for 3 tasks; give 3 or more"):
        strategy.suits(STREAM, NET)
    type(strategy)(capacity=3).suits(STREAM, NET)


def test_a_gem_stores_equally_many_of_each_class() -> None:
    for tasks in (1, 2, 3):
        rows = learnt(AGEM(capacity=14), tasks)["rows"]
        kept = rows[rows >= 0]
        assert STREAM.samples.y[kept].bincount().tolist() == [14 // (2 * tasks)] * 2 * tasks
    assert len(kept.unique()) == len(kept)


# ---- the rows of an epoch


@pytest.mark.parametrize(
    ("capacity", "repeat", "times"),
    [(3, "match", (8, 12)), (10, "match", (2, 2)), (13, "match", (1, 2)), (10, "once", (1, 1)), (900, "match", (1, 1))],
)
@pytest.mark.parametrize("make", [Rehearsal, lambda **o: GEM(rehearse=True, divide="seen", fill="random", **o)])
def test_an_epoch_has_the_stored_rows_as_often_as_fits(
    make: Any, capacity: int, repeat: str, times: tuple[int, int]
) -> None:
    """Counted in training: own rows once, stored ones ⌊N / M⌋ times, the current task's not before it is learnt."""
    alone = learner(make(capacity=capacity, repeat=repeat))
    for task, count in zip(STREAM.tasks, (0, *times), strict=True):
        stored = [int(row) for row in alone.memory["rows"] if row >= 0]
        assert len(stored) == sum(min(capacity // max(task.index, 1), PER_TASK) for _ in range(task.index))
        assert not set(stored) & set(task.train.tolist())
        if stored and repeat == "match":
            assert count == max(1, PER_TASK // len(stored))
        rows = alone.begin(task.index)
        assert Counter(rows.tolist()) == Counter(task.train.tolist() + stored * count)
        alone.end(task.index)


def test_gem_leaves_the_epochs_to_others_unless_it_rehearses() -> None:
    task = STREAM.tasks[1]
    assert GEM(capacity=12).rows(learnt(GEM(capacity=12), 1), task) is task.train
    Chain((GEM(capacity=12), Rehearsal(capacity=12)))
    with pytest.raises(BadChain, match="'rows'"):
        Chain((GEM(capacity=12, rehearse=True), Rehearsal(capacity=12)))


def test_hsus_gem_has_the_memory_of_rehearsal() -> None:
    theirs = GEM(capacity=13, rehearse=True, divide="seen", fill="random")
    for tasks in (1, 2, 3):
        assert torch.equal(learnt(theirs, tasks)["rows"], learnt(Rehearsal(capacity=13), tasks)["rows"])


# ---- gradients of stored samples


LINES = torch.tensor([[0, 5, 9, 23], [30, -1, 26, -1], [-1, -1, -1, -1]])  # of the first task, the second, and none
NETS = {
    "linear": NET,
    "two tasks' gates": Halves(NET),
    "its own forward pass": Colder((9, 6, 6)),
    "gates around it": Halves(Colder((9, 6, 6))),
    "convolutions": CNN(channels=(2,), units=3).build(STREAM.shape, STREAM.units),
}


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_stored_gradients_are_those_of_each_line_by_itself(kind: str, mapped: bool, index: int) -> None:
    """Of what there is in a line, over the outputs that are active; of a line without anything, zero."""
    net, task, samples = copy.copy(NETS[kind]), STREAM.tasks[index], STREAM.samples
    net.mapped = mapped
    theta = vector(7, 2 * net.size).reshape(2, -1)

    def found(theta: torch.Tensor) -> torch.Tensor:
        return stored_gradients(net, theta, torch.where(LINES >= 0, LINES, 17), LINES >= 0, task)

    got = torch.vmap(found)(theta) if mapped else torch.stack([found(one) for one in theta])
    for r, line in itertools.product(range(2), range(3)):
        rows = LINES[line][LINES[line] >= 0]
        live = theta[r].clone().requires_grad_()
        logits = net.logits(live, samples.images(rows, torch.float64), samples.task[rows])[:, : 2 * index + 2]
        loss = -logits.log_softmax(1)[torch.arange(len(rows)), samples.y[rows]].sum() / max(len(rows), 1)
        torch.testing.assert_close(got[r, line], torch.autograd.grad(loss, live)[0], rtol=1e-9, atol=1e-12)
    assert int((got.abs().sum(-1) > 0).sum()) == 4


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_stored_gradients_are_written_where_they_are_asked_for(kind: str, mapped: bool) -> None:
    """In another type, beside other numbers, which stay."""
    net, task = copy.copy(NETS[kind]), STREAM.tasks[2]
    net.mapped = mapped
    thetas = vector(7, 2 * net.size).reshape(2, -1)
    rows, there = torch.where(LINES >= 0, LINES, 17), LINES >= 0

    def both(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        room = theta.new_full((len(rows) + 1, len(theta) + 3), 7.0, dtype=torch.float32)
        stored_gradients(net, theta, rows, there, task, out=room[:-1, : len(theta)])
        return room, stored_gradients(net, theta, rows, there, task)

    pairs = torch.vmap(both)(thetas) if mapped else [torch.stack(pair) for pair in zip(*map(both, thetas), strict=True)]
    for room, found in zip(*pairs, strict=True):
        assert torch.equal(room[:-1, :-3], found.float()) and bool((room[-1] == 7).all() and (room[:, -3:] == 7).all())


def test_there_is_room_above_a_gradient() -> None:
    g = vector(1, BLOCK + 5).float()
    room = room_above(g, 2)
    assert room.shape == (3, 2 * BLOCK) and room.dtype == torch.float64
    assert torch.equal(room[-1, : len(g)], g.double()) and not room[:, len(g) :].any()


def test_layers_that_do_not_have_all_parameters_are_no_gradients() -> None:
    class Head(type(NET)):  # type: ignore[misc]
        def linear_layers(self, *given: Any) -> Any:
            return super().linear_layers(*given)[-1:]

    with pytest.raises(KeyError):
        stored_gradients(Head((9, 6, 6)), vector(1), LINES.clamp_min(0), LINES >= 0, STREAM.tasks[2])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_stored_gradient_that_is_no_number_opposes_nothing(broken: float) -> None:
    g, G = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[broken, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert torch.equal(unopposed(g, G), g)


@pytest.mark.parametrize("size", [50, BLOCK, 2 * BLOCK + 7])
def test_long_gradients_are_multiplied_in_blocks(size: int) -> None:
    """The projection of vectors of any length is that of the same problem in few dimensions."""
    G, g = problem("plain", 4, 0)
    turn = torch.linalg.qr(torch.randn(size, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    torch.testing.assert_close(unopposed(turn @ g, G @ turn.T), turn @ unopposed(g, G))


# ---- GEM's steps


@pytest.mark.parametrize("options", [
    {}, {"margin": 0.0}, {"margin": 2.0, "margin_as": "added"}, {"ridge": 0.1}, {"fill": "random"},
    {"divide": "seen"}, {"capacity": 1000},
])  # fmt: skip
@pytest.mark.parametrize("index", [1, 2])
def test_gem_projects_by_the_loss_of_each_past_task(index: int, options: dict[str, Any]) -> None:
    """The loss over the outputs that are active now, mean over all that is stored of a task, task by task."""
    strategy, task, theta = GEM(**{"capacity": 15} | options), STREAM.tasks[index], vector(3)
    memory = learnt(strategy, index)
    rows = [torch.tensor(part) for part in of_each_task(memory["rows"])[:index]]
    past = torch.stack([gradient_by_hand(theta, part, task) for part in rows])
    margin = {strategy.margin_as: strategy.margin}
    opposed = set()
    for seed in range(6):
        g = vector(10 + seed)
        got = strategy.gradient(NET, theta, memory, g, batch_of(task), task)
        torch.testing.assert_close(got, unopposed(g, past, **margin, ridge=strategy.ridge), rtol=1e-9, atol=1e-11)
        opposed.add(bool((past @ g < 0).any()))
        if not strategy.ridge:
            assert float((past @ got).min()) > -1e-9
    assert True in opposed


def test_gem_with_some_samples_draws_them_anew_from_each_task() -> None:
    strategy, task, theta = GEM(capacity=12, samples=1, margin=0.0), STREAM.tasks[2], vector(3)
    memory = learnt(strategy, 2)
    one, two = (
        [gradient_by_hand(theta, torch.tensor([row]), task) for row in rows]
        for rows in of_each_task(memory["rows"])[:2]
    )
    g = -torch.stack(one + two).mean(0)
    pairs = list(itertools.product(one, two))
    possible = [unopposed(g, torch.stack(pair)) for pair in pairs]
    found = set()
    for step in range(15):
        got = strategy.gradient(NET, theta, memory, g, batch_of(task, step), task)
        (which,) = [number for number, each in enumerate(possible) if torch.allclose(got, each, atol=1e-10)]
        found.add(which)
    assert len(found) > 5
    every = GEM(capacity=12, samples=4, margin=0.0).gradient(NET, theta, memory, g, batch_of(task), task)
    assert torch.equal(every, GEM(capacity=12, margin=0.0).gradient(NET, theta, memory, g, batch_of(task), task))


def test_a_task_of_fewer_rows_than_its_share_weighs_them_alone() -> None:
    """Tasks of 24, 6 and 24 rows: what is empty in the second line counts nothing."""
    few = torch.cat([STREAM.tasks[0].train, STREAM.tasks[1].train[::4], STREAM.tasks[2].train])
    x, y = STREAM.samples.pixels[STREAM.samples.image[few]], STREAM.samples.y[few]
    stream = Stream.from_arrays(x, y, x, y, tasks=3, scenario="class")
    task, theta, strategy = stream.tasks[2], vector(3), GEM(capacity=60)
    assert [len(one.train) for one in stream.tasks] == [24, 6, 24]
    memory = learnt(strategy, 2, stream)
    stored = strategy.stored(memory, task)
    assert (stored >= 0).sum(1).tolist() == [20, 6]
    past = torch.stack([gradient_by_hand(theta, rows[rows >= 0], task) for rows in stored])
    for seed in range(5):
        g = vector(seed)
        got = strategy.gradient(NET, theta, memory, g, batch_of(task), task)
        torch.testing.assert_close(got, unopposed(g, past, bound=0.5), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("strategy", [GEM(capacity=12), AGEM(capacity=12), AGEM(capacity=12, fill="reservoir")])
def test_the_first_task_is_followed_as_it_is(strategy: Strategy) -> None:
    task, g = STREAM.tasks[0], vector(5)
    assert strategy.gradient(NET, vector(3), learnt(strategy, 0), g, batch_of(task), task) is g


# ---- A-GEM's steps


def test_a_gem_takes_out_what_opposes_the_reference() -> None:
    """With all that is stored in the reference: g - (g'r / r'r) r where g'r < 0, else g."""
    strategy, task, theta = AGEM(capacity=12, samples=50), STREAM.tasks[2], vector(3)
    memory = learnt(strategy, 2)
    r = gradient_by_hand(theta, memory["rows"][memory["rows"] >= 0], task)
    opposed = set()
    for seed in range(8):
        g = vector(20 + seed)
        got = strategy.gradient(NET, theta, memory, g, batch_of(task), task)
        wanted = g - (g @ r) / (r @ r) * r if g @ r < 0 else g
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got, unopposed(g, r[None]), rtol=1e-9, atol=1e-12)  # GEM with one constraint
        opposed.add(bool(g @ r < 0))
    assert opposed == {True, False}


def test_a_gem_draws_so_many_samples_anew_none_twice() -> None:
    strategy, task, theta = AGEM(capacity=4, samples=2), STREAM.tasks[1], vector(3)
    memory = learnt(strategy, 1)
    pairs = list(itertools.combinations(memory["rows"].tolist(), 2))
    references = [gradient_by_hand(theta, torch.tensor(pair), task) for pair in pairs]
    g = torch.linalg.lstsq(torch.stack(references), -torch.ones(6, 1, dtype=torch.float64)).solution[:, 0]
    assert all(float(g @ r) < 0 for r in references)
    possible, found = [g - (g @ r) / (r @ r) * r for r in references], set()
    for step in range(30):
        got = strategy.gradient(NET, theta, memory, g, batch_of(task, step), task)
        found |= {number for number, each in enumerate(possible) if torch.allclose(got, each, atol=1e-11)}
        assert any(torch.allclose(got, each, atol=1e-11) for each in possible)
    assert len(found) == 6


def test_a_reservoir_holds_the_current_task_and_a_step_does_not_draw_it() -> None:
    strategy = AGEM(capacity=16, samples=16, fill="reservoir")
    alone, task = learner(strategy), STREAM.tasks[1]
    for index in range(2):
        batches = alone.begin(index).split(8)
        program = Program(alone, index, batches)
        for number, rows in enumerate(batches):
            program(number, rows)
        alone.end(index)
        assert int(alone.memory["seen"]) == PER_TASK * (index + 1)
    past, present, _ = of_each_task(alone.memory["rows"])
    assert past and present and len(past + present) == 16
    theta = vector(3)
    r = gradient_by_hand(theta, torch.tensor(past), task)
    got = strategy.gradient(NET, theta, alone.memory, -r, batch_of(task), task)
    torch.testing.assert_close(got, torch.zeros_like(r), rtol=0, atol=1e-12)


def test_a_gem_without_anything_of_the_past_follows_its_gradient() -> None:
    task, g, strategy = STREAM.tasks[1], vector(5), AGEM(capacity=12)
    assert torch.equal(strategy.gradient(NET, vector(3), learnt(strategy, 0), g, batch_of(task), task), g)


# ---- OWM


def projectors_by_hand(means: list[torch.Tensor], alphas: list[float]) -> torch.Tensor:
    """P by the recursion, one mean after the other."""
    P = torch.eye(len(means[0]), dtype=torch.float64)
    for mean, alpha in zip(means, alphas, strict=True):
        k = P @ mean / (alpha + mean @ P @ mean)
        P = P - torch.outer(k, mean @ P)
    return P


def with_one(h: torch.Tensor) -> torch.Tensor:
    return torch.cat([h, torch.ones_like(h[:, :1])], dim=1)


def layer_inputs(theta: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """(B, inputs + 1) of each layer."""
    p = NET.parameters(theta)
    h = x.flatten(1)
    return {
        "layer1": with_one(h),
        "head": with_one((h @ p["layer1.weight"].T + p["layer1.bias"]).relu()),
    }


def inputs_in_order(theta: torch.Tensor, task: Task, size: int) -> list[dict[str, torch.Tensor]]:
    """Each layer's mean input over each batch that the end of a task goes through."""
    order = task.train[task.key.permutation("inputs", PER_TASK)].split(size)
    images = [task.samples.images(rows, torch.float64) for rows in order]
    return [{name: h.mean(0) for name, h in layer_inputs(theta, x).items()} for x in images]


@pytest.mark.parametrize(("alpha", "decay"), [((0.5,), (1.0,)), ((0.9, 0.2), (0.01, 1.0)), ((1.0,), (0.1,))])
@pytest.mark.parametrize("size", [1, 5, 24])
def test_owm_takes_up_a_task_by_recursive_least_squares(size: int, alpha: Any, decay: Any) -> None:
    strategy, theta, task = OWM(alpha=alpha, decay=decay, batch_size=size), vector(3), STREAM.tasks[0]
    _, memory = strategy.after_task(NET, theta, strategy.init(NET, theta, STREAM), task)
    means = inputs_in_order(theta, task, size)
    for layer, name in enumerate(("layer1", "head")):
        a, d = alpha[layer % len(alpha)], decay[layer % len(decay)]
        alphas = [a * d ** (i / len(means)) for i in range(len(means))]
        wanted = projectors_by_hand([mean[name] for mean in means], alphas)
        torch.testing.assert_close(memory[name], wanted, rtol=1e-9, atol=1e-12)
        if d == 1.0:  # P = I - A(A'A + αI)⁻¹A', all at once
            A = torch.stack([mean[name] for mean in means], dim=1)
            eye = torch.eye(len(A), dtype=torch.float64)
            whole = eye - A @ torch.linalg.solve(A.T @ A + a * torch.eye(A.shape[1], dtype=torch.float64), A.T)
            torch.testing.assert_close(memory[name], whole, rtol=1e-8, atol=1e-10)
    assert list(memory) == ["layer1", "head"]


@pytest.mark.parametrize("alpha", [1e-4, 1e-8])
def test_owm_keeps_the_outputs_of_inputs_it_has_taken_up(alpha: float) -> None:
    """Four inputs, which do not fill a layer: a projected change of any size leaves their outputs, up to α."""
    strategy, theta, task = OWM(alpha=(alpha,)), vector(3), STREAM.tasks[0]
    x, others = (task.samples.images(rows, torch.float64) for rows in (task.train[::6], STREAM.tasks[1].train))
    memory = strategy.init(NET, theta, STREAM)
    for one in x:
        means = {name: h[0] for name, h in layer_inputs(theta, one[None]).items()}
        memory = strategy.taken_up(memory, means)
    task = STREAM.tasks[1]
    change = strategy.gradient(NET, theta, memory, vector(5), batch_of(task), task)
    moved, free = ((NET.logits(theta + step, x) - NET.logits(theta, x)).abs().max() for step in (change, vector(5)))
    assert float(moved) < 200 * alpha and float(free) > 0.1
    assert float((NET.logits(theta + change, others) - NET.logits(theta, others)).abs().max()) > 0.05


def test_owm_projects_the_whole_step_of_any_optimizer() -> None:
    """Old outputs stay under Adam where the step is projected, and do not where the gradient is."""
    moved = {}
    for project in ("step", "gradient"):
        strategy = OWM(alpha=(1e-7,), project=project)
        alone, task = learner(strategy, Adam(lr=0.05)), STREAM.tasks[1]
        x = STREAM.tasks[0].samples.images(STREAM.tasks[0].train[::6], torch.float64)
        for one in x:
            means = {name: h[0] for name, h in layer_inputs(alone.theta.detach(), one[None]).items()}
            alone.memory = strategy.taken_up(alone.memory, means)
        before = NET.logits(alone.theta, x).detach()
        batches = alone.begin(1).split(8)
        program = Program(alone, 1, batches)
        losses = [float(program(number, rows)) for number, rows in enumerate(batches)]
        assert len(losses) == 3 and task.index == 1
        moved[project] = float((NET.logits(alone.theta, x) - before).abs().max())
    assert moved["step"] < 1e-4 and moved["gradient"] > 0.01


@pytest.mark.parametrize("project", ["step", "gradient"])
def test_owm_with_updates_at_each_step_does_as_the_authors_code(project: Any) -> None:
    """P takes up the batch's mean inputs, then the gradient is projected; against a plain loop with SGD."""
    alone = learner(OWM(alpha=(0.3,), update="batch", project=project))
    theta = alone.theta.detach().clone()
    P = {"layer1": torch.eye(10, dtype=torch.float64), "head": torch.eye(7, dtype=torch.float64)}
    for task in STREAM.tasks[:2]:
        batches = alone.begin(task.index).split(8)
        program = Program(alone, task.index, batches)
        for number, rows in enumerate(batches):
            program(number, rows)
            gradient, inputs = gradient_by_hand(theta, rows, task), layer_inputs(theta, task.samples.images(
                rows, torch.float64))  # fmt: skip
            step = torch.zeros_like(theta)
            parts, steps = NET.parameters(gradient), NET.parameters(step)
            for name, h in inputs.items():
                k = P[name] @ h.mean(0)
                P[name] = P[name] - torch.outer(k, k) / (0.3 + h.mean(0) @ k)
                steps[f"{name}.weight"].copy_(parts[f"{name}.weight"] @ P[name][:-1, :-1]
                                              + torch.outer(parts[f"{name}.bias"], P[name][-1, :-1]))  # fmt: skip
                steps[f"{name}.bias"].copy_(
                    parts[f"{name}.weight"] @ P[name][:-1, -1] + parts[f"{name}.bias"] * P[name][-1, -1]
                )
            theta = theta - 0.1 * step
        alone.end(task.index)
        torch.testing.assert_close(alone.theta.detach(), theta, rtol=1e-9, atol=1e-12)
    for name, wanted in P.items():
        torch.testing.assert_close(alone.memory[name], wanted, rtol=1e-9, atol=1e-12)


class Other(Net):
    """A network with something else than linear layers."""


def test_owm_refuses_what_it_cannot_do() -> None:
    with pytest.raises(BadChain, match="OWM projects linear layers"):
        OWM().suits(STREAM, Other(NET.shapes))
    with pytest.raises(BadChain, match="alpha has 3 values for 2 layers; give 1 or 2"):
        OWM(alpha=(1.0, 0.1, 0.1)).suits(STREAM, NET)
    with pytest.raises(BadOption, match="decay needs update=task"):
        OWM(update="batch", decay=(0.1,))
    OWM(alpha=(1.0, 0.1), decay=(0.5, 1.0)).suits(STREAM, NET)


# ---- avalanche-lib


def trusted_solver(**given: Any) -> Any:
    """min ½ v'Pv + q'v over Gv ≤ h with G = -I, in the place of a solver that avalanche-lib does not bring along."""
    assert np.array_equal(given["G"], -np.eye(len(given["q"])))
    root = np.linalg.cholesky(given["P"]).T
    least = -given["h"]
    # with v = least + u it is min ½ ‖root u + root⁻ᵀ (q + P least)‖² over u ≥ 0
    right = np.linalg.solve(root.T, given["q"] + given["P"] @ least)
    return least + nnls(root, -right, maxiter=1000)[0]


@pytest.fixture
def lib() -> Any:
    """The helpers of the tests against avalanche-lib."""
    return pytest.importorskip("test_against_avalanche")


def both(lib: Any, strategy: Strategy, plugin: Any) -> tuple[bool, float]:
    """Trained over three tasks in batches of 8: are all weights equal, and how far it is to fine-tuning."""
    stream = lib.stream_of()
    alone, plain = lib.ours(strategy, stream), lib.ours(Strategy(), stream)
    naive = lib.theirs(lib.Naive, alone.theta, stream.units, 8, plugin, epochs=2)
    equal = True
    for index, experience in enumerate(lib.experiences(stream).train_stream):
        naive.train(experience, shuffle=False)
        lib.learn(alone, index, 8, epochs=2)
        lib.learn(plain, index, 8, epochs=2)
        equal &= torch.allclose(alone.theta, lib.weights(naive), rtol=1e-4, atol=1e-5)
    return equal, float((alone.theta - plain.theta).detach().abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_its_gem_is_ours_with_its_ridge(lib: Any, monkeypatch: pytest.MonkeyPatch, strength: float) -> None:
    """With memories that hold all rows, whose order does not matter; without the ridge the weights are others."""
    from avalanche.training.plugins import GEMPlugin

    def solve_qp(P: Any, q: Any, G: Any, h: Any, solver: str) -> Any:
        return trusted_solver(P=P, q=q, G=G, h=h)

    monkeypatch.setattr("avalanche.training.plugins.gem.qpsolvers.solve_qp", solve_qp)
    equal, moved = both(lib, GEM(capacity=72, margin=strength, ridge=0.001), GEMPlugin(24, strength))
    assert equal and moved > 0.01
    equal, _ = both(lib, GEM(capacity=72, margin=strength), GEMPlugin(24, strength))
    assert not equal


@pytest.mark.filterwarnings("ignore")
def test_its_a_gem_is_ours(lib: Any) -> None:
    from avalanche.training.plugins import AGEMPlugin

    equal, moved = both(lib, AGEM(capacity=72, samples=72), AGEMPlugin(24, 48))
    assert equal and moved > 0.01


@pytest.mark.filterwarnings("ignore")
def test_difference_its_a_gem_draws_equally_many_of_each_task(lib: Any) -> None:
    """Of its memory of 24, 4 at a step are 2 of each past task; ours are any 4."""
    from avalanche.training.plugins import AGEMPlugin

    stream, plugin = lib.stream_of(), AGEMPlugin(12, 4)
    for experience in list(lib.experiences(stream).train_stream)[:2]:
        plugin.update_memory(experience.dataset)
    for _ in range(10):
        assert (plugin.sample_from_memory()[1] < 2).sum() == 2
    rows = learnt(AGEM(capacity=24), 2)["rows"]
    ours = {int((STREAM.samples.task[drawn(rows[None], 4, key(0, step=step))] == 0).sum()) for step in range(30)}
    assert {1, 2, 3} <= ours


# ---- all of them


@pytest.mark.parametrize("text", [
    "rehearsal:Rehearsal:capacity=9,repeat=once",
    "gem:GEM:capacity=9,divide=seen,fill=random,rehearse=true,samples=2,margin_as=added",
    "a_gem:AGEM:capacity=9,samples=5,fill=reservoir", "owm:OWM:update=batch", "owm:OWM:project=step,decay=0.1",
])  # fmt: skip
def test_the_conformance_suite_passes_with_other_options_too(text: str) -> None:
    check(make_strategy(f"continual.strategies.{text}"))
