"""Deep generative replay."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from continual.errors import BadChain
from continual.learning import distill
from continual.learning.inner import Trained, adam_step, untrained
from continual.learning.models import LinearNet, Net
from continual.learning.strategy import Batch, Memory, Step, Strategy, cross_entropy
from continual.options import option
from continual.streams.stream import only

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Out
    from continual.streams.rng import Key
    from continual.streams.stream import Samples, Stream, Task


TRAINED = ("generator", "first", "second", "steps")
"""What memory has of the generator that is trained."""


class Autoencoder(Net):
    """Linear layers to means and log-variances of latent variables, and from those, in the other order, to pixels."""

    def __init__(self, pixels: int, layers: tuple[int, ...], latent: int) -> None:
        self.parts = {
            "to": LinearNet((pixels, *layers, 2 * latent)), "from": LinearNet((latent, *reversed(layers), pixels))
        }  # fmt: skip
        super().__init__({f"{part}.{name}": shape for part, net in self.parts.items()
                          for name, shape in net.shapes.items()})  # fmt: skip

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """Both as any linear layers."""
        return torch.cat([net.initial(key.child(part), dtype) for part, net in self.parts.items()])

    def encoded(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances (B, latent) of images (B, pixels)."""
        mean, log_variance = self._part("to", theta, x).chunk(2, dim=-1)
        # a CPU's exp takes five times as long where rows lie apart
        return mean.contiguous(), log_variance.contiguous()

    def decoded(self, theta: Tensor, z: Tensor) -> Tensor:
        """The logits (B, pixels) of latent variables (B, latent)."""
        return self._part("from", theta, z)

    def _part(self, part: str, theta: Tensor, x: Tensor) -> Tensor:
        p, net = self.parameters(theta), self.parts[part]
        return net.apply({name: p[f"{part}.{name}"] for name in net.shapes}, x).logits


