"""Trackers: they are told what the result holds, whichever way seeds are done; and each of the three, read back."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import continual as cl
from continual import config, parts, runner
from continual.cli import main
from continual.errors import BadOption, Mistake
from continual.learning.train import Watch, train
from continual.progress import Progress
from continual.results import metrics
from continual.results.store import Result
from continual.tracking.follow import Follow, metrics_so_far
from continual.tracking.tracker import Ended, Followed, Log, Point, Tracker, Unreachable

BENCHMARK = "split-digits:limit=20,tasks=3"
SHORT: dict[str, Any] = {"epochs": 2, "batch": 16, "evaluate_every": 2, "model": "mlp:layers=20"}
STEPS = 26
"""Of a seed, ten of them in the first task."""
Curve = dict[int, float]


def tracked(track: Any, strategy: Any = "replay:capacity=9", seeds: int = 2, **options: Any) -> Result:
    return cl.run(BENCHMARK, strategy, track=track, seeds=seeds, **SHORT | options)


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


class Noted(Log):
    """A log that keeps what it is told."""

    def __init__(self, followed: Followed) -> None:
        self.followed = followed
        self.written: list[list[Point]] = []
        self.ended: Ended | None = None
        self.failed = False

    def write(self, points: Sequence[Point]) -> None:
        self.written.append(list(points))

    def end(self, ended: Ended) -> None:
        self.ended = ended

    def fail(self) -> None:
        self.failed = True

    @property
    def curves(self) -> dict[str, Curve]:
        found: dict[str, Curve] = {}
        for point in (point for points in self.written for point in points):
            for name, value in point.values.items():
                curve = found.setdefault(name, {})
                assert point.at not in curve and all(at < point.at for at in curve), "once each, in order"
                curve[point.at] = value
        return found


@dataclass(frozen=True)
class Notes(Tracker):
    """Keeps what it is told."""

    logs: ClassVar[list[Noted]] = []

    def begin(self, followed: Followed) -> Log:
        self.logs.append(Noted(followed))
        return self.logs[-1]


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    Notes.logs.clear()


def expected(result: Result, seed: int | None = None) -> dict[str, Curve]:
    """What a log has to hold, from the arrays of a finished result."""
    of = slice(None) if seed is None else slice(result.seeds.index(seed), result.seeds.index(seed) + 1)
    arrays = {name: value if name in ("trace_task", "trace_step") else value[of].astype(np.float64)
              for name, value in result.arrays.items()}  # fmt: skip
    A, T = arrays["accuracy"], arrays["accuracy"].shape[2]
    found: dict[str, Curve] = {"loss": {i + 1: v for i, v in enumerate(np.nanmean(arrays["loss"], 0))}}
    found["stored-samples"] = {i + 1: v for i, v in enumerate(arrays["stored_samples"].mean(0))}
    for name in {"accuracy", "training_accuracy", "validation_accuracy"} & set(arrays):
        for j in range(T):
            found[f"{name.replace('_', '-')}/task-{j + 1}"] = {i: arrays[name][:, i, j].mean() for i in range(T + 1)}
    if "trace" in arrays:
        for j in range(T):
            seen = arrays["trace_task"] >= j
            means = arrays["trace"][:, seen, j].mean(0)
            found[f"trace/task-{j + 1}"] = dict(zip(arrays["trace_step"][seen].tolist(), means, strict=True))
        found["metrics/minimum-accuracy"] = {
            i: metrics.minimum_accuracy(arrays["trace"][:, arrays["trace_task"] < i, :i],
                                        arrays["trace_task"][arrays["trace_task"] < i]).mean()
            for i in range(2, T + 1)
        }  # fmt: skip
    found["metrics/average-accuracy"] = {i: A[:, i, :i].mean() for i in range(1, T + 1)}
    found["metrics/forgetting"] = {
        i: np.mean([A[:, 1:i, j].max(1) - A[:, i, j] for j in range(i - 1)]) for i in range(2, T + 1)
    }
    return found


def same(got: dict[str, Curve], wanted: dict[str, Curve], rtol: float = 1e-6) -> None:
    """Every curve that is wanted; and nothing else but other metrics."""
    assert {name for name in got if not name.startswith(("metrics/", "summary/"))} == {
        name for name in wanted if not name.startswith("metrics/")
    }
    for name, curve in wanted.items():
        assert list(got[name]) == list(curve), name
        np.testing.assert_allclose(list(got[name].values()), list(curve.values()), rtol=rtol, atol=1e-9, err_msg=name)


# ---- what is told


@pytest.mark.parametrize("how", ["map", "loop", "processes"])
def test_what_is_told_is_what_the_result_holds_whichever_way_seeds_are_done(how: str) -> None:
    result = tracked(Notes(seeds="both"), seeds_as=how, train_samples=20)
    assert [log.followed.part for log in Notes.logs] == ["mean", "seed-0", "seed-1"]
    for log in Notes.logs:
        same(log.curves, expected(result, log.followed.seed))
        assert log.ended is not None and not log.failed
    mean = Notes.logs[0].ended
    assert mean is not None and mean.folder is None and mean.stopped == ()
    assert mean.metrics["average-accuracy"] == pytest.approx(result.average_accuracy.mean())
    assert mean.metrics["average-accuracy-sd"] == pytest.approx(result.average_accuracy.std(ddof=1))
    assert mean.metrics["samples-storage-efficiency"] == pytest.approx(
        result.metric("samples-storage-efficiency").mean()
    )
    second = Notes.logs[2].ended
    assert second is not None and second.metrics["forgetting"] == pytest.approx(result.forgetting[1])


def test_it_is_told_task_by_task_and_the_mean_as_soon_as_all_seeds_have_it() -> None:
    tracked(Notes(seeds="both"), seeds_as="map")
    rows = [[point.at for point in points if point.axis == "task"] for points in Notes.logs[0].written]
    assert rows == [[0], [1], [2], [3]]
    Notes.logs.clear()
    tracked(Notes(seeds="both"), seeds_as="loop")
    mean, first, second = ([[p.at for p in points if p.axis == "task"] for points in log.written] for log in Notes.logs)
    assert mean == first == second == [[0], [1], [2], [3]]


def test_seeds_whose_tasks_differ_in_size_are_averaged_step_by_step() -> None:
    result = cl.run("split-digits:order=seed,limit=160", "finetune", track=Notes(), seeds=3, epochs=1, batch=16,
                    model="mlp:layers=20")  # fmt: skip
    losses = result.arrays["loss"]
    assert np.isnan(losses).any(), "the seeds took different numbers of steps"
    (log,) = Notes.logs
    same(log.curves, expected(result))


def test_a_seed_that_was_stopped_is_told_and_takes_no_part_in_the_mean() -> None:
    result = tracked(Notes(seeds="both"), "l2:strength=1e30", optimizer="sgd:lr=1e8", seeds=2)
    assert result.record["stopped"] and np.isnan(result.accuracy).any()
    mean, first, _ = Notes.logs
    assert mean.ended is not None and len(mean.ended.stopped) == len(result.record["stopped"])
    assert first.ended is not None and all(text.startswith("seed 0: ") for text in first.ended.stopped)
    assert all(np.isfinite(list(curve.values())).all() for curve in mean.curves.values())


def test_avalanche_strategies_are_followed_too() -> None:
    needs("avalanche")
    result = tracked(Notes(seeds="each"), "avalanche:Naive", evaluate_every=None)
    for log in Notes.logs:
        same(log.curves, expected(result, log.followed.seed))


def test_tasks_of_no_steps_are_followed_too() -> None:
    said = Said()
    tracked(Notes(), "joint:every=false", progress=said)
    (log,) = Notes.logs
    assert log.ended is not None and not any("no longer" in line for line in said.lines)
    assert list(log.curves["metrics/average-accuracy"]) == [3] and "trace/task-3" in log.curves
    assert "metrics/learning-accuracy" not in log.curves, "the tasks that were put off are not measured"


def test_tracking_changes_neither_the_numbers_nor_what_a_run_is_recognised_by(tmp_path: Path) -> None:
    plain = tracked(None, seeds_as="map", out=tmp_path / "plain")
    followed = tracked(Notes(), seeds_as="map", out=tmp_path / "followed")
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(array, followed.arrays[name])
    folders = [sorted(str(file.relative_to(tmp_path / one)) for file in (tmp_path / one).rglob("*"))
               for one in ("plain", "followed")]  # fmt: skip
    assert folders[0] == folders[1]
    ended = Notes.logs[0].ended
    assert ended is not None and ended.folder is not None and (Path(ended.folder) / "run.json").is_file()


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_stored_run_is_not_tracked_again_which_is_told(tmp_path: Path) -> None:
    tracked(None, out=tmp_path)
    said = Said()
    tracked(Notes(), out=tmp_path, progress=said)
    assert not Notes.logs and any("not tracked" in line for line in said.lines)
    tracked(Notes(), out=tmp_path, again=True)
    assert len(Notes.logs) == 1


# ---- the device is asked no more


class Counted:
    """Counts what copies to the host: ``cpu``, ``numpy``, ``tolist``, ``item`` of tensors that are not there yet."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("cpu", "tolist", "item"):
            patch.setattr(torch.Tensor, name, self.counting(name, getattr(torch.Tensor, name)))

    def counting(self, name: str, usual: Any) -> Any:
        def counted(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            return usual(tensor, *arguments, **named)

        return counted


@pytest.mark.parametrize("every", [None, 2])
def test_a_tracker_asks_the_device_for_nothing_that_training_does_not_copy_anyway(every: int | None) -> None:
    calls = []
    tracked(None, seeds_as="map", evaluate_every=every)  # what is done once for all runs
    for track in (None, Notes(seeds="both")):
        with pytest.MonkeyPatch.context() as patch:
            counted = Counted(patch)
            tracked(track, seeds_as="map", evaluate_every=every)
            calls.append(counted.calls)
    assert calls[0] == calls[1] and "cpu" in calls[0]


def test_what_a_watch_is_given_lies_on_the_cpu_and_adds_up_to_what_training_gives() -> None:
    from continual.conformance import learners_of
    from continual.learning.training import Training
    from continual.strategies import Replay

    pieces: list[tuple[int, dict[str, torch.Tensor]]] = []
    training = Training(seeds=2, epochs=2, batch=8, evaluate_every=3, precision="float64")
    arrays, _ = train(learners_of(Replay(capacity=6), [0, 1]), training, Watch(task=lambda *it: pieces.append(it)))
    assert [index for index, _ in pieces] == [-1, 0, 1, 2]
    for name, whole in arrays.items():
        parts = [piece[name] for _, piece in pieces if name in piece]
        axis = 0 if name in ("trace_task", "trace_step") else 1
        assert all(part.device.type == "cpu" for part in parts)
        torch.testing.assert_close(torch.cat(parts, axis), whole, equal_nan=True)


# ---- what goes wrong


@dataclass(frozen=True)
class Breaks(Tracker):
    """Fails at a point."""

    at: str = cl.option("write", "where")

    def reach(self) -> None:
        if self.at == "reach":
            raise Unreachable("nobody answers")

    def begin(self, followed: Followed) -> Log:
        if self.at == "begin":
            raise ConnectionError("gone")
        return Breaking(self.at, followed)


class Breaking(Noted):
    """Fails at a point."""

    def __init__(self, at: str, followed: Followed) -> None:
        super().__init__(followed)
        self.at = at

    def write(self, points: Sequence[Point]) -> None:
        if self.at == "write":
            raise ConnectionError("gone")

    def end(self, ended: Ended) -> None:
        if self.at == "end":
            raise ConnectionError("gone")


@pytest.mark.parametrize("at", ["write", "end"])
def test_a_tracker_that_fails_later_on_costs_no_run_and_no_other_tracker(at: str, tmp_path: Path) -> None:
    said = Said()
    result = tracked([Breaks(at=at), Notes()], out=tmp_path, progress=said)
    assert sum("Breaks no longer follows it: ConnectionError: gone" in line for line in said.lines) == 1
    same(Notes.logs[0].curves, expected(result))
    assert len(list(tmp_path.rglob("run.json"))) == 1


@pytest.mark.parametrize("at", ["reach", "begin"])
def test_a_tracker_that_cannot_be_reached_is_told_before_anything_is_trained(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "train", lambda *_: pytest.fail("it trains"))
    with pytest.raises(Unreachable, match="nobody answers" if at == "reach" else "ConnectionError: gone"):
        tracked([Notes(), Breaks(at=at)])
    assert all(log.failed for log in Notes.logs) and bool(Notes.logs) == (at == "begin")


def test_a_run_that_is_broken_off_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracked(Notes())
    assert Notes.logs[0].failed and Notes.logs[0].ended is None


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_told_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(Unreachable, match=rf"needs the package {name}, .*pip install 'continual\[{name}\]'"):
        tracked(name)


@pytest.mark.parametrize(("given", "told"), [
    ("tensorbord", "did you mean 'tensorboard'"),
    ("tensorboard:folder=x", "has no option 'folder'"),
    ("tensorboard:seeds=all", r"mean\|each\|both"),
    (7, "names nothing"),
])  # fmt: skip
def test_a_mistake_is_told(given: Any, told: str) -> None:
    with pytest.raises(Mistake, match=told):
        config.plan({"track": given})


def test_trackers_are_named_in_every_way_that_others_are(tmp_path: Path) -> None:
    def made(given: Any) -> list[str]:
        return [config.title("trackers", one) for one in config.plan({"track": given}).trackers]

    both = ["tensorboard:seeds=each", "mlflow:uri=http://127.0.0.1:5000"]
    assert made("+".join(both)) == made(both) == made((both[0], {"name": "mlflow", "uri": "http://127.0.0.1:5000"}))
    assert made(None) == made([]) == []
    file = tmp_path / "run.yaml"
    file.write_text("track: tensorboard:dir=there\nseeds: 1\n")
    assert config.plan(config.read_file(file)).trackers == config.make_trackers("tensorboard:dir=there")
    with pytest.raises(BadOption, match="has no method 'begin'"):
        config.make_trackers("continual.strategies.ewc:EWC")


class Dies(Progress):
    """Kills the run before its n-th step."""

    def __init__(self, left: int) -> None:
        self.left = left

    def step(self, task: int, step: int, steps: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def interrupted(track: Any, out: Path) -> Result:
    """What a run gives that was interrupted in the second task of its second seed, and typed again."""
    asked: dict[str, Any] = {"out": out, "seeds_as": "loop", "checkpoint_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        tracked(track, progress=Dies(STEPS + 12), **asked)
    return tracked(track, **asked)


def test_a_run_that_goes_on_has_the_same_mark_and_every_other_another(tmp_path: Path) -> None:
    result = interrupted(Notes(), tmp_path)
    same(Notes.logs[1].curves, expected(result))
    for more in ({"strategy": "finetune", "out": tmp_path}, {"out": tmp_path, "again": True}, {}):
        tracked(Notes(), **more)
    marks = [log.followed.mark for log in Notes.logs]
    assert all(mark.isalnum() for mark in marks) and marks[0] == marks[1] and len(set(marks)) == 4


# ---- TensorBoard


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(folder: Path) -> dict[str, Curve]:
    read = events(folder)
    return {tag: {one.step: one.value for one in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def test_tensorboard_holds_what_the_result_holds(tmp_path: Path) -> None:
    needs("tensorboard")
    result = tracked(f"tensorboard:dir={tmp_path}", out=tmp_path / "runs")
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    assert folder.name == "replay-capacity=9" and folder.parent.parent == tmp_path
    found = scalars(folder)
    same(found, expected(result), rtol=1e-5)
    assert found["summary/forgetting"][0] == pytest.approx(result.forgetting.mean(), rel=1e-5)
    read = events(folder)
    assert {"configuration/text_summary", "folder/text_summary"} <= set(read.Tags()["tensors"])
    (text,) = read.Tensors("configuration/text_summary")
    assert "| training.epochs | 2 |" in text.tensor_proto.string_val[0].decode()
    (there,) = read.Tensors("folder/text_summary")
    assert (Path(there.tensor_proto.string_val[0].decode()) / "run.json").is_file()
    data = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"strategies.replay.capacity" in data and b"benchmark.limit" in data


def test_a_run_that_goes_on_is_the_same_at_tensorboard(tmp_path: Path) -> None:
    needs("tensorboard")
    result = interrupted(f"tensorboard:dir={tmp_path / 'tb'}", tmp_path / "runs")
    (file,) = (tmp_path / "tb").rglob("events.out.tfevents.*")
    same(scalars(file.parent), expected(result), rtol=1e-5)


def test_a_run_that_is_done_again_replaces_its_event_files(tmp_path: Path) -> None:
    needs("tensorboard")
    for again in (False, True):
        tracked(f"tensorboard:dir={tmp_path / 'tb'},seeds=both", out=tmp_path / "runs", again=again)
    files = sorted((tmp_path / "tb").rglob("events.out.tfevents.*"))
    assert [file.parent.name for file in files] == ["mean", "seed-0", "seed-1"]


def test_the_command_line_tracks(tmp_path: Path) -> None:
    needs("tensorboard")
    words = ["run", BENCHMARK, "finetune", "--seeds", "1", "--epochs", "1", "--quiet", "--out", str(tmp_path / "runs"),
             "--track", f"tensorboard:dir={tmp_path / 'tb'}"]  # fmt: skip
    assert CliRunner().invoke(main, words).exit_code == 0
    result = cl.run(
        BENCHMARK, "finetune", seeds=1, epochs=1, out=tmp_path / "runs", batch=32, model="mlp:layers=100-100"
    )
    (file,) = (tmp_path / "tb").rglob("events.out.tfevents.*")
    same(scalars(file.parent), expected(result), rtol=1e-5)
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0 and "not tracked, as it is not run" in again.stderr


@pytest.mark.parametrize(("tracker", "given"), [("tensorboard", "dir={}"), ("mlflow", "uri=sqlite:///{}/mlflow.db")])
def test_a_folder_that_cannot_be_written_is_told_first(
    tracker: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(tracker)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(runner, "prepare", lambda *_: pytest.fail("it goes on"))
    with pytest.raises(Mistake, match="cannot write into the folder"):
        tracked(f"{tracker}:{given.format(tmp_path / 'file')}")


# ---- Weights & Biases, offline


def records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a log in the format of LevelDB, with blocks of 32 KiB, behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole = (b"" if kind in (1, 2) else whole) + content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record


def name_of(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def test_wandb_offline_holds_what_the_result_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    result = tracked(f"wandb:mode=offline,project=p,seeds=both,dir={tmp_path}", out=tmp_path / "runs")
    runs = {}
    for file in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        read = list(records(file))
        (run,) = (record.run for record in read if record.HasField("run"))
        runs[run.job_type] = (run, read)
    assert sorted(runs) == ["mean", "seed-0", "seed-1"]
    for part, (run, read) in runs.items():
        assert run.project == "p" and run.run_group.startswith("split-digits-mlp-")
        given = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert given["training"]["epochs"] == 2 and given["strategies"] == {"replay": {**given["strategies"]["replay"]}}
        assert given["strategies"]["replay"]["capacity"] == 9
        found: dict[str, Curve] = {}
        for record in read:
            row = {name_of(item): json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {"step", "task"}:
                if not name.startswith("_"):
                    found.setdefault(name, {})[row["step"] if "step" in row else row["task"]] = row[name]
        same(found, expected(result, None if part == "mean" else int(part[-1])))
        summary = {name_of(item): json.loads(item.value_json) for record in read for item in record.summary.update}
        seed = slice(None) if part == "mean" else int(part[-1])
        assert summary["summary/forgetting"] == pytest.approx(np.mean(result.forgetting[seed]))
        assert (Path(summary["folder"]) / "run.json").is_file()
        axes = {record.metric.name: record.metric.step_metric for record in read if record.HasField("metric")}
        assert axes["loss"] == "step" and axes["accuracy/task-1"] == axes["metrics/forgetting"] == "task"
        assert any(record.HasField("exit") and record.exit.exit_code == 0 for record in read)


def test_wandb_asks_who_you_are_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(runner, "prepare", lambda *_: pytest.fail("it goes on"))
    with pytest.raises(Unreachable, match=r"does not know who you are: run .wandb login.*mode=offline"):
        tracked(f"wandb:mode=online,dir={tmp_path}")


def test_a_run_that_goes_on_is_the_same_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    import wandb

    asked: list[dict[str, Any]] = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **given: asked.append(given) or init(**given))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    interrupted(f"wandb:mode=offline,project=p,dir={tmp_path}", tmp_path / "runs")
    first, second = asked
    assert first["id"] == second["id"] and first["id"].endswith("-mean") and second["resume"] == "allow"
    # that of the run which was interrupted may be written to last
    read = max((list(records(file)) for file in tmp_path.glob("wandb/offline-run-*/*.wandb")), key=len)
    assert next(record.run.run_id for record in read if record.HasField("run")) == second["id"]
    rows = [{name_of(item): json.loads(item.value_json) for item in record.history.item} for record in read]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))


# ---- MLflow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server on loopback."""
    needs("mlflow")
    needs("flask")
    import requests

    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail((folder / "log").read_text())
            try:
                if requests.get(f"{uri}/health", timeout=5).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text())
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def test_mlflow_holds_what_the_result_holds(server: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    result = tracked(f"mlflow:uri={server},experiment=e,seeds=both", out=tmp_path / "runs")
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    runs = {run.data.tags["seed"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["mean", "seed-0", "seed-1"]
    for part, run in runs.items():
        assert run.info.status == "FINISHED" and run.info.run_name == f"replay:capacity=9, {part}"
        assert run.data.params["training.epochs"] == "2" and run.data.params["strategies.replay.capacity"] == "9"
        assert run.data.tags["strategy"] == "replay:capacity=9"
        assert (Path(run.data.tags["folder"]) / "run.json").is_file()
        wanted = expected(result, None if part == "mean" else int(part[-1]))
        assert wanted.keys() <= run.data.metrics.keys()
        for name in ("loss", "trace/task-2", "accuracy/task-1", "metrics/forgetting"):  # a request each
            curve = {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
            assert sorted(curve) == list(wanted[name])
            np.testing.assert_allclose([curve[at] for at in wanted[name]], list(wanted[name].values()), rtol=1e-6)
        seed = slice(None) if part == "mean" else int(part[-1])
        assert run.data.metrics["summary/average-accuracy"] == pytest.approx(np.mean(result.average_accuracy[seed]))


def test_a_run_that_goes_on_is_the_same_at_mlflow(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(Follow, "fail", lambda self: None)  # kill -9 tells nobody
    result = interrupted(f"mlflow:uri={server},experiment=killed,seeds=both", tmp_path / "runs")
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    runs = {run.data.tags["seed"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["mean", "seed-0", "seed-1"]
    assert len(client.search_runs([experiment.experiment_id])) == 3
    for part, run in runs.items():
        assert run.info.status == "FINISHED"
        wanted = expected(result, None if part == "mean" else int(part[-1]))
        for name in ("loss", "trace/task-2", "accuracy/task-1"):
            history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda one: one.step)
            assert [one.step for one in history] == list(wanted[name]), "each once"
            np.testing.assert_allclose([one.value for one in history], list(wanted[name].values()), rtol=1e-6)


def test_a_server_that_is_down_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    monkeypatch.setattr(runner, "prepare", lambda *_: pytest.fail("it goes on"))
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(Unreachable, match=rf"^MLflow at {uri} cannot be reached: Connection refused; start it"):
            tracked(f"mlflow:uri={uri}")
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


# ---- the page


def test_the_tracker_of_the_page_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "track-a-run.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    module = types.ModuleType("the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "track-a-run.md", "exec"), vars(module))
    title, *rows, last = capsys.readouterr().out.splitlines()
    assert title == "finetune" and [row.split()[0] for row in rows] == list("012345") and last.endswith(" None")


def test_the_page_names_what_is_shown() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "track-a-run.md").read_text(encoding="utf-8")
    tracked(Notes())
    shown = {name.partition("/")[0] for name in Notes.logs[0].curves}
    assert shown == {"loss", "accuracy", "training-accuracy", "metrics", "trace", "stored-samples"}
    assert all(f"`{name}" in page for name in shown)


def test_metrics_over_samples_and_of_rows_set_aside_are_followed_too() -> None:
    accuracy = np.array([[[0.1, 0.2], [0.9, 0.3], [0.5, 0.7]]])
    arrays = {"accuracy": accuracy, "validation_accuracy": accuracy / 2, "test_samples": np.array([[30, 10]])}
    one, two = (metrics_so_far(arrays, learnt) for learnt in (1, 2))
    assert one["validation-accuracy"] == pytest.approx(0.45) and two["validation-accuracy"] == pytest.approx(0.3)
    assert one["overall-accuracy"] == pytest.approx(0.9) and two["overall-accuracy"] == pytest.approx(0.55)
    assert two["overall-incremental-accuracy"] == pytest.approx((0.9 + 0.55) / 2)
    assert "overall-accuracy" not in metrics_so_far({"accuracy": accuracy}, 1)


@pytest.mark.parametrize("seeds_as", ["loop", "map"])
def test_a_run_tells_how_many_test_samples_tasks_have(seeds_as: str) -> None:
    result = tracked(Notes(), "finetune", seeds_as=seeds_as)
    (log,) = Notes.logs
    for name in ("overall-accuracy", "overall-incremental-accuracy"):
        curve = log.curves[f"metrics/{name}"]
        assert sorted(curve) == [1, 2, 3] and curve[3] == pytest.approx(metrics.METRICS[name](result).mean())
