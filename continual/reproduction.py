"""A published table, run again cell by cell and held against what was published.

A table is a file in ``configs/tables/``: what all cells share (``protocol``), what a column and a row change in it, and
the published value of each cell, which may change it once more. A change is a mapping of a run's options; mappings in
it (such as ``benchmark``) are merged option by option. So another paper is another file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from continual import config, plugins, workers
from continual.errors import BadOption, choices, mistakes_of, nearest, unknown
from continual.results import store
from continual.results.comparison import Comparison, Published, compare
from continual.results.metrics import metric
from continual.streams.sets import data_root

if TYPE_CHECKING:
    from continual.results.metrics import Array, Metric

ENTRIES = ("source", "metric", "spread", "seeds", "protocol", "columns", "rows")
OWN = ("cells", "strategy", "note")
"""What a row says beside options of a run."""
ELSEWHERE = {
    "strategies": "a cell has one 'strategy'",
    "seeds": "they are given to the command, and the table's own 'seeds' are how many runs a published mean is over",
    "track": "runs of a table are not tracked",
}
"""Options of a run that no part of a table has, and why."""


@dataclass(frozen=True)
class Cell:
    """One published number; ``settings`` are the options of the run that gives it, ``note`` what is known about it."""

    row: str
    column: str
    published: Published
    settings: dict[str, Any]
    note: str = ""

    def plan(self, seeds: Sequence[int]) -> config.Plan:
        """The run of these seeds."""
        return config.plan(self.settings | {"seeds": list(seeds)})


@dataclass(frozen=True)
class Table:
    """A published table; ``seeds`` is how many runs each published mean is over, ``metric`` of what."""

    name: str
    source: str
    metric: str
    seeds: int
    cells: tuple[Cell, ...]

    def select(self, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> Table:
        """The table with some of its rows and columns; UnknownName for others."""
        wanted = {}
        for kind, given in (("row", rows), ("column", columns)):
            names = list(dict.fromkeys(getattr(cell, kind) for cell in self.cells))
            for name in given or ():
                if name not in names:
                    raise unknown(kind, name, names)
            wanted[kind] = given or names
        kept = tuple(cell for cell in self.cells if cell.row in wanted["row"] and cell.column in wanted["column"])
        return replace(self, cells=kept)


# ---- the file


def read(name: str) -> Table:
    """The table of a packaged name or of a YAML file; UnknownName or BadOption for what is not one."""
    packaged = plugins.config_files("tables")
    path = Path(name) if name.endswith((".yaml", ".yml")) else packaged.get(name)
    if path is None:
        raise unknown("table", name, packaged)
    given = config.read_file(path)
    for entry in given:
        if entry not in ENTRIES:
            raise BadOption(f"{path}: a table has no '{entry}'{nearest(entry, ENTRIES)} (it has {choices(ENTRIES)})")
    missing = [entry for entry in ENTRIES if entry not in given]
    if missing:
        raise BadOption(f"{path}: {choices(missing)} is missing (a table has {choices(ENTRIES)})")
    if given["spread"] not in ("sd", "se"):
        raise BadOption(f"{path}: spread '{given['spread']}': it takes sd or se")
    if not isinstance(given["seeds"], int) or given["seeds"] < 2:
        raise BadOption(f"{path}: seeds {given['seeds']!r}: give how many runs a published mean is over, at least 2")
    cells = tuple(_cells(path, given, metric(str(given["metric"]))))
    return Table(path.stem, str(given["source"]), given["metric"], given["seeds"], cells)


def _cells(path: Path, given: dict[str, Any], named: Metric) -> Iterator[Cell]:
    columns = _mapping(path, "columns", given["columns"])
    protocol = _mapping(path, "protocol", given["protocol"])
    for row, described in _mapping(path, "rows", given["rows"]).items():
        options = _mapping(path, row, described)
        for column, cell in _mapping(path, f"{row}: cells", options.get("cells")).items():
            where = f"{path}: {row}, {column}"
            if column not in columns:
                raise BadOption(
                    f"{where}: there is no such column{nearest(column, columns)} (known: {choices(columns)})"
                )
            own = cell if isinstance(cell, dict) else {"value": cell}
            try:
                published = Published.read(str(own.get("value")), given["seeds"], given["spread"])
            except ValueError as error:
                raise BadOption(f"{where}: {error}") from None
            merged: dict[str, Any] = {}
            for part in (protocol, _mapping(path, column, columns[column]), options, own):
                merged = _merged(merged, part)
            settings = {name: value for name, value in merged.items() if name not in (*OWN, "value")}
            for name in ELSEWHERE.keys() & settings.keys():
                raise BadOption(f"{where}: '{name}' is not for a table: {ELSEWHERE[name]}")
            if "strategy" not in merged:
                raise BadOption(f"{where}: there is no strategy; write one into the row, such as 'strategy: finetune'")
            strategies = {"strategies": [merged["strategy"]]}
            made = Cell(row, column, published, settings | strategies, str(merged.get("note", "")))
            with mistakes_of(where):
                _check_measured(named, made.plan([0]))
            yield made


def _check_measured(named: Metric, plan: config.Plan) -> None:
    """Raise BadOption where runs of a plan do not have what the metric needs."""
    if named.needs == "trace" and plan.training.evaluate_every is None:
        raise BadOption(f"the metric {named.name} needs accuracies measured while learning; give evaluate_every")
    if named.needs == "validation" and not getattr(plan.benchmark, "validation", 0):
        raise BadOption(
            f"the metric {named.name} needs rows that are set aside; give the benchmark's option validation"
        )
    if named.needs == "joint":
        raise BadOption(f"the metric {named.name} needs a run of joint training beside each, and a cell is one run")


def _mapping(path: Path, what: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise BadOption(f"{path}: {what} must be a mapping of names, not {given!r}")
    return given


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``new`` over ``old``; two mappings are merged in turn, unless they name different things."""

    def both(a: Any, b: Any) -> Any:
        mergeable = isinstance(a, dict) and isinstance(b, dict) and b.get("name", a.get("name")) == a.get("name")
        return _merged(a, b) if mergeable else b

    return old | {name: both(old[name], value) if name in old else value for name, value in new.items()}


