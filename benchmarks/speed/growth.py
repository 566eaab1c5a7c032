"""How time and memory of a step grow with tasks done, with the buffer, with parameters and with seeds.

    python benchmarks/speed/growth.py                                   # everything, on made-up images
    python benchmarks/speed/growth.py --part tasks --strategies ewc gem
    python benchmarks/speed/growth.py --device cuda --json growth.json --picture growth.svg

On a CPU each measurement has a process of its own, so that its memory is its own; a GPU's is counted by PyTorch. A time
is the median over some steps. Beside it stands what does not depend on the machine: the operations of a step, the bytes
that they write and their FLOPs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from turns import apart, seconds

TASKS, BUFFER, PARAMETERS, SEEDS = (
    (5, 20, 100), (200, 2_000, 20_000, 100_000), (10**5, 10**6, 10**7, 10**8), (1, 3, 10, 30, 100)
)  # fmt: skip
STORING = ("replay", "replay:fill=reservoir", "a-gem", "er-ace", "mir", "der", "der++", "gss", "gem")
"""Those whose buffer has a capacity that a step may depend on."""
HOLDING = ("finetune", "l2", "ewc", "si", "replay:capacity=50")
MAPPED = ("finetune", "ewc", "si", "replay:capacity=50", "a-gem:capacity=50,samples=32")
BATCH, TIMED = 32, 20


def images(count: int, side: int, classes: int = 10) -> Any:
    """So many made-up images."""
    import torch

    from continual.streams.data import Data

    made = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=made)
    y = torch.arange(count) % classes
    return Data.from_arrays(x, y, x[: 20 * classes], y[: 20 * classes], "made-up images")


def learners_of(strategy: str, streams: list[Any], layers: tuple[int, ...], device: str) -> Any:
    """Untrained learners of an MLP, one for each stream."""
    from continual import config
    from continual.learning.models import MLP
    from continual.learning.seeds import Learners, Recipe
    from continual.streams.placement import place

    made, first = config.make_strategy(strategy), streams[0]
    net = MLP(layers=layers).build(first.shape, first.units, len(first.tasks))
    made.suits(first, net)
    recipe = Recipe(net, made, config.make("optimizers", "adam"), config.make("schedules", "constant"),
                    keep_optimizer=True, precision="float32")  # fmt: skip
    return Learners(recipe, place(streams, device), list(range(len(streams))))


def learn(learners: Any, index: int, device: str, batch: int = BATCH, count: int = 3, timed: int = 0) -> dict[str, Any]:
    """Some steps of a task as a run does them, and the task's end: what a step took, and what it consists of.

    Of ``count`` steps before those that are ``timed`` the third is recorded.
    """
    import torch

    from continual.conformance import Work, Works
    from continual.execution import at_speed
    from continual.learning.step import Program
    from continual.learning.train import captured, schedule, steps_of
    from continual.learning.training import Training

    training = Training(batch=batch, iterations=count + timed, last="drop")
    batches = schedule(learners.begin(index), training, learners.seed, index)
    losses = torch.zeros(*learners.theta.shape[:-1], len(batches), device=learners.device)
    took, work = [], Work()
    program = Program(learners, index, batches)
    with at_speed(training, learners.net, learners.streams):
        for number, step in enumerate(steps_of(program, batches, losses, captured(learners, training, 1))):
            spent = 1000 * seconds(step, device)
            took += [spent] if number >= count else []
    if timed and batches:
        program = Program(learners, index, batches[:3])
        for number in range(3):  # the first has more to do, the second draws for many
            with Works() as works:
                program(number, batches[number])
            work = works.done
    learners.end(index)
    held = sum(value.nbytes for value in learners.memory.values())
    return {"ms": statistics.median(took) if took else 0.0, "held": held / 1e6, **work._asdict()}


def memory(device: str) -> float:
    """The most memory so far, of the GPU or of this process, in MB."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def imported(device: str) -> float:
    """The memory so far, when PyTorch and the framework have been imported."""
    import continual.conformance  # noqa: F401

    return memory(device)


