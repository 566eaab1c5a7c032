"""Many processes write to one results folder, and others read it all the while: nothing is lost, mixed or half there.

    python benchmarks/reliability/writers.py --writers 8 --readers 4 --runs 200

Every writer saves every run, in an order of its own, half of them with ``replace``, so that all of them meet. What is
in a run says who wrote it, in the record and in each array; a reader raises where these differ. Then a data set is
packed by all processes at once from a cold cache, and every one has to get the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from continual.errors import BadFolder
from continual.results import store
from continual.results.store import Result
from continual.streams import sets

SIZE = 100
"""Seeds of a run; its arrays have some 200 kB, which take more than one write."""


def result(number: int, writer: int) -> Result:
    """The run of a number as a writer has it."""
    record = {
        "strategy": [{"name": "s", "number": number}],
        "protocol": {"benchmark": "b", "model": "m", "training": {}, "seeds": list(range(SIZE))},
        "size": {"parameters": writer},
    }
    accuracy = np.full((SIZE, 11, 10), writer / 1000)
    return Result(record, {"accuracy": accuracy, "training_accuracy": accuracy.copy(), "loss": np.full(9, writer)})


def check(found: Result) -> None:
    """Raise where a run is not wholly of one writer."""
    writer = found.record["size"]["parameters"]
    whole = [found.accuracy * 1000, found.arrays["training_accuracy"] * 1000, found.arrays["loss"]]
    if not all(np.allclose(one, writer) for one in whole):
        raise AssertionError(f"a run of writer {writer} has something of another")


def write(out: Path, writer: int, runs: int, begin: Any) -> None:
    """Save every run, in an order of the writer's own."""
    drawn = random.Random(writer)
    begin.wait()
    for number in drawn.sample(range(runs), runs):
        store.save(result(number, writer), out, replace=drawn.random() < 0.5)


def read(out: Path, begin: Any, end: Event, counts: Any) -> None:
    """Look at everything again and again; what was there once stays."""
    seen: set[int] = set()
    begin.wait()
    last = False
    while not last:
        last = end.is_set()
        try:
            found = store.find(out)
        except BadFolder as error:
            if "holds no runs" not in str(error) and "there is no folder" not in str(error):
                raise
            continue
        for one in found:
            check(one)
        now = {one.record["strategy"][0]["number"] for one in found}
        if seen - now:
            raise AssertionError(f"runs {sorted(seen - now)} were there and are not any more")
        seen = now
        counts.put(len(found))


def pack(root: Path, begin: Any, sums: Any) -> None:
    """Load a data set that nobody has packed yet."""
    begin.wait()
    sums.put(sets.load("digits", root).sha256)


@dataclass(frozen=True)
class Outcome:
    """What was done: runs saved, runs read whole, packings, and the seconds that it took."""

    saved: int
    read: int
    packed: int
    seconds: float


def together(calls: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> list[Any]:
    """Processes that are begun for these calls."""
    context = multiprocessing.get_context("spawn")
    begun = [context.Process(target=function, args=given) for function, given in calls]
    for one in begun:
        one.start()
    return begun


def ended(processes: list[Any], timeout: float) -> None:
    """Wait for processes; AssertionError where one failed or goes on."""
    for one in processes:
        one.join(timeout)
        if one.exitcode != 0:
            raise AssertionError(f"a process ended with {one.exitcode}")


def trial(folder: Path, writers: int, readers: int, runs: int, timeout: float = 600) -> Outcome:
    """Writers and readers at once, then all of them packing at once; AssertionError where something is not right."""
    context = multiprocessing.get_context("spawn")
    clock, out = time.perf_counter(), folder / "runs"
    begin, end, counts = context.Barrier(writers + readers), context.Event(), context.SimpleQueue()
    writing = together([(write, (out, number + 1, runs, begin)) for number in range(writers)])
    reading = together([(read, (out, begin, end, counts)) for _ in range(readers)])
    looked = 0
    while any(one.is_alive() for one in writing):
        looked += _taken(counts)
        time.sleep(0.01)
    ended(writing, timeout)
    end.set()
    while any(one.is_alive() for one in reading):
        looked += _taken(counts)
        time.sleep(0.01)
    ended(reading, timeout)
    looked += _taken(counts)
    found = store.find(out)
    for one in found:
        check(one)
    numbers = sorted(one.record["strategy"][0]["number"] for one in found)
    if numbers != list(range(runs)):
        raise AssertionError(f"of {runs} runs there are {len(numbers)}")
    if left := [path for path in out.rglob("*") if path.name.startswith(".")]:
        raise AssertionError(f"left behind: {left}")
    begin, sums = context.Barrier(writers + readers), context.SimpleQueue()
    ended(together([(pack, (folder / "data", begin, sums))] * (writers + readers)), timeout)
    if len({sums.get() for _ in range(writers + readers)}) != 1:
        raise AssertionError("processes that packed at once got different data")
    if left := [path for path in (folder / "data").rglob("*") if path.name.startswith(".")]:
        raise AssertionError(f"left behind: {left}")
    return Outcome(writers * runs, looked, writers + readers, time.perf_counter() - clock)


def _taken(counts: Any) -> int:
    total = 0
    while not counts.empty():
        total += counts.get()
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, usual in (("writers", 8), ("readers", 4), ("runs", 200)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = trial(Path(folder), given.writers, given.readers, given.runs)
    print(f"{given.writers} writers, {given.readers} readers, {given.runs} runs: {done.saved} saved, {done.read} read")
    print(f"whole, none lost, mixed or half there; {done.packed} packings at once alike; {done.seconds:.0f} s")


if __name__ == "__main__":
    main()
