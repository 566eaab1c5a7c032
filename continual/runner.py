"""Do a plan: train every strategy on every seed, and keep what was measured."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from continual import config, plugins
from continual.config import Plan
from continual.errors import BadOption
from continual.learning.frozen import features_once
from continual.learning.seeds import Learners, Recipe, dtype_of
from continual.learning.train import Stopped, Training, Watch, not_captured, train
from continual.progress import Progress
from continual.results import store
from continual.results.store import Result
from continual.streams.placement import Where, choose, free_memory, image_bytes, place
from continual.streams.sets import data_root
from continual.streams.stream import Stream

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.learning.strategy import Strategy

SMALL = 2_000_000
"""Below so many multiplications in a step (batch times parameters) a step on a CPU is mostly overhead, which mapped
seeds share; above, the loop is as fast or faster (docs/measurements.md)."""
FEW = 2**28
"""So many bytes of images need no word."""
LIE = {
    "device": "in the memory of the device",
    "pinned": "in pinned memory of the host",
    "mapped": "read from their file as they are needed",
}
SHARED = 10_000_000
"""Below so many multiplications in a step, threads cost more in waiting for each other than they save."""


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
    ``settings``: ``model``, ``optimizer``, ``schedule``, ``augment`` and the options of training (``seeds``, ...).
    With ``out`` the result is stored there, and a result that is there already is returned instead of run again,
    unless ``again``. Raises :class:`~continual.errors.Mistake` for whatever cannot be run as asked.
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
) -> list[Result]:
    """Every strategy of a plan in turn; see :func:`run`."""
    told, target = progress or Progress(), choose_device(device)
    if plan.training.precision == "tf32" and target.type != "cuda":
        raise BadOption("precision=tf32 is arithmetic of GPUs, and this run is on the CPU; use float32")
    folder = Path(out) if out is not None else None
    if folder is not None:
        store.check_writable(folder)
    records = [new_record(plan, strategy, target) for strategy in plan.strategies]
    there = [_stored(folder, record, told) if folder and not again else None for record in records]
    missing = [strategy for strategy, stored in zip(plan.strategies, there, strict=True) if stored is None]
    if missing:
        streams = [plan.benchmark.stream(seed, data_root(data)) for seed in plan.training.seed_list]
        net: Net = plan.model.build(  # type: ignore[attr-defined]
            streams[0].shape, streams[0].units, len(streams[0].tasks)
        )
        mapped = mapping(plan.training, streams, net, target)
        where = choose_place(plan, streams, target, told)
        streams = place(streams, target, where, channels_last=helps(net, mapped, target, plan.training.precision))
        if not plan.augment.active:  # type: ignore[attr-defined]
            net, streams = features_once(net, streams, dtype_of(plan.training.precision))
        for strategy in missing:  # what cannot run is refused before anything is trained
            strategy.suits(streams[0], net)
    results = []
    for strategy, record, stored in zip(plan.strategies, records, there, strict=True):
        result = stored or run_strategy(plan, strategy, streams, net, mapped, record | {"pixels": where}, told)
        if folder is not None and stored is None:
            store.save(result, folder, replace=again or bool(record["code"]))
        results.append(result)
    return results


def choose_place(plan: Plan, streams: list[Stream], device: torch.device, told: Progress) -> Where:
    """Where the images will lie, which is told unless they are few."""
    where = choose(streams, device, plan.training.pixels)
    held = image_bytes(streams)
    if held > FEW or where != "device":
        told.say(f"{streams[0].data.name}: {held / 1e6:,.0f} MB of images, {LIE[where]} "
                 f"({free_memory(device) / 1e6:,.0f} MB free on {device.type})")  # fmt: skip
    return where


def helps(net: Net, mapped: bool, device: torch.device, precision: str) -> bool:
    """Whether images are better shown with their channels last, as the kernels of convolutions like them.

    A CPU's do; a GPU's where its tensor cores are used. Mapped seeds have no such form.
    """
    convolves = any(len(shape) == 4 for shape in net.shapes.values())
    return convolves and not mapped and (device.type == "cpu" or precision in ("tf32", "bfloat16"))


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


def new_record(plan: Plan, strategy: Strategy, device: torch.device) -> dict[str, Any]:
    """What is known of a run before it begins: everything that it will be recognised by, and the versions."""
    return {
        "title": config.strategy_title(strategy),
        "strategy": [config.describe("strategies", part) for part in strategy.parts],
        "protocol": plan.protocol(),
        "device": {"type": device.type, "name": device_name(device)},
        "versions": versions(),
        "code": {
            module: digest
            for made in (*strategy.parts, plan.benchmark, plan.model, plan.optimizer, plan.schedule, plan.augment)
            for module, digest in plugins.code_of(type(made)).items()
        },
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("continual", "numpy", "torch", "torchvision")}
    return found | {"python": platform.python_version(), "system": platform.system()}


def run_strategy(
    plan: Plan,
    strategy: Strategy,
    streams: list[Stream],
    net: Net,
    mapped: bool,
    record: dict[str, Any],
    told: Progress,
) -> Result:
    """Train one strategy on all seeds, in one group or one by one."""
    seeds = plan.training.seed_list
    groups = [list(range(len(seeds)))] if mapped else [[r] for r in range(len(seeds))]
    recipe = Recipe(
        net,
        strategy,
        plan.optimizer,  # type: ignore[arg-type]
        plan.schedule,  # type: ignore[arg-type]
        plan.training.optimizer_state == "keep",
        plan.training.precision,
        plan.augment,  # type: ignore[arg-type]
    )
    began, clock, parts, stopped = datetime.now(UTC), time.perf_counter(), [], []
    sizes: dict[str, Any] = {}
    tf32 = plan.training.precision == "tf32"
    with threads(plan.training, len(groups[0]) * plan.training.batch * net.size), tensor_float(tf32):
        used = torch.get_num_threads()
        for number, group in enumerate(groups):
            learners = Learners(recipe, [streams[r] for r in group], [seeds[r] for r in group])
            told.begin(record["title"], number, len(groups), len(streams[0].tasks), plan.training.batch * len(group))
            eager = not_captured(learners, plan.training)
            with _blamed(record):
                arrays, lost = train(learners, plan.training, Watch(told.step))
            told.end()
            parts.append(arrays)
            stopped += lost
            sizes = size(learners, streams[0], arrays["stored_samples"])
    for one in stopped:
        others = "; the other seeds went on" if len(stopped) < len(seeds) else ""
        told.say(f"{record['title']}: {describe_stop(one)}{others}")
    took = {"began": began.isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - clock, 3)}
    full = record | {
        "seeds_as": "map" if mapped else "loop",
        "program": f"eager: {eager}" if eager else "captured",
        "threads": used,
        "data": {"sha256": streams[0].data.sha256, "skipped": list(streams[0].data.skipped)},
        "size": sizes,
        "time": took,
        "stopped": [vars(one) | {"why": "loss or parameters not finite"} for one in stopped],
    }
    return Result(full, join(parts, mapped))


@contextlib.contextmanager
def _blamed(record: dict[str, Any]) -> Iterator[None]:
    """What is raised within it names the command that finds out what is wrong with a strategy of the user's."""
    try:
        yield
    except Exception as error:
        if record["code"]:
            error.add_note(f"'continual check {record['title']}' says what a strategy does wrong, hook by hook")
        raise


