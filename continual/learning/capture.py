"""The steps of a task recorded once and replayed: the host then only says "go on"."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from continual.errors import BadChain, BadOption
from continual.learning.seeds import storage_of
from continual.learning.step import POOLED_STEPS, Program, block_of

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.recording import Recording
    from continual.learning.seeds import Learners
    from continual.learning.step import Pool
    from continual.learning.strategy import Memory, Strategy


OFTEN = 16
"""On a CPU an evaluation is recorded when it was done so often: that takes longer than a few replays save."""
LEAST, GROWING, FEW = 16, 2, 8
"""A step is recorded there where a task has so many more of its size; where each task has a step of its own, so many
times as many. In a later task a recording serves where it has so few more: comparing a replay takes longer, too."""
RARE = "there are too few steps"
KEEPS = "a hook keeps something in Python between steps"


class Graph:
    """What a function does, recorded: on a GPU as a CUDA graph, on a CPU as a list of operations.

    The function takes nothing and asks the device for nothing. It is called as it is ``by_hand`` times, then recorded,
    and only replayed from then on: whatever it reads and writes has to lie where it lay. On a CPU it is recorded if it
    will be called ``least`` times until something changes. It is called every time where it cannot be recorded, and
    ``why`` says why: among other things where a call changes what is ``kept`` in Python, which a replay would not. The
    first replay after a :meth:`doubt` is compared with it, and the 8th, the 64th and so on.
    """

    def __init__(self, device: torch.device, by_hand: int, least: int = 0, kept: Callable[[], Any] = tuple) -> None:
        self.device, self.by_hand, self.least, self.calls, self.why = device.type, by_hand, least, 0, ""
        self.kept, self.known = kept, None  # what was kept when it was recorded
        self.recording: Recording | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.replays, self.trusted = 0, False

    @property
    def draws(self) -> bool:
        """Whether the next call may draw from PyTorch's generator."""
        return self.recording is None or self.recording.draws

    def doubt(self) -> None:
        """Something may have changed that the function does not say: a strategy may keep it where it should not.

        Where it shows in what is kept in Python, it is recorded anew.
        """
        self.trusted = False
        self.stale()
        if self.known is not None and self.kept() != self.known:
            self.recording, self.graph, self.known, self.calls = None, None, None, 0

    def stale(self) -> None:
        """What was said to be steady may have changed."""
        if self.recording is not None:
            self.recording.stale = True

    def __call__(
        self, function: Callable[[], Tensor | None], left: int = 2**31, steady: Callable[[], list[Tensor]] = list
    ) -> Tensor | None:
        """What the function, the same each time, gives; where it is recorded the same tensor, which is written over.

        ``left``: how often it will be called until something changes; ``steady`` says which tensors nobody but the
        function writes to, unless it is said to be :meth:`stale`. Raises :class:`~continual.errors.BadOption` where
        replays did something else than it would have.
        """
        self.calls += 1
        if self.why or self.calls < self.by_hand:
            return function()
        if self.calls == self.by_hand:  # what is made once and then kept is there by now
            before, found = self.kept(), function()
            self.why = "" if self.kept() == before else KEEPS
            return found
        return self._on_gpu(function) if self.device == "cuda" else self._on_cpu(function, left, steady)

    def _on_gpu(self, function: Callable[[], Tensor | None]) -> Tensor | None:
        if self.graph is None:
            self.known, self.graph = self.kept(), torch.cuda.CUDAGraph()
            # what other threads do meanwhile is not recorded, and does not hinder
            with _uncollected(), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = function()
        self.graph.replay()
        self.replays += 1
        return self.result

    def _on_cpu(
        self, function: Callable[[], Tensor | None], left: int, steady: Callable[[], list[Tensor]]
    ) -> Tensor | None:
        if not self.trusted and left < (min(self.least, FEW) if self.recording else self.least):
            return function()
        new = self.recording is None
        if new:
            from continual.learning.recording import recorded  # which needs all of PyTorch at once

            with _uncollected():
                self.recording, self.why = recorded(function, steady())
        if self.recording is None:
            return function()
        if not self.trusted:
            return self._compared(self.recording, function, new)
        self.replays += 1
        if self.replays.bit_count() == 1 and self.replays.bit_length() % 3 == 1 and self.replays > 1:
            return self._compared(self.recording, function)
        return self.recording.again()

    def _compared(
        self, recording: Recording, function: Callable[[], Tensor | None], new: bool = False
    ) -> Tensor | None:
        """What the function gives; it is not replayed again where a replay gives something else.

        ``new``: it was recorded just now, so the function was called twice for one step.
        """
        from continual.learning.notes import CannotRecord
        from continual.learning.recording import IMPURE

        before = self.kept()
        try:
            same, found = recording.compared(function)
        except CannotRecord as reason:
            self.why, self.recording = str(reason), None
            return function()
        if not same and (self.trusted or new):
            raise BadOption(
                f"program: {IMPURE}, which showed after {self.replays} replays: a strategy, or the network, keeps "
                "something elsewhere than in memory, or computes it by other means than tensor operations; give "
                "--program eager, or set can_be_captured = False in the strategy's class"
            )
        self.known, keeps = before, self.kept() != before
        self.trusted = same and not keeps
        if not self.trusted:
            self.why, self.recording = KEEPS if keeps else IMPURE, None
        return found


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Within it, no garbage is collected.

    On a GPU an older graph that is let go spoils the one that is being recorded; on a CPU the many notes of a
    recording, which are soon gone, would have all objects of the process looked through, for a tenth of a second.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def must_not(why: str) -> BadOption:
    """The error where steps were to be recorded and are not."""
    return BadOption(
        f"program=captured: steps cannot be recorded ({why}); give --program auto, which does such one by one, or eager"
    )


