"""The speed suite: this framework, a hand-written loop and avalanche-lib on the same work, in turns.

    python benchmarks/speed/suite.py --data ROOT                    # on a CPU, about twenty minutes on two cores
    python benchmarks/speed/suite.py --data ROOT --device cuda      # on a GPU
    python benchmarks/speed/suite.py --data ROOT --quick            # some rows on fewer images, under two minutes
    python benchmarks/speed/suite.py --list                         # the rows
    python benchmarks/speed/suite.py --data ROOT --only replay --picture speed.svg --json speed.json

ROOT is a data root with MNIST's published files in ROOT/MNIST/raw, and CIFAR-10 for the rows that need it. Every row
is a piece of work; its contenders take turns, and a ratio is the median over the turns of the ratios within a turn,
with the smallest and the largest. Loading the data is not timed, but where a whole process is. What could not be run is
said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import whole
from turns import Contender, Crew, Piece, Place, Target, in_turns, median

HELD = {"finetune": 1.05, "l2": 1.10, "ewc": 1.10, "si": 1.25, "a-gem": 1.15, "replay": 1.10}
"""Methods with a hand-written loop, and the most of its time that ours may take."""
BOTH = ("finetune", "ewc", "si", "a-gem", "replay", "gem", "mas", "lwf", "der", "er-ace", "mir", "gdumb", "cumulative",
        "joint", "from-scratch", "online-ewc", "rwalk", "der++", "gss", "generative-replay", "icarl", "bic", "ncm",
        "cwr*", "slda", "packnet")  # fmt: skip
"""Methods that avalanche-lib has too."""
ONCE = BOTH[BOTH.index("joint") :]
"""Those that are measured in one turn, so that the suite does not take too long."""
NAMES = {"finetune": "fine-tuning", "l2": "L2", "ewc": "EWC, true label", "si": "SI", "a-gem": "A-GEM", "gem": "GEM",
         "mas": "MAS", "lwf": "LwF", "der": "DER", "er-ace": "ER-ACE", "mir": "MIR", "gdumb": "GDumb",
         "online-ewc": "online EWC, true label", "rwalk": "RWalk", "der++": "DER++", "gss": "GSS", "icarl": "iCaRL",
         "bic": "BiC", "ncm": "NCM", "cwr*": "CWR*", "slda": "SLDA", "packnet": "PackNet", "joint": "joint training",
         "from-scratch": "from scratch", "generative-replay": "generative replay"}  # fmt: skip
WIDE, NARROW = (400, 400), (100, 100)
QUICK = ("finetune", "replay")
"""What a quick run holds against avalanche-lib."""
SMALL_CNN = "cnn:channels=16-32,units=128"
REPLAY = {
    "method": "replay:capacity=500",
    "benchmark": "split-mnist",
    "model": "mlp:layers=400-400",
    "batch": 128,
    "images": "none",
}
DERPP = {
    "method": "der++:capacity=500",
    "benchmark": "split-cifar10:normalize=channel",
    "model": "resnet18",
    "batch": 32,
    "precision": "bfloat16",
}
SAME = "hand-written, our products"
"""A loop by hand that multiplies matrices as ours do; the other does as PyTorch does by itself."""
PAUSED = 2
"""Those that take long take part in every so many turns."""


@dataclass(frozen=True)
class Row:
    """A piece of work and who does it, the first being what others are held against, in so many turns (none: all)."""

    name: str
    contenders: dict[str, Contender]
    unit: str = "s"
    turns: int | None = None
    more: int = 1
    """So many times as many turns, where contenders differ by less than two turns of the same one do."""
    warm: bool = True


@dataclass
class Found:
    """What was measured of a row."""

    row: Row
    values: dict[str, list[float]]
    missing: dict[str, str] = field(default_factory=dict)

    def judged(self) -> Iterator[tuple[str, Target, list[float]]]:
        """Each contender that something is wanted of, and what was measured of it."""
        first = next(iter(self.row.contenders))
        for name, own in self.values.items():
            target = self.row.contenders[name].target
            if target is not None and (target.kind == "value" or first in self.values):
                yield name, target, target.measured(own, own if target.kind == "value" else self.values[first])


def layers(sizes: tuple[int, ...]) -> str:
    """The model of these hidden layers."""
    return f"mlp:layers={'-'.join(map(str, sizes))}"


def network(sizes: tuple[int, ...]) -> str:
    """The network in words."""
    return "-".join(map(str, (784, *sizes, 10)))


def called(method: str) -> str:
    """The method's name in a row's."""
    return NAMES.get(method, method)


def mnist(quick: bool) -> Iterator[Row]:
    """One seed of each method, with the wide and the narrow network; ten seeds of the narrow one."""
    for method in [*HELD, *(one for one in BOTH if one not in HELD)]:
        yield versus(method, WIDE, 4.0, quick, held=HELD.get(method))
        if method == "ewc":
            yield versus("ewc", WIDE, 4.0, quick, ours="ewc-all", name="EWC, all labels")
    for method in BOTH if not quick else QUICK[:1]:
        yield versus(method, NARROW, 8.0, quick)
    once = Piece.of("avalanche_reference", "train", method="finetune", layers=NARROW, fused=True)
    ten = Piece.of("ours", "train", method="finetune", model=layers(NARROW), seeds=10)
    yield Row(f"ten seeds, fine-tuning, {network(NARROW)}", {
        "ours, together": Contender(ten),
        "avalanche-lib, one run times ten": Contender(once, Target("times", 12.0), times=10),
    }, turns=3)  # fmt: skip


def versus(
    method: str, sizes: tuple[int, ...], bound: float, quick: bool, held: float | None = None, ours: str = "",
    name: str = "",
) -> Row:  # fmt: skip
    """A method: ours, by hand where it is held against that, and avalanche-lib; fine-tuning's in each of its forms."""
    found = {"ours": Contender(Piece.of("ours", "train", method=ours or method, model=layers(sizes)))}
    if held is not None:
        by_hand = Piece.of("hand", "train", method=method, layers=sizes)
        same = Piece.of("hand", "train", method=method, layers=sizes, products=True)
        found |= {who: Contender(one, Target("of", held)) for who, one in (("hand-written", by_hand), (SAME, same))}
    if method in BOTH and (not quick or (method in QUICK and not ours)):
        piece = Piece.of("avalanche_reference", "train", method=method, layers=sizes, fused=True)
        found["avalanche-lib"] = Contender(piece, Target("times", bound), PAUSED)
        if method == "finetune" and not quick:
            usual = Piece.of("avalanche_reference", "train", method=method, layers=sizes)
            same = Piece.of("avalanche_reference", "train", method=method, layers=sizes, fused=True, products=True)
            found["avalanche-lib, Adam as documented"] = Contender(usual, Target("times"), PAUSED)
            found["avalanche-lib, our products"] = Contender(same, Target("times"), PAUSED)
    turns = None if held is not None else 1 if method in ONCE else 3
    return Row(f"{name or called(method)}, {network(sizes)}", found, turns=turns)


