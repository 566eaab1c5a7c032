"""The loop: learners go through their tasks, and what they can do is written down. No input or output."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from continual.learning.capture import OFTEN, RARE, Captured, Graph, must_not
from continual.learning.evaluate import Evaluation
from continual.learning.models import BYTES
from continual.learning.seeds import MOST, Learners
from continual.learning.step import Program
from continual.learning.strategy import under, within
from continual.learning.training import Training
from continual.streams.placement import read_ahead
from continual.streams.rng import draw, pytorch_left_alone

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.stream import Outputs, Stream


class State(NamedTuple):
    """What a checkpoint holds of a group of learners: tensors by name, and facts in JSON's own types."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass
class Watch:
    """Who is told of the progress, is given what is measured, and keeps checkpoints.

    ``step(task, step, steps)`` is called before each step and must not wait. ``task(index, arrays)`` is called when a
    task has ended with what it adds to the arrays of :func:`train`, which is on the CPU already; first with -1 and what
    the untrained network gave. ``due(done)`` is asked after each step, with how many steps of the task are done, and
    with 0 after a task's end; where it says yes, ``keep(state)`` is given the state, whose tensors are the learners'
    own and soon change. ``start`` is such a state to begin from: ``task`` is then told of what is in it, too.
    """

    step: Callable[[int, int, int], None] = lambda task, step, steps: None
    task: Callable[[int, dict[str, Tensor]], None] = lambda index, arrays: None
    due: Callable[[int], bool] = lambda done: False
    keep: Callable[[State], None] = lambda state: None
    start: State | None = None


@dataclass(frozen=True)
class Stopped:
    """A seed that was given up at ``step`` of ``task`` (both from 1), and ``why``."""

    seed: int
    task: int
    step: int
    why: str = "loss or parameters not finite"


def schedule(rows: Tensor, training: Training, seed: Tensor, index: int) -> list[Tensor]:
    """The row numbers of every step of a task: (B,) or (R, B) each; rows (n,) or (R, n) on their device.

    Every epoch goes through all rows, in an order of its own where they are shuffled.
    """
    n = rows.shape[-1]
    batches: list[Tensor] = []
    steps, epoch = training.steps(n), 0
    while len(batches) < steps:
        ordered = rows
        if training.shuffle:
            words = draw(seed, "shuffle", index, torch.tensor(epoch, device=rows.device), n)
            ordered = rows.gather(-1, torch.sort(words, dim=-1, stable=True).indices)
        parts = ordered.split(training.batch, dim=-1)
        batches += parts[:-1] if training.last == "drop" and n % training.batch and len(parts) > 1 else parts
        epoch += 1
    return batches[:steps]


def some(rows: Tensor, n: int | None) -> Tensor:
    """``n`` of the rows, evenly spread over them (all, where there are fewer, or with none)."""
    return rows if n is None or len(rows) <= n else rows.index_select(0, _spread(len(rows), n, rows.device))


@functools.lru_cache(maxsize=64)
def _spread(count: int, n: int, device: torch.device) -> Tensor:
    """The places of n out of so many; the seeds' tasks are often of the same size."""
    return torch.arange(n, device=device) * count // n


def train(learners: Learners, training: Training, watch: Watch) -> tuple[dict[str, Tensor], list[Stopped]]:
    """Every task in turn, or those that are left from the state that ``watch`` begins with.

    Gives, on the CPU, with R in front where seeds are mapped: ``accuracy`` (T+1, T) on the test rows, the untrained
    network first; ``training_accuracy`` and, where rows were set aside, ``validation_accuracy`` likewise, and
    ``task_aware_accuracy`` where that was asked for; NaN after a task that the strategy puts off; ``loss`` of
    all steps; ``stored_samples`` (T,), how many were in memory after each task; and where it was asked for ``trace``
    (E, T) with ``trace_task`` and ``trace_step`` (E,), and ``training_trace`` and ``validation_trace`` likewise.
    """
    with pytorch_left_alone(learners.device):
        if learners.strategy.trains_itself:
            return learners.strategy.train(learners, training, watch)
        course = Course(learners, training, watch)
        if watch.start is None:
            if training.keep_learners == "all":
                learners.keep(0)
            watch.task(-1, course.measure(-1))
        else:
            course.restore(watch.start)
        while course.task < course.tasks:
            course.learn()
        return course.arrays(), course.stopped


