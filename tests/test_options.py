"""Options: how a value is read, what is refused and how the refusal reads."""

from __future__ import annotations

import contextlib
import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from continual.errors import BadOption, brief
from continual.learning.training import Training
from continual.options import LARGEST, Configured, Option, option, options_of


@dataclass(frozen=True)
class Thing(Configured):
    rate: float = option(0.5, "a float", gt=0, lt=1)
    count: int = option(3, "an int", ge=1, le=10)
    plain: int = option(0, "an int without limits")
    flag: bool = option(False, "a truth")
    mode: Literal["task", "seen", "all"] = option("task", "a word")
    limit: int | None = option(None, "an int or none", ge=1)
    share: float | None = option(None, "a float or none", ge=0, le=1)
    seeds: int | tuple[int, ...] = option(5, "an int or ints", ge=0)
    layers: tuple[int, ...] = option((4, 4), "ints", ge=1)
    scales: tuple[float, ...] = option((1.0,), "floats")
    order: Literal["natural", "seed"] | tuple[int, ...] = option("natural", "a word or ints", ge=0)


@dataclass(frozen=True)
class Longer(Thing):
    count: int = option(4, "another default", ge=1, le=10)
    extra: str = option("x", "a text")

    def check(self) -> None:
        if self.plain > self.count:
            raise BadOption("plain is above count")


@dataclass(frozen=True)
class Nothing(Configured):
    pass


READ = [
    ("rate", "0.25", 0.25), ("rate", "1e-3", 1e-3), ("rate", 0.25, 0.25), ("count", "7", 7), ("count", 7, 7),
    ("rate", ".25", 0.25), ("rate", "+0.5", 0.5), ("rate", "5.E-1", 0.5), ("share", "1.", 1.0),
    ("count", 7.0, 7), ("count", "1", 1), ("count", "10", 10), ("plain", "-3", -3), ("flag", "true", True),
    ("flag", "false", False), ("flag", "1", True), ("flag", True, True), ("mode", "seen", "seen"),
    ("limit", "none", None),
    ("limit", None, None), ("limit", "4", 4), ("share", "none", None), ("share", "1", 1.0), ("share", 0, 0.0),
    ("seeds", "3", 3), ("seeds", 3, 3), ("seeds", "3-5-7", (3, 5, 7)), ("seeds", "7-", (7,)), ("seeds", [7], (7,)),
    ("seeds", (1, 2), (1, 2)), ("layers", "5", (5,)), ("layers", "400-400", (400, 400)), ("layers", "5-", (5,)),
    ("layers", "-", ()), ("layers", [], ()), ("layers", ["5", "6"], (5, 6)), ("scales", "0.5-2", (0.5, 2.0)),
    ("scales", "1e-05", (1e-5,)), ("scales", "1e-5-0.1-2E+3", (1e-5, 0.1, 2000.0)), ("scales", ".5-3e-2-", (0.5, 0.03)),
    ("order", "seed", "seed"), ("order", "3-1-0", (3, 1, 0)), ("order", "0-", (0,)), ("order", (2, 1), (2, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "wanted"), READ)
def test_what_is_read(name: str, value: Any, wanted: Any) -> None:
    got = getattr(Thing.read({name: value}), name)
    assert got == wanted and type(got) is type(wanted)
    assert getattr(Thing(**{name: value}), name) == wanted, "an object checks and converts in the same way"


REFUSED = [
    ("rate", "0"), ("rate", "1"), ("rate", 1.5), ("rate", "nan"), ("rate", math.inf), ("rate", "1e999"), ("rate", ""),
    ("rate", "fast"), ("rate", True), ("rate", None), ("rate", 10**400), ("count", "0"), ("count", 11),
    ("count", "1.5"),
    ("count", 1.5), ("count", True), ("count", ""), ("count", " 3"), ("count", "1_0"), ("count", "none"),
    ("count", [3]),
    ("count", {}), ("plain", "9" * 5000), ("flag", "yes"), ("flag", 2), ("flag", ""), ("mode", "Seen"), ("mode", "sen"),
    ("mode", ""), ("mode", 0), ("mode", ["seen"]), ("limit", "0"), ("limit", ""), ("limit", "None"), ("share", "1.1"),
    ("share", "nan"), ("seeds", "-1"), ("seeds", -1), ("seeds", "3-x"), ("seeds", "a-3"), ("seeds", [1, -1]),
    ("seeds", "3.5"),
    ("seeds", "none"), ("layers", "5-0"), ("layers", 5), ("layers", "a"), ("layers", "5,6"), ("layers", "-5"),
    ("layers", "5--6"), ("layers", None), ("scales", "nan"),
    ("scales", "1e--5"), ("layers", "3e-5"), ("scales", [math.nan]), ("scales", [math.inf]),
    ("order", "natrual"), ("order", "3"), ("order", ""), ("order", [0, "a"]), ("order", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_refused(name: str, value: Any) -> None:
    for make in (lambda: Thing.read({name: value}), lambda: Thing(**{name: value})):
        with pytest.raises(BadOption) as caught:
            make()
        message = str(caught.value)
        kind = options_of(Thing)[name].kind
        assert message.startswith(f"Thing: option {name} was given {brief(value)}; it takes {kind}")
        assert len(message) < 600


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rate", "float > 0 and < 1"),
        ("count", "int >= 1 and <= 10"),
        ("plain", "int"),
        ("flag", "bool"),
        ("mode", "task|seen|all"),
        ("limit", "int|none >= 1"),
        ("seeds", "int|ints joined by '-' >= 0"),
        ("layers", "ints joined by '-' >= 1"),
        ("order", "natural|seed|ints joined by '-' >= 0"),
    ],
)
def test_how_a_type_reads(name: str, kind: str) -> None:
    assert options_of(Thing)[name].kind == kind


@pytest.mark.parametrize(
    ("limit", "inside", "outside"), [("ge", 2, 1.999), ("gt", 2.001, 2), ("le", 2, 2.001), ("lt", 1.999, 2)]
)
def test_each_limit(limit: str, inside: float, outside: float) -> None:
    known = Option("x", float, 0.0, "", {limit: 2})
    assert known.read("it", inside) == inside
    with pytest.raises(BadOption):
        known.read("it", outside)


def test_an_unknown_limit_is_a_fault_of_the_author() -> None:
    with pytest.raises(TypeError, match="above"):
        option(1.0, "x", above=0)


def test_a_default_is_checked_too() -> None:
    @dataclass(frozen=True)
    class Wrong(Configured):
        count: int = option(0, "below its own limit", ge=1)

    with pytest.raises(BadOption, match="count was given 0"):
        Wrong()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raet", "Thing has no option 'raet'; did you mean 'rate'?"),
        ("Count", "did you mean 'count'?"),
        ("zzzzz", "Thing has no option 'zzzzz' (it has count, flag, "),
        ("", "Thing has no option ''"),
    ],
)
def test_unknown_names(name: str, told: str) -> None:
    with pytest.raises(BadOption) as caught:
        Thing.read({name: 1})
    assert told in str(caught.value)


