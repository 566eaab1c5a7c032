"""What hooks of a user's keep in Python, beside memory, where a step that is replayed does not come by."""

from __future__ import annotations

import array
import contextlib
import contextvars
import functools
import itertools
import random
import sys
import types
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from continual.learning.seeds import Learners

OURS = ("continual", "torch", "torchvision", "builtins", "typing", "abc", "logging")
"""Packages whose objects keep nothing between steps that matters."""
DEEP, MANY, LARGE = 6, 10_000, 2**24
"""How far, and at how many things for each name, is looked, and at arrays of less than so many bytes."""
PLAIN = (type(None), bool, int, float, complex, str, bytes)
NEVER = (types.ModuleType, types.BuiltinFunctionType, property)
ELSEWHERE = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that a step gets otherwise."""


class Aside:
    """What is kept in Python by what a step calls (strategies, network, optimiser), where that is code of a user's.

    Called, it gives something that is equal to what it gave before unless that has changed: attributes, those of the
    classes, variables and classes of the modules that they are written in and of those beside, also those of functions
    and of functions around these, and the states of Python's and NumPy's generators. Where there is more than is looked
    at, it is equal to nothing. Tensors and unknown things count as they are, whatever is written to them: writing to a
    tensor is replayed.
    """

    def __init__(self, learners: Learners) -> None:
        module = getattr(learners.recipe.net, "module", None)
        parts = list(module.modules()) if isinstance(module, torch.nn.Module) else []
        recipe = learners.recipe
        known = (*learners.strategy.parts, recipe.net, *parts, recipe.optimizer, recipe.augmentation)
        self.objects = [one for one in known if _theirs(type(one))]
        classes = dict.fromkeys(base for one in self.objects for base in _theirs(type(one)))
        self.modules = _with_near([base.__module__ for base in classes])
        self.classes = list(classes)

    def __call__(self) -> tuple[Any, ...]:
        """What there is now."""
        if not self.objects:
            return ()
        seen = _Seen(self.modules)
        own = [seen.attributes(one, 0) for one in (*self.objects, *self.classes)]
        names = [seen.attributes(sys.modules[name], 0) for name in self.modules if name in sys.modules]
        legacy: Any = np.random.get_state()  # whoever draws from it
        return (*own, *names, random.getstate(), legacy[1].tobytes(), legacy[2:])


class Same:
    """A thing, which is equal to itself alone, as long as one of these is there."""

    __slots__ = ("thing",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing


def _ours(one: type | types.FunctionType) -> bool:
    """Whether a class or a function is ours, or a library's of ours."""
    return (one.__module__ or OURS[0]).partition(".")[0] in OURS


def _theirs(kind: type) -> list[type]:
    """A class and its bases that are not ours."""
    return [base for base in kind.__mro__ if not _ours(base)]


def _values(name: str) -> list[Any]:
    """The values of a module's variables."""
    return list(vars(sys.modules[name]).values()) if name in sys.modules else []


def _with_near(names: list[str]) -> list[str]:
    """The modules, those of the same folders or packages that they take something from, those that these do, ..."""
    found, folders = list(dict.fromkeys(names)), {_folder(name) for name in names} - {None}
    for name in found:
        for value in _values(name):
            other = getattr(value, "__name__" if isinstance(value, types.ModuleType) else "__module__", None)
            if isinstance(other, str) and other not in found and _folder(other) in folders:
                found.append(other)
    return found


def _folder(name: str) -> Path | None:
    """The folder of a module's file, or of the package that it is part of."""
    whole = sys.modules.get(name.partition(".")[0])
    file = getattr(whole, "__file__", None)
    return Path(file).parent if file else None


def _plain(value: Any) -> bool:
    """Whether nothing can change in a value."""
    return isinstance(value, PLAIN) or (type(value) is tuple and all(map(_plain, value)))


def _slots(kind: type) -> list[str]:
    """The names of a class's slots, as they are found: a private one has the class's before it."""
    given = vars(kind).get("__slots__", ())
    names = [given] if isinstance(given, str) else list(given)
    private = f"_{kind.__name__.lstrip('_')}"
    return [f"{private}{name}" if name.startswith("__") and not name.endswith("__") else name for name in names]