class Course:
    """Learners on their way through the tasks: where they are, and what was measured so far."""

    def __init__(self, learners: Learners, training: Training, watch: Watch) -> None:
        self.learners, self.training, self.watch = learners, training, watch
        self.tasks = len(learners.streams[0].tasks)
        self.evaluations = {
            name: one.evaluation(learners)
            for name, one in measured(training, learners.streams[0]).items() if not name.endswith("trace")
        }  # fmt: skip
        self.program: Program | None = None
        self.captured = captured(learners, training)
        self.traced = Trace(learners, training, self.captured)
        most = max(training.steps(len(task.train)) for stream in learners.streams for task in stream.tasks)
        self.place = self._place_of_losses(most)
        self.task, self.done = 0, 0  # steps of the task that are done; 0 between tasks
        self.begun: State | None = None  # of a task that was begun elsewhere
        self.measured: dict[str, list[Tensor]] = {}
        self.losses: list[Tensor] = []
        self.stored: list[Tensor] = []
        self.stopped: list[Stopped] = []

    def measure(self, index: int) -> dict[str, Tensor]:
        """The accuracies after a task, -1 for before the first; none after one that the strategy puts off.

        A learner that was given up has none.
        One whose answers to a task that it has learnt are not finite is given up, too, and noted with those whose hook
        failed as the task ended.
        """
        learners = self.learners
        learners.seed_pytorch(index, "measured")
        put_off = index >= 0 and learners.strategy.puts_off(index, self.tasks)
        if put_off:
            found = {name: torch.full_like(values[-1], torch.nan) for name, values in self.measured.items()}
        else:
            found = {name: evaluation(index).cpu() for name, evaluation in self.evaluations.items()}
        if index >= 0:
            for name, evaluation in self.evaluations.items() if not put_off else ():
                none = (found[name].isnan() & (evaluation.counts > 0).cpu())[..., : index + 1].any(-1).reshape(-1)
                for r in none.nonzero().flatten().tolist():
                    learners.stop(r)
            self._note_stopped(self.steps)
        for name, values in found.items():
            self.measured.setdefault(name, []).append(_of_alive(learners, values))
        return {name: values[-1][..., None, :] for name, values in self.measured.items()}

    def learn(self) -> None:
        """The next task, or what is left of it."""
        learners, watch, index = self.learners, self.watch, self.task
        steps = self._begin()
        going = [seed for seed, alive in zip(learners.seeds, learners.alive, strict=True) if alive]
        for step in steps:
            watch.step(index, self.done, self.steps)
            if going:
                step()
            self.traced.after(index, self.done, self.steps)
            self.done += 1
            if watch.due(self.done):
                watch.keep(self.state())
        self.stopped += _stop_lost(learners, self.loss, index)
        learners.end(index)
        self.traced.end(index, self.steps)
        measured = self.measure(index)
        if self.training.keep_learners == "all" or (self.training.keep_learners == "last" and index + 1 == self.tasks):
            learners.keep(index + 1)
        self.stored.append(self._stored())
        self.losses.append(self._losses({one.seed: one.step for one in self.stopped if one.seed in going}))
        new = self.traced.collect() | measured
        watch.task(index, new | {"loss": self.losses[-1], "stored_samples": self.stored[-1][..., None]})
        self.task, self.done = index + 1, 0
        if self.task < self.tasks and watch.due(0):
            watch.keep(self.state())

    def _note_stopped(self, step: int) -> None:
        """Note which learners were given up and are not noted: their answers are not finite."""
        noted = {one.seed for one in self.stopped}
        for seed, alive in zip(self.learners.seeds, self.learners.alive, strict=True):
            if not alive and seed not in noted:
                self.stopped.append(Stopped(seed, self.task + 1, step, "answers not finite"))

    def _stored(self) -> Tensor:
        """How many samples each learner has stored; of one that was given up, those that it had after the last task."""
        found = self.learners.stored().cpu()
        before = self.stored[-1] if self.stored else torch.zeros_like(found)
        return torch.where(torch.tensor(self.learners.alive).view(found.shape), found, before)

    def _losses(self, lost: dict[int, int]) -> Tensor:
        """The losses of the task, on the CPU; none of learners that were given up, from the step on where they were."""
        losses = self.loss.to("cpu", copy=True)
        for r, (seed, alive) in enumerate(zip(self.learners.seeds, self.learners.alive, strict=True)):
            if not alive:
                (losses[r] if self.learners.mapped else losses)[lost.get(seed, 0) :] = torch.nan
        return losses

    def _begin(self) -> Iterator[Callable[[], None]]:
        """The steps of the task that are left, once it has begun."""
        learners, index, begun, device = self.learners, self.task, self.begun, self.learners.device
        self.rows = begun.tensors["rows"].to(device) if begun else learners.begin(index)
        self._note_stopped(1)
        batches = schedule(self.rows, self.training, learners.seed, index)
        self.steps = len(batches)
        if self.steps > self.place.shape[-1]:  # rows of earlier tasks have joined, and soon there may be more
            self.place = self._place_of_losses(self.steps if index + 1 == self.tasks else 2 * self.steps)
        self.loss = self.place[..., : self.steps].zero_()
        self.traced.begin(index, self.training.interval(self.rows.shape[-1]))
        self.program = Program(learners, index, batches, self.program.later if self.program else None)
        if begun:
            self.loss[..., : self.done] = begun.tensors["loss"].to(device)
            self.program.go_on(begun.facts["notes"])
        self.begun = None
        return steps_of(self.program, batches, self.place, self.captured, self.done)

    def _place_of_losses(self, steps: int) -> Tensor:
        learners = self.learners
        return torch.zeros(*learners.seed.shape, steps, device=learners.device, dtype=learners.recipe.dtype)

    def state(self) -> State:
        """All that is needed to go on from here."""
        tensors = under("learners/", self.learners.state()) | under("trace/", self.traced.state())
        tensors |= under("kept/", self.learners.kept)
        tensors |= {f"measured/{name}": torch.stack(values, -2) for name, values in self.measured.items()}
        facts: dict[str, Any] = {"task": self.task, "done": self.done, "stopped": [vars(one) for one in self.stopped]}
        facts |= {"replayed": self.learners.replayed, "unrecorded": self.learners.unrecorded}
        if self.task:
            tensors |= {"losses": torch.cat(self.losses, -1), "stored": torch.stack(self.stored, -1)}
        if self.done:
            tensors |= {"rows": self.rows, "loss": self.loss[..., : self.done]}
            assert self.program is not None
            facts["notes"] = self.program.notes()
        return State(tensors, facts)

    def restore(self, state: State) -> None:
        """Go on from a state of the same learners."""
        tensors, facts = state
        self.learners.restore(within("learners/", tensors))
        self.learners.kept = within("kept/", tensors)
        self.traced.restore(within("trace/", tensors))
        self.measured = {name: list(values.unbind(-2)) for name, values in within("measured/", tensors).items()}
        self.task, self.done = facts["task"], facts["done"]
        self.learners.replayed, self.learners.unrecorded = facts["replayed"], Counter(facts["unrecorded"])
        self.stopped = [Stopped(**one) for one in facts["stopped"]]
        if self.task:
            self.losses, self.stored = [tensors["losses"]], list(tensors["stored"].unbind(-1))
        self.begun = state if self.done else None
        self.watch.task(-1, self.arrays())
        for index in range(self.task):
            self.watch.task(index, {})  # what it gave has been told

    def arrays(self) -> dict[str, Tensor]:
        """What was measured so far."""
        arrays = {name: torch.stack(values, -2) for name, values in self.measured.items()}
        if self.task:
            arrays |= {"loss": torch.cat(self.losses, -1), "stored_samples": torch.stack(self.stored, -1)}
        return arrays | self.traced.arrays()


