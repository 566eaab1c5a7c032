"""Which samples an exemplar memory keeps: lists of row numbers of fixed length, -1 where a slot is empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from continual.streams.rng import Key
from continual.streams.stream import Samples

if TYPE_CHECKING:
    from torch import Tensor


def empty(capacity: int, like: Tensor) -> Tensor:
    """A memory with no exemplar: (capacity,) int64 of -1."""
    return torch.full((capacity,), -1, dtype=torch.int64, device=like.device)


def reservoir(stored: Tensor, seen: Tensor, rows: Tensor, key: Key) -> tuple[Tensor, Tensor]:
    """The memory and the count of samples seen, after a batch of rows came by (Vitter 1985, algorithm R).

    Every sample that ever came by is stored with the same probability. ``stored`` (capacity,), ``seen`` (), ``rows``
    (B,); a program for the device, whose cost beyond a copy of the memory does not depend on the capacity.
    """
    capacity, count = len(stored), len(rows)
    order = seen + torch.arange(count, device=rows.device)
    drawn = key.integers("reservoir", count, order + 1)
    slot = torch.where(order < capacity, order, drawn)
    # a later sample of the batch overwrites an earlier one; writes that lose or miss go to one slot more, cut off
    later = torch.ones(count, count, dtype=torch.bool, device=rows.device).triu(1)
    lost = ((slot[:, None] == slot[None, :]) & later).any(1) | (slot >= capacity)
    target = torch.where(lost, capacity, slot)
    value = torch.where(lost, -1, rows)
    padded = torch.cat([stored, stored.new_full((1,), -1)])
    return padded.scatter(0, target, value)[:capacity], seen + count


def balanced(stored: Tensor, rows: Tensor, samples: Samples, key: Key, quota: int | None = None) -> Tensor:
    """The memory after a task: equally many rows of each class of each task so far, chosen at random.

    ``quota`` is how many of each; by default the capacity is divided among the classes seen. Kept exemplars were
    chosen at random already, so a smaller quota keeps the first of each class. Plain Python for between tasks.
    """
    shuffled = rows[key.permutation("exemplars", len(rows))]
    candidates = torch.cat([stored[stored >= 0], shuffled])
    kinds, kind = torch.stack([samples.task[candidates], samples.y[candidates]]).unique(dim=1, return_inverse=True)
    count = kinds.shape[1]
    each = max(1, len(stored) // count) if quota is None else quota
    kept = torch.cat([candidates[kind == which][:each] for which in range(count)])[: len(stored)]
    return torch.cat([kept, empty(len(stored) - len(kept), stored)])
