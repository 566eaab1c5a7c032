"""Nearest class mean, and what strategies share that answer from features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.learning.strategy import Memory, Step, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task

CHUNK = 512


def features_of(net: Net, theta: Tensor, task: Task, rows: Tensor) -> Tensor:
    """The features (n, D) of rows, for between tasks."""
    with torch.no_grad():
        parts = [
            net.features(theta, task.samples.images(part, theta.dtype), task.samples.task[part])
            for part in rows.split(CHUNK)
        ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Answers(Strategy):
    """What strategies share whose answer is a score of the features, from what they keep of each class.

    ``memory["counts"]`` (K,) says how many samples of each output's class were taken up, always at the end of a task.
    Until then classes have lower scores than all that were taken up, and among each other those of the network: it
    answers where the task is told and none of its classes was taken up.
    """

    def scores(self, memory: Memory, features: Tensor) -> Tensor:
        """The scores (B, K) of features (B, D); those of classes that were not taken up don't count."""
        raise NotImplementedError

    def predict(self, net: Net, theta: Tensor, memory: Memory, x: Tensor, tasks: Tensor) -> Tensor:
        """The scores of classes that were taken up, above the network's own of the others."""
        out, known = net.forward(theta, x, tasks), memory["counts"] > 0
        # distances are differences of large numbers, which half precision does not keep
        with torch.autocast(x.device.type, enabled=False):
            scores = self.scores(memory, out.features.to(theta.dtype))
        scores, logits = scores.double(), out.logits.double()  # whose differences are small beside large scores
        least = scores.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
        others = least - 1 - (logits.amax(-1, keepdim=True) - logits)
        return torch.where(known.any(), torch.where(known, scores, others), logits)


@dataclass(frozen=True)
class Means(Answers):
    """What strategies share that keep the mean feature of each class."""

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``means`` (K, D) of each class's features, and ``counts`` (K,) of what they are the means of."""
        features = net.features(theta, theta.new_zeros(1, *stream.shape), stream.samples.task[:1])
        return {"means": theta.new_zeros(stream.units, features.shape[1]), "counts": theta.new_zeros(stream.units)}

    def taken_up(self, memory: Memory, features: Tensor, y: Tensor) -> Memory:
        """The running means after features (n, D) of classes y (n,)."""
        members = torch.nn.functional.one_hot(y, len(memory["counts"])).to(features.dtype)
        counts = memory["counts"] + members.sum(0)
        moved = members.T @ (features - memory["means"][y])
        return memory | {"means": memory["means"] + moved / counts.clamp_min(1)[:, None], "counts": counts}


@dataclass(frozen=True)
class OnTrunk(Means):
    """What strategies share whose trunk need not be trained by every task.

    Nobody goes back to the means of earlier classes: as the trunk moves, they are of features that are no more.
    """

    trunk: Literal["first", "always", "never"] = option("first", "which tasks train the network")

    @property
    def first_task_like_finetuning(self) -> bool:  # type: ignore[override]
        """Not where the network stays untrained."""
        return self.trunk != "never"

    def has(self, hook: str) -> bool:
        """A network that is always trained needs no hook."""
        return super().has(hook) and (hook != "after_step" or self.trunk != "always")

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """θ stays where it was, where the task does not train it."""
        frozen = self.trunk == "never" or (self.trunk == "first" and not task.first)
        return (step.before if frozen else theta), memory


@dataclass(frozen=True)
class NCM(OnTrunk):
    """Nearest class mean (Mensink et al. 2013, "Distance-based image classification", eq. 1-2): argmin_y ‖φ(x) - μ_y‖.

    μ_y is the mean feature of class y, a running mean over its samples, taken up when a task has been learnt; φ is
    what the last layer takes. With a trunk that stays as it is nothing is forgotten.

    Choices: 1. the trunk is trained with cross-entropy in the first task and then stays (``trunk``), is trained on,
    which makes earlier means stale, or is never trained, for a network that was trained before; 2. features are taken
    as they are, or all vectors are scaled to length 1, those that are averaged and the averages too
    (``metric=cosine``), as in iCaRL; avalanche-lib's classifier scales features only.
    """

    metric: Literal["euclidean", "cosine"] = option("euclidean", "distance of features, or of their directions")

    def embedded(self, features: Tensor) -> Tensor:
        """Where vectors (n, D) are compared."""
        return torch.nn.functional.normalize(features) if self.metric == "cosine" else features

    def scores(self, memory: Memory, features: Tensor) -> Tensor:
        """-‖φ(x) - μ_y‖."""
        return -torch.cdist(self.embedded(features), self.embedded(memory["means"]))

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """The means take up the task."""
        features = self.embedded(features_of(net, theta, task, task.train))
        return theta, self.taken_up(memory, features, task.samples.y[task.train])
