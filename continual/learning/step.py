"""One step of one task, as a program for the device: static shapes, no branch on a tensor, no value asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from continual.errors import BadOption
from continual.failures import in_words
from continual.learning.models import Out
from continual.learning.seeds import Gradient, Learners, compact, storage_of
from continual.learning.strategy import Batch, Memory, Step, gave, gave_both
from continual.streams.augment import Shown
from continual.streams.rng import Draw, Key, at_once, draws
from continual.streams.stream import Samples, Task

if TYPE_CHECKING:
    from torch import Tensor

    Pool = dict[Draw, Tensor]

POOLED_STEPS = 64
"""Random numbers are drawn for a block of so many steps at once."""


def block_of(number: int) -> int:
    """The first step of the block that a step is in; before the first block is the step that notes what is drawn."""
    return number - (number - 1) % POOLED_STEPS


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as PyTorch's compiler makes it; what was made before is let go.

    It is made when it is first called, and raises :class:`~continual.errors.BadOption` where it cannot be.
    """
    torch.compiler.reset()
    made: Callable[..., Any] = torch.compile(function, dynamic=False)

    def called(*given: Any) -> Any:
        try:
            return made(*given)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise
            raise BadOption(f"compile: PyTorch's compiler cannot make a step of it ({in_words(error)}); leave "
                            "--compile out") from error  # fmt: skip

    return called


class StepTask(Task):
    """A task as the hooks of its steps see it.

    What differs between tasks is either a tensor, ``held`` where it lies for as long as the program is used, or one of
    the ``answers``, which is noted in ``asked`` when it is read: the program is then that of tasks which answer alike.
    """

    program: Program
    rows: dict[str, Tensor]

    def __new__(cls, *given: Any, **fields: Any) -> Any:
        """One with other fields, by ``dataclasses.replace``, is a task as any other; all were read for it."""
        return Task(**fields) if fields else object.__new__(cls)

    def __init__(self, program: Program, samples: Samples, key: Key, rows: dict[str, Tensor]) -> None:
        task = program.task
        for name, value in (("program", program), ("samples", samples), ("key", key), ("rows", rows),
                            ("count", task.count), ("outputs", task.outputs)):  # fmt: skip
            object.__setattr__(self, name, value)

    def with_key(self, key: Key) -> Task:
        """See :meth:`Task.with_key`."""
        return StepTask(self.program, self.samples, key, self.rows)


def _held(name: str) -> property:
    return property(lambda task: task.program.held[name])


def _asked(name: str) -> property:
    def read(task: StepTask) -> Any:
        found = task.program.asked[name] = task.program.answers[name]
        return task.rows.get(name, found)

    return property(read)


HELD = ("number", "own_units", "past_units", "seen_units")
ROWS = ("train", "validation", "test")
ANSWERS = ("index", "first", "classes", *ROWS)
for _name in HELD:
    setattr(StepTask, _name, _held(_name))
for _name in ANSWERS:
    setattr(StepTask, _name, _asked(_name))


class Context(NamedTuple):
    """What differs between the learners of a step, besides θ and memory."""

    tables: tuple[Tensor, ...]
    rows: dict[str, Tensor]
    seed: Tensor
    pool: Pool


