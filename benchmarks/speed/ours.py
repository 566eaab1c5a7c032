"""This framework's pieces of work: a run on streams that are built already, and steps of the vision path."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from turns import Place, Work, seconds, wait

from continual import config
from continual.conformance import Asked
from continual.execution import helps, prepared
from continual.learning import importance
from continual.learning.seeds import Learners, Recipe, tensor_float
from continual.learning.step import Program
from continual.learning.train import captured, schedule, steps_of
from continual.progress import Progress
from continual.ready import prepare
from continual.runner import choose_device, new_record, run_strategy
from continual.streams.placement import laid_out
from continual.streams.placement import place as placed_on
from continual.streams.stream import Samples, Stream

STRATEGIES = {
    "finetune": "finetune", "l2": "l2:strength=0.1", "ewc": "ewc:strength=100,label=true",
    "ewc-all": "ewc:strength=100", "replay": "replay:capacity=500", "si": "si:strength=1.0,damping=0.1",
    "a-gem": "a-gem:capacity=1000,samples=256", "gem": "gem:capacity=1000,margin=0.5",
    "mas": "mas:strength=1.0", "lwf": "lwf:strength=1.0,temperature=2.0", "der": "der:capacity=500,alpha=0.1",
    "er-ace": "er-ace:capacity=500", "mir": "mir:capacity=500,candidates=240,past=true",
    "gdumb": "gdumb:capacity=500,passes=1", "cumulative": "cumulative", "joint": "joint:every=false",
    "from-scratch": "from-scratch", "online-ewc": "online-ewc:strength=100,decay=0.9,label=true",
    "rwalk": "rwalk:strength=1.0,at=end,clip=total,scale=largest,damping=1.2e-7",
    "der++": "der++:capacity=500,alpha=0.1,beta=0.5", "gss": "gss:capacity=500,compare=10",
    "generative-replay": "generative-replay:latent=100,layers={layers}", "icarl": "icarl:capacity=500,reduce=mean",
    "bic": "bic:capacity=500", "ncm": "ncm:trunk=always", "cwr*": "cwr*:outputs=active,bias=trained",
    "slda": "slda:trunk=never,covariance=streamed", "packnet": "packnet:prune=0.5,freed=kept,retrain=1",
}  # fmt: skip
"""What each method is here, with the options of the other contenders; ``layers`` are the network's."""
BENCHMARKS = {"packnet": "split-mnist:scenario=task"}
"""Where a method has to be told the task."""
PHOTOS, AUGMENT = "split-cifar10:normalize=channel", "images:crop=4,flip=true"
REPLAYED = "replay:capacity=500"


def run(place: Place, benchmark: str, strategy: str, **settings: Any) -> Callable[[], Any]:
    """A run on streams that are built before it is called."""
    plan = config.plan({"benchmark": benchmark, "strategies": [strategy], **settings})
    (made,) = plan.strategies
    ready = prepare(plan, plan.strategies, Path(place.root), choose_device(place.device), Progress())
    return lambda: run_strategy(ready, made, new_record(plan, made, ready.device, ready.root), Progress())


def pieces(place: Place) -> dict[str, Callable[..., Work]]:
    """``train``: Split MNIST, or another benchmark; ``steps``: some steps of Split CIFAR-10 with replay.

    ``fisher``: the Fisher information of some of its images. And of such steps: ``waits``, the operations that make the
    host wait; ``floor``, the time over that of the arithmetic alone; ``busy``, the GPU's utilisation in percent.
    """

    def train(method: str, model: str = "mlp:layers=400-400", benchmark: str = "", **settings: Any) -> Work:
        benchmark = benchmark or BENCHMARKS.get(method, "split-mnist")
        if place.limit and benchmark.startswith("split-mnist"):
            benchmark += f"{',' if ':' in benchmark else ':'}limit={place.limit}"
        strategy = STRATEGIES.get(method, method).format(layers=model.rpartition("=")[2])
        work = run(place, benchmark, strategy, model=model, **{"seeds": 1, **settings})
        return lambda: seconds(work, place.device)

    def steps(count: int, **task: Any) -> Work:
        made = Steps(place, **task)
        return as_in_a_run(lambda: seconds(made.one, place.device, count, ahead=1))

    def fisher(model: str, label: importance.Label, rows: int, layered: bool = True) -> Work:
        (stream,) = placed_on([config.make_benchmark(PHOTOS).stream(0, Path(place.root))], choose_device(place.device))
        net = config.make("models", model).build(stream.shape, stream.units, len(stream.tasks))
        theta, task = net.initial(stream.tasks[0].key, torch.float32), stream.tasks[0]
        if not layered:  # as of a network of other layers than are known
            net.layered = lambda *_: None
        wanted = task.train[:rows]
        return as_in_a_run(lambda: seconds(lambda: importance.fisher(net, theta, task, wanted, label), place.device))

    return {
        "train": train,
        "steps": steps,
        "fisher": fisher,
        "waits": lambda **task: lambda: float(Steps(place, **task).waits()),
        "floor": lambda **task: as_in_a_run(Steps(place, **task).times_the_floor),
        "busy": lambda **task: Steps(place, **task).utilisation,
    }


