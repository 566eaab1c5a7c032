"""The built-in benchmarks, one file for each family of streams, each also a script."""

from continual.benchmarks.cifar10_imagenet import CIFAR10ImageNet
from continual.benchmarks.mnist import MNIST
from continual.benchmarks.permuted_mnist import PermutedFashionMNIST, PermutedKMNIST, PermutedMNIST
from continual.benchmarks.rotated_mnist import RotatedFashionMNIST, RotatedKMNIST, RotatedMNIST
from continual.benchmarks.split_cifar import SplitCIFAR10, SplitCIFAR100
from continual.benchmarks.split_digits import SplitDigits
from continual.benchmarks.split_imagenet import SplitImageNet
from continual.benchmarks.split_mnist import SplitFashionMNIST, SplitKMNIST, SplitMNIST

__all__ = [
    "MNIST",
    "CIFAR10ImageNet",
    "PermutedFashionMNIST",
    "PermutedKMNIST",
    "PermutedMNIST",
    "RotatedFashionMNIST",
    "RotatedKMNIST",
    "RotatedMNIST",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitDigits",
    "SplitFashionMNIST",
    "SplitImageNet",
    "SplitKMNIST",
    "SplitMNIST",
]
