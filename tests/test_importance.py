"""The Fisher diagonal: against one backward pass per sample, closed forms and the frequencies of drawn labels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from continual import config
from continual.conformance import TRAINING, learners_of, small_stream
from continual.learning import importance
from continual.learning.models import LinearNet, Out
from continual.learning.step import Program
from continual.learning.strategy import Chain, cross_entropy
from continual.learning.train import schedule
from continual.strategies import SI
from continual.strategies.cwr import CWRStar
from continual.streams.rng import key
from continual.streams.stream import Task

LABELS = get_args(importance.Label)
FIXED = ("expected", "true", "argmax")  # those that draw nothing
HIDDEN = (7, 5)
UNITS = {"class": 6, "task": 6, "domain": 2}
SCENARIOS = list(UNITS)


class GeneralNet(LinearNet):
    """The same network, which does not tell that it is made of linear layers."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__(sizes)
        self.linear = LinearNet(sizes)

    def apply(self, p: dict[str, torch.Tensor], x: torch.Tensor) -> Out:
        return self.linear.apply(p, x)

    def linear_layers(self, theta: torch.Tensor, x: torch.Tensor, tasks: torch.Tensor | None = None) -> Any:
        return None


def net_of(scenario: str, hidden: tuple[int, ...] = HIDDEN, kind: type[LinearNet] = LinearNet) -> LinearNet:
    return kind((9, *hidden, UNITS[scenario]))


def theta_of(net: LinearNet, seed: int = 5) -> torch.Tensor:
    """An untrained θ with larger weights, so that the probabilities are far from equal."""
    return net.initial(key(seed).child("θ"), torch.float64) * 2


def task_of(scenario: str, index: int = 1, seed: int = 0) -> Task:
    return small_stream(seed, scenario).tasks[index]


def all_rows(task: Task) -> torch.Tensor:
    """Rows of every task in a mixed order, so that in the task scenario each sample has a mask of its own."""
    return torch.arange(len(task.samples.y))[torch.arange(0, 72 * 7, 7) % 72]


def active_units(task: Task, row: int) -> list[int]:
    """The outputs that take part for one sample, written out."""
    own = {"task": [int(task.samples.task[row])], "seen": range(task.index + 1), "all": range(task.count)}
    units = task.outputs.units
    return sorted({k for t in own[task.outputs.active] for k in range(units.shape[1]) if units[t, k]})


def logits_of(net: LinearNet, theta: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The logits (K,) of one image, from θ cut by hand."""
    h, at = image.flatten(), 0
    sizes = [9, *(net.shapes[f"{name}.bias"][0] for name in net.names)]
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight = theta[at : at + inputs * outputs].reshape(outputs, inputs)
        bias = theta[at + inputs * outputs : at + inputs * outputs + outputs]
        at += inputs * outputs + outputs
        h = weight @ h + bias
        if layer < len(sizes) - 2:
            h = h.clamp_min(0)
    return h


def sample_gradients(net: LinearNet, theta: torch.Tensor, task: Task, row: int) -> tuple[torch.Tensor, Any]:
    """The probabilities of the active outputs, and the gradient of each one's log-probability: by backward passes."""
    live = theta.clone().requires_grad_()
    image = task.samples.images(torch.tensor([row]), torch.float64)[0]
    units = active_units(task, row)
    log_p = torch.log_softmax(logits_of(net, live, image)[units], dim=0)
    gradients = {k: torch.autograd.grad(log_p[at], live, retain_graph=True)[0] for at, k in enumerate(units)}
    return log_p.detach().exp(), gradients


def label_of(task: Task, row: int, p: torch.Tensor, label: str) -> int:
    return int(task.samples.y[row]) if label == "true" else active_units(task, row)[int(p.argmax())]


def brute_force(net: LinearNet, theta: torch.Tensor, task: Task, rows: list[int], label: str) -> torch.Tensor:
    """The Fisher diagonal, sample by sample and label by label."""
    total = torch.zeros_like(theta)
    for row in rows:
        p, gradients = sample_gradients(net, theta, task, row)
        if label == "expected":
            total += sum(p_k * g.square() for p_k, g in zip(p, gradients.values(), strict=True))
        else:
            total += gradients[label_of(task, row, p, label)].square()
    return total / len(rows)


# ---- sample by sample


@pytest.mark.parametrize("kind", [LinearNet, GeneralNet])
@pytest.mark.parametrize("label", FIXED)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fisher_is_one_backward_pass_per_sample(scenario: str, label: Any, kind: type[LinearNet]) -> None:
    net, task = net_of(scenario, kind=kind), task_of(scenario)
    theta = theta_of(net)
    got = importance.fisher(net, theta, task, task.train, label)
    wanted = brute_force(net, theta, task, task.train.tolist(), label)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-14)
    assert got.shape == theta.shape and (got > 0).any()


