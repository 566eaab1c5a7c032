"""avalanche-lib and ours together: streams there and back, our hooks in its loop, its strategies in our table."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.benchmarks.scenarios import benchmark_from_datasets
    from avalanche.training.plugins import EWCPlugin
    from avalanche.training.supervised import Naive

import continual as cl
from continual import config
from continual.avalanche import Plugin, benchmark, loop, stream
from continual.avalanche.loop import Criterion
from continual.avalanche.networks import Functional, plain
from continual.cli import main
from continual.errors import BadChain, BadOption, BadStream, UnknownName
from continual.learning.models import MLP
from continual.learning.modules import Headed, ModuleNet
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.vision import CNN, ResNet18
from continual.results import content
from continual.streams.rng import key
from continual.streams.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore")  # what avalanche-lib and what it imports warn of
HIDDEN, RATE = 7, 0.3
QUICK: dict[str, Any] = {"seeds": 1, "epochs": 1, "batch": 64}
SMALL = "split-digits:tasks=2,limit=40"


def ours(scenario: str = "class", rows: int = 12, side: int = 3, channels: int = 1, **options: Any) -> Stream:
    """Six classes of noisy images in mixed order, in three tasks."""
    numbers = np.random.default_rng(0)
    centres = numbers.integers(0, 200, (6, channels, side, side))
    parts = []
    for count in (rows, 4):
        y = numbers.permutation(np.repeat(np.arange(6), count))
        parts += [(centres[y] + numbers.integers(0, 56, (len(y), channels, side, side))).astype(np.uint8), y]
    return Stream.from_arrays(*parts, **({"tasks": 3, "scenario": scenario} | options))


# ---- streams


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("normalize", ["unit", "standard", "channel"])
def test_there_and_back_is_the_same_stream(scenario: str, normalize: str) -> None:
    given = ours(scenario, channels=2, normalize=normalize, validation=0.25)
    made = benchmark(given)
    back = stream(made)
    assert back.scenario == scenario and back.samples.pixels.dtype == torch.uint8
    assert torch.equal(back.test_outputs.units, given.test_outputs.units)
    for old, new in zip(given.tasks, back.tasks, strict=True):
        assert torch.equal(given.samples.y[old.train], back.samples.y[new.train])
        for samples, fresh, rows, got in (
            (given.samples, back.samples, old.train, new.train),
            (given.test_samples, back.test_samples, old.test, new.test),
        ):
            shown = (fresh.images(got, torch.float64), samples.images(rows, torch.float64))
            torch.testing.assert_close(*shown, rtol=0, atol=2e-6)  # they went through float32
    assert sorted(made.streams) == ["test", "train", "valid"]
    assert len(made.streams["valid"][0].dataset) == len(given.tasks[0].validation) == 6


def test_task_labels_and_classes_are_what_avalanche_lib_says() -> None:
    for scenario, labels in (("task", [0, 1, 2]), ("domain", [0, 0, 0]), ("class", [0, 0, 0])):
        made = benchmark(ours(scenario))
        assert [experience.task_label for experience in made.train_stream] == labels
        x, y, label = made.test_stream[1].dataset[0]
        assert x.shape == (1, 3, 3) and label == labels[1] and y in ({0, 1} if scenario == "domain" else {2, 3})
        assert made.train_stream[1].classes_in_this_experience == ({0, 1} if scenario == "domain" else {2, 3})


def tensors(*experiences: tuple[list[int], int], channels: int = 1, scale: float = 1.0) -> list[Any]:
    """A pair of tensors for each experience: so many samples of these labels."""
    numbers = torch.Generator().manual_seed(0)
    return [
        (torch.rand(n * len(labels), channels, 2, 2, generator=numbers) * scale, torch.tensor(labels).repeat(n))
        for labels, n in experiences
    ]


def theirs(train: list[Any], test: list[Any], labels: list[int]) -> Any:
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=labels)


def test_the_scenario_comes_from_the_task_labels() -> None:
    for labels, groups, scenario, units in (
        ([0, 1], ([0, 1], [0, 1]), "task", 4),
        ([0, 0], ([0, 1], [0, 1]), "domain", 2),
        ([0, 0], ([0, 1], [2, 5]), "class", 4),
        ([0, 0], ([0, 1], [1, 2]), "class", 3),
    ):
        parts = tensors(*((group, 4) for group in groups))
        made = stream(theirs(parts, parts, labels))
        assert made.scenario == scenario and made.units == units
        assert [len(task.train) for task in made.tasks] == [8, 8]
    shared = made.test_outputs.units.tolist()
    assert shared == [[True, True, False], [False, True, True]], "a class that comes again keeps its unit"
    assert stream(theirs(parts, parts, [0, 1]), scenario="class").units == 3
    with pytest.raises(BadStream, match=r"task labels of the experiences are \[\[0\], \[0\], \[1\]\].*give scenario="):
        three = tensors(([0], 2), ([1], 2), ([2], 2))
        stream(theirs(three, three, [0, 0, 1]))


def test_one_test_set_for_all_tests_each_task_on_its_classes() -> None:
    train, test = tensors(([0, 1], 4), ([2, 3], 4)), tensors(([0, 1, 2, 3], 3))
    made = theirs(train, [*test, *test], [0, 0])
    alone = benchmark_from_datasets(
        train=[experience.dataset for experience in made.train_stream], test=[made.test_stream[0].dataset]
    )
    got = stream(alone)
    assert [got.test_samples.y[task.test].unique().tolist() for task in got.tasks] == [[0, 1], [2, 3]]
    assert [len(task.test) for task in got.tasks] == [6, 6]
    with pytest.raises(BadStream, match="3 experiences to train on and 2 to test on"):
        three = tensors(([0], 2), ([1], 2), ([2], 2))
        stream(benchmark_from_datasets(
            train=[one.dataset for one in theirs(three, three, [0] * 3).train_stream],
            test=[one.dataset for one in made.test_stream],
        ))  # fmt: skip
    with pytest.raises(BadStream, match="has no train_stream: it takes a benchmark of avalanche-lib"):
        stream("split-mnist")


def test_images_are_uint8_where_that_loses_nothing() -> None:
    rough = tensors(([0, 1], 40))
    smooth = stream(theirs(rough, rough, [0]))
    assert smooth.samples.pixels.dtype == torch.float32
    levels = [((x * 255).round() / 255, y) for x, y in rough]
    for mean, deviation in ((0.0, 1.0), (0.1307, 0.3081), (0.5, 0.5)):
        given = [((x - mean) / deviation, y) for x, y in levels]
        made = stream(theirs(given, given, [0]))
        assert made.samples.pixels.dtype == torch.uint8
        got = made.samples.images(made.tasks[0].train, torch.float32)
        torch.testing.assert_close(got, given[0][0], rtol=0, atol=1e-6)
    black = [(torch.zeros_like(x), y) for x, y in rough]
    assert not stream(theirs(black, black, [0])).samples.images(torch.arange(3), torch.float32).any()


def test_a_converted_stream_runs_like_any_other(tmp_path: Path) -> None:
    given = ours()
    made = stream(benchmark(given), name="mine", train_outputs="all")
    result = cl.run(made, "replay:capacity=6", **QUICK, out=tmp_path)
    assert result.record["protocol"]["benchmark"]["tasks_sha256"]
    assert (
        result.record["protocol"]["benchmark"] | {"stream": "given", "name": "mine", "train_outputs": "all"}
        == (result.record["protocol"]["benchmark"])
    )
    other = stream(benchmark(ours(tasks=2)), name="mine", train_outputs="all")
    assert other.record["tasks_sha256"] != made.record["tasks_sha256"], "which sample is of which task is recorded"
    with pytest.raises(BadOption, match="shown as they are given"):
        stream(benchmark(given), normalize="standard")


def test_split_mnist_of_avalanche_lib_is_ours(data_root: Path) -> None:
    """Its benchmark of the published files, normalised as it does, has the images and the tasks of ours."""
    from avalanche.benchmarks import SplitMNIST

    made = stream(SplitMNIST(5, return_task_id=True, fixed_class_order=list(range(10)), dataset_root=data_root))
    wanted = config.make_benchmark("split-mnist:scenario=task").stream(0, data_root)
    assert made.scenario == "task" and made.samples.pixels.dtype == torch.uint8
    for got, task in zip(made.tasks, wanted.tasks, strict=True):
        for unit in made.test_outputs.units[task.index].nonzero().squeeze(1):  # its rows are sorted by class
            shown, images = (
                one.images(rows[one.y[rows] == unit][:50], torch.float32)
                for one, rows in ((made.samples, got.train), (wanted.samples, task.train))
            )
            torch.testing.assert_close(shown * 0.3081 + 0.1307, images, rtol=0, atol=1e-6)


# ---- networks


@pytest.mark.parametrize("model", [MLP(layers=(5, 4)), CNN(channels=(4,), units=6), ResNet18(width=4)], ids=str)
def test_a_network_as_a_module_is_the_same_network(model: Any) -> None:
    """Both kinds: an ordinary module, and ours with its parameters cut out; also in what a step does to statistics."""
    net = model.build((1, 8, 8), 3)
    theta = net.initial(key(0), torch.float64)
    x, tasks = torch.rand(9, 1, 8, 8, dtype=torch.float64), torch.zeros(9, dtype=torch.int64)
    for module in (plain(net, theta), Functional(net, theta)):
        module.eval()
        torch.testing.assert_close(module(x), net.logits(theta, x, tasks))
        module.train()
        out, statistics = net.learn(theta, x, tasks)
        torch.testing.assert_close(module(x), out.logits)
        kept = [b.flatten() for name, b in module.named_buffers() if not name.endswith("num_batches_tracked")]
        if statistics is not None:
            torch.testing.assert_close(torch.cat(kept), statistics)
        assert (statistics is None) == (not kept)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_criterion_has_the_loss_of_our_finetuning(scenario: str) -> None:
    given = ours(scenario)
    net = MLP(layers=(4,)).build(given.shape, given.units)
    theta = net.initial(key(1), torch.float64)
    task, criterion = given.tasks[1], Criterion(given.tasks[0].outputs)
    criterion.index = 1
    rows = torch.cat([given.tasks[0].train[:3], task.train[:5]])
    logits = net.logits(theta, given.samples.images(rows, torch.float64))
    shown = task.outputs.apply(logits, 1, given.samples.task[rows])
    y = given.samples.y[rows]
    torch.testing.assert_close(criterion(logits, y), torch.nn.functional.cross_entropy(shown, y))


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(5, momentum=0.3), torch.nn.BatchNorm1d(5, eps=0.1)])
def test_batch_norm_of_ones_own_network_is_the_same_there(layer: torch.nn.Module) -> None:
    """Of features, and with a momentum of its own."""
    net = ModuleNet(lambda: Headed(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), layer), 5, 6))
    theta = net.initial(key(0), torch.float64)
    x, tasks = torch.rand(7, 1, 4, 4, dtype=torch.float64), torch.zeros(7, dtype=torch.int64)
    module = plain(net, theta).train()
    out, statistics = net.learn(theta, x, tasks, False)
    torch.testing.assert_close(module(x), out.logits)
    moved = [value.flatten() for name, value in module.named_buffers() if name.rpartition(".")[2].startswith("running")]
    torch.testing.assert_close(torch.cat(moved), statistics)
    after = torch.cat([theta[:-10], statistics])
    torch.testing.assert_close(module.eval()(x), net.logits(after, x, tasks))


# ---- our hooks in its loop


def learners(strategy: Any, given: Stream, momentum: float = 0.0, model: Any = None) -> Learners:
    net = (model or MLP(layers=(HIDDEN,))).build(given.shape, given.units, len(given.tasks))
    recipe = Recipe(net, config.make_strategy(strategy), SGD(lr=RATE, momentum=momentum), Constant(), True, "float64")
    return Learners(recipe, [given], [0])


def both(strategy: str, given: Stream, epochs: int = 2, size: int = 8, model: Any = None) -> tuple[Any, Learners]:
    """Trained over all tasks in avalanche-lib's loop and in ours, on the same batches: equal after each task."""
    alone = learners(strategy, given, momentum=0.5, model=model)
    plugin = Plugin(strategy, given, model or MLP(layers=(HIDDEN,)), torch.float64)
    criterion = Criterion(given.tasks[0].outputs)
    naive = Naive(
        model=plugin.model, optimizer=torch.optim.SGD(plugin.model.parameters(), RATE, momentum=0.5),
        criterion=criterion, train_mb_size=size, train_epochs=epochs, eval_mb_size=7, plugins=[plugin], evaluator=None,
    )  # fmt: skip
    torch.testing.assert_close(plugin.hooks.theta(), alone.theta)
    for index, experience in enumerate(plugin.benchmark.train_stream):
        criterion.index = index
        naive.train(experience, shuffle=False)
        batches = alone.begin(index).split(size) * epochs
        program = Program(alone, index, batches)
        for number, rows in enumerate(batches):
            program(number, rows)
        alone.end(index)
        torch.testing.assert_close(plugin.hooks.theta(), alone.theta, rtol=1e-8, atol=1e-10)
        for name, value in alone.memory.items():
            torch.testing.assert_close(plugin.memory[name], value, rtol=1e-7, atol=1e-9)
        naive.eval(plugin.benchmark.test_stream)
    return plugin, alone


