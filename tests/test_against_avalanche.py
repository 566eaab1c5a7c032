"""The same weights, data and batches through avalanche-lib: what is equal, and where its conventions are others.

Every test that is named after a difference pins it down, so that a change on either side is noticed.
"""

from __future__ import annotations

import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.evaluation.metrics import StreamBWT, StreamForgetting, accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin, SupervisedPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer, ExperienceBalancedBuffer
    from avalanche.training.supervised import Cumulative, Naive

from continual.learning import importance
from continual.learning.evaluate import Evaluation
from continual.learning.models import MLP
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import Batch, Strategy
from continual.results import metrics as m
from continual.strategies import EWC, Finetune, Joint, OnlineEWC, Replay
from continual.streams.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore")  # what avalanche-lib and what it imports warn of
HIDDEN, RATE = 7, 0.3
TEST_COUNTS = (3, 9, 4, 4, 6, 2)  # test rows of each class: uneven


def stream_of(scenario: str = "class", rows: int = 12, **options: Any) -> Stream:
    """Six classes of noisy images in mixed order, in three tasks; all outputs active, as avalanche-lib has it."""
    numbers = np.random.default_rng(0)
    centres = numbers.integers(0, 200, (6, 1, 3, 3))
    parts = []
    for counts in ((rows,) * 6, TEST_COUNTS):
        y = numbers.permutation(np.repeat(np.arange(6), counts))
        parts += [(centres[y] + numbers.integers(0, 56, (len(y), 1, 3, 3))).astype(np.uint8), y]
    settings = {"tasks": 3, "scenario": scenario, "train_outputs": "all", "test_outputs": "all"} | options
    return Stream.from_arrays(*parts, **settings)