@pytest.mark.parametrize("kind", [LinearNet, GeneralNet])
@pytest.mark.parametrize("label", FIXED)
def test_every_sample_has_its_own_active_outputs(label: Any, kind: type[LinearNet]) -> None:
    net, task = net_of("task", kind=kind), task_of("task")
    theta, rows = theta_of(net), all_rows(task)
    got = importance.fisher(net, theta, task, rows, label)
    wanted = brute_force(net, theta, task, rows.tolist(), label)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("label", LABELS)
def test_inactive_outputs_have_no_importance(label: Any) -> None:
    for scenario, own in (("class", [0, 1, 2, 3]), ("task", [2, 3])):
        net, task = net_of(scenario), task_of(scenario)
        found = net.parameters(importance.fisher(net, theta_of(net), task, task.train, label))
        for name in ("head.weight", "head.bias"):
            inactive = [k for k in range(6) if k not in own]
            assert (found[name][inactive] == 0).all()
            assert (found[name][own] > 0).any(-1).all()


@pytest.mark.parametrize("label", ["expected", "true"])
def test_closed_form_of_a_linear_network(label: Any) -> None:
    """∂ log p_j / ∂W_ki = (δ_jk - p_k) x_i, so the exact Fisher is the mean of x_i² p_k (1 - p_k)."""
    net, task = net_of("class", hidden=()), task_of("class", index=2)
    theta = theta_of(net)
    x = task.samples.images(task.train, torch.float64).flatten(1)
    weight, bias = theta[:54].reshape(6, 9), theta[54:]
    p = torch.softmax(x @ weight.T + bias, dim=1)
    y = torch.nn.functional.one_hot(task.samples.y[task.train], 6)
    factor = p * (1 - p) if label == "expected" else (y - p).square()
    wanted = torch.cat([(torch.einsum("bk,bi->ki", factor, x.square()) / len(x)).flatten(), factor.mean(0)])
    torch.testing.assert_close(importance.fisher(net, theta, task, task.train, label), wanted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("label", FIXED)
def test_the_labels_give_different_fishers(label: Any) -> None:
    net, task = net_of("class"), task_of("class")
    theta = theta_of(net)
    found = {name: importance.fisher(net, theta, task, task.train, name) for name in FIXED}
    for other in FIXED:
        assert other == label or not torch.allclose(found[label], found[other], rtol=0.05)


@pytest.mark.parametrize("label", LABELS)
def test_theta_is_left_as_it_was(label: Any) -> None:
    net, task = net_of("class"), task_of("class")
    theta = theta_of(net)
    before = theta.clone()
    found = importance.fisher(net, theta, task, task.train, label)
    assert torch.equal(theta, before) and not theta.requires_grad and not found.requires_grad


# ---- another network, other chunks


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_general_network_has_the_fisher_of_a_linear_one(scenario: str, label: Any, batch: int) -> None:
    linear, general = net_of(scenario), net_of(scenario, kind=GeneralNet)
    task, theta = task_of(scenario), theta_of(linear)
    rows = all_rows(task)
    assert general.linear_layers(theta, torch.zeros(1, 9)) is None
    wanted = importance.fisher(linear, theta, task, rows, label, batch)
    torch.testing.assert_close(importance.fisher(general, theta, task, rows, label, batch), wanted)


@pytest.mark.parametrize("kind", [LinearNet, GeneralNet])
@pytest.mark.parametrize("label", [*FIXED, "sampled"])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, label: Any, kind: type[LinearNet]) -> None:
    net, task = net_of("class", kind=kind), task_of("class")
    theta = theta_of(net)
    whole = importance.fisher(net, theta, task, task.train, label)
    monkeypatch.setattr(importance, "CHUNK", 7)
    torch.testing.assert_close(importance.fisher(net, theta, task, task.train, label), whole)


# ---- batches


