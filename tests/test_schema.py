"""The schema of a run's file: it takes what the program takes, and refuses what it refuses."""

from __future__ import annotations

import json
import math
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from continual import config, plugins
from continual.cli import main
from continual.config import NAMED
from continual.errors import BadOption, Mistake
from continual.learning.training import Training
from continual.options import Option, options_of
from continual.schema import schema

SCHEMA = schema()
VALIDATOR = Draft202012Validator(SCHEMA)
KEY = {"benchmarks": "benchmark", "strategies": "strategies", "trackers": "track"} | {
    kind: name for name, (kind, *_) in NAMED.items()
}
CLASSES = [(kind, name) for kind in KEY for name in plugins.registered(kind)]


def takes(run: Any) -> bool:
    return bool(VALIDATOR.is_valid(run))


def test_it_is_a_schema_and_the_command_prints_it() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    printed = CliRunner().invoke(main, ["schema"])
    assert printed.exit_code == 0 and json.loads(printed.stdout) == json.loads(json.dumps(SCHEMA))
    assert set(SCHEMA["properties"]) == {"benchmark", "strategies", "track", *NAMED, *options_of(Training)}


@pytest.mark.parametrize("name", plugins.config_files("runs"))
def test_every_packaged_file_is_taken(name: str) -> None:
    assert takes(config.read_file(plugins.config_files("runs")[name]))


VALID = """
{}
---
{benchmark: split-mnist, strategies: ewc, seeds: 3}
---
{benchmark: "split-mnist:scenario=task,tasks=2", strategies: ["ewc:strength=1e-3", "ewc+replay:capacity=50", der++]}
---
{benchmark: {name: split-digits, limit: 5, order: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}, strategies: {name: ewc, label: true}}
---
{strategies: [finetune, [ewc, {name: replay, capacity: 7}]], model: {name: mlp, layers: 100-100}}
---
{benchmark: {sequence: [split-mnist, {name: split-cifar10, tasks: 2}], size: 28}}
---
{strategies: ["my_file:Mine:strength=3", "avalanche:EWC:ewc_lambda=0.4", {name: "my_file:Mine", anything: 1}]}
---
{track: tensorboard}
---
{track: "tensorboard:seeds=each+mlflow:uri=http://127.0.0.1:5000"}
---
{track: [wandb, {name: mlflow, uri: "http://127.0.0.1:5000"}]}
---
{seeds: [3, 5], evaluate_every: epoch, evaluate_samples: null, iterations: none, compile: false, epochs: null}
---
{seeds: 3-5-7, optimizer: "sgd:lr=0.1,momentum=0.9", strategies: "cwr*:trunk=always+si"}
"""
INVALID = """
{benchmarks: split-mnist}
---
{benchmark: split-mnst}
---
{benchmark: "split-mnist:scenario=tasks"}
---
{benchmark: "split-mnist:scenaro=task"}
---
{benchmark: {name: split-mnist, scenario: tasks}}
---
{benchmark: {scenario: task}}
---
{benchmark: {sequence: [split-mnist]}}
---
{benchmark: {sequence: [split-mnist, permuted-mnist]}}
---
{strategies: "ewc:strength"}
---
{strategies: "ewc+"}
---
{strategies: "ewc:strength=high"}
---
{strategies: {name: ewc, strength: -1}}
---
{strategies: [["ewc", ["replay"]]]}
---
{strategies: [{name: ewc, strenght: 3}]}
---
{model: 5}
---
{model: "mlp:layers=a-b"}
---
{track: tensorbord}
---
{track: {name: tensorboard, seeds: all}}
---
{epochs: 0}
---
{epochs: 1.5}
---
{epochs: true}
---
{precision: float16}
---
{seeds_as: maps}
---
{train_samples: -1}
"""


@pytest.mark.parametrize("text", VALID.split("---"))
def test_what_a_run_may_be_is_taken(text: str) -> None:
    run = yaml.safe_load(text)
    assert takes(run), list(VALIDATOR.iter_errors(run))
    if "my_file" not in text and "avalanche" not in text:
        config.plan(run)


@pytest.mark.parametrize("text", INVALID.split("---"))
def test_what_is_no_run_is_refused_by_both(text: str) -> None:
    run = yaml.safe_load(text)
    assert not takes(run)
    with pytest.raises(Mistake):
        config.plan(run)


