"""CIFAR-10 to ImageNet: first the classes of the one, then those of the other.

Alone, the script trains the CNN as ``configs/runs/cifar10-imagenet.yaml`` says, and ends in a table, in the accuracy on
both after each and in ``cifar10-imagenet.png``. With ``--limit 300`` it learns 300 training images of each class at
most: work for two processor cores, where all images are work for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from continual.benchmarks.split_cifar import SplitCIFAR10
from continual.benchmarks.split_imagenet import SplitImageNet
from continual.errors import BadOption
from continual.options import option
from continual.streams.benchmark import Sequence, SplitBenchmark


@dataclass(frozen=True)
class CIFAR10ImageNet(Sequence):
    """CIFAR-10's classes, then those of ImageNet or a subset of it, at a common resolution."""

    tasks: tuple[int, ...] = option((1, 1), "number of tasks of CIFAR-10 and of ImageNet", ge=1)
    folder: str = option("imagenet", "as for split-imagenet")
    subset: str = option("all", "as for split-imagenet")
    normalize: Literal["unit", "standard", "channel", "imagenet"] = option(
        "channel", "as for other streams; by default each channel has mean 0 and deviation 1 over both"
    )
    skip: bool = option(False, "leave out image files that cannot be decoded, instead of stopping")

    def check(self) -> None:
        """There are two numbers of tasks, and the list of classes can be read."""
        super().check()
        if len(self.tasks) != 2:
            raise BadOption(f"tasks={'-'.join(map(str, self.tasks))}: give two numbers, such as 5-5")
        self.parts()

    def parts(self) -> tuple[SplitBenchmark, ...]:
        """See :meth:`Sequence.parts`."""
        first, second = self.tasks
        return (
            SplitCIFAR10(tasks=first, size=self.size, skip=self.skip),
            SplitImageNet(tasks=second, folder=self.folder, subset=self.subset, size=self.size, skip=self.skip),
        )


if __name__ == "__main__":
    import continual

    continual.script("cifar10-imagenet", picture="cifar10-imagenet.png", matrix=True)
