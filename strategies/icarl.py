"""iCaRL: incremental classifier and representation learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning import exemplars
from continual.learning.distill import sigmoid_targets, soft_targets
from continual.learning.strategy import Batch, Memory, cross_entropy
from continual.options import option
from continual.strategies.ncm import Means, features_of

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


NEAR, TIE = 64, 1e-12
"""Distances count as equal that differ by so many roundings of the features' type, or by such a part in float64."""


def herded(features: Tensor, count: int, renormalize: bool = False) -> Tensor:
    """The order (count,) in which features (n, D) are chosen, each once: algorithm 4.

    The k-th is the one that brings the mean of those chosen nearest to the mean of all; with ``renormalize`` both means
    are scaled to length 1. Plain Python, for between tasks.
    """
    normalize, lengths = torch.nn.functional.normalize, features.square().sum(1)
    mu, total = features.mean(0, dtype=torch.float64), torch.zeros_like(features[0], dtype=torch.float64)
    wanted, taken, order = normalize(mu, dim=0).to(features.dtype), torch.zeros_like(lengths), []
    for k in range(1, min(count, len(features)) + 1):
        if renormalize:
            means = normalize((total.to(features.dtype) + features) / k)
            chosen = ((wanted - means).square().sum(1) + taken).argmin()
        else:
            chosen = _nearest(features, lengths, mu - total / k, k, taken)
        taken[chosen] = torch.inf
        total = total + features[chosen]
        order.append(chosen)
    return torch.stack(order)


def _nearest(features: Tensor, lengths: Tensor, missing: Tensor, k: int, taken: Tensor) -> Tensor:
    """Which φ has the least ‖m - φ/k‖, m being what is ``missing``; of several, as there are with units off, the first.

    k times the squares, without ‖m‖², are one product; those that come near the least are computed in float64.
    """
    rough = lengths / k - 2 * (features @ missing.to(features.dtype)) + taken
    longest = lengths.max()
    slack = NEAR * torch.finfo(features.dtype).eps * (longest / k + longest.sqrt() * missing.norm())
    near = (rough <= rough.min() + slack).nonzero().squeeze(1)
    distance = (missing - features[near].double() / k).square().sum(1)
    found: Tensor = near[(distance <= distance.min() * (1 + TIE)).int().argmax()]
    return found


