"""Streams whose tasks were made elsewhere: each task comes with samples of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from continual.errors import BadOption, BadStream, counted
from continual.streams.data import Data, content, integers
from continual.streams.stream import StreamOptions, set_aside, table, units_of

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
    def of(cls, task: Any, task_test: Any, levels: Tensor | None = None, **options: Any) -> Self:
        """The tasks (N,) of training samples and of test samples; -1 of a test sample: all tasks with its class.

        ``levels`` (2, C) where pixels are levels: what is shown of channel c is factor c times the level plus term c.
        Raises :class:`~continual.errors.BadData` where tasks are no whole numbers, and
        :class:`~continual.errors.BadStream` where a sample's task is none of the training samples'.
        """
        made = cls.read(options, "a stream of given tasks")
        task, task_test = integers(task, "the tasks (task)"), integers(task_test, "the tasks of tests (task_test)")
        last = max(0, int(task.max()))
        for name, given, least in (("task", task, 0), ("task_test", task_test, -1)):
            if int(given.min()) < least or int(given.max()) > last:
                raise BadStream(f"{name} has numbers from {int(given.min())} to {int(given.max())}; it takes those of "
                                f"tasks that are learnt, 0 to {last}{' and -1' if least else ''}")  # fmt: skip
        for name, value in (("task", task), ("task_test", task_test), ("levels", levels)):
            object.__setattr__(made, name, value)
        return made

    def check(self) -> None:
        """Images are shown as they were given."""
        super().check()
        if self.normalize != "unit" or self.pad:
            raise BadOption("the images of given tasks are shown as they are given; normalise or pad them there "
                            "(here only normalize=unit, pad=0)")  # fmt: skip

    def checksums(self) -> dict[str, Any]:
        """The SHA-256 of which sample belongs to which task."""
        tables = [table for table in (self.task, self.task_test, self.levels) if table is not None]
        return {"tasks_sha256": hashlib.sha256(b"".join(content(table) for table in tables)).hexdigest()}

    def build(self, data: Data, seed: int = 0) -> Stream:
        """See :meth:`StreamOptions.build`."""
        for name, given, y in (("task", self.task, data.y), ("task_test", self.task_test, data.y_test)):
            if given.shape != y.shape:
                raise BadStream(f"{data.name}: {name} has {counted(len(given), 'number')} for {len(y)} samples")
        groups = _groups(data.y, self.task)
        units, positions = units_of(groups, "task" if self.scenario == "task" else "class")
        channel = None if self.levels is None else self.levels[:, :, None, None].float()
        scale = 1.0 / data.top if channel is None else 1.0
        as_shown: dict[str, Any] = {"scale": scale, "shift": 0.0, "top": data.top, "channel": channel}
        train = table(data.x, data.y, positions, self.task, **as_shown)
        test = table(data.x_test, data.y_test, positions, self.task_test, **as_shown)
        strange = test.task[test.y == -1]
        if len(strange):
            raise BadStream(f"task {int(strange[0]) + 1} is tested on classes that it does not learn")
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
