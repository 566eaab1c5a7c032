"""What a table holds before it is written in some format: experiments, results, metrics and a summary for each pair."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from continual.errors import counted, one_line, unknown
from continual.options import typed
from continual.results.comparison import Difference, difference
from continual.results.metrics import DEFAULT, METRICS, Array, Metric, Summary, metric, number, summarise
from continual.results.store import Result, experiment, leaves, why_stopped

INTERVALS = {
    "sd": "standard deviation (n-1)",
    "se": "standard error",
    "ci95": "half the 95 % interval (Student's t)",
}
DEFAULT_TRACED = (*DEFAULT[:3], "minimum-accuracy", "worst-case-accuracy", "stability-gap")
UNKNOWN = "not recorded"
FEW = 5  # so many metrics have room for a second decimal
WIDTH = 100  # of what is written for a terminal


def check_interval(interval: str) -> None:
    """:class:`~continual.errors.UnknownName` for another interval than tables know."""
    if interval not in INTERVALS:
        raise unknown("interval", interval, INTERVALS)


# ---- what a table holds


@dataclass(frozen=True)
class Content:
    """One experiment under its heading: results as lines, metrics as columns, the seeds' values and their summaries."""

    heading: str
    results: list[Result]
    metrics: list[Metric]
    values: list[list[Array]]
    cells: list[list[Summary]]

    @property
    def decimals(self) -> int:
        """Decimals that there is room for, in percent."""
        return 2 if len(self.metrics) <= FEW else 1


def experiments(results: Sequence[Result]) -> list[list[Result]]:
    """The results by experiment, in the order in which each first occurs."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(experiment(result.record), []).append(result)
    return list(groups.values())


def joint(group: list[Result]) -> Result | None:
    """The result of joint training on the same protocol, if there is one."""

    def is_joint(parts: list[dict[str, Any]]) -> bool:
        # trained once at the end it is no reference for the tasks before
        return [part["name"] for part in parts] == ["joint"] and parts[0].get("every", True)

    return next((one for one in group if is_joint(one.record["strategy"])), None)


def chosen(group: list[Result], names: Sequence[str | Metric] | None) -> list[Metric]:
    """The metrics of these names; see :func:`continual.results.tables.table`."""
    if names is None:
        return _default(group)
    if list(names) == ["all"]:
        fit = [one for one in METRICS.values() if all(one.fits(result, joint(group)) for result in group)]
        return [*fit, *_told(group)]
    if list(names) == ["tasks"]:
        return _by_task(group)
    return [metric(name) for name in names]


def _default(group: list[Result]) -> list[Metric]:
    """What fits into a hundred columns, and of a single task what it has."""
    if all(result.accuracy.shape[2] == 1 for result in group):
        return [METRICS[DEFAULT[0]]]
    if all(result.trace is not None for result in group):
        return [*(METRICS[name] for name in DEFAULT_TRACED), *_told(group)]
    more = ["intransigence"] if joint(group) else []
    return [*(METRICS[name] for name in DEFAULT), *_told(group), *(METRICS[name] for name in more)]


def _told(group: list[Result]) -> list[Metric]:
    """What all results have of accuracies with the task told."""
    one = metric("task-aware:average-accuracy")
    return [one] if all(one.fits(result) for result in group) else []


def _by_task(group: list[Result]) -> list[Metric]:
    def column(j: int) -> Metric:
        return Metric(f"task-{j + 1}", "accuracy after the last task", "", lambda A: A[:, -1, j])

    return [column(j) for j in range(group[0].accuracy.shape[2])]


def computed(groups: Sequence[list[Result]], names: Sequence[str | Metric] | None = None) -> list[Content]:
    """The tables of experiments that are shown together, each under a heading of its own.

    UnknownName or BadOption for a metric that there is not or that does not fit.
    """
    somewhere = any(map(joint, groups))
    pairs = zip(groups, headings(groups), strict=True)
    return [_computed(group, text, chosen(group, names), somewhere) for group, text in pairs]


def valued(one: Metric, result: Result, reference: Result | None, somewhere: bool) -> Array:
    """A metric's value of each seed; none where ``reference``, joint training, is there in another experiment alone."""
    if one.needs == "joint" and reference is None and somewhere:
        return np.full(len(result.seeds), np.nan)
    return one(result, reference)


