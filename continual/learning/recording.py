"""What a function does on a processor, noted operation by operation and done again.

Python, autograd and the search for memory are left out of it, which take a third of the time of a small step. It is
what a CUDA graph is on a GPU, and asks the same of the function: what it reads and writes stays where it lies, nothing
depends on a value but by operations, and shapes are always the same.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from continual import products
from continual.learning.seeds import MOST, storage_of

if TYPE_CHECKING:
    from torch import Tensor

VALUE, SHAPE, LARGE = "a step asks for a value", "shapes depend on values", "its tensors are large"
LIES = "a step changes how a tensor lies"
RANDOM = "a step draws random numbers from PyTorch's generator"
IMPURE = "a step gives something else when it is done again"
OTHERWISE = "PyTorch computes a gradient in another way while operations are noted"
ATEN = torch.ops.aten
OTHERWISE_FOR = (ATEN.prod.default, ATEN.prod.dim_int, ATEN.masked_fill.Tensor, ATEN.masked_fill_.Tensor)
"""Of all operations in PyTorch's own table for its tests (2.14) the gradients of these round otherwise then."""
VALUES = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__}
"""What reads a processor's memory without an operation."""
INDEX, MASKS = ATEN.index.Tensor, (torch.bool, torch.uint8)
"""Its shape depends on values where it is given a mask."""
ABOUT = ("aten::is_same_size", "aten::_has_same_storage_numel")
"""What asks how tensors lie, which is the same each time, and not what is in them."""
NOTHING = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
"""What only takes memory."""
LIKE = ("aten::ones_like", "aten::zeros_like", "aten::full_like", "aten::new_zeros", "aten::new_ones", "aten::new_full")
"""What goes by how a tensor lies, and not by what is in it."""
COPIES = ("aten::_to_copy", "aten::clone")
UNSAID = ("running_mean", "running_var")
"""Arguments that an operation may write to and not say so."""


class CannotRecord(BaseException):
    """Why a function cannot be recorded; it ends the function, through whatever catches errors there."""


