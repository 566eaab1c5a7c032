"""Results as tables: for a terminal, for a paper (Markdown, LaTeX) and for a program (CSV, JSON).

A table for people shows mean ± error over the seeds, in percent, and says under it what the numbers mean. CSV and JSON
hold fractions in full precision, with standard deviation, standard error and 95 % interval side by side.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from continual.errors import BadOption, counted, one_line, unknown
from continual.results import content, paper
from continual.results.content import FEW, WIDTH, Content, signed, tabulated
from continual.results.metrics import Metric, epochs_of, number, over_seeds, task_names
from continual.results.metrics import metric as find_metric
from continual.results.store import Result, experiment, plain


def table(
    results: Sequence[Result],
    metrics: Iterable[str | Metric] | None = None,
    format: str = "table",
    interval: str = "sd",
    together: bool = False,
) -> str:
    """One table for each experiment (the same benchmark, model, training and seeds), one line for each result.

    Arguments:
        results: in the order of the lines.
        metrics: names of metrics, or metrics, one column each; or ``["all"]``, what all results of an experiment have;
            or ``["tasks"]``, the accuracy on each task after the last. By default accuracy, learning, forgetting and
            transfer, and intransigence where one result is ``joint``; or, where all have a trace, the worst case in
            place of transfer; of a single task accuracy alone.
        format: table, markdown, latex, csv or json.
        interval: what stands after ±: sd, se or ci95; csv and json have all.
        together: one table of all, whose lines say in which options their experiments differ; not as json.

    Raises:
        UnknownName: an unknown format, interval or metric.
        BadOption: a metric that needs what a result does not have.
    """
    names = None if metrics is None else list(metrics)
    if together and format == "json":
        raise BadOption("together: json has each experiment with its protocol, so it is not for one table of several")
    groups = [content.together(results)] if together else content.experiments(results)
    return _render(content.computed(groups, names), format, interval)


def lines(results: Sequence[Result]) -> str:
    """Every accuracy of every seed as CSV; see :meth:`~continual.results.store.Result.lines`."""
    found = [{"experiment": experiment(one.record), **line} for one in results for line in one.lines()]
    return _written(dict.fromkeys(name for line in found for name in line), found)


def matrix(result: Result) -> str:
    """The accuracy matrix of one result for a terminal, in percent, mean over the seeds that have a value."""
    accuracy = result.accuracy
    mean, _, there = over_seeds(accuracy)
    head = ["after", *map(one_line, task_names(result))]
    names = ["untrained", *head[1:]]
    rows = [[name, *(number(100 * value, 2) for value in row)] for name, row in zip(names, mean, strict=True)]
    stopped = ((there > 0) & (there < len(accuracy))).any()
    those = ", of those not stopped before" if stopped else ""
    notes = [
        f"test accuracy in %, mean over {counted(len(accuracy), 'seed')}{those}",
        *content.stopped([(result.name, result)]),
    ]
    return "\n".join([result.name, "", tabulated(head, rows, "simple"), "", *notes])


def trace(result: Result) -> str:
    """What was measured between steps, for a terminal: a line for each time, a column for each task and kind of rows.

    Time is steps, or epochs of the task where it was measured after each. In percent, mean over the seeds;
    :class:`~continual.errors.BadOption` where nothing was measured between steps.
    """
    if result.trace is None or result.trace_step is None or result.trace_task is None:
        raise BadOption(f"{result.name}: nothing was measured between steps; run it with --evaluate-every")
    kinds = {"test": result.trace, "training": result.training_trace, "validation": result.validation_trace}
    measured = {kind: values for kind, values in kinds.items() if values is not None}
    tasks = result.trace.shape[2]
    epochs = epochs_of(result)
    unit, time = ("step", result.trace_step) if epochs is None else ("epoch", epochs)
    names = [one_line(name) for name in task_names(result, "")]
    head = [unit, "task", *(kind if tasks == 1 else f"{kind} {name}" for kind in measured for name in names)]
    means = [over_seeds(values)[0] for values in measured.values()]
    rows = [
        [str(when), names[task], *(number(100 * value, 2) for mean in means for value in mean[line])]
        for line, (when, task) in enumerate(zip(time, result.trace_task, strict=True))
    ]
    note = f"accuracy in %, mean over {counted(len(result.trace), 'seed')}"
    training = result.record["protocol"]["training"]
    if isinstance(training, dict) and training.get("evaluate_samples"):
        note += f", on at most {counted(training['evaluate_samples'], 'row')} of each task"
    return "\n".join(
        [result.name, "", tabulated(head, rows, "simple"), "", note, *content.stopped([(result.name, result)])]
    )


def reproduction(source: str, metric: str, lines: Sequence[Any], format: str = "table") -> str:
    """Cells of a published table beside ours; each line has a ``cell`` (row, column, published) and a ``comparison``.

    Formats: table, markdown, latex, json.
    """
    if format == "json":
        cells = [
            {"row": line.cell.row, "column": line.cell.column, "published": asdict(line.cell.published)}
            | {"ours": plain(asdict(line.comparison)), "verdict": line.comparison.verdict, "stopped": line.stopped}
            for line in lines
        ]
        return json.dumps({"source": source, "metric": metric, "cells": cells}, indent=2, ensure_ascii=False)
    head = ["row", "column", "ours", "n", "published", "difference", "95 % interval", "verdict"]
    done = [line for line in lines if line.comparison.verdict != "not run"]
    rows = [_reproduced(line) for line in done]
    verdicts = [line.comparison.verdict for line in lines]
    count = ", ".join(f"{each} {verdicts.count(each)}" for each in sorted(set(verdicts), reverse=True))
    named = find_metric(metric)
    notes = [
        f"{named.title}{' in %' if named.unit == '%' else ''}, mean ± standard deviation (n-1). Published: {source}.",
        "Verdict: Welch's two-sided t-test at 5 %; reproduced where the interval of the difference has 0 in it.",
        f"Of {counted(len(lines), 'cell')}: {count}.",
        *(
            f"{line.cell.row}, {line.cell.column}: {note}"
            for line in done
            for note in (*line.stopped, line.cell.note)
            if note
        ),
    ]
    return paper.with_notes(head, rows, notes, format)


def _reproduced(line: Any) -> list[str]:
    """One cell of a published table as text."""
    ours, theirs = line.comparison, line.cell.published
    published = f"{number(theirs.mean, 2)} ± {number(theirs.sd, 2)}"
    if not ours.n:
        return [line.cell.row, line.cell.column, "–", "0", published, "–", "–", ours.verdict]
    error = f" ± {number(ours.sd, 2)}" if ours.n > 1 else ""
    interval = f"{signed(ours.low)} to {signed(ours.high)}"
    return [line.cell.row, line.cell.column, f"{number(ours.mean, 2)}{error}", str(ours.n), published,
            signed(ours.difference), interval, ours.verdict]  # fmt: skip


def _render(tables: list[Content], format: str, interval: str) -> str:
    content.check_interval(interval)
    texts = {"table": _terminal, "markdown": paper.markdown, "latex": paper.latex}
    if format in texts:
        return "\n\n".join(texts[format](one, interval) for one in tables)
    machine = {"csv": _csv, "json": _json}
    if format not in machine:
        raise unknown("format", format, [*texts, *machine])
    return machine[format](tables)


# ---- for people


def _terminal(table: Content, interval: str) -> str:
    head, rows = paper.grid(table, interval)
    if len(head) > FEW + 4:  # too wide: strategies become the columns
        head, *rows = [list(line) for line in zip(head, *rows, strict=True)]
        folded = ["", *head[1:]]
    else:
        folded = [title.replace(" ", "\n") if len(title) > 10 else title for title in head]
    cited = (f"{one.title}: {one.citation}" if one.citation else one.meaning for one in table.metrics)
    caption = f"{content.caption(table, interval)} {'; '.join(dict.fromkeys(cited))}."
    notes = [caption, *content.remarks(table.results)]
    return f"{textwrap.fill(table.heading, WIDTH)}\n\n{paper.with_notes(folded, rows, notes, 'table')}"


# ---- for programs


def _entries(table: Content) -> list[dict[str, Any]]:
    """A line for each result and metric, values in fractions."""
    return [
        {"experiment": experiment(result.record), "strategy": result.name, "metric": one.name, **cell.values()}
        for result, cells in zip(table.results, table.cells, strict=True)
        for one, cell in zip(table.metrics, cells, strict=True)
    ]


def _csv(tables: list[Content]) -> str:
    """One line for each experiment, result and metric; a cell is empty where there is no value."""
    fields = ["experiment", "strategy", "metric", "mean", "sd", "se", "low", "high", "n", "failed"]
    return _written(fields, [plain(entry) for table in tables for entry in _entries(table)])


def _written(fields: Iterable[str], entries: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue().rstrip("\n")


def _json(tables: list[Content]) -> str:
    """A list of experiments, each with its protocol and its results; null where there is no value."""
    return json.dumps([_experiment(table) for table in tables], indent=2, ensure_ascii=False, allow_nan=False)


def _experiment(table: Content) -> dict[str, Any]:
    record = table.results[0].record
    results = [
        {
            "name": result.name,
            "strategy": result.record["strategy"],
            "stopped": result.record.get("stopped", []),
            "metrics": {one.name: plain(cell.values()) for one, cell in zip(table.metrics, cells, strict=True)},
        }
        for result, cells in zip(table.results, table.cells, strict=True)
    ]
    return {"experiment": experiment(record), **record["protocol"], "results": results}
