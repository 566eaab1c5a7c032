"""Accuracy on every task, computed on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from continual.learning.seeds import Learners, all_equal
from continual.learning.strategy import Memory, gave

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.stream import Outputs


class Evaluation:
    """The accuracy of learners on given rows of each task.

    ``rows[r][j]`` are learner r's rows (n_j,) of task j, of its stream's ``samples`` or ``test_samples``; tasks may
    have none, and are then NaN. ``outputs`` are active, by default those of the stream's evaluation.
    """

    def __init__(
        self, learners: Learners, samples: str, rows: list[list[Tensor]], outputs: Outputs | None = None
    ) -> None:
        self.learners, self.samples, self.index = learners, samples, -2
        self.tables = learners.tables(samples)
        self.by_task = learners.strategy.answers_by_task and learners.streams[0].scenario == "task"
        self.shared = learners.shared and all_equal(rows)
        alone = self.shared or not learners.mapped
        self.parts = list(rows[0]) if alone else [torch.stack(parts) for parts in zip(*rows, strict=True)]
        counts = [len(part) for part in rows[0]]
        self.counts = torch.tensor(counts, dtype=torch.float64, device=learners.device)
        self.active = outputs or learners.streams[0].test_outputs
        self.outputs = self.active.to("cpu")

    def __call__(self, index: int) -> Tensor:
        """Accuracies (T,) or (R, T) after task ``index`` (-1: of the untrained network), in [0, 1].

        NaN for a task that was learnt where an answer to one of its rows is not finite.
        """
        learners = self.learners
        if index != self.index:
            self.select(index)
        with torch.no_grad(), learners.measuring():
            right, none = (torch.cat(parts, -1) for parts in zip(*map(self._answers, self.batches), strict=True))
            # the counts are exact, and so is their quotient; tasks without rows are 0 / 0
            found, lost = self._count(right).double() / self.counts, self._count(none) > 0
            found[..., : index + 1].masked_fill_(lost[..., : index + 1], torch.nan)
            return found

    def _count(self, which: Tensor) -> Tensor:
        """How many of each task's rows are some of all rows, bool (..., N): (..., T)."""
        sums = torch.nn.functional.pad(which.cumsum(-1), (1, 0))
        return sums.index_select(-1, self.ends) - sums.index_select(-1, self.starts)

    def select(self, index: int) -> None:
        """The rows that can be answered rightly after task ``index``: where no right output is active, none is.

        Those of task j lie from place ``starts[j]`` on, up to ``ends[j]``.
        """
        # an untrained network has seen nothing: it answers with the outputs that the first task will have
        self.index, self.latest = index, max(index, 0)
        active = self.outputs.mask(self.latest, torch.arange(len(self.parts)))
        possible = self.outputs.units if active is None else self.outputs.units & active
        can = possible.any(-1).tolist()
        parts = [part if answered else part[..., :0] for part, answered in zip(self.parts, can, strict=True)]
        whole = parts if self.by_task and any(can) else [torch.cat(parts, dim=-1)]
        split = [rows for part in whole for rows in part.split(self.learners.rows_at_once, dim=-1)]
        self.batches = [rows for rows in split if rows.shape[-1]] or split[:1]
        ends = torch.tensor([part.shape[-1] for part in parts]).cumsum(0)
        self.starts, self.ends = torch.stack([torch.cat([ends[:1] * 0, ends[:-1]]), ends]).to(self.learners.device)

    def _answers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the rows are answered rightly, and which by no finite number, bool (B,) or (R, B) each."""
        learners = self.learners
        if not learners.mapped:
            return self._of_one(learners.theta, learners.memory, self.tables, rows)
        by_seed = None if self.shared else 0
        mapped = torch.vmap(self._of_one, in_dims=(0, 0, 0, by_seed))
        found: tuple[Tensor, Tensor] = mapped(learners.theta, learners.memory, self.tables, rows)
        return found

    def _of_one(self, theta: Tensor, memory: Memory, tables: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, Tensor]:
        learners, stream = self.learners, self.learners.streams[0]
        samples = getattr(stream, self.samples)
        samples = samples.with_tables(tables) if tables else samples
        own = samples.task[rows]
        if self.by_task:
            own = own[:1].expand(len(rows))
        told = own if stream.scenario == "task" else torch.full_like(own, self.latest)
        views = learners.recipe.augmentation.views(samples.images(rows, learners.recipe.dtype))
        net = learners.network(memory)
        strategy, shape = learners.strategy, (len(rows), stream.units)
        scores = [gave(strategy, "predict", strategy.predict(net, theta, memory, x, told), *shape) for x in views]
        shown = self.active.apply(torch.stack(scores).mean(0), self.latest, own)
        return shown.argmax(-1) == samples.y[rows], ~(shown < torch.inf).all(-1)  # the least there is may be -∞
