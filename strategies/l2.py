"""L2: a quadratic pull on every weight alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from continual.learning.importance import pull
from continual.learning.strategy import Batch, Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class Pull(Strategy):
    """What L1 and L2 share: a penalty on θ - θ*, where θ* is the last task's weights or zero."""

    strength: float = option(0.1, "λ, the weight of the penalty", ge=0)
    towards: Literal["last", "zero"] = option("last", "θ*: the weights after the last task, or zero")

    @property
    def first_task_like_finetuning(self) -> bool:  # type: ignore[override]
        """Not where weights are drawn to zero."""
        return self.towards == "last"

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``anchor``: θ*; ``weight``: λ, or 0 as long as there is no last task."""
        first = self.strength if self.towards == "zero" else 0.0
        return {"anchor": theta.new_zeros(theta.shape), "weight": theta.new_tensor(first)}

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The anchor moves to the task's weights."""
        if self.towards == "zero":
            return theta, memory
        return theta, {"anchor": theta, "weight": theta.new_tensor(self.strength)}


@dataclass(frozen=True)
class L2(Pull):
    """L2 regularisation: loss + λ Σ (θ - θ*)², with θ* the last task's weights, or zero.

    Towards the last task's weights it is EWC with every importance equal, the baseline of Kirkpatrick et al. 2017
    and Hsu et al. 2018. Choices: 1. no factor ½, as in Hsu et al.; 2. one anchor, the last task's weights;
    3. ``towards=zero`` is weight decay on every parameter, biases too, and acts from the first task on.
    """

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """λ Σ (θ - θ*)²."""
        return pull(net.weights(theta), net.weights(memory["anchor"]), memory["weight"])
