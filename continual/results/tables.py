"""Results as tables: for a terminal, for a paper (Markdown, LaTeX) and for a program (CSV, JSON).

A table for people shows mean ± error over the seeds, in percent, and says under it what the numbers mean. CSV and JSON
hold fractions in full precision, with standard deviation, standard error and 95 % interval side by side.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from continual.errors import BadOption, unknown
from continual.results.metrics import METRICS, Metric, Summary, metric, summarise
from continual.results.store import Result, experiment

Format = Literal["table", "markdown", "latex", "csv", "json"]
Interval = Literal["sd", "se", "ci95"]

INTERVALS = {
    "sd": "standard deviation (n-1)",
    "se": "standard error",
    "ci95": "half the 95 % interval (Student's t)",
}
DEFAULT = ("average-accuracy", "learning-accuracy", "forgetting", "backward-transfer")
DEFAULT_TRACED = (*DEFAULT[:3], "minimum-accuracy", "worst-case-accuracy", "stability-gap")
FEW = 5  # so many metrics have room for a second decimal
WIDTH = 100


def table(
    results: Sequence[Result],
    metrics: Iterable[str] | None = None,
    format: str = "table",
    interval: str = "sd",
) -> str:
    """One table for each experiment (the same benchmark, model, training and seeds), one line for each result.

    Arguments:
        results: in the order of the lines.
        metrics: names of metrics, one column each; or ``["all"]``, what all results of an experiment have; or
            ``["tasks"]``, the accuracy on each task after the last. By default accuracy, learning, forgetting and
            transfer, and intransigence where one result is ``joint``; or, where all have a trace, the worst case in
            place of transfer.
        format: table, markdown, latex, csv or json.
        interval: what stands after ±: sd, se or ci95; csv and json have all.

    Raises:
        UnknownName: an unknown format, interval or metric.
        BadOption: a metric that needs what a result does not have.
    """
    names = None if metrics is None else list(metrics)
    return _render([_computed(group, _chosen(group, names)) for group in _experiments(results)], format, interval)


def matrix(result: Result) -> str:
    """The accuracy matrix of one result for a terminal, in percent, mean over the seeds that have a value."""
    accuracy = result.accuracy
    there = np.isfinite(accuracy)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, accuracy, 0).sum(axis=0) / there.sum(axis=0)
    head = ["after", *(f"task {j}" for j in range(1, accuracy.shape[2] + 1))]
    names = ["untrained", *head[1:]]
    rows = [[name, *(_number(100 * value, 2) for value in row)] for name, row in zip(names, mean, strict=True)]
    those = "" if there.all() else ", of those not stopped before"
    notes = [f"test accuracy in %, mean over {_count(len(accuracy), 'seed')}{those}", *_stopped(result)]
    return "\n".join([result.name, "", _tabulated(head, rows, "simple"), "", *notes])


def trace(result: Result) -> str:
    """What was measured between steps, for a terminal: a line for each time, a column for each task and kind of rows.

    In percent, mean over the seeds; :class:`~continual.errors.BadOption` where nothing was measured between steps.
    """
    if result.trace is None or result.trace_step is None or result.trace_task is None:
        raise BadOption(f"{result.name}: nothing was measured between steps; run it with --evaluate-every")
    kinds = {"test": result.trace, "training": result.training_trace, "validation": result.validation_trace}
    measured = {kind: values for kind, values in kinds.items() if values is not None}
    tasks = result.trace.shape[2]
    head = ["step", "task", *(kind if tasks == 1 else f"{kind} {j + 1}" for kind in measured for j in range(tasks))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a task that was not there yet has no value
        means = [np.nanmean(values, axis=0) for values in measured.values()]
    rows = [
        [str(step), str(task + 1), *(_number(100 * value, 2) for mean in means for value in mean[number])]
        for number, (step, task) in enumerate(zip(result.trace_step, result.trace_task, strict=True))
    ]
    note = f"accuracy in %, mean over {_count(len(result.trace), 'seed')}"
    return "\n".join([result.name, "", _tabulated(head, rows, "simple"), "", note, *_stopped(result)])


def reproduction(source: str, metric: str, lines: Sequence[Any], format: str = "table") -> str:
    """Cells of a published table beside ours; each line has a ``cell`` (row, column, published) and a ``comparison``.

    Formats: table, markdown, json.
    """
    if format == "json":
        cells = [
            {"row": line.cell.row, "column": line.cell.column, "published": asdict(line.cell.published)}
            | {"ours": _without_nan(asdict(line.comparison)), "verdict": line.comparison.verdict}
            for line in lines
        ]
        return json.dumps({"source": source, "metric": metric, "cells": cells}, indent=2, ensure_ascii=False)
    head = ["row", "column", "ours", "n", "published", "difference", "95 % interval", "verdict"]
    rows = [_reproduced(line) for line in lines]
    verdicts = [line.comparison.verdict for line in lines]
    count = ", ".join(f"{each} {verdicts.count(each)}" for each in sorted(set(verdicts), reverse=True))
    notes = [
        f"{METRICS[metric].title} in %, mean ± standard deviation (n-1). Published: {source}.",
        "Verdict: Welch's two-sided t-test at 5 %; reproduced where the interval of the difference has 0 in it.",
        f"Of {_count(len(lines), 'cell')}: {count}.",
        *(f"{line.cell.row}, {line.cell.column}: {line.cell.note}" for line in lines if line.cell.note),
    ]
    if format == "markdown":
        escaped = [[_escaped_markdown(value) for value in row] for row in rows]
        return "\n\n".join([_tabulated(head, escaped, "github"), *map(_escaped_markdown, notes)])
    return "\n".join([_tabulated(head, rows, "simple"), "", *(textwrap.fill(note, WIDTH) for note in notes)])


def _reproduced(line: Any) -> list[str]:
    """One cell of a published table as text."""
    ours, theirs = line.comparison, line.cell.published
    published = f"{_number(theirs.mean, 2)} ± {_number(theirs.sd, 2)}"
    if not ours.n:
        return [line.cell.row, line.cell.column, "–", "0", published, "–", "–", ours.verdict]
    error = f" ± {_number(ours.sd, 2)}" if ours.n > 1 else ""
    interval = f"{_signed(ours.low)} to {_signed(ours.high)}"
    return [line.cell.row, line.cell.column, f"{_number(ours.mean, 2)}{error}", str(ours.n), published,
            _signed(ours.difference), interval, ours.verdict]  # fmt: skip


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"


# ---- what a table holds


@dataclass(frozen=True)
class _Table:
    """One experiment: results as lines, metrics as columns, and a summary for each pair."""

    results: list[Result]
    metrics: list[Metric]
    cells: list[list[Summary]]


def _experiments(results: Sequence[Result]) -> list[list[Result]]:
    """The results by experiment, in the order in which each first occurs."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(experiment(result.record), []).append(result)
    return list(groups.values())