@dataclass(frozen=True)
class ICaRL(Means):
    """iCaRL (Rebuffi et al. 2017, "iCaRL: incremental classifier and representation learning", algorithms 1-5).

    The answer is argmin_y ‖φ(x) - μ_y‖, with μ_y the mean of the exemplars of y; all φ and all μ_y have length 1. An
    epoch runs through the task's rows and the exemplars, and each output g_y is a sigmoid of its own, with the loss
    -[Σ_(y new) δ_(y=y_i) log g_y + δ_(y≠y_i) log(1 - g_y) + Σ_(y old) q_y log g_y + (1 - q_y) log(1 - g_y)], where q is
    what the network answered before the task. Of each of t classes K/t exemplars are kept, chosen by herding when
    the task has been learnt, in an order of which a smaller share keeps the first.

    Choices: 1. the loss is summed over outputs, as in the equation, or averaged, as in the authors' code and
    avalanche-lib (``reduce``); it is over the active outputs, for which both have all (``train_outputs=all``); 2.
    ``outputs=softmax`` is cross-entropy, and distillation at a temperature T, times T², as in later codes; 3. in
    herding means are as they are, as in the authors' code, or of length 1, as the paper says of all means
    (``renormalize``); 4. an exemplar is chosen once; where it would be chosen again, the authors' code and
    avalanche-lib choose none and go on as if it were there twice; 5. K/t is rounded down, by avalanche-lib up; 6. μ_y
    is of the exemplars and the network as it is now, or of all rows of y as they were when y was learnt (``mean_of``);
    the authors' code and avalanche-lib (for images) average mirrored ones too; 7. an output of the task is new even if
    it was there before: where tasks share their outputs nothing is distilled; 8. a class that two tasks have counts as
    two in t.

    Between the steps of a task, the answer is by the means of its beginning: none of its new classes has one.
    """

    stores_samples: ClassVar[bool] = True

    capacity: int = option(500, "K, exemplars in all", ge=1, le=exemplars.MOST)
    outputs: Literal["sigmoid", "softmax"] = option("sigmoid", "what the loss makes of the outputs")
    reduce: Literal["sum", "mean"] = option("sum", "what is done with the terms of outputs=sigmoid")
    temperature: float = option(2.0, "T, of the distillation with outputs=softmax", gt=0)
    mean_of: Literal["exemplars", "class"] = option("exemplars", "what μ is the mean of")
    renormalize: bool = option(False, "whether the means that herding compares have length 1")

    @property
    def first_task_like_finetuning(self) -> bool:  # type: ignore[override]
        """Not with another loss."""
        return self.outputs == "softmax"

    def check(self) -> None:
        """What is summed over outputs may be averaged."""
        if self.outputs == "softmax":
            self.check_unused("with outputs=softmax", "reduce")

    def suits(self, stream: Stream, net: Net) -> None:
        """There is room for an exemplar of each class."""
        super().suits(stream, net)
        exemplars.check_classes(self.capacity, stream)

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``means``, ``counts``; ``rows``: exemplars (K,), each class's in their order; ``teacher``: the last θ."""
        memory = super().init(net, theta, stream)
        return memory | {"rows": exemplars.empty(self.capacity, theta), "teacher": theta.clone()}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The network becomes its own teacher."""
        return theta, memory | {"teacher": theta}

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """The task's rows and the exemplars."""
        return torch.cat([task.train, memory["rows"][memory["rows"] >= 0]])

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """Of new classes the label, of old ones the teacher's answers."""
        mask = task.mask(batch.task)
        active = torch.ones_like(out.logits, dtype=torch.bool) if mask is None else mask.expand(out.logits.shape)
        old = task.old_units
        answers = out.logits
        if not task.first:
            with torch.no_grad():
                answers = net.logits(memory["teacher"], batch.images, batch.task)
        if self.outputs == "softmax":
            logits = task.active(out.logits, batch.task)
            distilled = soft_targets(out.logits, answers, old, self.temperature, squared=True, weight=batch.weight)
            return cross_entropy(logits, batch.y, batch.weight) + distilled
        label = (batch.y[:, None] == torch.arange(answers.shape[1], device=batch.y.device)).to(answers.dtype)
        targets, counted = torch.where(old, torch.sigmoid(answers.detach()), label), active | old
        terms = sigmoid_targets(out.logits, targets, counted, batch.weight)
        return terms if self.reduce == "sum" else terms / (counted.sum().to(terms.dtype) / len(counted))

    def scores(self, memory: Memory, features: Tensor) -> Tensor:
        """-‖φ(x) - μ_y‖."""
        normalize = torch.nn.functional.normalize
        return -torch.cdist(normalize(features), normalize(memory["means"]))

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The task's exemplars are chosen, those of earlier ones become fewer, and the means follow."""
        past, own = (exemplars.by_class(rows[rows >= 0], task.samples) for rows in (memory["rows"], task.train))
        share = self.capacity // len(past + own)
        orders = [herded(self.embedded(net, theta, task, group), share, self.renormalize) for group in own]
        groups = past + [group[order] for group, order in zip(own, orders, strict=True)]
        chosen = torch.cat([group[:share] for group in groups])
        memory = memory | {"rows": exemplars.padded(chosen, self.capacity)}
        if self.mean_of == "class":
            chosen = task.train
        else:
            memory |= {name: torch.zeros_like(memory[name]) for name in ("means", "counts")}
        return theta, self.taken_up(memory, self.embedded(net, theta, task, chosen), task.samples.y[chosen])

    def embedded(self, net: Net, theta: Tensor, task: Task, rows: Tensor) -> Tensor:
        """The features of rows, of length 1."""
        return torch.nn.functional.normalize(features_of(net, theta, task, rows))
