"""PackNet: a part of the weights for each task."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.errors import BadChain
from continual.learning.optimizers import Adam
from continual.learning.strategy import Growth, Memory, Step, Strategy, cross_entropy, either, gradient_of
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class PackNet(Strategy):
    """PackNet (Mallya & Lazebnik 2018, "PackNet: Adding multiple tasks to a single network by iterative pruning").

    A task is learnt with all weights, of which those of earlier tasks are fixed. Then, in each layer, the share
    ``prune`` of the task's weights that is smallest in magnitude is freed for later tasks and set to zero, and the
    kept ones are trained for some more epochs, after which they are fixed: task t is answered with the weights of
    tasks 1..t, to the bit the ones that it was left with. The task has to be told.

    Choices: 1. ``prune=equal`` leaves every task the same number of weights, 1 - 1/(tasks left), where a fixed share
    leaves the n-th task prune^(n-1) of them (the paper has three or four tasks and 0.5 or 0.75); 2. the number pruned
    in a layer is rounded to the nearest, as in the paper's code; avalanche-lib rounds down, and prunes the head too; 3.
    what is freed starts the next task at zero, as in the paper, or where it was (``freed=kept``), as in avalanche-lib;
    4. biases are fixed after the first task, as in the paper, and are not pruned, nor are BatchNorm's running
    statistics; 5. an output unit's weights belong to its task and are not pruned; 6. retraining is with Adam, at a
    learning rate of its own, and takes ``retrain`` epochs (the paper: half of those of training); the run's optimiser
    is new for each task; 7. what is fixed is put back after each step, so that no optimiser's momentum or weight decay
    moves it.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    memory_grows_with: ClassVar[Growth] = "tasks"
    restarts_optimizer: ClassVar[bool] = True
    answers_by_task: ClassVar[bool] = True

    prune: float | Literal["equal"] = option(
        0.5, "share of a task's weights that it frees; equal: alike for all", ge=0, lt=1
    )
    freed: Literal["zero", "kept"] = option("zero", "where freed weights start in the next task")
    retrain: int = option(1, "epochs that the kept weights are trained for", ge=0, le=100_000)
    retrain_lr: float = option(0.001, "learning rate of these epochs", ge=0)
    retrain_batch: int = option(128, "rows in a batch of these epochs", ge=1, le=10_000_000)

    def check(self) -> None:
        """Kept weights are trained again."""
        if not self.retrain:
            self.check_unused("with retrain=0", "retrain_lr", "retrain_batch")

    def suits(self, stream: Stream, net: Net) -> None:
        """Tasks are told, and there are weights before the head."""
        super().suits(stream, net)
        net.check_head("PackNet")
        if all(name in net.head for name in net.shapes):
            raise BadChain("PackNet divides the weights before the last layer, and this network has none; use "
                           "model=mlp with at least one layer")  # fmt: skip

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``owner`` (P,): the task that a weight belongs to, -1 if it is free; ``learnt`` (T,): tasks that are done."""
        owner = torch.full_like(theta, -1, dtype=torch.int64)
        for task in stream.tasks:
            owner[net.head_rows(theta, task.own_units)] = task.index
        return {"owner": owner, "learnt": torch.zeros_like(owner[: len(stream.tasks)], dtype=torch.bool)}

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """What belongs to other tasks is put back."""
        mine = (memory["owner"] == -1) | (memory["owner"] == task.number)
        return either(mine, theta, step.before), memory

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Prune, retrain, fix."""
        owner = self.pruned(net, theta, memory["owner"], task)
        kept = self.retrained(net, torch.where(owner == -1, 0.0, theta), owner == task.index, task)
        if self.freed == "kept":
            kept = torch.where(owner == -1, theta, kept)
        done = torch.arange(task.count, device=owner.device) == task.index
        return kept, {"owner": owner, "learnt": memory["learnt"] | done}

    def pruned(self, net: Net, theta: Tensor, owner: Tensor, task: Task) -> Tensor:
        """The owners (P,) after the task took of every layer what it keeps of the free weights."""
        left = task.count - task.index
        share = 1 - 1 / left if self.prune == "equal" else self.prune
        owner = torch.where(owner == -1, task.index, owner)
        follows = torch.zeros_like(owner, dtype=torch.bool)
        net.weights(follows).fill_(True)  # a gradient, as running statistics do not
        weights, followed = net.parameters(theta), net.parameters(follows)
        for name, part in net.parameters(owner).items():
            # biases and running statistics are taken by the first task, and none is left free
            if name in net.head or part.ndim < 2 or not followed[name].all():
                continue
            mine = (part == task.index).flatten().nonzero().squeeze(1)
            smallest = weights[name].flatten()[mine].abs().argsort(stable=True)
            part.view(-1)[mine[smallest[: round(share * len(mine))]]] = -1
        return owner

    def retrained(self, net: Net, theta: Tensor, trained: Tensor, task: Task) -> Tensor:
        """θ after training some of it (bool (P,)) on the task."""
        theta, mask, adam = theta.clone(), trained.to(theta.dtype), Adam()
        state = adam.start([theta])
        for epoch in range(self.retrain):
            order = task.train[task.key.permutation(f"retrain {epoch}", len(task.train))]
            for rows in order.split(self.retrain_batch):
                gradient = gradient_of(net, functools.partial(_loss, net, rows, task), theta)
                # Adam leaves alone what never had a gradient
                adam.step([theta], [gradient.mul_(mask)], state, self.retrain_lr)
        return theta

    def used(self, theta: Tensor, memory: Memory, index: Tensor) -> Tensor:
        """θ with zeros where a task (1,) does not look: later tasks' weights, and free ones once it has been learnt."""
        owner = memory["owner"]
        free = (owner == -1) & ~memory["learnt"].index_select(0, index)
        return theta * (free | ((owner >= 0) & (owner <= index))).to(theta.dtype)

    def predict(self, net: Net, theta: Tensor, memory: Memory, x: Tensor, tasks: Tensor) -> Tensor:
        """The logits of each sample with the weights of its task."""
        if tasks.stride() == (0,):  # one task for all
            return net.logits(self.used(theta, memory, tasks[:1]), x, tasks)
        numbers = torch.arange(len(memory["learnt"]), device=tasks.device)
        scores = net.logits(self.used(theta, memory, numbers[:1]), x, tasks)
        for number in numbers[1:].split(1):
            own = net.logits(self.used(theta, memory, number), x, tasks)
            scores = torch.where((tasks == number)[:, None], own, scores)
        return scores


def _loss(net: Net, rows: Tensor, task: Task, theta: Tensor) -> Tensor:
    """The cross-entropy of some rows of a task."""
    y, tasks = task.samples.labels(rows)
    logits = net.logits(theta, task.samples.images(rows, theta.dtype), tasks)
    return cross_entropy(task.active(logits, tasks), y)