def _joint(group: list[Result]) -> Result | None:
    """The result of joint training on the same protocol, if there is one."""

    def is_joint(parts: list[dict[str, Any]]) -> bool:
        # trained once at the end it is no reference for the tasks before
        return [part["name"] for part in parts] == ["joint"] and parts[0].get("every", True)

    return next((one for one in group if is_joint(one.record["strategy"])), None)


def _chosen(group: list[Result], names: list[str] | None) -> list[Metric]:
    if names is None:
        return _default(group)
    if names == ["all"]:
        return [one for one in METRICS.values() if all(one.fits(result, _joint(group)) for result in group)]
    return _by_task(group) if names == ["tasks"] else [metric(name) for name in names]


def _default(group: list[Result]) -> list[Metric]:
    """What fits into a hundred columns."""
    if all(result.trace is not None for result in group):
        return [METRICS[name] for name in DEFAULT_TRACED]
    return [METRICS[name] for name in (*DEFAULT, *(["intransigence"] if _joint(group) else []))]


def _by_task(group: list[Result]) -> list[Metric]:
    def column(j: int) -> Metric:
        return Metric(f"task-{j + 1}", "accuracy after the last task", "", lambda A: A[:, -1, j])

    return [column(j) for j in range(group[0].accuracy.shape[2])]


def _computed(group: list[Result], metrics: list[Metric]) -> _Table:
    joint = _joint(group)
    return _Table(group, metrics, [[summarise(one(result, joint)) for one in metrics] for result in group])


