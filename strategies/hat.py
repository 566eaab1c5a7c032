"""HAT: hard attention to the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch

from continual.errors import BadChain
from continual.learning.models import Gated, LinearNet, Net
from continual.learning.strategy import Batch, Growth, Memory, Step
from continual.options import option
from continual.strategies.xdg import Gating

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Out
    from continual.streams.stream import Stream, Task


class Attention(Gated):
    """A network whose gates are learnt: a_l = σ(s e_l), with an embedding e_l (T, H) for each hidden layer."""

    inner: LinearNet

    def __init__(self, inner: LinearNet, tasks: int, s: float | Tensor) -> None:
        super().__init__(inner, {f"embedding{n}": (tasks, units) for n, units in enumerate(inner.hidden, start=1)})
        self.tasks, self.s = tasks, s
        self.size_of_embeddings = self.size - inner.size  # θ begins with them

    def at(self, s: float | Tensor) -> Attention:
        """The same network at another s."""
        return Attention(self.inner, self.tasks, s)

    def gates(self, p: dict[str, Tensor], tasks: Tensor) -> list[Tensor]:
        """See :meth:`Gated.gates`: (B, H) each."""
        return [torch.sigmoid(self.s * p[name][tasks]) for name in self.extra]


@dataclass(frozen=True)
class HAT(Gating):
    """HAT (Serrà et al. 2018, "Overcoming catastrophic forgetting with hard attention to the task", eq. 1-7).

    h_l ← a_l^t ∘ h_l with a_l^t = σ(s e_l^t) (1); s rises within each epoch of B batches from 1/s_max to s_max,
    s = 1/s_max + (s_max - 1/s_max) (b - 1)/(B - 1) (3), and is s_max in tests. With a^{<t} the largest attention of the
    tasks before, g_l,ij ← (1 - min(a_l,i^{<t}, a_{l-1},j^{<t})) g_l,ij (2); an embedding's gradient is compensated for
    the annealing, q ← s_max [cosh(s e) + 1] / (s [cosh(e) + 1]) q (4-6); and attention to what is unused costs
    c Σ a^t (1 - a^{<t}) / Σ (1 - a^{<t}) (7). The task has to be told.

    Choices: 1. |s e| ≤ 50 in (6) and |e| ≤ ``clamp``, as in the paper; 2. the authors' code takes (rows done)/(rows)
    for (b - 1)/(B - 1), so it never quite reaches s_max; 3. biases have the factor 1 - a_l^{<t}, the first layer's
    weights too, as in the authors' code; each task trains its own output units and its own embeddings alone;
    4. momentum and Adam move a weight whose gradient is zero, so what has the factor 0 is put back after each step,
    which keeps it to the bit; Adam also undoes a factor between 0 and 1, so ``scaled=step`` scales what a step does
    instead (the same for plain gradient descent, which the authors use); 5. no dropout, no clipping of gradients;
    6. an epoch has as many rows as the task; where it has fewer (``last=drop``) s reaches s_max one step late, in the
    next epoch's first, and where it has more (a part of a chain that adds some) its end is not seen; where it is one
    batch, B = 1, s is 1/s_max in the first step and s_max in the others; 7. in a chain, a part that looks at the
    network when a task ends (EWC's Fisher) sees it at the s of the next step, not at s_max; 8. σ is rounded to 1 where
    s e is above 17 (in float64 37), and its gradient to 0, as in the authors' code: a gate that is open so far stays as
    it is, while one that is closed as far, whose σ is a small number, can still be opened.
    """

    memory_grows_with: ClassVar[Growth] = "tasks"

    strength: float = option(0.75, "c, the weight of the cost of attention", ge=0)
    s_max: float = option(400.0, "how steep the gates become", gt=1)
    clamp: float = option(6.0, "bound of the embeddings", gt=0)
    scaled: Literal["gradient", "step"] = option("gradient", "what is multiplied by 1 - min(a, a) of earlier tasks")

    def suits(self, stream: Stream, net: Net) -> None:
        """Tasks are told, and the network is made of linear layers: which weights a unit has is known of those."""
        super().suits(stream, net)
        self._linear(net)

    def extend(self, net: Net, stream: Stream) -> Net:
        """An embedding for each task and hidden layer."""
        return Attention(self._linear(net), len(stream.tasks), self.s_max)

    @staticmethod
    def _linear(net: Net) -> LinearNet:
        """The network, or the error where another strategy, or the model, has made it something else."""
        if not isinstance(net, LinearNet):
            raise BadChain("HAT knows the weights of a unit in linear layers only; use model=mlp, without other gates")
        return net

    def network(self, net: Net, memory: Memory) -> Net:
        """The network at the step's s."""
        return cast(Attention, net).at(memory["s"])

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``s``; ``done`` of ``epoch`` rows; ``factor`` (P,) on gradients; ``used1``, ... (H,): a^{<t} of a layer."""
        used = {f"used{n}": theta.new_zeros(units) for n, units in enumerate(net.hidden, start=1)}
        s, done = theta.new_tensor(self.s_max), torch.zeros_like(theta[0], dtype=torch.int64)
        return used | {"s": s, "done": done, "epoch": torch.ones_like(done), "factor": torch.ones_like(theta)}

    def used(self, net: Net, memory: Memory) -> list[Tensor]:
        """a^{<t} of each hidden layer."""
        return [memory[f"used{n}"] for n in range(1, len(net.hidden) + 1)]

    def before_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """What earlier tasks attend to is protected, with their outputs and embeddings; s begins anew."""
        own, factor = cast(Attention, net), torch.ones_like(theta)
        factor[net.head_rows(theta, ~task.own_units)] = 0.0
        parts, used = net.parameters(factor), self.used(net, memory)
        inputs = [torch.ones_like(parts[f"{own.inner.names[0]}.weight"][0]), *used]
        for name, before, after in zip(own.inner.names, inputs, used, strict=False):
            parts[f"{name}.weight"].copy_(1 - torch.minimum(after[:, None], before))
            parts[f"{name}.bias"].copy_(1 - after)
        for name in own.extra:
            parts[name].zero_()[task.index] = 1.0
        fresh = {"s": torch.full_like(memory["s"], 1 / self.s_max), "done": torch.zeros_like(memory["done"])}
        return theta, memory | fresh | {"factor": factor, "epoch": torch.full_like(memory["done"], len(task.train))}

    def penalty(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """c Σ a^t (1 - a^{<t}) / Σ (1 - a^{<t})."""
        attention = torch.cat(cast(Attention, net).gates(net.parameters(theta), task.number[None]), -1)
        unused = 1 - torch.cat(self.used(net, memory))
        return self.strength * (attention * unused).sum() / unused.sum().clamp_min(1e-12)

    def gradient(self, net: Net, theta: Tensor, memory: Memory, gradient: Tensor, batch: Batch, task: Task) -> Tensor:
        """Embeddings are compensated, and what is used is held."""
        size, s = cast(Attention, net).size_of_embeddings, memory["s"]
        e, q = theta[:size], gradient[:size]
        q = q * (self.s_max / s) * (torch.cosh((s * e).clamp(-50, 50)) + 1) / (torch.cosh(e) + 1)
        gradient = torch.cat([q, gradient[size:]])
        return memory["factor"] * gradient if self.scaled == "gradient" else gradient

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """Embeddings are bounded, what is fully used is put back, and s goes on."""
        size, factor = cast(Attention, net).size_of_embeddings, memory["factor"]
        bounded = torch.cat([theta[:size].clamp(-self.clamp, self.clamp), theta[size:]])
        share = factor if self.scaled == "step" else (factor > 0).to(theta.dtype)
        rows, own = memory["epoch"], step.batch.own
        done = memory["done"] + own
        done = torch.where(done > rows, own, done) % rows  # more than all rows: the last epoch ended without some
        last = (rows - 1) // own
        # a partial batch is an epoch's last, so the next batch's place needs no other batch size than this one's
        place = torch.where(last > 0, done.to(theta.dtype) / (own * last.clamp_min(1)), 1).clamp_max(1)
        s = 1 / self.s_max + (self.s_max - 1 / self.s_max) * place
        return torch.lerp(step.before, bounded, share), memory | {"s": s, "done": done}

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """a^{<t} takes up the task's attention."""
        attention = cast(Attention, net).at(self.s_max).gates(net.parameters(theta), task.number[None])
        pairs = zip(self.used(net, memory), (gate[0] for gate in attention), strict=True)
        return theta, memory | {f"used{n}": torch.maximum(*pair) for n, pair in enumerate(pairs, start=1)}

    def predict(self, net: Net, theta: Tensor, memory: Memory, x: Tensor, tasks: Tensor) -> Tensor:
        """The logits at s_max."""
        return cast(Attention, net).at(self.s_max).logits(theta, x, tasks)
