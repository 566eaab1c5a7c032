"""The loop: learners go through their tasks, and what they can do is written down. No input or output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.errors import BadOption
from continual.learning.capture import Captured, Graph
from continual.learning.evaluate import Evaluation
from continual.learning.seeds import Learners
from continual.learning.step import Program
from continual.options import Configured, option
from continual.streams.placement import read_ahead
from continual.streams.rng import draw

if TYPE_CHECKING:
    from torch import Tensor

MOST_SEEDS = 10_000
MOST_STEPS = 5_000_000
"""Of one task, whose batches are laid down before the first."""


@dataclass(frozen=True)
class Training(Configured):
    """How learners are trained and measured, whatever the strategy."""

    seeds: int | tuple[int, ...] = option(
        5, "how many, counted from 0, or the seeds themselves as in 3-5-7 ('7-' for one)", ge=0
    )
    epochs: int = option(1, "times each task's rows are gone through", ge=1, le=MOST_STEPS)
    iterations: int | None = option(None, "steps of each task, instead of epochs", ge=1, le=MOST_STEPS)
    batch: int = option(128, "rows in a batch", ge=1)
    last: Literal["keep", "drop"] = option("keep", "what is done with an epoch's last partial batch")
    optimizer_state: Literal["keep", "reset"] = option("keep", "the optimiser's state at the start of a task")
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = option(
        "float32", "of the arithmetic; tf32: float32 whose products a GPU rounds; bfloat16: of the forward pass"
    )
    evaluate_every: int | Literal["epoch"] | None = option(
        None, "also measure every so many steps, or after each epoch, on the tasks seen", ge=1
    )
    evaluate_samples: int | None = option(200, "rows of each task that are measured between steps; none: all", ge=1)
    evaluate_rows: Literal["test", "all"] = option(
        "test", "whose rows are measured between steps: the tests', or those of training and validation too"
    )
    train_samples: int = option(200, "training rows of each task that its training accuracy is measured on", ge=0)
    seeds_as: Literal["auto", "map", "loop", "processes"] = option(
        "auto", "seeds side by side, one after the other, or in processes; auto: what a few steps show to be fastest"
    )
    program: Literal["auto", "captured", "eager"] = option(
        "auto", "steps are recorded once as CUDA graphs and replayed, or done one by one; auto: recorded where possible"
    )
    compile: bool = option(
        False, "compile the forward pass with torch.compile: seconds for each task, then faster steps"
    )
    deterministic: bool = option(
        False, "the same bits each time on a device: slower kernels where the fast ones differ from time to time"
    )
    threads: int | None = option(
        None, "processor threads; none: PyTorch's default, or one where a step is too small to share", ge=1, le=1024
    )
    pixels: Literal["auto", "device", "pinned", "mapped"] = option(
        "auto",
        "where images lie: on the device, in the host's memory, which a GPU reads from, or in their file; auto: the "
        "first of these that they fit into",
    )

    def check(self) -> None:
        """There are seeds, none of them twice, and one measure of how long a task is."""
        if self.iterations and self.epochs != 1:
            raise BadOption(f"epochs={self.epochs} and iterations={self.iterations}: give one of the two")
        if isinstance(self.seeds, int) and self.seeds > MOST_SEEDS:
            raise BadOption(f"seeds={self.seeds}: that many seeds are not run at once; give at most {MOST_SEEDS}")
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list) or max(self.seed_list) >= 2**31:
            raise BadOption(f"seeds={self.seeds}: give at least one, each once, below 2147483648")

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def steps(self, rows: int) -> int:
        """The steps of a task of so many rows; none where there is nothing to go through.

        Raises :class:`~continual.errors.BadOption` for more of them than can be laid down.
        """
        steps = (self.iterations or self.epochs * self.epoch(rows)) if rows else 0
        if steps > MOST_STEPS:
            raise BadOption(f"epochs={self.epochs}: {steps} steps of {rows} rows are more than a task's {MOST_STEPS}")
        return steps

    def epoch(self, rows: int) -> int:
        """The steps of an epoch of so many rows."""
        whole, rest = divmod(rows, self.batch)
        return whole + (rest > 0 and (self.last == "keep" or whole == 0))


@dataclass
class Watch:
    """Who is told of the progress: ``step(task, step, steps)`` is called before each step and must not wait."""

    step: Callable[[int, int, int], None] = lambda task, step, steps: None


@dataclass(frozen=True)
class Stopped:
    """A seed that was given up: at ``step`` of ``task`` (both from 1) its loss or its parameters were not finite."""

    seed: int
    task: int
    step: int


def schedule(rows: Tensor, training: Training, seed: Tensor, index: int) -> list[Tensor]:
    """The row numbers of every step of a task: (B,) or (R, B) each; rows (n,) or (R, n) on their device.

    Every epoch goes through all rows in an order of its own.
    """
    n = rows.shape[-1]
    batches: list[Tensor] = []
    steps, epoch = training.steps(n), 0
    while len(batches) < steps:
        words = draw(seed, "shuffle", index, torch.tensor(epoch, device=rows.device), n)
        shuffled = rows.gather(-1, torch.sort(words, dim=-1, stable=True).indices)
        parts = shuffled.split(training.batch, dim=-1)
        batches += parts[:-1] if training.last == "drop" and n % training.batch and len(parts) > 1 else parts
        epoch += 1
    return batches[:steps]


def some(rows: Tensor, n: int | None) -> Tensor:
    """``n`` of the rows, evenly spread over them (all, where there are fewer, or with none)."""
    if n is None or len(rows) <= n:
        return rows
    return rows[torch.arange(n, device=rows.device) * len(rows) // n]


def train(learners: Learners, training: Training, watch: Watch) -> tuple[dict[str, Tensor], list[Stopped]]:
    """Every task in turn.

    Gives, on the CPU, with R in front where seeds are mapped: ``accuracy`` (T+1, T) on the test rows, the untrained
    network first; ``training_accuracy`` and, where rows were set aside, ``validation_accuracy`` likewise; ``loss`` of
    all steps; ``stored_samples`` (T,), how many were in memory after each task; and where it was asked for ``trace``
    (E, T) with ``trace_task`` and ``trace_step`` (E,), and ``training_trace`` and ``validation_trace`` likewise.
    """
    if learners.strategy.trains_itself:
        return learners.strategy.train(learners, training, watch)
    streams = learners.streams
    results: dict[str, list[Tensor]] = {}
    tasks = len(streams[0].tasks)
    evaluations = _evaluations(learners, training)
    recorded = not not_captured(learners, training)
    traced = Trace(learners, training, recorded)
    stopped: list[Stopped] = []

    def measure(index: int) -> None:
        for name, evaluation in evaluations.items():
            values = evaluation(index)
            for r, alive in enumerate(learners.alive):
                if not alive:
                    (values[r] if learners.mapped else values).fill_(torch.nan)
            results.setdefault(name, []).append(values.cpu())

    measure(-1)
    stored = []
    for index in range(tasks):
        rows = learners.begin(index)
        batches = schedule(rows, training, learners.seed, index)
        losses = torch.zeros(*learners.theta.shape[:-1], len(batches), device=learners.device,
                             dtype=learners.recipe.dtype)  # fmt: skip
        traced.begin(index, training.epoch(rows.shape[-1]))
        for number, step in enumerate(steps_of(learners, index, batches, losses, recorded)):
            watch.step(index, number, len(batches))
            step()
            traced.after(index, number, len(batches))
        stopped += _stop_lost(learners, losses, index)
        learners.end(index)
        stored.append(learners.stored().cpu())
        results.setdefault("loss", []).append(losses.cpu())
        traced.collect()
        measure(index)
    arrays = {name: torch.stack(rows, -2) for name, rows in results.items() if name != "loss"}
    arrays |= {"loss": torch.cat(results["loss"], -1), "stored_samples": torch.stack(stored, -1)}
    return arrays | traced.arrays(), stopped


def not_captured(learners: Learners, training: Training) -> str:
    """Why the steps are not recorded and replayed; nothing, where they are."""
    if training.program != "auto":
        return "" if training.program == "captured" else "as asked"
    if learners.device.type != "cuda":
        return "only a GPU gains by it"
    if not learners.strategy.can_be_captured:
        return "the strategy cannot be captured"
    return "" if learners.streams[0].samples.pixels.is_cuda else "images are read from their file"


def steps_of(
    learners: Learners, index: int, batches: list[Tensor], losses: Tensor, captured: bool
) -> Iterator[Callable[[], None]]:
    """The steps of a task, each as a function that does it and puts its loss into ``losses``."""
    count = len(batches)
    program, schedule = Program(learners, index, count), learners.recipe.schedule
    rates = [learners.recipe.optimizer.lr * schedule.factor(number, count) for number in range(count)]
    if captured:
        replayed = Captured(program, batches, losses, rates)
        for number in range(count):
            yield functools.partial(replayed, number)
        return

    def one(number: int, rows: Tensor) -> None:
        learners.optimizer.param_groups[0]["lr"] = rates[number]
        losses[..., number] = program(number, rows)

    for number, rows in enumerate(read_ahead(learners.streams[0].samples, batches)):
        yield functools.partial(one, number, rows)


def _evaluations(learners: Learners, training: Training) -> dict[str, Evaluation]:
    """What is measured after every task."""
    tasks = [stream.tasks for stream in learners.streams]
    found = {"accuracy": Evaluation(learners, "test_samples", [[task.test for task in own] for own in tasks])}
    if training.train_samples:
        part = [[some(task.train, training.train_samples) for task in own] for own in tasks]
        found["training_accuracy"] = Evaluation(learners, "samples", part)
    if any(len(task.validation) for own in tasks for task in own):
        held = [[task.validation for task in own] for own in tasks]
        found["validation_accuracy"] = Evaluation(learners, "samples", held)
    return found


def _stop_lost(learners: Learners, losses: Tensor, index: int) -> list[Stopped]:
    """Give up the learners whose loss or θ is not finite: the one look at values that a task's end takes."""
    lead = (1, -1)
    finite = losses.isfinite().reshape(lead if not learners.mapped else losses.shape).cpu()
    sound = learners.theta.isfinite().all(-1).reshape(-1).cpu()
    lost = []
    for r, alive in enumerate(learners.alive):
        if not alive or (finite[r].all() and sound[r]):
            continue
        bad = (~finite[r]).nonzero()
        step = int(bad[0]) if len(bad) else losses.shape[-1] - 1
        lost.append(Stopped(learners.seeds[r], index + 1, step + 1))
        learners.stop(r)
    return lost