def experiences(stream: Stream) -> Any:
    """The same tasks as a benchmark of avalanche-lib, with the images as our networks see them."""

    def tensors(samples: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return samples.images(rows, torch.float64).flatten(1), samples.y[rows]

    return tensors_benchmark(
        train_tensors=[tensors(stream.samples, task.train) for task in stream.tasks],
        test_tensors=[tensors(stream.test_samples, task.test) for task in stream.tasks],
        task_labels=[0] * len(stream.tasks),
    )


def ours(strategy: Strategy, stream: Stream, momentum: float = 0.0, keep: bool = True) -> Learners:
    net = MLP(layers=(HIDDEN,)).build(stream.shape, stream.units)
    return Learners(Recipe(net, strategy, SGD(lr=RATE, momentum=momentum), Constant(), keep, "float64"), [stream], [3])


def learn(alone: Learners, index: int, size: int, epochs: int = 1) -> list[float]:
    """Learn a task in batches of its rows in their order: the losses."""
    batches = alone.begin(index).split(size) * epochs
    program = Program(alone, index, batches)
    losses = [float(program(number, rows)) for number, rows in enumerate(batches)]
    alone.end(index)
    return losses


class Losses(SupervisedPlugin):
    """What avalanche-lib has computed at each step: loss, images and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def before_update(self, strategy: Any, **options: Any) -> None:
        self.steps.append((float(strategy.loss), strategy.mb_x.clone(), strategy.mb_y.clone()))


def theirs(
    kind: Any, theta: torch.Tensor, units: int, size: int, *plugins: Any, momentum: float = 0.0, epochs: int = 1
) -> Any:
    """A strategy of avalanche-lib around a network with our weights."""
    net = torch.nn.Sequential(torch.nn.Linear(9, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, units)).double()
    torch.nn.utils.vector_to_parameters(theta.detach().clone(), net.parameters())
    return kind(
        model=net, optimizer=torch.optim.SGD(net.parameters(), RATE, momentum=momentum),
        criterion=torch.nn.CrossEntropyLoss(), train_mb_size=size, train_epochs=epochs, eval_mb_size=1000,
        plugins=list(plugins), evaluator=None,
    )  # fmt: skip


def weights(strategy: Any) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(strategy.model.parameters()).detach()


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


def near(got: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-9) -> None:
    """Equal in single precision, in which avalanche-lib keeps importances and anchors."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=atol)


# ---- fine-tuning


@pytest.mark.parametrize("size", [5, 8, 24])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_naive_is_finetuning(scenario: str, momentum: float, size: int) -> None:
    """Losses and weights are equal, over three tasks; the optimiser's state is kept."""
    stream = stream_of(scenario)
    alone, seen = ours(Finetune(), stream, momentum), Losses()
    naive = theirs(Naive, alone.theta, stream.units, size, seen, momentum=momentum, epochs=2)
    losses: list[float] = []
    for index, experience in enumerate(experiences(stream).train_stream):
        naive.train(experience, shuffle=False)
        losses += learn(alone, index, size, epochs=2)
        close(alone.theta, weights(naive))
    np.testing.assert_allclose([loss for loss, _, _ in seen.steps], losses, rtol=1e-5)  # it adds losses in float32
    assert len(losses) == 3 * 2 * -(-24 // size)


def test_difference_its_outputs_are_all_active() -> None:
    """Our default in the class scenario, the outputs seen so far, gives other losses and other weights."""
    stream = stream_of(train_outputs="default")
    alone, seen = ours(Finetune(), stream), Losses()
    naive = theirs(Naive, alone.theta, stream.units, 8, seen)
    naive.train(experiences(stream).train_stream[0], shuffle=False)
    losses = learn(alone, 0, 8)
    assert losses[0] < seen.steps[0][0] - 0.3 and not torch.allclose(alone.theta, weights(naive), atol=1e-3)


def test_difference_its_optimizer_is_never_reset() -> None:
    stream = stream_of()
    alone = ours(Finetune(), stream, momentum=0.9, keep=False)
    naive = theirs(Naive, alone.theta, stream.units, 8, momentum=0.9)
    first, second, _ = experiences(stream).train_stream
    naive.train(first, shuffle=False)
    learn(alone, 0, 8)
    close(alone.theta, weights(naive))
    naive.train(second, shuffle=False)
    learn(alone, 1, 8)
    assert not torch.allclose(alone.theta, weights(naive), atol=1e-3)


# ---- metrics


def test_accuracies_of_each_task_are_equal_and_the_difference_is_their_mean() -> None:
    """Its stream accuracy is the mean over all test samples, of tasks not learnt yet too; ours the mean over tasks."""
    stream = stream_of()
    alone, benchmark = ours(Finetune(), stream), experiences(stream_of())
    naive = theirs(Naive, alone.theta, stream.units, 8)
    naive.evaluator = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[])
    naive.plugins = [naive.evaluator]
    measured = Evaluation(alone, "test_samples", [[task.test for task in stream.tasks]])
    rows = [measured(-1)]
    for index, experience in enumerate(benchmark.train_stream):
        naive.train(experience, shuffle=False)
        learn(alone, index, 8)
        found = naive.eval(benchmark.test_stream)
        rows.append(measured(index))
        by_task = [found[f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{j:03}"] for j in range(3)]
        np.testing.assert_allclose(rows[-1], by_task, atol=1e-12)
        whole = found["Top1_Acc_Stream/eval_phase/test_stream/Task000"]
        counts = np.array([12, 8, 8])
        np.testing.assert_allclose(whole, (rows[-1].numpy() * counts).sum() / counts.sum(), atol=1e-12)
    matrix = torch.stack(rows)[None].numpy()
    np.testing.assert_allclose(m.average_accuracy(matrix), rows[-1].mean())
    assert abs(float(rows[-1].mean()) - whole) > 0.01, "the two means differ here"


def played(metric: Any, matrix: np.ndarray[Any, Any]) -> float:
    """What a metric of avalanche-lib says at the end, where tasks were evaluated with these accuracies (in tenths)."""
    tasks = matrix.shape[1]
    for i in range(tasks):
        metric.before_training_exp(SimpleNamespace(experience=SimpleNamespace(current_experience=i)))
        metric.before_eval(None)
        for j in range(tasks):
            right = round(10 * matrix[i + 1, j])
            y = torch.zeros(10, dtype=torch.int64)
            output = torch.nn.functional.one_hot((torch.arange(10) >= right).long(), 2).float()
            evaluation = SimpleNamespace(
                experience=SimpleNamespace(current_experience=j), mb_y=y, mb_output=output, mb_task_id=0
            )
            metric.before_eval_exp(evaluation)
            metric.after_eval_iteration(evaluation)
            metric.after_eval_exp(evaluation)
    return float(metric.result())


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_its_forgetting_is_minus_backward_transfer(seed: int, tasks: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 11, (tasks + 1, tasks)) / 10
    (bwt,) = m.backward_transfer(matrix[None])
    assert played(StreamBWT(), matrix) == pytest.approx(bwt, abs=1e-6)
    assert played(StreamForgetting(), matrix) == pytest.approx(-bwt, abs=1e-6)
    assert m.forgetting(matrix[None], rows="learnt") == pytest.approx(-bwt)


def test_difference_to_the_forgetting_of_chaudhry() -> None:
    """A task that is best known long after it was learnt: from 0.6 to 0.9, then down to 0.5."""
    matrix = np.array([[0.1, 0.1, 0.1], [0.6, 0.1, 0.1], [0.9, 0.8, 0.1], [0.5, 0.7, 0.8]])
    assert played(StreamForgetting(), matrix) == pytest.approx(((0.6 - 0.5) + (0.8 - 0.7)) / 2, abs=1e-6)
    assert m.forgetting(matrix[None]) == pytest.approx([((0.9 - 0.5) + (0.8 - 0.7)) / 2])


# ---- EWC


def importances(stream: Stream, theta: torch.Tensor, index: int, size: int) -> torch.Tensor:
    """What avalanche-lib's EWC computes after a task."""
    plugin, naive = EWCPlugin(1.0), theirs(Naive, theta, stream.units, size)
    dataset = experiences(stream).train_stream[index].dataset
    found = plugin.compute_importances(
        naive.model, torch.nn.CrossEntropyLoss(), naive.optimizer, dataset, torch.device("cpu"), size
    )
    return torch.cat([value.data.flatten() for value in found.values()]).double()


@pytest.mark.parametrize("size", [1, 2, 6, 24])
def test_its_importances_are_squared_batch_means_of_the_data_s_labels(size: int) -> None:
    """Ours with label=true and fisher_batch at its mini-batch size, over the rows in their order."""
    stream = stream_of()
    alone = ours(Finetune(), stream)
    got = importances(stream, alone.theta, 1, size)
    task = stream.tasks[1]
    near(got, importance.fisher(alone.net, alone.theta, task, task.train, "true", batch=size))
    fisher = importance.fisher(alone.net, alone.theta, task, task.train, "true")
    assert (got <= fisher * (1 + 1e-6)).all(), "a squared mean is never above the mean of squares"
    assert torch.allclose(got, fisher, rtol=1e-5) == (size == 1)
    expected = importance.fisher(alone.net, alone.theta, task, task.train, "expected")
    assert not torch.allclose(got, expected, rtol=0.1)


def test_difference_its_last_partial_batch_counts_as_a_whole_one() -> None:
    """It averages over batches, we over samples: with batches of 10, 10 and 4 its last four samples count more."""
    stream = stream_of()
    alone, task = ours(Finetune(), stream), stream.tasks[1]
    parts = [importance.fisher(alone.net, alone.theta, task, rows, "true", batch=10) for rows in task.train.split(10)]
    near(importances(stream, alone.theta, 1, 10), sum(parts) / 3)
    weighed = (10 * parts[0] + 10 * parts[1] + 4 * parts[2]) / 24
    close(importance.fisher(alone.net, alone.theta, task, task.train, "true", batch=10), weighed)
    assert not torch.allclose(weighed, sum(parts) / 3, rtol=0.01)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (EWC(strength=50, half=False, label="true", fisher_batch=24), {}),
        (EWC(strength=100, half=True, label="true", fisher_batch=24), {}),
        (
            OnlineEWC(strength=50, half=False, label="true", fisher_batch=24, decay=0.8),
            {"mode": "online", "decay_factor": 0.8},
        ),
    ],
    ids=["separate", "separate, twice the strength with the factor 1/2", "online"],
)
def test_its_ewc_has_no_factor_one_half(strategy: EWC, options: dict[str, Any]) -> None:
    """Trained over three tasks in batches of a whole task, whose order does not matter: the same weights."""
    stream = stream_of()
    alone, seen = ours(strategy, stream), Losses()
    ewc = theirs(Naive, alone.theta, stream.units, 24, EWCPlugin(50.0, **options), seen, epochs=6)
    plain, losses = ours(Finetune(), stream), []
    for index, experience in enumerate(experiences(stream).train_stream):
        ewc.train(experience, shuffle=False)
        losses += learn(alone, index, 24, epochs=6)
        learn(plain, index, 24, epochs=6)
        near(alone.theta, weights(ewc), atol=1e-6)
    if options:  # one term for each task is kept up to a constant, which the loss does not have
        np.testing.assert_allclose([loss for loss, _, _ in seen.steps], losses, rtol=1e-5)
    assert not torch.allclose(alone.theta, plain.theta, atol=1e-3), "the penalty matters here"


def test_its_penalty_has_our_gradient_for_the_same_importances_and_anchors() -> None:
    """Two terms, of any importances; its value is ours and a constant that ours leaves out."""
    stream = stream_of()
    alone = ours(Finetune(), stream)
    size, numbers = len(alone.theta), torch.Generator().manual_seed(0)
    fishers, anchors = (torch.rand(2, size, generator=numbers, dtype=torch.float64) for _ in range(2))
    plugin, values = EWCPlugin(50.0), []
    strategy = EWC(strength=50, half=False)
    memory = {"fisher": fishers.sum(0), "anchor": (fishers * anchors).sum(0) / fishers.sum(0)}
    for theta in torch.rand(3, size, generator=numbers, dtype=torch.float64):
        naive = theirs(Naive, theta, stream.units, 24)
        names = dict(naive.model.named_parameters())
        cuts = [parameter.numel() for parameter in names.values()]
        for t in range(2):
            for table, flat in ((plugin.importances, fishers[t]), (plugin.saved_params, anchors[t])):
                pieces = zip(names.items(), flat.split(cuts), strict=True)
                table[t] = {name: piece.reshape(like.shape) for (name, like), piece in pieces}
        state = SimpleNamespace(
            clock=SimpleNamespace(train_exp_counter=2), device="cpu", model=naive.model,
            loss=torch.zeros((), dtype=torch.float64),
        )  # fmt: skip
        plugin.before_backward(state)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(state.loss, list(names.values()))])
        live = theta.clone().requires_grad_()
        penalty = strategy.penalty(alone.net, live, memory, *(None,) * 3)  # type: ignore[arg-type]
        close(torch.autograd.grad(penalty, live)[0], gradient)
        values.append(float(state.loss) - float(penalty))
    assert values == pytest.approx([values[0]] * 3, rel=1e-5) and values[0] > 1