def vision(quick: bool, model: str, count: int, precision: str) -> Iterator[Row]:
    """Steps of Split CIFAR-10: the data path alone, and against avalanche-lib.

    On a GPU ours multiply as TF32: that is what PyTorch's convolutions, and so avalanche-lib, do where nobody asks.
    """
    step = Piece.of("ours", "steps", model=model, batch=32, count=count, precision=precision)
    still = Piece.of("ours", "steps", model=model, batch=32, count=count, precision=precision, images="still")
    theirs = {
        name: Piece.of("avalanche_reference", "steps", model=model, batch=32, count=count, fused=fused)
        for name, fused in (("avalanche-lib", True), ("avalanche-lib, Adam as documented", False))
    }
    yield Row(f"data path of a step, Split CIFAR-10, {model}", {
        "one batch for all": Contender(still),
        "gathered, augmented, normalised": Contender(step, Target("times", 1.05, most=True)),
    }, unit="s a step", more=4)  # fmt: skip
    yield Row(f"a step with replay, Split CIFAR-10, {model}", {
        "ours": Contender(step),
        **{name: Contender(piece, Target("times", 3.0))
           for name, piece in theirs.items() if not quick or name == "avalanche-lib"},
    }, unit="s a step")  # fmt: skip


def fisher() -> Iterator[Row]:
    """The Fisher information of a network with convolutions."""
    for label, name in (("true", "true label"), ("expected", "all labels")):
        given = {"model": "cnn", "label": label, "rows": 16}
        yield Row(f"the Fisher of 16 images, cnn, {name}", {
            "layer by layer": Contender(Piece.of("ours", "fisher", **given)),
            "a gradient of each": Contender(Piece.of("ours", "fisher", **given, layered=False), Target("times")),
        }, turns=3)  # fmt: skip


