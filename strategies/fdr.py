"""Function distance regularisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning import exemplars
from continual.learning.strategy import Batch, Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task

CHUNK = 512


@dataclass(frozen=True)
class FDR(Strategy):
    """Function distance regularisation (Benjamin et al. 2019, "Measuring and regularizing networks in function space").

    loss + λ ‖f_θ - f_old‖, the distance in L² between the network's function and the one it was when a task ended,
    estimated on stored samples x with the softmax outputs f_old(x) of that time.

    Choices: 1. the distance is estimated as the mean over samples of ‖f_θ(x) - f_old(x)‖ (``distance=norm``, as
    Buzzega et al. 2020 compare it), as the root of the mean of its squares, which is the norm of L² (``root``), or as
    the mean of the squares; 2. it is added to the loss, where the code of Buzzega et al. takes a step of its own on
    it after each of the data's; 3. the memory holds equally many samples of each class of each task so far, theirs of
    each task; 4. probabilities are over the outputs active when they are computed: an output that is new since then
    should have none; 5. samples are drawn with replacement; 6. norms are rounded off near 0 (``rounding``), where a
    task begins: there a norm's gradient has the direction of rounding errors and its full size.
    """

    stores_samples: ClassVar[bool] = True

    strength: float = option(1.0, "λ, the weight of the distance", ge=0)
    capacity: int = option(500, "samples that are stored", ge=1, le=exemplars.MOST)
    samples: int | None = option(None, "stored samples in a draw; none: as many as a batch has", ge=1, le=1_000_000)
    distance: Literal["norm", "root", "square"] = option("norm", "how the distance is estimated from samples")
    rounding: float = option(0.0001, "ε, which rounds a norm off near 0: √(s + ε²) - ε for √s", gt=0, le=1)

    def check(self) -> None:
        """A square has a gradient of its own near 0."""
        if self.distance == "square":
            self.check_unused("with distance=square", "rounding")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows`` (capacity,), -1 where empty, and their ``outputs`` (capacity, K)."""
        return {
            "rows": exemplars.empty(self.capacity, theta),
            "outputs": theta.new_zeros(self.capacity, stream.units),
        }

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """λ ‖f_θ - f_old‖."""
        if task.first:
            return theta.new_zeros(())
        count = self.samples or batch.own
        slots = batch.key.integers("replay", count, (memory["rows"] >= 0).sum())
        rows, outputs = (memory[name].index_select(0, slots) for name in ("rows", "outputs"))
        gap = self._outputs(net, theta, rows, task) - outputs
        squares = gap.square().sum(-1)
        if self.distance == "norm":
            return self.strength * self._root(squares).mean()
        return self.strength * (self._root(squares.mean()) if self.distance == "root" else squares.mean())

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Samples of the task are stored with their outputs; earlier ones keep theirs."""
        rows = exemplars.balanced(memory["rows"], task.train, task.samples, task.key)
        slot = torch.full_like(task.samples.y, -1)
        known = memory["rows"] >= 0
        slot[memory["rows"][known]] = known.nonzero().squeeze(1)
        outputs = torch.zeros_like(memory["outputs"])
        for where in (rows >= 0).nonzero().squeeze(1).split(CHUNK):
            old = slot[rows[where]]
            new = self._outputs(net, theta, rows[where], task)
            outputs[where] = torch.where((old >= 0)[:, None], memory["outputs"][old], new)
        return theta, {"rows": rows, "outputs": outputs}

    def _outputs(self, net: Net, theta: Tensor, rows: Tensor, task: Task) -> Tensor:
        """f_θ of the rows: the softmax over the active outputs (n, K)."""
        tasks = task.samples.task[rows]
        logits = net.logits(theta, task.samples.images(rows, theta.dtype), tasks)
        return torch.softmax(task.active(logits, tasks), dim=-1)

    def _root(self, squares: Tensor) -> Tensor:
        """√s, rounded off near 0."""
        return (squares + self.rounding**2).sqrt() - self.rounding
