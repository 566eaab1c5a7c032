"""An option of anything that is configured: its type, default, range and meaning, and how a value is read.

Whatever has options (a strategy, a benchmark, a model, an optimiser, the training itself) is a frozen dataclass that
derives from :class:`Configured`. Values are checked when the object is made, whether they come from Python, from a
command line or from YAML, so there is one check and one message.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import re
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec

from continual.errors import BadOption, NoOption, brief, choices, is_text, nearest

LARGEST = 2**31 - 1
"""No whole number is larger: random numbers are drawn by counters of 32 bits, and nothing is counted further."""
MOST_LISTED = 10**6
"""A range is read as a list of no more numbers."""
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
"""A number as people and Python write it; msgspec takes it as JSON has it, where 0.5 is not .5 and 5.0 not 5."""
LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def option(default: Any, meaning: str, **limits: float) -> Any:
    """A dataclass field with a meaning and limits (``ge``, ``gt``, ``le``, ``lt``): ``option(1.0, "λ", ge=0)``."""
    unknown_limits = set(limits) - set(LIMITS)
    if unknown_limits:
        raise TypeError(f"option() takes the limits {choices(LIMITS)}, not {choices(unknown_limits)}")
    return dataclasses.field(default=default, metadata={"meaning": meaning, "limits": limits})


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of one option of a :class:`Configured` class."""

    name: str
    hint: Any
    default: Any
    meaning: str
    limits: dict[str, float]

    @property
    def kind(self) -> str:
        """The type and the limits, as a person reads them: ``float >= 0``, ``task|seen|all``."""
        limits = " and ".join(f"{LIMITS[name]} {bound}" for name, bound in self.limits.items())
        return f"{_kind(self.hint)} {limits}".strip()

    @property
    def words(self) -> list[str]:
        """The words that it takes, where it takes words."""
        return _words(self.hint)

    @property
    def is_list(self) -> bool:
        """Whether it takes a list and nothing else."""
        return typing.get_origin(self.hint) is tuple

    @property
    def is_optional(self) -> bool:
        """Whether nothing is one of its values."""
        return type(None) in typing.get_args(self.hint)

    def read(self, owner: str, value: Any) -> Any:
        """``value`` in the option's type, or :class:`BadOption`; text is read as a command line has it."""
        typed = _limited(self.hint, self.limits)
        try:
            given = value if self.hint is Any else _plain(value)
            result = msgspec.convert(_untexted(self.hint, given), typed, strict=False)
        except (msgspec.ValidationError, ValueError, OverflowError, RecursionError, NotImplementedError):
            hint = nearest(value if isinstance(value, str) else brief(value), _words(self.hint))
            raise BadOption(f"{owner}: option {self.name} was given {brief(value)}; it takes {self.kind}{hint}"
                            ) from None  # fmt: skip
        for one in result if isinstance(result, tuple) else (result,):
            if fault := _fault(one):
                raise BadOption(f"{owner}: option {self.name} was given {brief(value)}; it takes {self.kind}, {fault}")
        return result


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy's or PyTorch's, and ranges, as Python has them."""
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    listed = isinstance(value, list | tuple) or (isinstance(value, range) and len(value) <= MOST_LISTED)
    return [_plain(one) for one in value] if listed else value


def _fault(value: Any) -> str:
    """What is wrong with a value of the right type, if something is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"below {LARGEST + 1}"
    if isinstance(value, str) and not is_text(value):
        return "without NUL, that can be written as UTF-8"
    return ""