def test_the_owner_is_named_as_the_user_wrote_it() -> None:
    with pytest.raises(BadOption, match=r"^thing: option count was given"):
        Thing.read({"count": "x"}, owner="thing")
    with pytest.raises(BadOption, match=r"^thing has no option 'cuont'; did you mean 'count'"):
        Thing.read({"cuont": 1}, owner="thing")
    with pytest.raises(BadOption, match=r"Nothing has no option 'x' \(it has none\)"):
        Nothing.read({"x": 1})


def test_a_word_that_is_nearly_one_of_those_allowed() -> None:
    with pytest.raises(BadOption, match=r"it takes task\|seen\|all; did you mean 'seen'"):
        Thing(mode="sene")  # type: ignore[arg-type]


def test_a_class_inherits_options_and_may_change_them() -> None:
    assert list(options_of(Longer)) == [*options_of(Thing), "extra"]
    assert Longer().count == 4 and Thing().count == 3 and Longer().rate == 0.5
    assert options_of(Longer)["count"].meaning == "another default"


def test_checks_across_options() -> None:
    assert Longer(plain=4).plain == 4
    with pytest.raises(BadOption, match="plain is above count"):
        Longer.read({"plain": "5"})


def test_values_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Thing().count = 5  # type: ignore[misc]


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "rate": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "count": st.integers(1, 10),
        "plain": st.integers(-LARGEST, LARGEST),
        "flag": st.booleans(),
        "mode": st.sampled_from(["task", "seen", "all"]),
        "limit": st.none() | st.integers(1, 99),
        "share": st.none() | st.floats(0, 1),
        "seeds": st.integers(0, 99) | st.lists(st.integers(0, 99)),
        "layers": st.lists(st.integers(1, 99)),
        "scales": st.lists(st.floats(allow_nan=False, allow_infinity=False)),
        "order": st.sampled_from(["natural", "seed"]) | st.lists(st.integers(0, 99)),
    },
)


