"""Riemannian walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.learning.importance import pull
from continual.learning.strategy import Batch, Memory, Step, Strategy, cross_entropy, either
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net, Out
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class RWalk(Strategy):
    """Riemannian walk (Chaudhry et al. 2018, "Riemannian walk for incremental learning", eq. 6-8).

    loss + λ Σ_i (F_i + s_i) (θ_i - θ*_i)², with F the Fisher information as a moving average over the steps,
    F ← α g² + (1 - α) F, and s the score of the path: over intervals of Δt steps from θ(t) to θ(t + Δt),
    s_i += max(0, Σ_steps -g_i Δθ_i) / (½ F_i (θ_i(t + Δt) - θ_i(t))² + ε). After a task its score is averaged with
    that of the tasks before, s ← ½ (s + s_task), and F and s are each scaled to [0, 1]. All g are of the data term
    alone. The paper adds a memory of samples: ``rwalk+replay``.

    Choices: 1. g² is the square of a batch's mean gradient, as in the authors' code and avalanche-lib, or the mean of
    the squares of its samples' gradients (``fisher=samples``), as the equation says; 2. the F of an interval is the one
    when it begins, as in eq. 7 and the authors' code, or when it ends (``at=end``), as in avalanche-lib; the first
    interval begins with the first step's; 3. negative scores are set to zero interval by interval, as in the authors'
    code, or only in the penalty (``clip=total``), as in avalanche-lib; 4. the authors' code has no factor ½ (``half``),
    and avalanche-lib ε = 1.2e-7; 5. F and s are scaled by their smallest and largest entries, as in the authors' code,
    by their largest, as in avalanche-lib, or not at all (``scale``); 6. the last interval of a task ends with it, where
    avalanche-lib leaves out an incomplete one; 7. the authors' code adds ½ (s + s_task) to s instead of replacing it.
    """

    strength: float = option(1.0, "λ, the weight of the penalty", ge=0)
    alpha: float = option(0.9, "α, the part of the newest step in the Fisher", gt=0, le=1)
    interval: int = option(10, "Δt, the steps over which a score is formed", ge=1, le=10_000_000)
    damping: float = option(0.001, "ε, which bounds the score where a weight hardly moved", gt=0)
    fisher: Literal["batch", "samples"] = option("batch", "what is squared: the batch's gradient, or each sample's")
    at: Literal["start", "end"] = option("start", "the Fisher that an interval's score is formed with")
    clip: Literal["interval", "total"] = option("interval", "where negative scores are set to zero")
    half: bool = option(True, "whether a score's denominator has the factor 1/2")
    scale: Literal["range", "largest", "none"] = option("range", "how Fisher and score are brought to the same scale")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``fisher``: F; ``score``: s; ``importance``: F + s as scaled; ``anchor``: θ*. Of the task: ``task_score``.

        Of the interval: ``start``: θ, ``start_fisher``: F, ``path``: Σ -g Δθ; (P,) each. ``steps``: of the task, ().
        """
        names = ("fisher", "score", "importance", "task_score", "start_fisher", "path")
        zeros = {name: torch.zeros_like(theta) for name in names}
        steps = torch.zeros_like(theta[0], dtype=torch.int64)
        return zeros | {"anchor": theta.clone(), "start": theta.clone(), "steps": steps}

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """An interval begins, where the last one ended or where an earlier part of a chain has set θ since."""
        return theta, memory | {"start": theta}

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """λ Σ_i (F_i + s_i) (θ_i - θ*_i)²."""
        return self.strength * pull(theta, memory["anchor"], memory["importance"])

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """F and the path take up the step; every Δt steps the interval ends."""
        square = step.gradient.square() if self.fisher == "batch" else self.mean_square(net, step, task)
        fisher = torch.lerp(memory["fisher"], square, self.alpha)
        start_fisher = memory["start_fisher"]
        if task.first:  # nothing to average with yet
            first = memory["steps"] == 0
            fisher, start_fisher = either(first, square, fisher), either(first, square, start_fisher)
        path = torch.addcmul(memory["path"], step.gradient, theta - step.before, value=-1)
        memory = memory | {"fisher": fisher, "start_fisher": start_fisher, "path": path, "steps": memory["steps"] + 1}
        ends, ended = memory["steps"] % self.interval == 0, self.ended(theta, memory)
        new = {name: either(ends, value, memory[name]) for name, value in ended.items() if value is not memory[name]}
        return theta, memory | new

    def ended(self, theta: Tensor, memory: Memory) -> Memory:
        """The memory when an interval has ended: its score is added, and the next one begins."""
        fisher = memory["start_fisher" if self.at == "start" else "fisher"]
        square, damping = (theta - memory["start"]).square(), theta.new_full((), self.damping)
        score = memory["path"] / torch.addcmul(damping, fisher, square, value=0.5 if self.half else 1.0)
        score = memory["task_score"] + (score.clamp_min(0) if self.clip == "interval" else score)
        began = {"start": theta, "start_fisher": memory["fisher"], "path": torch.zeros_like(theta)}
        return memory | began | {"task_score": score}

    def mean_square(self, net: Net, step: Step, task: Task) -> Tensor:
        """The mean of the squared gradients of the batch's samples, at θ before the step: (P,)."""
        batch = step.batch

        def loss(theta: Tensor, x: Tensor, y: Tensor, of: Tensor) -> Tensor:
            logits = net.logits(theta, x[None], of[None])
            return cross_entropy(task.active(logits, of[None]), y[None])

        mapped = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))
        squares = mapped(step.before, batch.images, batch.y, batch.task).square()
        weight = batch.weights(squares)
        mean: Tensor = weight @ squares / weight.sum()
        return mean

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Scores are averaged, and what holds θ from now on is scaled."""
        memory = self.ended(theta, memory)
        score = memory["task_score"] if task.first else (memory["score"] + memory["task_score"]) / 2
        importance = self.scaled(memory["fisher"]) + self.scaled(score.clamp_min(0))
        done = {"score": score, "importance": importance, "anchor": theta}
        new = {"task_score": torch.zeros_like(theta), "steps": torch.zeros_like(memory["steps"])}
        return theta, memory | done | new

    def scaled(self, values: Tensor) -> Tensor:
        """Values (P,) in [0, 1]."""
        if self.scale == "none":
            return values
        lowest = values.min() if self.scale == "range" else torch.zeros_like(values[0])
        largest = values.max() - lowest
        return (values - lowest) / torch.where(largest > 0, largest, 1.0)