def _computed(group: list[Result], text: str, metrics: list[Metric], somewhere: bool) -> Content:
    references = {experiment(own[0].record): joint(own) for own in experiments(group)}
    values = [
        [valued(one, result, references[experiment(result.record)], somewhere) for one in metrics] for result in group
    ]
    return Content(text, group, metrics, values, [[summarise(value) for value in line] for line in values])


def together(results: Sequence[Result]) -> list[Result]:
    """Results of several protocols as the lines of one table.

    Each has in its name what its protocol differs in, and the heading has what they have in common.
    """
    records = [one.record for one in results]
    fields = differing(records)
    if not fields:
        return list(results)
    # where they are of several names, such as optimisers, the whole is said
    wholes = dict.fromkeys(path.removesuffix(".name") for path in fields if path.endswith(".name"))
    others = [path for path in fields if not any(path.startswith(f"{whole}.") for whole in wholes)]
    common = f"{heading(_without(records[0], [*wholes, *others]))}; other options as said"
    found = []
    for n, one in enumerate(results):
        parts = [(_word(path), described(_at(one.record, path))) for path in wholes]
        said = [f"{word} {part}".strip() for word, part in parts if part]
        said += [f"{path.rpartition('.')[2]} {fields[path][n]}" for path in others if fields[path][n] != UNKNOWN]
        title = f"{one.name} ({', '.join(said)})" if said else one.name
        found.append(replace(one, record=one.record | {"title": title, "heading": common}))
    return found


def _word(path: str) -> str:
    """What a part of training is called beside its name; network and benchmark need no such word."""
    return path.rpartition(".")[2] if "." in path else ""


def _at(record: dict[str, Any], path: str) -> Any:
    """What the protocol has at a path."""
    place: Any = record["protocol"]
    for name in path.split("."):
        place = place.get(name, "") if isinstance(place, dict) else ""
    return place


