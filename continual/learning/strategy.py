"""The contract of a strategy, and the chain of several.

A strategy is a frozen dataclass of options with hooks. Every hook is optional, pure and about ONE learner: θ is a
vector (P,), ``memory`` a flat dict of tensors whose shapes never change. Hooks change nothing in place; they return
what is new. The hooks of a step (``batch``, ``loss``, ``penalty``, ``gradient``, ``after_step``, and ``predict``) are
programs for the device: they branch on no tensor and never ask for a tensor's value, and so is ``network``. Those
between tasks (``init``, ``before_task``, ``rows``, ``after_task``) are plain Python, one learner at a time.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch

from continual.errors import BadChain
from continual.options import Configured

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.augment import Augmentation
    from continual.streams.rng import Key
    from continual.streams.stream import Stream, Task

if TYPE_CHECKING:
    Memory = dict[str, Tensor]
else:
    Memory = dict  # the annotation is not evaluated, so that strategies can be listed without importing torch
Growth = Literal["nothing", "tasks", "data"]
HOOKS = (
    "extend", "network", "init", "before_task", "rows", "batch", "loss", "penalty", "gradient", "after_step",
    "after_task", "predict",
)  # fmt: skip


class Passed(NamedTuple):
    """What a ``batch`` hook has of the step's own samples already, by a pass of theirs at the step's θ.

    ``out`` is what came out, ``gradient`` (P,) that of their usual loss, :meth:`Strategy.loss` of them alone.
    """

    out: Out
    gradient: Tensor


class Batch(NamedTuple):
    """The samples of one step: (B,) each, but for ``x`` (B, C, H, W).

    ``row`` is the sample's row (-1 for one that was made up), ``y`` its output unit, ``task`` its task; ``weight`` its
    share in the loss (None: all alike). The first ``own`` samples are the step's own, the others have joined. ``x``
    is None until the batch is complete: the images are then fetched all at once, unless a hook has put them there.
    ``key`` is where a hook draws this step's random numbers from, and under its path ``places`` has who joined which.
    ``passed`` spares the step a pass of its own samples where that comes to the same; see :meth:`spare`.
    """

    row: Tensor
    y: Tensor
    task: Tensor
    key: Key
    own: int
    weight: Tensor | None = None
    x: Tensor | None = None
    places: tuple[tuple[str, int, int], ...] = ()
    passed: Passed | None = None

    @property
    def joined(self) -> slice:
        """Which samples the strategy's own ``batch`` hook has joined."""
        own = [(first, last) for path, first, last in self.places if path == self.key.path]
        return slice(own[0][0], own[-1][1]) if own else slice(len(self.row), len(self.row))

    def weights(self, like: Tensor) -> Tensor:
        """The samples' weights (B,), also where they are all alike: then 1 each, of the type of ``like``."""
        return torch.ones_like(self.row, dtype=like.dtype) if self.weight is None else self.weight

    def usual_weight(self, like: Tensor) -> Tensor:
        """What a sample that joins weighs if nothing is said, (): the mean of those that weigh something, or 1."""
        known = self.weights(like)
        count = (known != 0).sum()
        return (known.sum() + (count == 0)) / count.clamp_min(1)

    def readable(self, rows: Tensor) -> Tensor:
        """The rows of some slots, with a row of this batch for each -1 (an empty slot), which must weigh nothing."""
        return torch.where(rows >= 0, rows, self.row[0])

    def join(self, row: Tensor, task: Task, weight: Tensor | None = None) -> Batch:
        """This batch with more rows (n,) of the stream behind it; ``weight`` (B + n,), if given, is of the whole."""
        y, tasks = task.samples.labels(row)
        x = None if self.x is None else torch.cat([self.x, task.samples.images(row, self.x.dtype)])
        return self._longer(row, y, tasks, weight, x)

    def join_images(self, x: Tensor, y: Tensor, tasks: Tensor, task: Task, weight: Tensor | None = None) -> Batch:
        """This batch with made-up images ``x`` (n, C, H, W) behind it, their labels and tasks (n,); row -1 each."""
        own = task.samples.images(self.row, x.dtype) if self.x is None else self.x
        return self._longer(torch.full_like(y, -1), y, tasks, weight, torch.cat([own, x]))

    def _longer(self, row: Tensor, y: Tensor, tasks: Tensor, weight: Tensor | None, x: Tensor | None) -> Batch:
        """This batch with more samples (n,) behind it, and the images ``x`` and weights of all."""
        n = len(row)
        if weight is None and self.weight is not None:  # they weigh as much as the others
            weight = torch.cat([self.weight, self.usual_weight(self.weight).expand(n)])
        rows, ys, all_tasks = (torch.cat(pair) for pair in ((self.row, row), (self.y, y), (self.task, tasks)))
        places = (*self.places, (self.key.path, len(self.row), len(rows)))
        return Batch(rows, ys, all_tasks, self.key, self.own, weight, x, places)

    def spare(self, out: Out, gradient: Tensor) -> Batch:
        """This batch, of whose own samples a hook has what came ``out``, and the gradient (P,) of their usual loss.

        Both at the step's θ and detached; to be said when all others have joined. The step makes use of it where
        nothing else is made of these samples: not in a chain, with a loss or a penalty of the strategy's, with
        augmentation, with a forward pass in bfloat16, nor where the network normalises by the batch or drops units.
        """
        return self._replace(passed=Passed(out, gradient))

    @property
    def images(self) -> Tensor:
        """``x``, which is there in every hook after ``batch``."""
        assert self.x is not None, "the images of a batch are fetched after the batch hooks"
        return self.x


