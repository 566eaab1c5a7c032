"""How seeds are done: what is chosen, and that no number depends on it beyond rounding."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from test_recording import Asking

import continual as cl
from continual import cli, config, execution, plugins, workers
from continual.conformance import check
from continual.errors import BadChain, BadOption
from continual.learning.models import Net
from continual.learning.seeds import Recipe
from continual.learning.strategy import Batch, Memory, Strategy
from continual.learning.training import Training
from continual.progress import Progress
from continual.ready import prepare, recipe_of
from continual.results.store import Result
from continual.streams.benchmark import Benchmark
from continual.streams.sets import data_root
from continual.streams.stream import Stream, Task

SETTINGS: dict[str, Any] = {"seeds": (4, 0, 7), "epochs": 2, "batch": 16, "model": "mlp:layers=16", "data": None}


def same(one: Result, two: Result) -> None:
    assert one.arrays.keys() == two.arrays.keys() and one.seeds == two.seeds
    for name, values in one.arrays.items():
        np.testing.assert_allclose(values, two.arrays[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("strategy", ["finetune", "ewc+replay:capacity=20"])
def test_numbers_do_not_depend_on_how_seeds_are_done(strategy: str) -> None:
    found = {
        how: cl.run("split-digits:limit=20", strategy, seeds_as=how, evaluate_every=3, **SETTINGS)
        for how in ("loop", "map", "processes")
    }
    assert {how: result.record["seeds_as"] for how, result in found.items()} == {how: how for how in found}
    same(found["loop"], found["map"])
    same(found["loop"], found["processes"])
    for result in found.values():
        assert result.record["protocol"] == found["loop"].record["protocol"]


def test_processes_keep_to_the_order_of_seeds_and_to_tasks_of_different_sizes() -> None:
    """MNIST's classes differ in size; the digits' do too."""
    asked = {**SETTINGS, "epochs": 1}
    loop, processes = (
        cl.run("split-digits:order=seed,tasks=3", seeds_as=how, **asked) for how in ("loop", "processes")
    )
    assert np.isnan(loop.arrays["loss"]).any()
    same(loop, processes)


def test_a_seed_that_is_lost_in_a_process_is_told(tmp_path: Path) -> None:
    asked = ["run", "split-digits:limit=10", "finetune", "--optimizer", "sgd:lr=1e30", "--seeds", "2", "--seeds-as",
             "processes", "--out", str(tmp_path)]  # fmt: skip
    told = CliRunner().invoke(cli.main, asked)
    assert told.exit_code == 0 and "seed 0 was stopped: loss or parameters not finite at task 1" in told.output
    assert "seed 1 was stopped: loss or parameters not finite at task 1" in told.output


# ---- the choice


def ready(seeds: int, **training: Any) -> tuple[Recipe, Training, list[Stream]]:
    plan = config.plan({"benchmark": "split-digits:limit=10", "seeds": seeds, "model": "mlp:layers=8", **training})
    streams = [plan.benchmark.stream(seed, data_root(None)) for seed in range(seeds)]
    net = plan.model.build(streams[0].shape, streams[0].units)  # type: ignore[attr-defined]
    return recipe_of(plan, plan.strategies[0], net), plan.training, streams


def test_seeds_that_do_not_fit_side_by_side_are_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, training, streams = ready(3)

    def seconds(recipe: Recipe, training: Training, streams: list[Stream], fixed: int | None = None) -> float:
        if len(streams) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.01

    monkeypatch.setattr(execution, "step_seconds", seconds)
    assert execution.choose(recipe, training, streams, processes=False).how == "loop"


@pytest.mark.parametrize(
    ("loop", "together", "alone", "processes", "chosen", "inner"),
    [
        (0.01, 0.03, 0.01, True, "map", "map"),
        (0.01, 0.05, 0.01, True, "loop", "loop"),
        (0.01, 0.05, 0.01, False, "loop", "loop"),
        (9.0, 40.0, 9.0, True, "processes", "loop"),
        (9.0, 30.0, 9.0, True, "processes", "map"),
        (9.0, 30.0, 9.0, False, "map", "map"),
        (0.01, 0.05, 0.001, True, "loop", "loop"),
    ],
)
def test_what_takes_least_is_chosen(
    monkeypatch: pytest.MonkeyPatch, loop: float, together: float, alone: float, processes: bool, chosen: str,
    inner: str,
) -> None:  # fmt: skip
    """Four seeds on four cores; seconds of a step of one, of all mapped, and of one on its share of the cores."""
    recipe, training, streams = ready(4)

    def seconds(recipe: Recipe, training: Training, streams: list[Stream], usual: int | None = None) -> float:
        return together if len(streams) == 4 else alone if usual else loop

    monkeypatch.setattr(execution, "step_seconds", seconds)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    found = execution.choose(recipe, training, streams, processes)
    assert (found.how, found.inner) == (chosen, inner)
    assert found.why.startswith("4 seeds ") and f"one after the other {4000 * loop:.1f}" in found.why
    assert ("in processes" in found.why) == (processes and loop > 1), "a second of work in all needs no processes"


@pytest.mark.parametrize(
    ("one", "at_work", "steps", "free", "mode", "found"),
    [
        (
            0.002,
            0.0005,
            20_000,
            80e9,
            "Default",
            2 * 0.002,
        ),  # eight seeds, four cores: what waits for the host is shared
        (0.002, 0.0018, 20_000, 80e9, "Default", 8 * 0.0018),  # a GPU that is at work most of the time
        (0.002, 0.0, 20_000, 80e9, "Default", None),  # nobody could see what it does
        (0.002, 0.0005, 500, 80e9, "Default", None),  # they would take longer to begin
        (0.002, 0.0005, 20_000, 4e9, "Default", None),  # no room for four
        (0.002, 0.0005, 20_000, 80e9, "Exclusive_Process", None),
        (0.002, 0.0005, 20_000, 80e9, "recorded", None),  # nothing waits
    ],
)
def test_processes_on_a_gpu_help_where_it_waits(
    monkeypatch: pytest.MonkeyPatch, one: float, at_work: float, steps: int, free: float, mode: str,
    found: float | None,
) -> None:  # fmt: skip
    class ByHand(Strategy):
        can_be_captured = False

    recipe, training, _ = ready(8)
    recipe = recipe if mode == "recorded" else replace(recipe, strategy=ByHand())
    there = SimpleNamespace(samples=SimpleNamespace(image=SimpleNamespace(device=torch.device("cuda"))))
    monkeypatch.setattr(workers, "cores", lambda: 4)
    said = SimpleNamespace(stdout=f"{mode}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    monkeypatch.setattr(execution, "free_memory", lambda _: free)
    for name in ("max_memory_reserved", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 1e8)
    monkeypatch.setattr(execution, "step_seconds", lambda *_, spent: at_work if spent is execution.computed else None)
    got = execution.seconds_in_processes(recipe, training, [there] * 8, steps, {"loop": 8 * one})  # type: ignore[list-item]
    assert got == ({} if found is None else {"processes": pytest.approx(found + execution.START_ON_GPU / steps)})


def test_where_nobody_says_whether_a_gpu_may_be_shared_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not execution.may_be_shared()


def test_a_strategy_that_cannot_be_mapped_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class ByHand(Strategy):
        can_be_captured = False

    recipe, training, streams = ready(4)
    asked = []

    def seconds(recipe: Recipe, training: Training, streams: list[Stream], usual: int | None = None) -> float:
        asked.append(len(streams))
        return 9.0

    monkeypatch.setattr(execution, "step_seconds", seconds)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    found = execution.choose(replace(recipe, strategy=ByHand()), training, streams, processes=True)
    assert (found.how, found.inner) == ("processes", "loop") and asked == [1, 1]


def test_what_turns_out_not_to_be_mappable_is_done_one_after_the_other() -> None:
    recipe, training, streams = ready(2)
    found = execution.choose(replace(recipe, strategy=Asking()), training, streams, processes=False)
    assert found.how == "loop" and "; side by side they cannot be done: RuntimeError: vmap: " in found.why
    assert "\n" not in found.why and len(found.why) < 400
    with pytest.raises(RuntimeError, match="vmap") as error:
        cl.run("split-digits", Asking(), seeds=2, epochs=1, seeds_as="map")
    assert "--seeds-as loop does one after the other" in "".join(error.value.__notes__)


def test_what_was_asked_for_is_done_and_one_seed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "step_seconds", None)
    for how in ("loop", "map", "processes"):
        recipe, training, streams = ready(2, seeds_as=how)
        assert execution.choose(recipe, training, streams, False) == execution.Choice(how)  # type: ignore[arg-type]
        recipe, training, streams = ready(1, seeds_as=how)
        assert execution.choose(recipe, training, streams, False) == execution.Choice("loop")


def test_seeds_with_tasks_of_different_sizes_are_not_mapped() -> None:
    asked: dict[str, Any] = {"benchmark": "split-digits:order=seed,tasks=3"}
    assert "side by side" not in execution.choose(*ready(3, **asked), processes=False).why
    with pytest.raises(BadOption, match="seeds_as=map: the seeds' tasks differ in size"):
        execution.choose(*ready(3, seeds_as="map", **asked), processes=False)


@pytest.mark.parametrize("asked", [{"epochs": 2, "evaluate_every": 3}, {"iterations": 9, "evaluate_every": "epoch"}])
def test_seeds_with_tasks_of_different_sizes_are_not_measured_at_different_steps(asked: dict[str, Any]) -> None:
    """An epoch is of other steps for each of them."""
    with pytest.raises(BadOption, match=r"the seeds' tasks differ in size .* evaluate_every as a number of steps"):
        execution.choose(*ready(3, benchmark="split-digits:order=seed,tasks=3", **asked), processes=False)
    result = cl.run("split-digits:order=seed,tasks=3", "finetune", seeds=2, iterations=9, evaluate_every=4)
    assert result.trace_step is not None and result.trace_step.tolist() == [4, 8, 9, 13, 17, 18, 22, 26, 27]


@pytest.mark.parametrize("strategy", ["icarl:capacity=44", "gdumb:capacity=44", "bic:capacity=44"])
def test_seeds_with_classes_of_different_sizes_may_have_different_steps(strategy: str) -> None:
    """The class of 30 rows and that of 10 are a task, which is the first of seed 8 and the second of seed 7."""
    sizes, numbers = (30, 10, 20, 20, 20, 20), np.random.default_rng(0)
    y, y_test = np.repeat(np.arange(6), sizes), np.repeat(np.arange(6), 5)
    x, x_test = (numbers.random((len(labels), 1, 3, 3)).astype("float32") for labels in (y, y_test))
    stream = cl.Stream.from_arrays(x, y, x_test, y_test, tasks=3, order="seed", scenario="class")
    seeds, asked = (8, 7), {"epochs": 2, "batch": 8, "model": "mlp:layers=8"}
    assert {len(task.train) for seed in seeds for task in stream.stream(seed).tasks} == {40}
    both, alone = (cl.run(stream, strategy, seeds=which, **asked) for which in (seeds, seeds[1:]))
    assert both.record["seeds_as"] == "loop"
    assert np.isfinite(both.arrays["loss"]).all(1).tolist() == [False, True], "seed 8 has fewer steps"
    np.testing.assert_allclose(both.accuracy[1:], alone.accuracy)
    with pytest.raises(BadOption, match=f"{strategy}: its seeds were measured at different steps"):
        cl.run(stream, strategy, seeds=seeds, evaluate_every=3, **asked)
    fixed = asked | {"epochs": 1, "iterations": 10}
    both, alone = (cl.run(stream, strategy, seeds=which, evaluate_every=3, **fixed) for which in (seeds, seeds[1:]))
    assert both.trace is not None and alone.trace is not None
    np.testing.assert_allclose(both.trace[1:], alone.trace)


def test_a_device_may_be_pytorchs_own() -> None:
    with pytest.raises(BadOption, match="device 'meta': it takes cpu, cuda"):
        cl.run("split-digits:limit=4", seeds=1, device=torch.device("meta"))
    result = cl.run("split-digits:limit=4", seeds=1, epochs=1, device=torch.device("cpu"))
    assert result.record["device"]["type"] == "cpu"


def test_a_step_is_timed_as_it_will_be_done() -> None:
    recipe, training, streams = ready(3)
    before = torch.get_num_threads()
    assert 0 < execution.step_seconds(recipe, training, streams[:1]) < 1
    assert 0 < execution.step_seconds(recipe, training, streams, usual=1) < 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("asked", "wanted"), [(None, 1), (3, 3)])
def test_streams_are_built_without_waiting_for_the_threads_of_other_runs(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, wanted: int
) -> None:
    threads, stream = [], Benchmark.stream

    def counted(*given: Any) -> Stream:
        threads.append(torch.get_num_threads())
        return stream(*given)

    monkeypatch.setattr(Benchmark, "stream", counted)
    plan = config.plan({"benchmark": "split-digits:limit=10", "strategies": ["finetune"], "seeds": 2, "threads": asked})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        prepare(plan, plan.strategies, data_root(None), torch.device("cpu"), Progress())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == [wanted, wanted]


def test_the_choice_is_told_unless_quiet(tmp_path: Path) -> None:
    asked = ["run", "split-digits:limit=10", "finetune", "--epochs", "1", "--out", str(tmp_path), "--seeds"]
    said = CliRunner().invoke(cli.main, [*asked, "3"])
    assert "\n3 seeds " in said.output and "a step of all, in ms: " in said.output
    assert "in ms" not in CliRunner().invoke(cli.main, [*asked, "4", "--quiet"]).output


EARLIER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11)
"""A compiler that makes a graph of some steps anew, as that of PyTorch 2.8 does."""


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="PyTorch compiles with g++ or clang++")
def test_compiled_steps_of_seeds_side_by_side_give_the_same_numbers() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    found = [
        cl.run("split-digits:limit=20,tasks=2", "ewc+replay:capacity=20", compile=compiled, seeds_as="map",
               **SETTINGS)
        for compiled in (True, False)
    ]  # fmt: skip
    same(*found)
    # whole steps, of the first task and of the second
    assert counters["frames"]["ok"] >= 2 and not counters["graph_break"]
    assert counters["stats"]["calls_captured"] > 30 * counters["frames"]["ok"]
    assert counters["frames"]["ok"] == counters["frames"]["total"] or EARLIER


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="PyTorch compiles with g++ or clang++")
def test_tasks_with_the_same_steps_are_compiled_once() -> None:
    """Replay's first task is another: nothing is replayed. A partial batch at the end is another shape."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    asked: dict[str, Any] = {"seeds": 1, "epochs": 3, "batch": 16, "precision": "float64"}
    found = [cl.run("split-digits:limit=20", "replay:capacity=20", compile=compiled, **asked)
             for compiled in (True, False)]  # fmt: skip
    assert (counters["stats"]["unique_graphs"] == 2 * 2 or EARLIER) and not counters["graph_break"]
    same(*found)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="PyTorch compiles with g++ or clang++")
