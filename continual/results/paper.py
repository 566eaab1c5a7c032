"""Tables that can be put into a paper: Markdown, and LaTeX with the package booktabs.

What is best is in bold, and so is what is not told apart from it; a footnote for each column names its convention.
"""

from __future__ import annotations

import re
import string
import textwrap
from collections.abc import Callable, Iterable

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


def grid(
    table: Content, interval: str, escape: Callable[[str], str] = str, bold: str = "", letter: str = "",
    between: str = " ± ",
) -> tuple[list[str], list[list[str]]]:  # fmt: skip
    """The titles of the columns and the lines, with the number of seeds where it is not the same for all.

    With ``bold`` around the mean of what is best, the ``letter`` of its footnote behind a title, and ``between`` before
    an error.
    """
    titles = [escape(one.title) + letter.format(mark) for one, mark in zip(table.metrics, letters(table), strict=True)]
    best = content.best(table) if bold else [[False] * len(titles)] * len(table.results)
    lines = []
    for result, cells, marks in zip(table.results, table.cells, best, strict=True):
        lines.append([escape(one_line(result.name))])
        for cell, one, mark in zip(cells, table.metrics, marks, strict=True):
            mean, error = map(escape, content.shown(cell, one, interval, table.decimals))
            lines[-1].append((bold.format(mean) if mark else mean) + (between + error if error else ""))
    if content.uneven(table):
        titles.append("seeds")
        lines = [[*line, escape(content.seeds(cells))] for line, cells in zip(lines, table.cells, strict=True)]
    return ["strategy", *titles], lines


def with_notes(head: list[str], rows: list[list[str]], notes: Iterable[str], format: str, names: int = 1) -> str:
    """Lines and columns with notes: Markdown, LaTeX, or for a terminal; the first columns hold ``names``."""
    if format == "latex":
        escaped = [[_negative(cell) for cell in row] for row in rows]
        return _framed(list(map(escaped_latex, head)), escaped, " ".join(notes), [], names)
    if format == "markdown":
        escaped = [[escaped_markdown(cell) for cell in row] for row in rows]
        return "\n\n".join([content.tabulated(head, escaped, "github", names), *map(escaped_markdown, notes)])
    folded = [textwrap.fill(note, content.WIDTH) for note in notes]
    return "\n".join([content.tabulated(head, rows, "simple", names), "", *folded])


# ---- Markdown


def escaped_markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_|<>\[\]~$])", r"\\\1", text)


def markdown(table: Content, interval: str) -> str:
    """A table with its heading above, and its notes and footnotes below."""
    head, lines = grid(table, interval, escaped_markdown, "**{}**", "<sup>{}</sup>")
    heading = escaped_markdown(table.heading)
    below = (f"<sup>{mark}</sup> {escaped_markdown(note)}" for mark, note in footnotes(table).items())
    return "\n\n".join(
        [
            f"**{heading}**",
            content.tabulated(head, lines, "github"),
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
    """Numbers whose minus signs are such."""
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped_latex(text))


def latex(table: Content, interval: str) -> str:
    """A table that needs the package booktabs, with its footnotes below the rules."""
    head, lines = grid(table, interval, _negative, r"\textbf{{{}}}", "$^{{{}}}$", r" $\pm$ ")
    caption = " ".join([f"{table.heading}.", *notes(table, interval)])
    below = [rf"$^{{{mark}}}$ {escaped_latex(note)}\\" for mark, note in footnotes(table).items()]
    return _framed(head, lines, caption, below)


def _framed(head: list[str], lines: list[list[str]], caption: str, below: list[str], names: int = 1) -> str:
    small = [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", *below, r"\end{minipage}"]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped_latex(caption)}}}",
            rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(head) - names)}}}",
            r"\toprule",
            _latex_row(head),
            r"\midrule",
            *map(_latex_row, lines),
            r"\bottomrule",
            r"\end{tabular}",
            *(small if below else []),
            r"\end{table}",
        ]
    )


def _latex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