def processes(root: str, quick: bool) -> Iterator[Row]:
    """Whole processes: memory and start-up."""
    run = (*whole.PROGRAM, "run", "split-mnist", "finetune", "--seeds", "1", "--data", root, "--quiet")
    hand = (*whole.HAND, "finetune", "--data", root)
    yield Row("peak memory of a process, Split MNIST, fine-tuning", {
        "ours": Contender(whole.megabytes((*run, "--device", "cpu"))),
        "hand-written, pixels as float32": Contender(whole.megabytes(hand), Target("of", 1.2)),
        "import torch alone": Contender(whole.megabytes((sys.executable, "-c", "import torch")), Target("of")),
    }, unit="MB", turns=1 if quick else 3, warm=False)  # fmt: skip
    started = {"continual list": (("list",), 0.5), "continual run split-digits finetune": (
        ("run", "split-digits", "finetune", "--out", "runs", "--device", "cpu"), 4.0)}  # fmt: skip
    for name, (words, bound) in started.items():
        work = whole.seconds((*whole.PROGRAM, *words))
        yield Row(f"whole process: {name}", {"ours": Contender(work, Target("value", bound))}, turns=1 if quick else 5)


def gpu(place: Place, quick: bool) -> Iterator[Row]:
    """What is wanted of one GPU."""
    rounded = {"precision": "tf32", "evaluate_precision": "training"}
    for given, name in (({}, ""), (rounded, ", TF32 in training and evaluation")):
        one, many = (
            Piece.of("ours", "train", method="finetune", model=layers(WIDE), **given, **seeds)
            for seeds in ({}, {"seeds": 20, "seeds_as": "map"})
        )
        yield Row(f"20 seeds of fine-tuning, {network(WIDE)}{name}", {
            "one seed": Contender(one), "20 seeds": Contender(many, Target("times", 2.0, most=True)),
        })  # fmt: skip
    step, together = (Piece.of("ours", "steps", **REPLAY, seeds=seeds, count=100) for seeds in (1, 20))
    yield Row(f"a step of 20 seeds, replay, {network(WIDE)}", {
        "one seed": Contender(step), "20 seeds": Contender(together, Target("times")),
    }, unit="s a step")  # fmt: skip
    for name, task in (("replay, Split MNIST", REPLAY), ("DER++, ResNet-18, bfloat16, Split CIFAR-10", DERPP)):
        yield from inside(name, task, place.device)
    if quick:
        return
    table = (*whole.PROGRAM, "reproduce", "hsu-2018-split-mnist", "--seeds", "10", "--device", place.device,
             "--data", place.root, "--out", "found", "--quiet")  # fmt: skip
    yield Row("hsu-2018-split-mnist, ten seeds, whole process", {
        "ours": Contender(whole.seconds(table, codes=(0, 1)), Target("value", 180.0)),
    }, turns=1, warm=False)  # fmt: skip
    derpp = Piece.of("ours", "train", **DERPP, augment="images:crop=4,flip=true", epochs=50)
    yield Row("DER++ with 500 exemplars, ResNet-18, bfloat16, Split CIFAR-10, 50 epochs a task, batch 32 + 32", {
        "ours": Contender(derpp, Target("value", 300.0)),
    }, turns=1, warm=False)  # fmt: skip