@settings(derandomize=True)
@given(values=VALUES)
def test_values_read_back_give_the_same_object(values: dict[str, Any]) -> None:
    made = Thing.read(values)
    listed = made.values()
    assert list(listed) == list(options_of(Thing)), "every option is spelled out"
    assert not any(isinstance(value, tuple) for value in listed.values()), "in types that YAML and JSON know"
    assert Thing.read(listed) == made and hash(Thing.read(listed)) == hash(made)
    assert {name: listed[name] for name in values} == values


TEXTS = (
    st.text(max_size=20) | st.from_regex(r"\A[-0-9.e+a-z]{0,8}\Z") | st.sampled_from(["none", "nan", "-", "--", "inf"])
)


@settings(max_examples=300, derandomize=True)
@given(cls=st.sampled_from([Thing, Longer, Training]), data=st.data(), text=TEXTS)
def test_any_text_is_read_or_refused(cls: type[Configured], data: st.DataObject, text: str) -> None:
    name = data.draw(st.sampled_from(list(options_of(cls))))
    try:
        made = cls.read({name: text})
    except BadOption as refused:
        assert str(refused)
    else:
        assert cls.read(made.values()) == made


@settings(derandomize=True)
@given(name=st.text(max_size=10), text=TEXTS)
@example(name="count", text="1" * 5000)
@example(name="rate", text="1" * 5000)
@example(name="seeds", text="1" * 5000 + "-")
@example(name="mode", text="\ud800")
@example(name="rate", text="\x00")
def test_any_name_is_known_or_refused(name: str, text: str) -> None:
    if name in options_of(Thing):
        with contextlib.suppress(BadOption):
            Thing.read({name: text})
    else:
        with pytest.raises(BadOption, match="has no option"):
            Thing.read({name: text})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, derandomize=True)
@given(name=st.sampled_from(list(options_of(Thing))), value=ANYTHING)
def test_anything_else_is_read_or_refused(name: str, value: Any) -> None:
    with contextlib.suppress(BadOption):
        made = Thing.read({name: value})
        assert Thing.read(made.values()) == made


def test_the_word_true_is_a_word_where_yaml_has_made_it_a_truth_value() -> None:
    from continual.strategies import EWC

    assert EWC.read({"label": True}).label == "true"
    with pytest.raises(BadOption, match="label was given False"):
        EWC.read({"label": False})


@dataclass(frozen=True)
class Two(Configured):
    """Two options."""

    strength: float = option(1.0, "how much", ge=0)
    count: int = option(3, "how many", ge=1)


def test_a_misspelled_option_is_told_in_python_too() -> None:
    with pytest.raises(BadOption, match=r"Two has no option 'strenght'; did you mean 'strength'\? \(it has count, str"):
        Two(strenght=2)  # type: ignore[call-arg]
    assert Two(2.0, count=4) == Two(strength=2.0, count=4)


def test_options_without_the_decorator_are_told() -> None:
    class Undecorated(Two):
        more: int = option(1, "what would be left out")

    with pytest.raises(BadOption, match=r"Undecorated has options \(more\) but no @dataclass\(frozen=True\) above it"):
        Undecorated()

    class Nothing(Two):
        kind: ClassVar[str] = "no option"

    assert Nothing(count=2).count == 2


def test_numbers_and_lists_of_arrays_are_numbers_and_lists() -> None:
    """NumPy's and PyTorch's, and ranges."""
    seeds = (range(2, 4), np.array([2, 3]), torch.tensor([2, 3]), [np.int64(2), 3], (2, torch.tensor(3)))
    for asked in seeds:
        training = Training(seeds=asked, epochs=np.int64(2), checkpoint_minutes=np.float32(0.5))  # type: ignore[arg-type]
        assert training.values() == Training(seeds=(2, 3), epochs=2, checkpoint_minutes=0.5).values()
        assert type(training.epochs) is int and type(training.checkpoint_minutes) is float
    endless: list[Any] = []
    endless.append(endless)
    meta = torch.zeros(2, dtype=torch.int64, device="meta")
    for wrong in (np.array([[2], [3]]), np.float32(1.5), torch.tensor([True]), endless, meta, np.ndarray, range(10**9)):
        with pytest.raises(BadOption, match="option seeds was given"):
            Training(seeds=wrong)  # type: ignore[arg-type]
