"""Split MNIST and its relatives: tasks that divide the ten classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.streams.benchmark import SplitBenchmark


@dataclass(frozen=True)
class SplitMNIST(SplitBenchmark):
    """Handwritten digits, 28x28, divided by class (Zenke et al. 2017)."""

    data: ClassVar[str] = "mnist"


@dataclass(frozen=True)
class SplitFashionMNIST(SplitBenchmark):
    """Zalando's articles of clothing (Xiao et al. 2017), 28x28, divided by class."""

    data: ClassVar[str] = "fashion-mnist"


@dataclass(frozen=True)
class SplitKMNIST(SplitBenchmark):
    """Cursive Japanese characters (Clanuwat et al. 2018), 28x28, divided by class."""

    data: ClassVar[str] = "kmnist"


if __name__ == "__main__":
    import continual

    continual.script("split-mnist")
