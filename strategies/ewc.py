"""Elastic weight consolidation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.errors import BadOption
from continual.learning import importance
from continual.learning.strategy import Batch, Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class EWC(Strategy):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting", PNAS, eq. 3).

    loss + ½ λ Σ_t Σ_i F_t,i (θ_i - θ*_t,i)², with F_t the diagonal Fisher information of task t at θ*_t.

    Choices, each of which changes what a strength means: 1. the factor ½ (``half``); 2. the label in the Fisher
    (``label``), by default the expectation over all active labels, which is the Fisher itself; 3. the gradient is
    squared per sample, or per batch of ``fisher_batch`` samples, which is much smaller: that is what avalanche-lib's
    EWC does, with the true label (of the expectation it would be the Fisher over ``fisher_batch``); 4. one term per
    task as in the paper, or one sum of Fishers, decayed, around the last weights (``terms``: Huszár 2018, Schwarz et
    al. 2018). The terms of all tasks are kept as one, Σ_t F_t (θ - θ*_t)² = (Σ_t F_t) (θ - θ̄)² + constant with θ̄
    their weighted mean, so neither memory nor time grow with the tasks.
    """

    strength: float = option(100.0, "λ, the weight of the penalty", ge=0)
    half: bool = option(True, "whether the penalty has the factor 1/2")
    label: Literal["expected", "sampled", "true", "argmax"] = option("expected", "whose probability the Fisher is of")
    fisher_samples: int | None = option(None, "rows of a task that the Fisher is computed on; none: all", ge=1)
    fisher_batch: int = option(1, "rows whose gradient is averaged before it is squared; 1 is the Fisher", ge=1)
    terms: Literal["each", "last"] = option("each", "one term per task, or all importance around the last weights")
    decay: float = option(1.0, "factor on the earlier tasks' Fisher when a task is added", ge=0, le=1)

    def check(self) -> None:
        """A batch's gradient is of one label for each sample."""
        if self.fisher_batch > 1 and self.label == "expected":
            raise BadOption(f"ewc: fisher_batch={self.fisher_batch} squares the gradient of one label for each sample, "
                            "and label=expected takes all; give label=true, sampled or argmax")  # fmt: skip

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``fisher``: Σ F (P,); ``anchor``: θ̄ (P,)."""
        return {"fisher": torch.zeros_like(theta), "anchor": theta.clone()}

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """½ λ Σ_i F_i (θ_i - θ̄_i)², up to a constant."""
        factor = (0.5 if self.half else 1.0) * self.strength
        return factor * importance.pull(theta, memory["anchor"], memory["fisher"])

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Add the task's Fisher."""
        rows = task.train[task.key.permutation("fisher", len(task.train))][: self.fisher_samples]
        old, new = self.decay * memory["fisher"], importance.fisher(
            net, theta, task, rows, self.label, self.fisher_batch
        )  # fmt: skip
        share = torch.where(old + new > 0, new / (old + new), 1.0) if self.terms == "each" else 1.0
        return theta, {"fisher": old + new, "anchor": memory["anchor"] + share * (theta - memory["anchor"])}