@pytest.mark.parametrize(
    "strategy",
    ["finetune", "l2", "ewc:strength=50", "si:strength=5", "mas:strength=2", "lwf", "replay:capacity=9",
     "der:capacity=9", "a-gem:capacity=9", "gem:capacity=9", "er-ace:capacity=9", "owm", "ewc+replay:capacity=9"],
)  # fmt: skip
def test_a_strategy_of_ours_is_the_same_in_its_loop(strategy: str) -> None:
    """Batch, loss, penalty, gradient, after_step, before_task and after_task: the same weights and the same memory."""
    both(strategy, ours("class"))


@pytest.mark.parametrize("strategy", ["xdg", "hat", "packnet"])
def test_gates_that_open_by_task_do_so_in_its_loop(strategy: str) -> None:
    both(strategy, ours("task"))


def test_running_statistics_are_the_same_in_its_loop() -> None:
    both("replay:capacity=6", ours(side=8, rows=6), epochs=1, model=ResNet18(width=4))
    both("finetune", ours("task", side=8, rows=6), epochs=1, model=ResNet18(width=4, statistics="task"))


def test_our_ewc_has_the_penalty_and_gradient_that_it_has_in_our_loop() -> None:
    """Its Fisher and anchor are those of our loop (``both`` compares them); the penalty is ½ λ Σ F (θ - θ*)²."""
    plugin, _ = both("ewc:strength=50", ours())
    hooks, memory = plugin.hooks, plugin.memory
    theta = hooks.theta() + 0.1
    hooks.model.write(theta)
    hooks.model.zero_grad()
    at = hooks.model.theta()
    penalty = hooks.strategy.penalty(hooks.net, at, memory, None, None, None)
    wanted = 25 * (memory["fisher"] * (theta - memory["anchor"]).square()).sum()
    torch.testing.assert_close(penalty, wanted)
    penalty.backward()
    gradient = torch.cat([part.grad.flatten() for part in hooks.model.parts()])
    torch.testing.assert_close(gradient, 50 * memory["fisher"] * (theta - memory["anchor"]))
    assert gradient.abs().max() > 0.01