def test_the_record_says_that_a_run_was_compiled(tmp_path: Path) -> None:
    result = cl.run("split-digits:limit=5,tasks=2", "finetune", compile=True, iterations=2, seeds=1, out=tmp_path)
    assert result.record["program"] == "eager: what is compiled is not recorded on a CPU; the forward pass is compiled"


def test_where_there_is_no_compiler_that_is_told(tmp_path: Path) -> None:
    asked = ["split-digits:limit=5,tasks=2", "finetune", "--compile", "--iterations", "2", "--seeds", "1", "--quiet"]
    nowhere = {"PATH": str(tmp_path), "CXX": "no-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "continual", "run", *asked, "--out", str(tmp_path / "runs")],
        capture_output=True, text=True, check=False, env=os.environ | nowhere,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "compile: PyTorch's compiler cannot make a step of it (" in done.stderr
    assert done.stderr.strip().endswith("leave --compile out")


@dataclass(frozen=True)
class InNumpy(Strategy):
    """What can neither be recorded nor mapped, and says so."""

    first_task_like_finetuning: ClassVar[bool] = False
    can_be_captured: ClassVar[bool] = False

    def gradient(
        self, net: Net, theta: torch.Tensor, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return torch.from_numpy(np.sign(gradient.numpy())) if float(gradient.sum()) < 0 else gradient


def test_what_is_not_tensor_operations_alone_is_done_seed_by_seed_where_others_are_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(InNumpy())
    told: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, line: told.append(line))
    for how in ("auto", "map", "loop"):
        told.clear()
        one, other = (
            cl.run("split-digits:limit=10", strategy, seeds=2, epochs=1, seeds_as=how, out=None)
            for strategy in (InNumpy(), "finetune")
        )
        assert one.record["program"] == "eager: the strategy cannot be captured"
        assert one.record["seeds_as"] == "loop"
        said = [line for line in told if "cannot be captured, so its seeds are done one after the other" in line]
        assert len(said) == (how == "map") if how != "auto" else len(said) <= 1
        assert other.record["seeds_as"] in ({"map", "loop"} if how == "auto" else {how})


def test_compiling_is_a_flag(tmp_path: Path) -> None:
    asked = ["run", "split-digits:limit=2", "finetune", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path)]
    assert CliRunner().invoke(cli.main, [*asked, "--no-compile"]).exit_code == 0
    assert CliRunner().invoke(cli.main, [*asked, "--compile", "true"]).exit_code == 2