def as_in_a_run(work: Work) -> Work:
    """The work, with what a run sets around its steps."""

    def done() -> float:
        with prepared():
            return work()

    return done


@dataclass(frozen=True, eq=False)
class Still(Samples):
    """Samples whose images are those of one batch, made beforehand: a step without a data path."""

    batch: torch.Tensor | None = None

    def images(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The same images for all rows."""
        assert self.batch is not None
        return self.batch[: len(rows)]


def still(stream: Stream, batch: int) -> Stream:
    """The same stream with one batch (and as many replayed) for all."""
    rows = stream.tasks[1].train[: 2 * batch]
    images = stream.samples.images(rows, torch.float32)
    fixed = Still(**{name: getattr(stream.samples, name) for name in Samples.__dataclass_fields__}, batch=images)
    return replace(stream, samples=fixed, tasks=tuple(replace(task, samples=fixed) for task in stream.tasks))


class Steps:
    """The steps of a benchmark's second task, done as a run does them: recorded on a GPU, one by one elsewhere.

    ``images``: how they are shown, or ``still``: one batch for all. ``seeds``: so many side by side.
    """

    def __init__(self, place: Place, model: str, batch: int, benchmark: str = PHOTOS, method: str = REPLAYED,
                 images: str = AUGMENT, precision: str = "float32", seeds: int = 1) -> None:  # fmt: skip
        self.device, self.name, self.precision = choose_device(place.device), place.device, precision
        made = config.make_benchmark(benchmark)
        streams = placed_on([made.stream(seed, Path(place.root)) for seed in range(seeds)], self.device)
        net = config.make("models", model).build(streams[0].shape, streams[0].units, len(streams[0].tasks))
        streams = laid_out(streams, seeds == 1 and helps(net, streams[0].shape, self.device, precision))
        streams = [still(stream, batch) for stream in streams] if images == "still" else streams
        recipe = Recipe(
            net, config.make_strategy(method), config.make("optimizers", "adam"),
            config.make("schedules", "constant"), keep_optimizer=True, precision=precision,
            augmentation=config.make("augmentations", "none" if images == "still" else images),
        )  # fmt: skip
        self.learners = Learners(recipe, streams, list(range(seeds)))
        self.training = config.plan({"benchmark": benchmark, "batch": batch, "last": "drop", "epochs": 50}).training
        self.learners.begin(0)
        self.learners.end(0)  # the first task's exemplars are stored; what it learnt does not matter here
        self.rows = self.learners.begin(1)
        self.made = self.steps()

    def steps(self, recorded: bool = True) -> Iterator[Callable[[], None]]:
        """The task's steps."""
        learners, training = self.learners, self.training
        batches = schedule(self.rows, training, learners.seed, 1)
        losses = torch.zeros(*learners.theta.shape[:-1], len(batches), device=self.device)
        recorder = captured(learners, training, 1) if recorded else None
        return steps_of(Program(learners, 1, batches), batches, losses, recorder)

    def one(self) -> None:
        """The next step; the task begins again when it is over."""
        step = next(self.made, None)
        if step is None:
            self.made = self.steps()
            step = next(self.made)
        with tensor_float(self.precision == "tf32"):
            step()

    def waits(self) -> int:
        """How many steps of a whole epoch make the host wait for the device; the first that does ends it, on a GPU."""
        count = self.training.epoch(self.rows.shape[-1])
        if self.device.type != "cuda":
            with Asked() as asked:
                for _, step in zip(range(20), self.steps(recorded=False), strict=False):
                    step()
            return len(asked.found)
        steps = self.made
        first = next(steps)  # lays out what the task needs
        torch.cuda.set_sync_debug_mode("error")
        try:
            first()
            for _, step in zip(range(count), steps, strict=False):
                step()
        except RuntimeError as error:
            print(f"a step waits: {error}", file=sys.stderr)
            return 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return 0

    def times_the_floor(self, count: int = 30) -> float:
        """The time of a step, over that of as many multiplications and additions in products of large matrices."""
        self.one()
        counter = FlopCounterMode(display=False)
        with counter:  # of a step that is done, not replayed
            batch = self.rows[..., : self.training.batch]
            Program(self.learners, 1, [batch])(0, batch)
        for _ in range(3):
            self.one()
        took = seconds(self.one, self.name, count)
        return took / (counter.get_total_flops() / most_flops(self.device, self.precision))

    def utilisation(self, least: float = 10.0) -> float:
        """The percentage of the time in which the GPU was at work, as its driver says, over some seconds of steps."""
        samples, ended = [], time.perf_counter() + least
        for _ in range(5):
            self.one()
        while time.perf_counter() < ended:
            for _ in range(50):
                self.one()
            samples.append(torch.cuda.utilization(self.device))
            wait(self.name)  # else the host would be far ahead
        return statistics.mean(samples)


def most_flops(device: torch.device, precision: str = "float32", side: int | None = None) -> float:
    """The floating-point operations of a second in a product of large matrices."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a = torch.rand(side, side, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
    with tensor_float(precision == "tf32"):
        a @ a
        return 2 * side**3 / min(seconds(lambda: a @ a, str(device)) for _ in range(10))
