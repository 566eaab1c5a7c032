"""Experience replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning import exemplars
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class Replay(Strategy):
    """Experience replay (Robins 1995; Chaudhry et al. 2019, "On tiny episodic memories"): stored samples join batches.

    Choices: 1. ``balanced`` stores, after each task, equally many random samples of each class of each task;
    ``reservoir`` stores a uniform sample of all that came by, at every step, the current task's included; 2. the
    stored samples that join a batch are drawn with replacement; 3. every sample of the joined batch weighs the same,
    or the stored ones weigh ``share`` in all, which ``share=task`` makes 1 - 1/t in the t-th task (van de Ven et al.
    2022); 4. as long as nothing is stored, a batch is learnt alone.
    """

    stores_samples: ClassVar[bool] = True

    capacity: int = option(500, "samples that are stored", ge=1, le=exemplars.MOST)
    per_class: bool = option(False, "whether the capacity is for each class of each task, not in all")
    fill: Literal["balanced", "reservoir"] = option("balanced", "how samples are chosen for storage")
    samples: int | None = option(None, "stored samples that join a batch; none: as many as it has", ge=1, le=1_000_000)
    share: float | Literal["task"] | None = option(
        None, "the stored samples' part of the loss; task: 1 - 1/t in task t; none: all samples alike", ge=0, le=1
    )

    @property
    def first_task_like_finetuning(self) -> bool:  # type: ignore[override]
        """Not where the current task's samples are replayed too."""
        return self.fill == "balanced"

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``: the stored rows (slots,), -1 where there is none yet; ``seen``: samples that came by."""
        kinds = sum(len(task.classes) for task in stream.tasks)
        slots = self.capacity * (kinds if self.per_class else 1)
        return exemplars.reservoir_start(slots, theta)

    def has(self, hook: str) -> bool:
        """Only a reservoir has something to do after a step."""
        return super().has(hook) and (hook != "after_step" or self.fill == "reservoir")

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """The batch and stored samples behind it."""
        if self.fill == "balanced" and task.first:
            return batch
        old = self.samples or batch.own
        stored = (memory["rows"] >= 0).sum()
        rows = memory["rows"].index_select(0, batch.key.integers("replay", old, stored))
        if self.fill == "balanced" and self.share is None:
            return batch.join(rows, task)
        known, filled = batch.weights(theta), (stored > 0).to(theta.dtype)  # nothing stored: samples of weight zero
        if self.share is None:
            weight = torch.cat([known, (filled * batch.usual_weight(theta)).expand(old)])
        else:
            past = task.number.to(theta.dtype)
            share = filled * (past / (past + 1) if self.share == "task" else self.share)
            weight = torch.cat([(1 - share) * known / known.sum().clamp_min(1e-12), (share / old).expand(old)])
        return batch.join(batch.readable(rows), task, weight)

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The reservoir sees the step's own samples."""
        return theta, exemplars.reservoir_step(memory, step.batch)

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The balanced memory takes up samples of the task."""
        if self.fill == "reservoir":
            return theta, memory
        quota = self.capacity if self.per_class else None
        rows = exemplars.balanced(memory["rows"], task.train, task.samples, task.key, quota)
        return theta, memory | {"rows": rows}
