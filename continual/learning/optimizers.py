"""The optimisers and learning-rate schedules that a run can name."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from continual.errors import BadOption
from continual.options import Configured, option

if TYPE_CHECKING:
    from torch import Tensor


State = dict[str, "list[Tensor]"]
AT_ONCE, STREAMS = 36, 8
"""On a GPU a fused kernel of PyTorch's takes so many pieces of θ at once, and so many kernels go side by side."""
ALIGNED = 64
"""Numbers are read by so many at most."""


@dataclass(frozen=True)
class Optimizer(Configured):
    """How θ follows its gradient: PyTorch's rules and fused kernels.

    They are called as functions of lists: pieces of θ, of its gradient, and for each name of the state. PyTorch's
    optimiser objects import its compiler at their first step, which takes longer than a small run.
    """

    lr: float = option(0.001, "learning rate", ge=0)
    weight_decay: float = option(0.0, "weight decay, added to the gradient (adamw: taken from the weights)", ge=0)

    def start(self, theta: list[Tensor]) -> State:
        """The state before the first step of the pieces of θ."""
        raise NotImplementedError

    def step(self, theta: list[Tensor], gradient: list[Tensor], state: State, lr: float | Tensor) -> None:
        """Change θ and the state in place; a rate that is a tensor () is read on the device."""
        raise NotImplementedError

    def of(self, parameters: Any) -> torch.optim.Optimizer:
        """PyTorch's object of the same rule, for loops that are not ours."""
        raise NotImplementedError

    @property
    def moves_unused(self) -> bool:
        """Whether weights without a gradient may move: by a memory of former ones, or by weight decay."""
        return True


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent."""

    lr: float = option(0.01, "learning rate", ge=0)
    momentum: float = option(0.0, "momentum", ge=0, lt=1)
    nesterov: bool = option(False, "Nesterov's form of momentum")

    @property
    def moves_unused(self) -> bool:
        """See :meth:`Optimizer.moves_unused`."""
        return self.momentum > 0 or self.weight_decay > 0

    def check(self) -> None:
        """Nesterov's form is one of momentum."""
        if self.nesterov and not self.momentum:
            raise BadOption("sgd: nesterov=true without momentum does nothing; give momentum, such as 0.9")

    def start(self, theta: list[Tensor]) -> State:
        """``velocity`` where there is momentum."""
        return {"velocity": _zeros(theta)} if self.momentum else {}

    def step(self, theta: list[Tensor], gradient: list[Tensor], state: State, lr: float | Tensor) -> None:
        """See :meth:`Optimizer.step`."""
        from torch.optim.sgd import sgd

        def kernel(theta: list[Tensor], gradient: list[Tensor], velocity: list[Tensor | None]) -> None:
            sgd(
                theta, gradient, velocity, fused=True, lr=lr, momentum=self.momentum, dampening=0.0,
                weight_decay=self.weight_decay, nesterov=self.nesterov, maximize=False,
            )  # fmt: skip

        # a velocity that begins at 0 is the first gradient after the first step, as in PyTorch
        _side_by_side(kernel, theta, gradient, state.get("velocity", [None] * len(theta)))

    def of(self, parameters: Any) -> torch.optim.Optimizer:
        """See :meth:`Optimizer.of`."""
        return torch.optim.SGD(parameters, self.lr, self.momentum, 0, self.weight_decay, self.nesterov, fused=True)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015)."""

    beta1: float = option(0.9, "decay of the mean gradient", ge=0, lt=1)
    beta2: float = option(0.999, "decay of the mean squared gradient", ge=0, lt=1)
    eps: float = option(1e-8, "added to the root of the mean squared gradient", gt=0)

    def start(self, theta: list[Tensor]) -> State:
        """``mean``, ``square`` and ``count``, the steps done."""
        count = torch.zeros((), dtype=torch.float32, device=theta[0].device)
        return {"mean": _zeros(theta), "square": _zeros(theta), "count": [count]}

    def step(self, theta: list[Tensor], gradient: list[Tensor], state: State, lr: float | Tensor) -> None:
        """See :meth:`Optimizer.step`."""
        (count,) = state["count"]
        count.add_(1)

        def kernel(theta: list[Tensor], gradient: list[Tensor], mean: list[Tensor], square: list[Tensor]) -> None:
            # PyTorch's function around its kernel takes as long as the kernel, for a small θ
            self._kernel(
                theta, gradient, mean, square, [], [count] * len(theta), amsgrad=False, lr=lr,
                beta1=self.beta1, beta2=self.beta2, weight_decay=self.weight_decay, eps=self.eps, maximize=False,
            )  # fmt: skip

        _side_by_side(kernel, theta, gradient, state["mean"], state["square"])

    @property
    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adam_

    def _arguments(self) -> dict[str, Any]:
        betas = (self.beta1, self.beta2)
        return {"lr": self.lr, "betas": betas, "eps": self.eps, "weight_decay": self.weight_decay, "fused": True}

    def of(self, parameters: Any) -> torch.optim.Optimizer:
        """See :meth:`Optimizer.of`."""
        return torch.optim.Adam(parameters, **self._arguments())


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    weight_decay: float = option(0.01, "weight decay, taken from the weights", ge=0)

    @property
    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adamw_

    def of(self, parameters: Any) -> torch.optim.Optimizer:
        """See :meth:`Optimizer.of`."""
        return torch.optim.AdamW(parameters, **self._arguments())


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011)."""

    lr: float = option(0.01, "learning rate", ge=0)
    eps: float = option(1e-10, "added to the root of the summed squared gradient", gt=0)

    def start(self, theta: list[Tensor]) -> State:
        """``sum`` of squared gradients and ``count``, the steps done."""
        # PyTorch counts on the host where it has no fused kernel
        return {"sum": _zeros(theta), "count": [torch.zeros((), dtype=torch.float32) for _ in theta]}

    def step(self, theta: list[Tensor], gradient: list[Tensor], state: State, lr: float | Tensor) -> None:
        """See :meth:`Optimizer.step`."""
        from torch.optim.adagrad import adagrad

        def kernel(theta: list[Tensor], gradient: list[Tensor], sums: list[Tensor], counts: list[Tensor]) -> None:
            adagrad(
                theta, gradient, sums, counts, fused=_fused_adagrad(theta[0]), lr=lr,
                weight_decay=self.weight_decay, lr_decay=0.0, eps=self.eps, maximize=False,
            )  # fmt: skip

        _side_by_side(kernel, theta, gradient, state["sum"], state["count"])

    def of(self, parameters: Any) -> torch.optim.Optimizer:
        """See :meth:`Optimizer.of`."""
        given = list(parameters)
        fused = _fused_adagrad(given[0])
        return torch.optim.Adagrad(given, self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused)


