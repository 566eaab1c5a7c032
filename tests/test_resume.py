"""A run that is killed goes on, and ends as if it had not been: the same bits, whatever is trained and however."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import continual as cl
from continual import cli, config, execution, plugins, resume, runner, workers
from continual.conformance import TRAINING, learners_of
from continual.errors import BadFolder
from continual.learning import step as steps
from continual.learning.models import Net
from continual.learning.seeds import Learners
from continual.learning.strategy import Memory, Step, Strategy
from continual.learning.train import State, Watch, train
from continual.learning.training import Training
from continual.progress import Progress
from continual.results import store
from continual.results.checkpoints import Checkpoints
from continual.streams.stream import Stream, Task

STRATEGIES = [
    *plugins.registered("strategies"), "ewc+replay", "si+replay:fill=reservoir,capacity=6", "ewc:terms=each+si+l2",
    "hat+replay:capacity=9", "generative-replay:soft=true+ewc",
]  # fmt: skip
Arrays = dict[str, torch.Tensor]


class Killed(BaseException):
    """Where the process would be gone."""


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: value.detach().cpu().contiguous().numpy().tobytes() for name, value in arrays.items()}


def outcome(learners: Learners, arrays: Arrays) -> dict[str, bytes]:
    memory = {f"memory/{name}": value for name, value in learners.memory.items()}
    return bits(arrays | {"θ": learners.theta} | memory)


def made(text: str, seeds: list[int], training: Training, optimizer: str) -> Learners:
    """New learners, as another process would make them."""
    learners = learners_of(config.make_strategy(text), seeds)
    given = config.make("optimizers", optimizer)
    keep, holds = training.optimizer_state == "keep", training.unused_outputs == "hold"
    recipe = replace(learners.recipe, optimizer=given, keep_optimizer=keep, holds=holds)  # type: ignore[arg-type]
    return Learners(recipe, learners.streams, seeds)


def killed_often(
    text: str, seeds: list[int], training: Training, optimizer: str, folder: Path, times: int = 3
) -> dict[str, bytes]:
    """What training gives that is killed before some random steps, each time a little after a checkpoint."""
    chance = random.Random(zlib.crc32(f"{text} {seeds} {optimizer}".encode()))
    kept = Checkpoints(folder / ".checkpoints", {"run": text})
    start: list[State] = []
    every = chance.randrange(1, 4)

    def keep(state: State) -> None:
        kept.write("one", state.tensors, state.facts)
        start[:] = [State(*kept.read(kept.folder / "one.safetensors"))]

    for task, number in [*sorted((chance.randrange(3), chance.randrange(6)) for _ in range(times)), (99, 99)]:

        def kill(*at: int, here: tuple[int, int] = (task, number)) -> None:
            if at[:2] == here:
                raise Killed

        learners = made(text, seeds, training, optimizer)
        begin = start[0] if start else None
        watch = Watch(kill, due=lambda done: done % every == 0, keep=keep, start=begin)
        with contextlib.suppress(Killed):
            arrays, stopped = train(learners, training, watch)
            assert not stopped and task == 99
    assert start[0].facts["task"] == 2
    return outcome(learners, arrays)


def unharmed(text: str, seeds: list[int], training: Training, optimizer: str) -> dict[str, bytes]:
    learners = made(text, seeds, training, optimizer)
    return outcome(learners, train(learners, training, Watch())[0])


def same_bits(text: str, seeds: list[int], training: Training, optimizer: str, folder: Path) -> None:
    whole, again = unharmed(text, seeds, training, optimizer), killed_often(text, seeds, training, optimizer, folder)
    assert whole.keys() == again.keys()
    assert [name for name, value in whole.items() if again[name] != value] == []


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("text", STRATEGIES)
@pytest.mark.parametrize(("seeds", "program"), [([3], "eager"), ([1, 2], "auto")], ids=["alone", "mapped"])
def test_every_strategy_goes_on(text: str, seeds: list[int], program: str, tmp_path: Path) -> None:
    """In float64, and with partial batches, so that a step's program comes in two sizes."""
    training = replace(TRAINING, batch=9, program=program, evaluate_every=2, evaluate_rows="all", train_samples=20)
    same_bits(text, seeds, training, "adam:lr=0.01", tmp_path)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("text", ["finetune", "ewc+replay:capacity=9", "si", "packnet"])