# ---- the same as the parser


def plain() -> st.SearchStrategy[Any]:
    """Values as YAML has them."""
    number = st.one_of(
        st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.5, -0.5, 3.0, 1e6]), st.integers(-(2**40), 2**40)
    )
    words = st.sampled_from(
        ["none", "auto", "true", "false", "epoch", "class", "seed", "natural", "word", "mean", "sum"]
    )
    return st.one_of(number, st.booleans(), words, st.none(), st.lists(number, max_size=3))


def suited(option: Option) -> st.SearchStrategy[Any]:
    """Any value, or one of the option's own words, or its default."""
    known = [option.default, *option.words]
    return st.one_of(plain(), st.sampled_from([list(one) if isinstance(one, tuple) else one for one in known]))


def parsed(option: Option, value: Any) -> bool:
    try:
        option.read("it", value)
    except BadOption:
        return False
    return True


def lax(option: Option, value: Any) -> bool:
    """Whether the parser takes a value that the schema wants in another form: 0 and 1 for a truth value, or as text."""
    numbers = value if isinstance(value, list) else [value]
    hints = typing.get_args(option.hint) or (option.hint,)
    return bool in hints and any(isinstance(one, int | float | str) and not isinstance(one, bool) for one in numbers)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_an_option_in_a_mapping_is_taken_as_the_parser_takes_it(data: st.DataObject) -> None:
    kind, name = data.draw(st.sampled_from(CLASSES))
    options = options_of(plugins.find(kind, name))
    assume(options)
    option = options[data.draw(st.sampled_from(sorted(options)))]
    value = data.draw(suited(option))
    run = {KEY[kind]: {"name": name, option.name: value}}
    if takes(run):
        assert parsed(option, value), (name, option.name, value)
    elif not lax(option, value):
        assert not parsed(option, value), (name, option.name, value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_an_option_of_training_is_taken_as_the_parser_takes_it(data: st.DataObject) -> None:
    option = options_of(Training)[data.draw(st.sampled_from(sorted(options_of(Training))))]
    value = data.draw(suited(option))
    assume(value is not None)  # which says nothing
    if takes({option.name: value}):
        assert parsed(option, value), (option.name, value)
    elif not lax(option, value):
        assert not parsed(option, value), (option.name, value)


def text_of(option: Option, value: Any) -> str | None:
    """A value as a command line has it, where it has one that the range does not decide on."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    written = config.written(option, value)
    return written.lower() if isinstance(value, bool) else written


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_text_is_taken_where_the_parser_takes_it(data: st.DataObject) -> None:
    kind, name = data.draw(st.sampled_from(CLASSES))
    options = options_of(plugins.find(kind, name))
    assume(options)
    chosen = data.draw(st.lists(st.sampled_from(sorted(options)), unique=True, min_size=1, max_size=3))
    pairs, good = [], True
    for each in chosen:
        value = data.draw(suited(options[each]))
        text = text_of(options[each], value)
        assume(text and "," not in text)
        pairs.append(f"{each}={text}")
        good = good and parsed(options[each], text)
    whole = f"{name}:{','.join(pairs)}"
    if good:
        assume(not any(lax(options[each], pair.partition("=")[2]) for each, pair in zip(chosen, pairs, strict=True)
                       if pair.partition("=")[2] not in ("true", "false")))  # fmt: skip
        assert takes({KEY[kind]: whole}), whole
    elif takes({KEY[kind]: whole}):
        # a pattern knows no range but a sign
        assert any(option.limits or option.is_list for option in (options[each] for each in chosen)), whole


@pytest.mark.parametrize(("kind", "name"), CLASSES)
def test_the_text_of_every_default_is_taken(kind: str, name: str) -> None:
    made = plugins.find(kind, name)()
    pairs = [f"{each}={text_of(options_of(type(made))[each], value)}" for each, value in made.values().items()]
    assert takes({KEY[kind]: f"{name}:{','.join(pairs)}" if pairs else name})
    assert not takes({KEY[kind]: f"{name}:nonsense=1"})


def test_the_file_of_the_page_is_a_run_that_the_schema_takes() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "run-files.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    run = yaml.safe_load(text)
    assert takes(run) and len(config.plan(run).strategies) == len(run["strategies"]) == 3
