"""Naive rehearsal: stored samples join the epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning import exemplars
from continual.learning.strategy import Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class Rehearsal(Strategy):
    """Naive rehearsal (Hsu et al. 2018, "Re-evaluating continual learning scenarios"): stored samples join the epochs.

    An epoch of a task runs through its own N rows and the M stored ones, repeated ⌊N / M⌋ times (at least once), all
    shuffled together: about half of a batch is old, and a task takes about twice the steps. The memory has an equal
    share for each past task, chosen at random when the task has been learnt; shares shrink as tasks come.

    Choices: 1. shares are per task, not per class, as in the paper's code; 2. M counts what is stored, while the
    paper's code takes the capacity, which is a little more where it does not divide evenly and far more where tasks
    are small; 3. ``repeat=once`` leaves out the repetition, so that the memory is a small part of an epoch.
    :class:`~continual.strategies.replay.Replay` joins stored samples to each batch instead, which keeps the steps.
    """

    stores_samples: ClassVar[bool] = True

    capacity: int = option(1100, "samples that are stored in all", ge=1, le=exemplars.MOST)
    repeat: Literal["match", "once"] = option("match", "stored samples as often as makes them as many as new ones")

    def suits(self, stream: Stream, net: Net) -> None:
        """There is room for a sample of each task."""
        super().suits(stream, net)
        tasks = len(stream.tasks)
        exemplars.check_room(self.capacity, tasks, f"{tasks} tasks")

    def share(self, stored: int, count: int) -> int:
        """How many samples of each task are stored when there are so many tasks in memory, of ``count`` in all."""
        return self.capacity // stored

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``: a line of slots for each task, as many as a task can fill, with -1 where one is empty."""
        count = len(stream.tasks)
        slots = min(self.share(1, count), max(len(task.train) for task in stream.tasks))
        return {"rows": exemplars.empty(count * slots, theta)}

    def stored(self, memory: Memory, task: Task) -> Tensor:
        """The stored rows of each past task (past, share), -1 where a task had fewer."""
        share = self.share(max(task.index, 1), task.count)
        table: Tensor = memory["rows"].unflatten(0, (task.count, -1))
        return table[: task.index, :share]

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """The task's own rows and the stored ones."""
        stored = memory["rows"][memory["rows"] >= 0]
        matched = len(task.train) // max(len(stored), 1) if self.repeat == "match" else 1
        return torch.cat([task.train, stored.repeat(max(matched, 1))])

    def ordered(self, task: Task) -> Tensor:
        """The task's rows, those that are stored first in front."""
        return task.train[task.key.permutation("exemplars", len(task.train))]

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The memory takes up a share of the task; of every earlier one it keeps the first."""
        table = memory["rows"].unflatten(0, (task.count, -1)).clone()
        share = self.share(task.index + 1, task.count)
        new = self.ordered(task)[: min(share, table.shape[1])]
        table[task.index, : len(new)] = new
        table[:, share:] = -1
        return theta, memory | {"rows": table.flatten()}
