"""Experience replay with an asymmetric cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning import exemplars
from continual.learning.strategy import Batch, Memory, Step, Strategy, cross_entropy
from continual.options import option
from continual.streams.stream import only

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class Online(Strategy):
    """What methods share that store at every step, a reservoir by default, and replay from the second step on."""

    stores_samples: ClassVar[bool] = True
    first_task_like_finetuning: ClassVar[bool] = False

    capacity: int = option(500, "samples that are stored", ge=1, le=exemplars.MOST)
    samples: int | None = option(None, "stored samples that join a batch; none: as many as it has", ge=1, le=1_000_000)

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``: the stored rows (capacity,), -1 where there is none yet; ``seen``: samples that came by."""
        return exemplars.reservoir_start(self.capacity, theta)

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """The batch and stored samples behind it, drawn with replacement."""
        stored = (memory["rows"] >= 0).sum()
        slots = batch.key.integers("replay", self.samples or batch.own, stored)
        return self.joined(batch, memory["rows"].index_select(0, slots), theta, task)

    def joined(self, batch: Batch, rows: Tensor, theta: Tensor, task: Task) -> Batch:
        """The batch and the rows (n,) behind it, each of the usual weight; -1 weighs nothing."""
        weight = torch.cat([batch.weights(theta), batch.usual_weight(theta) * (rows >= 0)])
        return batch.join(batch.readable(rows), task, weight)

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The reservoir sees the step's own samples."""
        return theta, exemplars.reservoir_step(memory, step.batch)


@dataclass(frozen=True)
class ERACE(Online):
    """ER-ACE (Caccia et al. 2022): experience replay with an asymmetric cross-entropy.

    "New insights on reducing abrupt representation change in online continual learning":
    L_ace(X_bf ∪ X_in) = L_ce(X_bf, C_old ∪ C_curr) + L_ce(X_in, C_curr): replayed samples X_bf are told from all
    classes seen, incoming ones X_in only from those that come with them, so that new ones do not push old ones away.

    Choices: 1. C_curr are the classes in the incoming batch, or all of its task (``current``); the authors' code adds
    outputs that nothing has been learnt for yet, which are not active as long as ``train_outputs`` is ``seen``; 2. the
    two losses are added, as in the equation, or averaged, as in avalanche-lib (``combine``); as long as nothing is
    stored the incoming one stands alone; 3. stored samples are a reservoir of all that came by, replayed from the
    second step on, in the first task too and those of the current task as well, as in the authors' code; avalanche-lib
    stores all classes of a task equally before it begins, and replays from the second task on; 4. they are drawn with
    replacement, by the others without.
    """

    current: Literal["batch", "task"] = option("batch", "C_curr: the classes of the incoming batch, or of the task")
    combine: Literal["sum", "mean"] = option("sum", "what is made of the two losses")

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """L_ace; in a chain what other parts join is replayed, too."""
        own, joined, weight = batch.own, slice(batch.own, None), batch.weight
        assert weight is not None, "the weights come with the stored samples"
        logits = task.active(out.logits, batch.task)
        present = task.own_units
        if self.current == "batch":
            present = torch.zeros_like(present).index_fill(0, batch.y[:own], True)
        among = only(logits[:own], present)
        incoming = cross_entropy(among, batch.y[:own], weight[:own])
        replayed = cross_entropy(logits[joined], batch.y[joined], weight[joined])
        if self.combine == "sum":
            return incoming + replayed
        return (incoming + replayed) / (1 + (weight[joined].sum() > 0).to(logits.dtype))
