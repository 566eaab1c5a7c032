"""A network that a strategy trains beside the run's own, within its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from continual.learning.optimizers import Adam
from continual.learning.strategy import gradient_of

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net


class Trained(NamedTuple):
    """A network's ``theta`` (P,), Adam's moments, ``first`` and ``second``, (P,) each, and ``steps`` (), float32."""

    theta: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor


def untrained(theta: Tensor) -> Trained:
    """What there is before the first step."""
    zeros, steps = torch.zeros_like(theta), torch.zeros((), device=theta.device)
    return Trained(theta, zeros, zeros.clone(), steps)


def adam_step(net: Net, inner: Net, loss: Callable[[Tensor], Tensor], before: Trained, lr: float) -> Trained:
    """What comes of a step of Adam (Kingma and Ba 2015, algorithm 1) of the network ``inner`` on a loss of its θ.

    ``net`` is the network that the hook is given. What there was before stays as it is.
    """
    if net.mapped:
        return _mapped(net, loss, before, lr)
    # its parameters are followed one by one, so that no gradient is joined and cut again
    with torch.enable_grad():
        whole = before.theta.detach().requires_grad_()
        parts = [part.detach().requires_grad_() for part in inner.parameters(whole.detach()).values()]
        value = loss(inner.attach(whole, parts))
        of_whole, *of_parts = torch.autograd.grad(value, [whole, *parts], allow_unused=True)
    # the kernel goes by how numbers lie in memory
    gradient = [torch.zeros_like(a) if b is None else b.contiguous() for a, b in zip(parts, of_parts, strict=True)]
    if of_whole is not None:
        gradient = [a + b for a, b in zip(gradient, inner.parameters(of_whole).values(), strict=True)]
    after = Trained(*(one.clone() for one in before))
    theta, first, second = (list(inner.parameters(one).values()) for one in after[:3])
    Adam().step(theta, gradient, {"mean": first, "square": second, "count": [after.steps]}, lr)
    return after


def _mapped(net: Net, loss: Callable[[Tensor], Tensor], before: Trained, lr: float) -> Trained:
    """The same by operations that can be mapped over seeds, which PyTorch's kernel cannot."""
    theta, first, second, steps = before
    gradient, steps = gradient_of(net, loss, theta), steps + 1
    first = torch.lerp(first, gradient, 1 - Adam.beta1)
    second = torch.addcmul(Adam.beta2 * second, gradient, gradient, value=1 - Adam.beta2)
    power = steps.to(theta.dtype)
    # a CPU takes thirty times as long for the root of what is next to nothing, which eps swallows
    square = (second / (1 - Adam.beta2**power)).clamp_min(torch.finfo(second.dtype).tiny)
    deviation = square.sqrt() + Adam.eps
    return Trained(torch.addcdiv(theta, first / (1 - Adam.beta1**power), deviation, value=-lr), first, second, steps)
