"""Answers from class means, corrected heads and exemplars: against brute force, closed forms and avalanche-lib."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import continual as cl
from continual.conformance import check, small_stream
from continual.errors import BadChain
from continual.learning.models import MLP
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Memory, Strategy
from continual.strategies.bic import BiC
from continual.strategies.cwr import CWRStar
from continual.strategies.icarl import ICaRL, herded
from continual.strategies.ncm import NCM
from continual.strategies.slda import SLDA
from continual.streams.stream import Stream, Task

pytestmark = pytest.mark.filterwarnings("ignore")  # what avalanche-lib and what it imports warn of
STREAM = small_stream(0)  # six classes of 12 images, two in each of three tasks, class scenario
HIDDEN, RATE = 6, 0.3
NET = MLP(layers=(HIDDEN,)).build(STREAM.shape, STREAM.units)
EVERY = torch.arange(72)
WEIGHTS = [None, torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)]  # of four samples


def avalanche() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("avalanche", reason="avalanche-lib is not installed")


def vector(seed: int, size: int = NET.size) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.4


def learner(strategy: Strategy, stream: Stream = STREAM, seed: int = 3) -> Learners:
    net = MLP(layers=(HIDDEN,)).build(stream.shape, stream.units)
    return Learners(Recipe(net, strategy, SGD(lr=RATE), Constant(), True, "float64"), [stream], [seed])


def learn(alone: Learners, index: int, size: int = 100, epochs: int = 3) -> torch.Tensor:
    """Learn a task in batches of its rows in their order: θ before it ended."""
    batches = list(alone.begin(index).split(size)) * epochs
    program = Program(alone, index, batches)
    for number, rows in enumerate(batches):
        program(number, rows)
    theta = alone.theta.clone()
    alone.end(index)
    return theta


def all_active(stream: Stream = STREAM) -> Stream:
    """All outputs take part, as avalanche-lib has it."""
    outputs = dataclasses.replace(stream.tasks[0].outputs, active="all")
    return dataclasses.replace(stream, tasks=tuple(dataclasses.replace(t, outputs=outputs) for t in stream.tasks))


def images(rows: torch.Tensor, stream: Stream = STREAM) -> torch.Tensor:
    return stream.samples.images(rows, torch.float64)


def features(theta: torch.Tensor, rows: torch.Tensor = EVERY, unit: bool = False) -> torch.Tensor:
    found = NET.features(theta, images(rows))
    return found / found.norm(dim=1, keepdim=True) if unit else found


def predicted(alone: Learners, rows: torch.Tensor = EVERY, tasks: int = 2) -> torch.Tensor:
    return alone.strategy.predict(NET, alone.theta, alone.memory, images(rows), torch.full_like(rows, tasks))


def batch_of(task: Task, rows: torch.Tensor, weight: torch.Tensor | None = None) -> Batch:
    samples = task.samples
    x = samples.images(rows, torch.float64)
    return Batch(rows, samples.y[rows], samples.task[rows], task.key, len(rows), weight, x)


def averaged(each: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    return each.mean() if weight is None else (each * weight).sum() / weight.sum()


def loss_of(strategy: Strategy, theta: torch.Tensor, memory: Memory, batch: Batch, task: Task) -> torch.Tensor:
    return strategy.loss(NET, theta, memory, batch, NET.forward(theta, batch.images), task)


# ---- answers before there is one


ANSWERS = [NCM(), NCM(metric="cosine"), SLDA(), CWRStar(), ICaRL()]


@pytest.mark.parametrize("strategy", ANSWERS, ids=repr)
def test_classes_that_were_not_taken_up_come_last_as_the_network_answers(strategy: Strategy) -> None:
    alone = learner(strategy)
    torch.testing.assert_close(predicted(alone), NET.logits(alone.theta, images(EVERY)))
    for index in range(3):
        learn(alone, index)
        scores, logits, known = predicted(alone), NET.logits(alone.theta, images(EVERY)), 2 * index + 2
        features = NET.features(alone.theta, images(EVERY))
        torch.testing.assert_close(scores[:, :known], strategy.scores(alone.memory, features)[:, :known])  # type: ignore[attr-defined]
        if known < 6:
            assert (scores[:, known:].amax(1) <= scores[:, :known].amin(1) - 1).all()
            among = [one[:, known:] - one[:, known : known + 1] for one in (scores, logits)]
            torch.testing.assert_close(*among)


def test_classes_that_come_last_are_told_apart_beside_large_scores() -> None:
    """In single precision, too."""
    theta, x = vector(1).float(), images(EVERY).float()
    memory = {"means": torch.full((6, HIDDEN), 1e6), "counts": torch.tensor([1.0, 1, 0, 0, 0, 0])}
    scores, logits = NCM().predict(NET, theta, memory, x, EVERY * 0), NET.logits(theta, x)
    assert torch.equal(scores[:, 2:].argmax(1), logits[:, 2:].argmax(1))
    assert (scores[:, 2:].amax(1) < scores[:, :2].amin(1)).all()


def test_scores_of_features_are_in_full_precision_where_the_network_is_not() -> None:
    theta, x = vector(1).float(), images(EVERY).float()
    weight, bias = 100 * vector(2, 6 * HIDDEN).float().view(6, HIDDEN), vector(3, 6).float()
    memory = {"weight": weight, "bias": bias, "counts": torch.ones(6)}
    with torch.autocast("cpu", torch.bfloat16):
        got, features = SLDA().predict(NET, theta, memory, x, EVERY * 0), NET.forward(theta, x, EVERY * 0).features
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), features.float() @ weight.T + bias, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("strategy", ["ncm:trunk=never", "slda:trunk=never"])
def test_a_task_that_is_told_before_it_is_learnt_is_answered_by_the_network(strategy: str) -> None:
    """Whose trunk is never trained: what it could do stays, so nothing is transferred forward."""
    result = cl.run("split-digits:scenario=task,limit=20", strategy, seeds=3, epochs=1, model="mlp:layers=8")
    before = np.triu(np.ones((5, 5), bool), 1)
    untrained = np.broadcast_to(result.accuracy[:, :1], (3, 5, 5))
    np.testing.assert_array_equal(result.accuracy[:, 1:][:, before], untrained[:, before])
    assert result.accuracy[:, 0].min() > 0 and np.abs(result.forward_transfer).max() == 0


@pytest.mark.parametrize("options", [{}, {"trunk": "always"}, {"trunk": "never"}], ids=str)
@pytest.mark.parametrize("kind", [NCM, SLDA, CWRStar], ids=lambda kind: kind.__name__)
def test_the_trunk_is_trained_by_the_tasks_that_train_it(kind: type[Strategy], options: dict[str, Any]) -> None:
    alone = learner(kind.read(options))
    mine = ~NET.head_rows(alone.theta, torch.ones(6, dtype=torch.bool)) if kind is CWRStar else slice(None)
    thetas = [alone.theta[mine].clone()]
    for index in range(3):
        learn(alone, index)
        thetas.append(alone.theta[mine].clone())
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(thetas)]
    trained = {"first": [True, False, False], "always": [True] * 3, "never": [False] * 3}
    assert moved == trained[options.get("trunk", "first")]


@pytest.mark.parametrize(
    "strategy",
    [
        NCM(trunk="always", metric="cosine"), NCM(trunk="never"), SLDA(trunk="always", covariance="streamed"),
        SLDA(trunk="never", plastic=False), CWRStar(trunk="always", outputs="active", bias="trained"),
        CWRStar(trunk="never"), ICaRL(outputs="softmax", capacity=6), ICaRL(mean_of="class", renormalize=True),
        BiC(keep="each", fill="random"), BiC(capacity=12, strength=0.3),
    ],
    ids=repr,
)  # fmt: skip
def test_options_conform(strategy: Strategy) -> None:
    check(strategy)


# ---- nearest class mean


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_ncm_answers_with_the_nearest_mean_of_all_that_was_seen(metric: Any) -> None:
    alone = learner(NCM(metric=metric))
    for index in range(3):
        learn(alone, index)
    found = features(alone.theta, unit=metric == "cosine").numpy()
    y = STREAM.samples.y.numpy()
    means = np.stack([found[y == k].mean(0) for k in range(6)])
    if metric == "cosine":
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    wanted = np.array([[-math.sqrt(((z - mean) ** 2).sum()) for mean in means] for z in found])
    np.testing.assert_allclose(predicted(alone), wanted, atol=1e-7)
    other = learner(NCM(metric="cosine" if metric == "euclidean" else "euclidean"))
    for index in range(3):
        learn(other, index)
    assert not torch.allclose(predicted(other), predicted(alone), rtol=0.1)


def test_ncm_goes_on_with_the_mean_of_a_class_that_comes_again() -> None:
    stream = small_stream(0, "domain")
    alone = learner(NCM(trunk="never"), stream)
    for index in range(3):
        learn(alone, index)
    net = alone.net
    found = net.features(alone.theta, stream.samples.images(EVERY, torch.float64))
    wanted = torch.stack([found[stream.samples.y == k].mean(0) for k in range(2)])
    torch.testing.assert_close(alone.memory["means"], wanted)
    assert alone.memory["counts"].tolist() == [36, 36]


def test_avalanche_s_ncm_has_the_same_scores_for_the_same_means() -> None:
    avalanche()
    from avalanche.models import NCMClassifier

    alone = learner(NCM(trunk="never"))
    for index in range(3):
        learn(alone, index)
    theirs = NCMClassifier(normalize=False)
    theirs.update_class_means_dict(dict(enumerate(alone.memory["means"])))
    theirs.class_means = theirs.class_means.double()
    torch.testing.assert_close(theirs(features(alone.theta)), predicted(alone), atol=1e-5, rtol=1e-5)
    # the difference: with normalize it scales the features to length 1, and not the means
    cosine = NCM(metric="cosine").scores(alone.memory, features(alone.theta))
    scaled = NCMClassifier()
    scaled.update_class_means_dict(dict(enumerate(alone.memory["means"])))
    scaled.class_means = scaled.class_means.double()
    assert not torch.allclose(scaled(features(alone.theta)), cosine, rtol=0.05)


# ---- streaming LDA


def streamed(found: torch.Tensor, y: torch.Tensor, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and covariance, sample by sample."""
    means, counts = torch.zeros(6, found.shape[1], dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    covariance = torch.zeros(found.shape[1], found.shape[1], dtype=torch.float64)
    for t, (z, k) in enumerate(zip(found, y.tolist(), strict=True)):
        factor = counts[k] / (counts[k] + 1) if exact else t / (t + 1)
        covariance = (t * covariance + factor * torch.outer(z - means[k], z - means[k])) / (t + 1)
        means[k] += (z - means[k]) / (counts[k] + 1)
        counts[k] += 1
    return means, covariance


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_slda_is_its_recursion_and_the_closed_form(scenario: str, exact: bool) -> None:
    stream = small_stream(0, scenario)
    alone = learner(SLDA(trunk="never", covariance="exact" if exact else "streamed", shrinkage=0.01), stream)
    for index in range(3):
        learn(alone, index)
    found, y = alone.net.features(alone.theta, stream.samples.images(EVERY, torch.float64)), stream.samples.y
    means, covariance = streamed(found, y, exact)
    torch.testing.assert_close(alone.memory["means"], means[: stream.units])
    torch.testing.assert_close(alone.memory["covariance"], covariance)
    z, labels = found.numpy(), y.numpy()
    centred = z - np.stack([z[labels == k].mean(0) for k in labels])
    closed = centred.T @ centred / 72
    assert np.allclose(closed, covariance, rtol=1e-9, atol=1e-12) == exact
    inverse = np.linalg.inv(0.99 * covariance.numpy() + 0.01 * np.eye(HIDDEN))
    mu = means.numpy()[: stream.units]
    wanted = np.array([[m @ inverse @ x - 0.5 * m @ inverse @ m for m in mu] for x in z])
    got = alone.strategy.predict(alone.net, alone.theta, alone.memory, stream.samples.images(EVERY, torch.float64), y)
    np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-8)


