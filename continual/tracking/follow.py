"""Following a run: what its seeds give, task by task, as points for each tracker, whichever way seeds are done."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual.results import store
from continual.results.metrics import ACCURACIES, METRICS, Array, summarise
from continual.results.pool import SHARED
from continual.results.store import Result
from continual.tracking.tracker import Ended, Followed, Log, Point, Tracker, Unreachable

Arrays = dict[str, NDArray[Any]]
TRACES = ("trace", "training_trace", "validation_trace")


@dataclass(frozen=True)
class SoFar:
    """What is known of R seeds when i tasks have been learnt, as a metric takes it: ``accuracy`` (R, i+1, i)."""

    accuracy: Array
    trace: Array | None
    trace_task: NDArray[np.int64] | None
    record: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)


def known(pieces: Sequence[dict[int, Arrays]]) -> Arrays:
    """What all of some seeds have given, with R in front.

    ``pieces`` holds for each seed the arrays of each task by its index, -1 of the untrained network. Only what follows
    without a gap counts, and of each array so much as all seeds have.
    """
    joined = []
    for own in pieces:
        index, run = -1, []
        while index in own:
            run.append(own[index])
            index += 1
        names = {name for piece in run for name in piece}
        joined.append({name: np.concatenate([piece[name] for piece in run if name in piece]) for name in names})
    found: Arrays = {}
    for name in set.intersection(*(set(own) for own in joined)):
        values = [own[name][: min(len(each[name]) for each in joined)] for own in joined]
        found[name] = values[0] if name in SHARED else np.stack(values)
    return found


class Curves:
    """One log and how much of what is known is written in it already."""

    def __init__(self, log: Log) -> None:
        self.log, self.rows, self.steps, self.evaluations = log, 0, 0, 0

    def write(self, arrays: Arrays) -> None:
        """Write what is new in ``arrays``, which have R in front and may end before the run does."""
        points = [*self._losses(arrays), *self._trace(arrays), *self._rows(arrays)]
        if points:
            self.log.write(points)

    def _losses(self, arrays: Arrays) -> Iterator[Point]:
        losses = arrays.get("loss", np.zeros((1, 0)))
        for step in range(self.steps, losses.shape[1]):
            yield from _point("step", step + 1, {"loss": losses[:, step]})
        self.steps = max(self.steps, losses.shape[1])

    def _trace(self, arrays: Arrays) -> Iterator[Point]:
        when, task = arrays.get("trace_step", np.zeros(0)), arrays.get("trace_task", np.zeros(0))
        for number in range(self.evaluations, len(when)):
            seen = range(int(task[number]) + 1)
            values = {_named(name, j, arrays): arrays[name][:, number, j] for name in TRACES if name in arrays
                      for j in seen}  # fmt: skip
            yield from _point("step", int(when[number]), values)
        self.evaluations = max(self.evaluations, len(when))

    def _rows(self, arrays: Arrays) -> Iterator[Point]:
        rows = arrays["accuracy"].shape[1] if "accuracy" in arrays else 0
        for row in range(self.rows, rows):
            values = {_named(name, j, arrays): arrays[name][:, row, j]
                      for name in ACCURACIES if name in arrays
                      for j in range(arrays[name].shape[2])}  # fmt: skip
            if row:
                values |= {f"metrics/{name}": value for name, value in metrics_so_far(arrays, row).items()}
            if row and "stored_samples" in arrays:
                values["stored-samples"] = arrays["stored_samples"][:, row - 1]
            yield from _point("task", row, values)
        self.rows = max(self.rows, rows)


def _point(axis: Any, at: int, values: dict[str, Any]) -> Iterator[Point]:
    """The means over the seeds that have a finite value; no point where there is none."""
    finite = {name: value[np.isfinite(value)] for name, value in values.items()}
    means = {name: float(value.mean()) for name, value in finite.items() if len(value)}
    if means:
        yield Point(axis, at, means)


def _named(name: str, task: int, arrays: Arrays) -> str:
    """``accuracy/task-03``: so many digits that names sort as tasks do."""
    digits = len(str(arrays["accuracy"].shape[2]))
    return f"{name.replace('_', '-')}/task-{task + 1:0{digits}}"


def metrics_so_far(arrays: Arrays, learnt: int) -> dict[str, Array]:
    """Every metric that can be had, (R,) each, as if the stream had ended after ``learnt`` tasks."""
    trace, task = arrays.get("trace"), arrays.get("trace_task")
    matrix = np.asarray(arrays["accuracy"][:, : learnt + 1, :learnt], np.float64)
    cuts = {"validation_accuracy": (slice(learnt + 1), slice(learnt)), "test_samples": (slice(learnt),)}
    cut = {name: arrays[name][:, *place] for name, place in cuts.items() if name in arrays}
    so_far = SoFar(matrix, None, None, arrays=cut)
    if trace is not None and task is not None and (task < learnt).any():  # a task of no steps has no evaluations
        then = task < learnt
        seen = np.asarray(trace[:, then, :learnt], np.float64)
        so_far = SoFar(matrix, seen, np.asarray(task[then], np.int64), arrays=cut)
    return {name: metric(so_far) for name, metric in METRICS.items() if metric.fits(so_far)}


@dataclass
class Followers:
    """The logs of one tracker: by the seed (None: the mean), how far each is written."""

    tracker: Tracker
    curves: dict[int | None, Curves]


class Follow:
    """The trackers of one run. A tracker that fails later on is told of and left out: it costs no run."""

    def __init__(
        self, trackers: Sequence[Tracker], record: dict[str, Any], say: Callable[[str], None], mark: str = ""
    ) -> None:
        self.record, self.say, self.mark = record, say, mark or uuid.uuid4().hex
        self.seeds: list[int] = list(record["protocol"]["seeds"])
        self.pieces: dict[int, dict[int, Arrays]] = {seed: {} for seed in self.seeds}
        self.followers: list[Followers] = []
        for tracker in trackers:
            self.followers.append(Followers(tracker, {}))
            self._begin(self.followers[-1])

    def _begin(self, follower: Followers) -> None:
        chosen = follower.tracker.seeds
        asked = [*([None] if chosen != "each" else []), *(self.seeds if chosen != "mean" else [])]
        experiment = store.experiment(self.record)
        try:
            for seed in asked:
                followed = Followed(experiment, self.record["title"], seed, chosen != "mean", self.record, self.mark)
                follower.curves[seed] = Curves(follower.tracker.begin(followed))
        except Exception as error:
            self.fail()
            name = type(follower.tracker).__name__
            raise Unreachable(f"{name} cannot follow {self.record['title']}: {_words(error)}") from error

    def feed(self, seeds: Sequence[int], index: int, arrays: Arrays) -> None:
        """What some seeds gave in a task (-1: untrained, or all that there is): R in front but for :data:`SHARED`."""
        if not self.followers:
            return
        for r, seed in enumerate(seeds):
            self.pieces[seed][index] = {name: value if name in SHARED else value[r] for name, value in arrays.items()}
        for follower in list(self.followers):
            self._safely(follower, functools.partial(self._write, follower, seeds))

    def _write(self, follower: Followers, seeds: Sequence[int]) -> None:
        for seed, curves in follower.curves.items():
            if seed is None:
                curves.write(known([self.pieces[one] for one in self.seeds]))
            elif seed in seeds:
                curves.write(known([self.pieces[seed]]))

    def end(self, result: Result, folder: Path | None) -> None:
        """Everything was learnt, and is stored in ``folder`` (None: nowhere)."""
        for follower in list(self.followers):
            self._safely(follower, functools.partial(self._end, follower, result, folder))
        self.followers = []

    def _end(self, follower: Followers, result: Result, folder: Path | None) -> None:
        for seed, curves in follower.curves.items():
            of = slice(None) if seed is None else slice(self.seeds.index(seed), self.seeds.index(seed) + 1)
            own = {name: value if name in SHARED else value[of] for name, value in result.arrays.items()}
            curves.write(own)
            stopped = [f"seed {one['seed']}: {store.why_stopped(one)}"
                       for one in result.record.get("stopped", ()) if seed in (None, one["seed"])]  # fmt: skip
            there = None if folder is None else str(folder.resolve())
            curves.log.end(Ended(_summary(Result(_of(result.record, seed), own)), there, tuple(stopped)))

    def fail(self) -> None:
        """The run was broken off."""
        for follower in self.followers:
            for curves in follower.curves.values():
                self._safely(follower, curves.log.fail)
        self.followers = []

    def _safely(self, follower: Followers, action: Callable[[], None]) -> None:
        """Do it; what a tracker's client raises must not cost the run, and is told."""
        try:
            action()
        except Exception as error:
            self.followers = [one for one in self.followers if one is not follower]
            self.say(f"{self.record['title']}: {type(follower.tracker).__name__} no longer follows it: {_words(error)}")


def _of(record: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """The record as one of its seed's alone."""
    return record if seed is None else record | {"protocol": record["protocol"] | {"seeds": [seed]}}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _summary(result: Result) -> dict[str, float]:
    """Every metric that can be had: the mean over seeds, and where there are several their deviation (n-1)."""
    found: dict[str, float] = {}
    for name, metric in METRICS.items():
        if metric.fits(result):
            summary = summarise(metric(result))
            found |= {name: summary.mean, f"{name}-sd": summary.sd}
    return {name: value for name, value in found.items() if np.isfinite(value)}


@contextlib.contextmanager
def following(
    trackers: Sequence[Tracker], record: dict[str, Any], say: Callable[[str], None], mark: str = ""
) -> Iterator[Follow]:  # fmt: skip
    """Within it, trackers follow a run that is fed to them; one that is broken off is told to them as such.

    ``mark`` is what a run keeps that was killed and goes on; without one it is known to be new.
    """
    follow = Follow(trackers, record, say, mark)
    try:
        yield follow
    except BaseException:
        follow.fail()
        raise
