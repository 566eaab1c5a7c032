"""What a run is: one grammar for named things with options, and the plan that a command line or a file describes.

The grammar is ``NAME[:option=value,...]``, chained with ``+``: ``ewc:strength=600+replay:capacity=500``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continual import plugins
from continual.errors import BadOption, NoOption, brief, choices, nearest
from continual.options import Configured, Option, options_of, typed

if TYPE_CHECKING:
    from continual.learning.strategy import Strategy
    from continual.learning.training import Training
    from continual.tracking.tracker import Tracker

DEFAULT_BENCHMARK = "split-digits"
NAMED = {
    "model": ("models", "mlp", "network"),
    "optimizer": ("optimizers", "adam", "optimiser"),
    "schedule": ("schedules", "constant", "learning rate within a task"),
    "augment": ("augmentations", "none", "how a step shows its images"),
}
"""What a run names beside benchmark and strategies: of which kind it is, what it is by default, and what it means."""
EXECUTION = (
    "seeds_as",
    "program",
    "compile",
    "deterministic",
    "threads",
    "pixels",
)  # how it is computed, which changes no number beyond rounding
KEEPING = ("checkpoint_steps", "checkpoint_minutes", "keep_learners")  # what is kept of it, which changes nothing
METHODS = {
    "benchmarks": "stream",
    "strategies": "after_task",
    "models": "build",
    "optimizers": "step",
    "schedules": "factor",
    "augmentations": "moved",
    "trackers": "begin",
}
"""What a class of each kind must be able to do."""


def parse(text: str) -> tuple[str, dict[str, str]]:
    """``NAME:option=value,...`` as a name and options; a name may be a path ``module:Class``."""
    name, *rest = text.strip().split(":")
    if rest and "=" not in rest[0] and re.fullmatch(r"[A-Za-z_][\w.]*", rest[0]):
        name = f"{name}:{rest.pop(0)}"
    options: dict[str, str] = {}
    for pair in filter(None, ":".join(rest).split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise BadOption(f"'{text}': '{pair}' is not option=value (the form is NAME:option=value,option=value)")
        if key.strip() in options:
            raise BadOption(f"'{text}': option {key.strip()} is given twice")
        options[key.strip()] = value.strip()
    if not name:
        raise BadOption(f"'{text}' names nothing (the form is NAME:option=value,option=value)")
    return name, options


def make(kind: str, given: Any) -> Configured:
    """The object that a text, a mapping with ``name`` and options, or a ready object describes."""
    if isinstance(given, Configured):
        return given
    cls = given if isinstance(given, type) else type(given)
    if cls.__module__.startswith(("torch.", "torchvision.")):
        how = ("a model has a method build(shape, units, tasks) that gives a network: ModuleNet(make) of "
               "continual.learning.modules around a module") if kind == "models" else "name one"  # fmt: skip
        raise BadOption(f"{cls.__name__} is PyTorch's and no {plugins.KINDS[kind]} here; {how} "
                        f"(continual list {kind})")  # fmt: skip
    if isinstance(given, type):
        raise BadOption(f"{given.__name__} is a class; make an object of it: {given.__name__}()")
    name, options = read(given)
    cls = plugins.find(kind, name)
    if not hasattr(cls, METHODS[kind]):
        what = plugins.KINDS[kind]
        article = "an" if what[0] in "aeiou" else "a"
        raise BadOption(f"{cls.__name__} is not {article} {what}: it has no method '{METHODS[kind]}'")
    try:
        return cls.read(options, owner=name)
    except NoOption as error:
        others = plugins.having(kind, error.option)
        raise BadOption(f"{error}{f'; it is an option of {choices(others)}' if others else ''}") from None


def read(given: Any) -> tuple[str, dict[str, Any]]:
    """A name and its options, from text or from a mapping that has ``name``."""
    if isinstance(given, str):
        name, options = parse(given)
        return name, dict(options)
    if isinstance(given, dict) and isinstance(given.get("name"), str):
        return given["name"], {str(key): value for key, value in given.items() if key != "name"}
    raise BadOption(f"{brief(given)} names nothing; write NAME:option=value or a mapping with 'name' and the options")


def changed(given: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What a text or a mapping describes, as a mapping, with other values of some options."""
    if isinstance(given, dict) and "sequence" in given:
        return given | options
    name, said = read(given)
    return {"name": name, **said, **options}