@pytest.mark.parametrize(("seeds", "program"), [([1, 2], "eager"), ([3], "auto")], ids=["mapped", "alone"])
def test_the_other_way_round(text: str, seeds: list[int], program: str, tmp_path: Path) -> None:
    training = replace(TRAINING, program=program, precision="float32", optimizer_state="reset")
    same_bits(text, seeds, training, "sgd:lr=0.1,momentum=0.9", tmp_path)


@dataclass(frozen=True)
class Late(Strategy):
    """It says of all tasks but the last that they are put off."""

    def puts_off(self, index: int, count: int) -> bool:
        return index + 1 < count


@pytest.mark.parametrize("seeds", [[3], [1, 2]], ids=["alone", "mapped"])
def test_what_is_put_off_told_and_held_goes_on(seeds: list[int], tmp_path: Path) -> None:
    training = replace(TRAINING, batch=9, evaluate_every=2, task_aware=True, unused_outputs="hold")
    same_bits("test_resume:Late", seeds, training, "sgd:lr=0.1,momentum=0.9,weight_decay=0.01", tmp_path)
    arrays = train(made("test_resume:Late", seeds, training, "adam"), training, Watch())[0]
    for name in ("accuracy", "task_aware_accuracy"):
        assert arrays[name][..., 1:-1, :].isnan().all() and arrays[name][..., [0, -1], :].isfinite().all()


@pytest.mark.parametrize("state", ["keep", "reset"])
@pytest.mark.parametrize(
    "optimizer", ["sgd:lr=0.1", "sgd:lr=0.1,momentum=0.9,nesterov=true", "adam", "adamw", "adagrad"]
)
def test_every_optimiser_goes_on(optimizer: str, state: Any, tmp_path: Path) -> None:
    same_bits("l2", [0], replace(TRAINING, optimizer_state=state), optimizer, tmp_path)


@pytest.mark.parametrize("program", ["eager", "captured"])
def test_a_block_of_random_numbers_begins_where_it_began(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "POOLED_STEPS", 4)
    monkeypatch.setattr("continual.learning.capture.POOLED_STEPS", 4)
    training = replace(TRAINING, program=program, batch=5)
    same_bits("replay:fill=reservoir,capacity=8", [2], training, "adam", tmp_path)


