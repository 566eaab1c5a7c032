"""A run of one of avalanche-lib's strategies, in its own loop, measured as ours are."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from continual.avalanche import library
from continual.avalanche.networks import plain
from continual.avalanche.streams import from_rows
from continual.errors import BadChain, Mistake
from continual.learning.train import Stopped, measured
from continual.streams.rng import pytorch_left_alone

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.seeds import Learners
    from continual.learning.train import Watch
    from continual.learning.training import Training
    from continual.streams.stream import Outputs, Samples, Stream

EVALUATED = 2000  # rows at a time


class Criterion(torch.nn.CrossEntropyLoss):
    """Cross-entropy over the active outputs, while task ``index`` is learnt.

    In the task scenario a sample's task is the one that has its label among its own outputs.
    """

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs, self.index = outputs, 0

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (B, K) at labels (B,), or at probabilities (B, K), which are taken as they are."""
        if y.ndim == 1 and logits.shape[1] == self.outputs.units.shape[1]:
            tasks = self.outputs.units.to(torch.uint8).argmax(0)[y]
            logits = self.outputs.apply(logits, self.index, tasks)
        return super().forward(logits, y)


class Loop:
    """One learner, trained by avalanche-lib."""

    def __init__(
        self, name: str, options: dict[str, Any], learners: Learners, training: Training, watch: Watch
    ) -> None:
        self.stream: Stream = learners.streams[0]
        self.name, self.options = name, options
        self.learners, self.training, self.watch = learners, training, watch
        self.device, self.dtype = learners.device, learners.recipe.dtype
        self.criterion = Criterion(self.stream.tasks[0].outputs)
        self.asked = measured(training, self.stream)
        self.measured = {name: self._experiences(name) for name in self.asked}
        tasks = [task.train for task in self.stream.tasks]
        self.benchmark = self._benchmark({"train": (self.stream.samples, tasks)})
        self.losses: list[Tensor] = []
        self.stopped: list[Stopped] = []
        self.traced: dict[str, list[Tensor]] = {}
        self.marks: list[tuple[int, int]] = []
        self.steps = 0

    # ---- what is measured

    def _experiences(self, name: str) -> list[Any]:
        """The experiences that a measurement is on."""
        one = self.asked[name]
        rows = {name: (getattr(self.stream, one.samples), one.rows(self.stream))}
        return list(self._benchmark(rows).streams[name])

    def _benchmark(self, parts: dict[str, tuple[Samples, list[Tensor]]]) -> Any:
        return from_rows(self.stream, parts, False, self.dtype)

    def measure(self, name: str, tasks: int) -> Tensor:
        """The accuracies (T,) on the first ``tasks`` tasks, by avalanche-lib's evaluation; NaN on the others."""
        self.counter.right, self.counter.outputs = [], self.asked[name].outputs(self.stream).to(self.device)
        chosen = [one for one in self.measured[name][:tasks] if len(one.dataset)]
        with _as_before(self.device):  # its loaders draw from what training draws from
            self.theirs.eval(chosen)
        values = torch.full((len(self.stream.tasks),), torch.nan, dtype=torch.float64)
        for one, right in zip(chosen, self.counter.right, strict=True):
            values[one.current_experience] = right.double().cpu() / len(one.dataset)
        return values

    def _untrained(self, name: str) -> Tensor:
        """The first row: both libraries begin with the same network, so it is the same for both."""
        return self.asked[name].evaluation(self.learners)(-1).cpu()

    # ---- the run

    def run(self) -> tuple[dict[str, Tensor], list[Stopped]]:
        """What :func:`continual.learning.train.train` gives."""
        names = [name for name in self.measured if not name.endswith("trace")]
        results: dict[str, list[Tensor]] = {name: [self._untrained(name)] for name in names}
        stored = []
        with _seeded(self.learners.seeds[0], self.device), library.quiet(), self._named():
            self._make()
            for index, experience in enumerate(self.benchmark.train_stream):
                if not self.stopped:
                    self._learn(index, experience)
                for name in names:
                    lost = torch.full((len(self.stream.tasks),), torch.nan, dtype=torch.float64)
                    results[name].append(lost if self.stopped else self.measure(name, len(self.stream.tasks)))
                stored.append(sum(len(one.buffer) for one in self._buffers()))
            self.learners.memory = {str(n): value for n, value in enumerate(self._kept())}
        arrays = {name: torch.stack(rows) for name, rows in results.items()}
        arrays |= {"loss": torch.cat(self.losses), "stored_samples": torch.tensor(stored)}
        return arrays | self._trace(), self.stopped

    def _make(self) -> None:
        """The network with the run's weights, its optimiser, and the strategy around both."""
        recipe, training = self.learners.recipe, self.training
        self.model = plain(self.learners.net, self.learners.theta).to(self.device)
        self.optimizer = recipe.optimizer.of(p for p in self.model.parameters() if p.requires_grad)
        self.counter, self.watcher = plugins(self)
        cls, options = library.part("training.supervised").__dict__.get(self.name), self.options
        extra: list[Any] = []
        if cls is None:  # a plug-in: it works within the strategy that does nothing else
            extra = [getattr(library.part("training.plugins"), self.name)(**options)]
            cls, options = library.part("training.supervised").Naive, {}
        common = {"model": self.model, "optimizer": self.optimizer, "criterion": self.criterion, "device": self.device,
                  "train_mb_size": training.batch, "train_epochs": training.iterations or training.epochs,
                  "eval_mb_size": EVALUATED, "evaluator": None, "plugins": [self.watcher, *extra]}  # fmt: skip
        accepted = inspect.signature(inspect.unwrap(cls.__init__)).parameters
        parts = {"feature_extractor": self.model.body, "classifier": self.model.head, "cwr_layer_name": "head",
                 "last_layer_name": "head", "buffer_transform": None, "n_classes": self.stream.units,
                 "num_classes": self.stream.units}  # fmt: skip
        further = any(one.kind is one.VAR_KEYWORD for one in accepted.values())  # which is passed on to the template
        passed_on = set(common) - {"model"} if further else set()
        given = {name: value for name, value in {**common, **parts}.items() if name in {*accepted, *passed_on}}
        self.theirs = cls(**given, **options)
        self.theirs.plugins.append(self.counter)  # behind those that change what is answered

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What avalanche-lib cannot do is told in one sentence; its own words follow."""
        try:
            yield
        except Mistake:
            raise
        except Exception as error:
            raise BadChain(f"avalanche:{self.name} cannot be run so; avalanche-lib says {type(error).__name__}: "
                           f"{' '.join(str(error).split())}") from error  # fmt: skip

    def _learn(self, index: int, experience: Any) -> None:
        """Learn a task."""
        self.index = self.criterion.index = index
        self.pending: list[Tensor] = []
        if index and not self.learners.recipe.keep_optimizer:
            self.optimizer.state.clear()
        asked = {"shuffle": self.training.shuffle, "drop_last": self.training.last == "drop"}
        self.theirs.train(experience, eval_streams=[], **asked)
        if self.training.evaluate_every and self.pending:  # a plug-in may have learnt more as the task ended
            self._measure_trace()
        losses = torch.stack(self.pending) if self.pending else torch.zeros(0, device=self.device)
        self.losses.append(losses.to("cpu", self.dtype))
        bad = (~self.losses[-1].isfinite()).nonzero()
        sound = all(bool(p.isfinite().all()) for p in self.model.parameters())
        if len(bad) or not sound:
            step = int(bad[0]) if len(bad) else len(losses) - 1
            self.stopped.append(Stopped(self.learners.seeds[0], index + 1, step + 1))

    def began(self, theirs: Any) -> None:
        """A step begins: its learning rate, and word of it."""
        self.number = len(self.pending)
        epoch = len(theirs.dataloader)
        self.total = self.training.iterations or epoch * self.training.epochs
        factor = self.learners.recipe.schedule.factor(min(self.number, self.total - 1), self.total)
        for group in theirs.optimizer.param_groups:
            group["lr"] = self.learners.recipe.optimizer.lr * factor
        self.watch.step(self.index, self.number, self.total)
        every = epoch if self.training.evaluate_every == "epoch" else self.training.evaluate_every
        self.due = bool(every) and (self.number + 1) % int(every or 1) == 0 and self.number + 1 < self.total

    def ended(self, theirs: Any) -> None:
        """A step ended: its loss stays on the device; measure if it is time."""
        self.pending.append(theirs.loss.detach().reshape(()).clone())
        self.steps += 1
        if self.due:
            self._measure_trace()
        if len(self.pending) == self.training.iterations:
            theirs.stop_training()

    def _measure_trace(self) -> None:
        for name in self.measured:
            if name.endswith("trace"):
                self.traced.setdefault(name, []).append(self.measure(name, self.index + 1))
        self.marks.append((self.index, self.steps))

    def _trace(self) -> dict[str, Tensor]:
        """What was measured between steps, NaN from the step on at which the seed was stopped."""
        if not self.traced:
            return {}
        task, step = torch.tensor(self.marks).T
        traces = {name: torch.stack(values) for name, values in self.traced.items()}
        for stop in self.stopped:  # avalanche-lib itself has gone on to the task's end
            last = sum(map(len, self.losses[:-1])) + stop.step
            traces = {name: values.where((step < last)[:, None], torch.nan) for name, values in traces.items()}
        return traces | {"trace_task": task, "trace_step": step}

    # ---- what it keeps

    def _parts(self) -> list[Any]:
        own = (self.counter, self.watcher)
        return [self.theirs, *(one for one in self.theirs.plugins if one not in own)]

    def _buffers(self) -> list[Any]:
        """The memories of stored samples."""
        found = [getattr(part, "storage_policy", None) for part in self._parts()]
        return list({id(one): one for one in found if hasattr(one, "buffer")}.values())

    def _kept(self) -> list[Tensor]:
        """The tensors that it keeps beside the network and the optimiser: importances, anchors, teachers, gradients."""
        own = {id(p) for p in (*self.model.parameters(), *self.model.buffers())}
        found: dict[int, Tensor] = {}
        for part in self._parts():
            for name, value in vars(part).items():
                if name not in ("model", "optimizer", "mbatch", "mb_output", "loss", "plugins", "experience"):
                    found |= {id(one): one for one in tensors(value)}
        return [value.detach() for key, value in found.items() if key not in own]


def tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in something that a plug-in has as an attribute."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif depth and isinstance(value, dict | list | tuple | set):
        for one in value.values() if isinstance(value, dict) else value:
            yield from tensors(one, depth - 1)
    elif depth and type(value).__module__.startswith("avalanche.") and type(value).__name__ in ("ParamData", "_LwF"):
        yield from tensors(dict(vars(value)), depth - 1)


def plugins(loop: Loop) -> tuple[Any, Any]:
    """What counts right answers, and what follows the steps: plug-ins of avalanche-lib."""
    base = library.part("core").SupervisedPlugin

    class Counter(base):  # type: ignore[misc, valid-type]
        """Counts the right answers among the active outputs, on each experience."""

        def __init__(self) -> None:
            super().__init__()
            self.right: list[Tensor] = []

        def before_eval_exp(self, theirs: Any, *_: Any, **__: Any) -> None:
            self.right.append(torch.zeros((), device=loop.device, dtype=torch.int64))
            self.task = theirs.experience.current_experience

        def after_eval_iteration(self, theirs: Any, *_: Any, **__: Any) -> None:
            scores, y = theirs.mb_output, theirs.mb_y
            own = torch.full_like(y, self.task)
            answer = self.outputs.apply(scores[:, : loop.stream.units], loop.index, own).argmax(-1)
            self.right[-1] += (answer == y).sum()

    class Watcher(base):  # type: ignore[misc, valid-type]
        """Tells the loop of each step."""

        def before_training_iteration(self, theirs: Any, *_: Any, **__: Any) -> None:
            loop.began(theirs)

        def after_training_iteration(self, theirs: Any, *_: Any, **__: Any) -> None:
            loop.ended(theirs)

    return Counter(), Watcher()


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within it the global generators, which avalanche-lib draws from, begin at the seed; then they are as before."""
    with _as_before(device):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _as_before(device: torch.device) -> Iterator[None]:
    """After it the global generators are as they were."""
    states = random.getstate(), np.random.get_state()
    with pytorch_left_alone(device):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
