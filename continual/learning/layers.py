"""Squared gradients of single samples, from what went into a layer and δ, the gradient of what came out.

Samples don't mix, so row b of the gradient of a sum over samples is the gradient of sample b. What a layer's parameters
have of it is a product of δ and the input, and is squared sample by sample without a backward pass for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Squares = Callable[[Sequence["Tensor"]], "dict[str, Tensor]"]
HELD = 2**26  # numbers that are held at a time


class Layer(NamedTuple):
    """A layer as a batch went through it.

    ``output`` (B, ...) is what came out. ``squares`` takes gradients δ of it, each like ``output``, and gives for each
    parameter by its full name the sum over them and over samples of the squared gradient of that sample alone.
    """

    output: Tensor
    squares: Squares


def linear(name: str, h: Tensor, output: Tensor, bias: bool = True) -> Layer:
    """A linear layer of inputs h (B, I): the gradient is δ hᵀ, so the squares of all samples are one product."""

    def squares(deltas: Sequence[Tensor]) -> dict[str, Tensor]:
        total = torch.zeros_like(output)
        for delta in deltas:
            total.addcmul_(delta, delta)
        found = {f"{name}.weight": total.T @ h.detach().square()}
        return found | ({f"{name}.bias": total.sum(0)} if bias else {})

    return Layer(output, squares)


def convolution(name: str, module: nn.Conv2d, h: Tensor, output: Tensor) -> Layer:
    """A convolution of images h (B, C, H, W): the gradient is the sum over places of δ times the patch seen there."""
    assert not isinstance(module.padding, str)
    padding = module.padding

    def squares(deltas: Sequence[Tensor]) -> dict[str, Tensor]:
        shape, places = module.weight.shape, output[0, 0].numel()
        weight, bias = h.new_zeros(shape), h.new_zeros(shape[0])
        held = max(1, HELD // (shape.numel() + module.groups * shape[1:].numel() * places))
        for n in range(0, len(h), held):
            patches = torch.nn.functional.unfold(
                h[n : n + held].detach(), module.kernel_size, module.dilation, padding, module.stride
            ).unflatten(1, (module.groups, -1))  # (b, groups, C / groups * k * k, places)
            for delta in deltas:
                own = delta[n : n + held].flatten(2)
                gradient = own.unflatten(1, (module.groups, -1)) @ patches.mT
                weight += gradient.square_().sum(0).view(shape)
                bias += own.sum(2).square().sum(0)
        return {f"{name}.weight": weight} | ({} if module.bias is None else {f"{name}.bias": bias})

    return Layer(output, squares)


def normalisation(name: str, module: nn.Module, h: Tensor, output: Tensor) -> Layer:
    """Weight · x̂ + bias for each channel of h (B, C, ...), where x̂ does not depend on either."""
    statistics: dict[str, Any] = dict(module.named_buffers())  # those that it is called with, if it has any

    def of_channels(values: Tensor) -> Tensor:
        return values.sum(tuple(range(2, values.dim()))) if values.dim() > 2 else values

    def squares(deltas: Sequence[Tensor]) -> dict[str, Tensor]:
        plain: dict[str, Any] = {"weight": h.new_ones(h.shape[1]), "bias": h.new_zeros(h.shape[1])}
        with torch.no_grad():
            normal = torch.func.functional_call(module, plain | statistics, (h.detach(),))
        return {
            f"{name}.weight": sum((of_channels(delta * normal).square().sum(0) for delta in deltas), h.new_zeros(())),
            f"{name}.bias": sum((of_channels(delta).square().sum(0) for delta in deltas), h.new_zeros(())),
        }

    return Layer(output, squares)