def members(hint: Any) -> tuple[Any, ...]:
    """The types in a union; another type is the only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _words(hint: Any) -> list[str]:
    """The words that a type takes."""
    literals = (member for member in members(hint) if typing.get_origin(member) is Literal)
    return [str(word) for literal in literals for word in typing.get_args(literal)]


def _kind(hint: Any) -> str:
    """A type as a person reads it."""
    if len(members(hint)) > 1:
        return "|".join(map(_kind, members(hint)))
    if typing.get_origin(hint) is Literal:
        return "|".join(_words(hint))
    if typing.get_origin(hint) is tuple:
        return f"{_kind(typing.get_args(hint)[0])}s joined by '-'"
    return "none" if hint is type(None) else str(getattr(hint, "__name__", hint))


def _limited(hint: Any, limits: dict[str, float]) -> Any:
    """The type with the limits on its numbers, as msgspec takes it."""
    if len(members(hint)) > 1:
        return functools.reduce(operator.or_, (_limited(member, limits) for member in members(hint)))
    if typing.get_origin(hint) is tuple:
        return tuple[_limited(typing.get_args(hint)[0], limits), ...]  # type: ignore[misc]
    meta: Any = msgspec.Meta
    return Annotated[hint, meta(**limits)] if limits and hint in (int, float) else hint


def _untexted(hint: Any, value: Any) -> Any:
    """What a command line writes for a list or for nothing, as the list or the nothing; other values as they are."""
    kinds = members(hint)
    if len(kinds) > 1 and value == "none":
        return None
    if isinstance(value, bool) and str(value).lower() in _words(hint):
        return str(value).lower()  # YAML reads the word true as a truth value
    if isinstance(value, str) and float in kinds and int not in kinds and re.fullmatch(NUMBER, value):
        return float(value)
    lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if not isinstance(value, str) or not lists:
        return value
    # where a number alone is something else, a list is told by its dash
    alone = len(kinds) == 1
    form = r"-|{0}(-{0})*-?" if alone else r"{0}(-{0})+|{0}(-{0})*-"
    is_list = re.fullmatch(form.format(r"\.?\d(?:[^-]|(?<=\d[eE])-)*"), value)
    parts = [part for part in re.split(r"(?<!\d[eE])-", value) if part]  # not within 1e-5
    return [_untexted(typing.get_args(lists[0])[0], part) for part in parts] if is_list else value


def typed(value: Any) -> str:
    """A value as a command line has it: a list joined by dashes, ``true`` and ``false``, ``none``."""
    if isinstance(value, list | tuple):
        return "-".join(map(typed, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def options_of(cls: type) -> dict[str, Option]:
    """The options of a :class:`Configured` class by name, in their order."""
    return _options_of(cls)


@functools.cache
def _options_of(cls: type) -> dict[str, Option]:
    hints = typing.get_type_hints(cls)
    if "__dataclass_fields__" not in vars(cls):
        # without the decorator its own options would be silently left out
        missed = [name for name in inspect.get_annotations(cls) if typing.get_origin(hints[name]) is not ClassVar]
        if missed:
            raise BadOption(f"{cls.__name__} has options ({choices(missed)}) but no @dataclass(frozen=True) above it")
    return {
        field.name: Option(
            field.name,
            hints[field.name],
            field.default,
            field.metadata.get("meaning", ""),
            field.metadata.get("limits", {}),
        )
        for field in dataclasses.fields(cls)
        if field.init
    }


def _check_names(cls: type, values: Iterable[str], owner: str) -> None:
    """:class:`BadOption` for a name that is no option."""
    known = options_of(cls)
    for name in values:
        if name not in known:
            allowed = f"it has {choices(known)}" if known else "it has none"
            told = f"{owner or cls.__name__} has no option '{name}'{nearest(name, known)} ({allowed})"
            mistake = NoOption(told)
            mistake.option = name
            raise mistake


@dataclasses.dataclass(frozen=True)
class Configured:
    """A frozen dataclass whose fields are options; making one checks every value (:class:`BadOption`)."""

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Names that are no options are refused here, with a better message than Python's."""
        maker = next(base for base in cls.__mro__ if "__init__" in vars(base))
        if dataclasses.is_dataclass(maker) and "__dataclass_params__" in vars(maker):
            _check_names(cls, named, "")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, known in options_of(type(self)).items():
            object.__setattr__(self, name, known.read(type(self).__name__, getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Checks across options; raise :class:`BadOption` where two do not go together."""

    def check_unused(self, why: str, *names: str) -> None:
        """Raise :class:`BadOption` where one of some options is given that do nothing, ``why`` as "with retrain=0"."""
        for name in names:
            value = getattr(self, name)
            if value != options_of(type(self))[name].default:
                raise BadOption(f"{name}={typed(value)} does nothing {why}; leave it out")

    @classmethod
    def read(cls, values: dict[str, Any], owner: str = "") -> Self:
        """An object of this class from named values (text or typed); unknown names raise :class:`BadOption`."""
        known = options_of(cls)
        _check_names(cls, values, owner)
        return cls(**{name: known[name].read(owner or cls.__name__, value) for name, value in values.items()})

    def values(self) -> dict[str, Any]:
        """Every option with its value, defaults spelled out, in types that YAML and JSON know."""
        pairs = ((name, getattr(self, name)) for name in options_of(type(self)))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}