def test_slda_ends_no_run_where_features_have_run_away() -> None:
    """They are finite still, and so large that what is added to the covariance is lost in rounding."""
    short: dict[str, Any] = {"model": "cnn:channels=4-8,units=16", "optimizer": "sgd:lr=1e6", "precision": "float64"}
    result = cl.run("split-digits:limit=5,tasks=2", "slda", seeds=2, epochs=2, seeds_as="loop", threads=1, **short)
    assert result.accuracy.shape == (2, 3, 2)


def test_slda_may_keep_the_covariance_of_the_first_task() -> None:
    plastic, fixed = learner(SLDA(trunk="never")), learner(SLDA(trunk="never", plastic=False))
    for index in range(2):
        for one in (plastic, fixed):
            learn(one, index)
        if index == 0:
            first = plastic.memory["covariance"]
    assert torch.equal(fixed.memory["covariance"], first)
    assert not torch.allclose(plastic.memory["covariance"], first, rtol=0.01)
    torch.testing.assert_close(plastic.memory["means"], fixed.memory["means"])
    assert not torch.allclose(plastic.memory["weight"], fixed.memory["weight"], rtol=0.01)


@pytest.mark.parametrize("covariance", ["streamed", "exact"])
def test_avalanche_s_slda_streams_as_the_paper_does(covariance: Any) -> None:
    """Its numbers are in single precision; ``exact`` is not what it has."""
    avalanche()
    from avalanche.training.supervised import StreamingLDA

    alone = learner(SLDA(trunk="never", covariance=covariance, shrinkage=0.01))
    for index in range(3):
        learn(alone, index)
    slda = StreamingLDA(
        slda_model=torch.nn.Identity(), criterion=torch.nn.CrossEntropyLoss(), input_size=HIDDEN, num_classes=6,
        shrinkage_param=0.01, evaluator=None,
    )  # fmt: skip
    found = features(alone.theta).float()
    for z, y in zip(found, STREAM.samples.y, strict=True):
        slda.fit(z[None], y[None])
    same = covariance == "streamed"
    assert torch.allclose(slda.Sigma.double(), alone.memory["covariance"], rtol=1e-4, atol=1e-6) == same
    assert torch.allclose(slda.predict(found).double(), predicted(alone), rtol=1e-3, atol=1e-3) == same
    torch.testing.assert_close(slda.muK.double(), alone.memory["means"], rtol=1e-4, atol=1e-6)


