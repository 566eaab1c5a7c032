"""Distillation: how far a network's outputs are from a teacher's, for those outputs that take part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from continual.streams.stream import only

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.stream import Task


def old_outputs(task: Task) -> Tensor:
    """Which outputs the tasks before this one have: bool (heads, 1, K), for ``active`` below.

    One head, all old outputs together; where tasks have outputs of their own only, one for each old task.
    """
    if task.outputs.active == "task":
        return task.outputs.units[: task.index, None]
    return task.past_units[None, None]


def active_outputs(task: Task) -> Tensor | None:
    """The outputs (K,) that are active in the task, for ``among`` below; None where each task has its own."""
    if task.outputs.active == "task":
        return None
    return task.seen_units if task.outputs.active == "seen" else torch.ones_like(task.seen_units)


def soft_targets(
    logits: Tensor, teacher: Tensor, active: Tensor | None = None, temperature: float = 2.0, *, squared: bool,
    among: Tensor | None = None, weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Hinton et al. 2015: the mean over samples of Σ_k p_k log (p_k / q_k), p = softmax(teacher / T), q the network's.

    That is the cross-entropy of q under p less the entropy of p, which has no gradient. Logits (B, K). ``active``, bool
    (K,), (B, K) or (heads, 1, K): the outputs of p and q; of several heads the mean is taken. ``among``: the outputs of
    q, if there are more (whose p is 0). ``squared``: times T², which keeps the size of the gradient as T grows (Li and
    Hoiem 2016 leave it out). ``weight`` (B,): the samples' weights. Inactive outputs have no gradient and may hold any
    finite number, such as the lowest.
    """
    log_p = only(teacher.detach() / temperature, active).log_softmax(-1)
    log_q = only(logits / temperature, active if among is None else among).log_softmax(-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), 0)  # 0 log 0 = 0
    return _mean(terms.sum(-1), weight) * (temperature**2 if squared else 1.0)


def sigmoid_targets(logits: Tensor, targets: Tensor, active: Tensor, weight: Tensor | None = None) -> Tensor:
    """Rebuffi et al. 2017 (iCaRL, algorithm 3): the mean over samples of Σ_k -(t_k log g_k + (1 - t_k) log (1 - g_k)).

    g = sigmoid(logits) (B, K); the targets t (B, K) in [0, 1] are the teacher's sigmoids for old outputs and 1 or 0 for
    new ones. ``active`` and ``weight`` as in :func:`soft_targets`; the sum is over the active outputs.
    """
    terms = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.where(active, logits, 0), targets, reduction="none"
    )
    return _mean(torch.where(active, terms, 0).sum(-1), weight)


def squared_error(logits: Tensor, teacher: Tensor, active: Tensor | None = None, error: str = "mean") -> Tensor:
    """The mean over samples of the mean (``error="mean"``) or sum over active outputs of (logits - teacher)².

    Logits (B, K), ``active`` bool (K,) or (B, K).
    """
    squares = (logits - teacher).square()
    if active is None:
        return squares.mean() if error == "mean" else squares.sum(-1).mean()
    sums = torch.where(active, squares, 0).sum(-1)
    return (sums / active.sum(-1) if error == "mean" else sums).mean()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The (weighted) mean over samples, the last dimension, and the mean over whatever is before it."""
    if weight is None:
        return values.mean()
    # no sample may weigh anything: the sum is then zero, and so must be the mean
    return ((values * weight).sum(-1) / weight.sum().clamp_min(1e-12)).mean()
