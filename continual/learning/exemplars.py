"""Which samples an exemplar memory keeps: lists of row numbers of fixed length, -1 where a slot is empty."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from continual.errors import BadChain
from continual.streams.rng import Key
from continual.streams.stream import Samples

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.strategy import Batch, Memory
    from continual.streams.stream import Stream

MOST = 10_000_000
"""So many samples a memory holds at most."""


def empty(capacity: int, like: Tensor) -> Tensor:
    """A memory with no exemplar: (capacity,) int64 of -1."""
    return torch.full((capacity,), -1, dtype=torch.int64, device=like.device)


def padded(rows: Tensor, capacity: int) -> Tensor:
    """The rows (n,) and empty slots behind them, (capacity,) in all."""
    return torch.cat([rows, empty(capacity - len(rows), rows)])


def check_room(capacity: int, least: int, what: str) -> None:
    """:class:`~continual.errors.BadChain` for a capacity below the ``least`` that ``what`` ("6 classes") takes."""
    if capacity < least:
        raise BadChain(f"capacity={capacity} is too small for {what}; give {least} or more")


def check_classes(capacity: int, stream: Stream, each: int = 1) -> None:
    """The same for so many slots for ``each`` class of each task."""
    names = [name for task in stream.tasks for name in task.classes]
    recur = "" if len(set(names)) == len(names) else ", as those of each task are counted"
    check_room(capacity, each * len(names), f"{len(names)} classes{recur}")


def reservoir(stored: Tensor, seen: Tensor, rows: Tensor, key: Key) -> tuple[Tensor, Tensor]:
    """The memory and the count of samples seen, after a batch of rows came by (Vitter 1985, algorithm R).

    Every sample that ever came by is stored with the same probability. ``stored`` (capacity,), ``seen`` (), ``rows``
    (B,); a program for the device, whose cost beyond a copy of the memory does not depend on the capacity.
    """
    slots = reservoir_slots(len(stored), seen, len(rows), key)
    return put(stored, slots, rows), seen + len(rows)


def reservoir_start(capacity: int, theta: Tensor) -> Memory:
    """What a reservoir keeps: ``rows``, the stored ones (capacity,), and ``seen``, how many samples came by, ()."""
    return {"rows": empty(capacity, theta), "seen": torch.zeros_like(theta[0], dtype=torch.int64)}


def reservoir_step(memory: Memory, batch: Batch) -> Memory:
    """That memory after a step, whose own samples came by."""
    rows, seen = reservoir(memory["rows"], memory["seen"], batch.row[: batch.own], batch.key)
    return {"rows": rows, "seen": seen}


def reservoir_slots(capacity: int, seen: Tensor, count: int, key: Key) -> Tensor:
    """Where a reservoir stores each of ``count`` samples: slots (count,), ``capacity`` for one that is not stored."""
    order = seen + torch.arange(count, device=seen.device)
    slots = torch.where(order < capacity, order, key.integers("reservoir", count, order + 1))
    return last_writes(capacity, slots)


def last_writes(capacity: int, slots: Tensor) -> Tensor:
    """The slots (B,), with ``capacity`` where a later sample of the batch has the same slot, or the slot is no slot."""
    later = (slots[:, None] == slots).triu(1).any(1)
    lost = later | (slots >= capacity)
    return torch.where(lost, capacity, slots)


def put(stored: Tensor, slots: Tensor, values: Tensor) -> Tensor:
    """The table ``stored`` (capacity, ...) with ``values`` (B, ...) in their slots; slot ``capacity`` is nowhere.

    Slots other than ``capacity`` must differ from each other.
    """
    # what is stored nowhere is written to one row more, which is cut off
    padded = torch.cat([stored, torch.zeros_like(stored[:1])])
    return padded.index_copy(0, slots, values.to(stored.dtype))[:-1]


def kinds(samples: Samples, rows: Tensor) -> Tensor:
    """A number (n,) for the class and the task that each row (n,) is of; they ascend by task, then by class."""
    return samples.task[rows] * (samples.y.max() + 1) + samples.y[rows]


def by_class(rows: Tensor, samples: Samples) -> list[Tensor]:
    """The rows (n,) of each class of each task, in their order; between tasks."""
    kind = kinds(samples, rows)
    return [rows[kind == which] for which in kind.unique()]


def balanced(stored: Tensor, rows: Tensor, samples: Samples, key: Key, quota: int | None = None) -> Tensor:
    """The memory after a task: equally many rows of each class of each task so far, chosen at random.

    ``quota`` is how many of each; by default the capacity is divided among the classes seen. Kept exemplars were
    chosen at random already, so a smaller quota keeps the first of each class. Where there are more classes than slots,
    chance says which have one, those of all tasks alike. Plain Python for between tasks.
    """
    shuffled = rows[key.permutation("exemplars", len(rows))]
    candidates = torch.cat([stored[stored >= 0], shuffled])
    groups = by_class(candidates, samples)
    each = max(1, len(stored) // len(groups)) if quota is None else quota
    kept = torch.cat([group[:each] for group in groups])
    if len(kept) > len(stored):  # a class has one lot for all tasks, so that those of earlier ones are not drawn again
        kind = kinds(samples, kept)
        lots = replace(key, task=0).bits("classes", int(kind.max()) + 1)
        kept = kept[lots[kind].sort(stable=True).indices][: len(stored)]
    return padded(kept, len(stored))
