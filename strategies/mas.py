"""Memory aware synapses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from continual.learning.importance import batch_gradients, pull
from continual.learning.strategy import Batch, Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class MAS(Strategy):
    """Memory aware synapses (Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget", eq. 2-4).

    loss + λ Σ_i Ω_i (θ_i - θ*_i)², with Ω_i the mean over samples of |∂ ‖F(x)‖² / ∂θ_i|: how much the squared outputs
    depend on a weight; no label is needed.

    Choices: 1. the absolute value is taken of the mean gradient of ``batch_size`` samples, 128 as in Hsu et al. 2018; 1
    is the paper's, sample by sample; 2. the outputs are the active ones, and their squares are averaged (``mean``, as
    Hsu et al.) or added up as in the paper; 3. importances of tasks are added up, with one anchor, the last weights.
    """

    strength: float = option(1.0, "λ, the weight of the penalty", ge=0)
    batch_size: int = option(128, "samples whose gradient is averaged before its absolute value is taken", ge=1)
    mean: bool = option(True, "whether squared outputs are averaged instead of added up")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``importance``: Ω; ``anchor``: θ*. (P,) each."""
        return {"importance": torch.zeros_like(theta), "anchor": theta.clone()}

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """λ Σ_i Ω_i (θ_i - θ*_i)²."""
        return self.strength * pull(theta, memory["anchor"], memory["importance"])

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Ω takes up the task's."""

        def norm(theta: Tensor, x: Tensor, tasks: Tensor) -> Tensor:
            mask, outputs = task.mask(tasks), net.logits(theta, x, tasks)
            squares = outputs.square() if mask is None else outputs.square() * mask
            count = outputs.shape[1] if mask is None else mask.sum(-1)
            return (squares.sum(1) / count if self.mean else squares.sum(1)).mean()

        total = torch.zeros_like(theta)
        for gradients, count in batch_gradients(net, theta, task, task.train, self.batch_size, norm):
            total += gradients.abs_().sum(0) * count
        return theta, {"importance": memory["importance"] + total / len(task.train), "anchor": theta}