def _is_small(one: np.ndarray[Any, Any]) -> bool:
    return bool(one.dtype != object and one.nbytes < LARGE)


def _each(values: Collection[Any]) -> list[tuple[Any, ...]]:
    return [(one,) for one in values]


def _function(one: types.FunctionType) -> list[tuple[Any, ...]]:
    """What a function has of its own: attributes, defaults, and the variables of functions around it."""
    if _ours(one):
        return []
    cells = []
    for cell in one.__closure__ or ():
        with contextlib.suppress(ValueError):  # it has no value yet
            cells.append(cell.cell_contents)
    return [(vars(one), one.__defaults__, one.__kwdefaults__, *cells)]


INSIDE: dict[type, Callable[[Any], Any]] = {
    dict: lambda one: list(one.items()),
    list: _each,
    tuple: _each,
    deque: _each,
    Set: _each,
    array.array: lambda one: one.tobytes(),
    bytearray: bytes,
    np.ndarray: lambda one: zlib.crc32(one.tobytes()) if _is_small(one) else one.shape,
    random.Random: random.Random.getstate,
    np.random.Generator: lambda one: repr(one.bit_generator.state),
    torch.Generator: lambda one: one.get_state().numpy().tobytes(),
    functools.partial: lambda one: [(one.func, one.args, one.keywords)],
    types.FunctionType: _function,
    types.MethodType: lambda one: [(one.__func__, one.__self__)],
    staticmethod: lambda one: [(one.__func__,)],
    classmethod: lambda one: [(one.__func__,)],
    contextvars.ContextVar: lambda one: [(one.get(None),)],
    torch.nn.Module: lambda one: [(one._modules, one._parameters, one._buffers)],
    torch.optim.Optimizer: lambda one: [(one.param_groups, one.state)],
    itertools.count: repr,
    # Python's own do not say where they stand
    Iterator: lambda one: object() if type(one).__module__ in ("builtins", "itertools") else Same(one),
}
"""What is in things of a kind: a list of tuples of things, or something else that can be compared."""


class _Seen:
    """What things are, told so that it can be compared; each thing is looked at once."""

    def __init__(self, modules: Collection[str]) -> None:
        self.modules, self.ids, self.left = modules, set[int](), MANY

    def of(self, value: Any, depth: int) -> Any:
        """What a value is; where there is too much to look at, something that nothing is equal to."""
        if isinstance(value, PLAIN):
            return repr(value)  # a NaN is equal to itself, too
        elsewhere = isinstance(value, type) and value.__module__ not in self.modules
        is_tensor = isinstance(value, torch.Tensor)
        if is_tensor and value.is_leaf and value.requires_grad:  # its gradient may be one that a replay does not set
            return Same(value), Same(value.grad), self.attributes(value, depth + 1)
        if elsewhere or (is_tensor and not vars(value)) or isinstance(value, NEVER) or depth > DEEP:
            return Same(value)
        if id(value) in self.ids:
            return "again"
        self.ids.add(id(value))
        self.left -= 1
        inside = next((how for kind, how in INSIDE.items() if isinstance(value, kind)), Same)
        found = inside(value)
        within = [] if not isinstance(found, list) or all(map(_plain, found)) else found
        if self.left < len(within):
            return object()
        whole = [tuple(self.of(part, depth + 1) for part in one) for one in within] or found
        its_own = isinstance(value, (type, torch.Tensor)) or _theirs(type(value))
        return whole, self.attributes(value, depth + 1) if its_own else ()

    def attributes(self, value: Any, depth: int) -> Any:
        """What the attributes of an object, a class or a module are."""
        names = list(getattr(value, "__dict__", {}).items())
        slots = [] if isinstance(value, type) else [_slots(base) for base in type(value).__mro__]
        for name in itertools.chain.from_iterable(slots):
            names += [(name, getattr(value, name))] if hasattr(value, name) else []
        found = []
        for name, one in names:
            if name not in ELSEWHERE and not (name.startswith("__") and name.endswith("__")):
                self.left = self.left if depth else MANY
                found.append((name, self.of(one, depth)))
        return found
