"""A result as a notebook shows it: its main numbers and its accuracy matrix, in HTML that needs nothing else."""

from __future__ import annotations

from html import escape

import numpy as np

from continual.errors import counted
from continual.results.metrics import DEFAULT, METRICS, number, over_seeds, summarise
from continual.results.plots import Drawn

LIGHT, DARK = (247, 251, 255), (8, 48, 107)
"""The ends of the shades of blue that stand for 0 and 100 %."""


def html(result: Drawn) -> str:
    """The result as an HTML fragment; everything that comes from names is escaped."""
    return (
        f"<div><p><strong>{escape(result.name)}</strong>, {counted(len(result.accuracy), 'seed')}, in %</p>"
        f"{_numbers(result)}<p>Accuracy on each task (columns) after each task (lines), mean over seeds</p>"
        f"{_matrix(result)}</div>"
    )


def _numbers(result: Drawn) -> str:
    lines = []
    for name in DEFAULT:
        found = summarise(100 * METRICS[name](result))
        error = f" ± {found.sd:.2f}" if found.n > 1 else ""
        lines.append(f"<tr><th>{escape(METRICS[name].title)}</th><td>{number(found.mean, 2)}{error}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _matrix(result: Drawn) -> str:
    mean = 100 * over_seeds(result.accuracy)[0]
    head = "".join(f"<th>{j + 1}</th>" for j in range(mean.shape[1]))
    lines = [f"<tr><th>{i or 'untrained'}</th>{''.join(map(_cell, row))}</tr>" for i, row in enumerate(mean)]
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _cell(value: float) -> str:
    """A percentage on its shade of blue, in letters that can be read on it."""
    share = float(np.clip(value, 0, 100)) / 100 if np.isfinite(value) else 0.0
    shade = ",".join(str(round(light + share * (dark - light))) for light, dark in zip(LIGHT, DARK, strict=True))
    style = f"background:rgb({shade});color:{'white' if share > 0.55 else 'black'};text-align:right"
    return f'<td style="{style}">{number(value, 1)}</td>'