def least_of(strategy: Strategy) -> int:
    """How many steps of a size have to be left in a task on a CPU, that it pays to record one."""
    return LEAST * (GROWING if strategy.step_grows else 1)


class Captured:
    """The steps of tasks, each a replay of one graph for its size of batch.

    All that differs between steps is a tensor: the rows of a task's steps lie in one ``table``, the learning rates in
    another, and ``at`` counts. Random numbers come in blocks that are drawn between steps. A task goes on with the
    graphs of the task before where the program is the same. ``least``: how many steps of a size have to be left in a
    task on a CPU; default: those of :func:`least_of`. ``must``: what cannot be recorded is refused.
    """

    def __init__(self, learners: Learners, least: int | None = None, must: bool = False) -> None:
        self.learners, self.must = learners, must
        self.by_hand = 1 + learners.recipe.compiled  # the second batch of a size is the first that is compiled
        self.least = least_of(learners.strategy) if least is None else least
        from continual.learning.aside import Aside  # which needs PyTorch and NumPy at once

        self.kept = Aside(learners)
        self.at = torch.zeros((), dtype=torch.int64, device=learners.device)
        self.program: Program | None = None  # the graphs are of its steps
        self.graphs: dict[int, Graph] = {}
        # by size of batch: the numbers of a type for a block of steps, and where each draw's lie
        self.blocks: dict[int, list[tuple[Tensor, Pool]]] = defaultdict(list)
        self.memory: Memory = {}
        self.losses: Tensor | None = None
        self.table, self.rates = torch.empty(0), torch.empty(0)
        self.line = torch.empty(0)  # which of a block of random numbers a step takes
        self.left = Counter[int]()  # steps of the task, by their size

    def begin(
        self, program: Program, batches: Sequence[Tensor], losses: Tensor, rates: Sequence[float], done: int = 0
    ) -> None:
        """A task begins, whose first ``done`` steps were done elsewhere.

        ``losses`` (..., n) has a place for each step, and more where a later task has more: graphs are kept where it is
        the same tensor for both.
        """
        self.begun = program
        self.drawn: dict[int, int] = {}  # by size: the first step of the block that is drawn
        self.left = Counter(program.sizes[done:])
        for graph in self.graphs.values():
            graph.doubt()
        self._lay_down(batches, losses, rates)
        self.at.fill_(done)
        if done < len(rates):
            self._set_rate(self.rates[done])
        if self._alike(self.learners.memory):
            self._keep_memory()
        else:
            self._forget()
            # a place of its own for each name, which steps can write to and nobody else reads
            form, memory = torch.contiguous_format, self.learners.memory
            self.memory = {name: value.clone(memory_format=form) for name, value in memory.items()}
            self.learners.memory = dict(self.memory)
        if done:
            self._settle()

    def _lay_down(self, batches: Sequence[Tensor], losses: Tensor, rates: Sequence[float]) -> None:
        """What the task's steps read, where those of the last task read it, if there is room."""
        most, lead = max(self.begun.sizes, default=0), self.learners.seed.shape
        if losses is not self.losses or self.table.shape[-1] < most:
            self._forget()
            self.losses = losses
            self.table = torch.zeros(losses.shape[-1], *lead, most, dtype=torch.int64, device=self.at.device)
            self.rates = torch.zeros(losses.shape[-1], dtype=torch.float64, device=self.at.device)
            self.line = (torch.arange(losses.shape[-1], device=self.at.device) - 1) % POOLED_STEPS
        if batches:
            pad, room = torch.nn.functional.pad, self.table.shape[-1]
            whole = [rows if rows.shape[-1] == room else pad(rows, (0, room - rows.shape[-1])) for rows in batches]
            torch.stack([rows.expand(*lead, room) for rows in whole], out=self.table[: len(whole)])
            self.rates[: len(whole)] = torch.tensor(rates, dtype=torch.float64).to(self.at.device)

    def _forget(self) -> None:
        """What was recorded is of other places."""
        self.program, self.graphs, self.blocks = None, {}, defaultdict(list)

    def _settle(self) -> None:
        """The first step is done, so it is known what program does the others."""
        if self.program is not self.begun.later:
            self._forget()
            self.program = self.begun.later

    def __call__(self, number: int) -> None:
        """Step ``number``; they have to come in order."""
        size = self.begun.sizes[number]
        assert self.losses is not None
        if number == 0:  # it notes what the later ones need
            self.learners.seed_pytorch(self.begun.task.index, 0)
            self.losses[..., 0] = self.begun(0, self.table[0][..., :size])
            self.left[size] -= 1
            self._keep_memory()
            self.at.fill_(1)
            self._settle()
            return
        program = self.program
        assert program is not None
        known = sum(len(parts) for _, parts in self.blocks[size])
        if self.drawn.get(size) != block_of(number) or known < len(program.wanted[size]):
            self._draw(block_of(number), size)
        if size not in self.graphs:
            self.graphs[size] = Graph(self.learners.device, self.by_hand, self.least, self.kept)
        graph = self.graphs[size]
        if graph.draws:
            self.learners.seed_pytorch(self.begun.task.index, number)
        graph(lambda: self._step(size), self.left[size], lambda: program.steady(self.memory))
        for other in self.graphs.values():  # what this step wrote may be what a step of another size only reads
            if other is not graph:
                other.stale()
        self.left[size] -= 1
        self.learners.replayed |= graph.replays > 0
        if graph.why:
            self.learners.unrecorded[graph.why] += 1
            if self.must:
                raise must_not(graph.why)

    def _step(self, size: int) -> None:
        at, program = self.at, self.program
        assert program is not None and self.losses is not None
        self.learners.memory = dict(self.memory)  # a recording may have ended in the midst of a step
        rows = self.table.index_select(0, at.view(1)).squeeze(0)[..., :size]
        pool = self._pool(at, size)
        if self.learners.recipe.schedule.varies:
            self._set_rate(self.rates.index_select(0, at.view(1)).squeeze(0))
        loss = program.step(at, rows, pool)
        self.losses.index_copy_(-1, at.view(1), loss.unsqueeze(-1).to(self.losses.dtype))
        self._keep_memory()
        at.add_(1)

    def _pool(self, at: Tensor, size: int) -> Pool:
        pool: Pool = {}
        if not self.blocks[size]:
            return pool
        line = self.line.index_select(0, at.view(1))
        for block, parts in self.blocks[size]:
            numbers = block.index_select(-2, line).squeeze(-2)
            pool |= zip(parts, numbers.split([part.shape[-1] for part in parts.values()], -1), strict=True)
        return pool

    def _set_rate(self, rate: Tensor) -> None:
        """The learning rate is a tensor that the optimiser reads on the device."""
        learners = self.learners
        if isinstance(learners.rate, torch.Tensor):
            learners.rate.copy_(rate)
        else:  # a GPU's kernels want a number of 32 bits
            learners.rate = rate.to(torch.float32 if rate.is_cuda else torch.float64, copy=True)

    def _alike(self, memory: Memory) -> bool:
        """Whether a memory has its place already."""
        kinds = [{name: (value.shape, value.dtype) for name, value in one.items()} for one in (memory, self.memory)]
        return kinds[0] == kinds[1]

    def _keep_memory(self) -> None:
        """What a step, or what came between tasks, made of the memory goes where the memory lies."""
        if self.memory and not self._alike(self.learners.memory):
            raise BadChain(f"a hook of {type(self.learners.strategy).__name__} gave memory another form in a step "
                           f"({_form(self.memory)} became {_form(self.learners.memory)}): its names, shapes and types "
                           "stay as they are within a task; or give --program eager")  # fmt: skip
        places = {storage_of(value) for value in self.memory.values()}
        new = {name: value for name, value in self.learners.memory.items() if not _lies(value, self.memory[name])}
        # what lies in the memory under another name is read before that is written over
        new = {name: value.clone() if storage_of(value) in places else value for name, value in new.items()}
        for name, value in new.items():
            self.memory[name].copy_(value)
        self.learners.memory = dict(self.memory)

    def _draw(self, first: int, size: int) -> None:
        """The random numbers of a block's steps of a size, where the graph looks for them."""
        assert self.program is not None
        self.drawn[size], blocks = first, self.blocks[size]
        drawn = self.program.draw(first, size)
        places = {name: part for _, parts in blocks for name, part in parts.items()}
        new: dict[torch.dtype, Pool] = defaultdict(dict)
        for name in sorted(drawn.keys() - places.keys()):
            new[drawn[name].dtype][name] = drawn[name]
        for dtype, found in new.items():  # in one tensor, of which a step takes its line
            widths = [numbers.shape[-1] for numbers in found.values()]
            lead = self.learners.seed.shape
            block = torch.zeros(*lead, POOLED_STEPS, sum(widths), dtype=dtype, device=self.at.device)
            blocks.append((block, dict(zip(found, block.split(widths, -1), strict=True))))
            places |= blocks[-1][1]
        if drawn:
            lines = self.program.in_block(first, size) - first
            for name, numbers in drawn.items():
                places[name].index_copy_(-2, lines, numbers)


def _form(memory: Memory) -> str:
    """The names, shapes and types of a memory."""
    told = (f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for name, value in memory.items())
    return ", ".join(told) or "nothing"


def _lies(value: Tensor, place: Tensor) -> bool:
    """Whether a value lies in a place already."""
    return (value.data_ptr(), value.shape, value.stride()) == (place.data_ptr(), place.shape, place.stride())
