"""Permuted MNIST and its relatives: every task shows the pixels in an order of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.streams.benchmark import PermutedBenchmark


@dataclass(frozen=True)
class PermutedMNIST(PermutedBenchmark):
    """Handwritten digits, 28x28, in a new order of the pixels for each task (Goodfellow et al. 2013)."""

    data: ClassVar[str] = "mnist"


@dataclass(frozen=True)
class PermutedFashionMNIST(PermutedBenchmark):
    """Zalando's articles of clothing (Xiao et al. 2017), 28x28, in a new order of the pixels for each task."""

    data: ClassVar[str] = "fashion-mnist"


@dataclass(frozen=True)
class PermutedKMNIST(PermutedBenchmark):
    """Cursive Japanese characters (Clanuwat et al. 2018), 28x28, in a new order of the pixels for each task."""

    data: ClassVar[str] = "kmnist"


if __name__ == "__main__":
    import continual

    continual.script("permuted-mnist")