@dataclass(frozen=True)
class Askew(Strategy):
    """Its memory lies in odd ways: transposed, repeated, a part of something, shared."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        table = torch.linspace(-1, 1, 12 * len(theta), dtype=theta.dtype).unflatten(0, (len(theta), 12))
        return {"table": table.T, "wide": theta[0].expand(7), "part": theta[3:], "shared": theta, "none": theta[:0]}

    def penalty(self, net: Net, theta: torch.Tensor, memory: Memory, *rest: Any) -> torch.Tensor:
        return (memory["table"] @ theta).square().mean() + memory["wide"].sum() * memory["part"].sum() * 1e-3

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        table = torch.outer(theta, memory["table"].sum(1)).T / 9
        return theta, memory | {"table": table, "wide": theta[1].expand(7), "part": theta[3:], "shared": theta}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("seeds", [[0], [1, 2]], ids=["alone", "mapped"])
def test_it_does_not_matter_how_memory_lies(
    seeds: list[int], precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "make_strategy", lambda text: Askew())
    same_bits("askew", seeds, replace(TRAINING, precision=precision), "adam", tmp_path)
    learners = made("askew", seeds, TRAINING, "adam")
    train(learners, TRAINING, Watch())
    assert all(value.is_contiguous() and not value.storage_offset() for value in learners.memory.values())


# ---- whole runs


KILLS = Path(__file__).parent.parent / "benchmarks" / "reliability" / "kills.py"
SMALL: dict[str, Any] = {
    "seeds": 2, "epochs": 2, "batch": 16, "model": "mlp:layers=12", "checkpoint_steps": 2, "seeds_as": "loop",
}  # fmt: skip
STREAM = "split-digits:limit=20"
ALL, DONE = 60, 47  # steps of both seeds, six in a task; what was done when a run was killed: five of a third task


class Dies(Progress):
    """Kills the run before its n-th step, and remembers what was said."""

    def __init__(self, step: int) -> None:
        self.left, self.said = step, list[str]()

    def step(self, task: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def say(self, line: str) -> None:
        self.said.append(line)


def begun(out: Path, step: int = DONE, strategy: str = "ewc", **settings: Any) -> None:
    """A run that was killed before a step."""
    with pytest.raises(Killed):
        cl.run(STREAM, strategy, out=out, progress=Dies(step), **SMALL | settings)


def gone_on(out: Path, strategy: str = "ewc", **settings: Any) -> tuple[store.Result, list[str], int]:
    """The run once more: what it gave, what was said, and how many steps it took."""
    told = Dies(10**6)
    result = cl.run(STREAM, strategy, out=out, progress=told, **SMALL | settings)
    return result, told.said, 10**6 - told.left


def equal(one: store.Result, other: store.Result) -> bool:
    same = {name: values.tobytes() for name, values in one.arrays.items()}
    return same == {name: values.tobytes() for name, values in other.arrays.items()}


def files(out: Path) -> list[Path]:
    return sorted(out.glob("*/.checkpoints-*/*/*.safetensors"))


@pytest.fixture(scope="module")
def whole() -> store.Result:
    return cl.run(STREAM, "ewc", **SMALL)


def test_a_run_goes_on_and_leaves_nothing(tmp_path: Path, whole: store.Result) -> None:
    begun(tmp_path)
    assert [path.name for path in files(tmp_path)] == [
        "0x1.finished.safetensors", "1x1.task-0002.step-000000002.safetensors",
        "1x1.task-0002.step-000000004.safetensors",
    ]  # fmt: skip
    result, said, steps = gone_on(tmp_path)
    assert equal(result, whole) and equal(store.find(tmp_path)[0], whole)
    assert said == ["ewc: goes on where it was interrupted (seed 0 finished; seed 1 after step 4 of task 3)"]
    assert steps == ALL - 46
    assert [path.name[:3] for path in next(tmp_path.iterdir()).iterdir()] == ["ewc"]


def test_seeds_side_by_side_go_on_as_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seeds_as": "map", "evaluate_every": 4}
    begun(tmp_path, 21, **settings)
    result, said, steps = gone_on(tmp_path, **settings)
    assert said == ["ewc: goes on where it was interrupted (2 seeds after step 2 of task 4)"] and steps == 10
    assert equal(result, cl.run(STREAM, "ewc", **SMALL | settings))


def raises(error: type[BaseException]) -> Any:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    return fails


def test_only_what_was_interrupted_is_done_again(tmp_path: Path) -> None:
    plan = config.plan({"benchmark": STREAM, "strategies": ["finetune", "ewc", "l2"], **SMALL})
    with pytest.raises(Killed):
        runner.run_plan(plan, out=tmp_path, progress=Dies(ALL + 13))
    told = Dies(10**6)
    results = runner.run_plan(plan, out=tmp_path, progress=told)
    assert told.said[0] == "finetune: already there, not run again (--again runs it)"
    assert told.said[1:] in [
        [f"ewc: goes on where it was interrupted (seed 0 after {where})"] for where in ("step 6 of task 2", "task 2")
    ]
    assert 10**6 - told.left == ALL - 12 + ALL
    for result, strategy in zip(results, plan.strategies, strict=True):
        assert equal(result, cl.run(STREAM, strategy, **SMALL))


def test_a_run_is_done_as_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock chose how seeds are done; after the interruption it would choose otherwise, and there are more cores."""
    speed = {1: 5.0, 2: 1.0}
    monkeypatch.setattr(execution, "step_seconds", lambda recipe, training, streams, *_: speed[len(streams)])
    plan = config.plan({"benchmark": STREAM, "strategies": ["finetune", "ewc"], **SMALL | {"seeds_as": "auto"}})
    with pytest.raises(Killed):
        runner.run_plan(plan, out=tmp_path, progress=Dies(7))
    speed[2] = 50.0
    monkeypatch.setattr(workers, "cores", lambda: 64)
    results = runner.run_plan(plan, out=tmp_path)
    assert [result.record["seeds_as"] for result in results] == ["map", "map"]
    assert equal(results[1], cl.run(STREAM, "ewc", **SMALL | {"seeds_as": "map"}))
    assert cl.run(STREAM, "l2", out=tmp_path, **SMALL | {"seeds_as": "auto"}).record["seeds_as"] == "loop"


