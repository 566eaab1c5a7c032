"""The built-in benchmarks, one file for each family of streams, each also a script."""

from continual.benchmarks.permuted_mnist import PermutedFashionMNIST, PermutedKMNIST, PermutedMNIST
from continual.benchmarks.rotated_mnist import RotatedFashionMNIST, RotatedKMNIST, RotatedMNIST
from continual.benchmarks.split_digits import SplitDigits
from continual.benchmarks.split_mnist import SplitFashionMNIST, SplitKMNIST, SplitMNIST

__all__ = [
    "PermutedFashionMNIST",
    "PermutedKMNIST",
    "PermutedMNIST",
    "RotatedFashionMNIST",
    "RotatedKMNIST",
    "RotatedMNIST",
    "SplitDigits",
    "SplitFashionMNIST",
    "SplitKMNIST",
    "SplitMNIST",
]
