"""What the strategies of a plan are run on: the streams of all seeds on a device, and how it is done."""

from __future__ import annotations

import contextlib
import math
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from continual import config, execution, resume, workers
from continual.config import Plan
from continual.errors import BadOption, Mistake, Notice, counted
from continual.execution import Choice, Way
from continual.learning.frozen import features_once
from continual.learning.models import Net, Out
from continual.learning.seeds import Recipe, dtype_of, tensor_float
from continual.progress import Progress
from continual.streams.placement import SHARE, Where, choose, free_memory, image_bytes, laid_out, place
from continual.streams.stream import Stream

if TYPE_CHECKING:
    from continual.learning.strategy import Strategy

MANY_SEEDS = 200
"""More of them may be meant as one, by its number."""
LIE = {
    "device": "in memory",
    "pinned": "in pinned memory of the host",
    "mapped": "read from their file as they are needed",
}


@dataclass(frozen=True)
class Ready:
    """What the strategies of a plan are run on: the streams of all seeds on a device, and how it is done."""

    plan: Plan
    root: Path
    device: torch.device
    streams: list[Stream]
    net: Net
    way: Way

    def begun(self, strategy: Strategy, kept: resume.Kept | None, told: Progress, processes: bool) -> Ready:
        """The same, for a strategy that may want images, or whose run may have been begun in another way."""
        ready = self
        if self.way.features and strategy.makes_images:
            known = kept.way() if kept else None
            way = known or replace(self.way, features=False)
            ready = prepare(self.plan, (), self.root, self.device, Progress(), way=way)
            if known is None:  # how seeds are done was found for features
                choice = chosen(self.plan, strategy, ready.net, ready.streams, told, processes)
                ready = replace(ready, way=replace(way, how=choice.how, inner=choice.inner))
        way = kept.begin(ready.way) if kept else ready.way
        if way.features != ready.way.features:
            return prepare(self.plan, (), self.root, self.device, Progress(), way=way)
        return ready.done(way)

    def done(self, way: Way) -> Ready:
        """The same, done in a way; images lie where they do."""
        helps = execution.helps(self.net, self.streams[0].shape, self.device, self.plan.training.precision)
        last = way.how != "map" and helps
        return replace(self, way=replace(way, where=self.way.where), streams=laid_out(self.streams, last))


def network(model: Any, stream: Stream) -> Net:
    """The network of a stream's images; one of a user's is tried with some, so that its mistakes are told here.

    Raises :class:`~continual.errors.BadOption`.
    """
    shape, units, tasks = stream.shape, stream.units, len(stream.tasks)
    if type(model).__module__.startswith("continual."):
        own: Net = model.build(shape, units, tasks)
        return own
    name = f"model {config.title('models', model)}"
    with _told(f"{name}: build(shape={shape}, units={units}, tasks={tasks})"):
        net = model.build(shape, units, tasks)
    if not isinstance(net, Net):
        raise BadOption(f"{name}: build gives a {type(net).__name__}; it gives a network, such as "
                        "continual.learning.modules.ModuleNet(make)")  # fmt: skip

    def given(words: str, count: int) -> Out:
        with _told(f"{name}: its network, given {words} of shape {shape},"), torch.no_grad():
            images, first = key.uniform("tried", count, *shape), torch.zeros(count, dtype=torch.int64)
            before = images.clone()
            out = net.forward(theta, images, first)
        if not torch.equal(images, before):
            raise BadOption(f"{name}: its network writes to its images, which others look at, too; its forward may "
                            "begin with x = x.clone()")  # fmt: skip
        return out

    key = stream.tasks[0].key.child("model")
    theta = net.initial(key, torch.float32)
    out, again = given("two images", 2), given("two images", 2)
    given("a single image", 1)  # as an epoch's last batch may be
    net.as_usual = not _takes_channels_last(net, theta, shape)
    found = [getattr(getattr(out, part, None), "shape", ()) for part in ("logits", "features")]
    if found[0] != (2, units) or len(found[1]) != 2:
        shapes = " and ".join(str(tuple(one)) for one in found) if any(found) else f"a {type(out).__name__}"
        raise BadOption(f"{name}: its network gives {shapes} for two images; it gives logits (2, {units}) and features "
                        "(2, D), as an Out")  # fmt: skip
    if not all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(out, again, strict=True)):
        warnings.warn(Notice(f"{name}: its network gives something else each time in evaluation, too; if that is not "
                             "meant, functions such as dropout take training=self.training"), stacklevel=2)  # fmt: skip
    return net


