"""Gradient episodic memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning.projection import drawn, room_above, stored_gradients, unopposed
from continual.learning.strategy import Batch, Memory
from continual.options import option
from continual.strategies.rehearsal import Rehearsal

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Task


@dataclass(frozen=True)
class GEM(Rehearsal):
    """Gradient episodic memory (Lopez-Paz & Ranzato 2017, "Gradient episodic memory for continual learning", eq. 6-12).

    A step follows the g̃ nearest to the gradient g that opposes none of the gradients g_t of the past tasks' losses on
    their stored samples: min ½ ‖g - g̃‖² with <g̃, g_t> ≥ 0 for all t. With G the matrix of the g_t it is g̃ = G'v + g,
    where v minimises ½ v'GG'v + g'G'v over v ≥ 0. Where g opposes none, it is followed as it is.

    Choices: 1. ``margin`` gives the past more weight: v ≥ margin instead of v ≥ 0, as in the authors' code (its memory
    strength), or v + margin, as the paper says (``margin_as``); 2. ``ridge`` is added to the diagonal of GG'; the
    authors' later code, Hsu et al. 2018 and avalanche-lib have 0.001, which loosens the constraints of small gradients;
    3. a task's last samples are stored, as in the paper, or random ones; 4. each task has an equal part of the
    capacity, of all tasks of the stream as in the paper, or of those seen, whose shares then shrink, as Hsu et al.;
    5. a g_t is of all stored samples of its task, as in the paper, or of ``samples`` that are drawn anew at each step;
    6. ``rehearse`` also puts the stored samples into the epochs, as :class:`~continual.strategies.rehearsal.Rehearsal`
    does: with ``divide=seen`` and random ones it is the GEM of Hsu et al. (whose code stores each task twice, as two
    halves with a constraint each). avalanche-lib has a number of random samples for each task.

    A step costs as much as one with all these samples in its batch, and the programme: it grows with the tasks.
    """

    step_grows: ClassVar[bool] = True
    margin: float = option(0.5, "γ, the weight that past gradients have at least where one is opposed", ge=0)
    margin_as: Literal["bound", "added"] = option("bound", "whether v has the margin as its bound or added to it")
    ridge: float = option(0.0, "what is added to the diagonal of GG'", ge=0)
    fill: Literal["last", "random"] = option("last", "which samples of a task are stored")
    divide: Literal["stream", "seen"] = option("stream", "the capacity is shared by all tasks, or by those seen so far")
    samples: int | None = option(None, "stored samples of each past task in a step; none: all", ge=1, le=1_000_000)
    rehearse: bool = option(False, "whether stored samples also join the epochs")

    def check(self) -> None:
        """Stored samples are repeated where they join the epochs."""
        if not self.rehearse:
            self.check_unused("without rehearse=true", "repeat")

    def has(self, hook: str) -> bool:
        """The rows of an epoch are its own only where it rehearses."""
        return super().has(hook) and (hook != "rows" or self.rehearse)

    def share(self, stored: int, count: int) -> int:
        """See :meth:`Rehearsal.share`."""
        return self.capacity // (stored if self.divide == "seen" else count)

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """The task's own rows, and the stored ones where it rehearses."""
        return super().rows(memory, task) if self.rehearse else task.train

    def ordered(self, task: Task) -> Tensor:
        """See :meth:`Rehearsal.ordered`."""
        return task.train.flip(0) if self.fill == "last" else super().ordered(task)

    def gradient(self, net: Net, theta: Tensor, memory: Memory, gradient: Tensor, batch: Batch, task: Task) -> Tensor:
        """g̃."""
        if task.first:
            return gradient
        rows = self.stored(memory, task)
        if self.samples is not None:
            rows = drawn(rows, self.samples, batch.key)
        # not a row of the batch: what is stored is then the same at each step, and its images are made once
        readable = torch.where(rows >= 0, rows, task.train[0])
        room = room_above(gradient, len(rows))
        stored_gradients(net, theta, readable, rows >= 0, task, out=room[:-1, : len(gradient)])
        return unopposed(room, gradient, **{self.margin_as: self.margin}, ridge=self.ridge)
