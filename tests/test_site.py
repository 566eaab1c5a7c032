"""The site: built from pages and docstrings without a warning, it holds everything and loads nothing from afar."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import continual as cl
from continual import plugins
from continual.cards import cards
from continual.cli import main
from continual.options import options_of
from continual.results.metrics import METRICS

CHECKOUT = Path(__file__).resolve().parent.parent
NEEDED = ("sphinx", "myst_parser", "furo", "sphinx_click")
LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "srcset"), ("iframe", "src")}


class Page(HTMLParser):
    """The ids of a page, where its links lead, what it loads, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.ids |= {named[name] for name in ("id", "name") if name in named}
        self.links += [named["href"]] if tag == "a" and "href" in named else []
        elsewhere = tag == "link" and named.get("rel") in ("index", "search", "next", "prev", "canonical")
        self.loaded += [value for name, value in named.items() if (tag, name) in LOADED and not elsewhere]

    def handle_data(self, data: str) -> None:
        self.text += data


def build(folder: Path) -> Path:
    """The site, built as CONTRIBUTING.md says, with what was read kept elsewhere."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra docs is not installed ({', '.join(missing)})")
    (line,) = re.findall(r"^sphinx-build .*$", (CHECKOUT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    words = shlex.split(line.partition(" #")[0])
    assert words[-1] == "build/site" and "-W" in words
    command = [
        sys.executable,
        "-P",
        "-m",
        "sphinx",
        *words[1:-1],
        "-q",
        "-d",
        str(folder / "read"),
        str(folder / "built"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "built"


def test_the_site(tmp_path: Path) -> None:
    """One test, so that it is built once."""
    site = build(tmp_path)
    pages = {str(file.relative_to(site)): Page(file) for file in site.rglob("*.html")}
    every_page_is_reached(pages)
    for kind in plugins.KINDS:
        everything_registered_is_there(pages, kind)
    commands_metrics_and_names_are_there(pages)
    links_lead_somewhere(pages)
    nothing_is_loaded_from_afar(site, pages)


def every_page_is_reached(pages: dict[str, Page]) -> None:
    for file in CHECKOUT.glob("docs/*.md"):
        assert f"{file.stem}.html" in pages and f"{file.stem}.html" in pages["index.html"].links
    for file in CHECKOUT.glob("docs/reference/*.rst"):
        assert f"reference/{file.stem}.html" in pages["index.html"].links


def everything_registered_is_there(pages: dict[str, Page], kind: str) -> None:
    """Each with its class and its options."""
    text = " ".join("".join(one.text for name, one in pages.items() if name.startswith("reference/")).split())
    ids = {each for one in pages.values() for each in one.ids}
    for card in cards(kind):
        cls = plugins.find(kind, card["name"])
        assert f"{cls.__module__}.{cls.__qualname__}" in ids
        for known in options_of(cls).values():
            assert f"{known.name} {known.kind}" in text and " ".join(known.meaning.split()) in text


def commands_metrics_and_names_are_there(pages: dict[str, Page]) -> None:
    commands = pages["reference/commands.html"].text
    for command in main.commands.values():
        for parameter in command.params:
            assert all(option in commands for option in parameter.opts if option.startswith("-"))
    assert all(name in pages["reference/metrics.html"].text for name in METRICS)
    names = pages["reference/python.html"].text
    assert [name for name in cl.__all__ if f"cl.{name}" not in names] == []
    hooks = {f"continual.learning.strategy.Strategy.{hook}" for hook in ("init", "penalty", "after_task", "predict")}
    assert hooks <= pages["reference/contract.html"].ids


def links_lead_somewhere(pages: dict[str, Page]) -> None:
    lost = []
    for place, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = str((Path("/") / Path(place).parent / unquote(parts.path)).resolve())[1:] if parts.path else place
            known = pages.get(target)
            if known is None or (parts.fragment and unquote(parts.fragment) not in known.ids):
                lost.append(f"{place}: {link}")
    assert lost == []


def nothing_is_loaded_from_afar(site: Path, pages: dict[str, Page]) -> None:
    assert any(page.loaded for page in pages.values())
    afar = [(place, one) for place, page in pages.items() for one in page.loaded if "//" in one]
    styles = [
        (file.name, one) for file in site.rglob("*.css") for one in re.findall(r"url\(([^)]*)\)", file.read_text())
    ]
    assert afar == [] and [one for one in styles if "//" in one[1] and "data:" not in one[1]] == []