def test_predictions_of_a_strategy_are_evaluated_in_its_loop() -> None:
    """The nearest class mean answers, and avalanche-lib's evaluation counts those answers."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    given = ours("domain", test_outputs="all", train_outputs="all")
    plugin = Plugin("ncm", given, MLP(layers=(HIDDEN,)), torch.float64)
    naive = Naive(
        model=plugin.model, optimizer=torch.optim.SGD(plugin.model.parameters(), RATE), train_mb_size=8,
        criterion=torch.nn.CrossEntropyLoss(), eval_mb_size=7, plugins=[plugin],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )  # fmt: skip
    for experience in plugin.benchmark.train_stream:
        naive.train(experience)
    found = naive.eval(plugin.benchmark.test_stream)
    hooks, task = plugin.hooks, given.tasks[0]
    x = given.test_samples.images(task.test, torch.float64)
    scores = hooks.strategy.predict(hooks.network(), hooks.theta(), plugin.memory, x, torch.full((len(x),), 2))
    right = (scores.argmax(1) == given.test_samples.y[task.test]).double().mean()
    assert found["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] == pytest.approx(float(right))


def test_what_a_plug_in_cannot_do_is_said() -> None:
    with pytest.raises(BadChain, match="which rows an epoch runs through"):
        Plugin("joint", ours())
    plugin = Plugin("finetune", ours(), "mlp:layers=4")
    naive = Naive(model=plugin.model, optimizer=torch.optim.SGD(plugin.model.parameters(), 0.1), plugins=[plugin],
                  criterion=torch.nn.CrossEntropyLoss(), train_mb_size=8, evaluator=None)  # fmt: skip
    with pytest.raises(BadChain, match=r"carry no rows: train on .* plugin\.benchmark"):
        naive.train(benchmark(ours()).train_stream[0])


# ---- its strategies in our table


def test_naive_lands_where_our_finetuning_does() -> None:
    """Other orders of the batches, everything else alike: the same accuracies up to chance, by Welch's test."""
    from scipy import stats

    given: dict[str, Any] = {"seeds": 8, "epochs": 3}
    for benchmark_ in ("split-digits:scenario=task", "split-digits:scenario=class"):
        one, two = (cl.run(benchmark_, name, **given) for name in ("finetune", "avalanche:Naive"))
        np.testing.assert_array_equal(one.accuracy[:, 0], two.accuracy[:, 0])  # the same untrained network
        assert one.accuracy.shape == two.accuracy.shape == (8, 6, 5)
        assert one.arrays["loss"].shape == two.arrays["loss"].shape
        for metric in ("average-accuracy", "learning-accuracy"):
            a, b = one.metric(metric), two.metric(metric)
            assert abs(a.mean() - b.mean()) < 0.03 and stats.ttest_ind(a, b, equal_var=False).pvalue > 0.01
        assert abs(one.training_accuracy - two.training_accuracy)[:, 1:].mean() < 0.05


