"""Our networks as ordinary modules of PyTorch, with weights of their own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from continual.errors import BadChain
from continual.learning.models import Extended, LinearNet, Net
from continual.learning.modules import ModuleNet
from continual.learning.norms import exchanged

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
    work of: one whose units are gated by task, which has a strategy's head, a forward of its own or running statistics
    for each task, or which is made of no module.
    """
    if isinstance(net, Extended):
        if (type(net).forward, type(net).answer) != (Extended.forward, Extended.answer):
            raise BadChain(f"no ordinary module does the work of the strategy's {type(net).__name__}, whose units "
                           "differ by task or whose head is its own; what is learnt has logits and features itself"
                           )  # fmt: skip
        return plain(net.inner, net.inside(theta))
    if isinstance(net, LinearNet) and net._goes_as(LinearNet):
        return _linear(net, theta)
    if (
        not isinstance(net, ModuleNet) or not net.through_its_parts
        or any(one.count for one in net.norms.values())
    ):  # fmt: skip
        raise BadChain(f"no ordinary module does the work of a {type(net).__name__} that is made of none, that has a "
                       "forward of its own, or whose units or statistics differ by task; give another model, or "
                       "statistics=running")  # fmt: skip
    whole = copy.deepcopy(net.module).to(theta.dtype)
    values = {**net.kept, **net.parameters(theta.detach())}
    with torch.no_grad():
        for name, value in {**dict(whole.named_parameters()), **dict(whole.named_buffers())}.items():
            value.copy_(values[name])
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in net.trained)
    exchanged(whole, {one: _usual(one) for one in map(whole.get_submodule, net.norms)})
    return Plain(whole.body, whole.head).to(theta.dtype)


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


def _usual(ours: Any) -> AnyBatchNorm:
    """PyTorch's BatchNorm in place of ours, which needs a step that looks after it."""
    new = AnyBatchNorm(len(ours.weight), eps=ours.eps, momentum=ours.momentum)
    new.load_state_dict(ours.state_dict() | {"num_batches_tracked": torch.zeros((), dtype=torch.int64)})
    return new
