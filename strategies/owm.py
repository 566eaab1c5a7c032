"""Orthogonal weights modification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from continual.errors import BadChain, BadOption
from continual.learning.strategy import Batch, Memory, Step, Strategy
from continual.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.streams.stream import Stream, Task


@dataclass(frozen=True)
class OWM(Strategy):
    """Orthogonal weights modification: a linear layer moves only orthogonally to its inputs in past tasks.

    Zeng et al. 2019, "Continual learning of context-dependent processing in neural networks", eq. 1-3: ΔW P instead
    of ΔW, with P = I - A(A'A + αI)⁻¹A' for the matrix A of those inputs, by recursive least squares from P = I: for
    the mean input x̄ of each batch, k = P x̄ / (α + x̄'P x̄), P ← P - k x̄'P. A bias is the weight of an input 1.

    Choices: 1. P takes up a task's inputs at its end, so that the first task is free, as the paper says, or at each
    step, before that is projected, as the authors' code does (``update``); 2. α may fall during a task, exponentially
    from ``alpha`` to ``alpha decay``, with values for all layers or for each; that needs to know where a task ends, so
    not with ``update=batch``; 3. x̄ is the mean of a layer's inputs over a batch, as in the authors' code, of
    ``batch_size`` rows: their 40 for MNIST. The fewer, the more directions are closed; 1 closes every input's; 4. the
    gradient is projected, as in the paper, or what the optimiser makes of it (``project=step``), which keeps old
    outputs under any optimiser. For SGD the two are one, but for momentum from before; Adam's scaling bends a
    projected gradient back. Output units are projected as all others are, those of past tasks too.
    """

    alpha: tuple[float, ...] = option((0.1,), "α, below which an input's strength is no reason to protect it", gt=0)
    decay: tuple[float, ...] = option((1.0,), "the factor by which α falls during a task", gt=0, le=1)
    update: Literal["task", "batch"] = option("task", "whether P takes up inputs at a task's end or at each step")
    batch_size: int = option(40, "rows whose mean input is taken up at once, at a task's end", ge=1)
    project: Literal["gradient", "step"] = option("gradient", "what is made orthogonal to past inputs")

    @property
    def first_task_like_finetuning(self) -> bool:  # type: ignore[override]
        """Not where a task's own inputs are taken up while it is learnt."""
        return self.update == "task"

    def check(self) -> None:
        """α falls where the end of a task is known."""
        if self.update == "batch" and set(self.decay) != {1.0}:
            raise BadOption("OWM: decay needs update=task; with update=batch α stays as it is, so give decay=1.0")

    def suits(self, stream: Stream, net: Net) -> None:
        """The network is made of linear layers, and there are as many values of α."""
        super().suits(stream, net)
        theta = torch.zeros(net.size, device=stream.samples.image.device)
        layers = len(self.inputs(net, theta, theta.new_zeros(1, *stream.shape), stream.samples.task[:1]))
        for name, values in (("alpha", self.alpha), ("decay", self.decay)):
            if len(values) not in (1, layers):
                raise BadChain(f"OWM: {name} has {len(values)} values for {layers} layers; give 1 or {layers}")

    def inputs(self, net: Net, theta: Tensor, x: Tensor, tasks: Tensor) -> dict[str, Tensor]:
        """Each layer's mean input (inputs + 1,), with the 1 of its bias at the end."""
        layers = net.linear_layers(theta, x, tasks)
        if layers is None:
            raise BadChain(
                "OWM projects linear layers, and this network learns others; use model=mlp, without "
                "gates, or one of torchvision's with train=head"
            )
        return {name: torch.cat([h.mean(0), torch.ones_like(h[0, :1])]) for name, h, _ in layers}

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """P of each layer (inputs + 1, inputs + 1), under the layer's name."""
        found = self.inputs(net, theta, theta.new_zeros(1, *stream.shape), stream.samples.task[:1])
        return {name: torch.eye(len(mean), dtype=theta.dtype, device=theta.device) for name, mean in found.items()}

    def has(self, hook: str) -> bool:
        """What it does between a gradient and a step."""
        needed = {
            "gradient": self.project == "gradient",
            "after_step": self.project == "step" or self.update == "batch",
        }
        return super().has(hook) and needed.get(hook, True)

    def taken_up(self, memory: Memory, inputs: dict[str, Tensor], done: float = 0.0) -> Memory:
        """The projectors after the mean inputs of one more batch, when the fraction ``done`` of a task is over."""
        after = {}
        for layer, (name, mean) in enumerate(inputs.items()):
            alpha = self.alpha[layer % len(self.alpha)] * self.decay[layer % len(self.decay)] ** done
            k = memory[name] @ mean
            after[name] = memory[name] - torch.outer(k, k) / (alpha + mean @ k)
        return after

    def projected(self, net: Net, memory: Memory, change: Tensor) -> Tensor:
        """A change (P,) of θ, orthogonal to past inputs."""
        parts = dict(net.parameters(change))
        for name, projector in memory.items():
            weight, bias = f"{name}.weight", f"{name}.bias"
            joined = torch.cat([parts[weight], parts[bias][:, None]], dim=1) @ projector
            parts |= {weight: joined[:, :-1], bias: joined[:, -1]}
        return torch.cat([parts[name].flatten() for name in net.shapes])

    def at_step(self, net: Net, theta: Tensor, memory: Memory, batch: Batch) -> Memory:
        """The projectors of a step."""
        if self.update == "task":
            return memory
        return self.taken_up(memory, self.inputs(net, theta, batch.images, batch.task))

    def gradient(self, net: Net, theta: Tensor, memory: Memory, gradient: Tensor, batch: Batch, task: Task) -> Tensor:
        """The gradient, orthogonal to past inputs."""
        if self.update == "task" and task.first:
            return gradient
        return self.projected(net, self.at_step(net, theta, memory, batch), gradient)

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The step, orthogonal to past inputs."""
        if self.update == "task" and task.first:
            return theta, memory
        memory = self.at_step(net, step.before, memory, step.batch)
        if self.project == "step":
            theta = step.before + self.projected(net, memory, theta - step.before)
        return theta, memory

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """P takes up the task's inputs, as its last weights make them."""
        if self.update == "batch":
            return theta, memory
        batches = task.train[task.key.permutation("inputs", len(task.train))].split(self.batch_size)
        for number, rows in enumerate(batches):
            x = task.samples.images(rows, theta.dtype)
            means = self.inputs(net, theta, x, task.samples.task[rows])
            memory = self.taken_up(memory, means, number / len(batches))
        return theta, memory