def test_without_shuffling_naive_is_our_finetuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch holds a whole task, so nothing is left to chance: the same accuracies, losses and rates."""
    given: dict[str, Any] = {"seeds": 2, "epochs": 6, "batch": 400, "schedule": "cosine", "precision": "float64",
                             "optimizer": "adam:lr=0.01", "evaluate_every": 2, "evaluate_rows": "all"}  # fmt: skip
    for options in ({}, {"optimizer_state": "reset"}):
        one, two = (cl.run("split-digits", name, **(given | options)) for name in ("finetune", "avalanche:Naive"))
        np.testing.assert_allclose(one.arrays["loss"], two.arrays["loss"], rtol=1e-5)
        for name in ("accuracy", "training_accuracy", "trace", "training_trace", "trace_step", "trace_task"):
            np.testing.assert_allclose(one.arrays[name], two.arrays[name], atol=0.006, err_msg=name)


def test_in_the_data_s_order_naive_is_our_finetuning_batch_by_batch() -> None:
    given: dict[str, Any] = {"seeds": 1, "epochs": 2, "batch": 16, "shuffle": False, "precision": "float64"}
    one, two = (cl.run(SMALL, name, **given) for name in ("finetune", "avalanche:Naive"))
    assert one.arrays["loss"].shape[-1] > 20 and "shuffle false" in content.heading(one.record)
    np.testing.assert_allclose(one.arrays["loss"], two.arrays["loss"], rtol=1e-5)
    np.testing.assert_allclose(one.accuracy, two.accuracy, atol=0.006)


def test_ewc_is_what_its_plug_in_does_in_a_loop_by_hand() -> None:
    """The run of a strategy against the library used directly, on the same benchmark with one batch for each task."""
    given = ours(train_outputs="all", test_outputs="all")
    result = cl.run(given, "avalanche:EWC:ewc_lambda=20", seeds=1, epochs=5, batch=100, optimizer="sgd:lr=0.3",
                    model=MLP(layers=(HIDDEN,)), precision="float64")  # fmt: skip
    net = MLP(layers=(HIDDEN,)).build(given.shape, given.units)
    module = plain(net, net.initial(key(0).child("initial θ"), torch.float64))
    naive = Naive(model=module, optimizer=torch.optim.SGD(module.parameters(), 0.3), train_mb_size=100, train_epochs=5,
                  criterion=torch.nn.CrossEntropyLoss(), plugins=[EWCPlugin(20.0)], evaluator=None)  # fmt: skip
    made = benchmark(given, dtype=torch.float64)
    for index, experience in enumerate(made.train_stream):
        naive.train(experience)
        x, y = (torch.stack([torch.as_tensor(row[k]) for row in made.test_stream[0].dataset]) for k in (0, 1))
        right = (module(x).argmax(1) == y).double().mean()
        assert result.accuracy[0, index + 1, 0] == pytest.approx(float(right))
    plainly = cl.run(given, "avalanche:Naive", seeds=1, epochs=5, batch=100, optimizer="sgd:lr=0.3",
                     model=MLP(layers=(HIDDEN,)), precision="float64")  # fmt: skip
    assert not np.allclose(plainly.arrays["loss"], result.arrays["loss"])


@pytest.mark.parametrize(
    "strategy",
    ["Cumulative", "Replay:mem_size=20", "SynapticIntelligence:si_lambda=0.1", "LwF:alpha=1,temperature=2", "MAS",
     "AGEM:patterns_per_exp=20", "GDumb:mem_size=20", "CWRStar", "ER_ACE:mem_size=20", "DER:mem_size=20",
     "MIR:mem_size=50,subsample=20", "RWalkPlugin:delta_t=1", "FromScratchTraining", "MER"],
)  # fmt: skip
def test_its_strategies_run(strategy: str) -> None:
    for scenario in ("class", "task"):
        result = cl.run(f"{SMALL},scenario={scenario}", f"avalanche:{strategy}", **QUICK)
        assert np.isfinite(result.accuracy).all() and result.name == f"avalanche:{strategy}"
    kept = {"Replay:mem_size=20": [20, 20], "ER_ACE:mem_size=20": [20, 20]}.get(strategy)
    assert kept is None or result.record["size"]["stored_samples_per_task"] == kept
    if strategy in ("MAS", "SynapticIntelligence:si_lambda=0.1"):
        assert result.record["size"]["memory_bytes"] >= 4 * result.record["size"]["parameters"]


def test_a_record_says_whose_it_is_and_is_found_again(tmp_path: Path) -> None:
    words = ["run", SMALL, "finetune", "avalanche:EWC:ewc_lambda=0.4,mode=online,decay_factor=0.9", "--seeds", "2",
             "--epochs", "1", "--out", str(tmp_path)]  # fmt: skip
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.output
    assert "\nfinetune " in said.stdout and "\navalanche:EWC:ewc_lambda=0.4" in said.stdout
    (record,) = [json.loads(path.read_text()) for path in tmp_path.rglob("run.json") if "avalanche" in str(path)]
    assert record["versions"]["avalanche-lib"].startswith("0.6")
    (part,) = record["strategy"]
    assert part == {"name": "avalanche:EWC", "ewc_lambda": 0.4, "mode": "online", "decay_factor": 0.9,
                    "keep_importance_data": False}  # fmt: skip
    assert config.make_strategy(part) == config.make_strategy(words[3]), "its description makes it again"
    assert CliRunner().invoke(main, words).stderr.count("already there") == 2
    assert CliRunner().invoke(main, ["show", str(tmp_path)]).stdout.count("avalanche:EWC") == 1


def test_its_strategies_are_measured_with_the_task_told_too() -> None:
    aware = cl.run(SMALL, "avalanche:Naive", task_aware=True, **QUICK)
    told = cl.run(f"{SMALL},test_outputs=task", "avalanche:Naive", **QUICK)
    np.testing.assert_array_equal(aware.arrays["task_aware_accuracy"], told.accuracy)
    assert (aware.accuracy != told.accuracy).any()


def test_lengths_and_last_batches_are_the_protocol_s() -> None:
    for options, steps in (({"epochs": 2}, 2 * 7), ({"epochs": 2, "last": "drop"}, 2 * 6), ({"iterations": 5}, 5)):
        result = cl.run("split-digits:tasks=5,limit=50", "avalanche:Naive", seeds=1, batch=16, **options)
        assert result.arrays["loss"].shape == (1, 5 * steps), options


def test_a_loss_that_is_lost_stops_the_seed() -> None:
    result = cl.run(SMALL, "avalanche:Naive", **QUICK, optimizer="sgd:lr=1e30")
    assert [one["task"] for one in result.record["stopped"]] == [1]
    assert np.isnan(result.accuracy[0, 1:]).all() and np.isfinite(result.accuracy[0, 0]).all()


def test_a_seed_that_is_stopped_lies_beside_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = loop.Loop._learn

    def learn(self: loop.Loop, index: int, experience: Any) -> None:
        if (self.learners.seeds[0], index) == (0, 1):
            with torch.no_grad():
                next(self.model.parameters()).fill_(torch.nan)
        usual(self, index, experience)

    alone = cl.run("split-digits:tasks=5,limit=20", "avalanche:Naive", **QUICK | {"seeds": (1,)}, evaluate_every=1)
    monkeypatch.setattr(loop.Loop, "_learn", learn)
    both = cl.run("split-digits:tasks=5,limit=20", "avalanche:Naive", **QUICK | {"seeds": 2}, evaluate_every=1)
    (stop,) = both.record["stopped"]
    assert (stop["seed"], stop["task"], stop["step"]) == (0, 2, 1)
    for name, values in alone.arrays.items():
        shared = name in ("trace_task", "trace_step")
        np.testing.assert_array_equal(both.arrays[name] if shared else both.arrays[name][1:], values, name)
    assert both.trace is not None and both.trace_task is not None
    first = both.trace_task == 0
    assert np.isfinite(both.trace[0, first, 0]).all() and np.isnan(both.trace[0, ~first]).all()


def test_the_global_generators_are_left_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = cl.run(SMALL, "avalanche:Replay:mem_size=20", **QUICK).arrays["loss"]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()
    torch.rand(3)
    again = cl.run(SMALL, "avalanche:Replay:mem_size=20", **QUICK).arrays["loss"]
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("avalanche", "'avalanche' is a library: name one of its strategies, as in avalanche:NAME"),
        ("avalanche:Nave", "no strategy of avalanche-lib is named 'Nave'; did you mean 'Naive'"),
        ("avalanche:EWC", r"avalanche:EWC needs ewc_lambda.*avalanche:EWC:ewc_lambda=VALUE"),
        ("avalanche:EWC:lamda=2,ewc_lambda=1", "avalanche:EWC has no option 'lamda'; did you mean 'ewc_lambda'"),
        ("avalanche:EWC:ewc_lambda=much", "option ewc_lambda was given 'much'; it takes float"),
        ("avalanche:JointTraining", "is trained once, on all tasks.*joint:every=false"),
        ("avalanche:AR1", "brings a network of its own"),
        ("avalanche:StreamingLDA:num_classes=3", "needs slda_model, which a run cannot give it"),
        ("avalanche:Naive+replay", "another library's and trains in its own loop; run it alone"),
        (
            "avalanche:PackNet:post_prune_epochs=1,prune_proportion=0.5",
            "avalanche-lib says ValueError: PackNet requires",
        ),
    ],
)
def test_mistakes_are_told(given: str, said: str) -> None:
    with pytest.raises((BadOption, UnknownName, BadChain), match=said):
        cl.run(SMALL, given, **QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": "images:flip=true"}, "images as they are; run it with --augment none"),
        ({"precision": "bfloat16"}, "--precision float32, tf32 or float64"),
        ({"model": "resnet18:width=4,statistics=task"}, "trains an ordinary network"),
    ],
)
def test_what_its_loop_cannot_do_is_refused_before_anything_is_trained(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continual import runner

    monkeypatch.setattr(runner, "run_strategy", None)
    with pytest.raises(BadChain, match=said):
        cl.run("split-digits:pad=4", "avalanche:Naive", **(QUICK | options))


def test_the_conformance_suite_is_for_strategies_with_hooks() -> None:
    said = CliRunner().invoke(main, ["check", "avalanche:Naive"])
    assert said.exit_code == 2 and "trains in its own loop" in said.stderr


def test_without_avalanche_lib_it_is_missed_in_one_sentence(tmp_path: Path) -> None:
    code = ("import sys; sys.modules['avalanche'] = None; sys.argv = ['continual', 'run', 'split-digits', "
            "'avalanche:Naive']; from continual.cli import main; main()")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'continual[avalanche]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_listing_does_not_import_it(tmp_path: Path) -> None:
    code = "import sys; from continual.cli import main as m; m(['list'], standalone_mode=False)"
    code += "; print('avalanche' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert dataclasses.is_dataclass(config.make_strategy("avalanche:Naive"))


def test_what_avalanche_says_of_itself_is_not_said() -> None:
    """It makes a filter of its own before it warns that it calls what it will remove."""
    from continual.avalanche import library

    with warnings.catch_warnings(record=True) as said:
        with library.quiet():
            warnings.simplefilter("always")
            warnings.warn("Call to deprecated function update", DeprecationWarning, stacklevel=1)
        assert not said
        warnings.simplefilter("always")
        warnings.warn("afterwards", DeprecationWarning, stacklevel=1)
        assert len(said) == 1


@pytest.mark.parametrize("strategy", ["avalanche:Naive", "avalanche:Replay:mem_size=20"])
def test_what_is_measured_changes_nothing_of_what_is_learnt(strategy: str) -> None:
    """Its loaders draw from the generators that shuffle what is learnt."""
    run: dict[str, Any] = {"seeds": 1, "epochs": 1, "batch": 16, "model": "mlp:layers=8"}
    plain = cl.run("split-digits:limit=12,tasks=2", strategy, train_samples=0, **run)
    for more in ({"train_samples": 200}, {"train_samples": 0, "evaluate_every": 1}):
        found = cl.run("split-digits:limit=12,tasks=2", strategy, **run, **more)
        np.testing.assert_array_equal(found.arrays["loss"], plain.arrays["loss"])