# ---- herding and iCaRL


def brute_herding(found: torch.Tensor, count: int, renormalize: bool) -> list[int]:
    """Algorithm 4 in double precision, each time with all candidates; of several that are equally near, the first."""

    def mean(sums: torch.Tensor, n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(sums, dim=-1) if renormalize else sums / n

    found, chosen = found.double(), list[int]()
    mu, total = mean(found.sum(0), len(found)), torch.zeros_like(found[0])
    for k in range(1, min(count, len(found)) + 1):
        distance = (mu - mean(total + found, k)).square().sum(1)
        distance[chosen] = torch.inf
        chosen.append(int((distance <= distance.min() * (1 + 1e-12)).int().argmax()))
        total = total + found[chosen[-1]]
    return chosen


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("n", "count"), [(1, 5), (7, 7), (30, 12), (30, 40)])
def test_herding_is_algorithm_4(n: int, count: int, renormalize: bool) -> None:
    for seed in range(5):
        found = torch.nn.functional.normalize(vector(seed, n * 4).reshape(n, 4))
        assert herded(found, count, renormalize).tolist() == brute_herding(found, count, renormalize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_herding_of_features_that_are_zero_and_of_many(dtype: torch.dtype) -> None:
    """Those whose units are all off have not length 1; of many, single precision cannot tell all distances apart."""
    for seed in range(5):
        some = vector(seed, 40 * 4).reshape(40, 4).relu()
        some[::3] = 0
        for found, count in ((some, 12), (vector(seed, 4000 * 2).reshape(4000, 2), 60)):
            unit = torch.nn.functional.normalize(found).to(dtype)
            assert herded(unit, count).tolist() == brute_herding(unit, count, False)


def test_the_two_means_of_herding_choose_differently() -> None:
    found = torch.nn.functional.normalize(vector(1, 120).reshape(30, 4))
    assert herded(found, 10).tolist() != herded(found, 10, renormalize=True).tolist()


def test_avalanche_s_herding_is_ours() -> None:
    avalanche()
    from avalanche.training.storage_policy import HerdingSelectionStrategy

    theirs = HerdingSelectionStrategy.__new__(HerdingSelectionStrategy)
    for seed in range(10):
        found = torch.nn.functional.normalize(vector(seed, 25 * 4).reshape(25, 4))
        assert theirs.make_sorted_indices_from_features(found) == herded(found, 25).tolist()


@pytest.mark.parametrize("capacity", [13, 24, 500])
def test_exemplars_are_a_share_of_each_class_and_smaller_shares_keep_the_first(capacity: int) -> None:
    alone, before = learner(ICaRL(capacity=capacity)), {}
    for index in range(3):
        theta = learn(alone, index)
        kept = [row for row in alone.memory["rows"].tolist() if row >= 0]
        by = {k: [row for row in kept if STREAM.samples.y[row] == k] for k in range(2 * index + 2)}
        share = min(capacity // (2 * index + 2), 12)
        assert len(kept) == share * (2 * index + 2)
        for k, rows in by.items():
            own = torch.arange(12 * k, 12 * k + 12)
            wanted = own[brute_herding(features(theta, own, unit=True), share, False)].tolist()
            assert rows == (before[k][:share] if k in before else wanted)
        before = by
        following = alone.strategy.rows(alone.memory, STREAM.tasks[2])
        assert sorted(following.tolist()) == sorted({*kept, *range(48, 72)} if index < 2 else [*kept, *range(48, 72)])


@pytest.mark.parametrize("mean_of", ["exemplars", "class"])
def test_the_nearest_mean_of_exemplars(mean_of: Any) -> None:
    alone, thetas = learner(ICaRL(capacity=24, mean_of=mean_of)), []
    for index in range(3):
        thetas.append(learn(alone, index))
    kept, means = alone.memory["rows"], []
    for k in range(6):
        own = (
            kept[(kept >= 0) & (STREAM.samples.y[kept] == k)] if mean_of == "exemplars" else EVERY[12 * k : 12 * k + 12]
        )
        mean = features(thetas[2 if mean_of == "exemplars" else k // 2], own, unit=True).mean(0)
        means.append(mean / mean.norm())
    found = features(thetas[2], unit=True)
    wanted = torch.stack([torch.stack([-(z - mean).norm() for mean in means]) for z in found])
    torch.testing.assert_close(predicted(alone), wanted, atol=1e-7, rtol=1e-7)


def icarl_loss(logits: torch.Tensor, answers: torch.Tensor, y: int, new: list[int], old: list[int]) -> torch.Tensor:
    """Algorithm 3 for one sample."""
    g, q = torch.sigmoid(logits), torch.sigmoid(answers)
    total = torch.zeros((), dtype=torch.float64)
    for k in new:
        total = total - (torch.log(g[k]) if k == y else torch.log(1 - g[k]))
    for k in old:
        total = total - (q[k] * torch.log(g[k]) + (1 - q[k]) * torch.log(1 - g[k]))
    return total


@pytest.mark.parametrize("weight", WEIGHTS, ids=["alike", "weighed"])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_the_loss_of_icarl_is_the_equation(reduce: Any, index: int, weight: torch.Tensor | None) -> None:
    strategy, task, theta, teacher = ICaRL(reduce=reduce), STREAM.tasks[index], vector(1), vector(2)
    rows = torch.tensor([24 * index, 24 * index + 13, 3, 20])
    memory = strategy.before_task(NET, teacher, strategy.init(NET, vector(0), STREAM), task)[1]
    logits, answers = NET.logits(theta, images(rows)), NET.logits(teacher, images(rows))
    new, old = [2 * index, 2 * index + 1], list(range(2 * index))
    y = STREAM.samples.y[rows].tolist()
    each = torch.stack([icarl_loss(logits[n], answers[n], y[n], new, old) for n in range(4)])
    each = each / len(new + old) if reduce == "mean" else each
    got = loss_of(strategy, theta, memory, batch_of(task, rows, weight), task)
    torch.testing.assert_close(got, averaged(each, weight))


@pytest.mark.parametrize("weight", WEIGHTS, ids=["alike", "weighed"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_icarl_with_a_softmax(index: int, weight: torch.Tensor | None) -> None:
    strategy, task, theta, teacher = ICaRL(outputs="softmax", temperature=3), STREAM.tasks[index], vector(1), vector(2)
    rows = torch.tensor([24 * index, 24 * index + 13, 3, 20])
    memory = strategy.before_task(NET, teacher, strategy.init(NET, vector(0), STREAM), task)[1]
    logits, answers = NET.logits(theta, images(rows)), NET.logits(teacher, images(rows))
    seen = 2 * index
    each = torch.nn.functional.cross_entropy(logits[:, : seen + 2], STREAM.samples.y[rows], reduction="none")
    if index:
        q, log_g = torch.softmax(answers[:, :seen] / 3, 1), torch.log_softmax(logits[:, :seen] / 3, 1)
        each = each + 9 * (q * (q.log() - log_g)).sum(1)
    got = loss_of(strategy, theta, memory, batch_of(task, rows, weight), task)
    torch.testing.assert_close(got, averaged(each, weight))


def test_where_tasks_share_their_outputs_icarl_distils_nothing() -> None:
    stream = small_stream(0, "domain")
    net = MLP(layers=(HIDDEN,)).build(stream.shape, stream.units)
    strategy, task, theta = ICaRL(), stream.tasks[1], vector(1, net.size)
    rows = torch.tensor([0, 13, 24, 40])
    x, y = stream.samples.images(rows, torch.float64), stream.samples.y[rows]
    batch = Batch(rows, y, stream.samples.task[rows], task.key, 4, None, x)
    out = net.forward(theta, x)
    memory = strategy.init(net, vector(2, net.size), stream)
    label = torch.nn.functional.one_hot(y, 2).double()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, label, reduction="sum") / 4
    torch.testing.assert_close(strategy.loss(net, theta, memory, batch, out, task), wanted)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_where_tasks_have_outputs_of_their_own_icarl_distils_the_old_ones_of_every_sample(reduce: Any) -> None:
    """The label is told among the sample's own outputs, and the mean is over those that count."""
    stream = small_stream(0, "task")
    net, strategy, task = MLP(layers=(HIDDEN,)).build(stream.shape, stream.units), ICaRL(reduce=reduce), stream.tasks[1]
    theta, teacher, rows = vector(1), vector(2), torch.tensor([24, 37, 3, 20])  # two of them are exemplars
    memory = strategy.init(net, vector(0), stream) | {"teacher": teacher}
    g, q = (torch.sigmoid(net.logits(weights, images(rows, stream))) for weights in (theta, teacher))
    terms = []
    for n, row in enumerate(rows.tolist()):
        for k in range(4 if row >= 24 else 2):
            t = q[n, k] if k < 2 else float(k == stream.samples.y[row])
            terms.append(-t * torch.log(g[n, k]) - (1 - t) * torch.log(1 - g[n, k]))
    got = loss_of(strategy, theta, memory, batch_of(task, rows), task)
    torch.testing.assert_close(got, sum(terms) / (4 if reduce == "sum" else len(terms)))


def plain_net(theta: torch.Tensor) -> tuple[torch.nn.Sequential, torch.nn.Linear]:
    """The trunk and the head, with our weights."""
    trunk = torch.nn.Sequential(torch.nn.Linear(9, HIDDEN), torch.nn.ReLU()).double()
    head = torch.nn.Linear(HIDDEN, 6).double()
    torch.nn.utils.vector_to_parameters(theta.clone(), [*trunk.parameters(), *head.parameters()])
    return trunk, head


def experiences() -> Any:
    from avalanche.benchmarks import tensors_benchmark

    data = [(images(task.train).flatten(1), STREAM.samples.y[task.train]) for task in STREAM.tasks]
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0] * 3).train_stream


def rows_of(x: torch.Tensor) -> list[int]:
    """Rows by their images."""
    names = {tuple(image.tolist()): row for row, image in enumerate(images(EVERY).float().flatten(1))}
    return [names[tuple(image.tolist())] for image in x.float()]


def chosen_twice(found: torch.Tensor, count: int) -> tuple[list[int], bool]:
    """The authors' loop, which goes on where a sample is chosen again; and whether one was."""
    mu, chosen, again = found.mean(0), [], False
    w = mu
    for _ in range(1000):
        if len(chosen) == count:
            break
        best = int((found @ w).argmax())
        again |= best in chosen
        chosen += [best] if best not in chosen else []
        w = w + mu - found[best]
    return chosen, again


@pytest.mark.parametrize("seed", [0, 1, 6])
def test_avalanche_s_icarl_trains_the_same_network_and_the_difference_is_who_is_chosen_twice(seed: int) -> None:
    """In batches of all rows, averaged over all outputs, with a capacity that divides evenly. It chooses the exemplars
    that the authors' loop does; after each task it is given ours."""
    avalanche()
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training.supervised import ICaRL as Theirs

    alone = learner(ICaRL(capacity=12, reduce="mean"), all_active(), seed)
    trunk, head = (part.float() for part in plain_net(alone.theta))
    parameters = [*trunk.parameters(), *head.parameters()]
    icarl = Theirs(
        feature_extractor=trunk, classifier=head, optimizer=torch.optim.SGD(parameters, RATE), memory_size=12,
        buffer_transform=None, fixed_memory=True, train_mb_size=100, train_epochs=20, eval_mb_size=100, evaluator=None,
    )  # fmt: skip
    plugin = next(one for one in icarl.plugins if hasattr(one, "x_memory"))
    data = [(images(task.train).flatten(1).float(), STREAM.samples.y[task.train]) for task in STREAM.tasks]
    benchmark = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0] * 3)
    same = 0
    benchmark.n_classes_per_exp, benchmark.classes_order = [2, 2, 2], list(range(6))
    for index, experience in enumerate(benchmark.train_stream):
        icarl.train(experience, shuffle=False)
        theta = learn(alone, index, epochs=20)
        got = torch.nn.utils.parameters_to_vector(parameters).detach().double()
        torch.testing.assert_close(got, theta, atol=1e-5, rtol=1e-4)
        share = 12 // (2 * index + 2)
        for k in (2 * index, 2 * index + 1):
            found = features(theta, EVERY[12 * k : 12 * k + 12], unit=True)
            order, again = chosen_twice(found, share)
            assert sorted(rows_of(plugin.x_memory[k])) == sorted(12 * k + n for n in order)
            assert again or order == herded(found, share).tolist()
            same += not again
        kept = alone.memory["rows"].reshape(2 * index + 2, share)
        plugin.x_memory = [images(rows).float().flatten(1) for rows in kept]
        plugin.y_memory = [[k] * share for k in range(len(kept))]
        plugin.order = [torch.arange(1, share + 1) for _ in kept]
        plugin.compute_class_means(icarl)
        means = torch.stack([plugin.class_means[k] for k in range(len(kept))]).double()
        wanted = torch.nn.functional.normalize(alone.memory["means"][: len(kept)])
        torch.testing.assert_close(means, wanted, atol=1e-4, rtol=1e-3)
    assert 0 < same < 6, "both happen"


def test_there_has_to_be_room_for_each_class() -> None:
    with pytest.raises(BadChain, match="capacity=5 is too small for 6 classes; give 6"):
        ICaRL(capacity=5).suits(STREAM, NET)
    with pytest.raises(BadChain, match="capacity=11 is too small for 6 classes; give 12"):
        BiC(capacity=11).suits(STREAM, NET)


# ---- BiC


def test_each_class_has_a_sample_that_is_held_and_one_that_is_not() -> None:
    task = STREAM.tasks[1]
    rows = torch.cat([task.train[task.samples.y[task.train] == 2][:1], task.train[task.samples.y[task.train] == 3]])
    tasks = (STREAM.tasks[0], dataclasses.replace(task, train=rows), STREAM.tasks[2])
    with pytest.raises(BadChain, match="a class of task 2 has one training sample"):
        BiC().suits(dataclasses.replace(STREAM, tasks=tasks), NET)
    alone = learner(BiC(capacity=12, held=0.9))  # two of each class, of which nine tenths would be both
    for index in range(3):
        learn(alone, index)
        held, stored = (alone.memory[name][alone.memory[name] >= 0] for name in ("held_rows", "rows"))
        for rows in (held, stored):
            assert set(STREAM.samples.y[rows].tolist()) == set(range(2 * index + 2))


def bic_memory(strategy: BiC, **given: Any) -> Memory:
    return strategy.init(NET, vector(0), STREAM) | given


@pytest.mark.parametrize("options", [{}, {"strength": 0.2}, {"temperature": 5.0}], ids=str)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("weight", WEIGHTS, ids=["alike", "weighed"])
def test_the_loss_of_bic(weight: torch.Tensor | None, index: int, options: dict[str, Any]) -> None:
    strategy, task, theta, teacher = BiC.read(options), STREAM.tasks[index], vector(1), vector(2)
    rows, seen = torch.tensor([24 * index, 24 * index + 13, 3, 20]), 2 * index
    taught = torch.stack([1 + vector(3, 6), vector(4, 6)])
    memory = bic_memory(strategy, teacher=teacher, teacher_correction=taught)
    logits = NET.logits(theta, images(rows))
    answers = taught[0] * NET.logits(teacher, images(rows)) + taught[1]
    each = torch.nn.functional.cross_entropy(logits[:, : seen + 2], STREAM.samples.y[rows], reduction="none")
    if index:
        t, strength = options.get("temperature", 2.0), options.get("strength", seen / (seen + 2))
        p, log_p = torch.softmax(answers[:, :seen] / t, 1), torch.log_softmax(logits[:, :seen] / t, 1)
        each = (1 - strength) * each + strength * (p * (p.log() - log_p)).sum(1)
    got = loss_of(strategy, theta, memory, batch_of(task, rows, weight), task)
    torch.testing.assert_close(got, averaged(each, weight))


@pytest.mark.parametrize("ridge", [(0.1, 0.001), (0.0, 0.01), (2.0, 1.0)])
@pytest.mark.parametrize("index", [1, 2])
def test_the_correction_is_the_least_that_scipy_finds(index: int, ridge: tuple[float, float]) -> None:
    strategy, task = BiC(ridge=ridge[0], ridge_scale=ridge[1]), STREAM.tasks[index]
    rows, seen = torch.arange(0, 24 * index + 24, 3), 2 * index
    logits, y = NET.logits(vector(5), images(rows)).numpy(), STREAM.samples.y[rows].numpy()

    def objective(point: Any) -> float:
        o = np.concatenate([logits[:, :seen], point[0] * logits[:, seen : seen + 2] + point[1]], axis=1)
        losses = np.log(np.exp(o).sum(1)) - o[np.arange(len(y)), y]
        return float(losses.mean() + ridge[0] * point[1] ** 2 / 2 + ridge[1] * (point[0] - 1) ** 2 / 2)

    best = minimize(objective, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    got = strategy.fitted(NET, vector(5), bic_memory(strategy), task, rows)
    np.testing.assert_allclose(got, best.x, atol=1e-5)
    assert abs(best.x[0] - 1) > 0.01


def test_held_rows_are_balanced_and_are_not_trained_on() -> None:
    alone = learner(BiC(capacity=48, held=0.25))
    for index in range(3):
        trained = alone.begin(index)
        held = alone.memory["held_rows"]
        stored = [row for row in alone.memory["rows"].tolist() if row >= 0]
        own = set(range(24 * index, 24 * index + 24))
        held_now = {int(row) for row in held if row >= 0}
        assert sorted(trained.tolist()) == sorted([*(own - held_now), *stored]) and not held_now & set(stored)
        classes = 2 * index + 2
        each = math.ceil(0.25 * min(48 // classes, 12))
        assert Counter(STREAM.samples.y[list(held_now)].tolist()) == dict.fromkeys(range(classes), each)
        Program(alone, index, [trained])(0, trained)
        alone.end(index)
        kept = [row for row in alone.memory["rows"].tolist() if row >= 0]
        share = min(48 // classes - each, 12 - each)
        assert Counter(STREAM.samples.y[kept].tolist()) == dict.fromkeys(range(classes), share)
        assert len(set(kept) | held_now) == len(kept) + len(held_now) <= 48


def test_as_many_of_each_class_are_held_where_earlier_ones_have_fewer() -> None:
    y = torch.tensor([k for k, count in enumerate((4, 5, 12, 9, 12, 12)) for _ in range(count)])
    x = torch.arange(len(y), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    stream = Stream.from_arrays(x, y, x, y, tasks=3)
    strategy, theta = BiC(capacity=100, held=0.5, fill="random"), vector(0)
    memory = strategy.init(NET, theta, stream)
    for task in stream.tasks:
        theta, memory = strategy.before_task(NET, theta, memory, task)
        held = memory["held_rows"][memory["held_rows"] >= 0]
        assert stream.samples.y[held].bincount().tolist() == [2] * (2 * task.index + 2)
        theta, memory = strategy.after_task(NET, theta, memory, task)


@pytest.mark.parametrize("fill", ["herding", "random"])
def test_exemplars_of_bic(fill: Any) -> None:
    alone = learner(BiC(capacity=24, fill=fill))
    theta = learn(alone, 0)
    kept, held = alone.memory["rows"], alone.memory["held_rows"]
    free = torch.tensor([row for row in range(12) if row not in held.tolist()])
    order = free[herded(features(theta, free, unit=True), 12)].tolist()
    mine = [row for row in kept.tolist() if 0 <= row < 12]
    assert len(mine) == 10 and (mine == order[:10]) == (fill == "herding")


@pytest.mark.parametrize("keep", ["last", "each"])
def test_corrections_of_new_outputs_only_and_what_the_next_task_makes_of_them(keep: Any) -> None:
    alone = learner(BiC(capacity=36, keep=keep))
    none = torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand(2, 6)
    learn(alone, 0)
    assert torch.equal(alone.memory["correction"], none)
    learn(alone, 1)
    second = alone.memory["correction"]
    assert torch.equal(second[:, [0, 1, 4, 5]], none[:, :4]) and (second[:, 2] == second[:, 3]).all()
    assert float((second[:, 2] - none[:, 2]).abs().max()) > 0.01
    logits = NET.logits(alone.theta, images(EVERY))
    torch.testing.assert_close(predicted(alone), second[0] * logits + second[1])
    theta = alone.theta.clone()
    alone.begin(2)
    assert torch.equal(alone.memory["teacher"], theta)
    assert torch.equal(alone.memory["teacher_correction"], second)
    assert torch.equal(alone.memory["correction"], none if keep == "last" else second)
    alone.end(2)
    third = alone.memory["correction"]
    assert torch.equal(third[:, :4], (none if keep == "last" else second)[:, :4]) and float(third[0, 4]) != 1


def test_with_corrections_that_stay_the_data_term_is_of_corrected_outputs() -> None:
    strategy, task, theta = BiC(keep="each", strength=0.0), STREAM.tasks[2], vector(1)
    rows, correction = torch.tensor([48, 60, 3]), torch.stack([1 + vector(3, 6), vector(4, 6)])
    memory = bic_memory(strategy, correction=correction)
    logits = correction[0] * NET.logits(theta, images(rows)) + correction[1]
    wanted = torch.nn.functional.cross_entropy(logits, STREAM.samples.y[rows])
    torch.testing.assert_close(loss_of(strategy, theta, memory, batch_of(task, rows), task), wanted)


def test_with_corrections_that_stay_corrected_outputs_are_distilled() -> None:
    strategy, task, theta, teacher = BiC(keep="each", strength=1.0), STREAM.tasks[2], vector(1), vector(2)
    rows, taught = torch.tensor([48, 60, 3, 30]), torch.stack([1 + vector(3, 6), vector(4, 6)])
    now = torch.stack([1 + vector(5, 6), vector(6, 6)])
    memory = bic_memory(strategy, teacher=teacher, teacher_correction=taught, correction=now)
    answers = taught[0] * NET.logits(teacher, images(rows)) + taught[1]
    logits = now[0] * NET.logits(theta, images(rows)) + now[1]
    p, log_p = torch.softmax(answers[:, :4] / 2, 1), torch.log_softmax(logits[:, :4] / 2, 1)
    wanted = (p * (p.log() - log_p)).sum(1).mean()
    torch.testing.assert_close(loss_of(strategy, theta, memory, batch_of(task, rows), task), wanted)


def test_avalanche_s_bias_layer_is_ours_and_the_difference_is_its_distillation() -> None:
    avalanche()
    from avalanche.models.bic_model import BiasLayer
    from avalanche.training.plugins import BiCPlugin

    layer = BiasLayer([2, 3]).double()
    torch.nn.init.constant_(layer.alpha, 0.7)
    torch.nn.init.constant_(layer.beta, -0.4)
    correction = torch.tensor([[1, 1, 0.7, 0.7, 1, 1], [0, 0, -0.4, -0.4, 0, 0]], dtype=torch.float64)
    strategy, task, theta, teacher = BiC(strength=1.0), STREAM.tasks[2], vector(1), 5 * vector(2)
    got = strategy.predict(NET, theta, bic_memory(strategy, correction=correction), images(EVERY), EVERY)
    torch.testing.assert_close(got, layer(NET.logits(theta, images(EVERY))).detach())
    rows = torch.tensor([48, 60, 3, 30])
    new, old = NET.logits(theta, images(rows))[:, :4], layer(NET.logits(teacher, images(rows))).detach()[:, :4]
    memory = bic_memory(strategy, teacher=teacher, teacher_correction=correction)
    distilled = loss_of(strategy, theta, memory, batch_of(task, rows), task)
    plugin = BiCPlugin()
    over_classes = torch.nn.functional.cross_entropy(new / 2, torch.softmax(old / 2, dim=1))
    over_batch = torch.nn.functional.cross_entropy(new / 2, torch.softmax(old / 2, dim=0))
    p = torch.softmax(old / 2, dim=1)
    torch.testing.assert_close(distilled - (p * p.log()).sum(1).mean(), over_classes)
    torch.testing.assert_close(plugin.cross_entropy(new, old), over_batch)
    assert abs(float(over_batch - over_classes)) > 0.01


# ---- CWR*


@pytest.mark.parametrize("bias", ["consolidated", "trained"])
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_cwr_is_the_paper_s_algorithm(scenario: str, bias: Any) -> None:
    """Its loop over classes, around the heads that the tasks trained; classes come again in the domain scenario."""
    stream = small_stream(0, scenario)
    units = stream.units
    # tasks of different sizes, so that past and current counts differ
    sizes = (24, 18, 10)
    tasks = tuple(
        dataclasses.replace(
            task, train=task.train[torch.randperm(24, generator=torch.Generator().manual_seed(n))[:size]]
        )
        for n, (task, size) in enumerate(zip(stream.tasks, sizes, strict=True))
    )
    stream = dataclasses.replace(stream, tasks=tasks)
    alone = learner(CWRStar(bias=bias), stream)
    net, past = alone.net, dict.fromkeys(range(units), 0)
    cw = [torch.zeros(HIDDEN, dtype=torch.float64) for _ in range(units)]
    cb = [torch.zeros((), dtype=torch.float64) for _ in range(units)]
    for index, task in enumerate(stream.tasks):
        counts = Counter(stream.samples.y[task.train].tolist())
        begun = alone.begin(index)
        head = net.parameters(alone.theta.clone())
        for k in range(units):
            torch.testing.assert_close(head["head.weight"][k], cw[k] if k in counts else torch.zeros_like(cw[k]))
            if bias == "consolidated":
                assert float(head["head.bias"][k]) == pytest.approx(float(cb[k] if k in counts else 0))
        for number, rows in enumerate([begun] * 3):
            Program(alone, index, [begun] * 3)(number, rows)
        tw = {name: value.clone() for name, value in net.parameters(alone.theta).items()}
        alone.end(index)
        average = torch.stack([tw["head.weight"][k] for k in counts]).mean()
        average_bias = torch.stack([tw["head.bias"][k] for k in counts]).mean()
        for k, current in counts.items():
            w_past = math.sqrt(past[k] / current)
            cw[k] = (cw[k] * w_past + tw["head.weight"][k] - average) / (w_past + 1)
            cb[k] = (cb[k] * w_past + tw["head.bias"][k] - average_bias) / (w_past + 1)
            past[k] += current
        torch.testing.assert_close(alone.memory["weight"], torch.stack(cw))
        torch.testing.assert_close(alone.memory["bias"], torch.stack(cb) if bias == "consolidated" else tw["head.bias"])
        assert alone.memory["counts"].tolist() == [past[k] for k in range(units)]
        x = stream.samples.images(EVERY, torch.float64)
        scores = alone.strategy.predict(net, alone.theta, alone.memory, x, EVERY)[:, : max(counts) + 1]
        wanted = net.features(alone.theta, x) @ alone.memory["weight"].T + alone.memory["bias"]
        torch.testing.assert_close(scores, wanted[:, : max(counts) + 1])


@pytest.mark.parametrize("weight", WEIGHTS, ids=["alike", "weighed"])
@pytest.mark.parametrize("outputs", ["task", "active"])
def test_the_outputs_that_a_task_of_cwr_learns_with(outputs: Any, weight: torch.Tensor | None) -> None:
    strategy, theta, task, rows = CWRStar(outputs=outputs), vector(1), STREAM.tasks[2], torch.tensor([48, 60, 71, 50])
    first = 4 if outputs == "task" else 0
    logits, y = NET.logits(theta, images(rows))[:, first:], STREAM.samples.y[rows] - first
    wanted = averaged(torch.nn.functional.cross_entropy(logits, y, reduction="none"), weight)
    torch.testing.assert_close(loss_of(strategy, theta, {}, batch_of(task, rows, weight), task), wanted)


def test_avalanche_s_cwr_has_the_same_weights() -> None:
    """With all outputs in the loss and biases that are trained on; it keeps consolidated weights in the network."""
    avalanche()
    from avalanche.training.plugins import CWRStarPlugin
    from avalanche.training.supervised import Naive

    alone = learner(CWRStar(outputs="active", bias="trained"), all_active())
    trunk, head = plain_net(alone.theta)
    net = torch.nn.Sequential(*trunk, head)
    naive = Naive(
        model=net, optimizer=torch.optim.SGD(net.parameters(), RATE), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=8, train_epochs=3, plugins=[CWRStarPlugin(net)], evaluator=None,
    )  # fmt: skip
    for index, experience in enumerate(experiences()):
        naive.train(experience, shuffle=False)
        learn(alone, index, size=8)
        seen = 2 * index + 2
        torch.testing.assert_close(alone.memory["weight"][:seen], head.weight.detach()[:seen])
        torch.testing.assert_close(predicted(alone)[:, :seen], net(images(EVERY).flatten(1)).detach()[:, :seen])
    other = learner(CWRStar(), all_active())
    for index in range(3):
        learn(other, index, size=8)
    assert not torch.allclose(other.memory["weight"], alone.memory["weight"], rtol=0.1)
