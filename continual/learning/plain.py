"""Our networks as ordinary modules of PyTorch, with weights of their own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from continual.errors import BadChain
from continual.learning.models import Extended, LinearNet, Net
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
    """The network as an ordinary module of PyTorch's layers with the weights θ (P,), as it is trained further.

    Its BatchNorm is PyTorch's. Raises :class:`~continual.errors.BadChain` for a network that no such module does the
    work of: one whose units are gated by task, which has running statistics for each task, or which is made of no
    module.
    """
    if isinstance(net, Extended) and type(net).forward is Extended.forward:
        return plain(net.inner, net.inside(theta))
    if isinstance(net, LinearNet):
        return _linear(net, theta)
    if not isinstance(net, ModuleNet) or any(one.count for one in net.norms.values()):
        raise BadChain(f"no ordinary module does the work of a {type(net).__name__} that is made of none, or whose "
                       "units or statistics differ by task; give another model, or statistics=running")  # fmt: skip
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