def _without(record: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A record whose protocol has no longer what is at some paths."""
    protocol = copy.deepcopy(record["protocol"])
    for path in paths:
        inner, _, last = path.rpartition(".")
        place = _at({"protocol": protocol}, inner) if inner else protocol
        if isinstance(place, dict):
            place[last] = None
    return {"protocol": protocol}


# ---- what is best


BOUNDS = ("joint", "cumulative")
"""Strategies that train on the data of all tasks, of whatever library (``avalanche:Cumulative``): bounds, which are no
competitors."""


def competes(result: Result) -> bool:
    """Whether a result takes part in being the best."""
    return not any(part["name"].rpartition(":")[2].lower() in BOUNDS for part in result.record["strategy"])


def best(table: Content) -> list[list[bool]]:
    """Of each cell, whether it is its column's best, or cannot be told from the best by the 95 % interval.

    Nothing is where a column has no two lines with an interval that compete, or no direction that is better.
    """
    columns = [_best(table, column) for column in range(len(table.metrics))]
    return [[line in found for found in columns] for line in range(len(table.results))]


def _best(table: Content, column: int) -> set[int]:
    """The lines that are best in a column."""
    up = table.metrics[column].higher_is_better
    lines = [n for n, one in enumerate(table.results) if competes(one) and table.cells[n][column].n > 1]
    if up is None or len(lines) < 2:
        return set()
    first = max(lines, key=lambda n: table.cells[n][column].mean * (1 if up else -1))
    found = {n: _difference(table, column, n, first) for n in lines if n != first}
    # of seeds that were stopped the first has no value, so another may be better on those that both have
    return {first} | {n for n, one in found.items() if one.tied or (one.low > 0) == up}


def _difference(table: Content, column: int, one: int, other: int) -> Difference:
    return difference(table.values[one][column], table.values[other][column],
                      table.results[one].seeds, table.results[other].seeds)  # fmt: skip


def boldness(table: Content) -> str:
    """What bold stands for in this table, in a sentence or two."""
    if not any(any(line) for line in best(table)):
        return "Nothing is in bold: there are no two lines with seeds enough to be told apart."
    left = ", ".join(result.name for result in table.results if not competes(result))
    rest = f" Trained on the data of all tasks and so left out of this: {left}." if left else ""
    return ("Bold: the best of a column, and what is not told apart from it (the 95 % interval of the difference, "
            f"paired over seeds, has 0 in it).{rest}")  # fmt: skip


# ---- what stands in it


def signed(value: float) -> str:
    """A difference as a table has it, or a dash."""
    return f"{round(value, 2) + 0.0:+.2f}" if math.isfinite(value) else "–"


def reach(cell: Summary, interval: str) -> float:
    """What stands after ±, as a fraction."""
    return cell.high - cell.mean if interval == "ci95" else {"sd": cell.sd, "se": cell.se}[interval]


def shown(cell: Summary, one: Metric, interval: str, decimals: int) -> tuple[str, str]:
    """Mean and error as text: no error where there is none, and a dash where there is no mean."""
    scale, digits = (100, decimals) if one.unit == "%" else (1, decimals + 1)
    error = reach(cell, interval)
    return number(scale * cell.mean, digits), number(scale * error, digits) if math.isfinite(error) else ""


def uneven(table: Content) -> bool:
    """Whether some seeds have no value, so that each line has to say how many have."""
    return len(_counts(cell for cells in table.cells for cell in cells)) > 1


def seeds(cells: Iterable[Summary]) -> str:
    """Of how many seeds a line's values are means."""
    return _range(_counts(cells))


def _counts(cells: Iterable[Summary]) -> list[int]:
    """The least and the greatest number of seeds that a value is a mean over, one number where they are the same."""
    found = {cell.n for cell in cells if cell.n}
    return sorted({min(found), max(found)}) if found else []


def _range(counts: list[int]) -> str:
    return "–".join(map(str, counts)) or "0"


# ---- what is said of it


def headings(groups: Sequence[Sequence[Result]]) -> list[str]:
    """A heading for each experiment; those that would have the same one say in which fields their protocols differ.

    Where words do not tell them apart, their folders' names do.
    """
    records = [group[0].record for group in groups]
    texts, found = [heading(record) for record in records], dict[int, str]()
    for text in set(texts):
        places = [n for n, one in enumerate(texts) if one == text]
        found |= zip(places, _apart(text, [records[n] for n in places]), strict=True)
    return [found[n] for n in range(len(records))]


def _apart(text: str, records: list[dict[str, Any]]) -> list[str]:
    """The heading that these records have, with what tells each from the others."""
    fields = differing(records)
    told = [
        one_line("; ".join([text, *(f"{name} {words[n]}" for name, words in fields.items())]))
        for n in range(len(records))
    ]
    if len(set(told)) == len(told):
        return told
    return [f"{one}; {experiment(record)}" for one, record in zip(told, records, strict=True)]


def differing(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The fields in which protocols differ, by their paths, with the words for each record; of a checksum 8 digits."""
    protocols = [
        {name: typed(one)[: 8 if name.endswith("sha256") else None] for name, one in leaves(record["protocol"]).items()}
        for record in records
    ]
    names = dict.fromkeys(name for one in protocols for name in one)
    found = {name: [one.get(name, UNKNOWN) for one in protocols] for name in names}
    return {name: words for name, words in found.items() if len(set(words)) > 1}


def heading(record: dict[str, Any]) -> str:
    """The protocol in one line; the record's own ``heading`` where it has one."""
    if "heading" in record:
        return one_line(str(record["heading"]))
    protocol = record["protocol"]
    named = [described(protocol[name]) for name in ("benchmark", "model") if protocol[name] is not None]
    seeds = [counted(len(protocol["seeds"]), "seed")] if protocol["seeds"] else []
    return one_line("; ".join([*filter(None, [*named, _trained(protocol["training"])]), *seeds]))


def _trained(training: Any) -> str:
    """The training in short: how long, with what batch, which optimiser and learning rate."""
    if not isinstance(training, dict):
        return str(training)
    long = "iterations" if training.get("iterations") else "epochs"
    optimizer = training.get("optimizer")
    if isinstance(optimizer, dict):
        optimizer = described({name: value for name, value in optimizer.items() if name in ("name", "lr")})
    shown = {long: training.get(long), "batch": training.get("batch"), "optimizer": optimizer}
    for name, usual in USUAL.items():
        value = training.get(name, usual)
        if value is not None and described(value) != usual:
            shown[name] = described(value)
    return described(shown)


USUAL = {"schedule": "constant", "augment": "none", "precision": "float32", "shuffle": "true"}
"""What goes without saying."""


def described(value: Any) -> str:
    """A name and its options in words; options that are off, empty or zero, and checksums, are left out."""
    if not isinstance(value, dict):
        return typed(value)
    if "sequence" in value:
        own = ({name: one for name, one in part.items() if name == "name" or name not in value}
               for part in value["sequence"])  # fmt: skip
        parts = " then ".join(map(described, own))
        return f"{parts}; {described({name: one for name, one in value.items() if name not in ('name', 'sequence')})}"
    kept = [
        f"{name} {typed(item)}"
        for name, item in value.items()
        if name != "name" and item not in _NOTHING and not name.endswith("sha256")
    ]
    name = str(value.get("name", ""))
    return f"{name} ({', '.join(kept)})" if name and kept else name or ", ".join(kept)


_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], "default")