def test_of_a_strategy_with_a_loop_of_its_own_the_finished_seeds_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
    begun(tmp_path, strategy="avalanche:Naive")
    assert [path.name for path in files(tmp_path)] == ["0x1.finished.safetensors"]
    result, said, steps = gone_on(tmp_path, "avalanche:Naive")
    assert said == ["avalanche:Naive: goes on where it was interrupted (seed 0 finished)"] and steps == ALL / 2
    assert equal(result, cl.run(STREAM, "avalanche:Naive", **SMALL))


def test_the_time_of_all_starts_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path)
    late = time.time() + 1000
    with monkeypatch.context() as patch:
        patch.setattr("continual.resume.time.time", lambda: late)
        begun(tmp_path, 3)
    assert gone_on(tmp_path)[0].record["time"]["seconds"] < 1000, "the clock stood still while it ran"
    monkeypatch.setattr(resume.Kept, "seconds", lambda self: 500.0)
    begun(tmp_path / "other")
    assert gone_on(tmp_path / "other")[0].record["time"]["seconds"] > 500


# ---- how often


def test_a_checkpoint_is_kept_by_steps_by_the_clock_and_at_a_tasks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("continual.resume.time.monotonic", lambda: now[0])
    kept = resume.Kept(Checkpoints(tmp_path, {}), "ewc", steps=5, minutes=2.0)
    group = kept.group([3], print)
    now[0] = 1.0
    assert [done for done in range(1, 16) if group.due(done)] == [5, 10, 15] and group.due(0)
    now[0] = 120.0
    assert group.due(3)
    group.keep(State({"x": torch.ones(2)}, {"task": 0, "done": 3}))
    assert not group.due(4) and group.due(5)
    group.took = 4.0
    now[0] += 79.0
    assert not group.due(0), "one that takes four seconds is not written again after 79"
    now[0] += 2.0
    assert group.due(0)
    assert not resume.Kept(Checkpoints(tmp_path, {}), "ewc", 5, None).group([3], print).due(4)


@pytest.mark.parametrize("how", [{"checkpoint_steps": None, "checkpoint_minutes": None}, {"out": None}])
def test_no_checkpoints_where_none_are_asked_for(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "write", raises(AssertionError))
    cl.run(STREAM, "finetune", **SMALL | {"out": tmp_path} | how)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    begun(tmp_path, 17)
    assert [path.name[4:-12] for path in files(tmp_path)] == ["task-0002.step-000000002", "task-0002.step-000000004"]


def test_keeping_does_not_change_what_a_run_is_recognised_by(tmp_path: Path) -> None:
    begun(tmp_path)
    result, said, _ = gone_on(tmp_path, checkpoint_steps=3, checkpoint_minutes=None)
    assert "goes on" in said[0] and "checkpoint_steps" not in result.record["protocol"]["training"]
    assert "already there" in gone_on(tmp_path, checkpoint_minutes=1)[1][0]


# ---- what is refused


def test_again_begins_anew(tmp_path: Path) -> None:
    begun(tmp_path)
    told = Dies(10**6)
    cl.run(STREAM, "ewc", out=tmp_path, again=True, progress=told, **SMALL)
    assert told.said == [] and told.left == 10**6 - ALL and files(tmp_path) == []


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def other_facts(path: Path) -> None:
    """A position that was never reached, written by hand."""
    content = path.read_bytes()
    assert content.count(b'\\"done\\": 4') == 1
    path.write_bytes(content.replace(b'\\"done\\": 4', b'\\"done\\": 3'))


@pytest.mark.parametrize("harm", [damaged, truncated, emptied, other_facts])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(
    harm: Any, tmp_path: Path, whole: store.Result
) -> None:
    begun(tmp_path)
    path = files(tmp_path)[-1]
    harm(path)
    result, said, steps = gone_on(tmp_path)
    assert said[1].startswith(f"ewc: {path} is damaged: ") and said[1].endswith("; the one before it is used")
    assert equal(result, whole) and steps == ALL - 44