def not_captured(learners: Learners, training: Training) -> str:
    """Why the steps are not recorded and replayed; nothing, where they are."""
    samples, device = learners.streams[0].samples, learners.device.type
    if training.program == "eager":
        return "as asked"
    if not learners.strategy.can_be_captured:
        return "the strategy cannot be captured"
    if samples.in_file or samples.pixels.device.type != device:
        return "images are read from their file"
    if device == "cpu" and training.compile:
        return "what is compiled is not recorded on a CPU"
    if device == "cpu" and learners.theta.numel() * BYTES > MOST:
        return "there are many parameters"  # memory would be copied to its place, and nothing gained
    return "" if device in ("cpu", "cuda") else f"steps on {device} are not"


def steps_done(learners: Learners, training: Training) -> dict[str, Any]:
    """How the steps were done, for :func:`program_of`."""
    return {
        "why": not_captured(learners, training),
        "replayed": learners.replayed,
        "unrecorded": dict(learners.unrecorded),
        "compiled": training.compile and not learners.strategy.trains_itself,
    }


def program_of(*done: dict[str, Any]) -> str:
    """How the steps of groups of learners were done, as a run's record says it."""
    unrecorded = Counter[str]()
    for one in done:
        unrecorded.update(one["unrecorded"])
    if why := done[0]["why"]:
        how = f"eager: {why}"
    elif not any(one["replayed"] for one in done):
        how = f"eager: {', '.join(unrecorded) or RARE}"
    else:
        how = "captured" + "".join(f", but for {count} steps: {why}" for why, count in unrecorded.items())
    return how + ("; the forward pass is compiled" if done[0]["compiled"] else "")


