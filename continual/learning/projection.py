"""Gradients of stored samples, and the gradient nearest to a given one that opposes none of them, on the device."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from continual.learning.models import Net
from continual.learning.strategy import cross_entropy, gradient_of
from continual.streams.rng import Key
from continual.streams.stream import Task

if TYPE_CHECKING:
    from torch import Tensor

FEW, ITERATIONS = 9, 22
BLOCK = 4096


def drawn(rows: Tensor, n: int, key: Key) -> Tensor:
    """``n`` of each line of rows (t, S), at random and none twice; all of them, with -1 behind, where there are fewer.

    A line may have -1 where it is empty.
    """
    if n >= rows.shape[-1]:
        return rows
    lots = key.bits("drawn", rows.numel()).reshape(rows.shape)
    return rows.gather(-1, torch.where(rows >= 0, lots, -1).topk(n).indices)


def stored_gradients(net: Net, theta: Tensor, rows: Tensor, there: Tensor, task: Task) -> Tensor:
    """The gradients (t, P) of the mean cross-entropy of each line of stored rows (t, S), of those that are ``there``.

    The outputs are those that are active in the step. A line without any row has the gradient zero; whatever is not
    there is read, and has to be a row.
    """
    weight = there.to(theta.dtype)
    of_all = (task.samples.images(rows.flatten(), theta.dtype), *task.samples.labels(rows.flatten()))
    x, y, tasks = (part.unflatten(0, rows.shape) for part in of_all)

    def loss(theta: Tensor, line: int) -> Tensor:
        logits = task.active(net.logits(theta, x[line], tasks[line]), tasks[line])
        return cross_entropy(logits, y[line], weight[line])

    found = None if net.mapped else _by_layers(net, theta, x, y, tasks, weight, task)
    if found is None:
        return torch.stack([gradient_of(net, functools.partial(loss, line=line), theta) for line in range(len(rows))])
    return found


def _by_layers(
    net: Net, theta: Tensor, x: Tensor, y: Tensor, tasks: Tensor, weight: Tensor, task: Task
) -> Tensor | None:
    """The gradients of :func:`stored_gradients`, of all lines at once, for a network of linear layers; else None.

    The gradient of a layer is what came in times the gradient of what went out, summed over the samples of a line.
    """
    count, flat = weight.shape, tasks.flatten()
    with torch.enable_grad():
        layers = net.linear_layers(theta.detach().requires_grad_(), x.flatten(0, 1), flat)
        if layers is None:
            return None
        share = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        logits = task.active(layers[-1][2], flat)
        losses = torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="none")
        deltas = torch.autograd.grad((losses * share.flatten()).sum(), [output for _, _, output in layers])
    parts = {}
    for (name, h, _), delta in zip(layers, deltas, strict=True):
        of_lines = delta.unflatten(0, count)
        parts[f"{name}.weight"] = of_lines.mT @ h.detach().unflatten(0, count)
        parts[f"{name}.bias"] = of_lines.sum(1)
    return torch.cat([parts[name].flatten(1) for name in net.shapes], 1)


def unopposed(gradient: Tensor, others: Tensor, bound: float = 0.0, added: float = 0.0, ridge: float = 0.0) -> Tensor:
    """The gradient g (P,) as it is, or g̃ where it has a negative product with one of ``others`` G (t, P).

    g̃ = G'(v + added) + g with the v that minimises ½ v'(GG' + ridge I)v + g'G'v over v ≥ bound. With all at 0 it is
    the vector nearest to g that has no negative product with any of G.
    """
    # products of float32 numbers are exact in float64, which keeps an ill-conditioned GG' from being worse
    wide = torch.float32 if gradient.device.type == "mps" else torch.float64
    count, size = others.shape
    blocks = -(-size // BLOCK)
    whole = gradient.new_empty(count + 1, blocks * BLOCK, dtype=wide)  # G and g, and zeros to the end of the last block
    whole[:-1, :size].copy_(others)
    whole[-1, :size].copy_(gradient)
    whole[:, size:].zero_()
    # columns are shared out in blocks: of one product of a few long lines one thread is left
    parts = whole.unflatten(1, (blocks, BLOCK)).transpose(0, 1)
    products = (parts[:, :-1] @ parts.mT).sum(0)
    A = products[:, :-1] + ridge * torch.eye(count, dtype=wide, device=gradient.device)
    q = products[:, -1]
    v = nonnegative(A, q + bound * A.sum(1)) + bound + added
    nearest = torch.addmv(whole[-1, :size], whole[:-1, :size].T, v).to(gradient.dtype)
    return torch.where((q < 0).any(), nearest, gradient)


def nonnegative(A: Tensor, q: Tensor, few: int = FEW, iterations: int = ITERATIONS) -> Tensor:
    """The u (t,) that minimises ½ u'Au + q'u over u ≥ 0, for a positive semidefinite A (t, t).

    Of up to ``few`` constraints by trying which of them are tight, all sets of them at once; of more by a primal-dual
    interior-point method with a fixed number of iterations.
    """
    # with a diagonal of ones and a solution of order one, all problems are of one size
    diagonal, tiny = A.diagonal(), torch.finfo(A.dtype).tiny
    scale = torch.where(diagonal > 0, diagonal.clamp_min(tiny).rsqrt(), 1.0)
    # a little more on the diagonal makes the solution unique, and finite, where constraints contradict each other
    one = 1 + 100 * torch.finfo(A.dtype).eps
    eye = torch.eye(len(q), dtype=torch.bool, device=q.device)
    A, q = torch.where(eye, one, A * scale[:, None] * scale), q * scale
    size = q.abs().max().clamp_min(tiny)
    q = q / size
    return (_of_sets(A, q) if len(q) <= few else _from_inside(A, q, iterations)) * scale * size


def _of_sets(A: Tensor, q: Tensor) -> Tensor:
    """u by its definition: of all 2^t sets of constraints, the one that being tight solves the whole.

    What is tight has u with Au + q = 0 there, the others u = 0. One sweep over a constraint (Gauss and Jordan) makes of
    the solutions of all sets of those before it the solutions of the same sets with it.
    """
    number = torch.arange(len(q), device=q.device)
    table = torch.cat([A, q[:, None]], 1)[None]  # of each set so far: the columns that no sweep has used up, and q
    for k in range(len(q)):
        rest = table[:, :, 1:]
        row = rest[:, k] / table[:, k, :1]
        swept = torch.where((number == k)[:, None], row[:, None], rest - table[:, :, :1] * row[:, None])
        table = torch.cat([rest, swept])
    tight = (torch.arange(2 ** len(q), device=q.device)[:, None] >> number) & 1 == 1
    u = torch.where(tight, -table[:, :, 0], 0.0)
    wrong = torch.minimum(u, u @ A + q).abs().amax(1)  # zero in the solution, where one of both is zero and none below
    best = torch.where(wrong.isfinite(), wrong, torch.inf).argmin(0, keepdim=True)
    return u.index_select(0, best).squeeze(0).clamp_min(0)


def _from_inside(A: Tensor, q: Tensor, iterations: int) -> Tensor:
    """u by Wright 1997, "Primal-dual interior-point methods".

    u and z = Au + q stay positive while their products go to zero, twentyfold with each iteration. Unlike that of
    descent by coordinates or gradients their number hardly depends on the condition of A: 18 reach rounding in float64
    on random problems of up to 20 constraints, 22 also where constraints nearly contradict each other.
    """
    x = torch.ones(2, len(q), dtype=q.dtype, device=q.device)  # u and z
    for _ in range(iterations):
        u, z = x
        goal, slope = 0.05 * (u @ z) / len(q) / u, z / u
        # unlike solve, solve_ex does not wait
        du: Tensor = torch.linalg.solve_ex(A + torch.diag(slope), goal - (A @ u + q))[0]
        dx = torch.stack([du, goal - z - slope * du])
        reach = -0.995 / (dx / x).amin(1, keepdim=True).clamp_max(-0.995)  # each stays positive, and goes 1 at most
        x = x + reach * dx
    return x[0]