# ---- doing it


@dataclass(frozen=True)
class Place:
    """Where runs are stored, and how they are done: ``jobs`` at a time, each in a process of its own."""

    out: Path
    data: str | None = None
    device: str = "auto"
    jobs: int = 1

    def groups(self, seeds: Sequence[int]) -> list[list[int]]:
        """Which seeds are one run: on a GPU all, side by side; on a processor each alone, so that less can be lost."""
        from continual.runner import choose_device

        return [list(seeds)] if choose_device(self.device).type == "cuda" else [[seed] for seed in seeds]


@dataclass(frozen=True)
class Line:
    """What became of a cell; ``stopped``: why seeds ended early, in words."""

    cell: Cell
    comparison: Comparison
    stopped: tuple[str, ...] = ()


def run(table: Table, seeds: Sequence[int], place: Place, done: Callable[[Cell], None] = lambda cell: None) -> None:
    """Run what is not stored yet of every cell; ``done`` is told of every run.

    Raises :class:`~continual.errors.Mistake` for what cannot be run as asked.
    """
    store.check_writable(place.out)
    work = [(cell, group) for cell in table.cells for group in place.groups(seeds)]
    if place.jobs == 1:
        for cell, group in work:
            run_cell(cell, group, place)
            done(cell)
        return
    calls = [(cell, group, place) for cell, group in work]
    workers.each(min(place.jobs, len(work)), run_cell, calls, lambda number, _: done(work[number][0]),
                 "fewer --jobs at a time need less, and what was finished is stored")  # fmt: skip


def run_cell(cell: Cell, seeds: list[int], place: Place) -> None:
    """Run some seeds of a cell, unless they are stored already."""
    from continual.runner import run_plan

    with mistakes_of(f"{cell.row}, {cell.column}"):
        plan = cell.plan(seeds)
        run_plan(plan, out=place.out, data=place.data, device=place.device)


def outcome(table: Table, seeds: Sequence[int], place: Place, chosen: Table | None = None) -> list[Line]:
    """Every cell held against what was published, by the seeds that are stored; with ``chosen``, those of its cells."""
    lines = []
    for cell in table.cells:
        judged = chosen is None or cell in chosen.cells
        found, stopped = values(table.metric, cell, seeds, place) if judged else (np.empty(0), [])
        lines.append(Line(cell, compare(found, cell.published, len(stopped)), tuple(stopped)))
    return lines


def values(name: str, cell: Cell, seeds: Sequence[int], place: Place) -> tuple[Array, list[str]]:
    """A metric of a cell's seeds (R,), in its unit, and in words which were stopped.

    Those, and seeds that are not stored, have NaN.
    """
    from continual.runner import choose_device, new_record

    named, device, root = metric(name), choose_device(place.device), data_root(place.data)
    found, stopped, scale = [], list[str](), 100 if named.unit == "%" else 1
    for group in place.groups(seeds):
        plan = cell.plan(group)
        stored = store.lookup(place.out, new_record(plan, plan.strategies[0], device, root))
        found.append(np.full(len(group), np.nan) if stored is None else scale * named(stored))
        lost = stored.record.get("stopped", []) if stored else []
        if stored and not lost and np.isnan(found[-1]).any():
            raise BadOption(f"{cell.row}, {cell.column}: the metric {name} has no value here; take another, such as "
                            "average-accuracy")  # fmt: skip
        stopped += [f"seed {one['seed']} was stopped: {store.why_stopped(one)}" for one in lost]
    return np.concatenate(found), stopped
