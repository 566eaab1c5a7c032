"""Do a plan: train every strategy on every seed, and keep what was measured."""

from __future__ import annotations

import contextlib
import functools
import itertools
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from continual import config, execution, failures, plugins, resume, workers
from continual.config import Plan
from continual.errors import BadOption
from continual.execution import Way
from continual.learning.frozen import features_once
from continual.learning.seeds import Learners, Recipe, dtype_of, tensor_float
from continual.learning.train import Watch, not_captured, train
from continual.progress import Progress
from continual.results import store
from continual.results.store import Result
from continual.streams.placement import Where, choose, free_memory, image_bytes, laid_out, place
from continual.streams.sets import data_root
from continual.streams.stream import Stream
from continual.tracking.follow import SHARED as SHARED_BY_SEEDS
from continual.tracking.follow import Follow, following

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.learning.strategy import Strategy

FEW = 2**28
"""So many bytes of images need no word."""
LIE = {
    "device": "in the memory of the device",
    "pinned": "in pinned memory of the host",
    "mapped": "read from their file as they are needed",
}


def run(
    benchmark: Any,
    strategy: Any = "finetune",
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    again: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Run one strategy (or chain) on a benchmark or stream, and give what was measured.

    ``benchmark``: an object of :mod:`continual.benchmarks`, a :class:`~continual.streams.stream.Stream`, or text such
    as ``"split-mnist:scenario=class"``; ``strategy``: an object of :mod:`continual.strategies` or text;
    ``settings``: ``model``, ``optimizer``, ``schedule``, ``augment``, ``track`` and the options of training (``seeds``,
    ...).
    With ``out`` the result is stored there, a result that is there already is returned instead of run again, and a run
    that was interrupted goes on, unless ``again``. Raises :class:`~continual.errors.Mistake` for whatever cannot be run
    as asked.
    """
    made = config.plan({"benchmark": benchmark, "strategies": [strategy], **settings})
    (result,) = run_plan(made, out=out, data=data, device=device, again=again, progress=progress)
    return result


def run_plan(
    plan: Plan,
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    again: bool = False,
    progress: Progress | None = None,
    processes: bool = False,
) -> list[Result]:
    """Every strategy of a plan in turn; see :func:`run`.

    With ``processes`` seeds are run in several of them where that is found to be faster: for programs that may be
    started again, such as the command line. (A script has to begin with ``if __name__ == "__main__":`` for that.)
    """
    told, target = progress or Progress(), choose_device(device)
    folder = Path(out) if out is not None else None
    if folder is not None:
        store.check_writable(folder)
    root = data_root(data)
    records = [new_record(plan, strategy, target, root) for strategy in plan.strategies]
    there = [_stored(folder, record, told) if folder and not again else None for record in records]
    kept = [resume.keeping(folder, record, plan, processes) if folder else None for record in records]
    for stored, one in zip(there, kept, strict=True):
        if one and (again or stored):
            one.checkpoints.forget()
    missing = [number for number, stored in enumerate(there) if stored is None]
    strategies, own = [plan.strategies[number] for number in missing], [kept[number] for number in missing]
    for tracker in plan.trackers if missing else ():
        tracker.reach()
    for record, stored in zip(records, there, strict=True):
        if stored is not None and plan.trackers:
            told.say(f"{record['title']}: not tracked, as it is not run")
    with resume.tidied(own):
        other = "; images that do not fit can stay in their file (--pixels mapped)"
        with failures.memory(f"preparing on {target.type}", less_memory(plan.training.seeds_as) + other):
            ready = prepare(plan, strategies, root, target, told, processes, resume.begun(own)) if missing else None
        # each is begun before the first is trained, so that all are done alike also if the process is killed
        begun = [_sure(ready).begun(one) for one in own]
        done = dict[int, Result]()
        for number, as_begun in zip(missing, begun, strict=True):
            record, found = records[number], kept[number]
            with following(plan.trackers, record, told.say, found.mark if found else "") as follow:
                done[number] = run_strategy(as_begun, plan.strategies[number], record, told, found, follow)
                place = None
                if folder is not None:
                    place = store.save(done[number], folder, replace=again or bool(record["code"]))
                follow.end(done[number], place)
            if found:
                found.checkpoints.forget()
    return [stored or done[number] for number, stored in enumerate(there)]


@dataclass(frozen=True)
class Ready:
    """What the strategies of a plan are run on: the streams of all seeds on a device, and how it is done."""

    plan: Plan
    root: Path
    device: torch.device
    streams: list[Stream]
    net: Net
    way: Way

    def begun(self, kept: resume.Kept | None) -> Ready:
        """The same, for a strategy whose run may have been begun in another way."""
        return self if kept is None else self.done(kept.begin(self.way))

    def done(self, way: Way) -> Ready:
        """The same, done in a way; images lie where they do."""
        last = way.how != "map" and execution.helps(self.net, self.device, self.plan.training.precision)
        return replace(self, way=replace(way, where=self.way.where), streams=laid_out(self.streams, last))

    def recipe(self, strategy: Strategy) -> Recipe:
        """What the learners of a strategy share."""
        return recipe_of(self.plan, strategy, self.net)


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
    streams = [plan.benchmark.stream(seed, root) for seed in training.seed_list]
    for rows in {len(task.train) for stream in streams for task in stream.tasks}:
        training.steps(rows)
    net: Net = plan.model.build(  # type: ignore[attr-defined]
        streams[0].shape, streams[0].units, len(streams[0].tasks)
    )
    data, samples = streams[0].data, streams[0].samples
    plan.augment.suits(data.name, samples.pixels, samples.top)  # type: ignore[attr-defined]
    if skipped := data.skipped:
        told.note(f"{data.name}: {len(skipped)} files were left out, as they cannot be decoded "
                  f"({skipped[0]}{', ...' if len(skipped) > 1 else ''}); the run's record names them")  # fmt: skip
    where = way.where if way else choose_place(plan, streams, device, told)
    streams = place(streams, device, where)
    if not plan.augment.active:  # type: ignore[attr-defined]
        net, streams = features_once(net, streams, dtype_of(training.precision))
    for strategy in strategies:
        strategy.suits(streams[0], net)
        strategy.suits_training(training, plan.augment)  # type: ignore[arg-type]
    if way is None:
        ours = next((strategy for strategy in strategies if not strategy.trains_itself), strategies[0])
        with tensor_float(training.precision == "tf32"):
            choice = execution.choose(recipe_of(plan, ours, net), training, streams, processes)
        if choice.why:
            told.note(choice.why)
        way = Way(choice.how, choice.inner, where, execution.cores(), torch.get_num_threads())
    return Ready(plan, root, device, streams, net, way).done(way)


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
    )


def _sure(ready: Ready | None) -> Ready:
    assert ready is not None, "what is not stored was prepared for"
    return ready


def choose_place(plan: Plan, streams: list[Stream], device: torch.device, told: Progress) -> Where:
    """Where the images will lie, which is told unless they are few."""
    where = choose(streams, device, plan.training.pixels)
    held = image_bytes(streams)
    if held > FEW or where != "device":
        told.note(f"{streams[0].data.name}: {held / 1e6:,.0f} MB of images, {LIE[where]} "
                 f"({free_memory(device) / 1e6:,.0f} MB free on {device.type})")  # fmt: skip
    return where


def _stored(folder: Path, record: dict[str, Any], told: Progress) -> Result | None:
    """The same run, if it was stored."""
    stored = store.lookup(folder, record)
    if stored is not None:
        told.say(f"{record['title']}: already there, not run again (--again runs it)")
    elif store.folder(folder, record).exists():
        told.say(f"{record['title']}: there, but {', '.join(record['code'])} may have changed since; run again")
    return stored


def choose_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for a GPU if there is one."""
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise BadOption(f"device '{name}': it takes cpu, cuda, cuda:N or auto")
    if kind == "cuda" and (not available or int(number or 0) >= torch.cuda.device_count()):
        raise BadOption(f"device '{name}': PyTorch finds {torch.cuda.device_count()} GPUs here; use cpu or auto")
    return torch.device(name)


def new_record(plan: Plan, strategy: Strategy, device: torch.device, root: Path) -> dict[str, Any]:
    """What is known of a run before it begins: everything that it will be recognised by, and the versions."""
    return {
        "title": config.strategy_title(strategy),
        "strategy": [config.describe("strategies", part) for part in strategy.parts],
        "protocol": plan.protocol(root),
        "device": {"type": device.type, "name": device_name(device)},
        "versions": versions(*(name for part in strategy.parts for name in part.libraries)),
        "code": {
            module: digest
            for made in (*strategy.parts, plan.benchmark, plan.model, plan.optimizer, plan.schedule, plan.augment)
            for module, digest in plugins.code_of(type(made)).items()
        },
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def versions(*more: str) -> dict[str, str]:
    """The versions of what the numbers depend on."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("continual", "numpy", "torch", "torchvision", *more)}
    return found | {"python": platform.python_version(), "system": platform.system()}


def run_strategy(
    ready: Ready, strategy: Strategy, record: dict[str, Any], told: Progress, kept: resume.Kept | None = None,
    follow: Follow | None = None,
) -> Result:  # fmt: skip
    """Train one strategy on all seeds, with what was ``kept`` of it, if it was interrupted; ``follow`` is fed."""
    follow = follow or Follow((), record, told.say)
    began, clock = datetime.now(UTC), time.perf_counter()
    if kept:
        kept.look(told.say)
    do = in_processes if ready.way.how == "processes" else in_groups
    enough = failures.memory(f"{record['title']} on {ready.device.type}", less_memory(ready.way.how))
    with enough, execution.deterministic(ready.plan.training.deterministic):
        parts = do(ready, strategy, record, told, kept, follow)
    seeds, stopped = ready.plan.training.seed_list, [one for part in parts for one in part.stopped]
    for one in stopped:
        others = "; the other seeds went on" if len(stopped) < len(seeds) else ""
        told.say(f"{record['title']}: {describe_stop(one)}{others}")
    seconds = time.perf_counter() - clock + (kept.before if kept else 0)
    full = record | parts[0].facts | {
        "seeds_as": ready.way.how,
        "deterministic": ready.plan.training.deterministic,
        "pixels": ready.way.where,
        "data": {"sha256": ready.streams[0].data.sha256, "skipped": list(ready.streams[0].data.skipped)},
        "time": {"began": began.isoformat(timespec="seconds"), "seconds": round(seconds, 3)},
        "stopped": stopped,
    }  # fmt: skip
    return Result(full, join(parts, seeds))


def less_memory(how: str) -> str:
    """The two settings that help where memory is short, by how seeds are done."""
    other = "seeds_as=loop (--seeds-as loop), which runs one seed at a time"
    if how == "loop":
        other = "pixels=mapped (--pixels mapped), which leaves images in their file"
    return f"a smaller batch (--batch) needs less, and so does {other}"


@dataclass(frozen=True)
class Part:
    """What some of the seeds gave: arrays with R in front, those that were given up, and how it was done."""

    seeds: list[int]
    arrays: dict[str, Any]
    stopped: list[dict[str, Any]]
    facts: dict[str, Any]


def in_groups(
    ready: Ready, strategy: Strategy, record: dict[str, Any], told: Progress, kept: resume.Kept | None, follow: Follow
) -> list[Part]:
    """All seeds in this process: mapped as one group, or each as a group of its own."""
    training, seeds = ready.plan.training, ready.plan.training.seed_list
    mapped = ready.way.how == "map" and not strategy.trains_itself
    groups = [list(range(len(seeds)))] if mapped else [[r] for r in range(len(seeds))]
    parts, tasks = [], len(ready.streams[0].tasks)
    multiplications = len(groups[0]) * training.batch * ready.net.work(ready.streams[0].shape)
    with (
        execution.threads(training.threads, multiplications, ready.way.threads),
        tensor_float(training.precision == "tf32"),
        _blamed(record),
    ):
        for number, group in enumerate(groups):
            own = kept.group([seeds[r] for r in group], told.say) if kept else None
            told.begin(record["title"], number, len(groups), tasks, training.batch * len(group))
            part, fed = _finished(own), False
            if part is None:
                part, fed = _trained(ready, strategy, group, told, own, follow), not strategy.trains_itself
            if not fed:  # nobody told of single tasks
                follow.feed(part.seeds, -1, part.arrays)
            parts.append(part)
            told.end()
    return parts


def _fed(follow: Follow, learners: Learners, index: int, arrays: dict[str, Tensor]) -> None:
    """Trackers are given what a group gave in a task."""
    follow.feed(learners.seeds, index, _numpy(_by_seed(learners, arrays)))


def _by_seed(learners: Learners, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of a group with R in front, but for what its seeds share."""
    return {
        name: value if learners.mapped or name in SHARED_BY_SEEDS else value[None] for name, value in arrays.items()
    }


def _numpy(arrays: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in arrays.items()}


def _finished(kept: resume.Group | None) -> Part | None:
    """What some seeds gave that were through before the run was interrupted."""
    found = kept.finished() if kept else None
    if found is None:
        return None
    tensors, facts = found
    return Part(facts["seeds"], _numpy(tensors), facts["stopped"], facts["facts"])


def _trained(
    ready: Ready, strategy: Strategy, group: list[int], told: Progress, kept: resume.Group | None, follow: Follow
) -> Part:
    """Train the seeds of a group, which are known by their places in the list of all."""
    training, seeds = ready.plan.training, ready.plan.training.seed_list
    learners = Learners(ready.recipe(strategy), [ready.streams[r] for r in group], [seeds[r] for r in group])
    watch = Watch(told.step, functools.partial(_fed, follow, learners))
    if kept:
        watch = replace(watch, due=kept.due, keep=kept.keep, start=kept.start())
    found, lost = train(learners, training, watch)
    arrays = _by_seed(learners, found)
    eager = not_captured(learners, training)
    facts = {
        "program": f"eager: {eager}" if eager else "captured",
        "threads": torch.get_num_threads(),
        "size": size(learners, ready.streams[0], arrays["stored_samples"]),
    }
    stopped = [vars(one) | {"why": "loss or parameters not finite"} for one in lost]
    if kept:
        kept.finish(arrays, {"stopped": stopped, "facts": facts})
    return Part(learners.seeds, _numpy(arrays), stopped, facts)


def in_processes(
    ready: Ready, strategy: Strategy, record: dict[str, Any], told: Progress, kept: resume.Kept | None, follow: Follow
) -> list[Part]:
    """The seeds dealt out to as many processes as there are processor cores."""
    training, seeds, way = ready.plan.training, ready.plan.training.seed_list, ready.way
    count, parts = execution.workers(len(seeds), way.cores), list[Part]()
    threads = training.threads or execution.threads_each(len(seeds), way.cores)
    calls = []
    for first in range(count):
        own = tuple(seeds[first::count])
        inner: execution.How = way.inner if len(own) > 1 else "loop"
        share = replace(training, seeds=own, threads=threads)
        plan = replace(ready.plan, strategies=(strategy,), training=share, trackers=())
        calls.append((plan, ready.root, ready.device, replace(way, how=inner), record, kept))
    through = itertools.count(1)

    def wait(number: int) -> None:
        told.begin(record["title"], number, count, len(ready.streams[0].tasks), training.batch)

    def done(_: int, given: tuple[list[Part], list[str]]) -> None:
        for part in given[0]:  # a tracker is in this process alone
            parts.append(part)
            follow.feed(part.seeds, -1, part.arrays)
        told.end()
        for line in given[1]:
            told.say(line)
        if (number := next(through)) < count:
            wait(number)

    wait(0)
    workers.each(count, _alone, calls, done, less_memory("processes"))
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
) -> tuple[list[Part], list[str]]:
    """What a process does of it, and says."""
    (strategy,), told = plan.strategies, Lines()
    ready = prepare(plan, [strategy], root, device, Progress(), way=way)
    with execution.deterministic(plan.training.deterministic):
        return in_groups(ready, strategy, record, told, kept, Follow((), record, told.say)), told.lines


@contextlib.contextmanager
def _blamed(record: dict[str, Any]) -> Iterator[None]:
    """What is raised within it names the command that finds out what is wrong with a strategy of the user's."""
    try:
        yield
    except Exception as error:
        if record["code"]:
            error.add_note(f"'continual check {record['title']}' says what a strategy does wrong, hook by hook")
        raise


def describe_stop(one: dict[str, Any]) -> str:
    """A stopped seed in words."""
    return f"seed {one['seed']} was stopped at task {one['task']}, step {one['step']}: its loss was not finite"


def size(learners: Learners, stream: Stream, stored: Tensor) -> dict[str, Any]:
    """What a learner holds: parameters, what the strategy keeps beside them, and the samples it has stored."""
    memory = learners.memories()[0]
    return {
        "parameters": learners.net.size,
        "memory_bytes": sum(value.numel() * value.element_size() for value in memory.values()),
        "stored_samples_per_task": stored.reshape(-1, stored.shape[-1])[0].tolist(),
        "sample_bytes": stream.samples.pixels[0].numel() * stream.samples.pixels.element_size(),
        "train_samples_per_task": [len(task.train) for task in stream.tasks],
    }


def join(parts: Sequence[Part], seeds: list[int]) -> dict[str, Any]:
    """The arrays of all seeds in their order.

    Seeds may differ in how many steps they took: the shorter ``loss`` ends in NaN.
    """
    found = [seed for part in parts for seed in part.seeds]
    order = [found.index(seed) for seed in seeds]
    joined: dict[str, Any] = {}
    for name, first in parts[0].arrays.items():
        if name in SHARED_BY_SEEDS:
            joined[name] = first
            continue
        values = [part.arrays[name] for part in parts]
        longest = max(value.shape[-1] for value in values)
        if name == "loss":
            values = [np.pad(one, ((0, 0), (0, longest - one.shape[-1])), constant_values=np.nan) for one in values]
        joined[name] = np.concatenate(values)[order]
    return joined
