"""Riemannian walk against its sums written out in a plain loop, and against avalanche-lib."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch

from continual.conformance import check, small_stream
from continual.learning.models import MLP
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Chain, Step
from continual.strategies.cwr import CWRStar
from continual.strategies.replay import Replay
from continual.strategies.rwalk import RWalk
from continual.streams.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore")  # what avalanche-lib and what it imports warn of
STREAM = small_stream(0)
HIDDEN, RATE = 6, 0.3
NET = MLP(layers=(HIDDEN,)).build(STREAM.shape, STREAM.units)


def learner(strategy: Any, stream: Stream = STREAM) -> Learners:
    return Learners(Recipe(NET, strategy, SGD(lr=RATE), Constant(), True, "float64"), [stream], [3])


def learn(alone: Learners, index: int, size: int, epochs: int = 1) -> list[float]:
    """Learn a task in batches of its rows in their order: the losses."""
    batches = list(alone.begin(index).split(size)) * epochs
    program = Program(alone, index, batches)
    losses = [float(program(number, rows)) for number, rows in enumerate(batches)]
    alone.end(index)
    return losses


def gradients(theta: torch.Tensor, rows: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The data term of a batch and the gradient of each sample (B, P), over the outputs seen so far."""
    found, losses = [], []
    for row in rows:
        live = theta.clone().requires_grad_()
        logits = NET.logits(live, STREAM.samples.images(row[None], torch.float64))[:, : 2 * index + 2]
        loss = torch.nn.functional.cross_entropy(logits, STREAM.samples.y[row[None]])
        found.append(torch.autograd.grad(loss, live)[0])
        losses.append(loss.detach())
    return torch.stack(losses).mean(), torch.stack(found)


def by_hand(strategy: RWalk, theta: torch.Tensor, size: int, epochs: int) -> tuple[torch.Tensor, list[float], float]:
    """θ and losses of all tasks, and how much a negative interval score would have counted."""
    s = strategy
    fisher, score, importance, anchor = None, None, torch.zeros_like(theta), theta.clone()
    losses, negative = [], 0.0
    for index, task in enumerate(STREAM.tasks):
        task_score, path, start = torch.zeros_like(theta), torch.zeros_like(theta), theta.clone()
        began = fisher
        steps = list(task.train.split(size)) * epochs
        for number, rows in enumerate(steps):
            loss, each = gradients(theta, rows, index)
            g = each.mean(0)
            square = g**2 if s.fisher == "batch" else (each**2).mean(0)
            fisher = square if fisher is None else s.alpha * square + (1 - s.alpha) * fisher
            began = fisher if began is None else began
            losses.append(float(loss + s.strength * (importance * (theta - anchor) ** 2).sum()))
            moved = theta - RATE * (g + 2 * s.strength * importance * (theta - anchor))
            path, theta = path - g * (moved - theta), moved
            if (number + 1) % s.interval == 0 or number + 1 == len(steps):
                used = began if s.at == "start" else fisher
                new = path / ((0.5 if s.half else 1) * used * (theta - start) ** 2 + s.damping)
                negative += float(new.clamp_max(0).abs().sum())
                task_score = task_score + (new.clamp_min(0) if s.clip == "interval" else new)
                path, start, began = torch.zeros_like(theta), theta, fisher
        score = task_score if score is None else (score + task_score) / 2
        importance = torch.zeros_like(theta)
        for part in (fisher, score.clamp_min(0)):
            low = part.min() if s.scale == "range" else 0
            importance = importance + (part if s.scale == "none" else (part - low) / (part.max() - low))
        anchor = theta
    return theta, losses, negative


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interval": 1},
        {"interval": 100},
        {"fisher": "samples"},
        {"at": "end"},
        {"clip": "total"},
        {"half": False},
        {"scale": "none", "strength": 0.001},
        {"alpha": 0.3},
        {"damping": 0.1},
    ],
    ids=str,
)
def test_it_is_the_paper_s_sums_in_a_plain_loop(options: dict[str, Any]) -> None:
    usual = RWalk(strength=0.5, interval=3)
    strategy = RWalk(**{"strength": 0.5, "interval": 3} | options)
    alone = learner(strategy)
    start = alone.theta.clone()
    theta, losses, negative = by_hand(strategy, start, 6, 2)
    got = [loss for index in range(3) for loss in learn(alone, index, 6, 2)]  # 8 steps each: the last interval is short
    assert got == pytest.approx(losses, rel=1e-9)
    torch.testing.assert_close(alone.theta, theta)
    if options:
        assert not torch.allclose(by_hand(usual, start, 6, 2)[0], theta, rtol=1e-4), "the option moves numbers"
    if "clip" in options:
        assert negative > 0, "there are negative scores"


def test_importances_are_between_0_and_2_and_the_first_task_has_none() -> None:
    alone = learner(RWalk(strength=1e9, interval=3))
    learn(alone, 0, 6)
    importance = alone.memory["importance"]
    assert float(importance.min()) >= 0 and 1 <= float(importance.max()) <= 2
    assert alone.theta.isfinite().all()


def test_what_was_never_moved_has_no_importance() -> None:
    """Outputs not seen yet: no 0/0."""
    alone = learner(RWalk(interval=3))
    learn(alone, 0, 6)
    unseen = NET.head_rows(alone.theta, torch.tensor([False, False, True, True, True, True]))
    assert float(alone.memory["importance"][unseen].abs().max()) == 0


def test_scales() -> None:
    values = torch.tensor([2.0, 3.0, 6.0], dtype=torch.float64)
    wanted = {"range": [0, 0.25, 1], "largest": [1 / 3, 0.5, 1], "none": [2, 3, 6]}
    for scale, scaled in wanted.items():
        assert RWalk.read({"scale": scale}).scaled(values).tolist() == pytest.approx(scaled)
        assert RWalk.read({"scale": scale}).scaled(values * 0).tolist() == [0, 0, 0]