def suited(strategy: str, count: int, data: Any) -> tuple[str, Any]:
    """A permuted stream in the first scenario that suits the strategy.

    With room for two samples of each class of each task, and with images set aside, where it needs them.
    """
    from continual import config
    from continual.errors import Mistake
    from continual.learning.models import MLP
    from continual.streams.stream import Permuted

    refused: Mistake | None = None
    roomy = f"{strategy}{',' if ':' in strategy else ':'}capacity={20 * count}"
    for text, validation, scenario in itertools.product((strategy, roomy), (0, 0.2), ("domain", "task", "class")):
        options = {"tasks": count, "scenario": scenario, "validation": validation}
        stream = Permuted.read(options).build(data, 0)
        try:
            net = MLP(layers=(100, 100)).build(stream.shape, stream.units, count)
            config.make_strategy(text).suits(stream, net)
        except Mistake as error:
            refused = refused or error
        else:
            return text, stream
    assert refused is not None
    raise refused


def tasks(strategy: str, counts: tuple[int, ...], device: str) -> dict[int, dict[str, Any]]:
    """After so many tasks of a permuted stream that suits the strategy.

    The stream has as many tasks as the full measurement, whatever is measured: a memory may be shared
    among all of them.
    """
    before, data = imported(device), images(10 * BATCH, 14)
    text, stream = suited(strategy, max(TASKS), data)
    learners, scenario = learners_of(text, [stream], (100, 100), device), stream.scenario
    found = {}
    for index in range(max(counts)):
        done = learn(learners, index, device, timed=TIMED if index + 1 in counts else 0)
        if index + 1 in counts:
            found[index + 1] = done | {"peak": memory(device) - before, "scenario": scenario}
    return found


def buffer(strategy: str, counts: tuple[int, ...], device: str) -> dict[int, dict[str, Any]]:
    """With a full buffer of so many samples."""
    return {count: alone(_buffer, strategy, count, device) for count in counts}


