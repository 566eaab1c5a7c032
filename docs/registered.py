"""The directive ``registered``: all that has a name, with its docstring and options, as the registry has them.

``.. registered:: strategies`` makes a section for each strategy; benchmarks, models and so on likewise. ``metrics`` and
``tables``, which have no options, become one table.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from continual import plugins
from continual.cards import cards
from continual.cli import KINDS
from continual.options import Configured, options_of


class Registered(SphinxDirective):
    """What is registered under a kind."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The sections, or the table."""
        (kind,) = self.arguments
        if kind not in KINDS:
            raise self.error(f"nothing is registered under '{kind}'; it takes {', '.join(KINDS)}")
        lines = sections(kind) if kind in plugins.KINDS else rows(cards(kind), "name", "meaning")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def sections(kind: str) -> list[str]:
    """A section for each name: its class, and its options in a table."""
    lines = []
    for card in cards(kind):
        cls = plugins.find(kind, card["name"])
        title = f"``{card['name']}``"
        lines += ["", title, "-" * len(title), "", f".. autoclass:: {cls.__module__}.{cls.__qualname__}"]
        lines += rows(card["options"], "name", "type", "written", "meaning")
    return lines


def rows(entries: list[dict[str, Any]], *keys: str) -> list[str]:
    """A table of entries, the first column as it is typed; nothing where there are none."""
    titles = {"written": "default"} | ({"name": "option"} if "type" in keys else {})
    head = [[titles.get(key, key) for key in keys]]
    body = [[f"``{one[keys[0]]}``", *(_cell(one[key], key) for key in keys[1:])] for one in entries]
    if not body:
        return [""]
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in head + body:
        lines += [f"   {'*' if number == 0 else ' '} - {cell}" for number, cell in enumerate(row)]
    return lines


def _cell(value: str, key: str) -> str:
    """Words as they are, whatever of reStructuredText's signs is in them; what is typed in the typewriter's letters."""
    if key == "meaning":
        return "".join(f"\\{sign}" if sign in "\\*`|_" else sign for sign in value)
    return f"``{value}``" if value else ""


def as_written(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """In docstrings, which are full of formulas, a ``*`` and a ``|`` are nothing but themselves."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(one if one.startswith("``") else re.sub(r"[*|]", r"\\\g<0>", one) for one in parts)


def options_as_arguments(app: Sphinx, what: str, name: str, thing: Any, options: object, *_: object) -> Any:
    """A class with options is made with them by name; how it checks them is nobody's concern."""
    if not (isinstance(thing, type) and issubclass(thing, Configured)):
        return None
    return f"({', '.join(f'{known.name}={known.default!r}' for known in options_of(thing).values())})", ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_written, priority=100)
    app.connect("autodoc-process-signature", options_as_arguments)
    app.add_directive("registered", Registered)
    return {"parallel_read_safe": True}