def test_where_all_are_damaged_the_seed_begins_anew(tmp_path: Path, whole: store.Result) -> None:
    begun(tmp_path)
    for path in files(tmp_path):
        damaged(path)
    result, said, steps = gone_on(tmp_path)
    assert [line.rpartition("; ")[2] for line in said[1:]] == [
        "these seeds start from the beginning", "the one before it is used", "these seeds start from the beginning",
    ]  # fmt: skip
    assert equal(result, whole) and steps == ALL


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    kept = Checkpoints(tmp_path, {"run": 1})
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(BadFolder, match=r"a\.safetensors is not a checkpoint"):
        kept.read(tmp_path / "a.safetensors")
    kept.write("b", {"x": torch.ones(1)}, {})
    for made, reason in (
        ({"run": 2}, r"another configuration \( 1, not 2\)"),
        ({"run": 1, "versions": {"torch": "9"}}, r"other versions \(torch None, not 9\)"),
    ):
        with pytest.raises(BadFolder, match=rf"b\.safetensors is of {reason}"):
            replace(kept, made=made).read(kept.folder / "b.safetensors")


def test_a_shape_that_no_tensor_can_have_is_refused(tmp_path: Path) -> None:
    """safetensors takes it, having no numbers, and PyTorch does not."""
    kept = Checkpoints(tmp_path, {})
    kept.write("a", {"x": torch.empty(0, 2)}, {})
    path = kept.folder / "a.safetensors"
    content = path.read_bytes()
    length, header = (
        int.from_bytes(content[:8], "little"),
        content[8:].replace(b'"shape":[0,2]', b'"shape":[0,%d]' % 2**63),
    )
    path.write_bytes((length + 18).to_bytes(8, "little") + header)
    with pytest.raises(BadFolder, match=r"a\.safetensors is damaged: [^\n]+$"):
        kept.read(path)


def test_a_checkpoint_under_another_name_is_refused(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, {})
    kept.write("0x1.finished", {}, {"seeds": [0]})
    copy = kept.folder / "1x1.finished.safetensors"
    shutil.copy(kept.folder / "0x1.finished.safetensors", copy)
    with pytest.raises(BadFolder, match=r"1x1\.finished\.safetensors is of another name, 0x1\.finished"):
        kept.read(copy)
    assert list(kept.facts()) == ["0x1.finished"]


def test_a_run_goes_on_where_what_says_how_it_is_done_is_damaged(tmp_path: Path, whole: store.Result) -> None:
    begun(tmp_path)
    (how,) = tmp_path.glob("*/.checkpoints-*/*/how.json")
    how.write_text(how.read_text().replace('"cores": ', '"cores": 1'))
    result, said, steps = gone_on(tmp_path)
    assert equal(result, whole) and steps == ALL - 46 and "goes on" in said[0]


