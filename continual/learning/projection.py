"""Gradients of stored samples, and the gradient nearest to a given one that opposes none of them, on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from continual.learning.models import Net
from continual.learning.strategy import Batch, cross_entropy, gradient_of
from continual.streams.rng import Key
from continual.streams.stream import Task

if TYPE_CHECKING:
    from torch import Tensor

ITERATIONS = 22


def drawn(rows: Tensor, n: int, key: Key) -> Tensor:
    """``n`` of each line of rows (t, S), at random and none twice; all of them, with -1 behind, where there are fewer.

    A line may have -1 where it is empty.
    """
    if n >= rows.shape[-1]:
        return rows
    lots = key.bits("drawn", rows.numel()).reshape(rows.shape)
    return rows.gather(-1, torch.where(rows >= 0, lots, -1).topk(n).indices)


def stored_gradients(net: Net, theta: Tensor, rows: Tensor, batch: Batch, task: Task) -> Tensor:
    """The gradients (t, P) of the mean cross-entropy of each line of stored rows (t, S); -1 counts nothing.

    The outputs are those that are active in the step. A line without any row has the gradient zero.
    """
    known = rows >= 0
    rows = batch.readable(rows)
    x = task.samples.images(rows.flatten(), theta.dtype).unflatten(0, rows.shape)

    def loss(theta: Tensor, x: Tensor, y: Tensor, tasks: Tensor, weight: Tensor) -> Tensor:
        logits = task.outputs.apply(net.logits(theta, x, tasks), task.index, tasks)
        return cross_entropy(logits, y, weight)

    samples = (x, task.samples.y[rows], task.samples.task[rows], known.to(theta.dtype))
    if len(rows) == 1:  # A-GEM's one line: products of matrices, which a processor does faster than mapped ones
        x, y, tasks, weight = (part[0] for part in samples)
        return gradient_of(net, lambda theta: loss(theta, x, y, tasks, weight), theta)[None]
    # mapped over the lines this takes hardly longer than one gradient of all their samples
    found: Tensor = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))(theta, *samples)
    return found


def unopposed(gradient: Tensor, others: Tensor, bound: float = 0.0, added: float = 0.0, ridge: float = 0.0) -> Tensor:
    """The gradient g (P,) as it is, or g̃ where it has a negative product with one of ``others`` G (t, P).

    g̃ = G'(v + added) + g with the v that minimises ½ v'(GG' + ridge I)v + g'G'v over v ≥ bound. With all at 0 it is
    the vector nearest to g that has no negative product with any of G.
    """
    # products of float32 numbers are exact in float64, which keeps an ill-conditioned GG' from being worse
    wide = torch.float32 if gradient.device.type == "mps" else torch.float64
    g, G = gradient.to(wide), others.to(wide)
    products = G @ g
    A = G @ G.T + ridge * torch.eye(len(G), dtype=wide, device=g.device)
    v = nonnegative(A, products + bound * A.sum(1)) + bound + added
    return torch.where((products < 0).any(), (G.T @ v + g).to(gradient.dtype), gradient)


def nonnegative(A: Tensor, q: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The u (t,) that minimises ½ u'Au + q'u over u ≥ 0, for a positive semidefinite A (t, t).

    A primal-dual interior-point method (Wright 1997, "Primal-dual interior-point methods") with a fixed number of
    iterations: u and z = Au + q stay positive while their products go to zero, twentyfold with each iteration. Unlike
    that of descent by coordinates or gradients their number hardly depends on the condition of A: 18 reach rounding
    in float64 on random problems of up to 20 constraints, 22 also where constraints nearly contradict each other.
    """
    # with a diagonal of ones and a solution of order one, the same start is good for every problem
    diagonal, tiny = A.diagonal(), torch.finfo(A.dtype).tiny
    scale = torch.where(diagonal > 0, diagonal.clamp_min(tiny).rsqrt(), 1.0)
    # a little more on the diagonal makes the solution unique, and finite, where constraints contradict each other
    one = 1 + 100 * torch.finfo(A.dtype).eps
    eye = torch.eye(len(q), dtype=torch.bool, device=q.device)
    A, q = torch.where(eye, one, A * scale[:, None] * scale), q * scale
    size = q.abs().max().clamp_min(tiny)
    q = q / size
    x = torch.ones(2, len(q), dtype=q.dtype, device=q.device)  # u and z
    for _ in range(iterations):
        u, z = x
        goal, slope = 0.05 * (u @ z) / len(q) / u, z / u
        # unlike solve, solve_ex does not wait
        du: Tensor = torch.linalg.solve_ex(A + torch.diag(slope), goal - (A @ u + q))[0]
        dx = torch.stack([du, goal - z - slope * du])
        reach = -0.995 / (dx / x).amin(1, keepdim=True).clamp_max(-0.995)  # each stays positive, and goes 1 at most
        x = x + reach * dx
    return x[0] * scale * size
