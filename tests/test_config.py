"""The grammar, the plan that a mapping describes, and the texts and records that make an object again."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import continual as cl
from continual import config, plugins
from continual.errors import BadChain, BadFolder, BadOption, Mistake
from continual.learning.models import MLP
from continual.learning.optimizers import Adam
from continual.options import Configured, Option, options_of

# ---- the grammar


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("ewc", "ewc", {}),
        (" ewc ", "ewc", {}),
        ("ewc:", "ewc", {}),
        ("ewc:strength=600", "ewc", {"strength": "600"}),
        ("ewc: strength = 600 , half=no", "ewc", {"strength": "600", "half": "no"}),
        ("ewc:strength=600,", "ewc", {"strength": "600"}),
        ("ewc:strength=1e+5", "ewc", {"strength": "1e+5"}),
        ("der++", "der++", {}),
        ("der++:alpha=0.1", "der++", {"alpha": "0.1"}),
        ("split-mnist:order=3-1-4", "split-mnist", {"order": "3-1-4"}),
        ("pkg.mine:Mine", "pkg.mine:Mine", {}),
        ("pkg.mine:Outer.Mine", "pkg.mine:Outer.Mine", {}),
        ("pkg.mine:Mine:rate=1,fast=yes", "pkg.mine:Mine", {"rate": "1", "fast": "yes"}),
        ("x:at=12:30", "x", {"at": "12:30"}),
        ("x:where=a=b", "x", {"where": "a=b"}),
    ],
)
def test_the_grammar(text: str, name: str, options: dict[str, str]) -> None:
    assert config.parse(text) == (name, options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' names nothing"),
        (":", "':' names nothing"),
        (":strength=1", "':strength=1' names nothing"),
        ("ewc:strength=", "'strength=' is not option=value"),
        ("ewc:=3", "'=3' is not option=value"),
        ("ewc:strength=1,half", "'half' is not option=value"),
        ("ewc:3", "'3' is not option=value"),
        ("ewc:strength=1,strength=1", "option strength is given twice"),
    ],
)
def test_what_the_grammar_refuses(text: str, told: str) -> None:
    with pytest.raises(BadOption, match=r"NAME:option=value|given twice") as caught:
        config.parse(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("given", [3, None, ["ewc"], {}, {"name": 3}, {"strength": 600}, b"ewc"])
def test_what_is_neither_a_text_nor_a_mapping_with_a_name_is_refused(given: Any) -> None:
    with pytest.raises(BadOption, match="names nothing; write NAME:option=value or a mapping"):
        config.read(given)


def test_a_plus_sign_chains_before_a_letter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def note(kind: str, given: Any) -> Configured:
        made.append(given)
        return cl.strategies.Finetune()

    monkeypatch.setattr(config, "make", note)
    config.make_strategy("der+++ewc:strength=1e+5+pkg.mine:Mine:rate=2e+1+der++:alpha=1")
    assert made == ["der++", "ewc:strength=1e+5", "pkg.mine:Mine:rate=2e+1", "der++:alpha=1"]


def test_a_chain_from_text_from_a_list_and_from_objects() -> None:
    wanted = cl.Chain((cl.strategies.EWC(strength=1e5), cl.strategies.Replay(capacity=7)))
    assert config.make_strategy("ewc:strength=1e+5+replay:capacity=7") == wanted
    assert config.make_strategy([{"name": "ewc", "strength": 1e5}, "replay:capacity=7"]) == wanted
    assert config.make_strategy(list(wanted.parts)) == wanted
    assert config.make_strategy(wanted) is wanted
    assert wanted != cl.Chain(wanted.parts[::-1]) and hash(wanted) == hash(cl.Chain(wanted.parts))


def test_one_strategy_is_no_chain() -> None:
    assert config.make_strategy("ewc:strength=3") == cl.strategies.EWC(strength=3)
    assert config.make_strategy(["ewc"]) == config.make_strategy({"name": "ewc"}) == cl.strategies.EWC()


@pytest.mark.parametrize("text", ["ewc+", "+ewc", "+", "ewc++replay"])
def test_a_part_that_is_missing_is_refused(text: str) -> None:
    with pytest.raises(Mistake):
        config.make_strategy(text)


def test_no_parts_and_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(BadChain, match="at least one"):
        config.make_strategy([])
    with pytest.raises(BadChain, match="SharedTrunk and SharedTrunk cannot be chained: each has a 'loss'"):
        config.make_strategy("shared-trunk+ewc+shared-trunk")


def test_another_kind_of_thing_is_not_a_strategy() -> None:
    with pytest.raises(BadOption, match="SplitDigits is not a strategy"):
        config.make_strategy("continual.benchmarks:SplitDigits")


# ---- back again: records and titles

EVERYTHING = [(kind, name) for kind in plugins.KINDS for name in plugins.registered(kind)]


def number(known: Option, integers: bool) -> st.SearchStrategy[Any]:
    """Numbers of the option's type within its limits."""
    low = known.limits.get("ge", known.limits.get("gt", 0))
    high = known.limits.get("le", known.limits.get("lt", 1_000_000))
    if integers:
        return st.integers(int(low) + ("gt" in known.limits), int(high) - ("lt" in known.limits))
    return st.floats(low, high, exclude_min="gt" in known.limits, exclude_max="lt" in known.limits)


