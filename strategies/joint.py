"""Joint training: the upper bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from continual.learning import exemplars
from continual.learning.strategy import Memory, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class Joint(Strategy):
    """Joint training: for each task a network trained from the start on all data so far. The upper bound.

    The network is the untrained one that the run began with, its optimiser is new, and an epoch runs through the
    rows of every task seen. Its memory is therefore all the data, and the record says so.
    """

    restarts_optimizer: ClassVar[bool] = True

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``start``: the untrained θ; ``rows``: every training row so far."""
        rows = sum(len(task.train) for task in stream.tasks)
        return {"start": theta.clone(), "rows": exemplars.empty(rows, theta)}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Start again."""
        return memory["start"].clone(), memory

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """All rows so far and the task's own."""
        stored = memory["rows"]
        return torch.cat([stored[stored >= 0], task.train])

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The task's rows join the others."""
        rows = self.rows(memory, task)
        return theta, memory | {"rows": torch.cat([rows, memory["rows"][len(rows) :]])}