def captured(learners: Learners, training: Training, least: int | None = None) -> Captured | None:
    """What records the learners' steps; none where they are done one by one. ``least`` as there.

    Raises :class:`~continual.errors.BadOption` where they have to be recorded, and cannot.
    """
    why, must = not_captured(learners, training), training.program == "captured"
    if why and must:
        raise must_not(why)
    return None if why else Captured(learners, least, must)


def steps_of(
    program: Program, batches: list[Tensor], losses: Tensor, captured: Captured | None, done: int = 0
) -> Iterator[Callable[[], None]]:
    """The steps of a task from step ``done`` on, each as a function that does it and puts its loss into ``losses``.

    ``losses`` (n,) or (R, n) has a place for each step, and may have more; see :meth:`Captured.begin`.
    """
    learners, count = program.learners, len(batches)
    schedule = learners.recipe.schedule
    rates = [learners.recipe.optimizer.lr * schedule.factor(number, count) for number in range(count)]
    if captured is not None:
        captured.begin(program, batches, losses, rates, done)
        for number in range(done, count):
            yield functools.partial(captured, number)
        return

    def one(number: int, rows: Tensor) -> None:
        learners.rate = rates[number]
        learners.seed_pytorch(program.task.index, number)
        losses[..., number] = program(number, rows)

    for number, rows in enumerate(read_ahead(learners.streams[0].samples, batches[done:]), done):
        yield functools.partial(one, number, rows)


class Measured(NamedTuple):
    """What is measured: a ``part`` of each task's rows of ``samples`` (or ``test_samples``), ``most`` at most.

    ``told``: with the outputs of each row's own task active, whatever is active in evaluation.
    """

    samples: str
    part: str
    most: int | None = None
    told: bool = False

    def rows(self, stream: Stream) -> list[Tensor]:
        """The rows of each task."""
        return [some(getattr(task, self.part), self.most) for task in stream.tasks]

    def evaluation(self, learners: Learners) -> Evaluation:
        """Of these learners."""
        streams = learners.streams
        return Evaluation(learners, self.samples, [self.rows(stream) for stream in streams], self.outputs(streams[0]))

    def outputs(self, stream: Stream) -> Outputs:
        """The outputs that are active."""
        return stream.test_outputs.told if self.told else stream.test_outputs


def measured(training: Training, stream: Stream) -> dict[str, Measured]:
    """What is measured, by the name of its array: after every task, and under names that end in ``trace`` between."""
    held = any(len(task.validation) for task in stream.tasks)
    few, between, all_rows = training.train_samples, training.evaluate_every, training.evaluate_rows == "all"
    found = {
        "accuracy": (True, Measured("test_samples", "test")),
        "task_aware_accuracy": (training.task_aware, Measured("test_samples", "test", told=True)),
        "training_accuracy": (few, Measured("samples", "train", few)),
        "validation_accuracy": (held, Measured("samples", "validation")),
        "trace": (between, Measured("test_samples", "test", training.evaluate_samples)),
        "training_trace": (between and all_rows, Measured("samples", "train", training.evaluate_samples)),
        "validation_trace": (between and all_rows and held,
                             Measured("samples", "validation", training.evaluate_samples)),
    }  # fmt: skip
    return {name: one for name, (wanted, one) in found.items() if wanted}


def _of_alive(learners: Learners, values: Tensor) -> Tensor:
    """The values (...) or (R, ...), NaN for learners that were given up."""
    values.view(len(learners.alive), -1)[[not alive for alive in learners.alive]] = torch.nan
    return values


