"""Where named things are found: benchmarks, strategies, models, optimisers and schedules.

Built-in and foreign ones come in through the same door, the entry-point group ``continual.<kind>``; whatever is not
registered can be named by its path, ``package.module:Class``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.resources
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from continual.errors import BadFolder, UnknownName, unknown
from continual.options import Configured

KINDS = {
    "benchmarks": "benchmark",
    "strategies": "strategy",
    "models": "model",
    "optimizers": "optimizer",
    "schedules": "schedule",
}


@functools.cache
def registered(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    """What is registered under a kind, by name."""
    points = importlib.metadata.entry_points(group=f"continual.{kind}")
    return {point.name: point for point in sorted(points, key=lambda point: point.name)}


def find(kind: str, name: str) -> type[Configured]:
    """The class of a registered name or of a path; :class:`~continual.errors.UnknownName` where there is none."""
    points = registered(kind)
    if name not in points and ":" not in name:
        raise unknown(KINDS[kind], name, points)
    module, _, attribute = (points[name].value if name in points else name).partition(":")
    try:
        # our own modules use torch inside functions only; a foreign one may do as it likes
        with deferred("torch") if module.startswith("continual.") else contextlib.nullcontext():
            found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UnknownName(f"{KINDS[kind]} '{name}' cannot be loaded: {error}{_source_hint(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Configured)):
        raise UnknownName(f"{KINDS[kind]} '{name}' is {found!r}, not a class with options (continual.Strategy, ...)")
    return found


def name_of(kind: str, cls: type) -> str:
    """The registered name of a class, or its path."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, point in registered(kind).items() if point.value == path), path)


def _source_hint(error: Exception) -> str:
    """What to do where Python has taken the bare source folder for the package."""
    name = getattr(error, "name", None) or ""
    if not name.startswith("continual."):
        return ""
    return (
        f"; Python took {Path(__file__).parent} for the package: start it from another folder, or install with "
        "'pip install -e .'"
    )


def config_file(kind: str, name: str) -> Path | None:
    """The packaged file ``configs/<kind>/<name>.yaml``, if there is one."""
    path = Path(str(importlib.resources.files("continual.configs"))) / kind / f"{name}.yaml"
    return path if path.is_file() else None


def read_text(path: Path) -> str:
    """A text file's content, or :class:`~continual.errors.BadFolder`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFolder(f"{path} cannot be read: {error}") from error


class Deferred(types.ModuleType):
    """A stand-in for a module that is slow to import: the first use of anything in it imports it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(module.__dict__)
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        return getattr(module, name)


@contextlib.contextmanager
def deferred(name: str) -> Iterator[None]:
    """Inside, ``import name`` gives a :class:`Deferred` stand-in, unless the module is imported already.

    So the command line can list strategies and refuse mistakes without waiting for PyTorch. Modules imported inside
    must not import parts of it (``import name.part``) or take names from it (``from name import ...``).
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in = Deferred(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
