"""Where named things are found: whatever is of one of the :data:`KINDS`, a benchmark or a strategy or a model.

Built-in and foreign ones come in through the same door, the entry-point group ``continual.<kind>``; whatever is not
registered can be named by its path, ``package.module:Class``. Strategies of a whole library that has a loop of its own
come in as ``library:Name``: the group ``continual.libraries`` registers, by the library's name, a function that gives
the class of each (see :mod:`continual.avalanche.foreign`).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.resources
import importlib.util
import itertools
import os
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from continual import files
from continual.errors import BadFolder, BadOption, Mistake, UnknownName, choices, unknown
from continual.options import Configured, Option, options_of

KINDS = {
    "benchmarks": "benchmark",
    "strategies": "strategy",
    "models": "model",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "augmentations": "augmentation",
    "trackers": "tracker",
}


OWN = ("continual", "builtins", "typing", "torch", "torchvision")
"""Packages of which a record has the version."""
PYTHON = Path(os.__file__).resolve().parent
"""The folder of Python's own modules."""
INSTALLED = ("site-packages", "dist-packages")
"""Folders in which everything is beside everything else."""
MAPPED = ("benchmarks", "strategies")
"""Folders that setup.cfg maps into the package."""
FEW = 3
"""So many ways to write something are told."""
_names: dict[tuple[str, type], str] = {}


@functools.cache
def _registered() -> dict[str, dict[str, importlib.metadata.EntryPoint]]:
    """What all packages register, by kind and name; to read it takes a while."""
    every, found = importlib.metadata.entry_points(), {}
    for kind in (*KINDS, "libraries"):
        points = every.select(group=f"continual.{kind}")
        # a built-in name is never taken over by another package, whose class can still be named by its path
        last = sorted(points, key=lambda point: (point.name, point.value.startswith("continual.")))
        found[kind] = {point.name: point for point in last}
    return found


def registered(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    """What is registered under a kind, by name."""
    return _registered()[kind]


def find(kind: str, name: str) -> type[Configured]:
    """The class of a registered name or of a path; :class:`~continual.errors.UnknownName` where there is none."""
    points = registered(kind)
    if kind == "strategies" and name not in points and name.partition(":")[0] in registered("libraries"):
        return _of_library(name)
    found = loaded(KINDS[kind], name, points[name].value if name in points else _path(kind, name))
    if not (isinstance(found, type) and issubclass(found, Configured)):
        what = getattr(found, "__name__", repr(found))
        raise UnknownName(f"{KINDS[kind]} '{name}' is {what}, not a class with options (of continual.Strategy, ...)")
    if name in points:
        _names[kind, found] = name
    return found


def loaded(what: str, name: str, path: str) -> Any:
    """What a path, ``module:attribute``, names; :class:`~continual.errors.UnknownName` where it cannot be loaded."""
    module, _, attribute = path.partition(":")
    try:
        # our own modules use torch and numpy inside functions only; a foreign one may do as it likes
        with deferred() if module.startswith("continual.") else contextlib.nullcontext():
            found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a foreign module may raise anything when it is imported
        reason = f"{type(error).__name__}: {error}{_source_hint(error)}"
        raise UnknownName(f"{what} '{name}' cannot be loaded: {reason}") from error
    return found


def _of_library(name: str) -> type[Configured]:
    """A strategy of another library, ``library:Name``."""
    library, _, rest = name.partition(":")
    if not rest:
        raise UnknownName(f"'{name}' is a library: name one of its strategies, as in {library}:NAME")
    theirs = cast(type[Configured], registered("libraries")[library].load()(rest))
    _names["strategies", theirs] = name
    return theirs


def _path(kind: str, name: str) -> str:
    """A name that is not registered, which has to be a path."""
    points, (first, _, rest) = registered(kind), name.partition(":")
    if first in points:
        known = options_of(find(kind, first))
        usual = f"{rest}=VALUE" if rest in known else f"OPTION=VALUE (it has {choices(known)})"
        instead = _as_option(kind, rest, first) or f"to give an option write {first}:{usual}"
        raise BadOption(f"'{name}': {instead}; a class of a file of your own takes another name than '{first}' for the "
                        f"file, as that {KINDS[kind]} is registered")  # fmt: skip
    if first.endswith(".py"):
        path = f"{first.removesuffix('.py')}:{rest or 'Class'}"
        raise UnknownName(f"no {KINDS[kind]} is named '{name}'; a class of a file of the current folder is named by "
                          f"module and class, as in {path}")  # fmt: skip
    if ":" not in name:
        raise unknown(KINDS[kind], name, points, _as_option(kind, name))
    return name


def _options(kind: str) -> Iterator[tuple[str, Option]]:
    """Every option of everything of a kind, with the name of what has it."""
    for name in registered(kind):
        with contextlib.suppress(Mistake):  # what cannot be loaded has none
            yield from ((name, known) for known in options_of(find(kind, name)).values())


def having(kind: str, option: str) -> list[str]:
    """What of a kind has an option of this name."""
    return [name for name, known in _options(kind) if known.name == option]


def _as_option(kind: str, word: str, of: str | None = None) -> str:
    """What to write where a word was given as a name that an option of something of a kind (or only ``of``) takes."""
    found = [f"{name}:{known.name}={word}" for name, known in _options(kind)
             if word in known.words and of in (name, None)]  # fmt: skip
    return f"write {' or '.join(found[:FEW])}" if found else ""


def name_of(kind: str, cls: type) -> str:
    """The registered name of a class (under which it was found, where it has several), or its path."""
    if (kind, cls) in _names:
        return _names[kind, cls]
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, point in registered(kind).items() if point.value == path), path)


