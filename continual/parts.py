"""Train one strategy on all seeds, in this process or dealt out to several."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from continual import execution, resume, workers
from continual.config import Plan
from continual.errors import BadOption, Mistake, Notice, mistakes_of
from continual.execution import Way
from continual.learning.seeds import Learners, tensor_float
from continual.learning.strategy import under, within
from continual.learning.train import Watch, steps_done, train
from continual.progress import Progress, quietly
from continual.ready import Ready, prepare, recipe_of
from continual.results.pool import SHARED, same_steps
from continual.streams.stream import Stream
from continual.tracking.follow import Follow

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.strategy import Strategy

LEARNERS = "learners/"
"""Before the names of what is kept of learners, among the arrays that they gave."""


@dataclass(frozen=True)
class Part:
    """What some of the seeds gave: arrays with R in front, those that were given up, and how it was done.

    ``learners``: what was kept of them, as :meth:`~continual.learning.seeds.Learners.keep` names it.
    """

    seeds: list[int]
    arrays: dict[str, Any]
    stopped: list[dict[str, Any]]
    facts: dict[str, Any]
    learners: dict[str, Tensor] = field(default_factory=dict)


def in_groups(
    ready: Ready, strategy: Strategy, record: dict[str, Any], told: Progress, kept: resume.Kept | None, follow: Follow
) -> list[Part]:
    """All seeds in this process: mapped as one group, or each as a group of its own."""
    training, seeds = ready.plan.training, ready.plan.training.seed_list
    mapped = ready.way.how == "map" and strategy.can_be_captured
    if ready.way.how == "map" and not mapped:
        told.say(f"{record['title']}: says that it cannot be captured, so its seeds are done one after the other")
    groups = [list(range(len(seeds)))] if mapped else [[r] for r in range(len(seeds))]
    parts, tasks, together = [], len(ready.streams[0].tasks), ready.streams if mapped else ready.streams[:1]
    with (
        execution.at_speed(training, ready.net, together, ready.way.threads) as products,
        tensor_float(training.precision == "tf32"),
        _blamed(record, mapped),
    ):
        for number, group in enumerate(groups):
            own = kept.group([seeds[r] for r in group], told.say) if kept else None
            told.begin(record["title"], number, len(groups), tasks, training.batch * len(group))
            part, fed = _finished(own), False
            if part is None:
                part, fed = _trained(ready, strategy, group, told, own, follow, products), not strategy.trains_itself
            if not fed:  # nobody told of single tasks
                follow.feed(part.seeds, -1, part.arrays)
            parts.append(part)
            same_steps(parts)  # before the other seeds are trained
            told.end()
    return parts


def _fed(follow: Follow, learners: Learners, index: int, arrays: dict[str, Tensor]) -> None:
    """Trackers are given what a group gave in a task."""
    given = _by_seed(learners, arrays) | (_tests(learners) if index < 0 else {})
    follow.feed(learners.seeds, index, _numpy(given))


def _tests(learners: Learners) -> dict[str, Tensor]:
    """How many test samples each task has, (R, T)."""
    return {"test_samples": torch.tensor([[len(task.test) for task in one.tasks] for one in learners.streams])}


def _by_seed(learners: Learners, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of a group with R in front, but for what its seeds share."""
    return {name: value if learners.mapped or name in SHARED else value[None] for name, value in arrays.items()}


def _numpy(arrays: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in arrays.items()}


def _finished(kept: resume.Group | None) -> Part | None:
    """What some seeds gave that were through before the run was interrupted."""
    found = kept.finished() if kept else None
    if found is None:
        return None
    tensors, facts = found
    arrays = {name: value for name, value in tensors.items() if not name.startswith(LEARNERS)}
    return Part(facts["seeds"], _numpy(arrays), facts["stopped"], facts["facts"], within(LEARNERS, tensors))


def _trained(
    ready: Ready, strategy: Strategy, group: list[int], told: Progress, kept: resume.Group | None, follow: Follow,
    products: str,
) -> Part:  # fmt: skip
    """Train the seeds of a group, which are known by their places in the list of all."""
    training, seeds = ready.plan.training, ready.plan.training.seed_list
    recipe = recipe_of(ready.plan, strategy, ready.net)
    learners = Learners(recipe, [ready.streams[r] for r in group], [seeds[r] for r in group])
    watch = Watch(told.step, functools.partial(_fed, follow, learners))
    if kept:
        watch = replace(watch, due=kept.due, keep=kept.keep, start=kept.start())
    found, lost = train(learners, training, watch)
    arrays = _by_seed(learners, found) | _tests(learners)
    facts = {
        "program": steps_done(learners, training),
        "seeds_as": "map" if learners.mapped else "loop",
        "threads": torch.get_num_threads(),
        "products": products,
        "size": size(learners, ready.streams[0], arrays["stored_samples"]),
    }
    stopped = [vars(one) for one in lost]
    if kept:
        kept.finish(arrays | under(LEARNERS, learners.kept), {"stopped": stopped, "facts": facts})
    return Part(learners.seeds, _numpy(arrays), stopped, facts, learners.kept)