class Done:
    """An operation that was done: what it was given and gave, and the storages in which that lies.

    ``read`` are those of what it was given, ``written`` those of them that it wrote to, ``made`` those that are new.
    """

    __slots__ = ("args", "found", "grad", "kwargs", "made", "operation", "read", "results", "written")

    def __init__(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        self.operation, self.args, self.kwargs, self.found = operation, args, kwargs, found
        self.results = _parts(found)
        about = operation._schema.name in LIKE
        self.read = set[int]() if about else {storage_of(one) for one in _tensors((args, kwargs))}
        self.written = {storage_of(one) for one in _written(operation, args, kwargs)}
        self.made = {storage_of(one) for one in _tensors(found)} - self.read
        self.grad = torch.is_grad_enabled()


class Notes(TorchDispatchMode):
    """Within it, what is done is noted, and what tensors from outside were before they are written to.

    Raises :class:`CannotRecord` where something cannot be done again.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done, self.bytes = list[Done](), 0
        self.inside = set[int]()
        self.outside: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and note it."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            for one in _written(func, args, kwargs):
                self._keep(one)
            func, args, kwargs = products.direct(func, args, kwargs)
            found = func(*args, **kwargs)
            if why := self._why_not(func, args, found):
                raise CannotRecord(why)
            self.done.append(Done(func, args, kwargs, found))
            made = self.done[-1].made
            self.inside |= made
            self._count(sum(one.untyped_storage().nbytes() for one in _tensors(found) if storage_of(one) in made))
        return found

    def _keep(self, written: Tensor) -> None:
        place = storage_of(written)
        if place not in self.inside and place not in self.outside:
            whole = _bytes(written)
            self._count(len(whole))
            self.outside[place] = whole, whole.clone()

    def _count(self, more: int) -> None:
        self.bytes += more
        if self.bytes > MOST:
            raise CannotRecord(LARGE)

    def undo(self) -> None:
        """What lies outside is as it was."""
        for one, before in self.outside.values():
            one.copy_(before)

    @staticmethod
    def _why_not(operation: Any, args: tuple[Any, ...], found: Any) -> str:
        results = _parts(found)
        if not all(one is None or isinstance(one, torch.Tensor) for one in results):
            return "" if operation._schema.name in ABOUT else VALUE
        masked = operation is INDEX and any(one.dtype in MASKS for one in _tensors(args[1]))
        if masked or (operation is not INDEX and torch.Tag.dynamic_output_shape in operation.tags):
            return SHAPE
        if torch.Tag.inplace_view in operation.tags:
            return LIES
        if operation in OTHERWISE_FOR and torch.is_grad_enabled():
            return OTHERWISE
        return RANDOM if torch.Tag.nondeterministic_seeded in operation.tags else ""


class Asking(TorchFunctionMode):
    """Within it, what reads the memory of a tensor raises :class:`CannotRecord`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, unless it is one of those."""
        if func in VALUES:
            raise CannotRecord(VALUE)
        return func(*args, **(kwargs or {}))


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
    grad: bool
    """Whether gradients could be asked for, which some operations prepare for."""


class Recording:
    """What a function did, to be done again; ``result`` is what it gave, and is written over.

    An operation that can be told where to write writes where it wrote before; what others give comes to lie in the
    place of what they gave. Views are there already. What gives the same each time is done ``once``, and again only
    where the recording is ``stale``: what lies in the storages ``steady`` may have changed.
    """

    def __init__(self, done: list[Done], outside: list[Tensor], result: Tensor | None, steady: set[int]) -> None:
        self.once, self.calls, self.outside, self.stale = list[Call](), list[Call](), outside, True
        self.twins: dict[int, Tensor] = {}
        self.lying: dict[int, list[View]] = defaultdict(list)
        self.result: Tensor | None = self._twins(result)
        made, moving = self._note_calls(done, steady)
        kept = set() if result is None else {storage_of(result)}
        self._share_memory(made - moving - kept)
        del self.twins, self.lying

    def _note_calls(self, done: list[Done], steady: set[int]) -> tuple[set[int], set[int]]:
        """The calls; the storages that those of each time make, and those of them that are new then."""
        made, moving = set[int](), set[int]()
        moves: list[tuple[Call, list[tuple[int, int]]]] = []
        for one, once in zip(done, _done_once(done, steady), strict=True):
            name, fresh, calls = one.operation._schema.name, one.made, self.once if once else self.calls
            made |= set() if once else fresh
            if not (one.written or fresh) or name in NOTHING:
                continue
            args, kwargs = self._twins((one.args, one.kwargs))
            kept = one.written or products.replaced(one.operation, one.args)
            into = None if kept else _into(one.operation)
            if name in COPIES:
                calls.append(Call(ATEN.copy_.default._op, (self._twins(one.found), args[0]), {}, [], one.grad))
            elif into is not None:
                function, names = into
                kwargs |= dict(zip(names, self._twins(one.results), strict=True))
                calls.append(Call(function, args, kwargs, [], one.grad))
            else:
                calls.append(Call(one.operation._op, args, kwargs, [], one.grad))
                places = [(n, storage_of(part)) for n, part in enumerate(one.results) if part is not None]
                moves.append((calls[-1], [(n, place) for n, place in places if place in fresh]))
                moving |= fresh
        for call, new in moves:
            call.moved.extend((n, self.lying[place]) for n, place in new if place in self.lying)
        return made, moving

    def _twins(self, tree: Any) -> Any:
        """The same with tensors that know no gradients, in the same places."""
        if isinstance(tree, torch.Tensor):
            if id(tree) not in self.twins:
                twin = self.twins[id(tree)] = tree.detach()
                self.lying[storage_of(tree)].append(View(twin, int(twin.storage_offset()), twin.size(), twin.stride()))
            return self.twins[id(tree)]
        if isinstance(tree, dict):
            return {name: self._twins(one) for name, one in tree.items()}
        return type(tree)(map(self._twins, tree)) if isinstance(tree, (tuple, list)) else tree

    def _share_memory(self, places: set[int]) -> None:
        """What lies in these storages comes to lie in fewer, which are used again when nobody reads them any more."""
        touched = [{storage_of(one) for one in _tensors((call.args, call.kwargs))} & places for call in self.calls]
        last = {place: number for number, found in enumerate(touched) for place in found}
        free, taken = list[torch.UntypedStorage](), dict[int, torch.UntypedStorage]()
        for number, found in enumerate(touched):
            for place in found - taken.keys():
                size = self.lying[place][0].tensor.untyped_storage().nbytes()
                fits = [one for one in free if size <= one.nbytes() <= 2 * size]
                # of equals the one that was let go last, which is still near
                taken[place] = min(reversed(fits), key=lambda one: one.nbytes()) if fits else torch.UntypedStorage(size)
                free = [one for one in free if one is not taken[place]]
            free += [taken[place] for place in found if last[place] == number]
        for place, storage in taken.items():
            for view in self.lying[place]:
                view.turn_to(storage)

    def again(self) -> Tensor | None:
        """Do it again."""
        if self.stale:
            self._do(self.once)
            self.stale = False
        self._do(self.calls)
        return self.result

    @staticmethod
    def _do(calls: list[Call]) -> None:
        set_grad, before = torch._C._set_grad_enabled, torch.is_grad_enabled()
        now = before
        try:
            with torch._C._AutoDispatchBelowAutograd():
                for function, args, kwargs, moved, grad in calls:
                    if grad is not now:
                        set_grad(grad)
                        now = grad
                    found = function(*args, **kwargs)
                    for number, views in moved:
                        storage = _parts(found)[number].untyped_storage()
                        for view in views:
                            view.turn_to(storage)
        finally:
            set_grad(before)

    def compared(self, function: Callable[[], Tensor | None]) -> tuple[bool, Tensor | None]:
        """Whether it does what the function does, by all bits that they write; and what that gives, which is done.

        Raises :class:`CannotRecord` where it cannot be done again; then nothing is done.
        """
        before = [one.clone() for one in self.outside]
        try:
            mine = [None if one is None else _bits(one).clone() for one in (self.again(), *self.outside)]
        except Exception as error:  # what is wrong with the function itself is raised when it is called
            raise CannotRecord(f"PyTorch cannot do it again ({type(error).__name__})") from error
        finally:
            for one, value in zip(self.outside, before, strict=True):
                one.copy_(value)
        wanted = function()
        pairs = zip(mine, (wanted, *self.outside), strict=True)
        return all(one is None or other is None or torch.equal(one, _bits(other)) for one, other in pairs), wanted


def recorded(function: Callable[[], Tensor | None], steady: Iterable[Tensor] = ()) -> tuple[Recording | None, str]:
    """What a function does, which is undone, or why it cannot be recorded.

    ``steady``: tensors that nobody else writes to, unless the recording is said to be stale.
    """
    notes, drawn = Notes(), torch.get_rng_state()
    try:
        with Asking(), notes:
            result = function()
        outside = [one for one, _ in notes.outside.values()]
        return Recording(notes.done, outside, result, set(map(storage_of, steady))), ""
    except CannotRecord as reason:
        return None, str(reason)
    except Exception as error:  # what is wrong with the function itself is raised when it is called next
        return None, f"PyTorch cannot record it ({type(error).__name__})"
    finally:
        notes.undo()
        torch.set_rng_state(drawn)


def _done_once(done: list[Done], steady: set[int]) -> list[bool]:
    """Which operations give the same each time: those that read what is steady, or what others of them made, alone.

    What they made is steady, too, unless another operation writes to it, or reads it before they have all written.
    """
    last = {place: number for number, one in enumerate(done) for place in one.written}
    outside, moving = steady - last.keys(), set[int]()
    while True:
        known, found, more = set(outside), list[bool](), set[int]()
        for number, one in enumerate(done):
            found.append(one.read <= known and not (one.made | one.written) & moving)
            if found[-1]:
                known |= one.made
            else:
                read = one.read & known - outside
                more |= {place for place in read if place in one.written or last.get(place, -1) > number}
        if not more:
            return found
        moving |= more


def _parts(tree: Any) -> list[Any]:
    """What is in tuples, lists and dicts, one by one."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [part for one in tree for part in _parts(one)] if isinstance(tree, (tuple, list)) else [tree]


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in _parts(tree) if isinstance(one, torch.Tensor)]