def code_of(cls: type) -> dict[str, str | None]:
    """The SHA-256 of each file that a foreign class and its bases are written in, by module; none where there is none.

    And of the modules beside the class's own that this imports, and so on. Built-in classes, and what PyTorch and
    Python bring, have a version instead.
    """
    modules = [base.__module__ for base in cls.__mro__ if not _has_a_version(base.__module__)]
    sources = {name: _file(name) for name in modules} | (_sources(modules[0]) if modules else {})
    return {
        name: hashlib.sha256(sources[name].read_bytes()).hexdigest() if sources[name].is_file() else None
        for name in sorted(sources)
    }


def _has_a_version(name: str) -> bool:
    """Whether a module is one of the :data:`OWN` packages' or Python's, though not one of its name beside a script."""
    if name.partition(".")[0] in OWN:
        return True
    file = _file(name).resolve()
    return PYTHON in file.parents and not any(map(file.parts.count, INSTALLED))


def _file(name: str) -> Path:
    """The file of a module; of one that has none, a path to no file."""
    return Path(getattr(sys.modules.get(name), "__file__", None) or "")


def _sources(name: str) -> dict[str, Path]:
    """The files of a module, and of those in its package, or else in its folder, that it imports, and so on.

    It goes by what is written alone, so that it is the same whatever was imported so far.
    """
    file, package = _file(name), getattr(sys.modules.get(name), "__package__", None) or ""
    if not file.is_file():
        return {}
    root = file.resolve().parents[package.count(".") + 1 if package else 0]
    found: dict[str, Path] = {}
    todo = [(name, file, package)]
    for one, path, within in todo:
        if one in found or not path.is_file():
            continue
        found[one] = path
        for other in _imported(path, within):
            top, place = other.partition(".")[0], root.joinpath(*other.split("."))
            if top == package.partition(".")[0] if package else top not in OWN and root.name not in INSTALLED:
                todo += [(other, place / "__init__.py", other), (other, Path(f"{place}.py"), other.rpartition(".")[0])]
    return found


def _imported(file: Path, package: str) -> list[str]:
    """What may be a module of what a file in a package imports, with the packages that it is in."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python has said what it has to say of it
            tree = ast.parse(files.read_bytes(file))
    except (OSError, ValueError, SyntaxError):  # it is no source
        return []
    found = [one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            whole = ".".join((*above, *([node.module] if node.module else [])))
            found += [whole, *(f"{whole}.{one.name}" for one in node.names)]
    return [each for one in found for each in itertools.accumulate(one.split("."), "{}.{}".format)]


@functools.cache
def own_code() -> dict[str, str]:
    """The start of the SHA-256 of each source file of this package, by module."""
    found: dict[str, str] = {}
    for package in ("continual", *(f"continual.{kind}" for kind in MAPPED)):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for file in sorted(Path(folder).rglob("*.py")):
                name = ".".join((package, *file.relative_to(folder).with_suffix("").parts))
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return found


def _source_hint(error: Exception) -> str:
    """What to do where Python has taken the bare source folder for the package."""
    name = getattr(error, "name", None) or ""
    if not name.startswith("continual."):
        return ""
    return (
        f"; Python took {Path(__file__).parent} for the package: start it from another folder, or install with "
        "'pip install -e .'"
    )


def config_files(kind: str) -> dict[str, Path]:
    """The packaged files ``configs/<kind>/<name>.yaml`` by name."""
    folder = Path(str(importlib.resources.files("continual.configs"))) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_text(path: Path) -> str:
    """A text file's content, or :class:`~continual.errors.BadFolder`."""
    try:
        return files.read_text(path)
    except (OSError, ValueError) as error:
        raise BadFolder(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


SLOW = ("torch", "numpy")
"""Modules that take long to import."""


class Deferred(types.ModuleType):
    """A stand-in for a module that is slow to import: the first use of anything in it imports it."""

    def __getattr__(self, name: str) -> Any:
        for other in [name for name, one in sys.modules.items() if isinstance(one, Deferred)]:
            del sys.modules[other]  # what is imported now wants the modules themselves
        with _for_good():
            module = importlib.import_module(self.__name__)
        self.__dict__.update(module.__dict__)
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        return getattr(module, name)


@contextlib.contextmanager
def _for_good() -> Iterator[None]:
    """What is made within it stays until the process ends, so garbage is looked for neither meanwhile nor in it later.

    Nor in what was there before, of which little is garbage. Of PyTorch these are 180,000 objects. To look through them
    while it is imported, at times afterwards and when the process ends takes a quarter of the time of importing it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Inside, ``import torch`` and ``import numpy`` give a :class:`Deferred` stand-in, unless they are imported.

    So the command line can list strategies and refuse mistakes without waiting for them. Modules imported inside must
    not import parts of them (``import torch.nn``) or take names from them (``from torch import nn``). ``names``: of
    others than these two.
    """
    stand_ins = {name: Deferred(name) for name in names or SLOW if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
