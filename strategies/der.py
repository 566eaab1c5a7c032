"""Dark experience replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning import distill, exemplars
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class DER(Strategy):
    """Dark experience replay (Buzzega et al. 2020, "Dark experience for general continual learning",
    algorithm 1).

    loss + α E ‖z - h_θ(x)‖², over samples x of a reservoir with the logits z that the network gave when x was stored.

    Choices: 1. the squared error is averaged over the outputs too, as in the authors' code and in avalanche-lib; the
    paper's norm is their sum (``error=sum``); 2. over all outputs, as theirs, or over those of the tasks seen when x
    was stored; 3. z are the logits of the forward pass that x was learnt in, as in algorithm 1; avalanche-lib fills a
    class-balanced memory after each task, with the logits of the learnt network; 4. stored samples are drawn with
    replacement; the authors' code draws without; 5. the reservoir is replayed from the second step on, in the first
    task too; avalanche-lib begins with the second task; 6. they go through the network with the batch, as in
    avalanche-lib, so that a network with BatchNorm normalises all of them together; in the authors' code each draw by
    itself.
    """

    stores_samples: ClassVar[bool] = True
    first_task_like_finetuning: ClassVar[bool] = False
    draws: ClassVar[tuple[str, ...]] = ("logits",)
    """What samples are drawn for, so many each."""

    alpha: float = option(0.5, "α, the weight of the logits' error", ge=0)
    capacity: int = option(500, "samples that are stored", ge=1, le=exemplars.MOST)
    samples: int | None = option(None, "stored samples in a draw; none: as many as a batch has", ge=1, le=1_000_000)
    error: Literal["mean", "sum"] = option("mean", "what is taken of the squared errors of a sample's outputs")
    over: Literal["all", "seen"] = option("all", "the outputs: all, or those of the tasks seen when it was stored")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows`` (capacity,), -1 where empty; their ``logits`` (capacity, K); ``seen``: samples that came by."""
        logits = theta.new_zeros(self.capacity, stream.units)
        return exemplars.reservoir_start(self.capacity, theta) | {"logits": logits}

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """The batch and the stored samples behind it, which weigh nothing in the data term."""
        stored = torch.cat([self._draw(purpose, memory, batch) for purpose in self.draws])
        rows = memory["rows"][stored]
        weight = torch.cat([batch.weights(theta), torch.zeros_like(rows, dtype=theta.dtype)])
        # as long as nothing is stored, :meth:`_known` leaves them out
        return batch.join(batch.readable(rows), task, weight)

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """α E ‖z - h_θ(x)‖², over one draw."""
        slots = self._draw("logits", memory, batch)
        drawn = slice(batch.joined.start, batch.joined.start + len(slots))
        seen = task.outputs.seen[batch.task[drawn]] if self.over == "seen" else None
        error = distill.squared_error(out.logits[drawn], memory["logits"][slots], seen, self.error)
        return self._known(memory, theta) * self.alpha * error

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The reservoir sees the step's own samples, with their logits from before the step."""
        own = step.batch.own
        slots = exemplars.reservoir_slots(self.capacity, memory["seen"], own, step.batch.key)
        return theta, {
            "rows": exemplars.put(memory["rows"], slots, step.batch.row[:own]),
            "logits": exemplars.put(memory["logits"], slots, step.out.logits[:own]),
            "seen": memory["seen"] + own,
        }

    def _draw(self, purpose: str, memory: Memory, batch: Batch) -> Tensor:
        """Slots of the memory, drawn with replacement; the same every time within a step."""
        stored = memory["seen"].clamp_max(self.capacity)
        return batch.key.integers(purpose, self.samples or batch.own, stored)

    def _known(self, memory: Memory, theta: Tensor) -> Tensor:
        """1 if something is stored, else 0."""
        return (memory["seen"] > 0).to(theta.dtype)
