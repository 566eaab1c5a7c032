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


def stored_gradients(
    net: Net, theta: Tensor, rows: Tensor, there: Tensor, task: Task, out: Tensor | None = None
) -> Tensor:
    """The gradients (t, P) of the mean cross-entropy of each line of stored rows (t, S), of those that are ``there``.

    The outputs are those that are active in the step. A line without any row has the gradient zero; whatever is not
    there is read, and has to be a row. ``out`` (t, P): where they are written, whatever its type.
    """
    weight = there.to(theta.dtype)
    of_all = (task.samples.images(rows.flatten(), theta.dtype), *task.samples.labels(rows.flatten()))
    x, y, tasks = (part.unflatten(0, rows.shape) for part in of_all)

    def loss(theta: Tensor, line: int) -> Tensor:
        logits = task.active(net.logits(theta, x[line], tasks[line]), tasks[line])
        return cross_entropy(logits, y[line], weight[line])

    found = None if net.mapped else _by_layers(net, theta, x, y, tasks, weight, task, out)
    if found is None:
        found = torch.stack([gradient_of(net, functools.partial(loss, line=line), theta) for line in range(len(rows))])
        found = found if out is None else out.copy_(found)
    return found


def _by_layers(
    net: Net, theta: Tensor, x: Tensor, y: Tensor, tasks: Tensor, weight: Tensor, task: Task, out: Tensor | None
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
    passed = {
        name: (delta.unflatten(0, count), h.detach().unflatten(0, count))
        for (name, h, _), delta in zip(layers, deltas, strict=True)
    }
    found = theta.new_empty(len(weight), len(theta)) if out is None else out
    for name, part in zip(net.shapes, found.split(net.sizes, 1), strict=True):
        layer, _, kind = name.rpartition(".")
        went_out, came_in = passed[layer]
        if kind == "bias":
            part.copy_(went_out.sum(1))
            continue
        whole = (part.unflatten(1, net.shapes[name]), went_out, came_in)
        # a processor writes each line's while it still has it at hand; a GPU has all of them at once
        for place, delta, h in zip(*whole, strict=True) if theta.device.type == "cpu" else [whole]:
            place.copy_(delta.mT @ h)
    return found


def room_above(gradient: Tensor, count: int) -> Tensor:
    """Room for ``count`` vectors above a gradient (P,), in float64: (count + 1, Q), zero behind the P of each.

    Products of float32 numbers are exact in float64, which keeps an ill-conditioned GG' from being worse.
    """
    wide = torch.float32 if gradient.device.type == "mps" else torch.float64
    (size,) = gradient.shape
    room = gradient.new_empty(count + 1, -(-size // BLOCK) * BLOCK, dtype=wide)
    room[-1, :size].copy_(gradient)
    room[:, size:].zero_()
    return room


def unopposed(room: Tensor, gradient: Tensor, bound: float = 0.0, added: float = 0.0, ridge: float = 0.0) -> Tensor:
    """The gradient g (P,) as it is, or g̃ where it has a negative product with one of G (t, P).

    G lies in the ``room`` above the gradient (:func:`room_above`). g̃ = G'(v + added) + g with the v that minimises
    ½ v'(GG' + ridge I)v + g'G'v over v ≥ bound. With all at 0 it is the vector nearest to g that has no negative
    product with any of G.
    """
    count, size = len(room) - 1, len(gradient)
    # columns are shared out in blocks: of one product of a few long lines one thread is left
    parts = room.unflatten(1, (-1, BLOCK)).transpose(0, 1)
    products = (parts[:, :-1] @ parts.mT).sum(0)
    A, q = products[:, :-1], products[:, -1]
    if ridge:
        A = A + ridge * torch.eye(count, dtype=room.dtype, device=room.device)
    v = nonnegative(A, torch.add(q, A.sum(1), alpha=bound) if bound else q) + (bound + added)
    nearest = torch.addmv(room[-1, :size], room[:-1, :size].T, v).to(gradient.dtype)
    return torch.where((q < 0).any(), nearest, gradient)


def nonnegative(A: Tensor, q: Tensor, few: int = FEW, iterations: int = ITERATIONS) -> Tensor:
    """The u (t,) that minimises ½ u'Au + q'u over u ≥ 0, for a positive semidefinite A (t, t).

    Of up to ``few`` constraints by trying which of them are tight, all sets of them at once; of more by a primal-dual
    interior-point method with a fixed number of iterations.
    """
    # with a diagonal of ones and a solution of order one, all problems are of one size; of a constraint of zeros, whose
    # u is never asked for anything, it may be of any
    tiny = torch.finfo(A.dtype).tiny
    scale = A.diagonal().clamp_min(tiny).rsqrt()
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
        column, rest = table[:, :, :1], table[:, :, 1:]
        row = (rest[:, k] / column[:, k])[:, None]
        others = torch.addcmul(rest, column, row, value=-1)
        table = torch.cat([rest, torch.where((number == k)[:, None], row, others)])
    tight = (torch.arange(2 ** len(q), device=q.device)[:, None] >> number) & 1 == 1
    u = torch.where(tight, -table[:, :, 0], 0.0)
    wrong = torch.minimum(u, u @ A + q).abs().amax(1)  # zero in the solution, where one of both is zero and none below
    best = wrong.nan_to_num(torch.inf, torch.inf).argmin(0, keepdim=True)
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