def suiting(name: str) -> str:
    """A scenario that the strategy is for."""
    made, net = config.make_strategy(name), config.make("models", "mlp:layers=12").build((1, 8, 8), 10, 5)
    for scenario in ("class", "task", "domain"):
        stream = config.make_benchmark(f"split-digits:limit=12,scenario={scenario}").stream(0, data_root(None))
        with contextlib.suppress(BadChain):
            made.suits(stream, net)
            return scenario
    raise AssertionError(name)


@pytest.mark.parametrize("name", sorted(plugins.registered("strategies")))
def test_a_deterministic_run_has_the_same_bits_twice(name: str) -> None:
    settings: dict[str, Any] = {"seeds": 2, "epochs": 2, "model": "mlp:layers=12", "deterministic": True}
    first, second = (cl.run(f"split-digits:limit=12,scenario={suiting(name)}", name, **settings) for _ in range(2))
    assert first.record["deterministic"] and first.record["seeds_as"] == "loop"
    assert first.arrays.keys() == second.arrays.keys()
    for array, values in first.arrays.items():
        assert values.tobytes() == second.arrays[array].tobytes(), array
    assert not torch.are_deterministic_algorithms_enabled()


class Broken(Progress):
    """Ends a run before its n-th step, as Ctrl-C does, and keeps what is said."""

    def __init__(self, left: int) -> None:
        self.left, self.lines = left, list[str]()

    def step(self, task: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("name", sorted(plugins.registered("strategies")))
def test_a_deterministic_run_that_goes_on_has_the_same_bits(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seeds": 1, "epochs": 2, "batch": 8, "model": "mlp:layers=12", "deterministic": True,
                                "checkpoint_steps": 1}  # fmt: skip
    stream = f"split-digits:limit=12,scenario={suiting(name)}"
    with pytest.raises(KeyboardInterrupt):
        cl.run(stream, name, out=tmp_path, progress=Broken(9), **settings)
    told = Broken(10**6)
    again, whole = cl.run(stream, name, out=tmp_path, progress=told, **settings), cl.run(stream, name, **settings)
    assert "goes on where it was interrupted" in told.lines[0] and again.record["deterministic"]
    assert {array: values.tobytes() for array, values in again.arrays.items()} == {
        array: values.tobytes() for array, values in whole.arrays.items()
    }


@pytest.mark.skipif(execution._library() is None, reason="another C library")
def test_memory_that_tensors_leave_is_kept_for_the_next_ones() -> None:
    """What a tensor of 64 MB had is still the process's after it, for the next ones; at the end the system has it."""

    def resident() -> int:
        return int(psutil.Process().memory_info().rss)

    with execution.kept_memory():
        pass  # whatever was free before lies with the system
    least = resident()
    with execution.kept_memory():
        for _ in range(20):
            torch.ones(2**24)
        kept = resident()
    assert least + 2**25 < kept < least + 5 * 2**26  # one tensor at least, and far from twenty
    assert resident() < least + 2**24
