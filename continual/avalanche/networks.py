"""Our networks as PyTorch modules with a state of their own, which is what avalanche-lib trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from continual.errors import BadChain, mistakes_of
from continual.learning import plain as ordinary
from continual.learning.models import Net, Out, last
from continual.learning.modules import ModuleNet

if TYPE_CHECKING:
    from torch import Tensor


def plain(net: Net, theta: Tensor) -> ordinary.Plain:
    """The network as avalanche-lib trains it, see :func:`continual.learning.plain.plain`.

    Raises :class:`~continual.errors.BadChain` also where running statistics are to stay as they are.
    """
    with mistakes_of("a strategy of avalanche-lib trains an ordinary network"):
        if isinstance(net, ModuleNet) and net.how == "frozen":
            raise BadChain("it does not keep statistics as they are; give statistics=running")
        return ordinary.plain(net, theta)


class Functional(nn.Module):
    """Any of our networks as a module: θ cut into parameters, and the running statistics behind them as buffers.

    ``tasks`` (B,) are told before a forward pass by who looks after the strategy, ``index`` and ``fixed`` (whether
    running statistics stay as they are) before a task; ``out`` is the last.
    """

    def __init__(self, net: Net, theta: Tensor) -> None:
        super().__init__()
        self.net: Net = net
        self.tasks: Tensor | None = None
        self.index, self.fixed = 0, False
        self.out: Out | None = None
        self.names = [name.replace(".", "_") for name in net.shapes]
        statistics = last(net)
        for name, (own, value) in zip(self.names, net.parameters(theta.detach()).items(), strict=True):
            if own in statistics:
                self.register_buffer(name, value.clone())
            else:
                self.register_parameter(name, nn.Parameter(value.clone()))

    def parts(self) -> list[Tensor]:
        """The tensors that make up θ, in its order."""
        return [getattr(self, name) for name in self.names]

    def theta(self) -> Tensor:
        """θ (P,), through which gradients go to the parameters."""
        parts = self.parts()
        return self.net.attach(torch.cat([part.reshape(-1) for part in parts]), parts)

    def write(self, theta: Tensor) -> None:
        """Take the values of θ."""
        with torch.no_grad():
            for part, value in zip(self.parts(), theta.split(self.net.sizes), strict=True):
                part.copy_(value.view_as(part))

    def forward(self, x: Tensor) -> Tensor:
        """The logits; while training, running statistics move."""
        theta = self.theta()
        tasks = torch.full((len(x),), self.index, device=x.device) if self.tasks is None else self.tasks
        if not self.training:
            self.out = self.net.forward(theta, x, tasks)
            return self.out.logits
        self.out, statistics = self.net.learn(theta, x, tasks, self.fixed)
        if statistics is not None:
            moved = [part for part in self.parts() if not isinstance(part, nn.Parameter)]
            for part, value in zip(moved, statistics.detach().split([part.numel() for part in moved]), strict=True):
                part.copy_(value.view_as(part))
        return self.out.logits
