"""MNIST as one task, with a fifth of the training images set aside: is a network overfitting?

Alone, the script trains an MLP 784-128-10 as ``configs/runs/mnist.yaml`` says and follows its training, validation and
test accuracy epoch by epoch, in a table and in ``mnist.png``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.options import option
from continual.streams.benchmark import SplitBenchmark


@dataclass(frozen=True)
class MNIST(SplitBenchmark):
    """All of MNIST's handwritten digits as one task, with a fifth of the training images set aside for validation."""

    data: ClassVar[str] = "mnist"

    tasks: int = option(1, "number of tasks", ge=1)
    validation: float = option(0.2, "fraction of each class's training rows set aside for validation", ge=0, lt=1)


if __name__ == "__main__":
    import continual

    continual.script("mnist", picture="mnist.png")
