"""XdG: context-dependent gating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from continual.errors import BadChain
from continual.learning.models import Gated, Net
from continual.learning.strategy import Growth, Memory, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.stream import Stream


@dataclass(frozen=True)
class Gating(Strategy):
    """What methods share that gate the hidden units by task."""

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    first_task_like_finetuning: ClassVar[bool] = False

    def suits(self, stream: Stream, net: Net) -> None:
        """Tasks are told at test time, and the network has hidden units."""
        super().suits(stream, net)
        if not net.hidden:
            raise BadChain(f"{type(self).__name__} gates hidden units, and this network has none that can be gated; "
                           "use model=mlp with at least one layer")  # fmt: skip


class ContextGates(Gated):
    """A network with fixed gates: ``tables`` (T, H) for each hidden layer."""

    def __init__(self, inner: Net, tables: list[Tensor]) -> None:
        super().__init__(inner)
        self.tables = tables

    def gates(self, p: dict[str, Tensor], tasks: Tensor) -> list[Tensor]:
        """See :meth:`Gated.gates`."""
        return [table[tasks] for table in self.tables]


@dataclass(frozen=True)
class XdG(Gating):
    """XdG (Masse et al. 2018, "Alleviating catastrophic forgetting using context-dependent gating and synaptic
    stabilization", PNAS): for each task a random part of each hidden layer's units is gated to zero.

    h_l = g_l,t ∘ relu(W_l h_{l-1} + b_l), where g_l,t is 0 for a share ``gated`` of the layer's units and 1 for the
    others, drawn anew for each task and then fixed. The task has to be told. The paper chains it with a method that
    holds the weights: ``xdg+si`` or ``xdg+ewc``, whose importances are then those behind the gates.

    Choices: 1. exactly round(``gated`` · H) units of a layer are closed, but never all, as in van de Ven et al. 2022
    (who round down), while the paper's code draws each unit alone, so that the number varies; 2. open gates are 1 and
    are not scaled up for those that are closed; 3. the output layer is not gated; 4. the gates are drawn from the seed.
    The paper took 0.8; van de Ven et al. tuned it: 0.95 for Split MNIST, 0.55 for Permuted MNIST.
    """

    memory_grows_with: ClassVar[Growth] = "tasks"

    gated: float = option(0.8, "share of each hidden layer's units that a task closes", ge=0, lt=1)

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``gates1``, ``gates2``, ... (T, H): the gates of each hidden layer, 0 or 1."""
        tables = {}
        for number, units in enumerate(net.hidden, start=1):
            ranks = torch.stack([task.key.permutation(f"gates {number}", units) for task in stream.tasks])
            closed = min(round(self.gated * units), units - 1)
            tables[f"gates{number}"] = (ranks >= closed).to(theta.dtype)
        return tables

    def network(self, net: Net, memory: Memory) -> Net:
        """The network behind its gates."""
        return ContextGates(net, [memory[f"gates{number}"] for number in range(1, len(net.hidden) + 1)])