def _render(tables: list[_Table], format: str, interval: str) -> str:
    if interval not in INTERVALS:
        raise unknown("interval", interval, INTERVALS)
    texts = {"table": _terminal, "markdown": _markdown, "latex": _latex}
    if format in texts:
        return "\n\n".join(texts[format](one, interval) for one in tables)
    machine = {"csv": _csv, "json": _json}
    if format not in machine:
        raise unknown("format", format, [*texts, *machine])
    return machine[format](tables)


# ---- what stands in it


def _error(cell: Summary, interval: str) -> float:
    return {"sd": cell.sd, "se": cell.se, "ci95": cell.high - cell.mean}[interval]


def _number(value: float, decimals: int) -> str:
    # a value that rounds to zero from below would print as -0.00
    return f"{round(value, decimals) + 0.0:.{decimals}f}" if math.isfinite(value) else "–"


def _shown(cell: Summary, one: Metric, interval: str, decimals: int) -> str:
    """Mean ± error, without the error where there is none, and a dash where there is nothing."""
    scale, digits = (100, decimals) if one.unit == "%" else (1, decimals + 1)
    mean, error = _number(scale * cell.mean, digits), _error(cell, interval)
    return f"{mean} ± {_number(scale * error, digits)}" if math.isfinite(error) else mean


def _grid(content: _Table, interval: str) -> tuple[list[str], list[list[str]]]:
    """The column titles and the rows, as plain text."""
    decimals = 2 if len(content.metrics) <= FEW else 1
    head = ["strategy", *(one.title for one in content.metrics)]
    rows = [
        [
            " ".join(result.name.split()),
            *(_shown(*pair, interval, decimals) for pair in zip(cells, content.metrics, strict=True)),
        ]
        for result, cells in zip(content.results, content.cells, strict=True)
    ]
    if len(_counts(cell for cells in content.cells for cell in cells)) > 1:
        # some seeds have no value: say of each line how many have
        head.append("seeds")
        for row, cells in zip(rows, content.cells, strict=True):
            row.append(_range(_counts(cells)))
    return head, rows


def _heading(record: dict[str, Any]) -> str:
    """The protocol in one line; the record's own ``heading`` where it has one."""
    if "heading" in record:
        return str(record["heading"])
    protocol = record["protocol"]
    parts = [_described(protocol["benchmark"]), _described(protocol["model"]), _trained(protocol["training"])]
    return "; ".join([*filter(None, parts), _count(len(protocol["seeds"]), "seed")])


def _trained(training: Any) -> str:
    """The training in short: how long, with what batch, which optimiser and learning rate."""
    if not isinstance(training, dict):
        return str(training)
    long = "iterations" if training.get("iterations") else "epochs"
    optimizer = training.get("optimizer")
    if isinstance(optimizer, dict):
        optimizer = _described({name: value for name, value in optimizer.items() if name in ("name", "lr")})
    return _described({long: training.get(long), "batch": training.get("batch"), "optimizer": optimizer})


def _described(value: Any) -> str:
    """A name and its options in words; options that are off, empty or zero are left out."""
    if not isinstance(value, dict):
        return str(value)
    kept = [f"{name} {_listed(item)}" for name, item in value.items() if name != "name" and item not in _NOTHING]
    name = str(value.get("name", ""))
    return f"{name} ({', '.join(kept)})" if name and kept else name or ", ".join(kept)


_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], "default", "none")


