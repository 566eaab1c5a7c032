"""What a function does on a processor, noted operation by operation and done again.

Python, autograd and the search for memory are left out of it, which take a third of the time of a small step. It is
what a CUDA graph is on a GPU, and asks the same of the function: what it reads and writes stays where it lies, nothing
depends on a value but by operations, and shapes are always the same.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

if TYPE_CHECKING:
    from torch import Tensor

MOST = 2**27
"""Bytes that operations make at most: larger ones wait for arithmetic and memory, and little is gained."""
VALUE, SHAPE, LARGE = "a step asks for a value", "shapes depend on values", "its tensors are large"
RANDOM = "a step draws random numbers from PyTorch's generator"
IMPURE = "a step gives something else when it is done again"
MASKS = (torch.bool, torch.uint8)
INDEX = torch.ops.aten.index.Tensor
"""Its shape depends on values where it is given a mask."""
DYNAMIC = {torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
NOTHING = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
"""What only takes memory."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
"""What another library may do in PyTorch's place, but not where it is told where to write."""


class Done:
    """An operation that was done: what it was given and gave, and the storages in which that lies.

    ``read`` are those of what it was given, ``written`` those of them that it wrote to, ``made`` those that are new.
    """

    __slots__ = ("args", "found", "kwargs", "made", "operation", "read", "results", "written")

    def __init__(
        self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any, results: list[Tensor]
    ) -> None:
        self.operation, self.args, self.kwargs, self.found, self.results = operation, args, kwargs, found, results
        self.read = {_place(one) for one in _tensors((args, kwargs))}
        written = [args[n] if n < len(args) else kwargs.get(name) for n, name in _written(operation)]
        self.written = {_place(one) for one in _tensors(written)}
        self.made = {_place(one) for one in self.results} - self.read


class Notes(TorchDispatchMode):
    """Within it, what is done is noted; ``why`` says why it cannot be done again, if it cannot."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done, self.why, self.made = list[Done](), "", 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and note it."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if not self.why:
            self._note(func, args, kwargs, found)
        return found

    def _note(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        results = [one for one in tree_iter(found) if one is not None]
        masked = operation is INDEX and any(one.dtype in MASKS for one in _tensors(args[1]))
        if not all(isinstance(one, torch.Tensor) for one in results):
            self.why = VALUE
        elif masked or (operation is not INDEX and DYNAMIC & set(operation.tags)):
            self.why = SHAPE
        elif torch.Tag.nondeterministic_seeded in operation.tags:
            self.why = RANDOM
        elif any(one.layout is not torch.strided or one.device.type != "cpu" for one in results):
            self.why = f"{operation} gives what is no plain tensor on the CPU"
        else:
            self.done.append(Done(operation, args, kwargs, found, results))
            self.made += sum(one.untyped_storage().nbytes() for one in results if _place(one) in self.done[-1].made)
            self.why = LARGE if self.made > MOST else ""
        if self.why:
            self.done = []


class View(NamedTuple):
    """A tensor, and how it lies in its storage."""

    tensor: Tensor
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def turn_to(self, storage: torch.UntypedStorage) -> None:
        """The tensor lies in another storage, in the same way."""
        self.tensor.set_(storage, self.offset, self.size, self.stride)


class Call(NamedTuple):
    """An operation to be done; ``moved``: which of its results come to lie elsewhere, and all that lies there."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moved: list[tuple[int, list[View]]]


