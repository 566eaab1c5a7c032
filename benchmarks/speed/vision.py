"""Time the vision path: what gathering and augmenting images costs in a step, and an epoch against avalanche-lib.

    python benchmarks/speed/vision.py --data ROOT                  # on two cores, the CNN
    python benchmarks/speed/vision.py --data ROOT --model cnn:channels=16-32,units=128
    python benchmarks/speed/vision.py --data ROOT --device cuda --model resnet18

Split CIFAR-10 in five tasks, 32 samples and 32 replayed ones in a batch, random crops and flips, Adam. Everything is
timed in the second task, where replay is at work, in turns; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from tabulate import tabulate

from continual import config
from continual.execution import helps
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.train import schedule
from continual.runner import choose_device, device_name, versions
from continual.streams.augment import Augmentation
from continual.streams.placement import laid_out, place
from continual.streams.sets import load
from continual.streams.stream import Samples, Stream

BENCHMARK, STRATEGY, AUGMENT = "split-cifar10:normalize=channel", "replay:capacity=500", "images:crop=4,flip=true"
BATCH = 32


@dataclass(frozen=True, eq=False)
class Still(Samples):
    """Samples whose images are those of one batch, made beforehand: a step without a data path."""

    batch: torch.Tensor | None = None

    def images(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The same images for all rows."""
        assert self.batch is not None
        return self.batch[: len(rows)]


def steps(stream: Stream, net: Any, augmented: bool, seed: int = 0) -> Iterator[torch.Tensor]:
    """The steps of the second task, each done when it is asked for."""
    recipe = Recipe(
        net, config.make_strategy(STRATEGY), config.make("optimizers", "adam"), config.make("schedules", "constant"),
        keep_optimizer=True, precision="float32", augmentation=config.make("augmentations", AUGMENT)
        if augmented else Augmentation(),
    )  # fmt: skip
    learners = Learners(recipe, [stream], [seed])
    training = config.plan({"benchmark": BENCHMARK, "batch": BATCH, "epochs": 100}).training
    learners.begin(0)
    learners.end(0)  # the first task's exemplars are stored; what it learnt does not matter here
    batches = schedule(learners.begin(1), training, learners.seed, 1)
    program = Program(learners, 1, len(batches))
    for number, rows in enumerate(batches):
        if len(rows) == BATCH:
            yield program(number, rows)


def still(stream: Stream) -> Stream:
    """The same stream with one batch for all."""
    rows = stream.tasks[1].train[: 2 * BATCH]
    batch = stream.samples.images(rows, torch.float32)
    fixed = Still(**{name: getattr(stream.samples, name) for name in Samples.__dataclass_fields__}, batch=batch)
    return replace(stream, samples=fixed, tasks=tuple(replace(task, samples=fixed) for task in stream.tasks))


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def block(made: Iterator[Any], count: int, device: torch.device) -> float:
    """Seconds of one of ``count`` steps."""
    wait(device)
    began = time.perf_counter()
    for _ in range(count):
        next(made)
    wait(device)
    return (time.perf_counter() - began) / count


class Elsewhere:
    """avalanche-lib's steps, in a process of their own: threads that wait in one process slow each other down."""

    def __init__(self, given: argparse.Namespace, name: str) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        asked = (given.data, given.model, given.device, given.steps, given.threads, name)
        context.Process(target=_elsewhere, args=(other, *asked), daemon=True).start()
        assert self.pipe.recv() == "ready"

    def __call__(self) -> float:
        """Seconds of one of some steps."""
        self.pipe.send("go")
        seconds: float = self.pipe.recv()
        return seconds


def _elsewhere(pipe: Any, root: str, model: str, device: str, count: int, threads: int, name: str) -> None:
    torch.set_num_threads(threads)
    import avalanche_vision

    where = choose_device(device)
    made = avalanche_vision.steps(load("cifar10", Path(root)), model, where, BATCH, name == "fused" or None)
    next(made)
    pipe.send("ready")
    with contextlib.suppress(EOFError):  # whoever asked has ended
        while pipe.recv() == "go":
            pipe.send(block(made, count, where))


def in_turns(contenders: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of each contender in every turn, after one that is not counted; who begins changes."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        names = list(contenders)
        for name in names if turn % 2 else reversed(names):
            seconds = contenders[name]()
            if turn:
                found[name].append(seconds)
    return found


def lines(row: str, found: dict[str, list[float]]) -> list[list[str]]:
    """The table's lines; ratios are to the first."""
    first, table = next(iter(found)), []
    for name, seconds in found.items():
        ratios = [b / a for a, b in zip(found[first], seconds, strict=True)]
        ratio = "" if name == first else f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        table.append([row if name == first else "", name, f"{1000 * statistics.median(seconds):.2f}", ratio])
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data root with CIFAR-10")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-avalanche", action="store_true")
    parser.add_argument("--json", help="also write all seconds to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    stream = config.make_benchmark(BENCHMARK).stream(0, Path(given.data))
    net = config.make("models", given.model).build(stream.shape, stream.units, len(stream.tasks))
    (placed,) = laid_out(place([stream], device), helps(net, device, "float32"))
    fixed, whole = steps(still(placed), net, False), steps(placed, net, True)
    contenders = {
        "a fixed batch": lambda: block(fixed, given.steps, device),
        "gathered, augmented, normalised": lambda: block(whole, given.steps, device),
    }
    record = {"data path": in_turns(contenders, given.turns)}
    if not given.without_avalanche:
        again, theirs = steps(placed, net, True), {name: Elsewhere(given, name) for name in ("usual", "fused")}
        record["a step"] = in_turns(
            {"ours": lambda: block(again, given.steps, device),
             "avalanche-lib": theirs["usual"],
             "avalanche-lib, fused Adam": theirs["fused"]},
            given.turns,
        )  # fmt: skip
    table = [line for row, found in record.items() for line in lines(row, found)]
    print(tabulate(table, [given.model, "", "median ms", "ratio to the first (range)"], tablefmt="github"))
    held = sum(part.pixels.nbytes for part in (stream.samples, stream.test_samples))
    most = (torch.cuda.max_memory_allocated(device) if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # fmt: skip
    print(f"\nimages {held / 1e6:.0f} MB; most memory used by the process {most / 1e6:.0f} MB")
    print(f"{device_name(device)}, {given.threads} threads; {versions()}")
    if given.json:
        Path(given.json).write_text(json.dumps({"versions": versions(), "seconds": record}, indent=1))


if __name__ == "__main__":
    main()
