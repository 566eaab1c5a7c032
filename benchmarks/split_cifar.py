"""Split CIFAR-10 and CIFAR-100: tasks that divide the classes of small photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.options import option
from continual.streams.benchmark import ImageBenchmark


@dataclass(frozen=True)
class SplitCIFAR10(ImageBenchmark):
    """Photographs of ten kinds of things, 32x32 in colour (Krizhevsky 2009), divided by class."""

    data: ClassVar[str] = "cifar10"

    size: int | None = option(32, "pixels of the images' sides; none: as they are", ge=1, le=1024)


@dataclass(frozen=True)
class SplitCIFAR100(ImageBenchmark):
    """Photographs of a hundred kinds of things, 32x32 in colour (Krizhevsky 2009), divided by class."""

    data: ClassVar[str] = "cifar100"

    size: int | None = option(32, "pixels of the images' sides; none: as they are", ge=1, le=1024)
    tasks: int = option(10, "number of tasks", ge=1)


if __name__ == "__main__":
    import continual

    continual.script("split-cifar10")
