"""Deep streaming linear discriminant analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.learning.strategy import Memory
from continual.options import option
from continual.strategies.ncm import OnTrunk, features_of

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class SLDA(OnTrunk):
    """Deep streaming LDA (Hayes & Kanan 2020, "Lifelong machine learning with deep streaming linear discriminant
    analysis", eq. 1-4): argmax_y w_y'φ(x) + b_y with w_y = Λ μ_y, b_y = -½ μ_y'Λ μ_y, Λ = ((1 - ε) Σ + ε I)⁻¹.

    Sample by sample in the data's order, with μ, c of the sample's class and t samples so far:
    Σ ← (t Σ + Δ) / (t + 1), Δ = t/(t + 1) (φ - μ)(φ - μ)', then μ ← (c μ + φ) / (c + 1). The sums are written out, so
    that no loop is needed; a task is taken up when it has been learnt.

    Choices: 1. ``covariance=exact`` has c/(c + 1) in place of t/(t + 1), which makes Σ the covariance of the samples
    around the final means of their classes, in any order; the paper's (``streamed``, avalanche-lib has it too) also
    counts the first sample of a class, around a mean of 0; 2. Σ takes up every task, or stays as the first one made it
    (``plastic``), the paper's two variants; 3. the first task is taken up as the others are, while the paper may start
    with a shrunk covariance of it; 4. the trunk is trained in the first task, or before (``trunk=never``), as in the
    paper; 5. all classes are as likely as any other.
    """

    shrinkage: float = option(1e-4, "ε, how much of the covariance is the identity", gt=0, le=1)
    covariance: Literal["exact", "streamed"] = option("exact", "around the final means of classes, or as in the paper")
    plastic: bool = option(True, "whether the covariance takes up tasks after the first")

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``means``, ``counts``; ``covariance``: Σ (D, D); ``weight`` (K, D) and ``bias`` (K,): w and b."""
        memory = super().init(net, theta, stream)
        means, counts = memory["means"], memory["counts"]
        size = means.shape[1]
        weights = {"weight": torch.zeros_like(means), "bias": torch.zeros_like(counts)}
        return memory | weights | {"covariance": theta.new_zeros(size, size)}

    def scores(self, memory: Memory, features: Tensor) -> Tensor:
        """w_y'φ(x) + b_y."""
        return features @ memory["weight"].T + memory["bias"]

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Means and covariance take up the task, and w and b follow."""
        features, y = features_of(net, theta, task, task.train).double(), task.samples.y[task.train]
        after = self.taken_up({name: memory[name].double() for name in ("means", "counts")}, features, y)
        covariance = memory["covariance"].double()
        if self.plastic or task.first:
            covariance = self.covered(memory, covariance, features, y)
        means = after["means"]
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * torch.eye(len(covariance)).to(covariance)
        weight = torch.linalg.solve_ex(shrunk, means.T)[0].T  # which does not raise where features have run away
        after |= {"covariance": covariance, "weight": weight, "bias": -0.5 * (means * weight).sum(1)}
        return theta, {name: value.to(theta.dtype) for name, value in after.items()}

    def covered(self, memory: Memory, covariance: Tensor, features: Tensor, y: Tensor) -> Tensor:
        """Σ after features (n, D) of classes y (n,), one after the other."""
        members = torch.nn.functional.one_hot(y, len(memory["counts"])).to(features.dtype)
        earlier = (members.cumsum(0) - members).gather(1, y[:, None]).squeeze(1)  # of the same class, in these rows
        class_count = memory["counts"][y] + earlier
        sums = torch.zeros_like(features)
        for label in y.unique():
            own = y == label
            sums[own] = features[own].cumsum(0) - features[own]
        means = (memory["counts"][y, None] * memory["means"][y] + sums) / class_count.clamp_min(1)[:, None]
        before = memory["counts"].sum().double()
        count = before + torch.arange(len(y)).to(before)
        seen = class_count if self.covariance == "exact" else count
        weighted = (features - means) * (seen / (seen + 1))[:, None]
        return (before * covariance + weighted.T @ (features - means)) / (before + len(y))
