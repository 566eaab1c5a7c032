"""GDumb: a greedy sampler and a dumb learner."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from continual.learning import exemplars
from continual.learning.strategy import Memory
from continual.options import option
from continual.strategies.joint import Restarted

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.rng import Key
    from continual.streams.stream import Samples, Stream, Task


def greedily(stored: Tensor, rows: Tensor, samples: Samples, key: Key) -> Tensor:
    """The memory (k,) after rows (n,) came by one by one in a random order: algorithm 1. For between tasks."""
    capacity, have = len(stored), stored[stored >= 0]
    asked = torch.cat([have, rows[key.permutation("came", len(rows))]])
    # NumPy makes lists of numbers ten times as fast as PyTorch
    columns = (asked, exemplars.kinds(samples, asked), key.bits("dropped", 2 * len(rows)))
    came, of, lots = (column.cpu().numpy().tolist() for column in columns)
    kept, total = defaultdict[int, list[int]](list), len(have)
    for row, kind in zip(came[:total], of, strict=False):
        kept[kind].append(row)
    # a class that is known keeps at least one sample, as there is a slot for each
    for row, kind, which, place in zip(came[total:], of[total:], lots[::2], lots[1::2], strict=True):
        if kind in kept and len(kept[kind]) * len(kept) >= capacity:
            continue
        if total == capacity:
            most = max(len(group) for group in kept.values())
            largest = [group for group in kept.values() if len(group) == most]
            largest[which * len(largest) >> 32].pop(place * most >> 32)
            total -= 1
        kept[kind].append(row)
        total += 1
    found = torch.tensor([row for group in kept.values() for row in group], device=rows.device)
    return exemplars.padded(found, capacity)


@dataclass(frozen=True)
class GDumb(Restarted):
    """GDumb (Prabhu et al. 2020): a greedy sampler, and a network from the start on what it stored.

    "GDumb: a simple approach that questions our progress in continual learning", algorithm 1. The greedy
    sampler keeps k samples and balances classes: one of class y is taken if y is new or has fewer than k / (classes
    seen); where there is no room left, a random one of the largest class goes. The dumb learner trains a network from
    the start on what is stored, and on nothing else.

    Choices: 1. it is trained at each task's arrival, as in avalanche-lib, on the k samples of which the task's own are
    some; a single time at the end, as in the paper, gives the same last row of the accuracy matrix; 2. each epoch has
    the stored rows ``passes`` times, shuffled together, as a run's epochs are few and the paper's 256; 3. a class that
    two tasks have counts as two: where tasks share their classes a memory full of the first task would take nothing
    else; 4. avalanche-lib divides k exactly among the classes seen, each with a reservoir of its own, and leaves empty
    what a class cannot fill; 5. neither CutMix nor the paper's learning rate with cosine restarts is here: the rate is
    the run's ``schedule``.
    """

    stores_samples: ClassVar[bool] = True
    first_task_like_finetuning: ClassVar[bool] = False

    capacity: int = option(500, "k, samples that are stored", ge=1, le=exemplars.MOST)
    passes: int | None = option(
        None,
        "how often an epoch repeats the stored rows; none: until it is about as long as one of the task's own",
        ge=1,
        le=100_000,
    )

    def suits(self, stream: Stream, net: Net) -> None:
        """There is room for a sample of each class."""
        super().suits(stream, net)
        exemplars.check_classes(self.capacity, stream)

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``: the stored rows (k,), -1 where there is none yet."""
        return super().init(net, theta, stream) | {"rows": exemplars.empty(self.capacity, theta)}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The task's rows come by, and the network starts again."""
        theta, memory = super().before_task(net, theta, memory, task)
        return theta, memory | {"rows": greedily(memory["rows"], task.train, task.samples, task.key)}

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """What is stored, again and again."""
        stored = memory["rows"][memory["rows"] >= 0]
        return stored.repeat(self.passes or max(1, len(task.train) // len(stored)))