class Recording:
    """What a function did, to be done again; ``result`` is what it gave, and is written over.

    An operation that can be told where to write writes where it wrote before; what others give comes to lie in the
    place of what they gave. Views are there already, and what is the same each time is left out.
    """

    def __init__(self, done: list[Done], result: Tensor | None) -> None:
        self.calls = list[Call]()
        self.twins: dict[int, Tensor] = {}
        self.lying: dict[int, list[View]] = defaultdict(list)
        self.result: Tensor | None = self._twins(result)
        made, moving = self._note_calls(done)
        kept = set() if result is None else {_place(result)}
        self._share_memory(made - moving - kept)
        written = {place for one in done for place in one.written} - made
        self.outside = [_bytes(self.lying[place][0].tensor) for place in written]
        del self.twins, self.lying

    def _note_calls(self, done: list[Done]) -> tuple[set[int], set[int]]:
        """The calls; the storages that they make, but for constants, and those of them that are new each time."""
        written = {place for one in done for place in one.written}
        made, moving, constant = set[int](), set[int](), set[int]()
        moves: list[tuple[Call, list[tuple[int, int]]]] = []
        for one in done:
            fresh = one.made
            if not one.written and one.read <= constant and not fresh & written:
                constant |= fresh
                continue
            made |= fresh
            if not (one.written or fresh) or one.operation._schema.name in NOTHING:
                continue
            into = None if one.written else _into(one.operation)
            args, kwargs = self._twins((one.args, one.kwargs))
            if into is None:
                places = enumerate(_place(part) for part in one.results)
                self.calls.append(Call(one.operation._op, args, kwargs, []))
                moves.append((self.calls[-1], [(n, place) for n, place in places if place in fresh]))
                moving |= fresh
            else:
                function, names = into
                given = one.found if isinstance(one.found, (tuple, list)) else (one.found,)
                outputs = dict(zip(names, self._twins(tuple(given)), strict=True))
                self.calls.append(Call(function, args, kwargs | outputs, []))
        for call, new in moves:
            call.moved.extend((n, self.lying[place]) for n, place in new if place in self.lying)
        return made, moving

    def _twins(self, tree: Any) -> Any:
        """The same with tensors that know no gradients, in the same places."""
        return tree_map_only(torch.Tensor, self._twin, tree)

    def _twin(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.twins:
            twin = self.twins[id(tensor)] = tensor.detach()
            view = View(twin, int(twin.storage_offset()), twin.size(), twin.stride())
            self.lying[_place(tensor)].append(view)
        return self.twins[id(tensor)]

    def _share_memory(self, places: set[int]) -> None:
        """What lies in these storages comes to lie in fewer, which are used again when nobody reads them any more."""
        touched = [{_place(one) for one in _tensors((call.args, call.kwargs))} & places for call in self.calls]
        last = {place: number for number, found in enumerate(touched) for place in found}
        free, taken = list[torch.UntypedStorage](), dict[int, torch.UntypedStorage]()
        for number, found in enumerate(touched):
            for place in found - taken.keys():
                size = self.lying[place][0].tensor.untyped_storage().nbytes()
                fits = [one for one in free if size <= one.nbytes() <= 2 * size]
                taken[place] = min(reversed(fits), key=lambda one: one.nbytes()) if fits else torch.UntypedStorage(size)
                free = [one for one in free if one is not taken[place]]
            free += [taken[place] for place in found if last[place] == number]
        for place, storage in taken.items():
            for view in self.lying[place]:
                view.turn_to(storage)

    def again(self) -> Tensor | None:
        """Do it again."""
        with torch._C._AutoDispatchBelowAutograd():
            for function, args, kwargs, moved in self.calls:
                found = function(*args, **kwargs)
                if moved:
                    results = [found] if isinstance(found, torch.Tensor) else list(_tensors(found))
                    for number, views in moved:
                        storage = results[number].untyped_storage()
                        for view in views:
                            view.turn_to(storage)
        return self.result

    def compared(self, function: Callable[[], Tensor | None]) -> tuple[bool, Tensor | None]:
        """Whether it does what the function does, by all bits that they write; and what that gives, which is done."""
        before = [one.clone() for one in self.outside]
        mine = [None if one is None else _bits(one).clone() for one in (self.again(), *self.outside)]
        for one, value in zip(self.outside, before, strict=True):
            one.copy_(value)
        wanted = function()
        pairs = zip(mine, (wanted, *self.outside), strict=True)
        return all(one is None or other is None or torch.equal(one, _bits(other)) for one, other in pairs), wanted


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (one for one in tree_iter(tree) if isinstance(one, torch.Tensor))


def _place(value: Tensor) -> int:
    """Which storage a tensor lies in."""
    return int(value.untyped_storage()._cdata)


def _bytes(value: Tensor) -> Tensor:
    """The bytes of a tensor's whole storage."""
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())


def _bits(value: Tensor) -> Tensor:
    """The bytes of a tensor's numbers."""
    return value.reshape(-1).view(torch.uint8)


@functools.cache
def _written(operation: Any) -> list[tuple[int, str]]:
    """The places and names of the arguments that an operation writes to."""
    given = enumerate(operation._schema.arguments)
    return [(n, one.name) for n, one in given if one.alias_info and one.alias_info.is_write]


@functools.cache
def _into(operation: Any) -> tuple[Callable[..., Any], list[str]] | None:
    """The same operation with tensors to write to, by their names, where PyTorch has a kernel of its own for that."""
    name, wanted = operation._schema.name, [(one.name, str(one.type)) for one in operation._schema.arguments]
    if name in PRODUCTS or not name.startswith("aten::"):
        return None
    packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
    for other in (getattr(packet, one) for one in packet.overloads()):
        outputs = [one.name for one in other._schema.arguments if one.is_out]
        rest = [(one.name, str(one.type)) for one in other._schema.arguments if not one.is_out]
        if outputs and rest == wanted and len(outputs) == len(operation._schema.returns):
            own = torch._C._dispatch_has_kernel_for_dispatch_key(other.name(), "CPU")
            return (other._op, outputs) if own else None
    return None
