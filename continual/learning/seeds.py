"""How R seeds are executed: mapped, as one learner with a batch dimension, or looped, one learner after the other.

The code is the same for both. A hook is called through ``Learners.map``, which is ``torch.vmap`` over the seeds where
they are mapped and a plain call where there is one. Hooks between tasks are called learner by learner either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from continual.errors import BadChain, BadOption
from continual.learning.models import Net
from continual.learning.optimizers import Optimizer, Schedule
from continual.learning.strategy import Memory, Strategy
from continual.streams.augment import Augmentation
from continual.streams.rng import key
from continual.streams.stream import Samples, Stream

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """What all learners of a run share."""

    net: Net
    strategy: Strategy
    optimizer: Optimizer
    schedule: Schedule
    keep_optimizer: bool
    precision: str
    augmentation: Augmentation = field(default_factory=Augmentation)
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What θ and the images are in; bfloat16 is for the forward pass alone."""
        return dtype_of(self.precision)


def dtype_of(precision: str) -> torch.dtype:
    """What numbers are kept in, under a precision."""
    return torch.float64 if precision == "float64" else torch.float32


class Learners:
    """The learners of one or several seeds in training; each of ``streams`` is the stream of one seed.

    ``theta`` is (P,) for one stream and (R, P) for several, which must have tasks of equal sizes.
    """

    def __init__(self, recipe: Recipe, streams: list[Stream], seeds: list[int]) -> None:
        self.recipe, self.streams, self.seeds = recipe, streams, seeds
        self.strategy = recipe.strategy
        self.net = self.strategy.extend(recipe.net, streams[0])
        self.mapped = len(streams) > 1
        self.device = streams[0].samples.image.device
        self.alive = [True] * len(streams)
        self.shared = all(_same_tables(stream, streams[0]) for stream in streams)
        self.seed = self._stack([torch.tensor(seed, device=self.device) for seed in seeds])
        keys = [key(seed, device=self.device).child("initial θ") for seed in seeds]
        starts = [self.net.initial(one, recipe.dtype) for one in keys]
        self.memory = self._stack_memory(
            [self.strategy.init(self.net, start, stream) for start, stream in zip(starts, streams, strict=True)]
        )
        self._take_storage(self._stack(starts))

    def _take_storage(self, theta: Tensor) -> None:
        """θ, a leaf that the optimiser changes, and each parameter as a leaf of its own in the same storage."""
        self.theta = theta.contiguous()
        self.flat = self.theta.detach().requires_grad_()
        views = zip(self.theta.split(self.net.sizes, -1), self.net.shapes.values(), strict=True)
        self.parts = [part.unflatten(-1, shape).detach().requires_grad_() for part, shape in views]
        self.total = torch.zeros_like(self.theta)
        self.flat.grad = self.total
        self.optimizer = self.recipe.optimizer.make(self.flat)

    # ---- one learner or several

    def map(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function of one learner for all of them, whose arguments are stacked along the first dimension."""
        return torch.vmap(function)(*arguments) if self.mapped else function(*arguments)

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        if any(tensor.shape != tensors[0].shape for tensor in tensors):
            raise BadChain("these seeds differ in how much they have to do, so they cannot be mapped; run them with "
                           "seeds_as=loop")  # fmt: skip
        return torch.stack(tensors) if self.mapped else tensors[0]

    def _stack_memory(self, memories: list[Memory]) -> Memory:
        return compact({name: self._stack([memory[name] for memory in memories]) for name in memories[0]})

    def _unstack(self, tensor: Tensor) -> list[Tensor]:
        return list(tensor) if self.mapped else [tensor]

    def memories(self) -> list[Memory]:
        """The memory of each learner."""
        parts = {name: self._unstack(value) for name, value in self.memory.items()}
        return [{name: values[r] for name, values in parts.items()} for r in range(len(self.streams))]

    def stored(self) -> Tensor:
        """How many samples each learner has in memory, () or (R,): the rows under names that end in ``rows``."""
        rows = [value for name, value in self.memory.items() if name.endswith("rows")]
        none = torch.zeros(self.theta.shape[:-1], dtype=torch.int64, device=self.device)
        return sum(((value >= 0).sum(-1) for value in rows), none)

    def tables(self, samples: str) -> tuple[Tensor, ...]:
        """The tables of ``samples`` or ``test_samples`` for :meth:`map`; none where all seeds share them."""
        if self.shared:
            return ()
        columns = zip(*(getattr(stream, samples).tables for stream in self.streams), strict=True)
        return tuple(torch.stack(column) for column in columns)

    def network(self, memory: Memory) -> Net:
        """The network that a learner's hooks are given."""
        return self.strategy.network(self.net, memory) if self.strategy.has("network") else self.net

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Where the forward pass is in the run's precision."""
        if self.recipe.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # ---- between tasks: plain Python, learner by learner

    def _between(self, hook: str, index: int) -> None:
        thetas, memories = [], []
        for r, (theta, memory) in enumerate(zip(self._unstack(self.theta), self.memories(), strict=True)):
            new_theta, new_memory = theta, memory
            if self.alive[r]:
                task = self.streams[r].tasks[index]
                net = self.network(memory)
                new_theta, new_memory = getattr(self.strategy, hook)(net, theta.clone(), memory, task)
            thetas.append(new_theta.detach())
            memories.append({name: value.detach() for name, value in new_memory.items()})
        self.theta.copy_(self._stack(thetas))
        self.memory = self._stack_memory(memories)

    def begin(self, index: int) -> Tensor:
        """Begin a task; the rows (n,) or (R, n) that an epoch of it runs through."""
        if self.strategy.has("before_task"):
            self._between("before_task", index)
        if index and (self.strategy.restarts_optimizer or not self.recipe.keep_optimizer):
            self.optimizer = self.recipe.optimizer.make(self.flat)
        tasks = [stream.tasks[index] for stream in self.streams]
        pairs = zip(self.memories(), tasks, strict=True)
        return self._stack([self.strategy.rows(memory, task) for memory, task in pairs])

    def end(self, index: int) -> None:
        """End a task."""
        if self.strategy.has("after_task"):
            self._between("after_task", index)

    def stop(self, r: int) -> None:
        """Give a learner up: it learns no more, and nothing of it is used."""
        self.alive[r] = False
        self._unstack(self.theta)[r].zero_()

    # ---- what a checkpoint holds

    def state(self) -> dict[str, Tensor]:
        """All that learning has made, by name: θ, memory, the optimiser's state and who is alive; nothing is copied.

        Raises :class:`~continual.errors.BadOption` for an optimiser that keeps something else than tensors.
        """
        kept = {name: value for name, value in self.optimizer.state[self.flat].items() if value is not None}
        for name, value in kept.items():
            if not isinstance(value, torch.Tensor):
                raise BadOption(f"the optimiser {type(self.optimizer).__name__} keeps {name} as a "
                                f"{type(value).__name__}, and a checkpoint holds tensors only; run it with "
                                "checkpoint_minutes=none")  # fmt: skip
        alive = torch.tensor(self.alive)
        return {"theta": self.theta, "alive": alive} | under("memory/", self.memory) | under("optimizer/", kept)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Be as those were whose :meth:`state` this is, on this device; what they did to a task's begin is done."""
        self.theta.copy_(state["theta"])
        self.alive = state["alive"].tolist()
        memory = within("memory/", state)
        self.memory = {name: value.to(self.device, copy=True).contiguous() for name, value in memory.items()}
        kept = {name: value.clone() for name, value in within("optimizer/", state).items()}  # which steps write into
        self.optimizer = self.recipe.optimizer.make(self.flat)
        if kept:  # PyTorch knows which of these lies on the device
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": {0: kept}})


def compact(memory: Memory) -> Memory:
    """The memory with each tensor's numbers in a row from the start of their storage.

    So it does not matter where they come from (a part of something, a checkpoint): a kernel may round by how they lie.
    """
    return {
        name: value
        if value.is_contiguous() and not value.storage_offset()
        else value.clone(memory_format=torch.contiguous_format)
        for name, value in memory.items()
    }


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a prefix before their names."""
    return {prefix + name: value for name, value in tensors.items()}


def within(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names have the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _same_tables(a: Stream, b: Stream) -> bool:
    """Whether two streams have the same samples in the same tasks."""

    def same(x: Samples, y: Samples) -> bool:
        pairs = zip(x.tables, y.tables, strict=True)
        return all(one is two or (one.shape == two.shape and bool((one == two).all())) for one, two in pairs)

    return a is b or (same(a.samples, b.samples) and same(a.test_samples, b.test_samples))