def make_strategy(given: Any) -> Strategy:
    """A strategy or a chain, from text with ``+``, a list of parts, a mapping or a ready object."""
    from continual.learning.strategy import Chain, Strategy

    if isinstance(given, Strategy):
        return given
    made = [make("strategies", part) for part in _chained(given)]
    for part in made:
        if not isinstance(part, Strategy):
            raise BadOption(f"{type(part).__name__} is not a strategy: it does not derive from continual.Strategy")
    strategies = tuple(part for part in made if isinstance(part, Strategy))
    return strategies[0] if len(strategies) == 1 else Chain(strategies)


def _chained(given: Any) -> list[Any]:
    """The parts of what is chained with ``+``, or a list of them."""
    if isinstance(given, list | tuple):
        return list(given)
    # a plus sign before a letter chains; others belong to a name (der++) or a number (1e+5)
    return re.split(r"\+(?=[A-Za-z])", given) if isinstance(given, str) else [given]


def make_trackers(given: Any) -> tuple[Tracker, ...]:
    """Trackers from text with ``+``, a list, a mapping or a ready object; none from None."""
    from continual.tracking.tracker import Tracker

    found = []
    parts = [] if given is None else [part for each in _chained(given) for part in _chained(each)]
    for tracker in (make("trackers", part) for part in parts):
        if not isinstance(tracker, Tracker):
            raise BadOption(f"{type(tracker).__name__} is not a tracker: it does not derive from continual.Tracker")
        found.append(tracker)
    return tuple(found)


def describe(kind: str, made: Configured) -> dict[str, Any]:
    """A name and every option, defaults spelled out: what :func:`make` reads back as an equal object."""
    return {"name": plugins.name_of(kind, type(made)), **made.values()}


def title(kind: str, made: Configured) -> str:
    """The text that makes the object, with the options that differ from their defaults."""
    given = [
        f"{name}={written(options_of(type(made))[name], value)}"
        for name, value in made.values().items()
        if getattr(made, name) != options_of(type(made))[name].default
    ]
    name = plugins.name_of(kind, type(made))
    return f"{name}:{','.join(given)}" if given else name


def written(known: Option, value: Any) -> str:
    """An option's value as a command line has it."""
    if not isinstance(value, list | tuple):
        return typed(value)
    # where a number alone means something else, a list of one is written with a dash behind it
    return typed(value) + ("-" if not value or (len(value) == 1 and not known.is_list) else "")


def strategy_title(strategy: Strategy) -> str:
    """The text that makes a strategy or chain."""
    return "+".join(title("strategies", part) for part in strategy.parts)


@dataclass(frozen=True)
class Plan:
    """A benchmark and the strategies that run on it, with everything they share."""

    benchmark: Any
    strategies: tuple[Strategy, ...]
    model: Configured
    optimizer: Configured
    schedule: Configured
    augment: Configured
    training: Training
    trackers: tuple[Tracker, ...] = ()

    @property
    def asked(self) -> dict[str, Any]:
        """How it is to be computed, where that was asked for: options that change no number beyond rounding."""
        values, known = self.training.values(), options_of(type(self.training))
        return {name: values[name] for name in EXECUTION if values[name] != known[name].default}

    def protocol(self, root: Path | None = None) -> dict[str, Any]:
        """What all strategies of the plan share, every default spelled out.

        With a data root also the checksums of what it is made of there, which are part of what a run is recognised by.
        """
        training = self.training.values()
        return {
            "benchmark": benchmark_record(self.benchmark, root),
            "model": describe("models", self.model) | (_facts(self.model) if root else {}),
            "training": {name: value for name, value in training.items() if name not in ("seeds", *EXECUTION, *KEEPING)}
            | {name: describe(NAMED[name][0], getattr(self, name)) for name in ("optimizer", "schedule", "augment")},
            "seeds": list(self.training.seed_list),
        }


def _facts(made: Any, *where: Path) -> dict[str, Any]:
    """What a run is recognised by beside the options of what it is made of, such as a checksum of weights."""
    return dict(made.facts(*where)) if hasattr(made, "facts") else {}


def benchmark_record(benchmark: Any, root: Path | None = None) -> dict[str, Any]:
    """What a run's record says of a benchmark, or of a stream that was made in Python."""
    if not isinstance(benchmark, Configured):
        return dict(benchmark.record)
    described = {"name": "sequence", **benchmark.values()} if _members(benchmark) else describe("benchmarks", benchmark)
    if _members(benchmark):
        described["sequence"] = [benchmark_record(member, root) for member in _members(benchmark)]
    return described | (_facts(benchmark, root) if root else {})


