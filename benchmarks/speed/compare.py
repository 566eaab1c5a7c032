"""Time this framework, a hand-written loop and avalanche-lib on the same work, in turn, in one process.

    python benchmarks/speed/compare.py --data ROOT            # all, about ten minutes on two cores
    python benchmarks/speed/compare.py --data ROOT --quick    # one repetition of each

Every row is a piece of work; its contenders take turns, and the ratio is the median over the repetitions of the
ratios within one repetition, so that a machine whose speed drifts does not matter. Loading the data is not timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import hand
from tabulate import tabulate

from continual import config
from continual.progress import Progress
from continual.runner import new_record, prepare, run_strategy, versions

Work = Callable[[], Any]


def ours(root: Path, strategy: str, benchmark: str = "split-mnist", **settings: Any) -> Work:
    """A run of this framework on streams that are built already."""
    plan = config.plan({"benchmark": benchmark, "strategies": [strategy], "seeds": 1, **settings})
    (made,) = plan.strategies
    ready = prepare(plan, plan.strategies, root, torch.device("cpu"), Progress())
    return lambda: run_strategy(ready, made, new_record(plan, made, ready.device, ready.root), Progress())


def avalanche(root: Path) -> Callable[[str], dict[str, Work]]:
    """Runs of avalanche-lib, with Adam as its documentation makes it and with Adam's fused kernel."""
    import avalanche_reference

    benchmark = avalanche_reference.load(str(root))
    return lambda method: {
        "avalanche-lib": lambda: avalanche_reference.run(method, benchmark, seed=0),
        "avalanche-lib, fused Adam": lambda: avalanche_reference.run(method, benchmark, seed=0, fused=True),
    }


def work(root: Path) -> dict[str, dict[str, Work]]:
    """Each row's contenders; the first is what the others are held against."""
    data = hand.load(str(root))
    theirs = avalanche(root)

    def by_hand(method: str) -> Work:
        return lambda: hand.METHODS[method](data, seed=0).train()

    def ten(benchmark: str) -> dict[str, Work]:
        singles = [ours(root, "finetune", benchmark, seeds=(seed,)) for seed in range(10)]
        return {
            "one at a time": lambda: [single() for single in singles],
            "at once": ours(root, "finetune", benchmark, seeds=10),
        }

    return {
        "fine-tuning": {"ours": ours(root, "finetune"), "hand-written": by_hand("finetune")} | theirs("finetune"),
        "L2": {"ours": ours(root, "l2"), "hand-written": by_hand("l2")},
        "EWC, one label (true)": {"ours": ours(root, "ewc:label=true"), "hand-written": by_hand("ewc")} | theirs("ewc"),
        "EWC, all labels": {"ours": ours(root, "ewc")} | theirs("ewc"),
        "replay, 500 stored": {"ours": ours(root, "replay"), "hand-written": by_hand("replay")} | theirs("replay"),
        "ten seeds, Split MNIST": ten("split-mnist"),
        "ten seeds, Split Digits": ten("split-digits"),
        "evaluation every 10 steps": {
            "without": ours(root, "finetune"),
            "with": ours(root, "finetune", evaluate_every=10),
        },
    }


def timed(function: Work) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(contenders: dict[str, Work], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every contender in every repetition, taken in turn, after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + (repetitions > 1)):
        for name, function in contenders.items():
            seconds = timed(function)
            if repetition or repetitions == 1:
                found[name].append(seconds)
    return found


def rows(row: str, found: dict[str, list[float]]) -> list[list[Any]]:
    """The table's lines for one piece of work."""
    first = next(iter(found))
    lines = []
    for name, seconds in found.items():
        ratios = [b / a for a, b in zip(found[first], seconds, strict=True)]
        ratio = "" if name == first else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append([row if name == first else "", name, f"{statistics.median(seconds):.2f}", ratio])
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data root with MNIST")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="also write all seconds to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table, record = [], {}
    for name, contenders in work(Path(given.data)).items():
        if given.only in name:
            record[name] = measure(contenders, 1 if given.quick else given.repetitions)
            table += rows(name, record[name])
            print(tabulate(table[-len(contenders) :], tablefmt="plain"), flush=True)
    print()
    print(tabulate(table, ["work", "", "median s", "ratio to the first (range)"], tablefmt="github"))
    print(f"\n{platform.machine()}, {given.threads} threads; {versions()}")
    if given.json:
        Path(given.json).write_text(json.dumps({"versions": versions(), "seconds": record}, indent=1))


if __name__ == "__main__":
    main()