def _stop_lost(learners: Learners, losses: Tensor, index: int) -> list[Stopped]:
    """Give up the learners whose loss or θ is not finite: the one look at values that a task's end takes."""
    finite = losses.isfinite().reshape(len(learners.alive), -1).cpu()
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

    def __init__(self, learners: Learners, training: Training, captured: Captured | None = None) -> None:
        self.captured, self.graphs = captured, dict[tuple[str, int], Graph]()
        self.learners, self.count = learners, 0
        self.rows = {
            name: (one.samples, [one.rows(stream) for stream in learners.streams])
            for name, one in measured(training, learners.streams[0]).items() if name.endswith("trace")
        }  # fmt: skip
        self.evaluations: dict[str, Evaluation] = {}
        self.pending: dict[str, list[Tensor]] = {}
        self.done: dict[str, list[Tensor]] = {}
        self.marks: list[tuple[int, int]] = []

    def begin(self, index: int, interval: int) -> None:
        """A task begins, to be measured every so many steps (0: never): what is measured is laid out before them."""
        self.interval = interval
        for name, (samples, rows) in self.rows.items():
            seen = [[one if j <= index else one[:0] for j, one in enumerate(own)] for own in rows]
            self.evaluations[name] = Evaluation(self.learners, samples, seen)
            self.evaluations[name].select(index)

    def after(self, index: int, number: int, steps: int) -> None:
        """After a step that is not the task's last: measure if it is time."""
        self.count += 1
        if self.interval and (number + 1) % self.interval == 0 and number + 1 < steps:
            self._measure(index, number)

    def end(self, index: int, steps: int) -> None:
        """After the task, of which a strategy may learn more as it ends: measure what it has become."""
        self.graphs = {}  # what was recorded reads what the steps wrote
        if self.interval and steps:
            self._measure(index, steps - 1, ended=True)

    def _measure(self, index: int, number: int, ended: bool = False) -> None:
        self.learners.seed_pytorch(index, number, "measured")
        for name, evaluation in self.evaluations.items():
            found = evaluation(index) if ended else self._measured(name, evaluation, index)
            self.pending.setdefault(name, []).append(found)
        self.marks.append((index, self.count))

    def _measured(self, name: str, evaluation: Evaluation, index: int) -> Tensor:
        if self.captured is None:
            return evaluation(index)
        if (name, index) not in self.graphs:
            device = self.learners.device
            by_hand = OFTEN if device.type == "cpu" else 1 + self.learners.recipe.compiled
            self.graphs[name, index] = Graph(device, by_hand, kept=self.captured.kept)
        found = self.graphs[name, index](lambda: evaluation(index))
        assert found is not None
        return found.clone()

    def collect(self) -> dict[str, Tensor]:
        """Copy what was measured in a task, and give it; of a learner that was given up, nothing."""
        count = 0
        for name, values in self.pending.items():
            measured = _of_alive(self.learners, torch.stack(values, -2).cpu())
            self.done.setdefault(name, []).append(measured)
            count = measured.shape[-2]
        new = {name: self.done[name][-1] for name in self.pending}
        self.pending = {}
        return new | self._when(self.marks[len(self.marks) - count :]) if new else {}

    @staticmethod
    def _when(marks: list[tuple[int, int]]) -> dict[str, Tensor]:
        """The task and the step of evaluations, (E,) each."""
        task, step = torch.tensor(marks).T
        return {"trace_task": task, "trace_step": step}

    def state(self) -> dict[str, Tensor]:
        """What was measured so far, by name."""
        done = {f"done/{name}": torch.cat(values, -2) for name, values in self.done.items()}
        pending = {f"pending/{name}": torch.stack(values, -2) for name, values in self.pending.items()}
        marks = torch.tensor(self.marks, dtype=torch.int64).reshape(-1, 2)
        return done | pending | {"marks": marks, "count": torch.tensor(self.count)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self.done = {name: [values] for name, values in within("done/", state).items()}
        self.pending = {
            name: list(values.to(self.learners.device).unbind(-2)) for name, values in within("pending/", state).items()
        }
        self.marks = [(task, count) for task, count in state["marks"].tolist()]
        self.count = int(state["count"])

    def arrays(self) -> dict[str, Tensor]:
        """The trace of the tasks that are done, or nothing where none was asked for."""
        if not self.done:
            return {}
        found = {name: torch.cat(values, -2) for name, values in self.done.items()}
        count = next(iter(found.values())).shape[-2]
        return found | self._when(self.marks[:count])
