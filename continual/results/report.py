"""Results as one HTML file that needs nothing else: it opens from the disk, on a phone and on paper (extra ``report``).

What comes from names, options and records is escaped by the template. Only what this module itself made is put in as it
is: the figures, whose text is escaped as XML, the style and the script. A policy in the page lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from continual.errors import BadOption, counted, one_line
from continual.results import content, figures, paper, tables
from continual.results.content import Content
from continual.results.figures import Section
from continual.results.metrics import Metric, Summary
from continual.results.store import Result, experiment

BARS = "Bars: the same means and errors, on a scale from the least to the greatest of each column."
FITTING = 4.9  # inches of a figure that can still be read on a phone, made as narrow as its screen


@dataclass(frozen=True)
class Repeat:
    """``command`` repeats runs; ``file``, as YAML, is their whole configuration; ``note`` says where one is lacking."""

    command: str
    file: str
    note: str


def html(
    title: str,
    groups: Sequence[Sequence[Result]],
    drawn: Sequence[Sequence[Section]],
    repeats: Sequence[Repeat],
    metrics: Sequence[str | Metric] | None = None,
    interval: str = "sd",
) -> str:
    """The page: a part for each group, the results of one experiment, with its figures and how it is repeated."""
    content.check_interval(interval)
    parts = [
        _experiment(table, sections, again, interval)
        for table, sections, again in zip(
            content.computed([list(group) for group in groups], metrics), drawn, repeats, strict=True
        )
    ]
    jinja2 = _jinja2()
    script = _asset("report.js")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made: str = page.from_string(_asset("report.html")).render(
        title=title,
        facts=_facts(groups),
        experiments=parts,
        style=_as_it_is(_asset("report.css")),
        script=_as_it_is(script),
        script_sum=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    return made


def _jinja2() -> Any:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise BadOption("a report needs Jinja: pip install 'continual[report]'") from error
    return jinja2


def _asset(name: str) -> str:
    return (importlib.resources.files("continual.results") / "page" / name).read_text(encoding="utf-8")


def _as_it_is(text: str) -> Any:
    """Text that was made here and is not escaped."""
    from markupsafe import Markup

    return Markup(text)


def _link(text: str, kind: str) -> str:
    """Text as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(text.encode('utf-8', 'replace')).decode()}"


def _facts(groups: Sequence[Sequence[Result]]) -> str:
    """How much is shown, and from when."""
    results = [one for group in groups for one in group]
    began = sorted(str(one.record["time"]["began"])[:10] for one in results if one.record.get("time", {}).get("began"))
    when = f", run {began[0]}{f' to {began[-1]}' if began[-1] != began[0] else ''}" if began else ""
    return f"{counted(len(results), 'run')} in {counted(len(groups), 'experiment')}{when}"


# ---- one experiment


def _experiment(table: Content, sections: Sequence[Section], again: Repeat, interval: str) -> dict[str, Any]:
    """What the template shows of an experiment."""
    record = table.results[0].record
    code = sorted({module for one in table.results for module in one.record.get("code", {})})
    return {
        "name": experiment(record),
        "heading": table.heading,
        "columns": _columns(table),
        "lines": _lines(table, interval),
        "uneven": content.uneven(table),
        "notes": [*paper.notes(table, interval), *([BARS] if len(table.results) > 1 else [])],
        "footnotes": [{"letter": letter, "text": text} for letter, text in paper.footnotes(table).items()],
        "csv": _link(tables.table(table.results, [one.name for one in table.metrics], "csv"), "text/csv"),
        "sections": [_section(one) for one in sections],
        "repeat": again,
        "code": ", ".join(code),
        "yaml": _link(again.file, "application/yaml"),
        "records": [
            {"name": one.name, "text": json.dumps(one.record, indent=2, ensure_ascii=False)} for one in table.results
        ],
    }


def _columns(table: Content) -> list[dict[str, str]]:
    """The heads of the columns; what is better comes first when one is pressed."""
    return [
        {
            "title": one.title,
            "letter": letter,
            "first": "ascending" if one.higher_is_better is False else "descending",
        }
        for one, letter in zip(table.metrics, paper.letters(table), strict=True)
    ]


def _lines(table: Content, interval: str) -> list[dict[str, Any]]:
    best = content.best(table)
    spans = [_span([cells[column] for cells in table.cells], interval) for column in range(len(table.metrics))]
    return [
        {
            "name": one_line(result.name),
            "parts": re.findall(r"[^:,+=]*[:,+=]*", one_line(result.name)),
            "seeds": content.seeds(cells),
            "cells": [
                _cell(cell, one, interval, table.decimals, span) | {"best": mark}
                for cell, one, span, mark in zip(cells, table.metrics, spans, marks, strict=True)
            ],
        }
        for result, cells, marks in zip(table.results, table.cells, best, strict=True)
    ]


def _cell(cell: Summary, one: Metric, interval: str, decimals: int, span: tuple[float, float]) -> dict[str, Any]:
    """A cell's text, its value for sorting, and where its bar lies in the column's span, in percent of its width.

    There is no bar where a column has one value only, and nothing is compared.
    """
    mean, error = content.shown(cell, one, interval, decimals)
    reach = content.reach(cell, interval)
    there = math.isfinite(cell.mean)
    barred = there and span[0] < span[1]

    def place(value: float) -> float:
        return round(4 + 92 * (value - span[0]) / (span[1] - span[0]), 2)

    return {
        "mean": mean.replace("-", "−"),
        "error": error,
        "value": repr(cell.mean) if there else "",
        "at": place(cell.mean) if barred else None,
        "low": place(cell.mean - reach) if barred and error else None,
        "high": place(cell.mean + reach) if barred and error else None,
    }


def _span(cells: Sequence[Summary], interval: str) -> tuple[float, float]:
    """The least and the greatest value that the bars of a column reach; the same where it has one line."""
    if len(cells) == 1:
        return 0.0, 0.0
    reaches = [reach if math.isfinite(reach := content.reach(cell, interval)) else 0.0 for cell in cells]
    ends = [cell.mean + sign * reach for cell, reach in zip(cells, reaches, strict=True) for sign in (-1, 1)]
    finite = [end for end in ends if math.isfinite(end)]
    return min(finite, default=0.0), max(finite, default=0.0)


def _least(inches: float) -> int:
    """The pixels that a figure is not shown narrower than; a wider one than a phone's screen is moved across it."""
    return round(inches * 96 * 0.86) if inches > FITTING else 0


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "text": section.text,
        "figures": [
            {
                "name": name,
                "title": figure.title,
                "least": _least(figure.width),
                "svg": _as_it_is(figure.svg),
                "svg_link": _link(figure.svg, "image/svg+xml"),
                "csv_link": _link(figure.csv, "text/csv"),
            }
            for name, figure in figures.named(section.figures)
        ],
    }