def _listed(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _caption(content: _Table, interval: str, full: bool) -> str:
    """What the numbers are: error, number of seeds, unit and sources, with ``full`` what each metric is too."""
    counts = _counts(cell for row in content.cells for cell in row)
    seeds = f"{_range(counts)} {'seed' if counts == [1] else 'seeds'}" if counts else "no seed, as none came through"
    error = f" ± {INTERVALS[interval]}" if max(counts, default=0) > 1 else ""
    percent = ", in %" if any(one.unit == "%" for one in content.metrics) else ""
    sources = "; ".join(dict.fromkeys(_source(one, full) for one in content.metrics))
    return f"mean{error} over {seeds}{percent}. {sources}."


def _source(one: Metric, full: bool) -> str:
    """Where a metric is from."""
    if not one.citation:
        return one.meaning
    return f"{one.title}: {one.meaning} ({one.citation})" if full else f"{one.title}: {one.citation}"


def _counts(cells: Iterable[Summary]) -> list[int]:
    """The least and the greatest number of seeds that a value is a mean over, one number where they are the same."""
    found = {cell.n for cell in cells if cell.n}
    return sorted({min(found), max(found)}) if found else []


def _range(counts: list[int]) -> str:
    return "–".join(map(str, counts)) or "0"


def _stopped(result: Result) -> list[str]:
    """A line for each seed that ended early."""
    return [
        f"seed {one['seed']} of {result.name} was stopped: {one['why']} at task {one['task']}, step {one['step']}."
        for one in result.record.get("stopped", [])
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ---- for people


def _tabulated(head: list[str], rows: list[list[str]], style: str) -> str:
    from tabulate import tabulate

    align = ["left", *["right"] * (len(head) - 1)]
    return tabulate(rows, head, tablefmt=style, colalign=align, headersalign=align, disable_numparse=True)


def _notes(content: _Table, interval: str, full: bool = True) -> list[str]:
    return [_caption(content, interval, full), *(line for result in content.results for line in _stopped(result))]


def _terminal(content: _Table, interval: str) -> str:
    head, rows = _grid(content, interval)
    if len(head) > FEW + 4:  # too wide: strategies become the columns
        head, *rows = [list(line) for line in zip(head, *rows, strict=True)]
        folded = ["", *head[1:]]
    else:
        folded = [title.replace(" ", "\n") if len(title) > 10 else title for title in head]
    notes = [textwrap.fill(note, WIDTH) for note in _notes(content, interval, full=False)]
    heading = textwrap.fill(_heading(content.results[0].record), WIDTH)
    return "\n".join([heading, "", _tabulated(folded, rows, "simple"), "", *notes])


def _markdown(content: _Table, interval: str) -> str:
    head, rows = _grid(content, interval)
    escaped = [[_escaped_markdown(cell) for cell in row] for row in rows]
    heading, *notes = map(_escaped_markdown, [_heading(content.results[0].record), *_notes(content, interval)])
    return "\n\n".join([f"**{heading}**", _tabulated(head, escaped, "github"), *notes])


def _escaped_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]~$])", r"\\\1", text)


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    "Σ": r"$\Sigma$",
}


def _escaped_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _latex(content: _Table, interval: str) -> str:
    """A table that needs the package booktabs."""
    head, rows = _grid(content, interval)
    lines = [_latex_row(row) for row in rows]
    caption = " ".join([f"{_heading(content.results[0].record)}.", *_notes(content, interval)])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped_latex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            _latex_row(head),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_row(cells: list[str]) -> str:
    first, *rest = map(_escaped_latex, cells)
    return " & ".join([first, *(re.sub(r"^-(?=\d)", "$-$", cell) for cell in rest)]) + r" \\"


# ---- for programs


def _entries(content: _Table) -> list[dict[str, Any]]:
    """A line for each result and metric, values in fractions."""
    return [
        {"strategy": result.name, "metric": one.name, **asdict(cell)}
        for result, cells in zip(content.results, content.cells, strict=True)
        for one, cell in zip(content.metrics, cells, strict=True)
    ]


def _csv(tables: list[_Table]) -> str:
    """One line for each experiment, result and metric; a cell is empty where there is no value."""
    text = io.StringIO()
    fields = ["experiment", "strategy", "metric", "mean", "sd", "se", "low", "high", "n", "failed"]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for content in tables:
        name = experiment(content.results[0].record)
        for entry in _entries(content):
            writer.writerow({"experiment": name, **_without_nan(entry)})
    return text.getvalue().rstrip("\n")


def _json(tables: list[_Table]) -> str:
    """A list of experiments, each with its protocol and its results; null where there is no value."""
    return json.dumps([_experiment(content) for content in tables], indent=2, ensure_ascii=False, allow_nan=False)


def _experiment(content: _Table) -> dict[str, Any]:
    record = content.results[0].record
    results = [
        {
            "name": result.name,
            "strategy": result.record["strategy"],
            "stopped": result.record.get("stopped", []),
            "metrics": {one.name: _without_nan(asdict(cell)) for one, cell in zip(content.metrics, cells, strict=True)},
        }
        for result, cells in zip(content.results, content.cells, strict=True)
    ]
    return {"experiment": experiment(record), **record["protocol"], "results": results}


def _without_nan(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in entry.items()}
