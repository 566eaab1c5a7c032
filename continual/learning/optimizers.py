"""The optimisers and learning-rate schedules that a run can name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from continual.errors import BadOption
from continual.options import Configured, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Optimizer(Configured):
    """How θ follows its gradient; ``make`` gives PyTorch's own optimiser over the one tensor θ."""

    lr: float = option(0.001, "learning rate", ge=0)
    weight_decay: float = option(0.0, "weight decay, added to the gradient (adamw: taken from the weights)", ge=0)

    def make(self, theta: Tensor) -> torch.optim.Optimizer:
        """An optimiser of θ with a fresh state."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent."""

    lr: float = option(0.01, "learning rate", ge=0)
    momentum: float = option(0.0, "momentum", ge=0, lt=1)
    nesterov: bool = option(False, "Nesterov's form of momentum")

    def check(self) -> None:
        """Nesterov's form is one of momentum."""
        if self.nesterov and not self.momentum:
            raise BadOption("sgd: nesterov=true without momentum does nothing; give momentum, such as 0.9")

    def make(self, theta: Tensor) -> torch.optim.Optimizer:
        """See :class:`Optimizer`."""
        return torch.optim.SGD([theta], self.lr, self.momentum, 0, self.weight_decay, self.nesterov, fused=True)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015)."""

    beta1: float = option(0.9, "decay of the mean gradient", ge=0, lt=1)
    beta2: float = option(0.999, "decay of the mean squared gradient", ge=0, lt=1)
    eps: float = option(1e-8, "added to the root of the mean squared gradient", gt=0)

    def arguments(self, theta: Tensor) -> dict[str, Any]:
        """What PyTorch's Adam and AdamW take."""
        return {
            "lr": self.lr, "betas": (self.beta1, self.beta2), "eps": self.eps, "weight_decay": self.weight_decay,
            "fused": True, "capturable": theta.is_cuda,
        }  # fmt: skip

    def make(self, theta: Tensor) -> torch.optim.Optimizer:
        """See :class:`Optimizer`."""
        return torch.optim.Adam([theta], **self.arguments(theta))


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    weight_decay: float = option(0.01, "weight decay, taken from the weights", ge=0)

    def make(self, theta: Tensor) -> torch.optim.Optimizer:
        """See :class:`Optimizer`."""
        return torch.optim.AdamW([theta], **self.arguments(theta))


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011)."""

    lr: float = option(0.01, "learning rate", ge=0)
    eps: float = option(1e-10, "added to the root of the summed squared gradient", gt=0)

    def make(self, theta: Tensor) -> torch.optim.Optimizer:
        """See :class:`Optimizer`."""
        fused = theta.device.type == "cpu"  # PyTorch has no fused Adagrad on a GPU
        return torch.optim.Adagrad([theta], self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused or None)


@dataclass(frozen=True)
class Schedule(Configured):
    """The learning rate within each task, as a factor of the optimiser's."""

    def factor(self, step: int, steps: int) -> float:
        """The factor at step 0..steps-1."""
        return 1.0


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate throughout."""


@dataclass(frozen=True)
class Cosine(Schedule):
    """From the full rate to ``floor`` along half a cosine (Loshchilov and Hutter 2017)."""

    floor: float = option(0.0, "the factor that is approached", ge=0, le=1)

    def factor(self, step: int, steps: int) -> float:
        """See :class:`Schedule`."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class Linear(Schedule):
    """From the full rate to ``floor`` along a line."""

    floor: float = option(0.0, "the factor that is approached", ge=0, le=1)

    def factor(self, step: int, steps: int) -> float:
        """See :class:`Schedule`."""
        return 1 - (1 - self.floor) * step / steps


@dataclass(frozen=True)
class Step(Schedule):
    """The rate is multiplied by ``gamma`` after each of ``parts`` equal parts of a task but the last."""

    gamma: float = option(0.1, "factor between the parts", ge=0, le=1)
    parts: int = option(2, "number of parts", ge=1)

    def factor(self, step: int, steps: int) -> float:
        """See :class:`Schedule`."""
        return float(self.gamma ** (step * self.parts // steps))
