"""Accuracy on every task, computed on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from continual.learning.seeds import Learners
from continual.learning.strategy import Memory

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2000  # rows at a time


class Evaluation:
    """The accuracy of learners on given rows of each task.

    ``rows[r][j]`` are learner r's rows (n_j,) of task j, of its stream's ``samples`` or ``test_samples``; tasks may
    have none, and are then NaN.
    """

    def __init__(self, learners: Learners, samples: str, rows: list[list[Tensor]]) -> None:
        self.learners, self.samples = learners, samples
        self.tables = learners.tables(samples)
        self.shared = learners.shared and all(_equal(own, rows[0]) for own in rows)
        lists = [torch.cat(own) for own in rows]
        self.rows = lists[0] if self.shared or not learners.mapped else torch.stack(lists)
        counts = torch.tensor([len(part) for part in rows[0]], device=learners.device)
        task = torch.repeat_interleave(torch.arange(len(counts), device=learners.device), counts)
        # (N, T): a row's share in the accuracy of its task, so that one product gives all accuracies
        one_hot = torch.nn.functional.one_hot(task, len(counts)).to(learners.recipe.dtype)
        self.share = one_hot / counts.clamp_min(1)
        self.empty = counts == 0

    def __call__(self, index: int) -> Tensor:
        """Accuracies (T,) or (R, T) after task ``index`` (-1: of the untrained network), in [0, 1]."""
        with torch.no_grad():
            return self._accuracies(index)

    def _accuracies(self, index: int) -> Tensor:
        learners = self.learners
        result = torch.zeros(*learners.theta.shape[:-1], len(self.empty), device=learners.device,
                             dtype=self.share.dtype)  # fmt: skip
        # an untrained network has seen nothing: it answers with the outputs that the first task will have
        self.latest = max(index, 0)
        for rows, share in zip(self.rows.split(CHUNK, dim=-1), self.share.split(CHUNK), strict=True):
            result += self._correct(rows) @ share
        return result.masked_fill(self.empty, torch.nan)

    def _correct(self, rows: Tensor) -> Tensor:
        """Which of the rows are answered rightly, (B,) or (R, B), as 0 and 1."""
        learners = self.learners
        with learners.autocast():
            if not learners.mapped:
                return self._of_one(learners.theta, learners.memory, self.tables, rows)
            by_seed = None if self.shared else 0
            mapped = torch.vmap(self._of_one, in_dims=(0, 0, 0, by_seed))
            correct: Tensor = mapped(learners.theta, learners.memory, self.tables, rows)
            return correct

    def _of_one(self, theta: Tensor, memory: Memory, tables: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        learners, stream = self.learners, self.learners.streams[0]
        samples = getattr(stream, self.samples)
        samples = samples.with_tables(tables) if tables else samples
        own = samples.task[rows]
        told = own if stream.scenario == "task" else torch.full_like(own, self.latest)
        x = samples.images(rows, learners.recipe.dtype)
        scores = learners.strategy.predict(learners.net, theta, memory, x, told)
        answer = stream.test_outputs.apply(scores, self.latest, own).argmax(-1)
        right: Tensor = answer == samples.y[rows]
        return right.to(self.share.dtype)


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x is y or (len(x) == len(y) and bool((x == y).all())) for x, y in zip(a, b, strict=True))