def _buffer(strategy: str, count: int, device: str) -> dict[str, Any]:
    from continual.streams.stream import split

    before = imported(device)
    stream = split(images(max(2_000, 3 * count), 8), tasks=2, seed=0)
    text = f"{strategy}{',' if ':' in strategy else ':'}capacity={count}"
    learners = learners_of(text, [stream], (100, 100), device)
    batch = min(1000, count)
    learn(learners, 0, device, batch, count=-(-count // batch) + 1)
    return learn(learners, 1, device, timed=TIMED) | {"peak": memory(device) - before}


def parameters(strategy: str, counts: tuple[int, ...], device: str) -> dict[int, dict[str, Any]]:
    """With a network of about so many parameters: two equal hidden layers."""
    return {count: alone(_parameters, strategy, count, device) for count in counts}


def _parameters(strategy: str, count: int, device: str) -> dict[str, Any]:
    from continual.streams.stream import split

    width = round(((794**2 + 4 * count) ** 0.5 - 794) / 2)
    stream, before = split(images(2_000, 28), tasks=2, seed=0), imported(device)
    learners = learners_of(strategy, [stream], (width, width), device)
    learn(learners, 0, device)
    found = learn(learners, 1, device, timed=3 if count > 10**7 else TIMED)
    peak = memory(device) - before
    return found | {"peak": peak, "vectors": peak * 1e6 / (4 * learners.net.size)}


def seeds(strategy: str, counts: tuple[int, ...], device: str) -> dict[int, dict[str, Any]]:
    """Side by side, so many."""
    return {count: alone(_seeds, strategy, count, device) for count in counts}


def _seeds(strategy: str, count: int, device: str) -> dict[str, Any]:
    from continual.streams.stream import Split

    before, data = imported(device), images(2_000, 8)
    streams = [Split.read({"tasks": 2}).build(data, seed) for seed in range(count)]
    learners = learners_of(strategy, streams, (100, 100), device)
    learn(learners, 0, device)
    return learn(learners, 1, device, timed=TIMED) | {"peak": memory(device) - before}


PARTS: dict[str, tuple[Callable[..., Any], tuple[str, ...], tuple[int, ...]]] = {
    "tasks": (tasks, (), TASKS), "buffer": (buffer, STORING, BUFFER),
    "parameters": (parameters, HOLDING, PARAMETERS), "seeds": (seeds, MAPPED, SEEDS),
}  # fmt: skip


def measure(part: str, strategy: str, counts: tuple[int, ...], device: str) -> dict[int, dict[str, Any]]:
    """One strategy's line."""
    function = PARTS[part][0]
    found: dict[int, dict[str, Any]] = (alone(function, strategy, counts, device) if part == "tasks"
                                        else function(strategy, counts, device))  # fmt: skip
    return found


def alone(function: Callable[..., Any], strategy: str, size: Any, device: str) -> Any:
    """A measurement whose memory is its own: in its own process, or on a GPU counted from here on."""
    if not device.startswith("cuda"):
        return apart(function, strategy, size, device)
    import torch

    gc.collect()  # whatever of the last one is left
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return function(strategy, size, device)


def vectors(by_count: dict[int, dict[str, Any]]) -> str:
    """How many vectors as long as θ there were with the largest network.

    Nothing where θ is smaller than all that there was with the smallest network, which is mostly not θ.
    """
    sizes = list(by_count.values())
    first, end = sizes[0], sizes[-1]
    return f"{end['vectors']:.1f}" if end["peak"] > end["vectors"] * first["peak"] else ""


def table(part: str, found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Milliseconds and megabytes by size; how operations, bytes and FLOPs grow from the first to the last."""
    from tabulate import tabulate

    counts = list(next(iter(found.values())))
    last = ["θ-vectors"] if part == "parameters" and any(map(vectors, found.values())) else []
    headers = [part, *(f"ms at {count:,}" for count in counts), *(f"MB at {count:,}" for count in counts), "operations",
               "bytes", "FLOPs", *last]  # fmt: skip
    lines = []
    for strategy, by_count in found.items():
        first, end = by_count[counts[0]], by_count[counts[-1]]
        grown = [f"x {end[name] / first[name]:.2f}" if first[name] else "" for name in ("operations", "bytes", "flops")]
        lines.append([strategy, *(f"{by_count[count]['ms']:.2f}" for count in counts),
                      *(f"{by_count[count]['peak']:.0f}" for count in counts), *grown,
                      *(vectors(by_count) for _ in last)])  # fmt: skip
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def draw(results: dict[str, dict[str, dict[int, dict[str, Any]]]], path: str) -> None:
    """Time and memory against each size, both axes in powers of ten; a name at what grows, or at few lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(results), 2, squeeze=False, figsize=(11, 3.4 * len(results)), layout="constrained")
    for (part, found), (time, held) in zip(results.items(), axes, strict=True):
        for strategy, by_count in found.items():
            counts = list(by_count)
            grows = by_count[counts[-1]]["bytes"] > by_count[counts[0]]["bytes"]
            named = grows or len(found) <= 10
            style = {"label": strategy if named else None, "color": None if named else "#c5cbd0", "marker": "o"}
            time.plot(counts, [by_count[count]["ms"] for count in counts], markersize=3, **style)
            held.plot(counts, [max(by_count[count]["peak"], 0.1) for count in counts], markersize=3, **style)
        for axis, what in ((time, "milliseconds a step"), (held, "most memory, MB")):
            axis.set(xscale="log", yscale="log", xlabel=part, title=what)
        if time.get_legend_handles_labels()[0]:
            time.legend(fontsize=6)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="what grows; may be repeated [all]")
    parser.add_argument("--strategies", nargs="+", help="these strategies instead")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--most", type=int, help="no size above this")
    parser.add_argument("--json", help="write everything to this file too")
    parser.add_argument("--picture", help="draw it, .svg, .png or .pdf")
    from suite import Place, checked, machine

    from continual import config, plugins
    from continual.errors import Mistake

    given = checked(parser)
    try:
        for strategy in given.strategies or ():
            config.make_strategy(strategy)
            if "buffer" in (given.part or PARTS):
                config.make_strategy(f"{strategy}{',' if ':' in strategy else ':'}capacity=1")
    except Mistake as mistake:
        parser.error(str(mistake))
    if given.most and any(given.most < PARTS[part][2][0] for part in given.part or PARTS):
        parser.error(f"--most {given.most} leaves no size: they begin at "
                     f"{', '.join(f'{PARTS[part][2][0]:,} ({part})' for part in given.part or PARTS)}")  # fmt: skip

    results: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for part in given.part or PARTS:
        _, usual, counts = PARTS[part]
        counts = tuple(count for count in counts if count <= (given.most or count))
        results[part] = {}
        for strategy in given.strategies or usual or plugins.registered("strategies"):
            results[part][strategy] = measure(part, strategy, counts, given.device)
            print(part, strategy, [f"{one['ms']:.2f} ms" for one in results[part][strategy].values()], file=sys.stderr)
        print(f"{table(part, results[part])}\n", flush=True)
    about = apart(machine, Place("", given.device))
    print(about)
    if given.json:
        Path(given.json).write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    if given.picture:
        draw(results, given.picture)


if __name__ == "__main__":
    main()