def test_with_replay_the_path_is_that_of_the_joined_batches() -> None:
    alone = learner(Chain((RWalk(strength=0.5, interval=3), Replay(capacity=12))))
    plain = learner(RWalk(strength=0.5, interval=3))
    for index in range(2):
        learn(alone, index, 6)
        learn(plain, index, 6)
    torch.testing.assert_close(alone.memory["0/start"], alone.theta)
    assert not torch.allclose(alone.memory["0/fisher"], plain.memory["fisher"])


def test_an_interval_begins_where_another_part_has_set_theta() -> None:
    """CWR* sets the head between tasks, which is no way that the interval went."""
    rwalk = RWalk(strength=0.5, interval=100)
    alone, ends = learner(Chain((CWRStar(trunk="always"), rwalk))), []
    for index in range(2):
        batches = list(alone.begin(index).split(8))
        start, memory = alone.theta.clone(), {name: value.clone() for name, value in alone.memory.items()}
        program = Program(alone, index, batches)
        for number, rows in enumerate(batches):
            program(number, rows)
        path, end = alone.memory["1/path"].clone(), alone.theta.clone()
        fisher = memory["1/start_fisher"] if index else alone.memory["1/start_fisher"].clone()
        alone.end(index)
        new = (path / (0.5 * fisher * (end - start) ** 2 + rwalk.damping)).clamp_min(0)
        torch.testing.assert_close(alone.memory["1/score"], (memory["1/score"] + new) / 2 if index else new)
        ends.append((start, end))
    assert not torch.equal(ends[1][0], ends[0][1]), "it begins elsewhere than the last one ended"


def test_squares_of_samples_are_weighed_as_the_batch_is() -> None:
    task, theta, rows = STREAM.tasks[1], learner(RWalk()).theta, torch.tensor([24, 37, 3, 20])
    samples, weight = task.samples, torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    x = samples.images(rows, torch.float64)
    batch = Batch(rows, samples.y[rows], samples.task[rows], task.key, len(rows), weight, x)
    step = Step(batch, NET.forward(theta, x), set(), before=theta)
    wanted = weight @ gradients(theta, rows, 1)[1].square() / 10
    torch.testing.assert_close(RWalk(fisher="samples").mean_square(NET, step, task), wanted)


@pytest.mark.parametrize("options", [{"fisher": "samples"}, {"at": "end", "clip": "total", "scale": "none"}], ids=str)
def test_options_conform(options: dict[str, Any]) -> None:
    check(RWalk.read(options))


# ---- avalanche-lib


def theirs(theta: torch.Tensor, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
        from avalanche.benchmarks import tensors_benchmark
        from avalanche.training.plugins import RWalkPlugin
        from avalanche.training.supervised import Naive
    net = torch.nn.Sequential(torch.nn.Linear(9, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 6)).double()
    torch.nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    data = [
        (STREAM.samples.images(task.train, torch.float64).flatten(1), STREAM.samples.y[task.train])
        for task in STREAM.tasks
    ]
    benchmark = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0] * 3)
    plugin = RWalkPlugin(**options)
    naive = Naive(
        model=net, optimizer=torch.optim.SGD(net.parameters(), RATE), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=6, train_epochs=2, plugins=[plugin], evaluator=None,
    )  # fmt: skip
    return naive, plugin, benchmark.train_stream


def all_active() -> Stream:
    """As avalanche-lib has it."""
    outputs = dataclasses.replace(STREAM.tasks[0].outputs, active="all")
    return dataclasses.replace(STREAM, tasks=tuple(dataclasses.replace(t, outputs=outputs) for t in STREAM.tasks))


ITS: dict[str, Any] = {
    "at": "end", "clip": "total", "scale": "largest", "damping": float(torch.finfo(torch.float32).eps),
}  # fmt: skip


def apart(interval: int, options: dict[str, Any]) -> tuple[float, float]:
    """How far importances and weights are from avalanche-lib's, at most, over three tasks of 8 steps each."""
    alone = learner(RWalk(strength=0.5, interval=interval, **options), all_active())
    naive, plugin, experiences = theirs(alone.theta, ewc_lambda=0.5, ewc_alpha=0.9, delta_t=interval)
    importances, weights = 0.0, 0.0
    for index, experience in enumerate(experiences):
        naive.train(experience, shuffle=False)
        learn(alone, index, 6, 2)
        flat = torch.cat([part.data.flatten() for part in plugin.exp_penalties.values()]).double()
        importances = max(importances, float((flat - alone.memory["importance"]).abs().max()))
        net = torch.nn.utils.parameters_to_vector(naive.model.parameters()).detach()
        weights = max(weights, float((net - alone.theta).abs().max()))
    return importances, weights


@pytest.mark.parametrize("interval", [1, 2, 4])
def test_with_its_conventions_avalanche_has_the_same_importances_and_weights(interval: int) -> None:
    """To the single precision in which it keeps them."""
    importances, weights = apart(interval, ITS)
    assert importances < 1e-6 and weights < 1e-7


@pytest.mark.parametrize("ours", [{"at": "start"}, {"clip": "interval"}, {"damping": 0.001}, {"half": False}], ids=str)
def test_difference_its_conventions_are_not_our_defaults(ours: dict[str, Any]) -> None:
    assert apart(4, ITS | ours)[0] > 0.01


def test_difference_it_leaves_out_a_task_s_last_incomplete_interval() -> None:
    """Of 8 steps, two intervals of 3 and what is left."""
    assert apart(3, ITS)[0] > 0.01