# ---- replay


def stored(stream: Stream, capacity: int) -> list[dict[tuple[int, int], int]]:
    """How many samples of each (task, class) we store after each task."""
    strategy, theta = Replay(capacity=capacity), torch.zeros(3)
    memory, after = strategy.init(None, theta, stream), []  # type: ignore[arg-type]
    for task in stream.tasks:
        memory = strategy.after_task(None, theta, memory, task)[1]  # type: ignore[arg-type]
        rows = [row for row in memory["rows"].tolist() if row >= 0]
        after.append(dict(Counter((int(stream.samples.task[row]), int(stream.samples.y[row])) for row in rows)))
    return after


def buffered(stream: Stream, buffer: Any) -> list[dict[tuple[int, int], int]]:
    """The same of a buffer of avalanche-lib; the rows are found by their images."""
    torch.manual_seed(0)
    names = {tuple(x.tolist()): row for row, x in enumerate(all_images(stream))}
    after = []
    for experience in experiences(stream).train_stream:
        buffer.post_adapt(None, experience)
        rows = [names[tuple(x.tolist())] for x, *_ in buffer.buffer]
        assert len(set(rows)) == len(rows)
        after.append(dict(Counter((int(stream.samples.task[row]), int(stream.samples.y[row])) for row in rows)))
    return after