@pytest.mark.parametrize("batch", [2, 5, 24, 100])
@pytest.mark.parametrize("label", FIXED)
@pytest.mark.parametrize("scenario", ["class", "task"])
def test_batches_are_averaged_before_they_are_squared(scenario: str, label: Any, batch: int) -> None:
    """Each batch counts by its samples; ``expected`` has one term for each label, each sample weighed by √p."""
    net, task = net_of(scenario), task_of(scenario)
    theta, rows = theta_of(net), task.train.tolist()
    wanted = torch.zeros_like(theta)
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        terms: dict[int, torch.Tensor] = {}
        for row in chunk:
            p, gradients = sample_gradients(net, theta, task, row)
            if label == "expected":
                parts = {k: p_k.sqrt() * g for p_k, (k, g) in zip(p, gradients.items(), strict=True)}
            else:
                parts = {0: gradients[label_of(task, row, p, label)]}
            for k, part in parts.items():
                terms[k] = terms.get(k, torch.zeros_like(theta)) + part / len(chunk)
        wanted += sum(term.square() for term in terms.values()) * len(chunk) / len(rows)
    got = importance.fisher(net, theta, task, task.train, label, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-14)
    assert not torch.allclose(got, importance.fisher(net, theta, task, task.train, label), rtol=0.1)


def test_one_batch_of_everything_is_the_squared_gradient_of_the_loss() -> None:
    net, task = net_of("class"), task_of("class")
    theta = theta_of(net).requires_grad_()
    x = task.samples.images(task.train, torch.float64)
    logits = task.outputs.apply(net.logits(theta, x), task.index, task.samples.task[task.train])
    (gradient,) = torch.autograd.grad(cross_entropy(logits, task.samples.y[task.train]), theta)
    got = importance.fisher(net, theta.detach(), task, task.train, "true", len(task.train))
    torch.testing.assert_close(got, gradient.square())


# ---- gradients of batches


@pytest.mark.parametrize("model", ["mlp:layers=5", "cnn:channels=2-3,units=4"])
@pytest.mark.parametrize(("size", "wanted"), [(1, 24), (5, 5), (24, 1), (30, 1)])
def test_batches_have_the_gradients_that_each_has_alone(
    monkeypatch: pytest.MonkeyPatch, model: str, size: int, wanted: int
) -> None:
    stream = small_stream(0, "task")
    net, task = config.make("models", model).build((1, 8, 8), 6, 3), stream.tasks[1]
    grown = replace(task.samples, pixels=torch.arange(72 * 64).remainder(251).to(torch.uint8).view(72, 1, 8, 8))
    task, theta = replace(task, samples=grown), net.initial(key(3), torch.float64)
    monkeypatch.setattr(importance, "BATCHES", 2 * net.size)

    def value(theta: torch.Tensor, x: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        return (net.logits(theta, x, tasks).square().sum(1) * (1 + tasks)).mean()

    found, most, rows = [], 0, torch.cat([task.train[::2], stream.tasks[2].train[::2]])
    for gradients, count in importance.batch_gradients(net, theta, task, rows, size, value):
        most = max(most, len(gradients))
        found += [(one, count) for one in gradients]
    assert len(found) == wanted and most == (2 if size < 24 and not net.convolves else 1)
    for (got, count), part in zip(found, rows.split(size), strict=True):
        live = theta.clone().requires_grad_()
        images = task.samples.images(part, torch.float64)
        (gradient,) = torch.autograd.grad(value(live, images, task.samples.task[part]), live)
        torch.testing.assert_close(got, gradient, rtol=1e-9, atol=1e-12)
        assert count == len(part)


# ---- drawn labels


def test_a_drawn_label_gives_one_of_the_squared_gradients_as_often_as_it_is_probable() -> None:
    net, task = net_of("class"), task_of("class")
    theta, row = theta_of(net), int(task.train[3])
    p, gradients = sample_gradients(net, theta, task, row)
    candidates, draws = [g.square() for g in gradients.values()], 600
    counts = [0] * len(p)
    for seed in range(draws):
        drawn = replace(task, key=key(seed, task=1))
        got = importance.fisher(net, theta, drawn, torch.tensor([row]), "sampled")
        which = [at for at, candidate in enumerate(candidates) if torch.allclose(got, candidate, rtol=1e-8)]
        assert len(which) == 1
        counts[which[0]] += 1
    deviations = (draws * p * (1 - p)).sqrt()
    assert ((torch.tensor(counts) - draws * p).abs() < 4.5 * deviations).all(), (counts, p)


def test_the_fisher_of_drawn_labels_is_right_in_the_mean() -> None:
    net, task = net_of("class"), task_of("class")
    theta = theta_of(net)
    found = torch.stack([
        importance.fisher(net, theta, replace(task, key=key(seed, task=1)), task.train, "sampled")
        for seed in range(400)
    ])  # fmt: skip
    exact = importance.fisher(net, theta, task, task.train, "expected")
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() <= 5 * error + 1e-12).all()
    assert (error < 0.2 * exact + 1e-3).all(), "the test would not see a wrong Fisher"


