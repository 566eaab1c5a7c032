"""Split ImageNet: tasks that divide the classes of ImageNet, a subset of it, or any other class folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.options import option
from continual.streams.benchmark import FolderBenchmark


@dataclass(frozen=True)
class SplitImageNet(FolderBenchmark):
    """Photographs in class folders (ImageNet: Deng et al. 2009), resized and cut to squares, divided by class."""

    data: ClassVar[str] = "imagenet"

    size: int | None = option(64, "pixels of the images' sides; none: as they are", ge=1, le=1024)


if __name__ == "__main__":
    import continual

    continual.script("split-imagenet")
