"""What a function does on a processor, noted operation by operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from continual import products
from continual.learning.seeds import MOST, storage_of

if TYPE_CHECKING:
    from torch import Tensor

VALUE, SHAPE, LARGE = "a step asks for a value", "shapes depend on values", "its tensors are large"
LIES = "a step changes how a tensor lies"
RANDOM = "a step draws random numbers from a generator of its own"
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
FRESH = ATEN.lift_fresh.default
"""What makes a tensor of a constant (``torch.tensor``)."""
COPIES = ("aten::_to_copy", "aten::clone")
OPERATIONS = ("aten::", "mkldnn::")
"""PyTorch's own operations, which do nothing but make and write what their schema says."""
UNSAID = ("running_mean", "running_var")
"""Arguments that an operation may write to and not say so."""


class CannotRecord(BaseException):
    """Why a function cannot be recorded; it ends the function, through whatever catches errors there."""


class Done:
    """An operation that was done: what it was given and gave, and the storages in which that lies.

    ``read`` are those of what it was given, ``written`` those of them that it wrote to, ``made`` those that are new.
    ``draws``: whether it draws from PyTorch's generator. ``pure``: whether it does nothing but make and write.
    """

    __slots__ = ("args", "draws", "found", "grad", "kwargs", "made", "operation", "pure", "read", "results", "written")

    def __init__(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        self.operation, self.args, self.kwargs, self.found = operation, args, kwargs, found
        self.results = parts(found)
        about, self.draws, self.pure = _kind(operation)
        self.read = set[int]() if about else {storage_of(one) for one in tensors((args, kwargs))}
        self.written = {storage_of(one) for one in _written(operation, args, kwargs)}
        self.made = {storage_of(one) for one in tensors(found)} - self.read
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
        """Do the operation, and note what was done."""
        kwargs = kwargs or {}
        if why := self._why_never(func, args, kwargs):
            raise CannotRecord(why)
        with torch._C.DisableTorchFunction():
            for one in _written(func, args, kwargs):
                self._keep(one)
            if func is FRESH:  # the constant stays as it is, whatever becomes of what the function is given
                func = ATEN.clone.default
            if func is ATEN.relu.default:  # which is that to PyTorch, too, but cannot be told where to write
                func, args = ATEN.clamp_min.default, (*args, 0)
            return products.performed(func, args, kwargs, self._do)

    def _do(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do an operation, and note it."""
        found = operation(*args, **kwargs)
        done = Done(operation, args, kwargs, found)
        told = any(one is not None and not isinstance(one, torch.Tensor) for one in done.results)
        if told and operation._schema.name not in ABOUT:
            raise CannotRecord(VALUE)
        self.done.append(done)
        if done.made:
            self.inside |= done.made
            new = [one for one in tensors(found) if storage_of(one) in done.made]
            self._count(sum(one.untyped_storage().nbytes() for one in new))
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
    def _why_never(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Why an operation cannot be noted, before it is done: how a tensor lies could not be undone."""
        why, otherwise, generator = _forbidden(operation)
        if operation is INDEX and any(one.dtype in MASKS for one in tensors(args[1])):
            return SHAPE
        if why or (otherwise and torch.is_grad_enabled()):
            return why or OTHERWISE
        given = generator and any(isinstance(one, torch.Generator) for one in (*args, *kwargs.values()))
        return RANDOM if given else ""


class Asking(TorchFunctionMode):
    """Within it, what reads the memory of a tensor raises :class:`CannotRecord`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, unless it is one of those."""
        if func in VALUES:
            raise CannotRecord(VALUE)
        return func(*args, **(kwargs or {}))


def parts(tree: Any) -> list[Any]:
    """What is in tuples, lists and dicts, one by one."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [part for one in tree for part in parts(one)] if isinstance(tree, (tuple, list)) else [tree]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors that are in tuples, lists and dicts."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return []
    return [found for one in tree for found in tensors(one)]


def _bytes(value: Tensor) -> Tensor:
    """The bytes of a tensor's whole storage."""
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())


def _written(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to."""
    return tensors([args[n] if n < len(args) else kwargs.get(name) for n, name in _writes(operation)])


@functools.cache
def _kind(operation: Any) -> tuple[bool, bool, bool]:
    """Whether an operation goes by how a tensor lies alone, and if it ``draws`` and is ``pure`` (:class:`Done`)."""
    name, draws = operation._schema.name, torch.Tag.nondeterministic_seeded in operation.tags
    return name in LIKE, draws, name.startswith(OPERATIONS) and not draws


@functools.cache
def _forbidden(operation: Any) -> tuple[str, bool, bool]:
    """Why an operation can never be noted, whether its gradient is another then, and whether it takes a generator."""
    shape = torch.Tag.dynamic_output_shape in operation.tags and operation is not INDEX
    why = SHAPE if shape else LIES if torch.Tag.inplace_view in operation.tags else ""
    takes = any("Generator" in str(one.type) for one in operation._schema.arguments)
    return why, operation in OTHERWISE_FOR, takes


@functools.cache
def _writes(operation: Any) -> list[tuple[int, str]]:
    """The numbers and names of the arguments that an operation writes to."""
    given = enumerate(operation._schema.arguments)
    return [(n, one.name) for n, one in given if (one.alias_info and one.alias_info.is_write) or one.name in UNSAID]


@functools.cache
def into(operation: Any) -> tuple[Callable[..., Any], list[str]] | None:
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