def inside(name: str, task: dict[str, Any], device: str) -> Iterator[Row]:
    """What goes on in the steps of a task."""

    def row(what: str, kind: str, unit: str, target: Target) -> Row:
        return Row(f"{what}, {name}", {"ours": Contender(Piece.of("ours", kind, **task), target)}, unit, 1, warm=False)

    yield row("steps' waits for the device", "waits", "of them", Target("value", 0.0))
    yield row("a step's time over that of its products alone", "floor", "times", Target("value"))
    if device.startswith("cuda"):
        yield row("utilisation", "busy", "%", Target("value"))


def rows(place: Place, quick: bool, model: str) -> tuple[list[Row], list[str]]:
    """What is measured, and what is not and why."""
    found, said = list(mnist(quick)), []
    on_gpu = place.device.startswith("cuda")
    found += vision(quick, model, 64 if model == SMALL_CNN else 16, "tf32" if on_gpu else "float32")
    if not quick:
        found += fisher()
    if on_gpu:
        found += gpu(place, quick)
    else:
        found += inside("replay, Split MNIST", REPLAY, place.device)
        found += processes(place.root, quick)
        said.append(
            "what is wanted of a GPU: 20 seeds in the time of two, hsu-2018-split-mnist in three minutes, DER++ "
            "with ResNet-18 in five, no host synchronisation, utilisation: measured with --device cuda"
        )
    if importlib.util.find_spec("avalanche") is None:
        said.append("avalanche-lib: it is not installed (pip install 'continual[avalanche]')")
        found = [replace(row, contenders={name: one for name, one in row.contenders.items()
                                          if not name.startswith("avalanche-lib")}) for row in found]  # fmt: skip
    found = [row for row in found if len(row.contenders) > 1 or next(iter(row.contenders.values())).target]
    if quick:
        said += [f"in a quick run: {what}" for what in (
            "the Fisher information of a network with convolutions",
            "avalanche-lib with Adam as documented, and with our products",
            f"avalanche-lib's {', '.join(called(one) for one in BOTH if one not in QUICK)}",
            f"with {network(NARROW)} all but {called(QUICK[0])}",
            *(("hsu-2018-split-mnist, and a run of DER++ with ResNet-18",) if on_gpu else ()),
            f"more than {place.limit} training images of a class of MNIST; its figures are rough",
        )]  # fmt: skip
    return found, said


def measure(row: Row, turns: int, crew: Crew) -> Found:
    """A row, in turns."""
    found = Found(row, *in_turns(row.contenders, min(row.turns or turns, turns) * row.more, crew, row.warm))
    crew.forget()
    return found


def number(value: float) -> str:
    """A number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def decimals(target: Target, measured: list[float]) -> int:
    """How many decimals a ratio is told with: two, or as many as it takes to see that it misses the bound."""
    middle, met = statistics.median(measured), target.met(measured)
    return next((count for count in range(2, 9) if target.met([round(middle, count)]) is met), 9)


def lines(found: Found) -> list[list[str]]:
    """The table's lines of a row."""
    judged = {name: (target, measured) for name, target, measured in found.judged()}
    table = []
    for name, own in found.values.items():
        line = ["" if table else found.row.name, name, f"{number(median(own))} {found.row.unit}"]
        target, measured = judged.get(name, (None, []))
        if target is None:
            table.append([*line, "", "", ""])
            continue
        middle, low, high = (f"{f(measured):.{decimals(target, measured)}f}" for f in (statistics.median, min, max))
        ratio = "" if target.kind == "value" else f"{middle} ({low} to {high})"
        said = {"of": "ours takes {} of it", "times": "{} times as long", "value": ""}[target.kind].format(ratio)
        met = target.met(measured)
        wanted = "" if target.bound is None else f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        table.append([*line, said, wanted, {True: "met", False: "missed", None: ""}[met]])
    return table


