"""CWR*: copied weights with re-initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from continual.learning.strategy import Batch, Memory, Step, cross_entropy, either
from continual.options import option
from continual.strategies.ncm import Answers

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class CWRStar(Answers):
    """CWR* (Lomonaco et al. 2020, "Rehearsal-free continual learning over small non-i.i.d. batches", algorithm 1).

    Two heads: a task trains tw, which begins as cw for the task's classes and as 0 for all others. When the task has
    been learnt, each of its classes j is consolidated: cw_j ← (w_past cw_j + tw_j - avg(tw)) / (w_past + 1) with
    w_past = √(past_j / cur_j), where cur_j counts the task's samples of j and past_j those of the tasks before; avg(tw)
    is the mean of all weights of the task's classes. The answer is cw's. The trunk is trained in the first task only.

    Choices: 1. a task is learnt with the outputs of its own classes, as the paper says, or with the active ones, as
    avalanche-lib does (``outputs``); 2. biases, which the algorithm does not mention, are consolidated as weights are,
    with a mean of their own; or they are trained on and used as they are (``bias=trained``), as in avalanche-lib; 3.
    the trunk may be trained in all tasks, or in none (``trunk``); with ``trunk=always`` and SI in a chain
    (``cwr*:trunk=always+si``) it comes near the paper's AR1*, whose SI clips importances and spares the head; 4. what
    an optimiser remembers of a head is not reset with it; ``optimizer_state=reset`` does that.
    """

    first_task_like_finetuning: ClassVar[bool] = False

    trunk: Literal["first", "always", "never"] = option("first", "which tasks train the trunk")
    outputs: Literal["task", "active"] = option("task", "the loss is over the task's own outputs, or the active ones")
    bias: Literal["consolidated", "trained"] = option("consolidated", "what becomes of the head's biases")

    def has(self, hook: str) -> bool:
        """Only what the options need."""
        needed = {"loss": self.outputs == "task", "after_step": self.trunk != "always"}
        return super().has(hook) and needed.get(hook, True)

    def suits(self, stream: Stream, net: Net) -> None:
        """The head is trained."""
        super().suits(stream, net)
        net.check_head("CWR*")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``weight`` (K, D) and, with biases, ``bias`` (K,): cw; ``counts`` (K,): past; ``head`` (P,): tw's of θ."""
        cw = {name: torch.zeros_like(trained) for name, trained in _head(net, theta).items()}
        every = torch.ones_like(stream.test_outputs.units[0])
        return cw | {"counts": torch.zeros_like(cw["weight"][:, 0]), "head": net.head_rows(theta, every)}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """tw begins."""
        theta = theta.clone()
        for name, trained in _head(net, theta).items():
            own = task.own_units.reshape(-1, *(1,) * (trained.ndim - 1))
            if name == "weight" or self.bias == "consolidated":
                trained.copy_(torch.where(own, memory[name], 0.0))
        return theta, memory

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """Cross-entropy over the outputs of each sample's own task, or the active ones."""
        if self.outputs == "active":
            return super().loss(net, theta, memory, batch, out, task)
        return cross_entropy(task.outputs.own(out.logits, batch.task), batch.y, batch.weight)

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The trunk stays where it was, where the task does not train it."""
        if self.trunk == "first" and task.first:
            return theta, memory
        return either(memory["head"], theta, step.before), memory

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The task's classes are consolidated."""
        current = torch.bincount(task.samples.y[task.train], minlength=len(memory["counts"])).to(theta.dtype)
        own, past = current > 0, (memory["counts"] / current.clamp_min(1)).sqrt()
        after: Memory = {"counts": memory["counts"] + current}
        for name, trained in _head(net, theta).items():
            if name == "bias" and self.bias == "trained":
                after["bias"] = trained
                continue
            share, mine = (line.reshape(-1, *(1,) * (trained.ndim - 1)) for line in (past, own))
            shifted = trained - trained[own].mean()
            after[name] = torch.where(mine, (share * memory[name] + shifted) / (share + 1), memory[name])
        return theta, memory | after

    def scores(self, memory: Memory, features: Tensor) -> Tensor:
        """The logits of cw."""
        logits = features @ memory["weight"].T
        return logits + memory["bias"] if "bias" in memory else logits


def _head(net: Net, theta: Tensor) -> dict[str, Tensor]:
    """The head's ``weight`` and, where it has one, ``bias``, as views of θ."""
    parts = net.parameters(theta)
    return {name.rpartition(".")[2]: parts[name] for name in net.head}
