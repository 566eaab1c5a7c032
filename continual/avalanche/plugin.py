"""A strategy of ours in avalanche-lib's training loop.

stream = continual.avalanche.stream(SplitMNIST(n_experiences=5))
plugin = continual.avalanche.Plugin("ewc:strength=100", stream, model="mlp:layers=100")
naive = Naive(model=plugin.model, optimizer=SGD(plugin.model.parameters(), lr=0.1), plugins=[plugin], ...)
for experience in plugin.benchmark.train_stream:
    naive.train(experience)
    naive.eval(plugin.benchmark.test_stream)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from continual import config
from continual.avalanche import library
from continual.avalanche.networks import Functional
from continual.avalanche.streams import benchmark
from continual.errors import BadChain
from continual.learning.models import Out
from continual.learning.strategy import Batch, Step

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.strategy import Memory, Strategy
    from continual.streams.stream import Stream, Task

HOOKS = (
    "before_training_exp", "before_training_iteration", "before_forward", "before_backward", "after_backward",
    "after_update", "after_training_exp", "before_eval_forward", "after_eval_forward",
)  # fmt: skip


def Plugin(strategy: Any, stream: Stream, model: Any = "mlp", dtype: torch.dtype = torch.float32) -> Any:
    """A plug-in of avalanche-lib that calls the hooks of our strategy (an object or text) at their places.

    It has the ``model`` to train, one of ours with the weights that a run of the stream's seed begins with, and the
    ``benchmark`` to train it on: the stream, whose samples carry their row numbers. The data term is avalanche-lib's
    criterion, unless the strategy has a loss of its own or weighs its samples. ``rows`` is the one hook that is not
    called: which rows an epoch runs through is avalanche-lib's business. (A function, since the class can only be
    written once avalanche-lib is there.)
    """
    base = library.part("core").SupervisedPlugin

    class Ours(base):  # type: ignore[misc, valid-type]
        """A strategy of ours; every method is that of :class:`Hooks` by its name."""

        def __init__(self, hooks: Hooks) -> None:
            super().__init__()
            self.hooks, self.model, self.benchmark = hooks, hooks.model, hooks.benchmark

        @property
        def memory(self) -> Memory:
            """What the strategy has learnt."""
            return self.hooks.memory

    for name in HOOKS:

        def call(self: Any, theirs: Any, *_: Any, name: str = name, **__: Any) -> None:
            getattr(self.hooks, name)(theirs)

        setattr(Ours, name, call)
    return Ours(Hooks(config.make_strategy(strategy), stream, config.make("models", model), dtype))


class Hooks:
    """Our strategy's hooks, each at its place in a step of avalanche-lib's loop."""

    def __init__(self, strategy: Strategy, stream: Stream, model: Any, dtype: torch.dtype) -> None:
        if strategy.has("rows") or strategy.trains_itself:
            raise BadChain(f"{type(strategy).__name__} decides which rows an epoch runs through, which avalanche-lib's "
                           "loop does itself; it has Cumulative and JointTraining")  # fmt: skip
        built = model.build(stream.shape, stream.units, len(stream.tasks))
        strategy.suits(stream, built)
        self.strategy, self.stream = strategy, stream
        self.net = strategy.extend(built, stream)
        start = self.net.initial(stream.tasks[0].key.child("initial θ"), dtype)
        self.memory = strategy.init(self.net, start, stream)
        self.model = Functional(self.net, start)
        self.benchmark = benchmark(stream, rows=True, dtype=dtype)
        self.latest, self.step = 0, 0
        self.read, self.noted = {"before", "gradient"}, set[str]()

    # ---- between tasks

    def before_training_exp(self, theirs: Any) -> None:
        """``before_task``."""
        self.latest, self.step = theirs.experience.current_experience, 0
        self.model.index = self.latest
        self.read, self.noted = {"before", "gradient"}, set()
        if self.latest and self.strategy.restarts_optimizer:
            theirs.optimizer.state.clear()
        if self.strategy.has("before_task"):
            self._between(self.strategy.before_task)
        self.model.fixed = self.net.fixed(self.theta())

    def after_training_exp(self, theirs: Any) -> None:
        """``after_task``."""
        self.model.tasks = None
        theta = self.theta()
        self.net.hand_on(theta, self.latest)
        self.model.write(theta)
        if self.strategy.has("after_task"):
            self._between(self.strategy.after_task)

    def _between(self, hook: Any) -> None:
        theta, memory = hook(self.network(), self.theta(), self.memory, self.stream.tasks[self.latest])
        self.model.write(theta.detach())
        self.memory = {name: value.detach() for name, value in memory.items()}

    def network(self) -> Any:
        """The network as memory makes it."""
        return self.strategy.network(self.net, self.memory) if self.strategy.has("network") else self.net

    def theta(self) -> Tensor:
        """The values of θ."""
        return torch.cat([part.detach().reshape(-1) for part in self.model.parts()])

    # ---- a step

    def before_training_iteration(self, theirs: Any) -> None:
        """``batch``: what joins takes its place in avalanche-lib's mini-batch."""
        if len(theirs.mbatch) < 4:
            raise BadChain("the samples carry no rows: train on the plug-in's own benchmark, plugin.benchmark")
        x, y, row, *_ = theirs.mbatch
        task = self.stream.tasks[self.latest]
        step = torch.tensor(self.step, device=x.device)
        self.task: Task = task.with_key(replace(task.key, step=step, path="step/"))
        self.step += 1
        batch = Batch(row, y, task.samples.task[row], self.task.key, own=len(y), x=x)
        if self.strategy.has("batch"):
            with torch.no_grad():
                batch = self.strategy.batch(self.network(), self.theta(), self.memory, batch, self.task)
        if batch.x is None:
            batch = batch._replace(x=task.samples.images(batch.row, x.dtype))
        self.data = batch
        labels = batch.task if self.stream.scenario == "task" else torch.zeros_like(batch.task)
        theirs.mbatch = [batch.images, batch.y, batch.row, labels]

    def before_forward(self, theirs: Any) -> None:
        """The network is told the samples' tasks."""
        self.model.net, self.model.tasks = self.network(), self.data.task

    def before_backward(self, theirs: Any) -> None:
        """``loss``, where it is the strategy's own, and ``penalty``."""
        theta = self.model.theta()
        out = Out(theirs.mb_output, self._out().features)
        given = (self.network(), theta, self.memory, self.data, out, self.task)
        if self.strategy.has("loss") or self.data.weight is not None:
            theirs.loss = self.strategy.loss(*given)
        self.data_gradient = self._gradient(theirs.loss) if "gradient" in self.read and self._steps() else None
        if self.strategy.has("penalty"):
            theirs.loss = theirs.loss + self.strategy.penalty(*given)

    def _steps(self) -> bool:
        return self.strategy.has("after_step")

    def _out(self) -> Out:
        assert self.model.out is not None, "the network has not been called"
        return self.model.out

    def _gradient(self, loss: Tensor) -> Tensor:
        """The gradient (P,) of the data term alone."""
        parts = self.model.parts()
        leaves = [part for part in parts if part.requires_grad]
        found = iter(torch.autograd.grad(loss.sum(), leaves, retain_graph=True, allow_unused=True))
        each = [next(found) if part.requires_grad else None for part in parts]
        return _joined(parts, each)

    def after_backward(self, theirs: Any) -> None:
        """``gradient``."""
        parts = self.model.parts()
        if self.strategy.has("gradient"):
            with torch.no_grad():
                gradient = _joined(parts, [part.grad for part in parts])
                made = self.strategy.gradient(self.network(), self.theta(), self.memory, gradient, self.data, self.task)
                for part, new in zip(parts, made.split(self.net.sizes), strict=True):
                    if part.requires_grad:
                        part.grad = new.view_as(part).clone()
        self.before = self.theta() if self._steps() and "before" in self.read else None

    def after_update(self, theirs: Any) -> None:
        """``after_step``."""
        if not self._steps():
            return
        known = {"before": self.before, "gradient": self.data_gradient}
        out = Out(*(part.detach() for part in self._out()))
        step = Step(self.data, out, self.noted, **{name: value for name, value in known.items() if value is not None})
        with torch.no_grad():
            theta = self.theta()
            after, self.memory = self.strategy.after_step(self.network(), theta, self.memory, step, self.task)
            if after is not theta:
                self.model.write(after)
        self.read = self.noted

    # ---- evaluation

    def before_eval_forward(self, theirs: Any) -> None:
        """The network is told what evaluation tells: the task in the task scenario, else the latest."""
        told = theirs.experience.current_experience if self.stream.scenario == "task" else self.latest
        self.model.net = self.network()
        self.model.tasks = torch.full_like(theirs.mb_y, told)

    def after_eval_forward(self, theirs: Any) -> None:
        """``predict``."""
        if self.strategy.has("predict"):
            tasks = self.model.tasks
            assert tasks is not None
            theirs.mb_output = self.strategy.predict(self.network(), self.theta(), self.memory, theirs.mb_x, tasks)


def _joined(parts: list[Tensor], found: list[Tensor | None]) -> Tensor:
    """The vector of tensors that may be missing."""
    pairs = zip(parts, found, strict=True)
    return torch.cat([(torch.zeros_like(part) if one is None else one).reshape(-1) for part, one in pairs])