@pytest.mark.parametrize(
    "p", [[0.5, 0.25, 0.125, 0.125], [0.0, 0.3, 0.7, 0.0], [0.9, 0.0, 0.0, 0.1], [0.0, 0.0, 0.0, 1.0]], ids=str
)
def test_labels_are_drawn_by_their_probabilities(p: list[float]) -> None:
    draws = 20_000
    rows = torch.tensor(p, dtype=torch.float64).expand(draws, -1)
    weights = importance.label_weights(
        rows, torch.zeros(draws, dtype=torch.int64), "sampled", key(3).uniform("lots", draws)
    )
    assert weights.shape == (1, draws, len(p)) and (weights.sum(-1) == 1).all()
    counts = weights[0].sum(0)
    deviations = (draws * rows[0] * (1 - rows[0])).sqrt()
    assert ((counts - draws * rows[0]).abs() <= 4.5 * deviations).all(), counts


def test_rows_draw_labels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a chunk and across chunks; the same key draws the same."""
    net, task = net_of("domain"), task_of("domain")
    theta = torch.zeros(net.size, dtype=torch.float64)  # both labels equally probable
    rows, seen = task.train[:1].expand(64), []
    usual = importance.label_weights

    def noting(*arguments: Any) -> torch.Tensor:
        weights = usual(*arguments)
        seen.append(weights[0].argmax(-1))
        return weights

    monkeypatch.setattr(importance, "label_weights", noting)
    monkeypatch.setattr(importance, "CHUNK", 32)
    for _ in range(2):
        importance.fisher(net, theta, task, rows, "sampled")
    assert [len(labels) for labels in seen] == [32] * 4
    assert not torch.equal(seen[0], seen[1]), "two chunks draw different labels"
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert all(4 < int(labels.sum()) < 28 for labels in seen)


def test_the_largest_and_the_smallest_draw_take_an_active_label() -> None:
    """Rounding must not let a draw just below 1 fall behind the last probable label, nor one of 0 before the first."""
    p = torch.rand(4000, 30, generator=torch.Generator().manual_seed(0)) ** 4
    p[:, 0] = p[:, 25:] = 0
    p = p / p.sum(-1, keepdim=True)
    for word in (0xFFFFFFFF, 0):
        u = torch.full((len(p),), (word >> 8) * 2.0**-24)
        labels = importance.label_weights(p, torch.zeros(len(p), dtype=torch.int64), "sampled", u)[0].argmax(-1)
        chosen = p.gather(1, labels[:, None]).squeeze(1)
        wrong = int((chosen == 0).sum())
        assert wrong == 0, f"{wrong} of {len(p)} draws chose a label of probability 0, such as {int(labels.max())}"


def test_the_way_that_a_task_went_begins_where_another_part_has_set_theta() -> None:
    """CWR* sets the head between tasks, which is no way that the task went."""
    si = SI(strength=0.5, damping=0.01)
    group = learners_of(Chain((CWRStar(trunk="always"), si)), [0])
    ends = []
    for index in range(2):
        rows = group.begin(index)
        start = group.theta.clone()
        batches = schedule(rows, TRAINING, group.seed, index)
        program = Program(group, index, batches)
        for number, batch in enumerate(batches):
            program(number, batch)
        path, before = group.memory["1/path"].clone(), group.memory["1/importance"].clone()
        end = group.theta.clone()
        group.end(index)
        wanted = before + path / ((group.theta - start).square() + si.damping)
        torch.testing.assert_close(group.memory["1/importance"], wanted)
        ends.append((start, end))
    assert not torch.equal(ends[1][0], ends[0][1]), "it begins elsewhere than the last one ended"
