"""Dark experience replay with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from continual.learning.strategy import Batch, Memory, cross_entropy
from continual.options import option
from continual.strategies.der import DER

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Task


@dataclass(frozen=True)
class DERPlusPlus(DER):
    """DER++ (Buzzega et al. 2020, "Dark experience for general continual learning",
    algorithm 2).

    loss + α E ‖z - h_θ(x)‖² + β E cross-entropy(y, h_θ(x)), the expectations over two independent draws.

    Choices beyond those of DER: 1. both draws go through the network at once; avalanche-lib takes one draw for both
    terms; 2. the cross-entropy is over the active outputs, as that of the data is.
    """

    beta: float = option(0.5, "β, the weight of the stored labels' cross-entropy", ge=0)

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """α E ‖z - h_θ(x)‖² + β E cross-entropy."""
        slots = torch.cat([self._draw(purpose, memory, batch) for purpose in ("logits", "labels")])
        rows = self._rows(slots, memory, batch)
        tasks = task.samples.task[rows]
        logits = net.logits(theta, task.samples.images(rows, theta.dtype), tasks)
        half = len(slots) // 2
        dark = self._distance(logits[:half], slots[:half], rows[:half], memory, task)
        active = task.outputs.apply(logits[half:], task.index, tasks[half:])
        return self._known(memory, theta) * (dark + self.beta * cross_entropy(active, task.samples.y[rows[half:]]))
