"""Synaptic intelligence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from continual.learning.importance import pull
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class SI(Strategy):
    """Synaptic intelligence (Zenke et al. 2017, "Continual learning through synaptic intelligence", eq. 4-5).

    loss + c Σ_i Ω_i (θ_i - θ*_i)², with Ω_i = Σ_t ω_t,i / (Δ_t,i² + ξ): the path integral ω = Σ_steps -g·(θ' - θ) of
    the data term's gradient g along the steps of a task, over the square of the way Δ that the task went.

    Choices: 1. g is the gradient of the data term alone, and θ' - θ what the optimiser really did, as the paper's
    integral has it; 2. importances may be negative, as in the paper's equations; ``clamp`` cuts them at zero, as
    avalanche-lib does; 3. one anchor, the last task's weights, or what an earlier part of a chain made of them for
    this one.
    """

    strength: float = option(1.0, "c, the weight of the penalty", ge=0)
    damping: float = option(0.1, "ξ, which bounds the importance where a weight hardly moved", gt=0)
    clamp: bool = option(False, "whether negative importances are set to zero")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``path``: ω of this task; ``importance``: Ω; ``anchor``: θ*, where this task began. (P,) each."""
        return {"path": torch.zeros_like(theta), "importance": torch.zeros_like(theta), "anchor": theta.clone()}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The task begins where the last one ended, or where an earlier part of a chain has set θ since."""
        return theta, memory | {"anchor": theta}

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """c Σ_i Ω_i (θ_i - θ*_i)²."""
        return self.strength * pull(theta, memory["anchor"], memory["importance"])

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """ω grows by -g·(θ' - θ)."""
        return theta, memory | {"path": torch.addcmul(memory["path"], step.gradient, step.before - theta)}

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Ω takes up the task's path, which starts anew."""
        new = memory["path"] / ((theta - memory["anchor"]).square() + self.damping)
        importance = memory["importance"] + (new.clamp_min(0) if self.clamp else new)
        return theta, {"path": torch.zeros_like(theta), "importance": importance, "anchor": theta}
