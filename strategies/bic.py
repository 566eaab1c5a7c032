"""BiC: bias correction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.errors import BadChain
from continual.learning import exemplars
from continual.learning.distill import soft_targets
from continual.learning.strategy import Batch, Memory, Strategy, cross_entropy
from continual.options import option
from continual.strategies.icarl import herded
from continual.strategies.ncm import features_of

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class BiC(Strategy):
    """Bias correction (Wu et al. 2019, "Large scale incremental learning", eq. 1-5).

    Stage 1: λ L_d + (1 - λ) L_c with λ = n/(n + m) for n old and m new classes, over the task's rows and the exemplars.
    L_c is cross-entropy over all classes, L_d = -Σ_(k old) π̂_k log π_k, where π̂ and π are the softmax over the old
    classes of the last network's corrected outputs and of this network's, at a temperature. Stage 2, when that is done:
    outputs o_k of new classes become α o_k + β, with the α and β of least cross-entropy on held rows, as many of each
    class, old and new. A part of the exemplars is for stage 2 only, and so are as many of the task's rows.

    Choices: 1. the last correction is the teacher's, and the network begins a task without any, as in the authors' code
    and avalanche-lib; or each task's outputs keep theirs (``keep=each``), as FACIL has it; 2. ½ ``ridge`` β² is added
    in stage 2, as in the authors' code and avalanche-lib, not in the paper, and ½ ``ridge_scale`` (α - 1)², in neither:
    α would grow for ever where the held rows are told apart perfectly; 3. the least is computed, where the others take
    a number of steps towards it; 4. exemplars are chosen by herding on features of length 1, as in the authors' code,
    or at random (``fill``), held rows at random; 5. of each class the same number is held: that part of its exemplars,
    rounded up, or of the rows of the task's smallest class; 6. avalanche-lib's teacher has a softmax over the batch
    instead of the classes, and takes more rows of the first classes where the capacity does not divide evenly; 7. L_d
    has no factor T², and leaves out the entropy of π̂, a constant; 8. an output of the task is new even if it was there
    before: where tasks share their outputs nothing is distilled or corrected. In the task scenario a correction changes
    no answer.

    Between the steps of a task no output has a correction; with ``keep=each`` its new ones have none yet.
    """

    stores_samples: ClassVar[bool] = True
    first_task_like_finetuning: ClassVar[bool] = False

    capacity: int = option(500, "exemplars in all, for both stages", ge=2, le=exemplars.MOST)
    held: float = option(0.1, "the part of the exemplars that is for stage 2", gt=0, lt=1)
    temperature: float = option(2.0, "T, of the distillation", gt=0)
    strength: float | None = option(None, "λ; none: old classes by all classes", ge=0, le=1)
    keep: Literal["last", "each"] = option("last", "whose correction remains: the last task's, or each task's")
    ridge: float = option(0.1, "how firmly β is held at 0", ge=0)
    ridge_scale: float = option(0.001, "how firmly α is held at 1", ge=0)
    fill: Literal["herding", "random"] = option("herding", "how exemplars are chosen")

    def suits(self, stream: Stream, net: Net) -> None:
        """There is room for two exemplars of each class, and each class has two samples: one is held."""
        super().suits(stream, net)
        exemplars.check_classes(self.capacity, stream, each=2)
        for task in stream.tasks:
            if min(map(len, exemplars.by_class(task.train, task.samples))) < 2:
                raise BadChain(f"BiC holds some samples of each class for its second stage, and a class of task "
                               f"{task.index + 1} has one training sample; give each class two or more")  # fmt: skip

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``rows``, ``held_rows``: exemplars (capacity,); ``correction`` (2, K): α and β; the ``teacher``'s θ and both.

        A class's exemplars are in the order in which they were chosen.
        """
        empty, none = exemplars.empty(self.capacity, theta), theta.new_zeros(2, stream.units)
        none[0] = 1
        taught = {"teacher": theta.clone(), "teacher_correction": none.clone()}
        return {"rows": empty, "held_rows": empty.clone(), "correction": none} | taught

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The network becomes its own teacher, and rows are held."""
        past, own = (exemplars.by_class(rows[rows >= 0], task.samples) for rows in (memory["held_rows"], task.train))
        share = min(self.capacity // len(past + own), *(len(group) for group in own))
        # of a class's rows, and of its exemplars, some are left for the first stage
        count = min([math.ceil(self.held * share), share - 1, *(len(group) for group in past)])
        orders = [task.key.permutation(f"held {number}", len(group)) for number, group in enumerate(own)]
        groups = past + [group[order] for group, order in zip(own, orders, strict=True)]
        correction = memory["correction"].clone()
        if self.keep == "last":
            correction[0], correction[1] = 1, 0
        taught = {"teacher": theta, "teacher_correction": memory["correction"], "correction": correction}
        return theta, memory | taught | {"held_rows": self.filled(groups, count)}

    def filled(self, groups: list[Tensor], count: int) -> Tensor:
        """The first rows of each group, in as many slots as there are."""
        return exemplars.padded(torch.cat([group[:count] for group in groups]), self.capacity)

    def rows(self, memory: Memory, task: Task) -> Tensor:
        """The task's rows that are not held, and the exemplars."""
        free = task.train[~torch.isin(task.train, memory["held_rows"])]
        return torch.cat([free, memory["rows"][memory["rows"] >= 0]])

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """λ L_d + (1 - λ) L_c."""
        scale, shift = memory["correction"]
        logits = scale * out.logits + shift
        data = cross_entropy(task.active(logits, batch.task), batch.y, batch.weight)
        if task.first:
            return data
        old = task.old_units
        with torch.no_grad():
            answers = net.logits(memory["teacher"], batch.images, batch.task)
        scale, shift = memory["teacher_correction"]
        distilled = soft_targets(
            logits, scale * answers + shift, old, self.temperature, squared=False, weight=batch.weight
        )
        share = old.sum().to(theta.dtype) / task.seen_units.sum()
        strength = share if self.strength is None else self.strength
        return strength * distilled + (1 - strength) * data

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Stage 2, and exemplars are chosen."""
        held = memory["held_rows"][memory["held_rows"] >= 0]
        past = exemplars.by_class(memory["rows"][memory["rows"] >= 0], task.samples)
        own = exemplars.by_class(task.train[~torch.isin(task.train, held)], task.samples)
        share = (self.capacity - len(held)) // len(past + own)
        groups = past + [self.ordered(net, theta, task, number, group, share) for number, group in enumerate(own)]
        memory = memory | {"rows": self.filled(groups, share)}
        if task.old_units.any():
            found = self.fitted(net, theta, memory, task, held)
            memory["correction"] = torch.where(task.own_units, found[:, None], memory["correction"])
        return theta, memory

    def ordered(self, net: Net, theta: Tensor, task: Task, number: int, group: Tensor, share: int) -> Tensor:
        """The rows of a class of the task, those that are stored first in front."""
        if self.fill == "random":
            return group[task.key.permutation(f"exemplars {number}", len(group))]
        features = torch.nn.functional.normalize(features_of(net, theta, task, group))
        return group[herded(features, share)]

    def fitted(self, net: Net, theta: Tensor, memory: Memory, task: Task, rows: Tensor) -> Tensor:
        """α and β (2,) of least cross-entropy on rows."""
        y, tasks = task.samples.labels(rows)
        with torch.no_grad():
            logits = net.logits(theta, task.samples.images(rows, theta.dtype), tasks).double()
        before = memory["correction"].double()
        point = torch.tensor([1.0, 0.0], dtype=torch.float64, device=theta.device, requires_grad=True)
        ridge = point.new_tensor([self.ridge_scale, self.ridge])
        optimizer = torch.optim.LBFGS(
            [point], max_iter=200, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            scale, shift = torch.where(task.own_units, point[:, None], before)
            corrected = task.active(scale * logits + shift, tasks)
            held = (ridge * (point - point.new_tensor([1.0, 0.0])).square()).sum() / 2
            loss: Tensor = cross_entropy(corrected, y) + held
            loss.backward()
            return loss

        optimizer.step(objective)
        found: Tensor = point.detach().to(theta.dtype)
        return found

    def predict(self, net: Net, theta: Tensor, memory: Memory, x: Tensor, tasks: Tensor) -> Tensor:
        """The corrected outputs."""
        scale, shift = memory["correction"]
        corrected: Tensor = scale * net.logits(theta, x, tasks) + shift
        return corrected
