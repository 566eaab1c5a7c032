"""The figures of a report: each with what it shows in words, as SVG, and with the numbers that are drawn as CSV."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from continual import files
from continual.errors import one_line
from continual.results import canvas, plots
from continual.results.metrics import Array, average_accuracy, forgetting_by_task, over_seeds, stability_gaps, summarise
from continual.results.store import Result, experiment, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Figure:
    """One figure, ``width`` inches wide: ``name`` is a file's, ``title`` a person's; ``csv`` has what ``svg`` draws."""

    name: str
    title: str
    svg: str
    csv: str
    width: float


@dataclass(frozen=True)
class Section:
    """Figures of one kind, and how to read them."""

    title: str
    text: str
    figures: list[Figure]


def sections(results: Sequence[Result]) -> list[Section]:
    """The figures of one experiment; kinds of which nothing was measured are left out."""
    found = [
        Section(
            "Average accuracy",
            "After the last task, mean over tasks. Dashes are seeds, the marker is their mean, the bar its 95 % "
            "interval (Student's t).",
            [_comparison(results)],
        ),
        Section(
            "Accuracy matrices",
            "Accuracy in % on each task (columns) after learning each task (lines), mean over seeds, from white (0) to "
            "dark (100). Left of the stepped line are tasks that were learnt, right of it those that were not yet.",
            [_matrix(one) for one in results],
        ),
        Section(
            "Accuracy of each task over time",
            "Test accuracy after each task, mean and standard deviation (band) over seeds; 0 tasks learnt is the "
            "untrained network. The black line is the mean over the tasks learnt so far.",
            [_curves(one) for one in results],
        ),
        Section(
            "Between updates",
            "Test accuracy measured while learning, from when a task begins, mean and standard deviation (band) over "
            "seeds. The black line is the mean over the tasks learnt before; an arrow spans the stability gap, what "
            "that mean loses after a switch to another task (after De Lange et al. 2023), mean over seeds.",
            [_trace(one) for one in results if one.trace is not None],
        ),
        Section(
            "Forgetting by task",
            "Best accuracy on a task after tasks 1 to T-1 minus the final one (Chaudhry et al. 2018), in percentage "
            "points, mean over seeds, from white (0) to dark (100).",
            [_forgetting(results)] if results[0].accuracy.shape[2] > 1 else [],
        ),
        Section(
            "What it costs",
            f"Average accuracy against time and memory. {_costs(results)}",
            [*_against(results)],
        ),
    ]
    return [one for one in found if one.figures]


def _costs(results: Sequence[Result]) -> str:
    """How time and memory are counted, and which runs lack them."""
    machines = dict.fromkeys(one.record.get("device", {}).get("name", "a device not recorded") for one in results)
    other = " Times on different devices do not compare." if len(machines) > 1 else ""
    without = [one.name for one in results if plots.held(one) is None]
    missing = f" Not recorded, and so not shown under memory: {', '.join(without)}." if without else ""
    return (f"Time is that of all seeds together, evaluation included, on {', '.join(machines)}.{other} Memory is what "
            "one learner holds at most: the network's parameters, those that are frozen too, what its strategy keeps, "
            f"and the images that it stores.{missing}")  # fmt: skip


# ---- each figure


def _comparison(results: Sequence[Result]) -> Figure:
    rows = [
        {"strategy": one.name, "seed": seed, "average accuracy": value}
        for one in results
        for seed, value in zip(one.seeds, average_accuracy(one.accuracy), strict=True)
    ]
    size = (4.8, plots.compare_height(results))
    return _figure("average-accuracy", "average accuracy", size, lambda axes: plots.compare(results, axes=axes), rows)


def _matrix(result: Result) -> Figure:
    rows = _rows(("after", "task"), result.accuracy, lambda i, j: (i, j + 1))
    size = plots.matrix_size(result.accuracy.shape[2])
    return _own("matrix", "accuracy matrix", result, size, plots.matrix, rows)


def _curves(result: Result) -> Figure:
    rows = _rows(("task", "tasks learnt"), result.accuracy.transpose(0, 2, 1), lambda j, i: (j + 1, i))
    return _own("curves", "accuracy over time", result, (3.8, 3.2), plots.by_task, rows)


def _trace(result: Result) -> Figure:
    """The numbers are those of the lines; the gaps stand below them, under the task that a switch leads to."""
    values, task, step = result.trace, result.trace_task, result.trace_step
    assert values is not None and task is not None and step is not None
    seen = np.where(task[:, None] >= np.arange(values.shape[2]), values, np.nan)
    rows = _rows(("step", "learning", "task"), seen, lambda e, j: (int(step[e]), int(task[e]) + 1, j + 1))
    gaps = _rows(("learning",), stability_gaps(values, task), lambda k: (k + 2,))
    marked = [{"what": "stability gap", **row} for row in gaps]
    rows = [{"what": "accuracy", **row} for row in rows if row["n"]] + marked
    return _own("trace", "accuracy between updates", result, (9.6, 3.6), plots.trace, rows)


def _forgetting(results: Sequence[Result]) -> Figure:
    rows = [
        {"strategy": one.name, **row}
        for one in results
        for row in _rows(("task",), forgetting_by_task(one.accuracy), lambda j: (j + 1,))
    ]
    size = plots.forgetting_size(results)
    return _figure("forgetting", "forgetting by task", size, lambda axes: plots.forgetting(results, axes), rows)


def _against(results: Sequence[Result]) -> Iterable[Figure]:
    kinds = (
        ("time", "seconds", plots.seconds, plots.against_time),
        ("memory", "bytes", plots.held, plots.against_memory),
    )
    for name, unit, cost, draw in kinds:
        known = [one for one in results if cost(one) is not None]
        rows = [
            {
                "strategy": one.name,
                unit: cost(one),
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "n": found.n,
            }
            for one in known
            for found in [summarise(average_accuracy(one.accuracy))]
        ]
        size = (4.8, max(3.4, 0.24 * len(known)))
        if known:
            yield _figure(name, f"average accuracy against {name}", size, functools.partial(draw, results), rows)


def _own(
    kind: str, title: str, result: Result, size: tuple[float, float], draw: Callable[[Result, Axes], Any],
    rows: list[dict[str, Any]],
) -> Figure:  # fmt: skip
    """A figure of one result."""
    name = f"{kind}-{slug(result.name, 60)}"
    titled = f"{title}: {one_line(result.name)}"
    rows = [{"strategy": result.name, **row} for row in rows]
    return _figure(name, titled, size, lambda axes: draw(result, axes), rows)


def _figure(
    name: str, title: str, size: tuple[float, float], draw: Callable[[Axes], Any], rows: list[dict[str, Any]]
) -> Figure:  # fmt: skip
    figure = canvas.new_figure(*size)
    draw(figure.add_subplot())
    return Figure(name, title, canvas.svg(figure, name, title), _csv(rows), size[0])


# ---- the numbers of a figure


def _rows(keys: Sequence[str], values: Array, named: Callable[..., tuple[int, ...]]) -> list[dict[str, Any]]:
    """A line for each place in an array (R, ...): what the place is, and mean, sd and n over the seeds."""
    mean, sd, n = over_seeds(values)
    return [
        dict(zip(keys, named(*place), strict=True)) | {"mean": mean[place], "sd": sd[place], "n": n[place]}
        for place in np.ndindex(mean.shape)
    ]


def _csv(rows: list[dict[str, Any]]) -> str:
    """Lines under their names; a cell is empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}" if np.isfinite(value) else ""
    return value


# ---- files


def write(results: Sequence[Result], found: Sequence[Section], folder: Path) -> list[Path]:
    """Every figure of an experiment as .svg and .csv, in a folder of the experiment's name; what was written.

    :class:`~continual.errors.BadFolder` where it cannot be.
    """
    place = folder / experiment(results[0].record)
    texts = {
        place / f"{name}.{ending}": text
        for name, figure in named([one for section in found for one in section.figures])
        for ending, text in (("svg", figure.svg), ("csv", figure.csv))
    }
    with files.refused(f"cannot write figures to {place}"):
        place.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        files.write_text(file, text)
    return list(texts)


def named(figures: Iterable[Figure]) -> list[tuple[str, Figure]]:
    """Figures under names that no two of them share."""
    taken: set[str] = set()
    found = []
    for figure in figures:
        name, number = figure.name, 1
        while name in taken:
            number += 1
            name = f"{figure.name}-{number}"
        taken.add(name)
        found.append((name, figure))
    return found