def not_run(found: Found) -> list[str]:
    """A line on those of a row that could not do it: the first line of why, not the whole of a long one."""
    whys: dict[str, list[str]] = {}
    for name, why in found.missing.items():
        first = textwrap.shorten((why.splitlines() or [""])[0], 160, placeholder=" ...")
        whys.setdefault(first, []).append(name)
    told = "; ".join(f"{', '.join(names)}: {why}" for why, names in whys.items())
    return [f"{found.row.name}: {told}"] if told else []


HEADERS = ["work", "", "median", "against the first (range)", "wanted", ""]


def draw(results: list[Found], path: str, title: str) -> None:
    """The ratios as bars with their ranges, and marks at what is wanted; the ending says the format."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = {
        "of": "ours takes so much of it (a mark: at most)", "times": "takes so many times as long (a mark: wanted)",
        "value": "of the most that is wanted (the mark)",
    }  # fmt: skip
    bars: dict[str, list[tuple[str, Target, list[float]]]] = {kind: [] for kind in kinds}
    for found in results:
        for name, target, measured in found.judged():
            if target.kind != "value":
                bars[target.kind].append((f"{found.row.name}: {name}", target, measured))
            elif target.bound:
                scaled = [value / target.bound for value in measured]
                bars["value"].append((found.row.name, replace(target, bound=1.0), scaled))
    shown = {kind: own for kind, own in bars.items() if own}
    if not shown:
        print(f"{path} was not drawn: there is no ratio among these rows", file=sys.stderr)
        return
    sizes = [len(own) + 1 for own in shown.values()]
    figure, axes = plt.subplots(len(shown), 1, squeeze=False, height_ratios=sizes, layout="constrained",
                                figsize=(11, 1 + 0.27 * sum(sizes)))  # fmt: skip
    for axis, (kind, own) in zip(axes[:, 0], shown.items(), strict=True):
        for place, (_, target, measured) in enumerate(own):  # numbers, as a short bar beside long ones is not seen
            middle, met = statistics.median(measured), target.met(measured)
            color = {True: "#4c8bb5", False: "#c8553d", None: "#9aa5ad"}[met]
            axis.barh(place, middle, color=color, height=0.7)
            axis.plot([min(measured), max(measured)], [place, place], color="black", linewidth=1)
            end = max(*measured, target.bound or 0)
            axis.annotate(f"{middle:.3g}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=6,
                          color=color, fontweight="normal" if met else "bold")  # fmt: skip
            if target.bound:
                axis.plot([target.bound] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2.5)
        axis.set_yticks(range(len(own)), [label for label, _, _ in own], fontsize=7)
        axis.invert_yaxis()
        axis.set_title(kinds[kind], fontsize=9, loc="left")
    figure.suptitle(title, fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def machine(place: Place) -> str:
    """What it was measured on, and when."""
    import torch

    from continual.runner import choose_device, device_name, versions

    has = importlib.util.find_spec("avalanche") is not None
    known = versions(*(["avalanche-lib"] if has else []))
    cpu = Path("/proc/cpuinfo")
    models = [line.partition(": ")[2] for line in cpu.read_text().splitlines() if line.startswith("model name")] \
        if cpu.exists() else []  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else math.nan
    device = "" if place.device == "cpu" else f", {device_name(choose_device(place.device))}, CUDA {torch.version.cuda}"
    return (f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {platform.machine()}, {models[0] if models else '?'}, "
            f"{os.cpu_count()} cores, {memory:.0f} GiB{device}; {place.threads} thread{'s' * (place.threads > 1)}; "
            + ", ".join(f"{name} {version}" for name, version in known.items()))  # fmt: skip


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data root with MNIST and CIFAR-10; --list needs none")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="some rows, on fewer images, in two turns")
    parser.add_argument("--only", action="append", default=[], help="rows whose name contains this; may be repeated")
    parser.add_argument(
        "--turns", type=int, help="turns of a row that says no other number [5; quick: 2]; of the data path four times"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="training images of a class of MNIST [all; quick: 500]")
    parser.add_argument("--model", help="network for photographs [a small CNN; on a GPU ResNet-18]")
    parser.add_argument("--json", help="write everything to this file too")
    parser.add_argument("--picture", help="draw the ratios, .svg, .png or .pdf")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    return checked(parser)


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for, if it can be done: that is found out before anything is measured."""
    from continual.errors import Mistake
    from continual.results import canvas
    from continual.runner import choose_device

    given = parser.parse_args()

    def refuse(why: str) -> None:
        parser.exit(2, f"{parser.prog}: {why}\n")

    for name in ("turns", "threads", "limit", "most"):
        if getattr(given, name, None) is not None and getattr(given, name) < 1:
            refuse(f"--{name} was given {getattr(given, name)}; it takes 1 or more")
    if getattr(given, "list", False):  # which needs neither data nor device
        return given
    if "data" in given and not (given.data and Path(given.data).is_dir()):
        refuse(f"--data {given.data}: there is no such folder" if given.data else "--data is needed: a data root")
    try:
        choose_device(given.device)
        if given.picture:
            canvas.check(Path(given.picture))
    except Mistake as mistake:
        refuse(" ".join(str(mistake).split()))
    if given.json and not Path(given.json).absolute().parent.is_dir():
        refuse(f"--json {given.json}: there is no folder {Path(given.json).absolute().parent}")
    return given


