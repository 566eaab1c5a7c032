"""Our networks as PyTorch modules with a state of their own, which is what avalanche-lib trains."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from continual.errors import BadChain
from continual.learning.models import LinearNet, Net, Out
from continual.learning.modules import ModuleNet
from continual.learning.norms import BatchNorm

if TYPE_CHECKING:
    from torch import Tensor


class Plain(nn.Module):
    """An ordinary module: a body, which gives features, and a linear ``head``."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits


def plain(net: Net, theta: Tensor) -> Plain:
    """The network as an ordinary module of PyTorch's layers with the weights θ (P,).

    Raises :class:`~continual.errors.BadChain` for a network that no such module does the work of.
    """
    if isinstance(net, LinearNet):
        return _linear(net, theta)
    if not isinstance(net, ModuleNet) or net.how == "frozen" or any(one.count for one in net.norms.values()):
        raise BadChain("a strategy of avalanche-lib trains an ordinary network; give statistics=running, or another "
                       "model")  # fmt: skip
    whole = copy.deepcopy(net.module)
    values = {**net.kept, **net.parameters(theta.detach())}
    with torch.no_grad():
        for name, value in {**dict(whole.named_parameters()), **dict(whole.named_buffers())}.items():
            value.copy_(values[name])
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in net.trained)
    body: Any = _usual(whole.body, {f"body.{name}" for name in _names(net)}, "body")
    return Plain(body, whole.head).to(theta.dtype)


def _names(net: ModuleNet) -> set[str]:
    """The BatchNorm layers that are trained, by their names within the body."""
    trained = {id(one) for one in net.norms.values()}
    return {name.removeprefix("body.") for name, one in net.module.named_modules() if id(one) in trained}


def _linear(net: LinearNet, theta: Tensor) -> Plain:
    layers: list[nn.Module] = [nn.Flatten()]
    for name in net.names:
        outputs, inputs = net.shapes[f"{name}.weight"]
        # its weights are not drawn, only to be written over: that would move the global generator
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=theta.dtype), nn.ReLU()]
    head = layers[-2]
    assert isinstance(head, nn.Linear)
    made = Plain(nn.Sequential(*layers[:-2]), head)
    nn.utils.vector_to_parameters(theta.detach().clone(), made.parameters())
    return made.to(theta.device)


class AnyBatchNorm(nn.BatchNorm2d):
    """PyTorch's, of features, signals or images."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""


def _usual(module: nn.Module, trained: set[str], path: str) -> nn.Module:
    """The same module with PyTorch's BatchNorm in place of ours, which needs a step that looks after it."""
    if isinstance(module, BatchNorm) and path in trained:
        new = AnyBatchNorm(len(module.weight), eps=module.eps, momentum=module.momentum)
        new.load_state_dict(module.state_dict() | {"num_batches_tracked": torch.zeros((), dtype=torch.int64)})
        return new
    for name, child in module.named_children():
        setattr(module, name, _usual(child, trained, f"{path}.{name}"))
    return module


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
        size = 0
        for name, value in zip(self.names, net.parameters(theta.detach().clone()).values(), strict=True):
            size += value.numel()
            if size > net.size - net.statistics:
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
