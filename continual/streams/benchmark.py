"""What a file in ``benchmarks/`` derives from: a data set and options, from which each seed gets its stream."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from continual.errors import BadOption
from continual.options import Configured, option

if TYPE_CHECKING:
    from continual.streams.data import Data
    from continual.streams.stream import Stream


@functools.lru_cache(maxsize=2)
def _load(name: str, root: Path) -> Data:
    from continual.streams.data import load

    return load(name, root)


@dataclass(frozen=True)
class Benchmark(Configured):
    """A recipe for streams; ``data`` names the data set."""

    data: ClassVar[str]

    scenario: Literal["task", "domain", "class"] = option(
        "class", "task: the task is told at test time; domain: all tasks share their outputs; class: nothing is told"
    )
    train_outputs: Literal["default", "task", "seen", "all"] = option(
        "default", "outputs active in training; default: task in the task scenario, seen in class, all in domain"
    )
    test_outputs: Literal["default", "task", "seen", "all"] = option("default", "outputs active in evaluation")
    validation: float = option(0.0, "fraction of each class's training rows set aside for validation", ge=0, lt=1)
    validation_seed: int = option(0, "which rows are set aside", ge=0, lt=2**31)
    normalize: Literal["unit", "standard"] = option("unit", "pixels to [0, 1], or to mean 0 and deviation 1")
    pad: int = option(0, "black pixels added on each side", ge=0, le=64)
    limit: int | None = option(None, "at most so many training rows of each class", ge=1)

    def stream(self, seed: int, root: Path) -> Stream:
        """The stream of one seed, its data read from (or through) the data root."""
        return self.build(_load(self.data, root), seed=seed, **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """The options as arguments of :meth:`build`."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in self.values().items()}

    def build(self, data: Data, **options: Any) -> Stream:
        """The stream from loaded data."""
        raise NotImplementedError


@dataclass(frozen=True)
class SplitBenchmark(Benchmark):
    """Tasks that divide the classes."""

    tasks: int = option(5, "number of tasks", ge=1)
    order: Literal["natural", "seed"] | tuple[int, ...] = option(
        "natural", "class order: natural, drawn anew for each seed, or given as in 3-1-4-0-2", ge=0
    )

    def build(self, data: Data, **options: Any) -> Stream:
        """See :func:`continual.streams.stream.split`."""
        from continual.streams.stream import split

        return split(data, **options)


@dataclass(frozen=True)
class PermutedBenchmark(Benchmark):
    """Tasks that all have every class, each with its own order of the pixels (the first task: as they are)."""

    scenario: Literal["task", "domain", "class"] = option("domain", "as for a split stream")
    tasks: int = option(10, "number of tasks", ge=1)
    permutation_seed: int | None = option(
        None, "where the orders are drawn from; none: the seed of the run", ge=0, lt=2**31
    )

    def build(self, data: Data, **options: Any) -> Stream:
        """See :func:`continual.streams.stream.permuted`."""
        from continual.streams.stream import permuted

        return permuted(data, **options)


@dataclass(frozen=True)
class RotatedBenchmark(Benchmark):
    """Tasks that all have every class, each with the images turned by one angle."""

    scenario: Literal["task", "domain", "class"] = option("domain", "as for a split stream")
    angles: tuple[int, ...] = option((0, 36, 72, 108, 144), "counter-clockwise degrees, one per task", ge=0, lt=360)

    def check(self) -> None:
        """There is a task."""
        if not self.angles:
            raise BadOption("angles: give at least one, such as 0-45-90")

    def build(self, data: Data, **options: Any) -> Stream:
        """See :func:`continual.streams.stream.rotated`."""
        from continual.streams.stream import rotated

        return rotated(data, **options)