def test_checkpoints_of_a_run_that_was_done_in_another_way_are_not_used(
    tmp_path: Path, whole: store.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What said how it was done is gone, and it would be done with more threads now, which rounds otherwise."""
    begun(tmp_path)
    (how,) = tmp_path.glob("*/.checkpoints-*/*/how.json")
    before = json.loads(how.read_text())["how"]["cores"]
    how.unlink()
    monkeypatch.setattr(workers, "cores", lambda: 64)
    result, said, steps = gone_on(tmp_path)
    assert f"are not used, being of another way of doing it (cores {before}, not 64); it starts" in said[0]
    assert equal(result, whole) and steps == ALL


def test_a_checkpoint_holds_every_kind_of_tensor_and_no_code(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, {})
    given = {
        "half": torch.ones(3, dtype=torch.bfloat16), "whole": torch.arange(4).reshape(2, 2).T,
        "flag": torch.tensor(True),
        "one": torch.arange(4)[1::2][:1],
        "none": torch.empty(0, 3), "nan": torch.tensor([float("nan"), -0.0]),
    }  # fmt: skip
    kept.write("one", given | {"same": given["half"]}, {"a": [1, "b", None]})
    tensors, facts = kept.read(kept.folder / "one.safetensors")
    assert facts == {"a": [1, "b", None]} and tensors.keys() == {*given, "same"}
    for name, value in given.items():
        assert tensors[name].dtype == value.dtype and tensors[name].shape == value.shape
        assert tensors[name].equal(value) or name == "nan"
    with pytest.raises(ValueError, match="Out of range float"):
        kept.write("two", {}, {"a": float("nan")})
    assert [path.name for path in kept.folder.iterdir()] == ["one.safetensors"]


MINE = """
from dataclasses import dataclass
import continual as cl

@dataclass(frozen=True)
class Mine(cl.Strategy):
    def penalty(self, net, theta, memory, batch, out, task):
        return {strength} * theta.square().sum()
"""


def test_other_code_is_told_and_its_checkpoints_stay_until_the_run_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file, out, name = tmp_path / "of_mine_resumed.py", tmp_path / "runs", "of_mine_resumed:Mine"

    def edit(strength: float) -> None:
        file.write_text(MINE.format(strength=strength))
        sys.modules.pop("of_mine_resumed", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)

    edit(0.1)
    begun(out, DONE, name)
    (before,) = {path.parent for path in files(out)}
    edit(0.25)
    told = Dies(5)
    with pytest.raises(Killed):
        cl.run(STREAM, name, out=out, progress=told, **SMALL)
    assert told.said == [
        f"{name}: the checkpoints in {before} are not used, being of other code (of_mine_resumed); it starts from the "
        "beginning, and they stay until it is stored"
    ]
    assert len({path.parent for path in files(out)}) == 2
    edit(0.1)
    result, said, steps = gone_on(out, name)
    assert "goes on" in said[0] and steps == ALL - 46 and files(out) == []
    assert equal(result, cl.run(STREAM, name, **SMALL))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"asked": {"threads": 1}}, r"another way to compute (threads None, not 1)"),
        ({"device": {"type": "cuda", "name": "H100"}}, "another device (name x, not H100; type cpu, not cuda)"),
        ({"versions": {"torch": "3"}}, "other versions (torch 2, not 3)"),
        ({"code": {"a": "1", "b": "3"}}, "other code (b)"),
        ({"run": {"protocol": {"seeds": [1]}}}, "another configuration (protocol.seeds [0], not [1])"),
    ],
)
def test_why_a_checkpoint_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "run": {"protocol": {"seeds": [0]}}, "asked": {"threads": None}, "device": {"type": "cpu", "name": "x"},
        "versions": {"torch": "2"}, "code": {"a": "1", "b": "2"},
    }  # fmt: skip
    Checkpoints(tmp_path, made).write("x", {}, {})
    new = Checkpoints(tmp_path, made | change)
    assert [why for _, why in new.others()] == [reason]


def test_the_frameworks_own_code_is_known() -> None:
    code = plugins.own_code()
    assert {"continual.learning.train", "continual.strategies.ewc", "continual.benchmarks.split_digits"} <= code.keys()
    assert len(set(code.values())) > 60


def test_code_in_no_file_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoints, "write", raises(AssertionError))
    namespace: dict[str, Any] = {"__name__": "nowhere_at_all"}
    exec(MINE.format(strength=0.1), namespace)
    cl.run(STREAM, namespace["Mine"](), out=tmp_path, **SMALL)


# ---- others at the same time, and bad luck


def test_a_folder_that_another_process_takes_away_does_no_harm(tmp_path: Path, whole: store.Result) -> None:
    class Takes(Dies):
        def step(self, task: int, step: int, steps: int) -> None:
            if step % 2:
                for folder in tmp_path.glob("*/.checkpoints-*"):
                    shutil.rmtree(folder)

    assert equal(cl.run(STREAM, "ewc", out=tmp_path, progress=Takes(0), **SMALL), whole)
    assert files(tmp_path) == []


def test_a_process_that_is_behind_leaves_what_the_other_kept(
    tmp_path: Path, whole: store.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path)
    before = files(tmp_path)
    with monkeypatch.context() as patch:  # it began when nothing was there
        patch.setattr(resume.Group, "start", lambda self: None)
        patch.setattr(resume.Group, "finished", lambda self: None)
        begun(tmp_path, 38)
    assert files(tmp_path) == before
    result, _, steps = gone_on(tmp_path)
    assert equal(result, whole) and steps == ALL - 46


def test_how_a_run_is_done_is_settled_by_whoever_is_first(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, {})
    assert kept.agree({"how": "map"}, "a") == ({"how": "map"}, "a") == kept.agree({"how": "loop"}, "b")
    for text in ("{", '{"a": ' * 400 + "1" + "}" * 400, '{"a": ' * 900 + "1" + "}" * 900, "[]", '{"sha256": null}'):
        (kept.folder / "how.json").write_text(text)
        assert kept.how() is None
    assert kept.how() is None and kept.agree({"how": "loop"}, "c") == ({"how": "loop"}, "c")


def test_a_full_disk_is_told_once_a_checkpoint_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: store.Result
) -> None:
    monkeypatch.setattr(Checkpoints, "write", raises_full)
    result, said, _ = gone_on(tmp_path, checkpoint_steps=15)
    assert equal(result, whole) and "no checkpoint could be written to" in said[0]
    assert "No space left" in said[0] and said[0].endswith("the run goes on without")


def raises_full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_what_was_being_written_is_swept_up(tmp_path: Path) -> None:
    begun(tmp_path)
    stray = files(tmp_path)[0].with_name(".writing-1x1.task-0000.step-000000008.safetensors-12345678")
    stray.write_bytes(b"half")
    gone_on(tmp_path)
    assert not stray.exists()


def test_a_stored_run_leaves_no_checkpoints_behind_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was killed between the two."""
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "forget", raises(Killed))
        with pytest.raises(Killed):
            cl.run(STREAM, "ewc", out=tmp_path, **SMALL)
    assert list(tmp_path.glob("*/.checkpoints-*"))
    assert "already there" in gone_on(tmp_path)[1][0]
    assert not list(tmp_path.glob("*/.checkpoints-*"))


