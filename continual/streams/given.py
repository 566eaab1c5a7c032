"""Streams whose tasks were made elsewhere: each task comes with samples of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch

from continual.errors import BadOption, BadStream
from continual.streams.data import Data, content
from continual.streams.stream import Samples, StreamOptions, set_aside, units_of

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.stream import Stream


@dataclass(frozen=True)
class Given(StreamOptions):
    """Tasks that are given sample by sample, in training and in testing.

    Where the scenario is ``task`` each task has output units of its own; else a class has one unit, whatever tasks it
    occurs in, so classes may come again.
    """

    task: Any = field(default=None, init=False, repr=False, compare=False)
    task_test: Any = field(default=None, init=False, repr=False, compare=False)
    levels: Any = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, task: Tensor, task_test: Tensor, levels: Tensor | None = None, **options: Any) -> Self:
        """The tasks (N,) of training samples and of test samples; -1 of a test sample: all tasks with its class.

        ``levels`` (2, C) where pixels are levels: what is shown of channel c is factor c times the level plus term c.
        """
        made = cls.read(options, "a stream of given tasks")
        for name, value in (("task", task), ("task_test", task_test), ("levels", levels)):
            object.__setattr__(made, name, value)
        return made

    def check(self) -> None:
        """Images are shown as they were given."""
        if self.normalize != "unit" or self.pad:
            raise BadOption("the images of given tasks are shown as they are given; normalise or pad them there "
                            "(here only normalize=unit, pad=0)")  # fmt: skip

    def checksums(self) -> dict[str, Any]:
        """The SHA-256 of which sample belongs to which task."""
        tables = [table for table in (self.task, self.task_test, self.levels) if table is not None]
        return {"tasks_sha256": hashlib.sha256(b"".join(content(table) for table in tables)).hexdigest()}

    def build(self, data: Data, seed: int = 0) -> Stream:
        """See :meth:`StreamOptions.build`."""
        groups = _groups(data.y, self.task)
        if self.scenario == "task":
            units, starts = units_of(groups, "task")
            positions = [{label: starts[t] + n for n, label in enumerate(labels)} for t, labels in enumerate(groups)]
        else:
            position = {label: n for n, label in enumerate(dict.fromkeys(label for part in groups for label in part))}
            units = torch.zeros(len(groups), len(position), dtype=torch.bool)
            for t, labels in enumerate(groups):
                units[t, [position[label] for label in labels]] = True
            positions = [position] * len(groups)
        channel = None if self.levels is None else self.levels[:, :, None, None].float()
        shown = (1.0 / data.top if channel is None else 1.0, 0.0, data.top, channel)
        train = _table(data.x, data.y, self.task, positions, groups, shown)
        test = _table(data.x_test, data.y_test, self.task_test, positions, groups, shown)
        names = [tuple(data.classes[label] for label in labels) for labels in groups]
        return self.divided(data, train, test, units, names, set_aside(data.y, self.validation, self.validation_seed),
                            seed)  # fmt: skip


def _groups(y: Tensor, task: Tensor) -> list[list[int]]:
    """The classes of each task."""
    groups = [sorted(y[task == t].unique().tolist()) for t in range(int(task.max()) + 1)]
    for t, labels in enumerate(groups):
        if not labels:
            raise BadStream(f"task {t + 1} has no training samples; every task needs some")
    return groups


def _table(
    x: Tensor, y: Tensor, task: Tensor, positions: Sequence[dict[int, int]], groups: list[list[int]], shown: Any
) -> Samples:
    """The rows of all tasks, in the tasks' order and within a task in the data's order."""
    image, unit, tasks = [], [], []
    for t, labels in enumerate(groups):
        known = torch.isin(y, torch.tensor(labels))
        mine = ((task == t) | ((task == -1) & known)).nonzero().squeeze(1)
        if not known[mine].all():
            raise BadStream(f"task {t + 1} is tested on classes that it does not learn")
        image.append(mine)
        unit.append(torch.tensor([positions[t][label] for label in y[mine].tolist()], dtype=torch.int64))
        tasks.append(torch.full_like(mine, t))
    return Samples(x, torch.cat(image), torch.cat(unit), torch.cat(tasks), *shown)