def _side_by_side(kernel: Callable[..., None], *given: list[Any]) -> None:
    """A fused kernel on pieces of θ and what belongs to them: a GPU does those that it takes at once beside others."""
    theta = given[0]
    if not theta[0].is_cuda or len(theta) <= AT_ONCE:
        kernel(*given)
        return
    groups = [[one[start : start + AT_ONCE] for one in given] for start in range(0, len(theta), AT_ONCE)]
    now = torch.cuda.current_stream(theta[0].device)
    streams = _streams(theta[0].device, threading.get_ident())[: len(groups)]
    for stream in streams:
        stream.wait_stream(now)
    for group, stream in zip(groups, itertools.cycle(streams), strict=False):
        with torch.cuda.stream(stream):
            kernel(*group)
    for stream in streams:
        now.wait_stream(stream)


@functools.cache
def _streams(device: torch.device, thread: int) -> list[torch.cuda.Stream]:
    """A thread's own: what another does is not to be recorded with its steps."""
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]


def _zeros(theta: list[Tensor]) -> list[Tensor]:
    """Zeros like all pieces, in one tensor: many are made as fast as one."""
    rooms = [-(-piece.numel() // ALIGNED) * ALIGNED for piece in theta]
    made = torch.zeros(sum(rooms), dtype=theta[0].dtype, device=theta[0].device).split(rooms)
    return [zeros[: piece.numel()].view_as(piece) for zeros, piece in zip(made, theta, strict=True)]


def _fused_adagrad(theta: Tensor) -> bool | None:
    return True if theta.device.type == "cpu" else None  # PyTorch has no fused Adagrad on a GPU


@dataclass(frozen=True)
class Schedule(Configured):
    """The learning rate within each task, as a factor of the optimiser's."""

    @property
    def varies(self) -> bool:
        """Whether the factor is not the same at all steps of all tasks."""
        return type(self).factor is not Schedule.factor

    def factor(self, step: int, steps: int) -> float:
        """The factor at step 0..steps-1."""
        return 1.0


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate throughout."""


@dataclass(frozen=True)
class Warmed(Schedule):
    """What schedules share that may rise along a line to the full rate before they fall."""

    warmup: float = option(0.0, "part of a task's steps in which the rate rises to the full one", ge=0, lt=1)

    def factor(self, step: int, steps: int) -> float:
        """See :class:`Schedule`."""
        rising = round(self.warmup * steps)
        return (step + 1) / (rising + 1) if step < rising else self.fallen(step - rising, steps - rising)

    def fallen(self, step: int, steps: int) -> float:
        """The factor at step 0..steps-1 of those after the rise."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cosine(Warmed):
    """From the full rate to ``floor`` along half a cosine (Loshchilov and Hutter 2017)."""

    floor: float = option(0.0, "the factor that is approached", ge=0, le=1)

    def fallen(self, step: int, steps: int) -> float:
        """See :class:`Warmed`."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class Linear(Warmed):
    """From the full rate to ``floor`` along a line."""

    floor: float = option(0.0, "the factor that is approached", ge=0, le=1)

    def fallen(self, step: int, steps: int) -> float:
        """See :class:`Warmed`."""
        return 1 - (1 - self.floor) * step / steps


@dataclass(frozen=True)
class Step(Warmed):
    """The rate is multiplied by ``gamma`` after each of ``parts`` equal parts of a task but the last."""

    gamma: float = option(0.1, "factor between the parts", ge=0, le=1)
    parts: int = option(2, "number of parts", ge=1)

    def fallen(self, step: int, steps: int) -> float:
        """See :class:`Warmed`."""
        return float(self.gamma ** (step * self.parts // steps))


@dataclass(frozen=True)
class Milestones(Warmed):
    """The rate is multiplied by ``gamma`` at places of a task: ``at=0.7-0.9``, epochs 49 and 63 of 70, is iCaRL's."""

    at: tuple[float, ...] = option((0.7, 0.9), "places, as parts of the task's steps after a warm-up", ge=0.001, lt=1)
    gamma: float = option(0.1, "factor at each", ge=0, le=1)

    def fallen(self, step: int, steps: int) -> float:
        """See :class:`Warmed`."""
        return float(self.gamma ** sum(step >= max(1, round(place * steps)) for place in self.at))