def _members(benchmark: Any) -> tuple[Any, ...]:
    """The benchmarks of a sequence."""
    return tuple(getattr(benchmark, "members", ()))


def make_benchmark(given: Any) -> Any:
    """A benchmark from text, a mapping, or a mapping with ``sequence``, a list of some; or a ready object."""
    if hasattr(given, "stream") and not isinstance(given, type):
        if not isinstance(given, Configured) and not hasattr(given, "record"):
            raise BadOption(f"{brief(given)} is no benchmark: it does not derive from one of "
                            "continual.streams.benchmark")  # fmt: skip
        return given
    if not isinstance(given, dict) or "sequence" not in given:
        return make("benchmarks", given)
    from continual.streams.benchmark import Sequence

    listed = given["sequence"]
    if given.get("name", "sequence") != "sequence":
        raise BadOption(f"benchmark: it takes a name or a sequence, and was given both ({brief(given['name'])})")
    if not isinstance(listed, list):
        raise BadOption(f"sequence: it takes a list of benchmarks, not {brief(listed)}")
    if any(isinstance(one, dict) and "sequence" in one for one in listed):
        raise BadOption("sequence: there is one within it; write its benchmarks into the outer one")
    options = {str(name): value for name, value in given.items() if name not in ("sequence", "name")}
    said = [None if isinstance(one, Configured) else set(read(one)[1]) for one in listed]
    return Sequence.of([make("benchmarks", one) for one in listed], said, **options)


def plan(given: dict[str, Any]) -> Plan:
    """The plan that a mapping describes: ``benchmark``, ``strategies``, ``model``, ``optimizer``, ``schedule``,
    ``augment``, ``track`` and the options of :class:`~continual.learning.training.Training`.

    What it leaves out comes from the packaged file ``configs/runs/<benchmark>.yaml`` where there is one, else from
    the options' defaults.
    """
    from continual.learning.training import Training

    benchmark = given.get("benchmark", DEFAULT_BENCHMARK)
    made = make_benchmark(benchmark)
    known = options_of(Training)
    nothing = {name for name, each in known.items() if each.is_optional}  # where it is a value like others
    said = {name: value for name, value in given.items() if value is not None or name in nothing}
    merged = _base(made, given) | said
    allowed = {"benchmark", "strategies", "track", *NAMED, *known}
    for name in merged:
        if name not in allowed:
            if isinstance(made, Configured) and name in options_of(type(made)):
                where = "beside 'sequence'" if _members(made) else f"there, as in NAME:{name}=VALUE"
                raise BadOption(f"a run has no option '{name}', but its benchmark has: write it {where}")
            raise BadOption(f"a run has no option '{name}'{nearest(name, allowed)} (it has {choices(allowed)})")
    strategies = merged.get("strategies", "finetune")
    listed = strategies if isinstance(strategies, list | tuple) else [strategies]
    if not listed:
        raise BadOption("strategies: there is none in the list; name one, or leave the list out")
    made_strategies = tuple(make_strategy(strategy) for strategy in listed)
    titles = [strategy_title(strategy) for strategy in made_strategies]
    for name in titles:
        if titles.count(name) > 1:
            raise BadOption(f"the strategy {name} is named twice; name it once")
    settings = {name: value for name, value in merged.items() if name in known}
    named = {name: make(kind, merged.get(name, default)) for name, (kind, default, _) in NAMED.items()}
    return Plan(
        benchmark=made,
        strategies=made_strategies,
        training=Training.read(settings, owner="a run"),
        trackers=make_trackers(merged.get("track")),
        **named,
    )


def _base(benchmark: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What the packaged file of the benchmark's name says, but for the benchmark itself and what ``given`` replaces."""
    if not isinstance(benchmark, Configured):
        return {}
    path = plugins.config_files("runs").get(plugins.name_of("benchmarks", type(benchmark)))
    found = read_file(path) if path else {}
    lengths = ("epochs", "iterations")
    replaced = ("benchmark", *lengths) if any(given.get(name) is not None for name in lengths) else ("benchmark",)
    return {name: value for name, value in found.items() if name not in replaced}


def check_given(given: dict[str, Any], path: Path) -> None:
    """BadOption where a run's file has a name with nothing behind it, and nothing is no value of it."""
    from continual.learning.training import Training

    known = options_of(Training)
    for name, value in given.items():
        if value is None and name != "track" and not (name in known and known[name].is_optional):
            raise BadOption(f"{path}: there is nothing behind '{name}:'; give a value, or leave the name out")


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; see :func:`continual.documents.read`."""
    from continual import documents

    return documents.read(path)