def all_images(stream: Stream) -> torch.Tensor:
    images = stream.samples.images(torch.arange(len(stream.samples.y)), torch.float64).flatten(1)
    assert len(images.unique(dim=0)) == len(images), "every image is another"
    return images


def spread(counts: dict[tuple[int, int], int]) -> list[int]:
    return [counts[kind] for kind in sorted(counts)]


def test_a_class_balanced_buffer_that_divides_evenly_is_our_balanced_memory() -> None:
    stream = stream_of()
    got = buffered(stream, ClassBalancedBuffer(12))
    assert got == stored(stream, 12) and [spread(counts) for counts in got] == [[6] * 2, [3] * 4, [2] * 6]


@pytest.mark.parametrize(
    ("capacity", "wanted"),
    [(11, [[6, 5], [3, 3, 3, 2], [2, 2, 2, 2, 2, 1]]), (13, [[7, 6], [4, 3, 3, 3], [3, 2, 2, 2, 2, 2]])],
)
def test_difference_its_class_balanced_buffer_shares_the_rest_out(capacity: int, wanted: list[list[int]]) -> None:
    """What does not divide evenly goes to its first classes; our slots stay empty, so that all classes are equal."""
    stream = stream_of()
    assert [spread(counts) for counts in buffered(stream, ClassBalancedBuffer(capacity))] == wanted
    assert [spread(c) for c in stored(stream, capacity)] == [[capacity // k] * k for k in (2, 4, 6)]


def test_difference_its_default_buffer_balances_tasks_and_not_classes() -> None:
    stream = stream_of()
    buffer = ReplayPlugin(mem_size=13).storage_policy
    assert type(buffer) is ExperienceBalancedBuffer
    by_task = [
        [sum(n for (t, _), n in counts.items() if t == task) for task in range(index + 1)]
        for index, counts in enumerate(buffered(stream, buffer))
    ]
    assert by_task == [[13], [7, 6], [5, 4, 4]]
    skewed = 0
    for seed in range(10):
        torch.manual_seed(seed)
        one = ExperienceBalancedBuffer(12)
        one.post_adapt(None, experiences(stream).train_stream[0])
        skewed += {int(y) for _, y, *_ in one.buffer} != {0, 1} or Counter(int(y) for _, y, *_ in one.buffer)[0] != 6
    assert skewed >= 5, "the classes of a task are not balanced"


def test_difference_its_class_balanced_buffer_puts_a_class_of_several_tasks_into_one_group() -> None:
    """In the domain scenario it balances labels whatever task they came from, we balance each task's."""
    stream = stream_of("domain")
    got = buffered(stream, ClassBalancedBuffer(12))[-1]
    labels = [sum(n for (_, y), n in got.items() if y == label) for label in range(2)]
    assert labels == [6, 6]
    assert spread(stored(stream, 12)[-1]) == [2] * 6 != spread(got)


def test_its_replay_weighs_all_samples_alike_and_the_difference_is_how_many_join() -> None:
    """It goes through its buffer in passes without replacement, whose last batch is short, and joins full batches of it
    to a short batch of data; ours draws with replacement, as many as the batch has."""
    stream, size = stream_of(rows=10), 8
    alone, seen = ours(Replay(capacity=13), stream), Losses()
    replay = theirs(Naive, alone.theta, stream.units, size, ReplayPlugin(mem_size=13), seen)
    torch.manual_seed(0)
    before: list[torch.Tensor] = []
    for experience in list(experiences(stream).train_stream)[:2]:
        before.append(weights(replay))
        replay.train(experience, shuffle=False)
    first, second = seen.steps[:3], seen.steps[3:]
    assert [len(y) for _, _, y in first] == [8, 8, 4]
    assert [len(y) for _, _, y in second] == [8 + 8, 8 + 5, 4 + 8]
    old = torch.cat([x[8:] for _, x, _ in second[:2]])
    assert len(old) == len(old.unique(dim=0)) == 13, "every stored sample once in a pass"
    # its loss is the plain mean over the joined batch, and so is ours
    loss, x, y = second[0]
    net = alone.net
    names = {tuple(image.tolist()): row for row, image in enumerate(all_images(stream))}
    rows = torch.tensor([names[tuple(image.tolist())] for image in x])
    task = stream.tasks[1]
    images = task.samples.images(rows, torch.float64)
    batch = Batch(rows[:8], y[:8], task.samples.task[rows[:8]], task.key, own=8).join(rows[8:], task)
    got = Replay(capacity=13).loss(net, before[1], {}, batch, net.forward(before[1], images), task)
    assert float(got) == pytest.approx(loss, rel=1e-5)
    # ours
    learn(alone, 0, size)
    memory, lengths = alone.memory, []
    for number, rows in enumerate(alone.begin(1).split(size)):
        drawn = Batch(rows, task.samples.y[rows], task.samples.task[rows], task.key.child(str(number)), own=len(rows))
        lengths.append(len(Replay(capacity=13).batch(net, alone.theta, memory, drawn, task).row))
    assert lengths == [16, 16, 8]


# ---- joint training


def test_difference_cumulative_training_goes_on_where_joint_training_starts_again() -> None:
    """Both go through all data so far; Cumulative with the network as it is, Joint with the untrained one."""
    stream = stream_of()
    alone, seen = ours(Joint(), stream), Losses()
    start = alone.theta.clone()
    cumulative = theirs(Cumulative, start, stream.units, 72, seen, epochs=3)
    restarted = theirs(Cumulative, start, stream.units, 72, epochs=3)
    for index, experience in enumerate(experiences(stream).train_stream):
        torch.nn.utils.vector_to_parameters(start.clone(), restarted.model.parameters())
        for strategy in (cumulative, restarted):
            strategy.train(experience, shuffle=False)
        learn(alone, index, 72, epochs=3)
        close(alone.theta, weights(restarted))
        assert len(seen.steps[-1][2]) == 24 * (index + 1)
        if index:
            assert not torch.allclose(alone.theta, weights(cumulative), atol=1e-3)
        else:
            close(alone.theta, weights(cumulative))