class Step:
    """What one step did, for ``after_step``.

    ``before``: θ before the step; ``gradient``: the gradient of the data term alone; ``batch`` and ``out`` as in the
    loss. Whatever a hook does not read is not computed: ``read`` notes what is read, and the first step of a task
    always has everything.
    """

    def __init__(self, batch: Batch, out: Out, read: set[str], **known: Tensor) -> None:
        self.batch, self.out, self.read, self.known = batch, out, read, known

    @property
    def before(self) -> Tensor:
        """θ before the step, (P,)."""
        return self._get("before")

    @property
    def gradient(self) -> Tensor:
        """The gradient of the data term alone, (P,)."""
        return self._get("gradient")

    def _get(self, name: str) -> Tensor:
        self.read.add(name)
        if name not in self.known:
            raise BadChain(
                f"a hook reads step.{name}, which it did not read in the first step of the task: what hooks read must "
                "not depend on values or on the size of a batch; read it in every step"
            )
        return self.known[name]


@dataclass(frozen=True)
class Strategy(Configured):
    """A method of continual learning; with no hook of its own it is fine-tuning."""

    first_task_like_finetuning: ClassVar[bool] = True
    """Whether the first task must come out as under fine-tuning; the conformance suite holds the strategy to it."""
    restarts_optimizer: ClassVar[bool] = False
    """Whether every task begins with a fresh optimiser, whatever the run says (for one that replaces θ)."""
    can_be_captured: ClassVar[bool] = True
    """Whether its steps may be recorded and done again, and mapped over seeds: not where one is done by other means
    than tensor operations, such as numpy, or branches on a value. It then runs step by step, seed by seed."""
    starts_over: ClassVar[bool] = False
    """Whether every task begins with another θ than the last one ended with: such a strategy cannot be chained."""
    step_grows: ClassVar[bool] = False
    """Whether a step does more with every task that was learnt, because the method does (GEM: a gradient for each)."""
    answers_by_task: ClassVar[bool] = False
    """Whether evaluation in the task scenario gives :meth:`predict` samples of one task at a time, whose ``tasks`` are
    then one number shown B times (``tasks.stride() == (0,)``): where the answer for each task is a pass of its own."""
    makes_images: ClassVar[bool] = False
    """Whether it makes images of its own (:meth:`Batch.join_images`): it is then shown images even where the network's
    parts in front are not trained, and others learn from what these make of an image, computed once."""
    is_finetuning: ClassVar[bool] = False
    """Whether it does nothing on purpose; any other strategy that does nothing fails the conformance suite."""

    trains_itself: ClassVar[bool] = False
    """Whether it is another library's and brings a loop of its own (:meth:`train`), so that its hooks are not used."""
    stores_samples: ClassVar[bool] = False
    """Whether samples of past tasks are stored (their rows lie in memory) and learnt from again."""
    memory_grows_with: ClassVar[Growth] = "nothing"
    """What makes a learner larger beyond its output units and options: more ``tasks``, more ``data``, or nothing."""
    scenarios: ClassVar[tuple[str, ...]] = ("task", "domain", "class")
    """The scenarios that it works in; :meth:`suits` refuses the others."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Other packages that its numbers depend on: a run's record has their versions."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Refuse a method whose name is nearly a hook's: it would never be called."""
        super().__init_subclass__(**given)
        if isinstance(cls.scenarios, str):
            raise TypeError(f"{cls.__name__}.scenarios is a text; it is a tuple, as ({cls.scenarios!r},)")
        for name, value in vars(cls).items():
            own = name.startswith("_") or name in vars(Strategy) or not callable(value)
            close = [] if own else difflib.get_close_matches(name, HOOKS, 1, 0.85)
            if close:
                raise TypeError(f"{cls.__name__}.{name} is no hook, and would never be called; did you mean "
                                f"'{close[0]}'? Give a method of your own another name, such as '_{name}'")  # fmt: skip

    def suits(self, stream: Stream, net: Net) -> None:
        """Raise :class:`~continual.errors.BadChain` where the strategy cannot work on a stream or network.

        By default where the scenario is none of its ``scenarios``; one of your own calls that by ``super().suits``.
        """
        if stream.scenario not in self.scenarios:
            told = ", where the task of a test sample is not told" if self.scenarios == ("task",) else ""
            raise BadChain(f"{type(self).__name__} does not work with scenario={stream.scenario}{told}; use scenario="
                           f"{' or '.join(self.scenarios)}")  # fmt: skip

    def suits_training(self, training: Any, augmentation: Augmentation) -> None:
        """Raise :class:`~continual.errors.BadChain` where the strategy cannot be trained in a way."""

    def train(self, learners: Any, training: Any, watch: Any) -> tuple[dict[str, Tensor], list[Any]]:
        """Where it ``trains_itself``: what :func:`continual.learning.train.train` gives, of one learner."""
        raise NotImplementedError

    def extend(self, net: Net, stream: Stream) -> Net:
        """Once, before θ is made: the network that is trained, which may have parameters of the strategy's own."""
        return net

    def network(self, net: Net, memory: Memory) -> Net:
        """Before every other hook: the network as memory makes it (gates that open by task), given to all of them."""
        return net

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """Once, before the first task: the memory, with every tensor in the shape that it keeps."""
        return {}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """A task begins: θ and memory."""
        return theta, memory

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """The rows (n,) that an epoch of the task runs through; by default the task's training rows."""
        return task.train

    def puts_off(self, index: int, count: int) -> bool:
        """Whether nothing has been learnt yet when task ``index`` (from 0) of ``count`` ends; it is not measured then.

        By default each task is learnt when it comes.
        """
        return False

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """Each step: the batch that is learnt from, such as this one and some exemplars."""
        return batch

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """Each step: the data term, a scalar; by default weighted cross-entropy over the active outputs."""
        return cross_entropy(task.active(out.logits, batch.task), batch.y, batch.weight)

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """Each step: a scalar that is added to the data term."""
        return theta.new_zeros(())

    def gradient(self, net: Net, theta: Tensor, memory: Memory, gradient: Tensor, batch: Batch, task: Task) -> Tensor:
        """Each step: the gradient (P,) that the optimiser follows, from that of data term and penalty."""
        return gradient

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """Each step, after the optimiser: θ and memory."""
        return theta, memory

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """A task ends: θ and memory."""
        return theta, memory

    def predict(self, net: Net, theta: Tensor, memory: Memory, x: Tensor, tasks: Tensor) -> Tensor:
        """Evaluation: scores (B, K) of images ``x``; the highest active one is the answer.

        ``tasks`` (B,) are the samples' own tasks in the task scenario, elsewhere the latest task that was learnt.
        """
        return net.logits(theta, x, tasks)

    def has(self, hook: str) -> bool:
        """Whether the strategy has a hook of its own; where it says no, the hook must do what the usual one does."""
        return getattr(type(self), hook) is not getattr(Strategy, hook)

    @property
    def parts(self) -> tuple[Strategy, ...]:
        """The strategies of a chain; a single one is a chain of itself."""
        return (self,)


