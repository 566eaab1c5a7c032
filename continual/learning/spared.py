"""Which operations of a noted function are left out, or done once, when it is done again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from continual.learning.notes import ATEN, COPIES, NOTHING, Done, into, tensors
from continual.learning.seeds import storage_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def of_use(done: Sequence[Done], kept: set[int]) -> list[Done]:
    """The operations that write to what was there before or to storages ``kept``, and those that make what they read.

    Of a loss of which only the gradient is asked for, the value is of no use.
    """
    inside = {place for one in done for place in one.made}
    wanted, found = set(kept), list[Done]()
    for one in reversed(done):
        changed = one.made | one.written
        if changed & wanted or changed - inside or not one.pure:
            wanted |= changed if _is_empty(one) else changed | one.read
            found.append(one)
    return found[::-1]


def done_once(done: Sequence[Done], steady: set[int]) -> list[bool]:
    """Which operations give the same each time: those that read what is steady, or what others of them made, alone.

    What they made is steady, too, unless another operation writes to it, or reads it before they have all written.
    Operations that are not PyTorch's own are done each time, and so are those that draw random numbers.
    """
    last = {place: number for number, one in enumerate(done) for place in one.written}
    outside, moving = steady - last.keys(), set[int]()
    while True:
        known, found, more = set(outside), list[bool](), set[int]()
        for number, one in enumerate(done):
            found.append(one.pure and one.read <= known and not (one.made | one.written) & moving)
            if found[-1]:
                known |= one.made
            else:
                read = one.read & known - outside
                more |= {place for place in read if place in one.written or last.get(place, -1) > number}
        if not more:
            return found
        moving |= more


def in_place(done: Sequence[Done], once: Sequence[bool], kept: set[int]) -> tuple[set[int], dict[int, Tensor]]:
    """The operations that are left out, since what they copy is made where it is copied to.

    And for each storage whose tensors lie elsewhere therefore the place that they lie in. ``once``: which operations
    are done once; ``kept``: storages that stay as they are.
    """
    uses = _Uses(done, once)
    left_out, taken = set[int](), set(kept)
    placed: dict[int, Tensor] = {}
    for number, copy in enumerate(done):
        if copy.operation is not ATEN.copy_.default or once[number]:
            continue
        place, value = copy.args[:2]
        source, target = storage_of(value), storage_of(place)
        if source in taken or _lies(value) != _lies(place):
            continue
        maker = uses.maker(source)
        if maker is None or _lies(done[maker].results[0]) != _lies(place):
            continue
        if uses.could_be_seen(maker, number, source, target) or not _may_write_over(done[maker], place):
            continue
        # a copy of the place would be one to itself
        left_out |= {number, maker} if _copies(done[maker]) and target in uses.touched[maker] else {number}
        placed[source] = place
        taken |= {source, target}
    return left_out, placed


class _Uses:
    """Which storages operations read, write to or make: ``touched``, and without what they only read: ``changed``."""

    def __init__(self, done: Sequence[Done], once: Sequence[bool]) -> None:
        self.done = done
        # what is done once is done before all else, and views and empty tensors are there already
        acts = [bool(one.written or one.made) and not (early or _is_empty(one))
                for one, early in zip(done, once, strict=True)]  # fmt: skip
        pairs = list(zip(done, acts, strict=True))
        self.touched = [one.read | one.made if does else set[int]() for one, does in pairs]
        self.changed = [one.written | one.made if does else set[int]() for one, does in pairs]

    def maker(self, source: int) -> int | None:
        """Which operation makes what lies in a storage, if it has one result and can be told where to write it."""
        first = next(n for n, found in enumerate(self.touched) if source in found)
        one = self.done[first]
        if source not in one.made or len(one.results) != 1 or one.written:
            return None
        return first if _copies(one) or into(one.operation) is not None else None

    def could_be_seen(self, maker: int, number: int, source: int, target: int) -> bool:
        """Whether anyone could notice that what operation ``number`` copies is written to the target at ``maker``.

        Somebody reads or writes to the target in between, or afterwards one of the two changes and is not the other.
        """
        if any(target in found for found in self.touched[maker + 1 : number]):
            return True
        read = any(source in found for found in self.touched[number + 1 :])
        return read and any({source, target} & found for found in self.changed[number + 1 :])


def _may_write_over(maker: Done, place: Tensor) -> bool:
    """Whether an operation may write to a place, which it may read: number by number then, each where it lies."""
    given = [one for one in tensors((maker.args, maker.kwargs)) if storage_of(one) == storage_of(place)]
    # a quotient of complex numbers has other last bits then
    one_by_one = _copies(maker) or (torch.Tag.pointwise in maker.operation.tags and not place.is_complex())
    return not given or (one_by_one and all(_lies(one) == _lies(place) for one in given))


def _copies(one: Done) -> bool:
    return one.operation._schema.name in COPIES


def _is_empty(one: Done) -> bool:
    """Whether an operation only takes memory."""
    return one.operation._schema.name in NOTHING


def _lies(one: Tensor) -> tuple[Any, ...]:
    """What a tensor's numbers are, and how they lie."""
    return one.dtype, one.is_conj(), one.is_neg(), one.storage_offset(), one.shape, one.stride()