def _bytes(value: Tensor) -> Tensor:
    """The bytes of a tensor's whole storage."""
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())


def _bits(value: Tensor) -> Tensor:
    """The bytes of a tensor's numbers."""
    return value.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)


def _written(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to."""
    return _tensors([args[n] if n < len(args) else kwargs.get(name) for n, name in _writes(operation)])


@functools.cache
def _writes(operation: Any) -> list[tuple[int, str]]:
    """The numbers and names of the arguments that an operation writes to."""
    given = enumerate(operation._schema.arguments)
    return [(n, one.name) for n, one in given if (one.alias_info and one.alias_info.is_write) or one.name in UNSAID]


@functools.cache
def _into(operation: Any) -> tuple[Callable[..., Any], list[str]] | None:
    """The same operation with tensors to write to, by their names, where PyTorch has a kernel of its own for that."""
    name, wanted = operation._schema.name, [(one.name, str(one.type)) for one in operation._schema.arguments]
    if not name.startswith("aten::"):
        return None
    packet = getattr(ATEN, name.removeprefix("aten::"))
    for other in (getattr(packet, one) for one in packet.overloads()):
        outputs = [one.name for one in other._schema.arguments if one.is_out]
        rest = [(one.name, str(one.type)) for one in other._schema.arguments if not one.is_out]
        if outputs and rest == wanted and len(outputs) == len(operation._schema.returns):
            own = torch._C._dispatch_has_kernel_for_dispatch_key(other.name(), "CPU")
            return (other._op, outputs) if own else None
    return None