def _takes_channels_last(net: Net, theta: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a network takes images that lie with their channels last, as a ``view`` behind convolutions does not."""
    if not net.convolves or len(shape) != 3:
        return True
    images = torch.zeros(2, *shape).contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            net.forward(theta, images, torch.zeros(2, dtype=torch.int64))
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What a user's network raises within it is told as a mistake, with the line where it is."""
    try:
        yield
    except Mistake as mistake:
        raise BadOption(f"{what}: {mistake}") from mistake
    except Exception as error:
        theirs = [one for one in traceback.extract_tb(error.__traceback__) if not _OURS.search(one.filename)]
        where = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
        raise BadOption(f"{what} raises {type(error).__name__}: {' '.join(str(error).split())}{where}") from error


_OURS = re.compile(r"[/\\](torch|torchvision)[/\\]|<|" + re.escape(str(Path(__file__).parent)))
"""Files in which a user's mistake is met, and not made."""


def prepare(
    plan: Plan, strategies: Sequence[Strategy], root: Path, device: torch.device, told: Progress,
    processes: bool = False, way: Way | None = None,
) -> Ready:  # fmt: skip
    """Load what the strategies need; what cannot run is refused here, before anything is trained.

    ``way`` is how it is done, where that is known: it was begun before, or is a part of a run.
    """
    training = plan.training
    if training.precision == "tf32" and device.type != "cuda":
        raise BadOption("precision=tf32 is arithmetic of GPUs, and this run is on the CPU; use float32")
    with execution.threads(training.threads, 0):  # they are soon built, but not by threads that wait for other runs'
        streams = [plan.benchmark.stream(seed, root) for seed in training.seed_list]
    for line in _odd(plan, streams):
        told.note(line)
    net, samples = network(plan.model, streams[0]), streams[0].samples
    _check_outputs(plan, net, streams[0])
    plan.augment.suits(streams[0].data.name, samples.pixels, samples.top)  # type: ignore[attr-defined]
    where = way.where if way else choose_place(plan, streams, device, told)
    streams = place(streams, device, where)
    images, whole = streams[0], net
    for strategy in strategies:
        strategy.suits_training(training, plan.augment)  # type: ignore[arg-type]
        if strategy.makes_images:
            strategy.suits(images, whole)
    wanted = not (plan.augment.active or all(strategy.makes_images for strategy in strategies))  # type: ignore[attr-defined]
    if way.features if way else wanted:
        known = type(plan.model).__module__.startswith("continual.")  # of a network of the user's the code may change
        each = min(len(streams), workers.cores()) if processes or training.seeds_as == "processes" else 1
        room = math.inf if way else SHARE * free_memory(device) / each  # which processes do not share
        with tensor_float(training.precision == "tf32"):
            net, streams = features_once(
                net, streams, dtype_of(training.precision), root if known else None, room, told.note
            )
    for strategy in strategies:
        if not strategy.makes_images:
            strategy.suits(streams[0], net)
    if way is None:
        like = [one for one in strategies if net is whole or not one.makes_images]
        ours = next((strategy for strategy in like if strategy.can_be_captured), like[0])
        choice = chosen(plan, ours, net, streams, told, processes)
        way = Way(choice.how, choice.inner, where, workers.cores(), torch.get_num_threads(), net is not whole)
    return Ready(plan, root, device, streams, net, way).done(way)


def _check_outputs(plan: Plan, net: Net, stream: Stream) -> None:
    """What is asked of some outputs is asked of others than all."""
    outputs, training = stream.test_outputs, plan.training
    alike = bool((outputs.units == outputs.units[0]).all())
    if training.task_aware and (alike or outputs.active == "task"):
        raise BadOption("task_aware does nothing where in evaluation a test's own task has all active outputs anyway; "
                        "leave it out, or take several tasks and scenario=class")  # fmt: skip
    if training.unused_outputs == "hold":
        if alike or not plan.optimizer.moves_unused:  # type: ignore[attr-defined]
            raise BadOption("unused_outputs=hold does nothing where all tasks have the same outputs, or the optimiser "
                            "neither a memory nor weight decay; leave it out")  # fmt: skip
        net.check_head("unused_outputs=hold")


def _odd(plan: Plan, streams: Sequence[Stream]) -> Iterator[str]:
    """What can be run as asked, and may not be meant."""
    training, name = plan.training, streams[0].data.name
    if isinstance(training.seeds, int) and training.seeds > MANY_SEEDS:
        yield f"{training.seeds:,} seeds, 0 to {training.seeds - 1}; seed {training.seeds} alone is {training.seeds}-"
    sizes = {len(task.train) for stream in streams for task in stream.tasks}
    most = max(training.steps(rows) for rows in sizes)  # refuses more than can be laid down
    if training.evaluate_every and all(training.interval(rows) >= training.steps(rows) for rows in sizes):
        yield (f"evaluate_every={training.evaluate_every}: a task has {counted(most, 'step')}, so accuracy is measured "
               "at its end alone, and what a strategy loses in between is not seen")  # fmt: skip
    asked = getattr(plan.benchmark, "validation", 0)
    if asked and not any(len(task.validation) for task in streams[0].tasks):
        yield f"{name}: validation={asked} sets no image aside: it is that part of each class, rounded down"
    shown, learnt = (getattr(of, "normalize", None) for of in (plan.benchmark, plan.model))
    near = learnt if streams[0].shape[0] == 3 else "standard"  # of grey images
    if learnt and shown not in (None, near):
        yield (f"{name}: images are shown with normalize={shown}, and the network's weights were learnt with "
               f"normalize={learnt}: give the benchmark normalize={near}, unless they are others")  # fmt: skip


def chosen(
    plan: Plan, strategy: Strategy, net: Net, streams: list[Stream], told: Progress, processes: bool
) -> Choice:  # fmt: skip
    """How seeds are done, which is told where it was measured."""
    with tensor_float(plan.training.precision == "tf32"):
        choice = execution.choose(recipe_of(plan, strategy, net), plan.training, streams, processes)
    if choice.why:
        told.note(choice.why)
    return choice


def recipe_of(plan: Plan, strategy: Strategy, net: Net) -> Recipe:
    """What the learners of a strategy share."""
    return Recipe(
        net,
        strategy,
        plan.optimizer,  # type: ignore[arg-type]
        plan.schedule,  # type: ignore[arg-type]
        plan.training.optimizer_state == "keep",
        plan.training.precision,
        plan.augment,  # type: ignore[arg-type]
        plan.training.compile,
        plan.training.evaluate_precision == "training",
        plan.training.unused_outputs == "hold",
    )


def choose_place(plan: Plan, streams: list[Stream], device: torch.device, told: Progress) -> Where:
    """Where the images will lie, which is told."""
    where = choose(streams, device, plan.training.pixels)
    told.note(f"{streams[0].data.name}: {image_bytes(streams) / 1e6:,.1f} MB of images, {LIE[where]} "
              f"({free_memory(device) / 1e6:,.0f} MB free on {device.type})")  # fmt: skip
    return where
