"""How R seeds are executed: mapped, as one learner with a batch dimension, or looped, one learner after the other.

The code is the same for both. A hook is called through ``Learners.map``, which is ``torch.vmap`` over the seeds where
they are mapped and a plain call where there is one. Hooks between tasks are called learner by learner either way.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from continual.errors import BadChain, Mistake
from continual.learning.models import Net, check_extended
from continual.learning.optimizers import ALIGNED, AT_ONCE, Optimizer, Schedule
from continual.learning.strategy import Memory, Strategy, gave_both, gave_memory, under, within
from continual.streams.augment import Augmentation
from continual.streams.rng import drawn_together, key, seed_pytorch
from continual.streams.stream import Stream, Task

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

CACHE = 2**24
"""Bytes of a network's widest activation on a CPU: more come from main memory, and take longer."""
PIECE, LEAST = 2**16, 2**14
"""A fused kernel of PyTorch's cuts tensors up among a GPU's processors in pieces of so many numbers: a θ that is given
as one would keep few of them at work. Pieces of fewer than the second do not pay for more kernels."""
BLOCKS = 2
"""Such pieces that a GPU's processor works on at once."""
MOST = 2**27
"""Bytes that a step recorded on a CPU makes, and writes to, at most: others wait for memory, and gain little."""
SHARE, MOST_HELD = 32, 2**28
"""On a GPU one part in so many of its memory, and so many bytes, at most: an operation holds several such tensors,
PyTorch caches them for each size of batch, and larger ones keep a GPU no busier."""


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
    measured_rounded: bool = False
    """Whether what is measured is computed in the training's precision, where that rounds."""
    holds: bool = False
    """Whether the weights of outputs without a gradient stay, whatever the optimiser makes of none."""

    @property
    def dtype(self) -> torch.dtype:
        """What θ and the images are in; bfloat16 is for the forward pass alone."""
        return dtype_of(self.precision)


def dtype_of(precision: str) -> torch.dtype:
    """What numbers are kept in, under a precision."""
    return torch.float64 if precision == "float64" else torch.float32


@contextlib.contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Within it, a GPU multiplies float32 as TF32 or does not; PyTorch's default allows it in convolutions alone."""
    backends: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in backends]
    for one in backends:
        one.allow_tf32 = allowed
    try:
        yield
    finally:
        for one, value in zip(backends, before, strict=True):
            one.allow_tf32 = value


class Gradient:
    """The gradient of a loss with respect to θ, as ``parts``, one for each parameter, and as the ``whole``.

    The whole is joined when it is first asked for; the parts of one that was given are views of it. ``gap`` (R, n) is
    what lies behind the rows of seeds that are mapped, None of one learner.
    """

    def __init__(self, parts: list[Tensor], whole: Tensor | None, gap: Tensor | None) -> None:
        self.parts, self.gap, self._whole = parts, gap, whole

    @property
    def whole(self) -> Tensor:
        """(P,), or (R, P) for seeds that are mapped."""
        if self._whole is None:
            self._whole = self._joined()
        return self._whole

    def _joined(self) -> Tensor:
        if self.gap is None:
            return torch.cat([part.flatten() for part in self.parts])
        joined = torch.cat([*(part.reshape(len(part), -1) for part in self.parts), self.gap], -1)
        return joined[:, : joined.shape[-1] - self.gap.shape[-1]]


