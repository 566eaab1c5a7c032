"""Cards: what there is to know of everything that has a name, taken from its class, its docstring and its options.

Nothing here is said twice: a card has what the class declares and what its docstring says. Only what no class says
lies in ``configs/cards/``: the papers that docstrings cite, and where data sets come from.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from typing import Any

import msgspec

from continual import config, plugins
from continual.errors import Mistake
from continual.options import LIMITS, Option, options_of

with plugins.deferred():
    from continual.learning.strategy import HOOKS, Strategy
    from continual.streams.benchmark import Benchmark
    from continual.streams.stream import StreamOptions

Card = dict[str, Any]
CITED = re.compile(r"[A-ZÀ-Ž][\w'-]+(?: et al\.| (?:and|&) [A-ZÀ-Ž][\w-]+)? \d{4}")


def cards(kind: str) -> list[Card]:
    """A card of everything of a kind."""
    if kind == "metrics":
        with plugins.deferred():
            from continual.results.metrics import METRICS

        return [{"name": name, "meaning": metric.meaning, "options": []} for name, metric in METRICS.items()]
    if kind == "tables":
        tables = {name: _file(kind, name) for name in plugins.config_files(kind)}
        return [{"name": name, "meaning": one.get("source", ""), "options": []} for name, one in tables.items()]
    return [card(kind, name) for name in plugins.registered(kind)]


def card(kind: str, name: str) -> Card:
    """The card of a registered name or a path; of what cannot be loaded, why."""
    try:
        cls = plugins.find(kind, name)
        base, facts = {"strategies": (Strategy, _strategy), "benchmarks": (Benchmark, _benchmark)}.get(
            kind, (None, None)
        )
        more = facts(cls) if base and facts and issubclass(cls, base) else {}
    except Mistake as mistake:  # one package's broken plug-in must not hide the others
        return {"name": name, "meaning": str(mistake), "options": []}
    made = {"name": name, "meaning": first_paragraph(cls.__doc__), "papers": papers(cls)}
    return made | {"options": [_option(known) for known in options_of(cls).values()]} | more


def first_paragraph(documented: str | None) -> str:
    """The first paragraph of a docstring in one line."""
    text = (documented or "").strip().partition("\n\n")[0]
    return " ".join(re.sub(r":\w+:`~?([^`]*\.)?(\w+)`", r"\2", text).replace("``", "").split())


def _option(known: Option) -> Card:
    """An option: what a person reads (``type``) and types (``written``, the default), and the parts of it."""
    default = list(known.default) if isinstance(known.default, tuple) else known.default
    written = config.written(known, known.default)
    made = {"name": known.name, "type": known.kind, "default": default, "written": written, "meaning": known.meaning}
    return made | {"range": {LIMITS[name]: bound for name, bound in known.limits.items()}, "choices": known.words}


# ---- papers and data


@functools.cache
def _file(kind: str, name: str) -> Any:
    # ten times as fast as PyYAML's own loader, and the list has to be quick
    return msgspec.yaml.decode(plugins.read_text(plugins.config_files(kind)[name]))


def papers(cls: type) -> list[Card]:
    """The papers that the docstring cites before its numbered choices; of those not in ``configs/cards/``, the name."""
    documented = " ".join(inspect.cleandoc(cls.__doc__ or "").partition("Choices:")[0].split())
    cited = dict.fromkeys(one.replace(" and ", " & ") for one in CITED.findall(documented))
    return [_paper(cite, documented) for cite in cited]


def _paper(cite: str, documented: str) -> Card:
    """What is known of a paper; where several share the name and the year, the docstring has the title's beginning."""
    known = [paper for paper in _file("cards", "papers") if paper["cite"] == cite]
    titles = [title.lower() for title in re.findall(r'"([^"]{8,})"', documented)]
    named = [paper for paper in known if any(paper["title"].lower().startswith(title) for title in titles)]
    authors, _, year = cite.rpartition(" ")
    found = (named or known or [{"authors": authors, "title": None, "venue": None, "link": None}])[0]
    return {"cite": cite, "authors": found["authors"], "year": int(year)} | {
        name: found[name] for name in ("title", "venue", "link")
    }