def main() -> None:
    """Measure, print, draw."""
    from tabulate import tabulate

    given = arguments()
    root, limit = str(Path(given.data or ".").resolve()), given.limit or (500 if given.quick else None)
    place = Place(root, given.device, given.threads, limit)
    model = given.model or (SMALL_CNN if given.device == "cpu" else "resnet18")
    chosen, said = rows(place, given.quick, model)
    chosen = [row for row in chosen if not given.only or any(part in row.name for part in given.only)]
    if not chosen:
        print(f"no row has {' or '.join(given.only)} in its name; --list names them", file=sys.stderr)
        sys.exit(2)
    if given.list:
        print(*(row.name for row in chosen), sep="\n")
        return
    if given.only:
        absent = [one for one in said if one.startswith("avalanche-lib: ")]
        said = [f"rows without {' or '.join(given.only)} in their name", *absent]
    crew, results = Crew(place), list[Found]()
    for row in chosen:
        results.append(measure(row, given.turns or (2 if given.quick else 5), crew))
        print(tabulate(lines(results[-1]) or [[row.name, "not run"]], tablefmt="plain"), file=sys.stderr, flush=True)
    crew.close()
    said += [line for found in results for line in not_run(found)]
    about = machine(place)
    table = tabulate(
        [line for found in results for line in lines(found)], HEADERS, tablefmt="github", disable_numparse=True
    )
    print(f"{table}\n\n{about}\n\nNot run:\n" + "\n".join(f"- {one}" for one in said or ["nothing was left out"]))
    if given.json:
        Path(given.json).write_text(json.dumps(record(results, said, about), indent=1) + "\n")
    if given.picture:
        draw(results, given.picture, about)


def record(results: list[Found], said: list[str], about: str) -> dict[str, Any]:
    """Everything that was measured, for a file."""
    return {"machine": about, "not run": said, "rows": [
        {"work": found.row.name, "unit": found.row.unit, "turns": {
            name: [None if math.isnan(value) else value for value in values] for name, values in found.values.items()
         }, "wanted": [
            {"of": name, "kind": target.kind, "bound": target.bound, "at most": target.at_most,
             "measured": measured, "met": target.met(measured)} for name, target, measured in found.judged()
        ]} for found in results
    ]}  # fmt: skip


if __name__ == "__main__":
    main()