def values(known: Option, hint: Any = None) -> st.SearchStrategy[Any]:
    """Values that the option takes, whatever its type."""
    hint = known.hint if hint is None else hint
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        of_ints = typing.get_args(hint)[0] is int
        members, usual = number(known, of_ints), len(known.default)  # some take only as many as the default has
        of_usual_length = st.lists(members, min_size=usual, max_size=usual)
        return st.one_of(of_usual_length, st.lists(members, min_size=1, max_size=4)).map(tuple)
    if members := typing.get_args(hint):
        return st.one_of(*(values(known, member) for member in members))
    if hint is str:  # files and folders that are not there
        return st.just(known.default)
    if hint in (bool, type(None)):
        return st.booleans() if hint is bool else st.none()
    return number(known, integers=hint is int)


@pytest.mark.parametrize(("kind", "name"), EVERYTHING, ids=lambda part: part)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_record_and_a_title_make_the_same_object_again(kind: str, name: str, data: st.DataObject) -> None:
    cls = plugins.find(kind, name)
    options = {known.name: data.draw(values(known), known.name) for known in options_of(cls).values()}
    try:
        made = cls(**options)
    except BadOption:  # each is allowed, but not together
        reject()
    assert config.make(kind, config.describe(kind, made)) == made
    assert config.make(kind, config.title(kind, made)) == made


@pytest.mark.parametrize(("kind", "name"), EVERYTHING, ids=lambda part: part)
def test_with_its_defaults_a_thing_is_called_by_its_name_and_its_record_spells_them_out(kind: str, name: str) -> None:
    made = config.make(kind, name)
    assert config.title(kind, made) == name
    described = config.describe(kind, made)
    assert described.pop("name") == name
    assert set(described) == set(options_of(type(made)))


def test_a_record_is_plain_data() -> None:
    assert config.describe("models", MLP(layers=(3, 4))) == {"name": "mlp", "layers": [3, 4]}


@pytest.mark.parametrize(
    ("kind", "made", "title"),
    [
        ("strategies", cl.strategies.EWC(half=False, fisher_samples=5), "ewc:half=false,fisher_samples=5"),
        ("strategies", cl.strategies.Replay(share=0.5), "replay:share=0.5"),
        ("models", MLP(layers=(100, 20)), "mlp:layers=100-20"),
        ("models", MLP(layers=(100,)), "mlp:layers=100"),
        ("optimizers", Adam(lr=0.001), "adam"),
        ("optimizers", Adam(lr=0.01), "adam:lr=0.01"),
        ("benchmarks", cl.benchmarks.SplitDigits(tasks=2, scenario="task"), "split-digits:scenario=task,tasks=2"),
    ],
)
def test_titles(kind: str, made: Configured, title: str) -> None:
    assert config.title(kind, made) == title


def test_the_title_of_a_whole_number_has_no_fraction() -> None:
    assert config.title("strategies", cl.strategies.EWC(strength=600)) == "ewc:strength=600"


def test_the_title_of_a_chain_makes_the_chain() -> None:
    chain = cl.Chain((cl.strategies.EWC(strength=1e20), cl.strategies.Replay(capacity=7)))
    title = config.strategy_title(chain)
    assert title == "ewc:strength=1e+20+replay:capacity=7" and config.make_strategy(title) == chain


