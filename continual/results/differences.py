"""Stored runs held against each other: the difference of each pair, its 95 % interval, p, and p corrected."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from continual.errors import BadOption, counted, one_line, unknown
from continual.results import content, paper
from continual.results.comparison import Difference, difference, holm, sides
from continual.results.content import signed
from continual.results.metrics import Metric, Summary, metric, number, summarise
from continual.results.store import Result, canonical, experiment, plain

FORMATS = ("table", "markdown", "latex", "json")


@dataclass(frozen=True)
class Line:
    """``one`` minus ``other``, and the two in words; ``corrected`` is p after Holm's correction over all lines.

    ``values`` are of the seeds that the difference is of: where they are paired, those that both have.
    """

    metric: Metric
    one: Result
    other: Result
    names: tuple[str, str]
    values: tuple[Summary, Summary]
    difference: Difference
    corrected: float


def differences(
    results: Sequence[Result], metrics: Sequence[str | Metric], every_pair: bool = False, pairs: bool = True
) -> list[Line]:
    """Every further result minus the first, or every pair, in each metric; see :func:`comparison.difference`.

    A result or a metric that is given twice counts once: the same test once more would only be corrected for.

    Raises:
        BadOption: fewer than two results, or a metric that needs what one of them does not have.
        UnknownName: an unknown metric.
    """
    results = list({canonical(one.record): one for one in results}.values())
    if len(results) < 2:
        given = "one is" if results else "none are"
        raise BadOption(f"a comparison takes two different runs at least, and {given} given")
    chosen = [(other, one) for other, one in itertools.combinations(results, 2) if every_pair or other is results[0]]
    made = [_difference(metric(name), one, other, results, pairs) for name in dict.fromkeys(metrics)
            for other, one in chosen]  # fmt: skip
    corrected = holm([found.p for *_, found in made])
    return [Line(*parts, p) for parts, p in zip(made, corrected, strict=True)]


def _difference(
    named: Metric, one: Result, other: Result, results: Sequence[Result], pairs: bool
) -> tuple[Metric, Result, Result, tuple[str, str], tuple[Summary, Summary], Difference]:
    """One line but for the correction, which needs all of them."""
    peers = [[peer for peer in results if experiment(peer.record) == experiment(each.record)] for each in (one, other)]
    somewhere = content.joint(list(results)) is not None
    ours, theirs = (
        content.valued(named, each, content.joint(own), somewhere)
        for each, own in zip((one, other), peers, strict=True)
    )
    found = difference(ours, theirs, one.seeds, other.seeds, pairs)
    left, right, _ = sides(ours, theirs, one.seeds, other.seeds, pairs)
    names = _named(one, results), _named(other, results)
    return named, one, other, names, (summarise(left), summarise(right)), found


def _named(result: Result, results: Sequence[Result]) -> str:
    """A run in words: its strategy, and its experiment where several have the same strategy."""
    several = sum(each.name == result.name for each in results) > 1
    return one_line(result.name) + (f" ({experiment(result.record)})" if several else "")


# ---- as text


def table(lines: Sequence[Line], format: str = "table") -> str:
    """The lines for people (table, markdown, latex) or for programs (json); UnknownName for another format."""
    if format == "json":
        return json.dumps([_entry(line) for line in lines], indent=2, ensure_ascii=False, allow_nan=False)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    head = ["run", "minus", "mean", "mean of minus", "difference", "95 % interval", "p", "p (Holm)", "test"]
    rows = [_row(line) for line in lines]
    if len({line.metric.name for line in lines}) > 1:
        head, rows = ["metric", *head], [[line.metric.title, *row] for line, row in zip(lines, rows, strict=True)]
    return paper.with_notes(head, rows, _notes(lines), format, len(head) - 7)


def _row(line: Line) -> list[str]:
    scale = 100 if line.metric.unit == "%" else 1
    found = line.difference
    interval = f"{signed(scale * found.low)} to {signed(scale * found.high)}" if math.isfinite(found.p) else "–"
    none = math.isnan(found.p) and not found.paired
    test = "–" if none else f"paired, n = {found.n}" if found.paired else f"Welch, n = {found.n}"
    means = [number(scale * each.mean, 2) for each in line.values]
    return [*line.names, *means, signed(scale * found.difference), interval, _p(found.p), _p(line.corrected), test]


def _p(value: float) -> str:
    """A p-value; below what three digits can say, that it is below."""
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(lines: Sequence[Line]) -> list[str]:
    """What the columns mean, and what makes the runs differ beside their strategies."""
    metrics = {line.metric.name: line.metric for line in lines}.values()
    percent = content.percentages(metrics)
    percent = f" In {percent}; differences in points." if percent else ""
    notes = [f"{'; '.join(content.source(one) for one in metrics)}.{percent}"]
    if tested := sum(math.isfinite(line.difference.p) for line in lines):
        notes.append("The interval is that of each difference alone, uncorrected; p (Holm) is corrected for the "
                     f"{counted(tested, 'comparison')} above with a p.")  # fmt: skip
    if any(line.difference.paired for line in lines):
        notes.append(
            "Paired: Student's t-test over the differences of the n seeds that both have; the means are theirs."
        )
    if any(not line.difference.paired and math.isfinite(line.difference.p) for line in lines):
        notes.append("Welch: t-test of means whose variances may differ, without pairs; n counts both sides.")
    if any(math.isnan(line.difference.low) for line in lines):
        notes.append("No interval where a run has fewer than two seeds with a value.")
    if any(math.isnan(line.difference.p) and math.isfinite(line.difference.low) for line in lines):
        notes.append("No test where all seeds have the same difference: it goes by how they vary.")
    named = {id(one): (name, one) for line in lines
             for name, one in zip(line.names, (line.one, line.other), strict=True)}  # fmt: skip
    protocols = dict.fromkeys(filter(None, map(_protocols, lines)))
    return [*notes, *protocols, *content.stopped(named.values()), *content.rewritten(named.values())]


def _protocols(line: Line) -> str:
    """What else two runs differ in, where their protocols are not the same."""
    found = content.differing([line.one.record, line.other.record])
    said = "; ".join(f"{name}: {', '.join(words)}" for name, words in found.items())
    return f"{line.names[0]} and {line.names[1]} also differ in {said}." if said else ""


def _entry(line: Line) -> dict[str, Any]:
    """A line with everything in full precision, fractions where the metric is one; null where there is no value."""
    found = line.difference
    numbers = {
        "mean": line.values[0].mean,
        "minus_mean": line.values[1].mean,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_holm": line.corrected,
    }
    said: dict[str, Any] = {"metric": line.metric.name, "run": line.names[0], "minus": line.names[1]}
    said |= plain(numbers)
    return said | {"n": found.n, "paired": found.paired}
