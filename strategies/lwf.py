"""Learning without forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from continual.learning import distill
from continual.learning.strategy import Batch, Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class LwF(Strategy):
    """Learning without forgetting (Li and Hoiem 2016, "Learning without forgetting", ECCV, eq. 1-3).

    loss + λ_o L_old, with L_old = -Σ_k y'_k log ŷ'_k on the new task's images: y' are the probabilities that the
    network gave to the old outputs before the task, ŷ' those it gives now, both with logits divided by T (eq. 3:
    probabilities to the power 1/T, normalised).

    Choices: 1. where tasks have outputs of their own (task scenario) every old task's are a distribution by
    themselves, elsewhere all old outputs are one, which in the domain scenario are all outputs; 2. the mean over old
    tasks, or their sum as in the paper and in avalanche-lib (``heads``); 3. L_old is less the entropy of y', a
    constant, so that it is 0 where nothing changed; 4. ``squared`` multiplies by T² (Hinton et al. 2015), the paper
    and avalanche-lib do not; 5. ``schedule=share`` weighs the data term by 1/t and L_old by λ_o (1 - 1/t) in task t,
    as van de Ven et al. 2022 do; 6. ``among=active`` has ŷ' over the new outputs too, whose y' is 0, as van de Ven et
    al. have it in the class scenario; 7. samples that another strategy adds to the batch are not distilled; 8. no
    warm-up in which the old weights are frozen, and weight decay is the optimiser's matter.

    In the task scenario a step takes a little more with each old task, whose outputs are one distribution more.
    """

    step_grows: ClassVar[bool] = True
    strength: float = option(1.0, "λ_o, the weight of the distillation", ge=0)
    temperature: float = option(2.0, "T, by which logits are divided", gt=0)
    squared: bool = option(False, "whether the distillation is multiplied by T²")
    heads: Literal["mean", "sum"] = option("mean", "what is taken over old tasks that have outputs of their own")
    schedule: Literal["fixed", "share"] = option(
        "fixed", "λ_o alone, or 1/t for the task and λ_o (1 - 1/t) for the old"
    )
    among: Literal["old", "active"] = option("old", "the outputs over which the network's probabilities add up to 1")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``teacher``: the weights before the task (P,)."""
        return {"teacher": theta.clone()}

    def has(self, hook: str) -> bool:
        """The data term is the usual one, but for its share."""
        return super().has(hook) and (hook != "loss" or self.schedule == "share")

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """The data term, or its share."""
        return super().loss(net, theta, memory, batch, out, task) * self._shares(theta, task)[0]

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """λ_o L_old."""
        if task.first:
            return theta.new_zeros(())
        tasks = batch.task[: batch.own]
        teacher = net.logits(memory["teacher"], batch.images[: batch.own], tasks)
        old = distill.old_outputs(task)
        among = distill.active_outputs(task) if self.among == "active" else None
        old_loss = distill.soft_targets(
            out.logits[: batch.own], teacher, old, self.temperature, squared=self.squared, among=among
        )
        return self.strength * self._shares(theta, task)[1] * (len(old) if self.heads == "sum" else 1) * old_loss

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The network is the next task's teacher."""
        return theta, {"teacher": theta}

    def _shares(self, theta: Tensor, task: Task) -> tuple[float | Tensor, float | Tensor]:
        """The factors of the data term and of the distillation."""
        if self.schedule != "share":
            return 1.0, 1.0
        new = 1 / (task.number + 1).double()
        return new.to(theta.dtype), (1 - new).to(theta.dtype)
