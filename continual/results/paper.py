"""Tables that can be put into a paper: Markdown, and LaTeX with the package booktabs.

What is best is in bold, and so is what is not told apart from it; a footnote for each column names its convention.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from continual.errors import one_line
from continual.results import content
from continual.results.content import Content


def letters(table: Content) -> list[str]:
    """The letter of each column's footnote; columns of one convention share it."""
    sources = [content.source(one) for one in table.metrics]
    known = list(dict.fromkeys(sources))
    numbers = [divmod(known.index(source), 26) for source in sources]
    return [string.ascii_lowercase[rest] * (1 + times) for times, rest in numbers]


def footnotes(table: Content) -> dict[str, str]:
    """The convention of each column, by its letter."""
    sources = [f"{content.source(one)}." for one in table.metrics]
    return dict(zip(letters(table), sources, strict=True))


def notes(table: Content, interval: str) -> list[str]:
    """What stands under a table: what its numbers are, what bold is, and what else has to be known of the results."""
    return [content.caption(table, interval), content.boldness(table), *content.remarks(table.results)]


def _cells(table: Content, interval: str, bold: str, between: str, escape: Callable[[str], str]) -> list[list[str]]:
    """Each cell, with ``bold`` around the mean of what is best and ``between`` before the error."""
    lines = []
    for cells, marks in zip(table.cells, content.best(table), strict=True):
        pairs = [content.shown(*pair, interval, table.decimals) for pair in zip(cells, table.metrics, strict=True)]
        means = [
            bold.format(escape(mean)) if mark else escape(mean) for (mean, _), mark in zip(pairs, marks, strict=True)
        ]
        lines.append(
            [f"{mean}{between}{error}" if error else mean for mean, (_, error) in zip(means, pairs, strict=True)]
        )
    return lines


def _whole(table: Content, cells: list[list[str]], escape: Callable[[str], str]) -> list[list[str]]:
    """The lines with their names, and with the number of seeds where it is not the same for all."""
    last = [[escape(content.seeds(line))] if content.uneven(table) else [] for line in table.cells]
    names = [escape(one_line(result.name)) for result in table.results]
    return [[name, *line, *more] for name, line, more in zip(names, cells, last, strict=True)]


def _head(table: Content, letter: str, escape: Callable[[str], str]) -> list[str]:
    """The titles of the columns, each with its footnote's letter."""
    titles = [escape(one.title) + letter.format(mark) for one, mark in zip(table.metrics, letters(table), strict=True)]
    return ["strategy", *titles, *(["seeds"] if content.uneven(table) else [])]


# ---- Markdown


def escaped_markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_|<>\[\]~$])", r"\\\1", text)


def markdown(table: Content, interval: str) -> str:
    """A table with its heading above, and its notes and footnotes below."""
    bold = _cells(table, interval, "**{}**", " ± ", escaped_markdown)
    lines = _whole(table, bold, escaped_markdown)
    heading = escaped_markdown(table.heading)
    below = (f"<sup>{mark}</sup> {escaped_markdown(note)}" for mark, note in footnotes(table).items())
    return "\n\n".join(
        [
            f"**{heading}**",
            content.tabulated(_head(table, "<sup>{}</sup>", escaped_markdown), lines, "github"),
            *map(escaped_markdown, notes(table, interval)),
            "  \n".join(below),
        ]
    )


# ---- LaTeX


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


def escaped_latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def _negative(text: str) -> str:
    """A number whose minus sign is one."""
    return re.sub(r"^-(?=\d)", "$-$", escaped_latex(text))


def latex(table: Content, interval: str) -> str:
    """A table that needs the package booktabs, with its footnotes below the rules."""
    bold = _cells(table, interval, r"\textbf{{{}}}", r" $\pm$ ", _negative)
    lines = _whole(table, bold, escaped_latex)
    caption = " ".join([f"{table.heading}.", *notes(table, interval)])
    below = [rf"$^{{{mark}}}$ {escaped_latex(note)}\\" for mark, note in footnotes(table).items()]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped_latex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
            r"\toprule",
            _latex_row(_head(table, "$^{{{}}}$", escaped_latex)),
            r"\midrule",
            *map(_latex_row, lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            *below,
            r"\end{minipage}",
            r"\end{table}",
        ]
    )


def _latex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
