"""Training: against a plain PyTorch loop, over seeds, between steps, and when a seed's loss is lost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import continual as cl
from continual import plugins
from continual.conformance import TRAINING, Asked, compare, learners_of, small_stream
from continual.errors import BadChain, BadOption
from continual.learning import capture, seeds, step
from continual.learning.evaluate import Evaluation
from continual.learning.models import MLP, LinearNet, Net, Out
from continual.learning.optimizers import SGD, Adam, AdamW, Constant, Cosine, Optimizer, Schedule
from continual.learning.seeds import Learners, Recipe, all_equal, tensor_float
from continual.learning.step import Program
from continual.learning.strategy import Batch, Chain, Memory, Strategy
from continual.learning.train import Course, Stopped, Watch, schedule, some, train
from continual.learning.training import Training
from continual.progress import Progress
from continual.strategies import EWC, L2, SI, Finetune, Joint, Rehearsal, Replay
from continual.streams.data import Data
from continual.streams.rng import key
from continual.streams.stream import Stream, Task, permuted

CLASSES, COUNTS, TEST_COUNTS = 6, (10, 13, 9, 12, 11, 14), (5, 3, 6, 4, 5, 4)
SHAPE = (1, 3, 3)
HIDDEN = 8


def arrays() -> tuple[np.ndarray[Any, Any], ...]:
    """Uneven classes, each scattered around an image of its own: x, y, x_test, y_test."""
    numbers = np.random.default_rng(0)
    centres = numbers.integers(0, 200, (CLASSES, *SHAPE))
    parts = []
    for counts in (COUNTS, TEST_COUNTS):
        y = numbers.permutation(np.repeat(np.arange(CLASSES), counts))
        parts += [(centres[y] + numbers.integers(0, 56, (len(y), *SHAPE))).astype(np.uint8), y]
    return tuple(parts)


X, Y, X_TEST, Y_TEST = arrays()
TASKS = [[0, 1], [2, 3], [4, 5]]


def uneven(scenario: str = "class", **options: Any) -> Stream:
    return Stream.from_arrays(X, Y, X_TEST, Y_TEST, tasks=3, scenario=scenario, **options)


def permutations(seed: int, validation: float = 0.0) -> Stream:
    """A stream whose tables differ between seeds, but not its sizes."""
    data = Data.from_arrays(X, Y, X_TEST, Y_TEST)
    return permuted(data, seed=seed, tasks=3, scenario="domain", validation=validation)


def learners(
    strategy: Strategy,
    streams: list[Stream],
    seeds: list[int],
    training: Training,
    optimizer: Optimizer | None = None,
    rates: Schedule | None = None,
    layers: tuple[int, ...] = (HIDDEN,),
) -> Learners:
    net = MLP(layers).build(streams[0].shape, streams[0].units)
    keep = training.optimizer_state == "keep"
    recipe = Recipe(
        net, strategy, optimizer or SGD(lr=0.1, momentum=0.9), rates or Constant(), keep, training.precision
    )
    return Learners(recipe, streams, seeds)


def short(**options: Any) -> Training:
    length = {} if "iterations" in options else {"epochs": 2}
    return Training(**{"seeds": 3, "batch": 8, "precision": "float64", "train_samples": 5} | length | options)


def outcome(group: Learners, training: Training) -> dict[str, torch.Tensor]:
    found, stopped = train(group, training, Watch())
    assert not stopped
    return found | {"θ": group.theta.detach().clone()} | {f"memory {k}": v.clone() for k, v in group.memory.items()}


# ---- against a plain loop


def module(theta: torch.Tensor, units: int) -> torch.nn.Sequential:
    sizes = [9, HIDDEN, units]
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(*sizes[:2]), torch.nn.ReLU(), torch.nn.Linear(*sizes[1:])
    ).double()
    torch.nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    return net


def active_units(scenario: str, task: int, latest: int) -> list[int]:
    """The outputs that may answer for a sample of a task while another is the latest."""
    if scenario == "domain":
        return [0, 1]
    return TASKS[task] if scenario == "task" else list(itertools.chain(*TASKS[: latest + 1]))


def unit(scenario: str, label: int) -> int:
    return label % 2 if scenario == "domain" else label


def plain_loss(net: torch.nn.Module, scenario: str, index: int, images: list[int]) -> torch.Tensor:
    logits = net(torch.from_numpy(X[images]).double() / 255)
    active = active_units(scenario, index, index)
    y = torch.tensor([active.index(unit(scenario, int(label))) for label in Y[images]])
    return torch.nn.functional.cross_entropy(logits[:, active], y)


def plain_accuracy(
    net: torch.nn.Module, scenario: str, latest: int, images: list[list[int]], test: bool
) -> list[float]:
    x, y = (X_TEST, Y_TEST) if test else (X, Y)
    found = []
    for task, mine in enumerate(images):
        right = 0
        for image in mine:
            with torch.no_grad():
                scores = net(torch.from_numpy(x[image : image + 1]).double() / 255)[0]
            active = active_units(scenario, task, max(latest, 0))
            right += max(active, key=lambda k: float(scores[k])) == unit(scenario, int(y[image]))
        found.append(right / len(mine))
    return found


def plain_training(
    stream: Stream, training: Training, seed: int, theta: torch.Tensor,
    make: Callable[[Any], torch.optim.Optimizer], rates: Schedule,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tuning as anybody would write it, with the row order of ``schedule``."""
    scenario = stream.scenario
    net = module(theta, stream.units)
    optimizer, losses = make(net.parameters()), []
    rate = optimizer.param_groups[0]["lr"]
    tests = [[i for i, label in enumerate(Y_TEST) if label in own] for own in TASKS]
    every = [[i for i, label in enumerate(Y) if label in own] for own in TASKS]
    few = [[own[i * len(own) // 5] for i in range(5)] for own in every]
    rows: dict[str, list[list[float]]] = {"accuracy": [], "training_accuracy": []}

    def measure(latest: int) -> None:
        rows["accuracy"].append(plain_accuracy(net, scenario, latest, tests, True))
        rows["training_accuracy"].append(plain_accuracy(net, scenario, latest, few, False))

    measure(-1)
    for index, task in enumerate(stream.tasks):
        if index and training.optimizer_state == "reset":
            optimizer = make(net.parameters())
        batches = schedule(task.train, training, torch.tensor(seed), index)
        for number, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = rate * rates.factor(number, len(batches))
            optimizer.zero_grad()
            loss = plain_loss(net, scenario, index, stream.samples.image[batch].tolist())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        measure(index)
    return rows | {"loss": losses, "θ": torch.nn.utils.parameters_to_vector(net.parameters()).detach()}


OPTIMIZERS: dict[str, tuple[Optimizer, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "adam": (Adam(lr=0.02), lambda p: torch.optim.Adam(p, 0.02)),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("sgd", {"last": "drop"}),
        ("sgd", {"optimizer_state": "reset"}),
        ("adam", {}),
        ("adam", {"optimizer_state": "reset", "last": "drop"}),
        ("adam", {"iterations": 5, "batch": 16}),
        ("sgd", {"iterations": 1}),
        ("sgd", {"batch": 100}),
    ],
    ids=str,
)
@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_finetuning_is_a_plain_loop(scenario: str, name: str, options: dict[str, Any]) -> None:
    stream, training, seed = uneven(scenario), short(**options), 4
    optimizer, make = OPTIMIZERS[name]
    rates = Cosine(floor=0.1) if name == "adam" else Constant()
    alone = learners(Finetune(), [stream], [seed], training, optimizer, rates)
    theta = alone.theta.clone()
    got = outcome(alone, training)
    wanted = plain_training(stream, training, seed, theta, make, rates)
    np.testing.assert_allclose(got["loss"], wanted["loss"], rtol=1e-7)
    torch.testing.assert_close(got["θ"], wanted["θ"], rtol=1e-7, atol=1e-9)
    for rows in ("accuracy", "training_accuracy"):
        np.testing.assert_allclose(got[rows], wanted[rows], atol=1e-12, err_msg=rows)
    assert got["accuracy"].shape == (4, 3) and got["stored_samples"].tolist() == [0, 0, 0]
    assert not torch.equal(theta, got["θ"])


def test_state_that_is_kept_or_reset_and_partial_batches_make_a_difference() -> None:
    found = [
        outcome(learners(Finetune(), [uneven()], [0], training), training)["loss"]
        for training in (short(), short(optimizer_state="reset"), short(last="drop"))
    ]
    first = short().steps(sum(COUNTS[:2]))
    assert torch.equal(found[0][:first], found[1][:first]) and not torch.equal(found[0][first:], found[1][first:])
    assert [len(losses) for losses in found] == [2 * (3 + 3 + 4), 2 * (3 + 3 + 4), 2 * (2 + 2 + 3)]


class Heads(torch.nn.Module):
    """A body, and for each task a head of its own, as loops usually have it."""

    def __init__(self, theta: torch.Tensor, units: int) -> None:
        super().__init__()
        whole = module(theta, units)
        self.body, self.heads = whole[:3], torch.nn.ModuleList()
        for own in TASKS:
            head = torch.nn.Linear(HIDDEN, len(own)).double()
            head.load_state_dict({name: value[own] for name, value in whole[3].state_dict().items()})
            self.heads.append(head)

    def joined(self) -> torch.Tensor:
        """θ, as one head of all outputs has it."""
        parts = [torch.cat([getattr(head, name) for head in self.heads]) for name in ("weight", "bias")]
        order = torch.tensor(list(itertools.chain(*TASKS))).argsort()
        return torch.nn.utils.parameters_to_vector([*self.body.parameters(), *(part[order] for part in parts)]).detach()


HELD = {
    "sgd": (SGD(lr=0.1, momentum=0.9, weight_decay=0.05), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}, "keep"),
    "adamw": (AdamW(lr=0.01, weight_decay=0.1), {"lr": 0.01, "weight_decay": 0.1}, "reset"),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("numbers", [[4], [4, 5]], ids=str)
def test_outputs_that_are_not_used_are_held_as_heads_without_a_gradient(name: str, numbers: list[int]) -> None:
    """PyTorch's optimisers leave alone what has no gradient, and so does ``hold``; ``move`` does not."""
    (ours, options, state), found = HELD[name], dict[str, torch.Tensor]()
    training = short(optimizer_state=state, batch=4)
    for how in ("hold", "move"):
        group = learners(Finetune(), [uneven("task") for _ in numbers], numbers, training, ours)
        group.recipe, start = replace(group.recipe, holds=how == "hold"), group.theta.reshape(len(numbers), -1).clone()
        found[how] = outcome(group, training)["θ"].reshape(len(numbers), -1)
    for r, seed in enumerate(numbers):
        net, stream = Heads(start[r], 6), uneven("task")
        optimizer = getattr(torch.optim, type(ours).__name__)(net.parameters(), **options)
        for index, task in enumerate(stream.tasks):
            if index and state == "reset":
                optimizer.state.clear()
            for rows in schedule(task.train, training, torch.tensor(seed), index):
                images = stream.samples.image[rows].tolist()
                logits = net.heads[index](net.body(torch.from_numpy(X[images]).double() / 255))
                y = torch.tensor([TASKS[index].index(int(label)) for label in Y[images]])
                optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.cross_entropy(logits, y).backward()
                optimizer.step()
        torch.testing.assert_close(found["hold"][r], net.joined(), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found["move"][r], net.joined(), atol=1e-3)


@pytest.mark.parametrize("options", [
    {"benchmark": "split-digits:scenario=task", "optimizer": "sgd"},
    {"benchmark": "split-digits:scenario=domain", "optimizer": "adam"},
    {"benchmark": "split-digits:tasks=1", "optimizer": "adam"},
], ids=str)  # fmt: skip
def test_outputs_that_would_not_move_anyway_are_not_held(options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match="unused_outputs=hold does nothing where"):
        cl.run(strategy="finetune", seeds=1, iterations=1, unused_outputs="hold", **options)


def test_outputs_that_are_not_used_are_held_in_a_recorded_step_too() -> None:
    options: dict[str, Any] = {"seeds": 1, "epochs": 4, "optimizer": "sgd:lr=0.1,momentum=0.9,weight_decay=0.01"}
    given = ("split-digits:scenario=task,limit=100", "replay:capacity=20", "unused_outputs")
    one, other, moved = (
        cl.run(*given[:2], program=program, **{given[2]: how}, **options)
        for program, how in (("captured", "hold"), ("eager", "hold"), ("captured", "move"))
    )
    assert torch.equal(torch.from_numpy(one.arrays["loss"]), torch.from_numpy(other.arrays["loss"]))
    assert "recorded" in str(one.record["program"]) or "captured" in str(one.record["program"])
    assert not np.allclose(one.arrays["loss"], moved.arrays["loss"])


# ---- evaluation


@pytest.mark.parametrize("chunk", [4, 2000])
@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_evaluation_is_counting(monkeypatch: pytest.MonkeyPatch, scenario: str, chunk: int) -> None:
    stream = uneven(scenario)
    group = learners(Finetune(), [stream, stream], [0, 1], short())
    widest = group.net.widest(stream.shape) * 8 * 2  # float64, two seeds
    monkeypatch.setattr(seeds, "CACHE", chunk * widest + widest - 1)
    assert group.rows_at_once == chunk
    measured = Evaluation(group, "test_samples", [[task.test for task in stream.tasks]] * 2)
    tests = [[i for i, label in enumerate(Y_TEST) if label in own] for own in TASKS]
    for latest in (-1, 0, 1, 2):
        wanted = [plain_accuracy(module(theta, stream.units), scenario, latest, tests, True) for theta in group.theta]
        np.testing.assert_allclose(measured(latest), wanted, atol=1e-12)


@pytest.mark.parametrize("asked", ["full", "training"])
def test_what_is_measured_in_is_asked_for(monkeypatch: pytest.MonkeyPatch, asked: Any) -> None:
    """Steps are in bfloat16; evaluation is where it is asked for."""
    kinds = {"step": set[torch.dtype](), "evaluation": set[torch.dtype]()}
    plain = LinearNet.forward

    def spied(net: LinearNet, *given: Any) -> Out:
        out = plain(net, *given)
        if not out.logits.is_meta:  # those only count what is held
            kinds["step" if torch.is_grad_enabled() else "evaluation"].add(out.logits.dtype)
        return out

    monkeypatch.setattr(LinearNet, "forward", spied)
    cl.run("split-digits:limit=4", seeds=1, epochs=1, precision="bfloat16", evaluate_precision=asked, device="cpu")
    wanted = {"full": torch.float32, "training": torch.bfloat16}[asked]
    assert kinds == {"step": {torch.bfloat16}, "evaluation": {wanted}}


def test_a_precision_of_evaluation_that_does_nothing_is_refused() -> None:
    with pytest.raises(BadOption, match="evaluate_precision=training does nothing with precision=float32"):
        Training(evaluate_precision="training")


def test_a_task_without_rows_is_nan_and_changes_nothing_else() -> None:
    stream = uneven()
    alone = learners(Finetune(), [stream], [0], short())
    rows = [task.test for task in stream.tasks]
    full, some = (Evaluation(alone, "test_samples", [r])(2) for r in (rows, [rows[0], rows[1][:0], rows[2]]))
    assert some[1].isnan() and torch.equal(some[[0, 2]], full[[0, 2]])


def test_the_tasks_that_predict_is_told() -> None:
    told: list[tuple[int, list[int]]] = []

    @dataclass(frozen=True)
    class Listening(Strategy):
        def predict(self, net: Any, theta: Any, memory: Memory, x: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
            told.append((int(tasks.min()), tasks.unique().tolist()))
            return super().predict(net, theta, memory, x, tasks)

    for scenario, wanted in (("task", [0, 1, 2]), ("class", [1]), ("domain", [1])):
        stream = uneven(scenario)
        alone = learners(Listening(), [stream], [0], short())
        Evaluation(alone, "test_samples", [[task.test for task in stream.tasks]])(1)
        assert told[-1][1] == wanted, scenario


def test_outputs_in_evaluation_may_be_those_of_a_sample_s_own_task() -> None:
    x, y = np.zeros((12, 1, 2, 2), np.uint8), np.arange(12) % 6

    @dataclass(frozen=True)
    class Odd(Strategy):
        """Odd classes, the later the surer."""

        def predict(self, net: Any, theta: Any, memory: Memory, x: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.0, 1, 0, 2, 0, 3]).expand(len(x), 6)

    for outputs, wanted in (("task", [0.5, 0.5, 0.5]), ("all", [0, 0, 0.5])):
        stream = Stream.from_arrays(x, y, x, y, tasks=3, test_outputs=outputs)
        assert cl.run(stream, Odd(), seeds=1, model="mlp:layers=2").accuracy[0, -1].tolist() == wanted


def test_the_trace_is_what_training_that_stops_there_gives() -> None:
    full = short(iterations=5, evaluate_every=2, batch=4)
    stream = uneven()
    found = outcome(learners(Finetune(), [stream], [3], full), full)
    assert found["trace_task"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert found["trace_step"].tolist() == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    for row, at, index in zip(found["trace"], found["trace_step"].tolist(), found["trace_task"].tolist(), strict=True):
        alone = learners(Finetune(), [stream], [3], full)
        tests = Evaluation(alone, "test_samples", [[task.test for task in stream.tasks]])
        done = 0
        for task in range(index + 1):
            batches = schedule(alone.begin(task), full, alone.seed, task)
            program = Program(alone, task, batches)
            for number, rows in enumerate(batches[: at - done]):
                program(number, rows)
            done += len(batches)
            alone.end(task)
        wanted = tests(index)
        assert torch.equal(row[: index + 1], wanted[: index + 1]) and row[index + 1 :].isnan().all()
    torch.testing.assert_close(found["trace"][-1], found["accuracy"][-1])


def test_the_trace_can_measure_some_of_the_rows_and_changes_no_training() -> None:
    stream = uneven()
    plain = outcome(learners(Finetune(), [stream], [3], short()), short())
    traced = short(evaluate_every=3, evaluate_samples=4)
    found = outcome(learners(Finetune(), [stream], [3], traced), traced)
    compare(found, plain, "measuring should not change training")
    values = found["trace"][~found["trace"].isnan()] * 4
    torch.testing.assert_close(values, values.round())
    assert "trace" not in plain


@pytest.mark.parametrize(("rows", "n"), [(10, 3), (10, 10), (10, 12), (7, 1), (5, 0), (9, 4)])
def test_rows_are_spread_evenly(rows: int, n: int) -> None:
    got = some(torch.arange(rows) + 100, n).tolist()
    assert got == [100 + i * rows // n for i in range(n)] if n < rows else got == list(range(100, 100 + rows))


@pytest.mark.parametrize(("layers", "count"), [((8,), 1), ((8,), 3), ((850, 850), 1), ((850, 850), 4),
                                               ((1600, 1600), 1), ((5000, 5000), 1)])  # fmt: skip
def test_a_gpus_optimiser_is_given_all_of_theta_in_pieces(
    layers: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number once, and of the gradient those that belong to them, joined before or not."""
    group = learners(Finetune(), [uneven()] * count, list(range(count)), short(), layers=layers)
    monkeypatch.setattr(group, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    group._take_storage(torch.zeros_like(group.theta))
    for piece in group.pieces:
        piece.add_(1)
    assert (group.theta == 1).all()
    assert count == 1 or group.theta.stride(0) % 64 == 0
    large = [piece.numel() for piece in group.pieces if piece.numel() > 1000]
    assert len(large) <= 2 * 132 and (max(large, default=0) <= 2**16 or group.theta.numel() > 2 * 132 * 2**16)
    parts = [torch.randn(part.shape, dtype=part.dtype) for part in group.parts]
    parts[1] = parts[1][..., :1].expand_as(parts[1])  # as the gradient of a sum of biases lies
    joined = torch.cat([part.reshape(count, -1) for part in parts], -1).view(group.theta.shape)
    for gradient in (seeds.Gradient(parts, None, group.gap), group.cut(joined)):
        for piece, given in zip(group.pieces, group._cut_up(gradient), strict=True):
            assert piece.shape == given.shape and piece.stride() == given.stride()
            piece.copy_(given)
        assert torch.equal(group.theta, joined) and torch.equal(gradient.whole, joined)


def test_training_and_validation_accuracy_are_of_their_own_rows() -> None:
    training = short(train_samples=1000)
    stream = uneven(validation=0.3)
    alone = learners(Finetune(), [stream], [0], training)
    found = outcome(alone, training)
    net = module(found["θ"], stream.units)
    for name, sets in (
        ("training_accuracy", [task.train for task in stream.tasks]),
        ("validation_accuracy", [task.validation for task in stream.tasks]),
    ):
        images = [stream.samples.image[rows].tolist() for rows in sets]
        np.testing.assert_allclose(found[name][-1], plain_accuracy(net, "class", 2, images, False), atol=1e-12)
        assert found[name].shape == (4, 3)
    without = short(train_samples=0)
    bare = outcome(learners(Finetune(), [uneven()], [0], without), without)
    assert "training_accuracy" not in bare and "validation_accuracy" not in bare


@pytest.mark.parametrize("numbers", [[0], [0, 1]], ids=str)
def test_task_aware_accuracy_is_that_of_the_own_outputs(numbers: list[int]) -> None:
    """Of the same network: by a loop, and as a run is measured whose outputs in tests are the task's."""
    training, images = short(task_aware=True), [[i for i, label in enumerate(Y_TEST) if label in own] for own in TASKS]
    streams, told = [uneven() for _ in numbers], [uneven(test_outputs="task") for _ in numbers]
    found = outcome(learners(Finetune(), streams, numbers, training), training)
    other = outcome(learners(Finetune(), told, numbers, training), short())
    assert torch.equal(found["θ"], other["θ"]) and "task_aware_accuracy" not in other
    assert torch.equal(found["task_aware_accuracy"], other["accuracy"])
    assert not torch.equal(found["task_aware_accuracy"], found["accuracy"])
    if len(numbers) == 1:
        wanted = plain_accuracy(module(found["θ"], streams[0].units), "task", 2, images, True)
        np.testing.assert_allclose(found["task_aware_accuracy"][-1], wanted, atol=1e-12)


@pytest.mark.parametrize("options", ["scenario=task", "scenario=domain", "test_outputs=task"])
def test_task_aware_accuracy_that_would_be_the_same_is_refused(options: str) -> None:
    with pytest.raises(BadOption, match=r"task_aware does nothing where .* has all active outputs anyway"):
        cl.run(f"split-digits:limit=5,{options}", "finetune", seeds=1, iterations=1, task_aware=True)


def test_validation_rows_are_never_learnt() -> None:
    stream = uneven(validation=0.3)
    held = set(torch.cat([task.validation for task in stream.tasks]).tolist())
    for task in stream.tasks:
        batches = schedule(task.train, short(), torch.tensor(0), task.index)
        assert not held & set(torch.cat(batches).tolist())


# ---- the schedule


@pytest.mark.parametrize(
    ("n", "options", "sizes"),
    [
        (20, {"epochs": 2}, [8, 8, 4] * 2),
        (20, {"epochs": 3, "last": "drop"}, [8, 8] * 3),
        (16, {"epochs": 2}, [8, 8] * 2),
        (16, {"epochs": 2, "last": "drop"}, [8, 8] * 2),
        (5, {"epochs": 2}, [5, 5]),
        (5, {"epochs": 2, "last": "drop"}, [5, 5]),
        (20, {"iterations": 4}, [8, 8, 4, 8]),
        (20, {"iterations": 5, "last": "drop"}, [8] * 5),
        (20, {"iterations": 1}, [8]),
        (1, {"epochs": 1}, [1]),
    ],
    ids=str,
)
def test_the_sizes_of_batches(n: int, options: dict[str, Any], sizes: list[int]) -> None:
    training = short(**options)
    batches = schedule(torch.arange(n) + 50, training, torch.tensor(3), 1)
    assert [len(batch) for batch in batches] == sizes and training.steps(n) == len(sizes)
    assert all(len(set(batch.tolist())) == len(batch) for batch in batches)


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    rows = torch.tensor([3, 9, 27, 81, 5, 7, 11, 13, 17, 19, 23])
    epochs = torch.cat(schedule(rows, short(epochs=6), torch.tensor(3), 1)).reshape(6, 11).tolist()
    assert all(sorted(epoch) == sorted(rows.tolist()) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    dropped = torch.stack(schedule(rows, short(epochs=200, last="drop"), torch.tensor(3), 1))
    left_out = Counter(rows.tolist() * 200) - Counter(dropped.flatten().tolist())
    assert len(left_out) == 11 and sum(left_out.values()) == 600, "no row is left out for good"


def test_rows_that_are_not_shuffled_come_as_the_data_has_them() -> None:
    rows = torch.tensor([9, 3, 27, 81, 5, 7, 11, 13, 17, 19, 23])
    found = schedule(rows, short(epochs=2, shuffle=False), torch.tensor(3), 1)
    assert [batch.tolist() for batch in found] == [rows[:8].tolist(), rows[8:].tolist()] * 2
    group = schedule(torch.stack([rows, rows + 1]), short(epochs=1, shuffle=False), torch.arange(2), 1)
    assert torch.equal(torch.cat(group, -1), torch.stack([rows, rows + 1]))


def test_the_order_of_rows_depends_on_seed_task_and_nothing_else() -> None:
    rows = torch.arange(20)

    def order(seed: int, index: int, **options: Any) -> tuple[int, ...]:
        return tuple(torch.cat(schedule(rows, short(**options), torch.tensor(seed), index)).tolist())

    assert order(3, 1) == order(3, 1) == order(3, 1, batch=5)
    assert order(3, 1, epochs=3)[:40] == order(3, 1)
    assert order(3, 1, iterations=2) == order(3, 1)[:16]
    assert len({order(seed, index) for seed in range(4) for index in range(3)}) == 12
    group = schedule(rows.expand(4, -1), short(), torch.arange(4), 1)
    for seed in range(4):
        assert tuple(torch.cat([batch[seed] for batch in group]).tolist()) == order(seed, 1)


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [2**31], "3-3"])
def test_seeds_that_are_refused(seeds: Any) -> None:
    with pytest.raises(BadOption, match="seeds"):
        Training.read({"seeds": seeds})
    assert Training(seeds=3).seed_list == [0, 1, 2] and Training.read({"seeds": "7-"}).seed_list == [7]


# ---- seeds


STRATEGIES: list[Strategy] = [
    Finetune(), EWC(strength=10), L2(), SI(), Joint(), Replay(capacity=7),
    Replay(capacity=7, fill="reservoir", samples=3),
    Chain((EWC(), Replay(capacity=6))),
]  # fmt: skip


@pytest.mark.parametrize("shown", ["shared", "permuted"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_mapped_seeds_are_looped_seeds(strategy: Strategy, shown: str) -> None:
    seeds, training = [0, 1, 5], short(evaluate_every=4)
    options = {"validation": 0.2}
    streams = [uneven(**options).stream(seed) if shown == "shared" else permutations(seed, **options) for seed in seeds]
    group = learners(strategy, streams, seeds, training)
    assert group.mapped and group.shared == (shown == "shared")
    assert bool(group.tables("samples")) == (shown == "permuted")
    together = outcome(group, training)
    assert {"trace", "validation_accuracy", "training_accuracy"} <= set(together)
    for r, seed in enumerate(seeds):
        alone = outcome(learners(strategy, [streams[r]], [seed], training), training)
        got = {name: value if name in ("trace_task", "trace_step") else value[r] for name, value in together.items()}
        compare(got, alone, f"seed {seed} in a group and alone")
    assert not torch.allclose(together["loss"][0], together["loss"][1])


@pytest.mark.parametrize("strategy", [Finetune(), Replay(capacity=7, fill="reservoir")], ids=repr)
def test_a_seeds_result_does_not_depend_on_the_others(strategy: Strategy) -> None:
    training, found = short(), {}
    for group in ([0, 1, 2], [2, 0], [1, 2, 7]):
        together = outcome(learners(strategy, [permutations(seed) for seed in group], group, training), training)
        for r, seed in enumerate(group):
            got = {name: value[r] for name, value in together.items()}
            compare(got, found.setdefault(seed, got), f"seed {seed} among {group}")


@pytest.mark.parametrize("pooled", [1, 3])
def test_random_numbers_drawn_in_bulk_change_nothing(monkeypatch: pytest.MonkeyPatch, pooled: int) -> None:
    strategy, training = Replay(capacity=7, fill="reservoir"), short()
    streams = [small_stream(seed) for seed in range(2)]
    usual = outcome(learners(strategy, streams, [0, 1], training), training)
    for module in (capture, step):
        monkeypatch.setattr(module, "POOLED_STEPS", pooled)
    compare(outcome(learners(strategy, streams, [0, 1], training), training), usual, "with another pool")
    monkeypatch.setattr(Program, "_pool", lambda self, number: {})
    compare(outcome(learners(strategy, streams, [0, 1], training), training), usual, "without a pool")


def test_lists_of_tensors_are_equal_where_all_of_them_are() -> None:
    a, b = torch.arange(4), torch.ones(2, 3)
    assert all_equal([[a, b]]) and all_equal([[a, b], [a, b.clone()], [a.clone(), b]])
    other = b.clone()
    other[1, 2] = 0
    assert not all_equal([[a, b], [a, b.clone()], [a.clone(), other]])
    assert not all_equal([[a, b], [a[:3], b]]) and not all_equal([[a, b], [a, b[:1]]])


def test_seeds_with_tasks_of_other_sizes_cannot_be_mapped() -> None:
    streams = [uneven(order=order) for order in ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0))]
    group = learners(Finetune(), streams, [0, 1], short())
    with pytest.raises(BadChain, match="seeds_as=loop"):
        group.begin(0)


def test_watch_is_told_of_every_step() -> None:
    told: list[tuple[int, int, int]] = []
    training = short(iterations=2)
    train(learners(Finetune(), [uneven()], [0], training), training, Watch(lambda *where: told.append(where)))
    assert told == [(task, number, 2) for task in range(3) for number in range(2)]


# ---- a seed that is lost


@dataclass(frozen=True)
class Failing(Strategy):
    """Fine-tuning that, for one seed, loses its loss or its θ at one step of one task."""

    seed: int = 1
    task: int = 1
    step: int = 2
    theta_only: bool = False

    def init(self, net: Any, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"bad": stream.tasks[0].key.seed == self.seed}

    def _now(self, memory: Memory, batch: Batch, task: Task) -> torch.Tensor:
        return memory["bad"] & (batch.key.step == self.step) & (task.index == self.task)

    def loss(self, net: Any, theta: Any, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        loss = super().loss(net, theta, memory, batch, out, task)
        return loss if self.theta_only else loss * torch.where(self._now(memory, batch, task), torch.nan, 1.0)

    def gradient(
        self, net: Any, theta: Any, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        if not self.theta_only:
            return gradient
        return gradient * torch.where(self._now(memory, batch, task), torch.inf, 1.0)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.02)], ids=repr)
@pytest.mark.parametrize(("task", "at"), [(0, 0), (1, 2), (2, 1)])
def test_a_lost_seed_is_named_and_the_others_go_on(task: int, at: int, optimizer: Optimizer) -> None:
    training, seeds = short(epochs=1, evaluate_every=2), [0, 1, 2]
    streams = [uneven(validation=0.2).stream(seed) for seed in seeds]
    group = learners(Failing(task=task, step=at), streams, seeds, training, optimizer)
    found, stopped = train(group, training, Watch())
    assert stopped == [Stopped(seed=1, task=task + 1, step=at + 1)]
    assert group.alive == [True, False, True]
    for name in ("accuracy", "training_accuracy", "validation_accuracy"):
        assert found[name][1, : task + 1].isfinite().all(), "it was measured before it was lost"
        assert found[name][1, task + 1 :].isnan().all(), name
    for r in (0, 2):
        whole = learners(Finetune(), [streams[r]], [seeds[r]], training, optimizer)
        alone, _ = train(whole, training, Watch())
        got = {name: found[name][r] for name in alone if name not in ("trace_task", "trace_step")}
        compare(got, {name: alone[name] for name in got}, f"seed {seeds[r]} beside a lost one")
        assert got["accuracy"].isfinite().all() and got["loss"].isfinite().all()


def test_a_lost_seed_takes_no_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    done, usual = list[int](), Program.step

    def noted(program: Program, *given: Any) -> torch.Tensor:
        done.append(program.task.index)
        return usual(program, *given)

    monkeypatch.setattr(Program, "step", noted)
    training = short(epochs=1, program="eager")
    found, stopped = train(learners(Failing(task=1, step=2), [uneven().stream(1)], [1], training), training, Watch())
    assert len(stopped) == 1 and found["loss"][-1].isnan()
    assert Counter(done) == {t: training.steps(len(uneven().tasks[t].train)) for t in (0, 1)}


@pytest.mark.parametrize("mapped", [False, True])
def test_the_trace_of_a_lost_seed_is_nan_from_where_it_was_given_up(mapped: bool) -> None:
    training = short(epochs=1, evaluate_every=1)
    seeds = [0, 1] if mapped else [1]
    streams = [uneven().stream(seed) for seed in seeds]
    found, _ = train(learners(Failing(task=1, step=2), streams, seeds, training), training, Watch())
    trace = found["trace"][1] if mapped else found["trace"]
    later = found["trace_task"] > 1
    assert later.any() and trace[later].isnan().all(), "nothing of it is used after it was stopped"
    assert trace[found["trace_task"] == 0, 0].isfinite().all()


def test_a_seed_whose_parameters_alone_are_lost_is_given_up_at_the_next_step_or_the_last() -> None:
    training = short(epochs=1)
    steps = training.steps(len(uneven().tasks[1].train))
    for at, named in ((0, 2), (steps - 2, steps), (steps - 1, steps)):
        streams = [uneven().stream(seed) for seed in (0, 1)]
        strategy = Failing(task=1, step=at, theta_only=True)
        found, stopped = train(learners(strategy, streams, [0, 1], training), training, Watch())
        assert stopped == [Stopped(seed=1, task=2, step=named)]
        assert found["accuracy"][1, 2:].isnan().all() and found["accuracy"][0].isfinite().all()


@dataclass(frozen=True)
class Overflowing(Failing):
    """One seed's parameters become so large in a step that its answers are no numbers; a hook may fail of it."""

    theta_only: bool = True
    hook: str = ""

    def gradient(
        self, net: Any, theta: Any, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return gradient * (1 + 1e200 * self._now(memory, batch, task).to(gradient.dtype))

    def _asked(self, hook: str, net: Net, theta: torch.Tensor, task: Task) -> None:
        rows = task.train[:3]
        if hook == self.hook and not net.logits(theta, task.samples.images(rows, theta.dtype)).isfinite().all():
            raise ZeroDivisionError("nothing is left to be divided by")

    def before_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> Any:
        self._asked("before_task", net, theta, task)
        return theta, memory

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> Any:
        self._asked("after_task", net, theta, task)
        return theta, memory


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("hook", ["before_task", "after_task", ""])
def test_a_seed_whose_answers_are_no_numbers_is_given_up(hook: str, mapped: bool) -> None:
    """Also where it is a hook between tasks that finds out; what it raises is an error for the others."""
    training, seeds = short(epochs=1), [0, 1] if mapped else [1]
    streams = [uneven().stream(seed) for seed in seeds]
    steps = training.steps(len(streams[-1].tasks[1].train))
    group = learners(Overflowing(step=steps - 1, hook=hook), streams, seeds, training, SGD(lr=0.1))
    found, stopped = train(group, training, Watch())
    assert stopped == [Stopped(seed=1, task=2, step=steps, why="answers not finite")]
    accuracy, loss = (found[name][-1] if mapped else found[name] for name in ("accuracy", "loss"))
    until = sum(training.steps(len(task.train)) for task in streams[-1].tasks[:2])
    assert accuracy[:2].isfinite().all() and accuracy[2:].isnan().all()
    assert loss[:until].isfinite().all() and loss[until:].isnan().all()
    if mapped:
        alone = learners(Finetune(), streams[:1], [0], training, SGD(lr=0.1))
        wanted, _ = train(alone, training, Watch())
        compare({name: found[name][0] for name in wanted}, wanted, "the other seed")


@pytest.mark.parametrize("hook", ["before_task", "after_task"])
def test_what_a_hook_raises_is_raised_where_answers_are_numbers(hook: str) -> None:
    def fails(*given: Any) -> Any:
        raise ZeroDivisionError("of another reason")

    mine = type("Mine", (Strategy,), {hook: fails})()
    with pytest.raises(ZeroDivisionError, match="of another reason"):
        outcome(learners(mine, [uneven()], [0], short()), short())


def test_a_lost_seed_has_as_much_to_do_as_the_others() -> None:
    """It stores nothing any more, and rows come from what is stored."""
    training, seeds = short(epochs=1), [0, 1, 2]
    streams = [uneven().stream(seed) for seed in seeds]
    strategy = Chain((Failing(task=0, step=1), Rehearsal(capacity=9)))
    group = learners(strategy, streams, seeds, training)
    found, stopped = train(group, training, Watch())
    assert stopped == [Stopped(seed=1, task=1, step=2)]
    assert found["stored_samples"].tolist() == [[9, 8, 9], [0, 0, 0], [9, 8, 9]]
    for r in (0, 2):
        alone, _ = train(learners(strategy, [streams[r]], [seeds[r]], training), training, Watch())
        compare({name: found[name][r] for name in alone}, alone, f"seed {seeds[r]} beside a lost one")


@pytest.mark.parametrize("seeds_as", ["loop", "map"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_seed_that_has_less_to_do_is_measured_beside_the_others(seeds_as: str, lost: int) -> None:
    """By itself it has fewer steps from then on, as it stores nothing."""
    strategy = Chain((Failing(seed=lost, task=0, step=1), Rehearsal(capacity=25)))
    asked: dict[str, Any] = {"epochs": 1, "batch": 16, "evaluate_every": 3, "model": "mlp:layers=8"}
    result = cl.run("split-digits:limit=20", strategy, seeds=2, seeds_as=seeds_as, **asked)
    alone = cl.run("split-digits:limit=20", strategy, seeds=[1 - lost], **asked)
    assert [one["seed"] for one in result.record["stopped"]] == [lost] and result.trace is not None
    for name in ("trace_step", "trace_task"):
        np.testing.assert_array_equal(result.arrays[name], alone.arrays[name])
    np.testing.assert_allclose(result.trace[1 - lost], alone.arrays["trace"][0], atol=0.02)
    assert np.isnan(result.trace[lost]).all() and result.arrays["stored_samples"][lost].tolist() == [0] * 5


class Unmet(Strategy):
    """Its answers are no numbers, or infinite, for classes that no task has brought."""

    def __init__(self, answer: float) -> None:
        self.answer = answer

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"met": torch.zeros(stream.units, dtype=torch.bool)}

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> Any:
        return theta, {"met": memory["met"] | task.own_units}

    def predict(self, net: Net, theta: torch.Tensor, memory: Memory, x: torch.Tensor, tasks: torch.Tensor) -> Any:
        return net.logits(theta, x, tasks).masked_fill(~memory["met"], self.answer)


@pytest.mark.parametrize(("answer", "lost"), [(torch.nan, True), (torch.inf, True), (-torch.inf, False)])
def test_answers_about_what_was_not_learnt_stop_nobody(answer: float, lost: bool) -> None:
    """Where the task is told, they are of tasks that come; where all outputs are active, of what was learnt, too."""
    told, _ = train(learners(Unmet(answer), [uneven("task")], [0], short()), short(), Watch())
    usual, _ = train(learners(Finetune(), [uneven("task")], [0], short()), short(), Watch())
    learnt = torch.ones(3, 3).tril().bool()
    assert torch.equal(told["accuracy"][1:][learnt], usual["accuracy"][1:][learnt])
    assert told["accuracy"].isfinite().all()
    stream = replace(uneven(), test_outputs=replace(uneven().test_outputs, active="all"))
    found, stopped = train(learners(Unmet(answer), [stream], [0], short()), short(), Watch())
    assert bool(stopped) is lost and bool(found["accuracy"][1:].isnan().all()) is lost


def test_a_lost_seed_alone_and_a_learning_rate_that_loses_all() -> None:
    training = short(epochs=1)
    alone = learners(Failing(), [uneven().stream(1)], [1], training)
    found, stopped = train(alone, training, Watch())
    assert stopped == [Stopped(1, 2, 3)]
    assert found["accuracy"][:2].isfinite().all() and found["accuracy"][2:].isnan().all()
    wild = learners(Finetune(), [uneven(), uneven()], [4, 7], training, SGD(lr=1e200))
    found, stopped = train(wild, training, Watch())
    assert [(one.seed, one.task) for one in stopped] == [(4, 1), (7, 1)]
    assert found["accuracy"][:, 1:].isnan().all() and found["accuracy"][:, 0].isfinite().all()


def test_nothing_of_a_lost_seed_is_passed_to_the_hooks_between_tasks() -> None:
    seen: list[tuple[int, int]] = []

    @dataclass(frozen=True)
    class Noting(Failing):
        def after_task(self, net: Any, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
            assert theta.isfinite().all()
            seen.append((task.index, int(task.key.seed)))
            return theta, memory

    training = short(epochs=1)
    train(learners(Noting(), [uneven().stream(s) for s in (0, 1)], [0, 1], training), training, Watch())
    assert seen == [(0, 0), (0, 1), (1, 0), (2, 0)]


# ---- precision


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("strategy", [Finetune(), EWC(), Replay(capacity=7)], ids=repr)
def test_bfloat16_is_near_float32_and_float32_near_float64(strategy: Strategy, mapped: bool) -> None:
    seeds = [0, 1] if mapped else [0]
    found = {}
    for precision in ("float64", "float32", "bfloat16"):
        training = short(precision=precision, epochs=1)
        streams = [uneven("task").stream(seed) for seed in seeds]
        group = learners(strategy, streams, seeds, training, SGD(lr=0.05))
        found[precision] = outcome(group, training)
        wanted = torch.float64 if precision == "float64" else torch.float32
        assert group.theta.dtype == found[precision]["loss"].dtype == wanted
        assert found[precision]["accuracy"].dtype == torch.float64, "counts divided by counts"
    exact, single, half = (found[name]["loss"].double() for name in ("float64", "float32", "bfloat16"))
    torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.03)
    assert (half - exact).abs().max() > 10 * (single - exact).abs().max(), "the forward pass is in bfloat16"


# ---- a step asks the device for nothing


def asked_in_training(group: Learners, training: Training, tasks: int) -> set[str]:
    """The operations that would wait for a device in the steps of the first tasks."""
    found: set[str] = set()
    for index in range(tasks):
        batches = schedule(group.begin(index), training, group.seed, index)
        program = Program(group, index, batches)
        with Asked() as asked:
            for number, rows in enumerate(batches):
                program(number, rows)
        found |= asked.found.keys()
        group.end(index)
    return found


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "mapped"])
@pytest.mark.parametrize("name", plugins.registered("strategies"))
def test_no_step_of_a_registered_strategy_waits_for_the_device(name: str, mapped: bool) -> None:
    strategy: Any = plugins.find("strategies", name)()
    seeds = [0, 1] if mapped else [0]
    group = learners_of(strategy, seeds, [small_stream(seed, "task") for seed in seeds])
    assert asked_in_training(group, short(), 3) == set()


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "mapped"])
def test_no_step_on_tables_that_differ_and_no_chain_waits_for_the_device(mapped: bool) -> None:
    seeds = [0, 1] if mapped else [0]
    strategy = Chain((EWC(), Replay(capacity=6, fill="reservoir"), SI()))
    group = learners(strategy, [permutations(seed) for seed in seeds], seeds, short())
    assert asked_in_training(group, short(), 2) == set()


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "mapped"])
def test_no_evaluation_waits_for_the_device(mapped: bool) -> None:
    seeds = [0, 1] if mapped else [0]
    streams = [permutations(seed) for seed in seeds]
    group = learners(Finetune(), streams, seeds, short())
    measured = Evaluation(group, "test_samples", [[task.test for task in stream.tasks] for stream in streams])
    measured(1)  # the first time after a task, it chooses the rows that it looks at
    with Asked() as asked:
        measured(1)
    assert not asked.found


