"""Maximally interfered retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.errors import BadOption
from continual.learning.models import Out
from continual.learning.projection import drawn
from continual.learning.strategy import Batch, Memory, cross_entropy, gradient_and_more
from continual.options import option
from continual.strategies.er_ace import Online

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Task


@dataclass(frozen=True)
class MIR(Online):
    """MIR (Aljundi et al. 2019, "Online continual learning with maximally interfered retrieval", algorithm 1).

    Of C candidates from the memory those k join a batch whose loss ℓ a step on the batch alone would raise most:
    s_MI-1(x) = ℓ(f_θv(x), y) - ℓ(f_θ(x), y), with θv = θ - α ∇L(f_θ(X_t), Y_t).

    Choices: 1. α is an option (``rate``), as a strategy does not know the optimiser; it is plain gradient descent even
    where the optimiser is not, as in the authors' code and avalanche-lib, which take the run's own rate; 2. the losses
    are over the active outputs, of the task scenario over each sample's own; 3. C is five times k, as the paper's 50
    for 10, or all where fewer are stored; 4. the batch and the k samples weigh alike in one loss, as in algorithm 1, or
    their mean losses are added, as in the authors' code and avalanche-lib (``combine``), which doubles a step; 5.
    candidates are all that is stored, or past tasks' alone (``past``), as in the authors' code; avalanche-lib leaves
    out the classes of the last batch; 6. what is stored is a reservoir, as in the paper; in avalanche-lib as many of
    each class; 7. s_MI-2, which compares with the least loss that a sample ever had, is not here.
    """

    candidates: int | None = option(
        None, "C, of which the k that join are chosen; none: five times k", ge=1, le=1_000_000
    )
    rate: float = option(0.01, "α, the length of the step that is foreseen", gt=0, le=1e6)
    combine: Literal["joint", "sum"] = option(
        "joint", "one loss of all samples, or that of batch and stored ones added"
    )
    past: bool = option(False, "whether only samples of past tasks are candidates")

    def check(self) -> None:
        """Candidates are more than what is chosen of them."""
        if self.candidates is not None and self.samples is not None and self.candidates < self.samples:
            raise BadOption(f"mir: of candidates={self.candidates} not samples={self.samples} can be chosen; give as "
                            "many candidates or more")  # fmt: skip

    @property
    def first_task_like_finetuning(self) -> bool:  # type: ignore[override]
        """Where nothing of it is replayed."""
        return self.past

    def has(self, hook: str) -> bool:
        """The loss is the usual one unless losses are added."""
        return super().has(hook) and (hook != "loss" or self.combine == "sum")

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """The batch and, behind it, the k candidates of the highest s_MI-1."""
        if self.first_task_like_finetuning and task.first:
            return batch
        rows, count = memory["rows"], self.samples or batch.own
        if self.past:
            of = task.samples.task.index_select(0, batch.readable(rows))
            rows = torch.where(of < task.number, rows, -1)
        candidates = drawn(rows[None], self.candidates or 5 * count, batch.key)[0]
        out, gradient = self.incoming(net, theta, batch, task)
        scores = self.interference(net, theta, batch.readable(candidates), gradient, task)
        scores = torch.where(candidates >= 0, scores, -torch.inf)
        chosen = candidates[scores.topk(min(count, len(scores))).indices]
        return self.joined(batch, chosen, theta, task).spare(out, gradient)

    def incoming(self, net: Net, theta: Tensor, batch: Batch, task: Task) -> tuple[Out, Tensor]:
        """What comes out of the batch's own samples, and the gradient (P,) of their loss."""
        own, weight = slice(batch.own), None if batch.weight is None else batch.weight[: batch.own]
        x = task.samples.images(batch.row[own], theta.dtype) if batch.x is None else batch.x[own]
        tasks = batch.task[own]

        def loss(theta: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            out = net.forward(theta, x, tasks)
            logits = task.active(out.logits, tasks)
            return cross_entropy(logits, batch.y[own], weight), (out.logits.detach(), out.features.detach())

        gradient, (logits, features) = gradient_and_more(net, loss, theta)
        return Out(logits, features), gradient

    def interference(self, net: Net, theta: Tensor, rows: Tensor, gradient: Tensor, task: Task) -> Tensor:
        """s_MI-1 of the rows (n,), by the gradient (P,) of the batch's own samples."""
        images, (y, of) = task.samples.images(rows, theta.dtype), task.samples.labels(rows)

        def losses(theta: Tensor) -> Tensor:
            logits = task.active(net.logits(theta, images, of), of)
            return torch.nn.functional.cross_entropy(logits, y, reduction="none")

        return losses(torch.sub(theta, gradient, alpha=self.rate)) - losses(theta)

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """Of all samples alike, or that of the batch and that of what joined it added."""
        if self.combine == "joint" or batch.weight is None:
            return super().loss(net, theta, memory, batch, out, task)
        logits = task.active(out.logits, batch.task)
        own, joined = slice(batch.own), slice(batch.own, None)
        parts = [cross_entropy(logits[part], batch.y[part], batch.weight[part]) for part in (own, joined)]
        return parts[0] + parts[1]
