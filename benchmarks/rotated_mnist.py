"""Rotated MNIST and its relatives: every task turns the images by an angle of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.streams.benchmark import RotatedBenchmark


@dataclass(frozen=True)
class RotatedMNIST(RotatedBenchmark):
    """Handwritten digits, 28x28, turned by a new angle for each task (Lopez-Paz and Ranzato 2017)."""

    data: ClassVar[str] = "mnist"


@dataclass(frozen=True)
class RotatedFashionMNIST(RotatedBenchmark):
    """Zalando's articles of clothing (Xiao et al. 2017), 28x28, turned by a new angle for each task."""

    data: ClassVar[str] = "fashion-mnist"


@dataclass(frozen=True)
class RotatedKMNIST(RotatedBenchmark):
    """Cursive Japanese characters (Clanuwat et al. 2018), 28x28, turned by a new angle for each task."""

    data: ClassVar[str] = "kmnist"


if __name__ == "__main__":
    import continual

    continual.script("rotated-mnist")
