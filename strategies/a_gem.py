"""Averaged gradient episodic memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning import exemplars
from continual.learning.projection import drawn, stored_gradients
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class AGEM(Strategy):
    """Averaged GEM (Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM", eq. 10-11).

    A step follows g̃ = g - (g'g_ref / g_ref'g_ref) g_ref where the gradient g opposes g_ref (g'g_ref < 0), the gradient
    of ``samples`` stored samples of past tasks, drawn anew at each step; elsewhere it follows g. It is
    :class:`~continual.strategies.gem.GEM` with one constraint, on the past on average.

    Choices: 1. ``balanced`` stores equally many samples of each class of each task when a task has been learnt, at
    random, as the paper does; ``reservoir`` stores a uniform sample of all that came by, at every step; 2. samples
    are drawn from the whole memory, none twice, and all of them where it has fewer, as in the authors' code;
    avalanche-lib draws equally many of each past task; 3. samples of the current task, which a reservoir has too,
    are not drawn.
    """

    stores_samples: ClassVar[bool] = True

    capacity: int = option(1000, "samples that are stored in all", ge=1, le=exemplars.MOST)
    samples: int = option(256, "stored samples whose gradient a step must not oppose", ge=1, le=1_000_000)
    fill: Literal["balanced", "reservoir"] = option("balanced", "how samples are chosen for storage")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``: the stored rows (capacity,), -1 where there is none yet; ``seen``: samples that came by."""
        return exemplars.reservoir_start(self.capacity, theta)

    def has(self, hook: str) -> bool:
        """Only a reservoir has something to do after a step."""
        return super().has(hook) and (hook != "after_step" or self.fill == "reservoir")

    def gradient(self, net: Net, theta: Tensor, memory: Memory, gradient: Tensor, batch: Batch, task: Task) -> Tensor:
        """g̃."""
        if task.first:
            return gradient
        rows = memory["rows"]
        past = torch.where(task.samples.task[rows] < task.number, rows, -1)
        rows = drawn(past[None], self.samples, batch.key)
        reference = stored_gradients(net, theta, batch.readable(rows), rows >= 0, task)[0]
        product, square = gradient @ reference, reference @ reference
        share = product.clamp_max(0) / torch.where(square > 0, square, 1.0)
        return gradient - share * reference

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The reservoir sees the step's own samples."""
        return theta, exemplars.reservoir_step(memory, step.batch)

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The balanced memory takes up samples of the task."""
        if self.fill == "reservoir":
            return theta, memory
        return theta, memory | {"rows": exemplars.balanced(memory["rows"], task.train, task.samples, task.key)}