def data(name: str) -> Card:
    """What is known of a data set: source, licence, shape (C, H, W), numbers of classes and of images."""
    return {"name": name, **_file("cards", "data").get(name, {})}


# ---- strategies


def _strategy(cls: Any) -> Card:
    """What a strategy declares, or what its class shows."""
    made = cls()
    return {
        "title": re.split(r"\s*[(:,;]|\.(?:\s|$)", first_paragraph(cls.__doc__), maxsplit=1)[0],
        "hooks": [hook for hook in HOOKS if made.has(hook)],
        "keeps": _keeps(cls),
        "stores_samples": None if cls.trains_itself else cls.stores_samples,  # None: another library does not say
        "memory_grows_with": None if cls.trains_itself else cls.memory_grows_with,
        "scenarios": list(cls.scenarios),
        "needs_task_at_test": list(cls.scenarios) == ["task"],
        "seeds_can_be_mapped": made.can_be_captured,
        "steps_can_be_captured": made.can_be_captured,
        "can_be_chained": not (cls.starts_over or cls.trains_itself),
        "first_task_like_finetuning": made.first_task_like_finetuning,
        "restarts_optimizer": made.restarts_optimizer,
    }


def _keeps(cls: Any) -> str:
    """What lies in memory, as the docstrings of the ``init`` of the class say it, and of its bases that it calls."""
    said = []
    for base in cls.__mro__:
        if "init" in vars(base) and base is not Strategy:
            said.append(vars(base)["init"].__doc__)
            if "super" not in vars(base)["init"].__code__.co_names:
                break
    return " ".join(dict.fromkeys(" ".join((text or "").replace("``", "").split()) for text in said))


# ---- benchmarks


def _benchmark(cls: Any) -> Card:
    """The data, the tasks and the scenarios of a benchmark with its usual options."""
    made, known = cls(), options_of(cls)
    parts = made.parts() if hasattr(made, "parts") else [made]
    sets = [data(part.data) for part in parts if hasattr(part, "data")]
    tasks = getattr(made, "tasks", None) or len(getattr(made, "angles", ())) or None
    labels = options_of(StreamOptions)["scenario"].meaning
    return {
        "data": sets,
        "tasks": sum(tasks) if isinstance(tasks, tuple) else tasks,
        "classes": sum(one.get("classes", 0) for one in sets) or None,
        "stream": first_paragraph(next(base.__doc__ for base in cls.__mro__ if base.__module__ != cls.__module__)),
        "scenarios": list(typing.get_args(known["scenario"].hint)),
        "scenario": made.scenario,
        "labels": labels,
    }


def readable(kind: str, one: Card) -> str:
    """A card as a person reads it."""
    lines = [f"{one['name']} ({plugins.KINDS[kind]}): {one['meaning']}"]
    for paper in one.get("papers", ()):
        known = [paper["authors"], str(paper["year"]), paper["title"], paper["venue"], paper["link"]]
        lines.append(f"  paper: {', '.join(part for part in known if part)}")
    for each in one.get("data", ()):
        about = "; ".join(f"{name} {_plain(value)}" for name, value in each.items() if name != "name")
        lines.append(f"  data: {each['name']} ({about})")
    told = ("name", "title", "meaning", "papers", "options", "data")
    lines += [f"  {name.replace('_', ' ')}: {_plain(value)}" for name, value in one.items() if name not in told]
    lines += ["  options:"] if one["options"] else []
    return "\n".join([*lines, *(f"    {option_line(known)}" for known in one["options"])])


def option_line(known: Card) -> str:
    """An option of a card: its name, what it takes, its default, and what it means."""
    return f"{known['name']}: {known['type']} = {known['written']}   {known['meaning']}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