ASKING: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x[0]),
    "branch": lambda x: 1 if x.sum() > 0 else 0,
    "all": lambda x: bool((x > 0).all()),
    "nonzero": lambda x: x.nonzero(),
    "where with one argument": lambda x: torch.where(x > 0),
    "boolean index": lambda x: x[x > 0],
    "boolean index that is written": lambda x: x.clone().__setitem__(x > 0, torch.ones(2)),
    "boolean index in a tuple": lambda x: x[None][:, x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "unique over a dimension": lambda x: x[None].unique(dim=1),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "bincount": lambda x: x.long().abs().bincount(),
    "index by a tensor of one number": lambda x: [1, 2, 3][x.long()[0]],
    "equal": lambda x: torch.equal(x, x + 1),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long().abs()),
}


@pytest.mark.parametrize("what", ASKING)
def test_asking_is_noticed(what: str) -> None:
    x = torch.tensor([1.0, -2.0, 1.0])
    with Asked() as asked:
        ASKING[what](x)
    assert asked.found, what


NOT_ASKING: dict[str, Callable[[torch.Tensor], Any]] = {
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "index": lambda x: x[torch.tensor([0, 2])],
    "slices": lambda x: (x[1], x[:2], x[None, ..., -1]),
    "index that is written": lambda x: x.clone().index_put((torch.tensor([0]),), torch.tensor(1.0)),
    "gather and sort": lambda x: x.gather(0, x.sort().indices),
    "scatter": lambda x: x.scatter(0, torch.tensor([1]), 3.0),
    "sums": lambda x: (x.sum(), x.mean(), x.argmax(), x @ x),
    "shape": lambda x: x.shape[0] * len(x),
    "mapped": torch.vmap(lambda one: torch.where(one > 0, one, 0.0)),
    "gradient": torch.func.grad(lambda one: one.square().sum()),
    "one_hot with a number of classes": lambda x: torch.nn.functional.one_hot(x.argsort(), 3),
    "boolean index that is written with a number": lambda x: x.clone().__setitem__(x > 0, 0.0),
}


