"""Joint training: the upper bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from continual.learning import exemplars
from continual.learning.strategy import Growth, Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class Restarted(Strategy):
    """What strategies share that begin each task with the untrained network of the run and a fresh optimiser."""

    restarts_optimizer: ClassVar[bool] = True
    starts_over: ClassVar[bool] = True

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``start``: the untrained θ."""
        return {"start": theta.clone()}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Start again."""
        return memory["start"].clone(), memory


@dataclass(frozen=True)
class AllData(Strategy):
    """What bounds share whose epochs run through all data so far."""

    stores_samples: ClassVar[bool] = True
    memory_grows_with: ClassVar[Growth] = "data"

    every: bool = option(True, "learn at each task's arrival; else once, when the last task is there")

    @property
    def first_task_like_finetuning(self) -> bool:  # type: ignore[override]
        """Not where it is not learnt."""
        return self.every

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``: every training row so far."""
        rows = sum(len(task.train) for task in stream.tasks)
        return super().init(net, theta, stream) | {"rows": exemplars.empty(rows, theta)}

    def so_far(self, memory: Memory, task: Task) -> Tensor:
        """The stored rows and the task's own."""
        stored = memory["rows"]
        return torch.cat([stored[stored >= 0], task.train])

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """All rows so far; none, and so no step, before it is time to learn."""
        rows = self.so_far(memory, task)
        return rows[:0] if self.puts_off(task.index, task.count) else rows

    def puts_off(self, index: int, count: int) -> bool:
        """With ``every=false`` all tasks but the last."""
        return not self.every and index + 1 < count

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The task's rows join the others."""
        rows = self.so_far(memory, task)
        return theta, memory | {"rows": torch.cat([rows, memory["rows"][len(rows) :]])}


@dataclass(frozen=True)
class Joint(AllData, Restarted):
    """Joint training: for each task a network trained from the start on all data so far. The upper bound.

    The network is the untrained one that the run began with, its optimiser is new, and an epoch runs through the
    rows of every task seen. Its memory is therefore all the data, and the record says so.

    Choices: 1. with ``every=false`` all is learnt at once, when the last task is there: the "offline" training of Hsu
    et al. 2018 ("Re-evaluating continual learning scenarios"). No step is taken before, so the accuracy matrix has its
    last row alone, and metrics that need others have no value; 2. the tasks are weighed by their rows.
    """
