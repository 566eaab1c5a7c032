"""L1: an absolute pull on every weight alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from continual.learning.strategy import Batch, Memory
from continual.options import option
from continual.strategies.l2 import Pull

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Task


@dataclass(frozen=True)
class L1(Pull):
    """L1 regularisation: loss + λ Σ |θ - θ*|, with θ* the last task's weights, or zero.

    Every weight is pulled with the same force, however near it is (Tibshirani 1996, for θ* = 0): little for one that a
    task moves far, much for one that need not move. Gradient steps bring such a weight near θ*, and around it, not
    onto it. The gradient at θ = θ* is 0.
    """

    strength: float = option(0.001, "λ, the weight of the penalty", ge=0)

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """λ Σ |θ - θ*|."""
        return memory["weight"] * (net.weights(theta) - net.weights(memory["anchor"])).abs().sum()