def test_a_small_number_in_a_list_is_read_back() -> None:
    for alpha in ((1e-5,), (1e-5, 0.1), (0.1, 2e-20)):
        made = cl.strategies.OWM(alpha=alpha)
        assert config.make_strategy(config.strategy_title(made)) == made


def test_a_network_without_hidden_layers_can_be_asked_for_by_its_title() -> None:
    linear = MLP(layers=())
    assert config.make("models", config.describe("models", linear)) == linear
    assert config.make("models", config.title("models", linear)) == linear


def test_a_list_of_one_number_can_be_told_from_a_number_in_a_title() -> None:
    made = cl.benchmarks.SplitDigits(order=(3,))
    assert config.make("benchmarks", config.title("benchmarks", made)) == made


# ---- the plan


def test_the_plan_of_nothing_is_the_main_job() -> None:
    plan = config.plan({})
    assert plan == config.plan({"benchmark": "split-digits"}) == config.plan({"benchmark": cl.benchmarks.SplitDigits()})
    assert [config.strategy_title(one) for one in plan.strategies] == [
        "finetune", "l2", "ewc", "replay:capacity=50", "shared-trunk", "joint",
    ]  # fmt: skip
    assert plan.model == MLP(layers=(100, 100)) and plan.optimizer == Adam()
    assert (plan.training.seed_list, plan.training.epochs, plan.training.batch) == (list(range(10)), 20, 32)


def test_what_is_given_wins_over_the_packaged_file_and_the_rest_stays() -> None:
    plan = config.plan({
        "benchmark": "split-digits:tasks=2", "strategies": ["ewc"], "epochs": 1, "seeds": None, "model": "mlp:layers=5",
    })  # fmt: skip
    assert plan.benchmark == cl.benchmarks.SplitDigits(tasks=2)
    assert plan.strategies == (cl.strategies.EWC(),) and plan.model == MLP(layers=(5,))
    assert (plan.training.epochs, plan.training.batch, len(plan.training.seed_list)) == (1, 32, 10)


def test_nothing_is_a_value_where_an_option_takes_it() -> None:
    assert config.plan({"evaluate_samples": None}).training.evaluate_samples is None
    assert config.plan({"batch": None}).training.batch == 32, "as the packaged file has it"


def test_a_benchmark_without_a_packaged_file_starts_from_the_defaults(tmp_path: Path) -> None:
    plan = config.plan({"benchmark": "continual.benchmarks.rotated_mnist:RotatedMNIST"})
    assert plan.strategies == (cl.strategies.Finetune(),) and plan.model == MLP()
    assert (plan.training.epochs, plan.training.batch, plan.training.seed_list) == (1, 128, [0, 1, 2, 3, 4])


def test_a_stream_made_in_python_is_a_benchmark_too() -> None:
    stream = cl.Stream.from_arrays([[[0]], [[9]]], [0, 1], [[[0]], [[9]]], [0, 1], name="dots", tasks=2)
    plan = config.plan({"benchmark": stream})
    assert plan.benchmark is stream
    assert plan.protocol()["benchmark"] == stream.record and stream.record["name"] == "dots"


def test_the_protocol_spells_out_every_default() -> None:
    protocol = config.plan({"seeds": "3-5"}).protocol()
    assert protocol["seeds"] == [3, 5]
    assert protocol["benchmark"]["scenario"] == "class" and protocol["benchmark"]["name"] == "split-digits"
    assert protocol["training"]["optimizer"]["beta2"] == 0.999
    assert protocol["training"]["schedule"] == {"name": "constant"}
    assert "seeds" not in protocol["training"] and protocol["training"]["optimizer_state"] == "keep"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"batchs": 3}, "a run has no option 'batchs'; did you mean 'batch'?"),
        ({"epochs": 0}, "epochs was given 0; it takes int >= 1"),
        ({"epochs": True}, "epochs was given True"),
        ({"seeds": [1, 1]}, "give at least one, each once"),
        ({"seeds": []}, "give at least one"),
        ({"seeds": 0}, "give at least one"),
        ({"benchmark": "continual.strategies:EWC"}, "EWC is not a benchmark"),
        ({"model": 5}, "5 names nothing"),
        ({"model": torch.nn.Linear(2, 2)}, r"is PyTorch's and no model here; a model has a method build.*ModuleNet"),
        ({"optimizer": torch.optim.SGD}, r"is PyTorch's and no optimizer here; name one \(continual list optimizers\)"),
        ({"optimizer": "continual.strategies:EWC"}, "EWC is not an optimizer"),
        ({"strategies": []}, "strategies: there is none in the list"),
        ({"strategies": [["ewc", ["replay"]]]}, r"\['replay'\] names nothing"),
    ],
)
def test_plans_that_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(Mistake, match=told):
        config.plan(given)