@contextlib.contextmanager
def threads(training: Training, multiplications: int) -> Iterator[None]:
    """Within it, PyTorch uses the threads that were asked for, or one where a step is too small to be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(training.threads or (before if multiplications > SHARED else 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Within it, a GPU multiplies float32 as TF32 or does not; PyTorch's default allows it in convolutions alone."""
    backends: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in backends]
    for one in backends:
        one.allow_tf32 = allowed
    try:
        yield
    finally:
        for one, value in zip(backends, before, strict=True):
            one.allow_tf32 = value


def describe_stop(one: Stopped) -> str:
    """A stopped seed in words."""
    return f"seed {one.seed} was stopped at task {one.task}, step {one.step}: its loss was not finite"


def mapping(training: Training, streams: Sequence[Stream], net: Net, device: torch.device) -> bool:
    """Whether the seeds are mapped; where tasks differ in size between seeds they can only be looped."""
    sizes = {tuple((len(t.train), len(t.test), len(t.validation)) for t in stream.tasks) for stream in streams}
    if len(sizes) > 1:
        if training.evaluate_every and training.iterations is None:
            raise BadOption("evaluate_every: the seeds' tasks differ in size (the class order is drawn by the seed), "
                            "so they are not measured at the same steps; give iterations, not epochs")  # fmt: skip
        if training.seeds_as == "map":
            raise BadOption("seeds_as=map: the seeds' tasks differ in size (the class order is drawn by the seed), so "
                            "seeds can only be run one after the other; use seeds_as=loop or auto")  # fmt: skip
        return False
    if len(streams) == 1 or training.seeds_as == "loop":
        return False
    return training.seeds_as == "map" or device.type == "cuda" or training.batch * net.size < SMALL


def size(learners: Learners, stream: Stream, stored: Tensor) -> dict[str, Any]:
    """What a learner holds: parameters, what the strategy keeps beside them, and the samples it has stored."""
    memory = learners.memories()[0]
    return {
        "parameters": learners.net.size,
        "memory_bytes": sum(value.numel() * value.element_size() for value in memory.values()),
        "stored_samples_per_task": stored.reshape(-1, stored.shape[-1])[0].tolist(),
        "train_samples_per_task": [len(task.train) for task in stream.tasks],
    }


def join(parts: list[dict[str, Tensor]], mapped: bool) -> dict[str, Any]:
    """The arrays of all seeds, R in front; when a trace was taken is the same for all, and taken once.

    Seeds may differ in how many steps they took: the shorter ``loss`` ends in NaN.
    """
    joined = {}
    for name, first in parts[0].items():
        if mapped or name in ("trace_task", "trace_step"):
            joined[name] = first.numpy()
        elif name == "loss":
            losses = [part[name] for part in parts]
            joined[name] = torch.nn.utils.rnn.pad_sequence(losses, batch_first=True, padding_value=torch.nan).numpy()
        else:
            joined[name] = torch.stack([part[name] for part in parts]).numpy()
    return joined