def test_an_error_leaves_nothing_where_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continual.learning.train.Course.learn", raises(ZeroDivisionError))
    plan = config.plan({"benchmark": STREAM, "strategies": ["finetune", "ewc"], **SMALL})
    with pytest.raises(ZeroDivisionError):
        runner.run_plan(plan, out=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.undo()
    begun(tmp_path)
    monkeypatch.setattr("continual.learning.train.Course.learn", raises(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        cl.run(STREAM, "ewc", out=tmp_path, **SMALL)
    assert len(files(tmp_path)) == 3, "what is done stays"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
@pytest.mark.parametrize("strategies", ["finetune ewc+replay:capacity=9"])
def test_kill_minus_nine_at_random_moments(strategies: str) -> None:
    words = ["--strategies", strategies, "--rounds", "2", "--kills", "5", "--seed", "3"]
    done = subprocess.run([sys.executable, KILLS, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {line[:27].strip(): int(line[27:]) for line in done.stdout.splitlines()[:-1]}
    assert told["runs"] == 2 and told["runs that differ"] == 0 and told["folders left behind"] == 0
    assert told["kills"] >= 1


@contextlib.contextmanager
def typed(out: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "continual", "run", STREAM, *words, "--out", str(out)], text=True,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        yield process


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_the_same_command_typed_again_goes_on(tmp_path: Path) -> None:
    """In processes, which end with the one that began them."""
    words = ("ewc", "--seeds", "2", "--seeds-as", "processes", "--threads", "1", "--epochs", "40",
             "--checkpoint-steps", "3")  # fmt: skip
    limit = time.monotonic() + 120
    with typed(tmp_path, *words) as first:
        while not files(tmp_path) and time.monotonic() < limit:
            time.sleep(0.005)
        first.kill()
    time.sleep(0.5)
    before = files(tmp_path)
    time.sleep(0.5)
    assert before and files(tmp_path) == before, "its processes are gone too"
    with typed(tmp_path, *words) as second:
        assert second.stderr is not None
        assert second.stderr.readline().startswith("ewc: goes on where it was interrupted (seed ")
    assert second.returncode == 0
    (result,) = store.find(tmp_path)
    assert equal(result, cl.run(STREAM, "ewc", seeds=2, epochs=40, threads=1, seeds_as="loop"))


def test_checkpoints_are_options_of_the_command_line(tmp_path: Path) -> None:
    def invoke(*more: str) -> Any:
        words = ["run", STREAM, "finetune", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path), *more]
        return CliRunner().invoke(cli.main, words)

    assert invoke("--checkpoint-steps", "2", "--checkpoint-minutes", "none").exit_code == 0
    assert "already there" in invoke("--checkpoint-minutes", "0.5").output
    assert invoke("--checkpoint-steps", "0").exit_code == 2
    np.testing.assert_equal(len(store.find(tmp_path)), 1)