@pytest.mark.parametrize("what", NOT_ASKING)
def test_what_does_not_wait_is_not_accused(what: str) -> None:
    x = torch.tensor([1.0, -2.0, 1.0])
    with Asked() as asked:
        NOT_ASKING[what](x)
    assert not asked.found, what


@dataclass(frozen=True)
class Curious(Strategy):
    """Fine-tuning that looks at a value in its loss."""

    def loss(self, net: Any, theta: Any, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        loss = super().loss(net, theta, memory, batch, out, task)
        return loss * (1.0 if loss > 0 else 2.0)


def test_a_strategy_that_looks_at_its_loss_is_noticed() -> None:
    assert asked_in_training(learners_of(Curious(), [0]), short(), 1)
    assert not asked_in_training(learners_of(Finetune(), [0]), short(), 1)


def test_a_strategy_object_is_not_changed_by_training() -> None:
    strategy = Replay(capacity=7)
    before = replace(strategy)
    outcome(learners(strategy, [uneven()], [0], short()), short())
    assert strategy == before and key(0).wanted == set()


def test_a_trace_after_each_epoch_on_all_kinds_of_rows() -> None:
    training = short(epochs=3, evaluate_every="epoch", evaluate_rows="all", evaluate_samples=None, train_samples=100)
    stream = uneven("class", validation=0.3)
    found = outcome(learners(Finetune(), [stream], [0], training), training)
    per_epoch = [training.epoch(len(task.train)) for task in stream.tasks]
    steps = np.cumsum([size for size in per_epoch for _ in range(3)])
    assert (
        found["trace_step"].tolist() == steps.tolist() and found["trace_task"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    )
    for kind in ("", "training_", "validation_"):
        trace, after = found[f"{kind}trace"], found[f"{kind}accuracy"]
        assert trace.shape == (9, 3)
        for task in range(3):
            torch.testing.assert_close(trace[3 * task + 2, : task + 1], after[task + 1, : task + 1], equal_nan=True)
            assert trace[3 * task : 3 * task + 3, task + 1 :].isnan().all()
    plain = outcome(learners(Finetune(), [stream], [0], replace(training, evaluate_rows="test")),
                    replace(training, evaluate_rows="test"))  # fmt: skip
    assert "training_trace" not in plain and torch.equal(plain["trace"].nan_to_num(), found["trace"].nan_to_num())


def test_tf32_is_refused_on_a_cpu_and_float32_is_float32_on_a_gpu() -> None:
    with pytest.raises(BadOption, match="precision=tf32 is arithmetic of GPUs"):
        cl.run("split-digits", seeds=1, precision="tf32", device="cpu")
    before = torch.backends.cudnn.allow_tf32
    assert before, "PyTorch's default"
    with tensor_float(False):
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    with tensor_float(True):
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before and not torch.backends.cuda.matmul.allow_tf32


class Linear(Strategy):
    """A penalty whose gradient is the same for every weight."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return 0.5 * theta.sum()


@pytest.mark.parametrize("group", [[0], [0, 1]])
def test_a_penalty_that_is_linear_in_theta(group: list[int]) -> None:
    """Its gradient is one number, shown for each weight; with a rate of 0.1 each weight falls by 0.05 more."""
    found = []
    for strategy in (Finetune(), Linear()):
        made = learners_of(strategy, group)
        batches = schedule(made.begin(0), short(), made.seed, 0)
        start = made.theta.clone()
        Program(made, 0, batches)(0, batches[0])
        found.append(made.theta - start)
    torch.testing.assert_close(found[1], found[0] - 0.1 * 0.5)


def test_losses_of_a_seed_that_was_given_up_are_none() -> None:
    result = cl.run("split-digits:limit=20", seeds=2, optimizer="sgd:lr=1e9", seeds_as="map", device="cpu")
    (first,) = {one["step"] for one in result.record["stopped"] if one["seed"] == 0}
    loss = result.arrays["loss"]
    assert len(result.record["stopped"]) == 2 and np.isnan(loss[0, first:]).all() and np.isfinite(loss[0, 0])


def test_what_is_counted_in_bfloat16_is_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,001 rows as many are right as are counted: bfloat16 has eight bits."""
    stream = Stream.from_arrays(*(np.zeros((1001, 1, 2, 2), np.uint8), np.arange(1001) % 2) * 2, tasks=1)
    recipe = Recipe(MLP(layers=(3,)).build((1, 2, 2), 2), Finetune(), SGD(), Constant(), True, "bfloat16",
                    measured_rounded=True)  # fmt: skip
    made = Learners(recipe, [stream], [0])
    (measured,) = Evaluation(made, "test_samples", [[stream.tasks[0].test]])(0).tolist()
    assert measured in (500 / 1001, 501 / 1001)


def test_what_a_trace_lays_out_is_let_go_with_its_task() -> None:
    """A task's rows are those of all tasks so far: kept for each, they would grow with the square of the tasks."""
    group = learners_of(Finetune(), [0])
    course = Course(group, replace(TRAINING, evaluate_every=1, evaluate_samples=None), Watch())
    held = []
    for _ in group.streams[0].tasks:
        course.learn()
        held.append([sum(map(len, one.batches)) for one in course.traced.evaluations.values()])
    assert held == [[16], [32], [48]]


def test_counts_of_right_answers_are_exact_for_any_number_of_tasks_and_rows() -> None:
    """Against a loop over tasks: some have no rows, some have an odd number of them."""
    group = learners_of(Finetune(), [0, 1])
    rows = [[task.test[: 5 * task.index] for task in stream.tasks] for stream in group.streams]
    found = Evaluation(group, "test_samples", rows)(2)
    for r, (stream, own) in enumerate(zip(group.streams, rows, strict=True)):
        assert found[r, 0].isnan()
        for j in (1, 2):
            x, y = stream.test_samples.images(own[j], torch.float64), stream.test_samples.y[own[j]]
            right = group.net.logits(group.theta[r], x).argmax(-1) == y
            assert float(found[r, j]) == float(right.double().mean())


WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("loss", lambda *given: given[4].logits.square().sum(-1), r"float64 \(8,\); it gives numbers \(\), the mean over"),
    ("loss", lambda *given: None, r"a NoneType; it gives numbers \(\)"),
    ("penalty", lambda *given: given[1], r"float64 \(134,\); it gives numbers \(\), one number"),
    ("gradient", lambda *given: given[3][1:], r"float64 \(133,\); it gives numbers \(134,\), one for each parameter"),
    (
        "predict",
        lambda *given: given[0].features(given[1], given[3]),
        r"float64 \(\d+, 8\); .* \(\d+, 6\), a score for",
    ),
    ("predict", lambda *given: given[0].logits(given[1], given[3]).argmax(-1), r"int64 \(\d+,\); it gives numbers"),
    ("after_step", lambda *given: given[1], r"a Tensor; it gives θ and memory: 'return theta, memory'"),
    ("after_step", lambda *given: (given[1][1:], given[2]), r"float64 \(133,\); it gives numbers \(134,\), θ"),
    ("before_task", lambda *given: None, r"a NoneType; it gives θ and memory"),
    ("after_task", lambda *given: (given[1].repeat(2), given[2]), r"float64 \(268,\); it gives numbers \(134,\), θ"),
    ("after_task", lambda *given: (given[2], given[1]), r"\(dict, Tensor\); it gives θ and memory"),
]


@pytest.mark.parametrize("group", [[0], [0, 1]])
@pytest.mark.parametrize(("hook", "given", "told"), WRONG)
def test_what_a_hook_gives_is_looked_at_where_it_gives_it(
    hook: str, given: Callable[..., Any], told: str, group: list[int]
) -> None:
    mine = type("Mine", (Strategy,), {hook: lambda self, *rest: given(*rest)})
    for strategy in (mine(), Chain((L2(), mine()))):
        with pytest.raises(BadChain, match=rf"^Mine\.{hook} gives {told}"):
            train(learners(strategy, [uneven()] * len(group), group, short()), short(), Watch())


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_pair_may_be_a_list_and_memory_any_mapping(kind: type) -> None:
    given = {hook: lambda self, net, theta, memory, *rest: kind((theta, MappingProxyType(memory)))
             for hook in ("before_task", "after_step", "after_task")}  # fmt: skip
    mine = type("Mine", (Strategy,), given | {"init": lambda self, net, theta, stream: {"kept": theta + 1}})
    found, wanted = (outcome(learners(one, [uneven()], [0], short()), short()) for one in (mine(), Strategy()))
    assert all(torch.equal(found[name], value) for name, value in wanted.items()) and "memory kept" in found


def test_scenarios_are_no_text() -> None:
    with pytest.raises(TypeError, match=r"Mine\.scenarios is a text; it is a tuple, as \('task',\)"):
        type("Mine", (Strategy,), {"scenarios": "task"})


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_strategy_is_held_to_its_scenarios(scenario: str) -> None:
    mine = type("Mine", (Strategy,), {"scenarios": ("class", "domain")})
    for strategy in (mine(), Chain((L2(), mine()))):
        if scenario == "task":
            with pytest.raises(BadChain, match="Mine does not work with scenario=task; use scenario=class or"):
                strategy.suits(uneven(scenario), MLP((8,)).build(SHAPE, 6))
        else:
            strategy.suits(uneven(scenario), MLP((8,)).build(SHAPE, 6))


@pytest.mark.parametrize(
    ("every", "epochs", "told"), [(3, 1, 1), (2, 1, 0), (1000, 2, 1), ("epoch", 1, 1), ("epoch", 2, 0), (None, 1, 0)]
)
def test_that_a_task_is_over_before_it_is_measured_is_told(
    every: Any, epochs: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, line: lines.append(line))
    # three steps an epoch
    result = cl.run("split-digits:limit=10", "finetune", seeds=1, batch=8, epochs=epochs, evaluate_every=every)
    assert len([line for line in lines if f"a task has {3 * epochs} steps, so" in line]) == told
    if every:
        assert result.trace_task is not None and (len(result.trace_task) == 5) is bool(told)


@pytest.mark.parametrize("strategy", ["finetune", "slda", "ncm", "cwr*", "icarl:capacity=12", "bic:capacity=24",
                                      "replay:capacity=6", "ewc"])  # fmt: skip
def test_a_tasks_last_accuracies_are_of_what_it_has_become(strategy: str) -> None:
    """Some learn as a task ends; what was measured before that is neither what they know nor what they forget."""
    result = cl.run("split-digits:limit=12,test_limit=8,tasks=3", strategy, seeds=[0, 1], epochs=2, batch=16,
                    evaluate_every=2, evaluate_samples=None, model="mlp:layers=8")  # fmt: skip
    assert result.trace is not None and result.trace_task is not None
    for index in range(3):
        last = np.flatnonzero(result.trace_task == index)[-1]
        np.testing.assert_array_equal(result.trace[:, last, : index + 1], result.accuracy[:, index + 1, : index + 1])


def test_sizes_of_batches_that_were_met_are_noted_for_who_goes_on() -> None:
    """The first of each is not compiled, so that an interrupted run has to know them."""
    training = short(batch=7, epochs=2)
    alone = learners(Finetune(), [uneven()], [0], training)
    batches = schedule(alone.begin(0), training, alone.seed, 0)
    whole = Program(alone, 0, batches)
    for number, rows in enumerate(batches[:3]):
        whole(number, rows)
    notes = whole.notes()
    assert notes["known"] == sorted({len(rows) for rows in batches[:3]})
    other = Program(alone, 0, batches)
    other.go_on(notes)
    assert other.later.known == whole.later.known
    second = Program(alone, 1, schedule(alone.begin(1), training, alone.seed, 1), whole.later)
    second(0, second_rows := schedule(alone.begin(1), training, alone.seed, 1)[0])
    assert second.later.known == {len(second_rows)}, "as of who begins there"


@pytest.mark.parametrize("strategy", ["finetune", "lwf:strength=1000", "icarl:capacity=12", "der:capacity=12"])
def test_losses_in_bfloat16_are_sums_in_full(strategy: str) -> None:
    """The network's numbers have three digits there, and what is made of them has more."""
    found = [cl.run("split-digits:limit=12,tasks=3", strategy, seeds=1, epochs=3, batch=16, model="mlp:layers=8",
                    precision=precision).arrays["loss"][0] for precision in ("float32", "bfloat16")]  # fmt: skip
    assert len(set(found[1].tolist())) > 0.9 * len(found[1]), "not numbers of three digits"
    assert (found[1] > 0).all()
    np.testing.assert_allclose(found[1], found[0], rtol=0.1, atol=0.02)
