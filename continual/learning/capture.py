"""The steps of a task recorded once and replayed: on a GPU the host then only says "go on"."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from continual.learning.step import POOLED_STEPS, Program

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.step import Pool
    from continual.learning.strategy import Memory


class Graph:
    """What a function does on a GPU, as a CUDA graph; the function takes nothing and asks the device for nothing.

    It is called as it is the first time, recorded the second, and only replayed from then on: whatever it reads and
    writes has to lie where it lay. On a CPU it is called every time, which tests that it keeps to that.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu, self.calls = device.type == "cuda", 0

    def __call__(self, function: Callable[[], Tensor | None]) -> Tensor | None:
        """What the function, the same each time, gives; on a GPU always the same tensor, which a call writes over."""
        self.calls += 1
        if not self.on_gpu or self.calls == 1:
            return function()
        if self.calls == 2:
            self.graph = torch.cuda.CUDAGraph()
            # what other threads do meanwhile is not recorded, and does not hinder
            with _uncollected(), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = function()
        self.graph.replay()
        return self.result


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Within it, no garbage is collected: an older graph that is let go spoils the one that is being recorded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Captured:
    """The steps of a task, each a replay of one graph for its size of batch.

    All that differs between steps is a tensor: the rows of all of them lie in one ``table``, the learning rates in
    another, and ``at`` counts. Random numbers come in blocks that are drawn between steps. The first ``done`` steps
    were done elsewhere.
    """

    def __init__(
        self, program: Program, batches: Sequence[Tensor], losses: Tensor, rates: Sequence[float], done: int = 0
    ) -> None:
        self.program, self.learners, self.losses = program, program.learners, losses
        device = self.learners.device
        self.sizes = [rows.shape[-1] for rows in batches]
        most = max(self.sizes, default=0)
        pad = torch.nn.functional.pad
        whole = [rows if rows.shape[-1] == most else pad(rows, (0, most - rows.shape[-1])) for rows in batches]
        self.table = torch.stack(whole) if whole else torch.empty(0, device=device)
        self.rates = torch.tensor(rates, dtype=torch.float64).to(device)
        self.at = torch.full((), done, dtype=torch.int64, device=device)
        self.block: Pool = {}
        self.drawn = 0
        self.graphs: dict[int, Graph] = {}
        self.memory = self._laid_out(self.learners.memory)
        self.learners.memory = dict(self.memory)

    def __call__(self, number: int) -> None:
        """Step ``number``; they have to come in order."""
        size = self.sizes[number]
        if number == 0:  # it notes what the later ones need
            self._set_rate(self.rates[0])
            self.losses[..., 0] = self.program(0, self.table[0][..., :size])
            self._keep_memory()
            self.at.fill_(1)
            return
        first = number - (number - 1) % POOLED_STEPS
        if self.drawn != first:
            self._draw(first)
        if size not in self.graphs:
            self.graphs[size] = Graph(self.learners.device)
        self.graphs[size](lambda: self._step(size))

    def _step(self, size: int) -> None:
        at = self.at
        rows = self.table.index_select(0, at.view(1)).squeeze(0)[..., :size]
        place = ((at - 1) % POOLED_STEPS).view(1)
        pool = {name: drawn.index_select(-2, place).squeeze(-2) for name, drawn in self.block.items()}
        self._set_rate(self.rates.index_select(0, at.view(1)).squeeze(0))
        loss = self.program.step(at, rows, pool)
        self.losses.index_copy_(-1, at.view(1), loss.unsqueeze(-1).to(self.losses.dtype))
        self._keep_memory()
        at.add_(1)

    def _set_rate(self, rate: Tensor) -> None:
        """The learning rate is a tensor that the optimiser reads on the device; a CPU's optimiser takes a number."""
        learners = self.learners
        if learners.device.type == "cpu":
            learners.rate = float(rate)
        elif isinstance(learners.rate, torch.Tensor):
            learners.rate.copy_(rate)
        else:
            learners.rate = rate.float().clone()

    @staticmethod
    def _laid_out(memory: Memory) -> Memory:
        """The memory with a place of its own for each name, which steps can write to."""
        taken, found = set[int](), {}
        for name, value in memory.items():
            own = _place(value) not in taken and value.is_contiguous()
            found[name] = value if own else value.clone(memory_format=torch.contiguous_format)
            taken.add(_place(found[name]))
        return found

    def _keep_memory(self) -> None:
        """What a step made of the memory goes where the memory lies."""
        places = {_place(value) for value in self.memory.values()}
        new = {name: value for name, value in self.learners.memory.items() if value is not self.memory[name]}
        # what lies in the memory under another name is read before that is written over
        new = {name: value.clone() if _place(value) in places else value for name, value in new.items()}
        for name, value in new.items():
            self.memory[name].copy_(value)
        self.learners.memory = dict(self.memory)

    def _draw(self, first: int) -> None:
        """The random numbers of the steps from ``first`` on, where the graphs look for them."""
        self.drawn = first
        for name, drawn in self.program.draw(first).items():
            if name in self.block:
                self.block[name].copy_(drawn)
            else:
                self.block[name] = drawn


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