def gave(strategy: Strategy, hook: str, found: Any, *shape: int) -> Tensor:
    """What a hook gave, where it is a tensor of real numbers of a shape; else :class:`~continual.errors.BadChain`."""
    if isinstance(found, torch.Tensor) and found.shape == shape and found.is_floating_point():
        return found
    kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
    raise _gives(strategy, hook, f"{kind.removeprefix('torch.')}; it gives numbers {shape}, {GIVES[hook]}")


def gave_both(strategy: Strategy, hook: str, found: Any, theta: Tensor) -> tuple[Tensor, Memory]:
    """θ and memory, where a hook gave both; else :class:`~continual.errors.BadChain`."""
    pair = isinstance(found, tuple | list) and len(found) == 2
    if not pair or not isinstance(found[1], Mapping):
        kind = f"({type(found[0]).__name__}, {type(found[1]).__name__})" if pair else f"a {type(found).__name__}"
        raise _gives(strategy, hook, f"{kind}; it gives θ and memory: 'return theta, memory'")
    return gave(strategy, hook, found[0], *theta.shape), gave_memory(strategy, hook, found[1])


def gave_memory(strategy: Strategy, hook: str, found: Any) -> Memory:
    """What a hook gave as memory, where that is tensors by name; else :class:`~continual.errors.BadChain`."""
    if not isinstance(found, Mapping):
        raise _gives(strategy, hook, f"a {type(found).__name__}; it gives memory, a dict of tensors by their names")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise _gives(
                strategy, hook, f"memory whose '{name}' is of type {kind}; it takes tensors, as torch.zeros(())"
            )
    return dict(found)