def caption(table: Content, interval: str) -> str:
    """What the numbers are: error, number of seeds and unit; or that there are none."""
    counts = _counts(cell for row in table.cells for cell in row)
    if not counts:
        return "no seed has a value."
    error = f" ± {INTERVALS[interval]}" if max(counts) > 1 else ""
    percent = percentages(table.metrics)
    unit = f", in {percent}" if percent else ""
    return f"mean{error} over {_range(counts)} {'seed' if counts == [1] else 'seeds'}{unit}."


def percentages(metrics: Iterable[Metric]) -> str:
    """Of numbers in %, that they are, but for which; nothing where none is."""
    units = {one.title: one.unit for one in metrics}
    others = [title for title, unit in units.items() if unit != "%"]
    if len(others) == len(units):
        return ""
    return f"% (but for {', '.join(others)})" if others else "%"


def source(one: Metric) -> str:
    """What a metric is, which way is better, and where it is from."""
    better = "; lower is better" if one.higher_is_better is False else ""
    return f"{one.title}: {one.meaning}{better} ({one.citation})" if one.citation else one.meaning


def remarks(results: Sequence[Result]) -> list[str]:
    """What has to be known of a table's results: seeds that ended early, files and data that changed between runs."""
    named = [(one.name, one) for one in results]
    return [*stopped(named), *rewritten(named)]


def stopped(named: Iterable[tuple[str, Result]]) -> list[str]:
    """A line for the seeds that ended early, of each run, which goes by its name, and each place where they did."""
    lines = []
    for name, result in named:
        seeds: dict[str, list[str]] = {}
        for one in result.record.get("stopped", []):
            seeds.setdefault(why_stopped(one), []).append(str(one["seed"]))
        for why, those in seeds.items():
            who = f"seed {those[0]}" if len(those) == 1 else f"seeds {', '.join(those[:-1])} and {those[-1]}"
            lines.append(f"{who} of {name} {'was' if len(those) == 1 else 'were'} stopped: {why}.")
    return lines


def rewritten(named: Iterable[tuple[str, Result]]) -> list[str]:
    """A line for each file of a user's own, and each benchmark's data, that was another for some of the results.

    Those go by the names that they are given with.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name, result in named:
        record = result.record
        same = {f"{module} was not the same file": digest for module, digest in record.get("code", {}).items()}
        if "sha256" in record.get("data", {}):
            benchmark = record["protocol"]["benchmark"]
            same[f"the data of {described(benchmark)} were not the same"] = record["data"]["sha256"]
        for what, digest in same.items():
            found.setdefault(what, {}).setdefault(digest[:8] if digest else "not known", []).append(name)
    told = {
        what: "; ".join(f"{digest} for {', '.join(names)}" for digest, names in each.items())
        for what, each in found.items()
        if len(each) > 1
    }
    return [one_line(f"{what} for all (SHA-256): {said}.") for what, said in told.items()]


def tabulated(head: list[str], rows: list[list[str]], style: str, names: int = 1) -> str:
    """Lines and columns in one of tabulate's styles; the first columns hold names, the others numbers."""
    from tabulate import tabulate

    align = ["left"] * names + ["right"] * (len(head) - names)
    return tabulate(rows, head, tablefmt=style, colalign=align, headersalign=align, disable_numparse=True)