@dataclass(frozen=True)
class GenerativeReplay(Strategy):
    """Deep generative replay (Shin et al. 2017, "Continual learning with deep generative replay", eq. 1).

    r E[loss(x, y)] + (1 - r) E[loss(x', y')], with images x' from the generator as it was after the previous task and
    labels y' that the network gave them then. The generator learns from the same x and x', by the batch's weights.

    Choices: 1. it is a variational autoencoder, a multi-layer perceptron either way, as in van de Ven et al. 2022,
    where the paper has a GAN; its loss is the negative bound on log p(x) over the number of pixels, with pixels in
    [0, 1] and a Bernoulli decoder whose mean is the image; 2. it takes one step of Adam after each step of the
    network; its moments are kept from task to task; 3. r is 1/t in task t, as van de Ven et al. have it (``ratio``);
    4. y' are the network's answers, or (``soft``) its probabilities, distilled as by van de Ven et al. ("DGR+distill"),
    over the active outputs with 0 for the new ones; 5. y' is among the outputs of the earlier tasks, and x' counts as
    a sample of the latest of them. Where a task's own outputs alone are active (task scenario) a soft y' is one
    distribution for each earlier task, and the loss is their mean; a hard one belongs to one earlier task drawn for
    each x', the same in expectation; 6. avalanche-lib trains the generator in a run of its own after each task, with
    squared errors and a deviation σ = e^(log σ²) / 2 for the latent variables, where σ = e^(log σ² / 2), joins x' with
    the weight of x, and has y' among all outputs.
    """

    makes_images: ClassVar[bool] = True

    layers: tuple[int, ...] = option(
        (400, 400), "units of each hidden layer of the generator's encoder", ge=1, le=65536
    )
    latent: int = option(100, "latent variables of the generator", ge=1, le=65536)
    lr: float = option(0.001, "the generator's learning rate", gt=0)
    samples: int | None = option(
        None, "generated images that join a batch; none: as many as it has", ge=1, le=1_000_000
    )
    ratio: float | None = option(None, "r, the new task's part of the losses; none: 1/t", ge=0, le=1)
    soft: bool = option(False, "whether labels are distilled instead of the network's answer")
    temperature: float = option(2.0, "by which logits are divided where labels are distilled", gt=0)
    squared: bool = option(False, "whether the distillation is multiplied by the temperature's square")

    def suits(self, stream: Stream, net: Net) -> None:
        """Images are what the generator gives: pixels between 0 and 1, all scaled alike."""
        super().suits(stream, net)
        samples = stream.samples
        if samples.channel is not None:
            raise BadChain("generative replay makes images whose pixels are all scaled alike; use normalize=unit or "
                           "standard, which do not differ by channel")  # fmt: skip
        if not _are_images(samples):
            raise BadChain(f"generative replay makes images with pixels between 0 and 1, and these have values from "
                           f"{float(samples.pixels.min()):.4g} to {float(samples.pixels.max()):.4g} where "
                           f"{samples.top:g} stands for 1")  # fmt: skip

    @property
    def step_grows(self) -> bool:  # type: ignore[override]
        """With soft labels, in the task scenario: each task before has a distribution of old outputs of its own."""
        return self.soft

    def init(self, net: Net, theta: Tensor, stream: Stream) -> Memory:
        """``generator`` (G,), Adam's moments and ``steps``; from the task before, ``previous`` and ``teacher``."""
        start = untrained(self._net(stream.samples).initial(stream.tasks[0].key, theta.dtype))
        return {"previous": start.theta.clone(), "teacher": theta.clone()} | _kept(start)

    def has(self, hook: str) -> bool:
        """The data term is the usual one where labels are hard."""
        return super().has(hook) and (hook != "loss" or self.soft)

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """The batch and generated images behind it, with what the network would have answered."""
        if task.first:
            return batch
        n, like = self.samples or batch.own, memory["previous"]
        x = self._generate(memory["previous"], batch.key.normal("latent", n, self.latent).to(like.dtype), task.samples)
        if task.outputs.active == "task":
            tasks = batch.key.integers("task", n, task.number)
            active = task.outputs.units[tasks]
        else:
            tasks = (task.number - 1).expand(n)
            active = task.past_units
        logits = net.logits(memory["teacher"], x, tasks)
        y = only(logits, active).argmax(-1)
        known = batch.weights(like)
        r = self._ratio(task)
        weight = torch.cat(
            [r.to(known.dtype) * known / known.sum().clamp_min(1e-12), ((1 - r) / n).to(known.dtype).expand(n)]
        )
        return batch.join_images(x, y, tasks, task, weight)

    def loss(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> Tensor:
        """r cross-entropy of the samples + (1 - r) distillation on the generated ones, where ``soft``."""
        if not self.soft or task.first or batch.weight is None:
            return super().loss(net, theta, memory, batch, out, task)
        logits, made = task.active(out.logits, batch.task), batch.row < 0
        new = cross_entropy(logits, batch.y, batch.weight.masked_fill(made, 0))
        joined = batch.joined
        teacher = net.logits(memory["teacher"], batch.images[joined], batch.task[joined])
        old = distill.soft_targets(
            out.logits[joined], teacher, distill.old_outputs(task), self.temperature, squared=self.squared,
            among=distill.active_outputs(task), weight=made[joined].to(theta.dtype),
        )  # fmt: skip
        r = self._ratio(task)
        return r.to(theta.dtype) * new + (1 - r).to(theta.dtype) * old

    def after_step(self, net: Net, theta: Tensor, memory: Memory, step: Step, task: Task) -> tuple[Tensor, Memory]:
        """The generator takes a step of Adam (Kingma and Ba 2015, algorithm 1) on the batch that was learnt."""
        x, batch, generator = self._unit(step.batch.images, task.samples), step.batch, self._net(task.samples)
        noise, weight = batch.key.normal("noise", len(x), self.latent).to(x.dtype), batch.weights(x)
        weight = weight / weight.sum().clamp_min(1e-12)
        bound = functools.partial(_bound, generator, x=x, noise=noise, weight=weight)
        before = Trained(*(memory[name] for name in TRAINED))
        return theta, memory | _kept(adam_step(net, generator, bound, before, self.lr))

    def after_task(self, net: Net, theta: Tensor, memory: Memory, task: Task) -> tuple[Tensor, Memory]:
        """Generator and network are what the next task replays."""
        return theta, memory | {"previous": memory["generator"], "teacher": theta}

    def _ratio(self, task: Task) -> Tensor:
        """r (), float64, in task t; in the first task there is nothing else."""
        share = 1 / (task.number + 1).double()
        return share if self.ratio is None or task.first else torch.full_like(share, self.ratio)

    def _net(self, samples: Samples) -> Autoencoder:
        """The generator."""
        return Autoencoder(samples.pixels[0].numel(), self.layers, self.latent)

    def _range(self, samples: Samples) -> float:
        """How far the image of a pixel that stands for 1 is from that of one that stands for 0."""
        return samples.scale * samples.top

    def _unit(self, x: Tensor, samples: Samples) -> Tensor:
        """Images with their pixels in [0, 1], but for rounding: (B, pixels)."""
        x, span = x.flatten(1), self._range(samples)
        x = x - samples.shift if samples.shift else x
        return x if span == 1 else x / span

    def _generate(self, generator: Tensor, latent: Tensor, samples: Samples) -> Tensor:
        """The images (n, C, H, W), normalised, of latent variables (n, latent)."""
        pixels = torch.sigmoid(self._net(samples).decoded(generator, latent))
        shape = samples.pixels.shape[1:]
        span = self._range(samples)
        pixels = pixels if span == 1 else pixels * span
        images: Tensor = (pixels + samples.shift if samples.shift else pixels).unflatten(1, shape)
        return images


def _are_images(samples: Samples) -> bool:
    """Whether all pixels lie between 0 and the value that stands for 1."""
    x, top = samples.pixels, samples.top
    return (x.dtype == torch.uint8 and top >= torch.iinfo(x.dtype).max) or bool(0 <= x.min() <= x.max() <= top)


def _bound(net: Autoencoder, theta: Tensor, x: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """The negative evidence bound of images (B, pixels) over the number of pixels, weighed and added up."""
    mean, log_variance = net.encoded(theta, x)
    deviation = (0.5 * log_variance).exp()
    logits = net.decoded(theta, mean + deviation * noise)
    missed = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    divergence = 0.5 * (mean * mean + deviation * deviation - log_variance - 1).sum(-1)
    bound: Tensor = (weight * (missed + divergence)).sum() / x.shape[1]
    return bound


def _kept(trained: Trained) -> Memory:
    """The generator as memory has it."""
    return dict(zip(TRAINED, trained, strict=True))
