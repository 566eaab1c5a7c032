"""Networks as pure functions of θ, one flat vector of all trainable parameters."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from continual.errors import BadChain, OutOfMemory, listed
from continual.learning import layers
from continual.options import Configured, option
from continual.streams.rng import Key

if TYPE_CHECKING:
    from torch import Tensor


class Out(NamedTuple):
    """One forward pass: ``logits`` (B, K) and ``features`` (B, D), what the last layer takes."""

    logits: Tensor
    features: Tensor


BYTES = 16
"""What a parameter takes in training, at least: itself, its gradient, and what the optimiser keeps."""


@functools.cache  # hooks may make a network in each step, and asking the system takes as long as ten operations
def check_size(parameters: int) -> None:
    """:class:`~continual.errors.OutOfMemory` for a network that is larger than this machine's free memory."""
    import psutil

    free = int(psutil.virtual_memory().available)
    if parameters * BYTES > free:
        raise OutOfMemory(f"a network of {parameters:,} parameters takes {parameters * BYTES / 1e9:,.0f} GB in "
                          f"training, and {free / 1e9:,.0f} GB are free; make its layers smaller")  # fmt: skip


class Net:
    """A network of fixed shapes. Subclasses say how a batch goes through named parameters.

    θ has shape (P,). A vector that is being trained carries its parameters as tensors of their own (``attach``), so
    that gradients need not be cut and joined; any other vector is cut where it is used. Either way an author writes
    ``net.logits(theta, x)``.
    """

    head: tuple[str, ...] = ("head.weight", "head.bias")
    """The parameters that have a row for each output unit; of a module those of them that θ has."""
    hidden: tuple[int, ...] = ()
    """Units of each hidden layer that can be gated."""
    convolves: bool = False
    """Whether it takes images through convolutions."""
    skips: bool = False
    """Whether one of them takes every second pixel, or fewer, of less than 16 channels: see :func:`modules.skips`."""
    as_usual: bool = False
    """Whether it takes images with their channels in front alone, as they lie in memory."""
    statistics: int = 0
    """How many of the last entries of θ are running statistics, which follow the batches instead of a gradient."""
    frozen: int = 0
    """How many numbers the network has beside θ: parameters, statistics and other buffers that stay as they are."""
    mapped: bool = False
    """Whether it is called for seeds side by side, which a layer may do in another order of the same sums."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.sizes = [math.prod(shape) for shape in shapes.values()]
        self.size = sum(self.sizes)
        self.kept: dict[str, Tensor] = {}  # by name, what a module has that is not in θ
        check_size(self.size)

    def apply(self, p: dict[str, Tensor], x: Tensor, gates: Sequence[Tensor] | None = None) -> Out:
        """The forward pass of a batch ``x`` (B, ...) through parameters by name.

        ``gates`` (B, H) for each hidden layer, where the network has ``hidden`` layers, multiply its activations.
        """
        raise NotImplementedError

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """The θ of an untrained network, drawn from the key."""
        raise NotImplementedError

    def parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of θ (writing into one writes into θ)."""
        attached: dict[str, Tensor] | None = getattr(theta, "parameters_by_name", None)
        if attached is not None:
            return attached
        parts = zip(self.shapes.items(), theta.split(self.sizes, -1), strict=True)
        return {name: part.unflatten(-1, shape) if shape else part.squeeze(-1) for (name, shape), part in parts}

    def attach(self, theta: Tensor, parts: list[Tensor]) -> Tensor:
        """Let θ carry its parameters, in the order of ``shapes``."""
        theta.parameters_by_name = dict(zip(self.shapes, parts, strict=True))  # type: ignore[attr-defined]
        return theta

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        """Logits and features of images ``x`` (B, C, H, W); ``tasks`` (B,) for networks that differ by task."""
        return self.apply(self.parameters(theta), x)

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        """The forward pass of a step, and the running statistics after it, if there are any; ``fixed``: as they were.

        It differs from :meth:`forward` where a network normalises by the batch that it learns from, or drops units.
        Only the step itself calls it: a strategy's own passes never move the statistics, and drop nothing.
        """
        return self.forward(theta, x, tasks), None

    def fixed(self, theta: Tensor) -> bool:
        """Whether running statistics stay as they are in a task that begins with θ, (P,) or (R, P)."""
        return False

    def hand_on(self, theta: Tensor, index: int) -> None:
        """Task ``index`` was learnt: running statistics of its own are those of the later tasks, too, until they learn.

        It writes into θ, (P,) or (R, P).
        """

    @property
    def mixes(self) -> bool:
        """Whether what comes out in :meth:`learn` may depend on more than θ and the image: on its batch, on chance."""
        return type(self).learn is not Net.learn

    def check_kept(self) -> None:
        """Raise :class:`~continual.errors.BadChain` where a pass wrote to what the network keeps beside θ."""

    def work(self, shape: tuple[int, ...]) -> int:
        """The multiplications of a forward pass of one image (C, H, W); in linear layers one for each parameter."""
        return self.size

    def widest(self, shape: tuple[int, ...]) -> int:
        """The numbers of the largest tensor that a forward pass of one image (C, H, W) holds; the image, if not more.

        It says how many images are evaluated at once.
        """
        return math.prod(shape)

    def weights(self, theta: Tensor) -> Tensor:
        """The entries of θ that follow a gradient, without running statistics: a view of θ, or θ itself."""
        return theta[..., : -self.statistics] if self.statistics else theta

    def logits(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        """The logits (B, K), in θ's type, whatever arithmetic made them."""
        return self.forward(theta, x, tasks).logits.to(theta.dtype)

    def features(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        """What the last layer takes (B, D), in θ's type."""
        return self.forward(theta, x, tasks).features.to(theta.dtype)

    def check_head(self, who: str) -> None:
        """Raise :class:`~continual.errors.BadChain` where outputs have no weights of their own in θ."""
        if Net.head[0] not in self.head:
            raise BadChain(f"{who} keeps each output's weights apart, and this network has none for them: its head is "
                           "not trained, or has them in common with another layer")  # fmt: skip

    def head_rows(self, like: Tensor, units: Tensor) -> Tensor:
        """Which entries of θ belong to the output units (bool (K,)): bool (P,)."""
        marked = torch.zeros_like(like, dtype=torch.bool)
        for name in self.head:
            self.parameters(marked)[name][units] = True
        return marked

    def linear_layers(
        self, theta: Tensor, x: Tensor, tasks: Tensor | None = None
    ) -> list[tuple[str, Tensor, Tensor]] | None:
        """For networks made of linear layers alone: (name, input, output) of each, for exact sums over samples.

        The last output are the logits, and the layers' weights and biases are all that θ has. None where that is not
        so; a subclass with a forward pass of its own has to say it anew, or there is none.
        """
        return None

    def _goes_as(self, cls: type[Net]) -> bool:
        """Whether a batch goes through this network as through one of that class, of which it may be a subclass."""
        return all(getattr(type(self), name) is getattr(cls, name) for name in ("apply", "forward", "logits"))

    def layered(
        self, theta: Tensor, x: Tensor, tasks: Tensor | None = None
    ) -> tuple[Tensor, list[layers.Layer]] | None:
        """The logits (B, K), and the layers that they come through, for squared gradients of single samples.

        None where a parameter belongs to a layer of another kind than those of :mod:`continual.learning.layers`.
        """
        found = self.linear_layers(theta, x, tasks)
        if found is None:
            return None
        return found[-1][2], [layers.linear(name, h, output) for name, h, output in found]


class LinearNet(Net):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.names = [f"layer{number}" for number in range(1, len(sizes) - 1)] + ["head"]
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (inputs, outputs) in zip(self.names, itertools.pairwise(sizes), strict=True):
            shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
        super().__init__(shapes)
        self.hidden = sizes[1:-1]

    def layers(
        self, p: dict[str, Tensor], x: Tensor, gates: Sequence[Tensor] | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        """(name, input, output) of each layer."""
        out, layers = x.flatten(1), []
        for number, name in enumerate(self.names):
            h = torch.nn.functional.relu(out) if number else out
            if number and gates is not None:
                h = h * gates[number - 1]
            out = self._linear(h, p[f"{name}.weight"], p[f"{name}.bias"])
            layers.append((name, h, out))
        return layers

    def _linear(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # of seeds side by side the weights' gradient lies as they do only if they are the first factor
        return (weight @ h.mT).mT + bias if self.mapped else torch.nn.functional.linear(h, weight, bias)

    def widest(self, shape: tuple[int, ...]) -> int:
        """See :meth:`Net.widest`."""
        return max(math.prod(shape), *(self.shapes[f"{name}.bias"][0] for name in self.names))

    def linear_layers(
        self, theta: Tensor, x: Tensor, tasks: Tensor | None = None
    ) -> list[tuple[str, Tensor, Tensor]] | None:
        """See :meth:`Net.linear_layers`."""
        return self.layers(self.parameters(theta), x, None) if self._goes_as(LinearNet) else None

    def apply(self, p: dict[str, Tensor], x: Tensor, gates: Sequence[Tensor] | None = None) -> Out:
        """See :meth:`Net.apply`."""
        _, features, logits = self.layers(p, x, gates)[-1]
        return Out(logits, features)

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """Weights and biases uniform in ±1/√inputs, PyTorch's default for linear layers."""
        parts = []
        for name in self.names:
            outputs, inputs = self.shapes[f"{name}.weight"]
            drawn = key.uniform(name, outputs * (inputs + 1)).to(dtype)
            parts.append((2 * drawn - 1) / math.sqrt(inputs))
        return torch.cat(parts)


class Extended(Net):
    """A network with parameters ``extra`` beside those of the ``inner`` one, for :meth:`Strategy.extend`.

    They lie in front, as running statistics are the last entries of θ. A batch goes through the inner network as it is,
    in a step too: it normalises by the batch and drops units as it would by itself. What a strategy makes of the extra
    parameters it says in :meth:`answer`, as a head of its own does, or in methods of a subclass that its hooks call
    (``net.project(theta, out.features)``).

    Raises :class:`~continual.errors.BadChain` where a name is taken already.
    """

    def __init__(self, inner: Net, extra: dict[str, tuple[int, ...]]) -> None:
        if taken := sorted(extra.keys() & inner.shapes.keys()):
            raise BadChain(f"the network has parameters named {', '.join(taken)} already; give those that a strategy "
                           "adds other names")  # fmt: skip
        super().__init__(extra | inner.shapes)
        self.inner, self.extra = inner, extra
        self.head, self.hidden, self.statistics = inner.head, inner.hidden, inner.statistics
        self.convolves, self.skips, self.frozen = inner.convolves, inner.skips, inner.frozen
        self.as_usual, self.kept = inner.as_usual, inner.kept

    @property
    def mapped(self) -> bool:
        """See :attr:`Net.mapped`; the inner network knows as well."""
        return self.inner.mapped

    @mapped.setter
    def mapped(self, given: bool) -> None:
        if given != self.inner.mapped:
            self.inner = copy.copy(self.inner)
            self.inner.mapped = given

    def inside(self, theta: Tensor) -> Tensor:
        """The inner network's θ (..., P'), a view."""
        part, attached = theta[..., self.size - self.inner.size :], getattr(theta, "parameters_by_name", None)
        if attached is None:
            return part
        return self.inner.attach(part, [attached[name] for name in self.inner.shapes])

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """What is beside the inner network's θ, see :meth:`start`, and that."""
        extra = [self.start(key, name, shape).to(dtype).flatten() for name, shape in self.extra.items()]
        return torch.cat([*extra, self.inner.initial(key, dtype)])

    def start(self, key: Key, name: str, shape: tuple[int, ...]) -> Tensor:
        """How an extra parameter begins: weights (outputs, inputs, ...) uniform in ±1/√inputs, others at 0."""
        if len(shape) < 2:
            return torch.zeros(shape, device=key.seed.device)
        return (2 * key.uniform(name, math.prod(shape)) - 1) / math.sqrt(math.prod(shape[1:]))

    def answer(self, p: dict[str, Tensor], out: Out) -> Out:
        """What the network gives, in a step and otherwise, where the inner one gives ``out``; ``p``: all parameters."""
        return out

    def apply(self, p: dict[str, Tensor], x: Tensor, gates: Sequence[Tensor] | None = None) -> Out:
        """See :meth:`Net.apply`."""
        return self.answer(p, self.inner.apply({name: p[name] for name in self.inner.shapes}, x, gates))

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        """See :meth:`Net.forward`."""
        return self.answer(self.parameters(theta), self.inner.forward(self.inside(theta), x, tasks))

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        """See :meth:`Net.learn`."""
        out, statistics = self.inner.learn(self.inside(theta), x, tasks, fixed)
        return self.answer(self.parameters(theta), out), statistics

    def fixed(self, theta: Tensor) -> bool:
        """See :meth:`Net.fixed`."""
        return self.inner.fixed(self.inside(theta))

    def hand_on(self, theta: Tensor, index: int) -> None:
        """See :meth:`Net.hand_on`."""
        self.inner.hand_on(self.inside(theta), index)

    def unheard(self) -> list[str]:
        """Which ways through the network a subclass has written that are not those of a step."""
        own = {
            name for name in ("apply", "features", "forward", "learn", "logits")
            if getattr(type(self), name) not in [getattr(cls, name) for cls in (Net, Extended, Gated)]
        }  # fmt: skip
        heard = {"forward"} if "learn" in own or type(self).learn is Net.learn else set()
        return sorted(own - heard - {"learn"} - ({"apply"} if "forward" in own else set()))

    @property
    def mixes(self) -> bool:
        """See :meth:`Net.mixes`."""
        return type(self).learn is not Extended.learn or self.inner.mixes

    def check_kept(self) -> None:
        """See :meth:`Net.check_kept`."""
        self.inner.check_kept()

    def work(self, shape: tuple[int, ...]) -> int:
        """See :meth:`Net.work`."""
        return self.size - self.inner.size + self.inner.work(shape)

    def widest(self, shape: tuple[int, ...]) -> int:
        """See :meth:`Net.widest`."""
        return self.inner.widest(shape)


class Gated(Extended):
    """A network whose hidden units are multiplied by gates that depend on each sample's task.

    ``extra`` are shapes of parameters beside the network's own, for gates that are learnt.
    """

    def __init__(self, inner: Net, extra: dict[str, tuple[int, ...]] | None = None) -> None:
        if isinstance(inner, Gated):
            raise BadChain("a network that has gates already can be given no others")
        if inner.mixes or inner.statistics:
            raise BadChain(f"gates are for networks that learn as they answer, and a {type(inner).__name__} normalises "
                           "by the batch or drops units in a step")  # fmt: skip
        super().__init__(inner, extra or {})

    def gates(self, p: dict[str, Tensor], tasks: Tensor) -> list[Tensor]:
        """The gates (B, H) of each hidden layer for samples of ``tasks`` (B,)."""
        raise NotImplementedError

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        """See :meth:`Net.forward`; the tasks have to be given."""
        p = self.parameters(theta)
        return self.answer(p, self.inner.apply(p, x, self.gates(p, self._given(tasks))))

    learn, mixes = Net.learn, Net.mixes  # those of the network itself know of no gates, and do nothing else

    def linear_layers(
        self, theta: Tensor, x: Tensor, tasks: Tensor | None = None
    ) -> list[tuple[str, Tensor, Tensor]] | None:
        """See :meth:`Net.linear_layers`: behind its gates a linear layer is still linear in what it is given."""
        inner, usual = self.inner, self._goes_as(Gated) and type(self).answer is Extended.answer
        if self.extra or not (isinstance(inner, LinearNet) and inner._goes_as(LinearNet) and usual):
            return None
        p = self.parameters(theta)
        return inner.layers(p, x, self.gates(p, self._given(tasks)))

    @staticmethod
    def _given(tasks: Tensor | None) -> Tensor:
        if tasks is None:
            raise BadChain(
                "this network's gates open by task: call net.logits(theta, x, tasks) with each sample's task"
            )
        return tasks

    def start(self, key: Key, name: str, shape: tuple[int, ...]) -> Tensor:
        """How an extra parameter begins: at standard normal numbers."""
        return key.normal(name, math.prod(shape))


def check_extended(net: Net, inner: Net, hook: str = "extend") -> None:
    """:class:`~continual.errors.BadChain` where a network that a hook gives does not learn as the given one does.

    Only ``extend`` may give parameters, as θ is made afterwards.
    """
    if isinstance(net, Extended) and (unheard := net.unheard()):
        raise BadChain(f"{hook} gives a {type(net).__name__} with {listed(unheard, 2)} of its own, which a step does "
                       "not call; say in answer(p, out) what it makes of what the network inside gives, or write "
                       "forward and learn, both")  # fmt: skip
    if hook != "extend" and net.shapes != inner.shapes:
        raise BadChain(f"{hook} gives a {type(net).__name__} with other parameters than θ has; a strategy's own are "
                       "made by extend")  # fmt: skip
    kept = ("fixed", "hand_on") if inner.statistics else ()
    unsaid = [name for name in kept if getattr(type(net), name) is getattr(Net, name) is not getattr(type(inner), name)]
    moved = any(name in net.shapes and name not in last(net) for name in last(inner))
    if net.statistics >= inner.statistics and (net.mixes or not inner.mixes) and not moved and not unsaid:
        return
    lost = "normalises by the batch, with running statistics" if inner.statistics else "drops units"
    what = ("let its learn call that of the network inside, as Extended.learn does, or write answer or inside instead"
            if isinstance(net, Extended) and not unsaid else
            "derive it from continual.learning.models.Extended, which keeps it")  # fmt: skip
    raise BadChain(f"{hook} gives a {type(net).__name__} around a network that {lost}, and would lose that in silence"
                   f"{f' (it does not say {listed(unsaid, 2)})' if unsaid else ''}; {what}")  # fmt: skip


def last(net: Net) -> list[str]:
    """The names of the parameters that running statistics are, the last first."""
    ends = itertools.accumulate(reversed(net.sizes))
    return [name for name, end in zip(reversed(net.shapes), ends, strict=True) if end <= net.statistics]


@dataclass(frozen=True)
class MLP(Configured):
    """A multi-layer perceptron with ReLU."""

    layers: tuple[int, ...] = option((400, 400), "units of each hidden layer", ge=1)

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Net:
        """The network for images of a shape, a number of output units, and a number of tasks."""
        return LinearNet((math.prod(shape), *self.layers, units))
