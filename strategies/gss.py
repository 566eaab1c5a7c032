"""Gradient-based sample selection."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from continual.learning import exemplars
from continual.learning.projection import drawn
from continual.learning.strategy import Memory, Step, each
from continual.options import option
from continual.strategies.er_ace import Online

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task

HELD = 2**24  # numbers of gradients that are held at a time, where whole gradients are needed


@dataclass(frozen=True)
class GSS(Online):
    """GSS-Greedy (Aljundi et al. 2019): replay of a memory whose samples differ in their gradients.

    "Gradient based sample selection for online continual learning", algorithm 2. A sample's score is
    c = max_i cos(g, G_i) + 1, of its gradient g and those of n random stored samples. It is stored while there is room;
    then, if c < 1, a slot i is drawn with probability C_i / Σ C, the scores of what is stored, and is the sample's with
    probability C_i / (C_i + c). Stored samples join each batch.

    Choices: 1. the samples of a batch are compared with the same n, which were stored before it, and draw their slots
    from the scores before it; the last to win a slot has it. In batches of one sample that is algorithm 2, in larger
    ones the authors' code does so too, but draws no slot twice; 2. G_i are gradients of one sample each, as in
    algorithm 2; the authors' code and avalanche-lib take those of n whole batches; 3. those two look for a place only
    where the cosine of the whole batch is negative, and weigh slots by (C - min C) / (max C - min C + 0.01); 4. where
    nothing is stored yet, the cosine is ``first``, as in theirs; 5. batch and stored samples are learnt in one step, in
    the authors' code in a step each; avalanche-lib replays from the second task on; 6. gradients are those of the
    cross-entropy over the active outputs after the step, whatever the run's loss is. A run of several epochs may store
    a row twice.
    """

    compare: int = option(10, "n, stored samples that the gradients of new ones are compared with", ge=1, le=1_000_000)
    first: float = option(0.1, "the cosine of those that come when nothing is stored", ge=0, le=1)

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``: the stored rows (capacity,), -1 where there is none yet; ``scores``: their C, 0 where none."""
        return {"rows": exemplars.empty(self.capacity, theta), "scores": theta.new_zeros(self.capacity)}

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The step's own samples apply for storage."""
        rows, scores, key = memory["rows"], memory["scores"], step.batch.key
        own, capacity = step.batch.row[: step.batch.own], self.capacity
        others = drawn(rows[None], self.compare, key)[0]
        known = others >= 0
        found = cosines(net, theta, own, step.batch.readable(others), task)
        c = 1 + torch.where(known.any(), torch.where(known, found, -1.0).amax(1), self.first)
        sums = scores.cumsum(0)
        u, r = key.uniform("slot", 2, len(own)).to(theta.dtype)
        slot = torch.searchsorted(sums, u * sums[-1], right=True)  # the first whose sum is above; none where all are 0
        C = torch.cat([scores, torch.zeros_like(scores[:1])])[slot]
        wins = (c < 1) & (r * (C + c) < C)
        order = (rows >= 0).sum() + torch.arange(len(own), device=rows.device)
        slots = torch.where(order < capacity, order, torch.where(wins, slot, capacity))
        slots = exemplars.last_writes(capacity, slots)
        return theta, {"rows": exemplars.put(rows, slots, own), "scores": exemplars.put(scores, slots, c)}


def cosines(net: Net, theta: Tensor, rows: Tensor, others: Tensor, task: Task) -> Tensor:
    """The cosines (B, n) between the gradients of rows (B,) and those of ``others`` (n,), each of its cross-entropy."""
    asked, count = torch.cat([rows, others]), len(rows)
    x, (y, tasks) = task.samples.images(asked, theta.dtype), task.samples.labels(asked)

    def loss(theta: Tensor, image: Tensor, of: Tensor, label: Tensor) -> Tensor:
        logits = task.active(net.logits(theta, image[None], of[None]), of[None])
        return torch.nn.functional.cross_entropy(logits, label[None])

    layers, parts = net.linear_layers(theta, x, tasks), net.parameters(theta)
    if layers is None:
        products, squares = _mapped(torch.func.grad(loss), theta, x, tasks, y, count=count)
    else:
        # a layer's gradient for one sample is δ hᵀ and, for its bias, δ: the products of two are (δ·δ')(h·h' + 1)
        def of_biases(biases: dict[str, Tensor], *sample: Tensor) -> Tensor:
            return loss(net.attach(theta.detach(), list((parts | biases).values())), *sample)

        biases = {f"{name}.bias": parts[f"{name}.bias"].detach() for name, _, _ in layers}
        deltas = torch.vmap(torch.func.grad(of_biases), in_dims=(None, 0, 0, 0))(biases, x, tasks, y)
        pairs = [(deltas[f"{name}.bias"], h.detach()) for name, h, _ in layers]
        products = torch.stack([(d[:count] @ d[count:].T) * (h[:count] @ h[count:].T + 1) for d, h in pairs]).sum(0)
        squares = torch.stack([d.square().sum(1) * (h.square().sum(1) + 1) for d, h in pairs]).sum(0)
    norms = squares.sqrt()
    tiny = torch.finfo(theta.dtype).tiny
    # 0 for a gradient of 0, and no further than 1, whatever rounding says: scores are not negative
    return (products / (norms[:count, None] * norms[count:]).clamp_min(tiny)).clamp(-1, 1)


def _mapped(gradient: Callable[..., Tensor], theta: Tensor, *samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For any network: the products (B, n) of gradients and their squares (B + n,), some gradients at a time."""
    most, own = max(1, HELD // theta.numel()), [part[:count] for part in samples]
    others = each(functools.partial(gradient, theta), *(part[count:] for part in samples))

    def compared(*sample: Tensor) -> tuple[Tensor, Tensor]:
        g = gradient(theta, *sample)
        return others @ g, g @ g

    products, squares = each(compared, *own, chunk_size=most)
    return products, torch.cat([squares, others.square().sum(1)])
