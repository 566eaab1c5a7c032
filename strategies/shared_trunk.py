"""Shared trunk: a head per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.learning.strategy import Batch, Memory, Step, Strategy, cross_entropy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class SharedTrunk(Strategy):
    """Shared trunk (Caruana 1997; Li and Hoiem 2016 compare its forms): one trunk, a head of its own for each task.

    A task trains its own output units and leaves those of other tasks exactly as they are; after the first task the
    trunk is trained on, slowed (each step moves it ``rate`` as far) or frozen. Choices: 1. the loss is over the
    sample's own task's outputs, whatever outputs the stream makes active, since a head knows its task only; 2. the
    step is scaled, not the gradient, because optimisers such as Adam undo a scaled gradient; 3. where all tasks share
    their outputs (domain scenario) there is one head, which every task trains.
    """

    trunk: Literal["trained", "slowed", "frozen"] = option("slowed", "what becomes of the trunk after the first task")
    rate: float = option(0.1, "how far a slowed trunk moves in a step, of what the optimiser says", ge=0, le=1)

    def check(self) -> None:
        """A trunk that is slowed has a rate."""
        if self.trunk != "slowed":
            self.check_unused(f"with trunk={self.trunk}", "rate")

    def suits(self, stream: Stream, net: Net) -> None:
        """Heads have weights of their own."""
        super().suits(stream, net)
        net.check_head("shared-trunk")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rate`` (P,): how far each parameter moves."""
        return {"rate": torch.ones_like(theta)}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Which parameters this task moves, and how far."""
        later = {"trained": 1.0, "slowed": self.rate, "frozen": 0.0}[self.trunk]
        rate = torch.full_like(theta, 1.0 if task.first else later)
        rate[net.head_rows(theta, torch.ones_like(task.own_units))] = 0.0
        rate[net.head_rows(theta, task.own_units)] = 1.0
        return theta, {"rate": rate}

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """Cross-entropy over the outputs of each sample's own task."""
        return cross_entropy(task.outputs.own(out.logits, batch.task), batch.y, batch.weight)

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """θ moves as far as the rates say."""
        return torch.lerp(step.before, theta, memory["rate"]), memory
