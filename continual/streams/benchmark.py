"""What a file in ``benchmarks/`` derives from: a data set by name, from which each seed gets its stream."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from continual.streams.stream import Permuted, Rotated, Split, StreamOptions

if TYPE_CHECKING:
    from continual.streams.data import Data
    from continual.streams.stream import Stream


@functools.lru_cache(maxsize=2)
def _load(name: str, root: Path) -> Data:
    from continual.streams.data import load

    return load(name, root)


@dataclass(frozen=True)
class Benchmark(StreamOptions):
    """A recipe for streams; ``data`` names the data set."""

    data: ClassVar[str]

    def stream(self, seed: int, root: Path) -> Stream:
        """The stream of one seed, its data read from (or through) the data root."""
        return self.build(_load(self.data, root), seed)


@dataclass(frozen=True)
class SplitBenchmark(Split, Benchmark):
    """Tasks that divide the classes."""


@dataclass(frozen=True)
class PermutedBenchmark(Permuted, Benchmark):
    """Tasks that all have every class, each with its own order of the pixels (the first task: as they are)."""


@dataclass(frozen=True)
class RotatedBenchmark(Rotated, Benchmark):
    """Tasks that all have every class, each with the images turned by one angle."""