class Program:
    """The steps of one task for a group of learners.

    The first step computes whatever a hook may read and draws random numbers as they are asked for; it notes what was
    read and drawn. The later steps leave out what nobody reads and draw for many steps at once. The numbers are the
    same. Where the later steps are those of the task ``before``, its program does them: what was recorded or compiled
    of it is made once. ``batches``: the rows (B,) or (R, B) of each step.
    """

    def __init__(
        self, learners: Learners, index: int, batches: Sequence[Tensor], before: Program | None = None
    ) -> None:
        self.learners, self.task, self.before = learners, learners.streams[0].tasks[index], before
        self.sizes = [rows.shape[-1] for rows in batches]
        self.numbers = torch.arange(len(batches), device=learners.device)
        self.of_size: dict[int, list[int]] = defaultdict(list)  # the steps of a size, and the same on the device
        for number, size in enumerate(self.sizes):
            self.of_size[size].append(number)
        self.there = {size: torch.tensor(found, device=learners.device) for size, found in self.of_size.items()}
        self.tables = learners.tables("samples")
        self.ways = learners.recipe.augmentation.ways(self.task.samples.pixels, learners.device)
        self.hooks = {hook for hook in ("batch", "penalty", "gradient", "after_step") if learners.strategy.has(hook)}
        self.read = {"before", "gradient"} if "after_step" in self.hooks else set()
        self.spares = self._spares()
        self.fixed = learners.net.fixed(learners.theta)  # as the task begins
        self.held = {name: getattr(self.task, name).clone() for name in HELD}
        self.rows = learners.rows(index, ROWS)
        self.answers = {name: getattr(self.task, name) for name in ANSWERS} | self.rows
        self.asked: dict[str, Any] = {}
        self.noted: set[str] = set()
        self.wanted: dict[int, set[Draw]] = defaultdict(set)  # what a step draws, by the size of its batch
        self.blocks: dict[int, tuple[int, Pool]] = {}  # what is drawn, by size: from which step on, and the numbers
        self.first_is_done = False
        self.compiled: Callable[..., dict[str, Any]] | None = None
        self.known: set[int] = set()  # sizes of batches: the first of each notes what it draws

    @property
    def later(self) -> Program:
        """The program of the later steps, when the first is done."""
        return self.before or self

    def steady(self, memory: Memory) -> list[Tensor]:
        """What the later steps read, and what nobody but they may write to while a task lasts."""
        samples, outputs = self.task.samples, self.task.outputs
        shown = [samples.pixels, *samples.tables, *([] if samples.channel is None else [samples.channel])]
        answers = [value for value in self.answers.values() if isinstance(value, torch.Tensor)]
        return [*shown, *self.tables, outputs.units, outputs.seen, *answers, *self.held.values(), *memory.values()]

    def serves(self, other: Program) -> bool:
        """Whether the later steps of another task, whose program has done the first, are the same."""
        if not self.first_is_done or (self.noted, self.fixed) != (other.noted, other.fixed):
            return False
        answers = [(found, other.answers[name]) for name, found in self.asked.items()]
        return all(a is b if isinstance(a, torch.Tensor) else a == b for a, b in answers)

    def turn_to(self, other: Program) -> None:
        """Go on with the task of another program, whose later steps are the same."""
        self.task, self.answers, self.numbers, self.sizes = other.task, other.answers, other.numbers, other.sizes
        self.rows, self.of_size, self.there, self.blocks = other.rows, other.of_size, other.there, {}
        self.known = set(other.known)
        for size, found in other.wanted.items():
            self.wanted[size] |= found
        for name, value in self.held.items():
            value.copy_(other.held[name])

    def _spares(self) -> bool:
        """Whether what a hook has of the step's own samples (``Batch.passed``) comes to the same as their pass.

        Not where more than the usual loss is made of them, where the step shows or rounds them otherwise, where the
        network mixes a batch, or where another strategy of a chain may change them.
        """
        recipe, strategy = self.learners.recipe, self.learners.strategy
        more = "penalty" in self.hooks or strategy.has("loss") or len(strategy.parts) > 1
        return not (more or recipe.augmentation.active or recipe.precision == "bfloat16" or self.learners.net.mixes)

    def __call__(self, number: int, rows: Tensor) -> Tensor:
        """Learn from the rows (B,) or (R, B) of step ``number``: the loss (data term and penalty), () or (R,)."""
        if number:
            return self.later.step(self.numbers[number], rows, self.later._pool(number))
        loss = self.step(self.numbers[0], rows, {})
        self._has_noted()
        return loss

    def _has_noted(self) -> None:
        self.read, self.first_is_done = self.noted, True
        self.learners.net.check_kept()
        if self.before is not None and self.before.serves(self):
            self.before.turn_to(self)
        else:
            self.before = None

    def notes(self) -> dict[str, Any]:
        """What was found as the task began, and what the first step noted, as JSON has it."""
        wanted = [[size, *one] for size, found in self.later.wanted.items() for one in sorted(found)]
        return {"read": sorted(self.noted), "wanted": wanted, "fixed": self.fixed, "known": sorted(self.later.known)}

    def go_on(self, notes: dict[str, Any]) -> None:
        """Take the :meth:`notes` of the same task, whose first step was done elsewhere."""
        self.noted, self.fixed = self.noted | set(notes["read"]), bool(notes["fixed"])
        for size, purpose, n, kind, high in notes["wanted"]:
            self.wanted[size].add((purpose, n, kind, high))
        self.known |= set(notes["known"])
        self._has_noted()

    def step(self, at: Tensor, rows: Tensor, pool: Pool) -> Tensor:
        """The same, its number () a tensor, with the random numbers that were drawn for it."""
        learners, self.at, self.own = self.learners, at, rows.shape[-1]
        context = Context(self.tables, self.rows, learners.seed, pool)
        if self.compiled is None and self.first_is_done and learners.recipe.compiled:
            self.compiled = compiled(lambda *given: learners.map(self._forward, *given))
        if self.compiled is not None:  # else a GPU's graph would wait for the stream on which they were first used
            learners.renew_leaves()
        self.notes_draws = self.own not in self.known  # later batches of a size ask for what the pool has
        given = (learners.flat, learners.parts, learners.memory, context, rows)
        made = None if self.notes_draws else self.compiled
        found = learners.map(self._forward, *given) if made is None else made(*given)
        gradient, data_gradient = self._backward(found)
        loss: Tensor = (found["loss"] + found["penalty"] if "penalty" in found else found["loss"]).detach()
        with torch.no_grad():
            batch, out = found["batch"], Out(*(part.detach() for part in found["out"]))
            gradient = self._gradient_hook(context, batch, gradient)
            before = learners.theta.clone() if "before" in self.read else None
            learners.follow(gradient)
            if "statistics" in found:  # they follow the batch, whatever the optimiser made of them
                learners.theta[..., -learners.net.statistics :] = found["statistics"].detach()
            if "after_step" in self.hooks:
                self._after_step(context, batch, out, {"before": before, "gradient": data_gradient})
        self.known.add(self.own)
        return loss

    def _task(self, context: Context) -> Task:
        """The task as the hooks of this step see it."""
        task, number = self.task, self.held["number"]
        samples = task.samples.with_tables(context.tables) if context.tables else task.samples
        noting: set[Draw] = self.wanted[self.own] if self.notes_draws else set()  # the compiler cannot read set[Draw]()
        key = Key(context.seed, number, self.at, "step/", context.pool, noting)
        augmentation = self.learners.recipe.augmentation
        if augmentation.active:
            samples = replace(samples, shown=Shown(augmentation, key.child("augment"), number, self.ways))
        return StepTask(self, samples, key, context.rows)

    def _forward(
        self, flat: Tensor, parts: list[Tensor], memory: Memory, context: Context, rows: Tensor
    ) -> dict[str, Any]:
        """One learner: the batch, its forward pass, the data term and the penalty."""
        recipe = self.learners.recipe
        net, strategy = self.learners.network(memory), recipe.strategy
        task, theta = self._task(context), net.attach(flat, parts)
        batch = Batch(rows, *task.samples.labels(rows), task.key, own=rows.shape[-1])
        if "batch" in self.hooks:
            with torch.no_grad():
                batch = strategy.batch(net, theta, memory, batch, task)
        if batch.x is None:
            batch = batch._replace(x=task.samples.images(batch.row, recipe.dtype))
        passed = batch.passed if self.spares else None
        done = 0 if passed is None else batch.own
        with self.learners.autocast():
            out, statistics = net.learn(theta, batch.images[done:], batch.task[done:], self.fixed)
            if passed is not None:
                out = Out(*(torch.cat(pair) for pair in zip(passed.out, out, strict=True)))
            out = Out(*(part.to(theta.dtype) for part in out))  # losses are computed in full, as a GPU does by itself
            loss = gave(strategy, "loss", strategy.loss(net, theta, memory, batch, out, task))
            found: dict[str, Any] = {"loss": loss, "out": out}
            if statistics is not None:
                found["statistics"] = statistics
            if "penalty" in self.hooks:
                found["penalty"] = gave(strategy, "penalty", strategy.penalty(net, theta, memory, batch, out, task))
        if passed is not None:
            weights = batch.weights(passed.gradient)
            found["passed"], found["share"] = passed.gradient, weights[:done].sum() / weights.sum().clamp_min(1e-12)
        found["batch"] = {name: value for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)}
        self.places = batch.places
        return found

    def _batch(self, tensors: dict[str, Tensor], task: Task) -> Batch:
        """The batch of this step again, from its tensors."""
        row, y, tasks = (tensors[name] for name in ("row", "y", "task"))
        return Batch(row, y, tasks, task.key, self.own, tensors.get("weight"), tensors.get("x"), self.places)

    def _backward(self, found: dict[str, Any]) -> tuple[Gradient, Tensor | None]:
        """The gradient of the whole loss; that of the data term alone if it is read."""
        loss, penalty = found["loss"].sum(), found["penalty"].sum() if "penalty" in found else None
        if "gradient" not in self.read:
            return self._whole(loss if penalty is None else loss + penalty, found), None
        data = self._whole(loss, found, retain_graph=penalty is not None)
        if penalty is None:
            return data, data.whole
        return self.learners.cut(self._gradient(penalty).whole.add_(data.whole)), data.whole

    def _whole(self, loss: Tensor, found: dict[str, Any], retain_graph: bool = False) -> Gradient:
        """The gradient, with that of the samples that had passed before, by their share in the loss."""
        gradient = self._gradient(loss, retain_graph)
        if "passed" not in found:
            return gradient
        pairs, share = zip(gradient.parts, self.learners.cut(found["passed"]).parts, strict=True), found["share"]
        sums = [torch.addcmul(a, b, share.view(*share.shape, *[1] * (a.dim() - share.dim()))) for a, b in pairs]
        return Gradient(sums, None, self.learners.gap)

    def _gradient(self, loss: Tensor, retain_graph: bool = False) -> Gradient:
        """The gradient with respect to θ, through the vector and through its parts."""
        learners = self.learners
        if not loss.requires_grad:
            return learners.cut(torch.zeros_like(learners.theta))
        whole, *parts = torch.autograd.grad(
            loss, [learners.flat, *learners.parts], allow_unused=True, retain_graph=retain_graph
        )
        if whole is None:
            pairs = zip(learners.parts, parts, strict=True)
            return Gradient([torch.zeros_like(a) if b is None else b for a, b in pairs], None, learners.gap)
        joined = learners.cut(whole.contiguous())  # that of a sum is one number shown P times
        for place, part in zip(joined.parts, parts, strict=True):
            if part is not None:
                place.add_(part)
        return joined

    def _gradient_hook(self, context: Context, batch: dict[str, Tensor], gradient: Gradient) -> Gradient:
        if "gradient" not in self.hooks:
            return gradient
        learners = self.learners

        def hook(theta: Tensor, memory: Memory, gradient: Tensor, batch: dict[str, Tensor], context: Context) -> Tensor:
            task, strategy = self._task(context), learners.strategy
            net, seen = learners.network(memory), self._batch(batch, task)
            new = strategy.gradient(net, theta, memory, gradient, seen, task)
            return gave(strategy, "gradient", new, *theta.shape)

        return learners.cut(learners.map(hook, learners.theta, learners.memory, gradient.whole, batch, context))

    def _after_step(
        self, context: Context, batch: dict[str, Tensor], out: Out, known: dict[str, Tensor | None]
    ) -> None:
        learners, moved = self.learners, False

        def hook(
            theta: Tensor, memory: Memory, batch: dict[str, Tensor], out: Out, known: dict[str, Tensor],
            context: Context,
        ) -> tuple[Tensor, Memory]:  # fmt: skip
            nonlocal moved
            task = self._task(context)
            step = Step(self._batch(batch, task), out, self.noted, **known)
            found = learners.strategy.after_step(learners.network(memory), theta, memory, step, task)
            after, memory = gave_both(learners.strategy, "after_step", found, theta)
            moved = after is not theta
            return after, memory

        given = {name: value for name, value in known.items() if value is not None}
        theta, memory = learners.map(hook, learners.theta, learners.memory, batch, out, given, context)
        own = storage_of(learners.theta)  # which goes on
        learners.memory = compact(
            {name: value.clone() if storage_of(value) == own else value for name, value in memory.items()}
        )
        if moved:
            learners.theta.copy_(theta)

    def _pool(self, number: int) -> Pool:
        """The random numbers of this step that earlier ones of its size asked for."""
        size, start = self.sizes[number], block_of(number)
        first, pool = self.blocks.get(size, (0, {}))
        if first != start or len(pool) < len(self.wanted[size]):
            self.blocks[size] = _, pool = start, self.draw(start, size)
        place = self.sizes[start:number].count(size)
        return {name: drawn[..., place, :] for name, drawn in pool.items()}

    def in_block(self, first: int, size: int) -> Tensor:
        """The numbers of the steps of a block whose batches have a size."""
        start, end = (bisect_left(self.of_size[size], number) for number in (first, first + POOLED_STEPS))
        return self.there[size][start:end]

    def draw(self, first: int, size: int) -> Pool:
        """The random numbers of a block's steps of a size, (..., n, m) each."""
        seed, wanted = self.learners.seed, self.wanted[size]
        groups = self.in_block(first, size).split(at_once(wanted, seed))
        parts = [draws(seed[..., None], wanted, self.task.index, some) for some in groups]
        return (
            parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts], -2) for name in parts[0]}
        )
