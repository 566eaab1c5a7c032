"""Dark experience replay with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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

    Choices beyond those of DER: 1. there are two draws, as in algorithm 2; avalanche-lib takes one for both terms; 2.
    the cross-entropy is over the active outputs, as that of the data is.
    """

    draws: ClassVar[tuple[str, ...]] = ("logits", "labels")

    beta: float = option(0.5, "β, the weight of the stored labels' cross-entropy", ge=0)

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """α E ‖z - h_θ(x)‖² + β E cross-entropy."""
        drawn = slice((batch.joined.start + batch.joined.stop) // 2, batch.joined.stop)
        active = task.active(out.logits[drawn], batch.task[drawn])
        labels = self._known(memory, theta) * self.beta * cross_entropy(active, batch.y[drawn])
        return super().penalty(net, theta, memory, batch, out, task) + labels