class Learners:
    """The learners of one or several seeds in training; each of ``streams`` is the stream of one seed.

    ``theta`` is (P,) for one stream and (R, P) for several, which must have tasks of equal sizes. ``optimizer`` is the
    optimiser's state, ``rate`` the learning rate.
    """

    def __init__(self, recipe: Recipe, streams: list[Stream], seeds: list[int]) -> None:
        self.recipe, self.streams, self.seeds = recipe, streams, seeds
        self.strategy = recipe.strategy
        self.net = self.strategy.extend(recipe.net, streams[0])
        check_extended(self.net, recipe.net)
        self.mapped = len(streams) > 1
        if self.mapped:
            self.net = copy.copy(self.net)
            self.net.mapped = True
        self.device = streams[0].samples.image.device
        self.alive = [True] * len(streams)
        self.replayed = False  # whether some step was a replay of a recorded one
        self.kept: dict[str, Tensor] = {}  # what they had learnt, see :meth:`keep`
        self.unrecorded = Counter[str]()  # why steps could not be recorded, where that showed, and how many those were
        self.shared = all_equal([[*stream.samples.tables, *stream.test_samples.tables] for stream in streams])
        numbers = torch.tensor(seeds).to(self.device)
        self.seed = numbers if self.mapped else numbers[0]
        keys = [key(seed, device=self.device).child("initial θ") for seed in numbers]
        starts = [self.net.initial(one, recipe.dtype) for one in drawn_together(keys)]
        self.memory = self._stack_memory(
            [
                gave_memory(self.strategy, "init", self.strategy.init(self.net, start, stream))
                for start, stream in zip(starts, streams, strict=True)
            ]
        )
        if self.strategy.has("network"):
            check_extended(self.network(self.memories()[0]), self.net, "network")
        self._take_storage(self._stack(starts).clone())  # a strategy may keep what it was given

    def _take_storage(self, theta: Tensor) -> None:
        """θ, and as leaves for gradients the whole of it and each parameter, in the same storage."""
        self.gap = self._gap(theta) if self.mapped else None
        self.theta = theta.contiguous() if self.gap is None else torch.cat([theta, self.gap], -1)[:, : theta.shape[-1]]
        self.flat = self.theta.detach().requires_grad_()
        self.parts = [part.detach().requires_grad_() for part in self.cut(self.theta).parts]
        self.pieces = self._cut_up(self.cut(self.theta))
        self.optimizer = self.recipe.optimizer.start(self.pieces)
        self.rate: float | Tensor = self.recipe.optimizer.lr

    def renew_leaves(self) -> None:
        """Other leaves for the gradient of the same θ."""
        self.flat = self.flat.detach().requires_grad_()
        self.parts = [part.detach().requires_grad_() for part in self.parts]

    def _gap(self, theta: Tensor) -> Tensor:
        """What lies between the rows of θ (R, P): a GPU's tensor cores take numbers by fours, from a multiple of four.

        Where rows begin elsewhere, products take twice as long.
        """
        count = -theta.shape[-1] % ALIGNED if self.device.type == "cuda" else 0
        return theta.new_zeros(len(theta), count)

    def _cut_up(self, gradient: Gradient) -> list[Tensor]:
        """θ, or a gradient, in the pieces that the optimiser follows."""
        # the parameters of one learner, and many numbers on a GPU, are followed each by itself, so that gradients need
        # not be joined
        on_gpu, small = self.device.type == "cuda", self.theta.numel() <= AT_ONCE * PIECE
        given = [gradient.whole] if (small if on_gpu else self.mapped) else gradient.parts
        if not on_gpu:  # a convolution's may have its channels last, and fused kernels go by how numbers lie
            return [one.detach().contiguous() for one in given]
        pieces: list[Tensor] = []
        for one in given:
            lines = one.detach().flatten(1).unbind() if self.mapped else (one.detach().flatten(),)
            # one number may be shown many times, as the gradient of a sum
            rows = [row if row.stride() == (1,) else row.clone(memory_format=torch.contiguous_format) for row in lines]
            few = rows[0].numel() <= self._piece
            pieces += rows if few else [piece for row in rows for piece in row.split(self._piece)]
        return pieces

    @functools.cached_property
    def _piece(self) -> int:
        """How many numbers a piece of θ has on a GPU, at most."""
        length, whole = self.theta.shape[-1], self.theta.numel()
        seeds, small = whole // length, whole <= AT_ONCE * PIECE
        most = BLOCKS * torch.cuda.get_device_properties(self.device).multi_processor_count
        pieces = min(max(AT_ONCE, whole // LEAST), most)
        size = -(-length // (max(1, pieces // seeds) * ALIGNED)) * ALIGNED
        large = [length] if small else [part for part in self.net.sizes if part > LEAST]
        while sum(-(-part // size) for part in large) * seeds > most and size < min(length, PIECE + 1):
            size += ALIGNED
        return size if size <= PIECE else length

    @functools.cached_property
    def rows_at_once(self) -> int:
        """The largest batch for passes without a gradient: what fits into a GPU's memory, or what a CPU keeps near."""
        held = CACHE
        if self.device.type == "cuda":  # not what is free there: it is the same every time
            held = min(torch.cuda.get_device_properties(self.device).total_memory // SHARE, MOST_HELD)
        widest = self.recipe.net.widest(self.streams[0].shape) * self.recipe.dtype.itemsize
        return max(1, held // (widest * len(self.streams)))

    # ---- one learner or several

    def seed_pytorch(self, *place: int | str, r: int = 0) -> None:
        """PyTorch's generators go on with what is a function of the seed and the place alone."""
        seed_pytorch(self.device, self.seeds[r], *place)

    def map(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function of one learner for all of them, whose arguments are stacked along the first dimension."""
        return torch.vmap(function)(*arguments) if self.mapped else function(*arguments)

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        if any(tensor.shape != tensors[0].shape for tensor in tensors):
            raise BadChain("these seeds differ in how much they have to do, so they cannot be done side by side; give "
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

    def rows(self, index: int, names: Sequence[str]) -> dict[str, Tensor]:
        """The rows (R, n) of a task under these names, for :meth:`map`; none where all seeds share them."""
        found = [[getattr(stream.tasks[index], name) for name in names] for stream in self.streams]
        if all_equal(found):
            return {}
        return {name: torch.stack(rows) for name, *rows in zip(names, *found, strict=True)}

    def tables(self, samples: str) -> tuple[Tensor, ...]:
        """The tables of ``samples`` or ``test_samples`` for :meth:`map`; none where all seeds share them."""
        if self.shared:
            return ()
        columns = zip(*(getattr(stream, samples).tables for stream in self.streams), strict=True)
        return tuple(torch.stack(column) for column in columns)

    def network(self, memory: Memory) -> Net:
        """The network that a learner's hooks are given."""
        if not self.strategy.has("network"):
            return self.net
        net = self.strategy.network(self.net, memory)
        net.mapped = self.mapped  # one that was made around the given one may not know
        return net

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Where the forward pass is in the run's precision."""
        if self.recipe.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def measuring(self) -> contextlib.AbstractContextManager[Any]:
        """Where accuracies are measured: in full precision, unless the training's is asked for."""
        if self.recipe.measured_rounded:
            return self.autocast()
        return tensor_float(False) if self.recipe.precision == "tf32" else contextlib.nullcontext()

    def cut(self, whole: Tensor) -> Gradient:
        """A gradient like θ."""
        return Gradient(list(self.net.parameters(whole).values()), whole, self.gap)

    def follow(self, gradient: Gradient) -> None:
        """θ follows a gradient."""
        slopes = self._cut_up(gradient)
        if not self.recipe.holds:
            return self.recipe.optimizer.step(self.pieces, slopes, self.optimizer, self.rate)
        # what counts steps, of all pieces or of each, goes on
        lists = [self.pieces, *(one for one in self.optimizer.values() if len(one) == len(self.pieces))]
        before = [[one.clone() for one in pieces] for pieces in lists]
        self.recipe.optimizer.step(self.pieces, slopes, self.optimizer, self.rate)
        held = self._cut_up(self.cut(self._unused(gradient)))
        for pieces, others in zip(lists, before, strict=True):
            for piece, other, mask in zip(pieces, others, held, strict=True):
                if piece.shape == mask.shape:
                    piece.copy_(torch.where(mask, other, piece))

    def _unused(self, gradient: Gradient) -> Tensor:
        """Which of θ are weights of outputs that a gradient leaves alone: bool, like θ."""
        marked, n = torch.zeros_like(self.theta, dtype=torch.bool), 1 + self.mapped  # dimensions up to the outputs'
        slopes = dict(zip(self.net.shapes, gradient.parts, strict=True))
        none = [(slopes[name] == 0).reshape(*slopes[name].shape[:n], -1).all(-1) for name in self.net.head]
        unused, views = torch.stack(none).all(0), self.net.parameters(marked)
        for name in self.net.head:  # each has a row for each output
            views[name].copy_(unused.view(*unused.shape, *[1] * (views[name].dim() - n)))
        return marked

    # ---- between tasks: plain Python, learner by learner

    def _between(self, hook: str, index: int) -> None:
        """Call a hook for each learner. One whose hook fails, and whose answers are not finite, is given up."""
        thetas, memories = [], []
        for r, (theta, memory) in enumerate(zip(self._unstack(self.theta), self.memories(), strict=True)):
            new_theta, new_memory, task = theta, memory, self.streams[r].tasks[index]
            if self.alive[r]:
                self.seed_pytorch(index, hook, r=r)
                net = self.network(memory)
                try:
                    found = getattr(self.strategy, hook)(net, theta.clone(), memory, task)
                except Mistake:
                    raise
                except Exception:
                    if self._can_answer(net, theta, task):
                        raise
                    self.stop(r)
                else:
                    new_theta, new_memory = gave_both(self.strategy, hook, found, theta)
            thetas.append(new_theta.detach())
            memories.append({name: value.detach() for name, value in new_memory.items()})
        self.theta.copy_(self._stack(thetas))
        self.memory = self._stack_memory(self._replaced(memories))

    def _can_answer(self, net: Net, theta: Tensor, task: Task) -> bool:
        """Whether one learner's answers to the rows of a task are finite; θ may be, and they too large."""
        samples = task.samples
        with torch.no_grad():
            scores = (net.logits(theta, samples.images(rows, self.recipe.dtype), samples.task[rows])
                      for rows in task.train.split(self.rows_at_once))  # fmt: skip
            return all(bool(one.isfinite().all()) for one in scores)

    def _replaced(self, each: list[T]) -> list[T]:
        """What each learner has; one that was given up has what another has, so that it has as much to do."""
        like = self.alive.index(True) if any(self.alive) else 0
        return [one if alive else each[like] for one, alive in zip(each, self.alive, strict=True)]

    def begin(self, index: int) -> Tensor:
        """Begin a task; the rows (n,) or (R, n) that an epoch of it runs through."""
        if self.strategy.has("before_task"):
            self._between("before_task", index)
        if index and (self.strategy.restarts_optimizer or not self.recipe.keep_optimizer):
            self._set_optimizer(self.recipe.optimizer.start(self.pieces))
        tasks = [stream.tasks[index] for stream in self.streams]
        pairs = zip(self.memories(), tasks, strict=True)
        # memory may change before the task is over
        return self._stack(self._replaced([self.strategy.rows(memory, task) for memory, task in pairs])).clone()

    def _set_optimizer(self, state: dict[str, list[Tensor]]) -> None:
        """The optimiser's state takes other values; it stays where it lies, as recorded steps look there."""
        for name, pieces in self.optimizer.items():
            for old, new in zip(pieces, state[name], strict=True):
                old.copy_(new)

    def end(self, index: int) -> None:
        """End a task."""
        self.net.hand_on(self.theta, index)  # first: what a strategy keeps of θ may be asked for the next task
        if self.strategy.has("after_task"):
            self._between("after_task", index)

    def stop(self, r: int) -> None:
        """Give a learner up: it learns no more, and nothing of it is used."""
        self.alive[r] = False
        self._unstack(self.theta)[r].zero_()

    def keep(self, learnt: int) -> None:
        """Keep what each has when so many tasks were learnt, on the CPU: ``SEED/LEARNT/theta`` and ``.../memory/NAME``.

        Of one that was given up there is nothing to keep.
        """
        thetas = self._unstack(self.theta)
        for seed, alive, theta, memory in zip(self.seeds, self.alive, thetas, self.memories(), strict=True):
            found = {"theta": theta} | under("memory/", memory) if alive else {}
            whole = {name: on_cpu(value) for name, value in found.items()}
            self.kept |= under(f"{seed}/{learnt}/", whole)

    # ---- what a checkpoint holds

    def state(self) -> dict[str, Tensor]:
        """All that learning has made, by name: θ, memory, the optimiser's state and who is alive; nothing is copied."""
        kept = {f"{name}/{n}": piece for name, pieces in self.optimizer.items() for n, piece in enumerate(pieces)}
        alive = torch.tensor(self.alive)
        return {"theta": self.theta, "alive": alive} | under("memory/", self.memory) | under("optimizer/", kept)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from such a :meth:`state`, on this device; the task that it is of, if any, has begun."""
        self.theta.copy_(state["theta"])
        self.alive = state["alive"].tolist()
        memory = within("memory/", state)
        self.memory = {name: value.to(self.device, copy=True).contiguous() for name, value in memory.items()}
        self._set_optimizer(
            {name: [state[f"optimizer/{name}/{n}"] for n in range(len(old))] for name, old in self.optimizer.items()}
        )


def compact(memory: Memory) -> Memory:
    """The memory with each tensor's numbers in a row from the start of a storage of its own.

    So it does not matter where they come from (a part of something, a checkpoint): a kernel may round by how they lie.
    """
    found: Memory = {}
    places = set[int]()
    for name, value in memory.items():
        lies_so = value.is_contiguous() and not value.storage_offset() and storage_of(value) not in places
        found[name] = value if lies_so else value.clone(memory_format=torch.contiguous_format)
        places.add(storage_of(value))
    return found


def on_cpu(value: Tensor) -> Tensor:
    """A copy on the CPU, its numbers in a row."""
    # contiguous() lets a dimension of one have any stride
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def storage_of(value: Tensor) -> int:
    """Which storage a tensor lies in, as long as it is there."""
    return int(value.untyped_storage()._cdata)


def all_equal(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether lists of tensors are equal, tensor by tensor; a device is asked once."""
    found = []
    for first, *rest in zip(*lists, strict=True):
        others = [one for one in rest if one is not first]
        if any(one.shape != first.shape for one in others):
            return False
        if others:
            found.append((torch.stack(others) == first).all())
    return not found or bool(torch.stack(found).all())