@pytest.mark.parametrize("name", ["model", "optimizer", "schedule"])
def test_a_thing_of_another_kind_is_refused_in_the_plan(name: str) -> None:
    with pytest.raises(BadOption, match="EWC"):
        config.plan({name: "continual.strategies:EWC"})


# ---- files


def test_a_file_is_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("benchmark: {name: split-digits, tasks: 2}\nstrategies:\n  - [ewc, {name: replay, capacity: 3}]\n"
                    "optimizer: {name: adam, lr: 1e-3}\nseeds: [4, 5]\n")  # fmt: skip
    plan = config.plan(config.read_file(file))
    assert plan.benchmark == cl.benchmarks.SplitDigits(tasks=2) and plan.optimizer == Adam(lr=0.001)
    assert plan.strategies == (cl.Chain((cl.strategies.EWC(), cl.strategies.Replay(capacity=3))),)
    assert plan.training.seed_list == [4, 5]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"- a\n- b\n", "it takes a mapping of names"),
        (b"", "it takes a mapping of names"),
        (b"3\n", "it takes a mapping of names"),
        (b"1: 5\n", "it takes a mapping of names"),
        (b"a: [1\n", "is not YAML: .*line 2"),
        (b"seeds: 3\nmodel: mlp\nseeds: 4\n", "'seeds' is given twice"),
        (b"seeds: 010\n", "010: YAML reads a number with a zero in front, or a colon in it, in another base"),
        (b"seeds: 1:10\n", "1:10: YAML reads"),
        (b"optimizer: {lr: 1:10.5}\n", "1:10.5: YAML reads"),
        (b"x: !!python/object:os.system [ls]\n", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(Mistake, match=told) as caught:
        config.read_file(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_are_read_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("a: 0\nb: -3\nc: 0.5\nd: 1_000\ne: 1.5e+3\nf: '010'\ng: 0x1f\nh: .5\ni: 00.5\n")
    found = config.read_file(file)
    assert found == {"a": 0, "b": -3, "c": 0.5, "d": 1000, "e": 1500.0, "f": "010", "g": 31, "h": 0.5, "i": 0.5}


def test_a_name_with_nothing_behind_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    config.check_given({"track": None, "iterations": None, "threads": None, "epochs": 3}, file)
    for name in ("epochs", "benchmark", "model", "stategies"):
        with pytest.raises(BadOption, match=f"there is nothing behind '{name}:'"):
            config.check_given({name: None}, file)


def test_a_file_that_is_not_there_and_one_that_is_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(BadFolder, match="cannot be read"):
            config.read_file(path)


def test_every_packaged_run_is_a_plan() -> None:
    files = plugins.config_files("runs")
    assert "split-digits" in files
    for file in files.values():
        assert config.plan(config.read_file(file)).strategies


def test_a_class_is_not_taken_for_an_object() -> None:
    for wrong in ({"benchmark": cl.benchmarks.SplitDigits}, {"strategies": [cl.strategies.EWC]}, {"model": MLP}):
        with pytest.raises(BadOption, match=r"(\w+) is a class; make an object of it: \1\(\)"):
            config.plan(wrong)


def test_a_task_is_as_long_as_epochs_or_as_iterations_say() -> None:
    assert config.plan({}).training.epochs == 20
    typed = config.plan({"iterations": 30}).training
    assert (typed.epochs, typed.iterations) == (1, 30), "the file's 20 epochs give way"
    assert config.plan({"epochs": 3}).training.epochs == 3
    with pytest.raises(BadOption, match="epochs=3 and iterations=30: give one of the two"):
        config.plan({"epochs": 3, "iterations": 30})
