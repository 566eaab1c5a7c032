"""A JSON Schema of a run's file, for editors: made from the options of what is registered here.

What the schema takes, the program takes, but for what no schema can say: values that go together, files, and the data.
Where a number may also be written as text, the schema wants a number.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from typing import Any

from continual import plugins
from continual.cards import first_paragraph
from continual.config import NAMED, written
from continual.errors import Mistake
from continual.learning.training import Training
from continual.options import LARGEST, Option, members, options_of
from continual.streams.benchmark import Sequence as Benchmarks
from continual.streams.benchmark import SplitBenchmark

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
"""What is named by its module, or by its library."""
NUMBERS = {int: r"\d+(?:\.0+)?", float: r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"}


def schema() -> Schema:
    """The schema of a run's file (draft 2020-12)."""
    known = {kind: _classes(kind) for kind in plugins.KINDS}
    defs: Schema = {}
    for kind, classes in known.items():
        defs |= {f"{kind}/{name}": _mapping(name, cls) for name, cls in classes.items()}
        defs[kind] = {"anyOf": [_text(classes), *_mappings(kind, classes)]}
    chain, tracker = ({"anyOf": [_text(known[kind], chained=True), *_mappings(kind, known[kind])]}
                      for kind in ("strategies", "trackers"))  # fmt: skip
    defs |= {"chain": chain, "sequence": _sequence(known["benchmarks"])}
    parts = {"type": "array", "minItems": 1, "items": _ref("strategies")}
    listed = {"type": "array", "items": {"anyOf": [_ref("chain"), parts]}}
    properties: Schema = {
        "benchmark": _nothing({"anyOf": [_ref("benchmarks"), _ref("sequence")]}, "the stream that is learnt"),
        "strategies": _nothing({"anyOf": [_ref("chain"), listed]}, "one, or a list; a list in it is a chain"),
        "track": _nothing({"anyOf": [tracker, {"type": "array", "items": tracker}]}, "where the run is followed"),
    }
    for name, (kind, usual, meaning) in NAMED.items():
        properties[name] = _nothing(_ref(kind), f"{meaning}; default: {usual}")
    for name, option in options_of(Training).items():
        properties[name] = _nothing(value(option), _meaning(option))
    return {
        "$schema": DRAFT, "title": "A run of continual", "description": "what 'continual run FILE.yaml' does",
        "type": "object", "properties": properties, "additionalProperties": False, "$defs": defs,
    }  # fmt: skip


def _classes(kind: str) -> dict[str, type]:
    """What is registered and can be loaded, by name."""
    found = {}
    for name in plugins.registered(kind):
        try:
            found[name] = plugins.find(kind, name)
        except Mistake:  # 'continual list' says why; a broken plug-in has no options to take
            continue
    return found


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name.replace('~', '~0').replace('/', '~1')}"}


def _nothing(one: Schema, description: str) -> Schema:
    """It, or null for what is not said."""
    return {
        "description": description,
        "anyOf": [*(one["anyOf"] if set(one) == {"anyOf"} else [one]), {"type": "null"}],
    }


# ---- one option


def value(option: Option) -> Schema:
    """What an option takes in YAML."""
    return _value(option.hint, option.limits)


def _value(hint: Any, limits: dict[str, float], alone: bool = True) -> Schema:
    if len(members(hint)) > 1:
        return {"anyOf": [_value(member, limits, alone=False) for member in members(hint)]}
    if hint is type(None):
        return {"enum": [None, "none"]}
    if typing.get_origin(hint) is typing.Literal:
        words = list(typing.get_args(hint))
        return {"enum": words + [word == "true" for word in words if word in ("true", "false")]}  # as YAML reads them
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return {
            "anyOf": [
                {"type": "array", "items": _value(item, limits)},
                {"type": "string", "pattern": f"^(?:{_joined(item, alone)})$"},
            ]
        }
    types = {bool: "boolean", int: "integer", float: "number", str: "string"}
    whole = {"minimum": -LARGEST, "maximum": LARGEST} if hint is int else {}
    bounds = {LIMITS[name]: bound for name, bound in limits.items() if hint in (int, float)}
    return {"type": types[hint], **whole, **bounds}


def _joined(item: Any, alone: bool) -> str:
    """A list as text, with dashes between its numbers; where it is all that is taken, a dash is the empty list."""
    number = r"\d+(?:\.\d+)?" if item is float else NUMBERS[int]
    return rf"{number}(?:-{number})*-?{'|-' if alone else ''}"


def _meaning(option: Option) -> str:
    return f"{option.meaning} ({option.kind}; default: {written(option, option.default)})"


# ---- something with a name


def _mapping(name: str, cls: type, without: Sequence[str] = ()) -> Schema:
    """A mapping with ``name`` and options."""
    return _object(cls, "name", {"name": {"const": name}}, without)


def _object(cls: type, required: str, own: Schema, without: Sequence[str] = ()) -> Schema:
    """A mapping of a class's options, and of what is its ``own``."""
    options = {known.name: value(known) | {"description": _meaning(known)} for known in options_of(cls).values()
               if known.name not in without}  # fmt: skip
    return {
        "type": "object", "description": first_paragraph(cls.__doc__), "required": [required],
        "properties": {**own, **options}, "additionalProperties": False,
    }  # fmt: skip


def _mappings(kind: str, classes: dict[str, type]) -> list[Schema]:
    """The mappings of all that are registered, and of any other that is named by its path."""
    other = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "pattern": f"^{PATH}$"}}}
    return [*(_ref(f"{kind}/{name}") for name in classes), other]


def _text(classes: dict[str, type], chained: bool = False) -> Schema:
    """``NAME:option=value,...``, where there may be several with ``+`` between them."""
    named = "|".join(_spelled(name, cls) for name, cls in classes.items())
    taken = "|".join(map(re.escape, classes))
    one = rf" *(?:{named}|(?!(?:{taken}):){PATH}(?::.*)?) *"
    whole = rf"^(?:{one}(?:\+(?=[A-Za-z])|$))+$" if chained else f"^{one}$"
    return {"anyOf": [{"enum": list(classes)}, {"type": "string", "pattern": whole}]}


def _spelled(name: str, cls: type) -> str:
    """A name and its options as a command line has them."""
    options = "|".join(
        f"{known.name} *= *(?:{_written(known.hint, known.limits)})" for known in options_of(cls).values()
    )
    return rf"{re.escape(name)}(?:: *(?:{options})(?: *, *(?:{options}))* *,?)?" if options else re.escape(name)


def _written(hint: Any, limits: dict[str, float], alone: bool = True) -> str:
    """A value as text."""
    if len(members(hint)) > 1:
        return "|".join(_written(member, limits, alone=False) for member in members(hint))
    if hint is type(None):
        return "none"
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(re.escape(str(word)) for word in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return _joined(typing.get_args(hint)[0], alone)
    if hint is bool:
        return "true|false"
    sign = "" if limits.get("ge", limits.get("gt", -1)) >= 0 else "-?"
    return sign + NUMBERS[hint] if hint in NUMBERS else "[^,]*[^, ]"


def _sequence(classes: dict[str, type]) -> Schema:
    """Benchmarks one after the other."""
    parts = {name: cls for name, cls in classes.items() if issubclass(cls, SplitBenchmark)}
    mappings = [_mapping(name, cls, Benchmarks.OF_THE_WHOLE) for name, cls in parts.items()]
    members = {"type": "array", "minItems": 2, "items": {"anyOf": [_text(parts), *mappings]}}
    return _object(Benchmarks, "sequence", {"sequence": members, "name": {"const": "sequence"}})
