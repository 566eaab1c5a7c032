"""How much each parameter matters to a task: the diagonal of the Fisher information, and what holds them by it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import torch

from continual.learning.models import Net
from continual.learning.strategy import each
from continual.streams.stream import Task

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.layers import Layer

Value = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
Label = Literal["expected", "sampled", "true", "argmax"]
CHUNK, IMAGES = 512, 64  # rows at a time; of a network with convolutions, whose activations are many
WIDER = 16  # times as many on a GPU, which waits for the host where it has little to do at a time
HELD = 2**26  # numbers
BATCHES, ROWS = 2**23, 2**13  # numbers of the gradients of batches at a time, and of their rows


def pull(theta: Tensor, anchor: Tensor, weight: Tensor | float) -> Tensor:
    """Σ_i w_i (θ_i - θ*_i)², for the penalties of a step; θ, θ* and w (P,), or w a number.

    Its gradient 2 w (θ - θ*) is written down, as the slope of a line, which is done sooner than it is derived. So it
    cannot be derived a second time.
    """
    away = theta - anchor
    line = (weight * away.detach() * away).sum()
    return 2 * line - line.detach()


def batch_gradients(
    net: Net, theta: Tensor, task: Task, rows: Tensor, size: int, value: Value
) -> Iterator[tuple[Tensor, int]]:
    """The gradient of ``value(θ, x, tasks)`` of each batch of ``size`` rows, and how many rows each has.

    The gradients (G, P) of some batches come at a time; the last batch comes by itself, and may have fewer rows. Those
    of networks with convolutions come one by one, as mapped convolutions are slow. For plain Python between tasks.
    """
    held = 1 if net.convolves else max(1, min(BATCHES * (WIDER if theta.is_cuda else 1) // theta.numel(), ROWS // size))
    gradient, whole = torch.func.grad(value), len(rows) // size
    parts = [*rows[: whole * size].reshape(whole, size).split(held), rows[whole * size :][None]]
    for part in parts:
        if part.numel():
            x = task.samples.images(part.flatten(), theta.dtype).unflatten(0, part.shape)
            tasks = task.samples.task[part]
            yield _of_batches(gradient, theta, x, tasks), part.shape[1]


def _of_batches(gradient: Value, theta: Tensor, x: Tensor, tasks: Tensor) -> Tensor:
    """The gradients (G, P) of batches x (G, B, ...), side by side if that can be."""
    if len(x) == 1:
        return gradient(theta, x[0], tasks[0])[None]
    found: Tensor = each(functools.partial(gradient, theta), x, tasks)
    return found


def fisher(net: Net, theta: Tensor, task: Task, rows: Tensor, label: Label, batch: int = 1) -> Tensor:
    """The mean over rows of the squared gradient of log p(label | x), over the active outputs: (P,).

    ``label``: ``expected`` weighs every active label by its probability (the exact Fisher), ``sampled`` draws one
    from the network, ``true`` takes the data's (the empirical Fisher), ``argmax`` the network's own answer. With
    ``batch`` above 1 the gradient is averaged over so many rows before it is squared: that is not the Fisher, but
    some implementations compute it. See van de Ven 2025, "On the computation of the Fisher information in continual
    learning". For plain Python between tasks, not for a step.
    """
    live, total = theta.detach().requires_grad_(), torch.zeros_like(theta)
    size = batch if batch > 1 else (IMAGES if net.convolves else CHUNK) * (WIDER if theta.is_cuda else 1)
    lots = task.key.child("fisher").uniform("label", len(rows))  # of all, so that chunks change no label
    for part, u in zip(rows.split(size), lots.split(size), strict=True):
        x, tasks = task.samples.images(part, theta.dtype), task.samples.task[part]
        found = net.layered(live, x, tasks) if batch == 1 else None
        logits, layers = found or (net.logits(live, x, tasks), [])
        log_p = torch.nn.functional.log_softmax(task.active(logits, tasks), dim=-1)
        weights = label_weights(log_p.detach().exp(), task.samples.y[part], label, u)
        if batch > 1:
            total += _batch_square(live, log_p, weights) * len(part)
        elif layers:
            total += _layer_squares(net, theta, layers, log_p, weights)
        else:
            total += _mapped_squares(net, theta, task, x, tasks, weights)
    return total / len(rows)


def label_weights(p: Tensor, y: Tensor, label: Label, u: Tensor) -> Tensor:
    """Weights w (terms, B, K): the squared gradients of Σ_k w_k log p_k, summed over terms, are what ``label`` asks.

    One term with the chosen label, or for ``expected`` one term √p_k for each output k that is active. Random labels
    are those of random numbers ``u`` (B,) in [0, 1).
    """
    units = p.shape[-1]
    if label == "expected":
        active = (p > 0).any(0).nonzero().squeeze(1)
        return torch.diag_embed(p.sqrt()).movedim(1, 0)[active]
    if label == "sampled":
        cumulative = p.cumsum(-1)
        y = (cumulative <= u.to(p.dtype)[:, None] * cumulative[:, -1:]).sum(-1)
    elif label == "argmax":
        y = p.argmax(-1)
    return torch.nn.functional.one_hot(y, units).to(p.dtype)[None]


def _layer_squares(net: Net, theta: Tensor, layers: list[Layer], log_p: Tensor, weights: Tensor) -> Tensor:
    """The sum over samples of their squared gradients (P,), of each layer by what went in and came out."""
    outputs = [layer.output for layer in layers]
    # samples don't mix, so row b of the gradient of the sum is the gradient of sample b
    deltas = [torch.autograd.grad((log_p * weight).sum(), outputs, retain_graph=True) for weight in weights]
    squares = torch.zeros_like(theta)
    parts = net.parameters(squares)
    for layer, of_layer in zip(layers, zip(*deltas, strict=True), strict=True):
        for name, value in layer.squares(of_layer).items():
            if name in parts:  # of a layer that is trained in part
                parts[name].copy_(value)
    return squares


def _mapped_squares(net: Net, theta: Tensor, task: Task, x: Tensor, tasks: Tensor, weights: Tensor) -> Tensor:
    """The same for any network: the gradient mapped over the samples."""

    def squares(image: Tensor, of: Tensor, weight: Tensor) -> Tensor:
        def terms(live: Tensor) -> Tensor:
            logits = task.active(net.logits(live, image[None], of[None]), of[None])
            return (torch.nn.functional.log_softmax(logits, dim=-1) * weight).sum(-1)

        jacobian: Tensor = torch.func.jacrev(terms)(theta)
        return jacobian.square().sum(0)

    held = max(1, HELD // (theta.numel() * len(weights)))  # so many samples' gradients are held at a time
    mapped, total = torch.vmap(squares, in_dims=(0, 0, 1)), torch.zeros_like(theta)
    try:
        for one, of, weight in zip(x.split(held), tasks.split(held), weights.split(held, 1), strict=True):
            total += mapped(one, of, weight).sum(0)
    except RuntimeError:  # there are layers that PyTorch cannot map, such as PReLU
        return _looped_squares(net, theta, task, x, tasks, weights)
    return total


def _looped_squares(net: Net, theta: Tensor, task: Task, x: Tensor, tasks: Tensor, weights: Tensor) -> Tensor:
    """The same for a network that cannot be mapped: sample by sample."""
    live, total = theta.detach().requires_grad_(), torch.zeros_like(theta)
    for image, of, weight in zip(x.split(1), tasks.split(1), weights.split(1, 1), strict=True):
        log_p = torch.nn.functional.log_softmax(task.active(net.logits(live, image, of), of), dim=-1)
        for one in weight:
            (gradient,) = torch.autograd.grad((log_p * one).sum(), live, retain_graph=True)
            total += gradient.square()
    return total


def _batch_square(live: Tensor, log_p: Tensor, weights: Tensor) -> Tensor:
    """The squared gradient of a batch's mean, (P,)."""
    total = torch.zeros_like(live)
    for weight in weights:
        (gradient,) = torch.autograd.grad((log_p * weight).sum(-1).mean(), live, retain_graph=True)
        total += gradient.square()
    return total
