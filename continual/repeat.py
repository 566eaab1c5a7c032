"""How a stored run is done again: the command line that gives it, and its whole configuration as a run's file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from continual import config, plugins
from continual.config import NAMED, Plan
from continual.errors import Mistake, choices
from continual.options import Configured, options_of
from continual.results.report import Repeat
from continual.results.store import Result


def repeat(results: Sequence[Result]) -> Repeat:
    """How the runs of one experiment are repeated.

    A command is given only where it was found to make the very protocol and strategies of the records; where what they
    name cannot be loaded here, or was made in Python, ``note`` says so.
    """
    given = configuration(results)
    try:
        plan = config.plan(options_only(given))
        words = command(plan)
        if not _same(plan, results):
            return Repeat("", _yaml(given), "these options make another run with the version that is installed here")
    except Mistake as mistake:
        return Repeat("", _yaml(given), f"what was run cannot be made here from its record: {mistake}")
    asked, known = _asked(results), options_of(type(plan.training))
    every = {name for one in results for name in (*_computed(one), *one.record.get("differing", ()))}
    some = every - asked.keys()
    asked = {name: value for name, value in asked.items() if name in known}
    for name, value in asked.items() if words else ():
        words += _words(name, config.written(known[name], value), known[name].hint is bool)
    device = results[0].record.get("device", {}).get("type")
    words += ["--device", device] if words and device else []
    typed = shlex.join(["continual", "run", *words, "--out", "repeated"]) if words else ""
    note = "" if typed else "what it is made of cannot be typed; it is run from a file: continual run FILE.yaml"
    if some:
        said = f"not all runs were done with the same {choices(some)}, which may move last bits"
        note = "; ".join(filter(None, [note, said]))
    return Repeat(typed, _yaml(options_only(given) | asked), note)


def _asked(results: Sequence[Result]) -> dict[str, Any]:
    """How all runs were computed, which may move last bits: what of it was asked for, ``seeds_as`` and ``threads``.

    How seeds were done is named also where it was chosen: a clock may choose otherwise the next time. Of runs side by
    side those that cannot be done so are done one after the other anyway.
    """
    first, *others = map(_computed, results)
    asked = {name: value for name, value in first.items() if all(one.get(name) == value for one in others)}
    ways = [one.record["seeds_as"] for one in results if "seeds_as" in one.record]
    if ways and len(results[0].seeds) > 1:
        asked["seeds_as"] = "map" if "map" in ways else ways[0]
    return asked


def _computed(result: Result) -> dict[str, Any]:
    """What was asked for, and a CPU's threads also where they were chosen: another machine, or shell, has others."""
    record = result.record
    on_cpu = record.get("device", {}).get("type") == "cpu" and "threads" in record
    return {**record.get("asked", {}), **({"threads": record["threads"]} if on_cpu else {})}


def configuration(results: Sequence[Result]) -> dict[str, Any]:
    """What the records say, as :func:`continual.config.plan` takes it."""
    protocol = results[0].record["protocol"]
    training = protocol["training"] if isinstance(protocol["training"], dict) else {}
    strategies, seeds = [one.record["strategy"] for one in results], protocol["seeds"]
    return {
        "benchmark": protocol["benchmark"],
        "strategies": [parts[0] if len(parts) == 1 else parts for parts in strategies],
        "model": protocol["model"],
        **training,
        "seeds": len(seeds) if seeds == list(range(len(seeds))) else seeds,
    }


def options_only(given: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what a record says of a benchmark or a model beyond its options, such as checksums."""
    return given | {"benchmark": _benchmark(given["benchmark"]), "model": _options("models", given["model"])}


def _benchmark(described: Any) -> Any:
    if isinstance(described, dict) and "sequence" in described:
        from continual.streams.benchmark import Sequence as Benchmarks

        known = {"sequence": [_benchmark(one) for one in described["sequence"]]}
        return known | {name: described[name] for name in options_of(Benchmarks) if name in described}
    return _options("benchmarks", described)


def _options(kind: str, described: Any) -> Any:
    """The name and the options of what is described."""
    if not isinstance(described, dict) or "name" not in described:
        return described
    options = options_of(plugins.find(kind, str(described["name"])))
    return {"name": described["name"]} | {name: described[name] for name in options if name in described}


def _same(plan: Plan, results: Sequence[Result]) -> bool:
    """Whether a plan is that of the records."""
    made = [[config.describe("strategies", part) for part in strategy.parts] for strategy in plan.strategies]
    stored = [one.record["strategy"] for one in results]
    return _within(plan.protocol(), results[0].record["protocol"]) and made == stored


def _within(options: Any, stored: Any) -> bool:
    """Whether what is stored says the same as the options; it may say more, such as the checksums of images."""
    if isinstance(options, dict) and isinstance(stored, dict):
        return all(name in stored and _within(value, stored[name]) for name, value in options.items())
    if isinstance(options, list) and isinstance(stored, list):
        return len(options) == len(stored) and all(map(_within, options, stored))
    return bool(options == stored)


def command(plan: Plan) -> list[str]:
    """The words of the command line that makes a plan; none where there is no such command line."""
    if not isinstance(plan.benchmark, Configured) or getattr(plan.benchmark, "members", None):
        return []
    benchmark = config.title("benchmarks", plan.benchmark)
    strategies = [config.strategy_title(strategy) for strategy in plan.strategies]
    usual = config.plan({"benchmark": plan.benchmark, **_length(plan)})
    flags = [
        (name, config.written(options_of(type(plan.training))[name], value))
        for name, value in plan.training.values().items()
        if value != usual.training.values()[name] or name in _length(plan)
    ]
    named = [
        (name, config.title(kind, getattr(plan, name)))
        for name, (kind, *_) in NAMED.items()
        if getattr(plan, name) != getattr(usual, name)
    ]
    switches = [name for name, known in options_of(type(plan.training)).items() if known.hint is bool]
    words = [word for name, value in [*named, *flags] for word in _words(name, value, name in switches)]
    return [benchmark, *strategies, *words] if _typed(benchmark, strategies, [*named, *flags], plan) else []


def _words(name: str, value: str, switch: bool) -> list[str]:
    """An option as it is typed: a flag and its value, or a flag alone."""
    word = name.replace("_", "-")
    if not switch:
        return [f"--{word}", value]
    return [f"--{word}" if value == "true" else f"--no-{word}"]


def _length(plan: Plan) -> dict[str, int]:
    """How long a task is, which is always spelled out: given one way, it replaces a packaged file's other way."""
    if plan.training.iterations:
        return {"iterations": plan.training.iterations}
    return {"epochs": plan.training.epochs}


def _typed(benchmark: str, strategies: list[str], options: list[tuple[str, str]], plan: Plan) -> bool:
    """Whether these words, typed, make the plan: text that has the grammar's own signs in it does not."""
    try:
        made = config.plan({"benchmark": benchmark, "strategies": strategies, **dict(options)})
    except Mistake:
        return False
    return made.protocol() == plan.protocol() and made.strategies == plan.strategies


def _yaml(given: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