def _gives(strategy: Strategy, hook: str, what: str) -> BadChain:
    names = "+".join(type(part).__name__ for part in strategy.parts if part.has(hook)) or type(strategy).__name__
    return BadChain(f"{names}.{hook} gives {what}")


GIVES = {
    "loss": "the mean over samples", "penalty": "one number", "gradient": "one for each parameter",
    "before_task": "θ", "after_step": "θ", "after_task": "θ", "predict": "a score for each image and output unit",
}  # fmt: skip
"""What hooks give, in words."""


def cross_entropy(logits: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over samples of -log softmax(logits)[y]; logits (B, K), y (B,), weights (B,) or None: all alike."""
    # over mapped seeds PyTorch's own cross-entropy is taken apart operation by operation, at twice the time
    found = logits.log_softmax(-1).gather(-1, y[..., None]).squeeze(-1)
    if weight is None:
        return -found.mean()
    # no sample may weigh anything (an empty memory): the sum is then zero, and so must be the mean
    return -(found * weight).sum() / weight.sum().clamp_min(1e-12)


def either(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where a mask holds, and b elsewhere, both finite: on a CPU ``torch.where`` takes from 3 to 20 times as long."""
    return torch.lerp(b, a, mask.to(a.dtype))  # of which weights 0 and 1 give b and a to the bit


def gradient_of(net: Net, function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """The gradient (P,) of a function of θ (P,), within a hook, whether its learners are mapped or there is one."""
    return gradient_and_more(net, lambda theta: (function(theta), ()), theta)[0]


def each(function: Callable[..., Any], *samples: Tensor, chunk_size: int | None = None) -> Any:
    """What a function gives for each of the samples (B, ...), a tensor or several, with B in front, so many at a time.

    They are mapped (``torch.vmap``), or done one after the other where the network has a layer that cannot be, such as
    RReLU or GRU.
    """
    try:
        return torch.vmap(function, chunk_size=chunk_size)(*samples)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # what is wrong for another reason is so for a single sample, too
        found = [function(*one) for one in zip(*samples, strict=True)]
    if isinstance(found[0], torch.Tensor):
        return torch.stack(found)
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def gradient_and_more(net: Net, function: Callable[[Tensor], tuple[Tensor, Any]], theta: Tensor) -> tuple[Tensor, Any]:
    """The same of the first of two things that a function gives, and the second, which must be detached."""
    if net.mapped:
        found: tuple[Tensor, Any] = torch.func.grad(function, has_aux=True)(theta)
        return found
    with torch.enable_grad():  # the same, without what mapping costs: a fifth with a small network
        live = theta.detach().requires_grad_()
        value, more = function(live)
        return torch.autograd.grad(value, live, materialize_grads=True)[0], more


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a prefix before their names."""
    return {prefix + name: value for name, value in tensors.items()}


def within(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names have the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _said_by(those: Callable[[Iterator[bool]], bool], name: str) -> property:
    """What a chain says of itself where ``any`` or ``all`` of its parts do."""
    return property(lambda chain: those(getattr(part, name) for part in chain.parts))


class Chain(Strategy):
    """Several strategies at once, itself a strategy.

    Batches and gradients pass through from left to right, penalties add, each part keeps its own memory and draws its
    own random numbers (but in ``init``, where two parts of a kind draw the same). Only one part may have a ``loss``,
    ``rows`` or ``predict`` of its own, only one may put a network around the given one (``extend``, ``network``), and
    none may begin each task with another network or train itself.
    """

    def __init__(self, parts: tuple[Strategy, ...]) -> None:
        if not parts:
            raise BadChain("a chain needs at least one strategy")
        for given in parts:
            if not isinstance(given, Strategy):
                raise BadChain(f"a chain is made of strategies, not of {given!r}; make one, such as EWC(), or give the "
                               "chain as text: 'ewc+replay'")  # fmt: skip
        self._parts = tuple(part for given in parts for part in given.parts)
        for hook in ("loss", "rows", "predict"):
            owners = [type(part).__name__ for part in self.parts if part.has(hook)]
            if len(owners) > 1:
                raise BadChain(f"{' and '.join(owners)} cannot be chained: each has a '{hook}' of its own, and only "
                               "one can hold")  # fmt: skip
        around = [type(part).__name__ for part in self.parts if part.has("extend") or part.has("network")]
        if len(around) > 1:
            raise BadChain(f"{' and '.join(around)} cannot be chained: each puts a network of its own around the given "
                           "one, and hooks are given only the outermost")  # fmt: skip
        alone = [type(part).__name__ for part in self.parts if part.trains_itself]
        if alone and len(self.parts) > 1:
            raise BadChain(f"{' and '.join(alone)} is another library's and trains in its own loop; run it alone")
        over = [type(part).__name__ for part in self.parts if part.starts_over]
        if over and len(self.parts) > 1:
            raise BadChain(f"{' and '.join(over)} begins each task with a network of its own, so there is nothing that "
                           "another strategy could hold; run it alone")  # fmt: skip

    @property
    def parts(self) -> tuple[Strategy, ...]:
        """The strategies in their order."""
        return self._parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __repr__(self) -> str:
        return f"Chain({self.parts!r})"

    first_task_like_finetuning = _said_by(all, "first_task_like_finetuning")
    restarts_optimizer = _said_by(any, "restarts_optimizer")
    can_be_captured = _said_by(all, "can_be_captured")
    step_grows = _said_by(any, "step_grows")
    answers_by_task = _said_by(any, "answers_by_task")
    makes_images = _said_by(any, "makes_images")
    is_finetuning = _said_by(all, "is_finetuning")

    def has(self, hook: str) -> bool:
        """See :meth:`Strategy.has`."""
        return any(part.has(hook) for part in self.parts)

    def _each(self, memory: Memory) -> Iterator[tuple[str, Strategy, Memory]]:
        """Each part with its name and its own memory."""
        for number, part in enumerate(self.parts):
            prefix = f"{number}/"
            yield prefix, part, within(prefix, memory)

    def _owner(self, hook: str, memory: Memory) -> tuple[str, Strategy, Memory]:
        """The part that has a hook of which there can be one, or the first part."""
        parts = list(self._each(memory))
        return next((each for each in parts if each[1].has(hook)), parts[0])

    def suits(self, stream: Stream, net: Net) -> None:
        """See :meth:`Strategy.suits`."""
        for part in self.parts:
            part.suits(stream, net)

    def suits_training(self, training: Any, augmentation: Augmentation) -> None:
        """See :meth:`Strategy.suits_training`."""
        for part in self.parts:
            part.suits_training(training, augmentation)

    def extend(self, net: Net, stream: Stream) -> Net:
        """See :meth:`Strategy.extend`."""
        for part in self.parts:
            net = part.extend(net, stream)
        return net

    def network(self, net: Net, memory: Memory) -> Net:
        """See :meth:`Strategy.network`."""
        for _, part, own in self._each(memory):
            if part.has("network"):
                net = part.network(net, own)
        return net

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """See :meth:`Strategy.init`."""
        memory: Memory = {}
        for number, part in enumerate(self.parts):
            memory |= under(f"{number}/", part.init(net, theta, stream))
        return memory

    def _pass_on(self, hook: str, net: Net, theta: Tensor, memory: Memory, *rest: Any) -> tuple[Tensor, Memory]:
        """A hook that gives θ and memory, through the parts in their order."""
        after: Memory = {}
        for prefix, part, own in self._each(memory):
            kept = own
            if part.has(hook):
                found = getattr(part, hook)(net, theta, own, *(_keyed(item, prefix) for item in rest))
                theta, kept = gave_both(part, hook, found, theta)
            after |= under(prefix, kept)
        return theta, after

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """See :meth:`Strategy.before_task`."""
        return self._pass_on("before_task", net, theta, memory, task)

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """See :meth:`Strategy.rows`."""
        prefix, part, own = self._owner("rows", memory)
        return part.rows(own, _keyed(task, prefix))

    def puts_off(self, index: int, count: int) -> bool:
        """See :meth:`Strategy.puts_off`."""
        return any(part.puts_off(index, count) for part in self.parts)

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """See :meth:`Strategy.batch`."""
        for prefix, part, own in self._each(memory):
            if part.has("batch"):
                batch = part.batch(net, theta, own, _keyed(batch, prefix), _keyed(task, prefix))._replace(key=batch.key)
        return batch

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """See :meth:`Strategy.loss`."""
        prefix, part, own = self._owner("loss", memory)
        return part.loss(net, theta, own, _keyed(batch, prefix), out, _keyed(task, prefix))

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """See :meth:`Strategy.penalty`."""
        terms = [
            gave(part, "penalty", part.penalty(net, theta, own, _keyed(batch, prefix), out, _keyed(task, prefix)))
            for prefix, part, own in self._each(memory)
            if part.has("penalty")
        ]
        return torch.stack(terms).sum() if terms else theta.new_zeros(())

    def gradient(self, net: Net, theta: Tensor, memory: Memory, gradient: Tensor, batch: Batch, task: Task) -> Tensor:
        """See :meth:`Strategy.gradient`."""
        for prefix, part, own in self._each(memory):
            if part.has("gradient"):
                gradient = part.gradient(net, theta, own, gradient, _keyed(batch, prefix), _keyed(task, prefix))
        return gradient

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """See :meth:`Strategy.after_step`."""
        return self._pass_on("after_step", net, theta, memory, step, task)

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """See :meth:`Strategy.after_task`."""
        return self._pass_on("after_task", net, theta, memory, task)

    def predict(self, net: Net, theta: Tensor, memory: Memory, x: Tensor, tasks: Tensor) -> Tensor:
        """See :meth:`Strategy.predict`."""
        _, part, own = self._owner("predict", memory)
        return part.predict(net, theta, own, x, tasks)


def _keyed(item: Any, name: str) -> Any:
    """A batch, step or task whose key is a child, so that two parts do not draw the same numbers."""
    if isinstance(item, Step):
        return Step(_keyed(item.batch, name), item.out, item.read, **item.known)
    key = item.key.child(name)
    return item._replace(key=key) if isinstance(item, Batch) else item.with_key(key)