def in_processes(
    ready: Ready, strategy: Strategy, record: dict[str, Any], told: Progress, kept: resume.Kept | None, follow: Follow
) -> list[Part]:
    """The seeds dealt out to as many processes as there are processor cores."""
    from safetensors.torch import load

    training, seeds, way = ready.plan.training, ready.plan.training.seed_list, ready.way
    count, parts = max(1, min(len(seeds), way.cores)), list[Part]()
    threads = min(way.threads, workers.share(count, way.cores))
    calls = []
    for first in range(count):
        own = tuple(seeds[first::count])
        inner: execution.How = way.inner if len(own) > 1 else "loop"
        plan = replace(ready.plan, strategies=(strategy,), training=replace(training, seeds=own), trackers=())
        calls.append((plan, ready.root, ready.device, replace(way, how=inner, threads=threads), record, kept))
    through = itertools.count(1)

    def wait(number: int) -> None:
        told.begin(record["title"], number, count, len(ready.streams[0].tasks), training.batch)

    def done(_: int, given: tuple[list[Part], list[bytes], list[str]]) -> None:
        for part, learners in zip(*given[:2], strict=True):
            parts.append(replace(part, learners=load(learners)))
            follow.feed(part.seeds, -1, part.arrays)  # a tracker is in this process alone
        told.end()
        for line in given[2]:
            told.say(line)
        if (number := next(through)) < count:
            wait(number)

    help = execution.less_memory("processes")
    if kept:
        help += "; the same command goes on from the last checkpoints"
    wait(0)
    workers.each(count, _alone, calls, done, help)
    return parts


class Lines(Progress):
    """Keeps what is said, for another process to say it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """See :class:`~continual.progress.Progress`."""
        self.lines.append(line)


def _alone(
    plan: Plan, root: Path, device: torch.device, way: Way, record: dict[str, Any], kept: resume.Kept | None
) -> tuple[list[Part], list[bytes], list[str]]:
    """What a process does of it, and says; learners apart, as bytes: PyTorch would hand tensors on while it lives."""
    from safetensors.torch import save

    (strategy,), told = plan.strategies, Lines()
    with warnings.catch_warnings(), quietly():
        warnings.simplefilter("ignore", Notice)  # the process that began this one has said it
        ready = prepare(plan, [strategy], root, device, Progress(), way=way)
    with execution.deterministic(plan.training.deterministic):
        parts = in_groups(ready, strategy, record, told, kept, Follow((), record, told.say))
    return [replace(part, learners={}) for part in parts], [save(part.learners) for part in parts], told.lines


@contextlib.contextmanager
def _blamed(record: dict[str, Any], mapped: bool) -> Iterator[None]:
    """What is raised within it names the strategy, or the command that finds out what is wrong with one of a user's."""
    try:
        with mistakes_of(record["title"]):
            yield
    except Mistake:
        raise
    except Exception as error:
        if mapped and (why := _unmapped(str(error))):
            raise BadOption(f"{record['title']}: seeds_as=map: {why}, which seeds side by side cannot; use "
                            "seeds_as=loop or auto") from error  # fmt: skip
        if record["code"]:
            error.add_note(f"'continual check {record['title']}' says what a strategy does wrong, hook by hook")
        if record["code"] and mapped:
            error.add_note("seeds are done side by side, where a hook may ask for no value, choose no shape by one, "
                           "and draw from batch.key alone; --seeds-as loop does one after the other, and so does "
                           "can_be_captured = False in a strategy's class")  # fmt: skip
        raise


def _unmapped(said: str) -> str:
    """What a step does that PyTorch cannot map, if it is that which it said."""
    if "randomness" in said:
        return "the network, or a hook, draws by PyTorch's generator in a step (dropout)"
    found = re.search(r"Batching rule not implemented for (aten::\w+)", said)
    return f"the network, or a hook, has a step with {found[1]}" if found else ""


def size(learners: Learners, stream: Stream, stored: Tensor) -> dict[str, Any]:
    """What a learner holds: parameters, what the strategy keeps beside them, and the samples it has stored.

    ``parameters`` are all of θ, with the ``statistics`` at its end; ``frozen_parameters`` are not in θ.
    """
    memory = learners.memories()[0]
    return {
        "parameters": learners.net.size,
        "statistics": learners.net.statistics,
        "frozen_parameters": learners.recipe.net.frozen,  # a strategy's own network around it need not know of them
        "memory_bytes": sum(value.numel() * value.element_size() for value in memory.values()),
        "stored_samples_per_task": stored.reshape(-1, stored.shape[-1])[0].tolist(),
        "sample_bytes": stream.data.x[0].nbytes,  # not what a network's parts that stay make of it
        "train_samples_per_task": [len(task.train) for task in stream.tasks],
    }