class Trace:
    """The accuracy on the tasks seen, between steps; it stays on the device until a task ends."""

    def __init__(self, learners: Learners, training: Training, captured: bool = False) -> None:
        self.captured, self.graphs = captured, dict[tuple[str, int], Graph]()
        self.every, self.learners, self.count = training.evaluate_every, learners, 0
        self.evaluations: dict[str, list[Evaluation]] = {}
        self.pending: dict[str, list[Tensor]] = {}
        self.done: dict[str, list[Tensor]] = {}
        self.marks: list[tuple[int, int]] = []
        if not self.every:
            return
        measured = {"trace": ("test_samples", "test")}
        if training.evaluate_rows == "all":
            measured["training_trace"] = ("samples", "train")
            if any(len(task.validation) for task in learners.streams[0].tasks):
                measured["validation_trace"] = ("samples", "validation")
        count = len(learners.streams[0].tasks)
        for name, (samples, part) in measured.items():
            rows = [[some(getattr(task, part), training.evaluate_samples) for task in stream.tasks]
                    for stream in learners.streams]  # fmt: skip
            none = [own[0][:0] for own in rows]
            self.evaluations[name] = [
                Evaluation(learners, samples, [
                    [one if j <= seen else none[r] for j, one in enumerate(own)] for r, own in enumerate(rows)
                ])
                for seen in range(count)
            ]  # fmt: skip

    def begin(self, index: int, epoch: int) -> None:
        """A task begins, with so many steps in an epoch: what is to be measured is laid out before its steps."""
        self.interval = epoch if self.every == "epoch" else self.every
        for evaluations in self.evaluations.values():
            evaluations[index].select(index)

    def after(self, index: int, number: int, steps: int) -> None:
        """After a step: measure if it is time, and always after a task's last step."""
        self.count += 1
        if self.interval and ((number + 1) % self.interval == 0 or number + 1 == steps):
            for name, evaluations in self.evaluations.items():
                self.pending.setdefault(name, []).append(self._measured(name, evaluations[index], index))
            self.marks.append((index, self.count))

    def _measured(self, name: str, evaluation: Evaluation, index: int) -> Tensor:
        if not self.captured:
            return evaluation(index)
        if (name, index) not in self.graphs:
            self.graphs[name, index] = Graph(lambda: evaluation(index), self.learners.device)
        found = self.graphs[name, index]()
        assert found is not None
        return found.clone()

    def collect(self) -> None:
        """Copy what was measured in a task; of a learner that was given up, nothing."""
        for name, values in self.pending.items():
            measured = torch.stack(values, -2).cpu()
            for r, alive in enumerate(self.learners.alive):
                if not alive:
                    (measured[r] if self.learners.mapped else measured).fill_(torch.nan)
            self.done.setdefault(name, []).append(measured)
        self.pending, self.graphs = {}, {}  # between tasks memory may come to lie elsewhere

    def arrays(self) -> dict[str, Tensor]:
        """The trace, or nothing where none was asked for."""
        if not self.every:
            return {}
        task, step = torch.tensor(self.marks).T
        return {name: torch.cat(values, -2) for name, values in self.done.items()} | {
            "trace_task": task, "trace_step": step,
        }  # fmt: skip
