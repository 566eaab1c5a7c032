"""The command line: what it prints and stores, what it refuses and how; and Python's way to the same numbers."""

from __future__ import annotations

import csv
import dataclasses
import gc
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import continual as cl
from continual import config, parts, plugins, progress, repeat, runner
from continual.cli import FORMATS, KINDS, main
from continual.flags import OF_THE_BENCHMARK
from continual.options import options_of
from continual.progress import Progress
from continual.results import content, metrics, store

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ("--seeds", "2", "--epochs", "1", "--seeds-as", "map")  # a choice by the clock may differ in rounding
SMALL = ("split-digits:limit=10", "finetune", "ewc:strength=600", *TINY)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, (result.output, result.exception)
    return result


class Stored(NamedTuple):
    """A finished run: where it lies and what was said."""

    out: Path
    said: Result


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    out = tmp_path_factory.mktemp("results") / "runs"
    return Stored(out, succeeded(invoke("run", *SMALL, "--quiet", "--out", out)))


@pytest.fixture
def copy(stored: Stored, tmp_path: Path) -> Path:
    """A copy of the results folder that a test may change."""
    return Path(shutil.copytree(stored.out, tmp_path / "runs"))


def stamps(out: Path) -> dict[str, int]:
    """When each stored file was written."""
    return {str(file.relative_to(out)): file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}


# ---- run


def test_a_run_prints_its_table_and_says_where_it_is_stored(stored: Stored) -> None:
    lines = stored.said.stdout.splitlines()
    assert any(line.startswith("finetune ") for line in lines) and any(line.startswith("ewc:") for line in lines)
    assert "2 seeds" in stored.said.stdout and "limit 10" in stored.said.stdout and stored.said.stderr == ""
    (folder,) = stored.out.iterdir()
    assert f"Stored in {folder}." in stored.said.stdout
    assert sorted(path.parent.name[:4] for path in folder.rglob("run.json")) == ["ewc-", "fine"]
    assert not list(stored.out.rglob(".*"))


@pytest.mark.parametrize("more", [(), ("--deterministic", "--threads", "1")])
def test_what_is_proposed_next_can_be_typed(copy: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(runner, "run_plan", lambda plan, **rest: done.append(plan) or store.find(copy))
    said = invoke("run", *SMALL, *more, "--out", copy).stdout
    proposed = [line.strip().split() for line in said.splitlines() if line.startswith("  continual ")]
    assert [line[1] for line in proposed] == ["show", "run", "report", "list"]
    for line in proposed:
        succeeded(invoke(*line[1:]))
    assert len(done) == 2 and len(done[1].strategies) == 2
    assert done[0].training == done[1].training and done[1].training.deterministic == bool(more)


COMMAS = """
from dataclasses import dataclass
import continual as cl

@dataclass(frozen=True)
class Commas(cl.Strategy):
    'Nothing.'
    word: str = cl.option("", "a text")
"""


def test_what_cannot_be_typed_is_not_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text with the grammar's own signs in it: it was run and stored, and that it cannot be typed is no mistake."""
    (tmp_path / "commas.py").write_text(COMMAS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "benchmark: split-digits:limit=5\nstrategies: {name: 'commas:Commas', word: 'a,b'}"
    )
    said = succeeded(invoke("run", tmp_path / "run.yaml", *TINY, "--out", tmp_path / "runs")).stdout
    assert "\n  continual show" in said
    succeeded(invoke("report", tmp_path / "runs"))
    assert "cannot be typed; it is run from a file" in (tmp_path / "runs" / "report.html").read_text()


def test_of_one_task_no_other_strategy_is_proposed(tmp_path: Path) -> None:
    said = succeeded(invoke("run", "split-digits:tasks=1", "finetune", *TINY, "--out", tmp_path)).stdout
    assert "\n  continual show" in said and "\n  continual run" not in said


def test_the_second_time_it_is_recognised_and_not_run_again(copy: Path, stored: Stored) -> None:
    before = stamps(copy)
    said = succeeded(invoke("run", *SMALL, "--quiet", "--out", copy))
    assert said.stderr.count("already there, not run again (--again runs it)") == 2
    assert stamps(copy) == before
    assert said.stdout.splitlines()[:6] == stored.said.stdout.splitlines()[:6]


@pytest.mark.parametrize("spelling", [
    ("split-digits:limit=10,tasks=5", "ewc:strength=6e2,half=true", "--seeds", "0-1", "--epochs", "1"),
    ("split-digits:limit=10", "continual.strategies.ewc:EWC:strength=600", *TINY, "--optimizer", "adam:lr=1e-3"),
    ("split-digits", "ewc:strength=600", *TINY, "--limit", "10"),
    ("split-digits:tasks=5,limit=3", "ewc:strength=600", *TINY, "--limit", "10"),
])  # fmt: skip
def test_the_same_in_other_words_is_recognised(copy: Path, spelling: tuple[str, ...]) -> None:
    said = succeeded(invoke("run", *spelling, "--out", copy))
    assert "already there" in said.stderr and len(list(copy.rglob("run.json"))) == 2


def test_again_repeats_with_the_same_numbers(copy: Path) -> None:
    before, old = stamps(copy), store.find(copy)
    said = succeeded(invoke("run", *SMALL, "--quiet", "--again", "--out", copy))
    after = stamps(copy)
    assert "already" not in said.stderr and after.keys() == before.keys() and not after.items() & before.items()
    for one, other in zip(old, store.find(copy), strict=True):
        assert one.name == other.name and np.array_equal(one.accuracy, other.accuracy)
        assert np.array_equal(one.arrays["loss"], other.arrays["loss"])


def test_a_changed_option_is_another_run(copy: Path) -> None:
    succeeded(invoke("run", "split-digits:limit=10", "ewc:strength=601", *TINY, "--quiet", "--out", copy))
    assert len(list(copy.rglob("run.json"))) == 3 and len(list(copy.iterdir())) == 1
    succeeded(invoke("run", "split-digits:limit=10", "finetune", *TINY, "--batch", 7, "--quiet", "--out", copy))
    assert len(list(copy.rglob("run.json"))) == 4 and len(list(copy.iterdir())) == 2


def test_json_holds_the_metrics(copy: Path) -> None:
    said = succeeded(invoke("run", *SMALL, "--json", "--out", copy))
    text = json.dumps(json.loads(said.stdout))
    assert "average-accuracy" in text and "forgetting" in text and "ewc" in text
    assert json.loads(said.stdout) == json.loads(invoke("show", copy, "--format", "json").stdout)


def test_a_file_and_other_strategies(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("benchmark: {name: split-digits, limit: 10}\nstrategies: [finetune]\nseeds: 2\nepochs: 1\n")
    assert "finetune: already there" in succeeded(invoke("run", file, "--out", copy)).stderr
    both = succeeded(invoke("run", file, "ewc:strength=600", "--out", copy)).stderr
    assert "ewc" in both and "finetune" not in both


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, stored: Stored) -> list[config.Plan]:
    """The plans that were to be done, of which none is."""
    found: list[config.Plan] = []
    monkeypatch.setattr(runner, "run_plan", lambda plan, **rest: found.append(plan) or store.find(stored.out))
    return found


SEQUENCE = "{sequence: [split-digits, split-mnist], limit: 3, size: 16}"


@pytest.mark.parametrize(("file", "flags", "wanted"), [
    ("{name: split-digits, limit: 3, tasks: 2}", "--limit 7", {"limit": 7, "tasks": 2}),
    ("split-mnist", "--limit 7 --test-limit 9", {"limit": 7, "test_limit": 9}),
    ("'split-digits:limit=3,test_limit=4'", "--limit none", {"limit": None, "test_limit": 4}),
    (SEQUENCE, "--limit 7 --test-limit 9", {"limit": 7, "test_limit": 9, "size": 16}),
    (SEQUENCE, "", {"limit": 3, "test_limit": None, "size": 16}),
])  # fmt: skip
def test_the_flag_of_a_benchmarks_option_replaces_what_a_file_says(
    tmp_path: Path, planned: list[config.Plan], file: str, flags: str, wanted: dict[str, object]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"benchmark: {file}\nstrategies: [ewc]\n")
    succeeded(invoke("run", tmp_path / "mine.yaml", *flags.split()))
    (plan,) = planned
    assert plan.benchmark.values().items() >= wanted.items() and plan.strategies == (cl.strategies.EWC(),)


def test_the_main_job_can_be_limited_and_is_repeated_by_the_benchmarks_option(planned: list[config.Plan]) -> None:
    succeeded(invoke("run", "--limit", 7))
    (plan,) = planned
    assert plan.benchmark == cl.benchmarks.SplitDigits(limit=7)
    assert dataclasses.replace(plan, benchmark=cl.benchmarks.SplitDigits()) == config.plan({})
    assert repeat.command(plan)[0] == "split-digits:limit=7" and "--limit" not in repeat.command(plan)


def test_only_the_test_rows_that_are_asked_for_are_evaluated(tmp_path: Path) -> None:
    asked = ("run", "split-digits:limit=20", "finetune", *TINY, "--evaluate-every", 1, "--test-limit", 1)
    succeeded(invoke(*asked, "--out", tmp_path))
    (result,) = store.find(tmp_path)
    assert set(np.unique(result.accuracy)) <= {0, 0.5, 1} and result.trace is not None
    assert set(np.unique(result.trace[~np.isnan(result.trace)])) <= {0, 0.5, 1}
    assert result.record["protocol"]["benchmark"]["test_limit"] == 1


def test_what_has_a_flag_of_the_benchmark_is_said_once_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("benchmark: split-digits\nlimit: 3\n")
    said = invoke("run", file)
    assert said.exit_code == 2 and "no option 'limit', but its benchmark has" in said.stderr
    assert "NAME:limit=VALUE" in said.stderr


def test_a_run_is_known_again_whatever_its_title_was(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"seeds": 1, "epochs": 1, "augment": "images:flip=true"}
    found = cl.run("split-digits:limit=5", "ewc:half=false", **asked)
    assert found.name == "ewc:half=false" and "(flip true, replayed true)" in content.heading(found.record)
    store.save(store.Result(found.record | {"title": "ewc:half=False"}, found.arrays), tmp_path)
    assert cl.run("split-digits:limit=5", "ewc:half=false", **asked, out=tmp_path).name == "ewc:half=False"


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_what_is_told_begins_a_line_of_its_own_where_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, progress: Progress, **__: object) -> None:
        progress.begin("finetune", 0, 1, 5, 32)
        progress.say("this is told")
        progress.step(0, 0, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_plan", interrupted)
    for quiet in ([], ["--quiet"]):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        with pytest.raises(SystemExit) as end:
            main(["run", "split-digits", *quiet])
        told = terminal.getvalue()
        assert end.value.code == 130
        if quiet:
            assert told.startswith("this is told\ncontinual: interrupted; ")
        else:
            assert "\rthis is told\n" in told and re.search(r"finetune: .*\ncontinual: interrupted; ", told)


@pytest.mark.parametrize(("pause", "lines"), [(25.0, ["3 of 8 after 75 s", "6 of 8 after 150 s"]), (7.0, [])])
def test_what_takes_long_is_shown_once_a_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, pause: float, lines: list[str]
) -> None:
    clock = itertools.count(1000.0, pause)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    assert list(progress.waited(iter("abcdefgh"), 8, "decoding it")) == list("abcdefgh")
    assert file.getvalue() == "".join(f"decoding it: {line}\n" for line in lines)
    monkeypatch.setattr(sys, "stderr", None)  # as where a program has no console
    assert list(progress.waited(iter("abcdefgh"), 8, "decoding it")) == list("abcdefgh")


@pytest.mark.parametrize("terminal", [False, True])
def test_what_takes_long_is_shown_unless_it_is_to_be_quiet(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    def decode(*_: object, **__: object) -> None:
        assert list(progress.waited(range(3), 3, "decoding it")) == [0, 1, 2]
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "BETWEEN", 0.0)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(runner, "run_plan", decode)
    for quiet in ([], ["--quiet"]):
        monkeypatch.setattr(sys, "stderr", file := Terminal() if terminal else io.StringIO())
        with pytest.raises(SystemExit):
            main(["run", "split-digits", *quiet])
        told = file.getvalue()
        assert ("\rdecoding it: " in told) == (terminal and not quiet)
        assert ("decoding it: 2 of 3 after 0 s\n" in told) == (not terminal and not quiet)


BARE = """
    from dataclasses import dataclass
    from continual.options import Configured, option

    @dataclass(frozen=True)
    class Bare(Configured):
        '''It cannot be limited.'''

        shade: int = option(0, "of grey")

        def stream(self, seed, root=None):
            raise AssertionError
"""


def test_a_benchmark_without_that_option_is_told_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare_one.py").write_text(textwrap.dedent(BARE))
    monkeypatch.syspath_prepend(str(tmp_path))
    said = invoke("run", "bare_one:Bare", "--limit", 3, "--out", tmp_path / "runs")
    assert said.exit_code == 2
    assert said.stderr.startswith("continual: bare_one:Bare has no option 'limit' (it has shade); it is an option of ")


def test_mnist_from_its_published_files(data_root: Path, tmp_path: Path) -> None:
    arguments = ("run", "split-mnist:limit=20", "ewc", *TINY, "--model", "mlp:layers=20", "--data", data_root,
                 "--out", tmp_path / "runs", "--json")  # fmt: skip
    assert "split-mnist" in succeeded(invoke(*arguments)).stdout
    assert (data_root / "packed" / "mnist" / "original.safetensors").is_file()


def test_an_interrupt_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_plan", interrupted)
    said = invoke("run", *SMALL, "--out", tmp_path)
    assert said.exit_code == 130 and said.stderr == (
        "continual: interrupted; runs that were finished are stored, and the same command goes on\n"
    )


def test_a_seed_that_diverges_is_named_and_the_table_says_so(tmp_path: Path) -> None:
    """The exit status is 0: the other strategies of the plan, and other seeds, have their results."""
    wild = ("run", "split-digits:limit=10", "finetune", *TINY, "--optimizer", "sgd:lr=1e30", "--out", tmp_path)
    said = succeeded(invoke(*wild))
    for seed in (0, 1):
        assert f"finetune: seed {seed} was stopped: answers not finite at task 1, step 1" in said.stderr
    assert "seeds 0 and 1 of finetune were stopped: answers not finite at task 1, step 1" in said.stdout
    row = next(line for line in said.stdout.splitlines() if line.startswith("finetune "))
    assert row.split()[1:] == ["–"] * 4
    (run,) = store.find(tmp_path)
    assert np.isfinite(run.accuracy[:, :1]).all() and np.isnan(run.accuracy[:, 1:]).all()
    assert [(one["seed"], one["task"], one["step"]) for one in run.record["stopped"]] == [(0, 1, 1), (1, 1, 1)]


def test_where_every_seed_diverges_nothing_is_said_of_others(tmp_path: Path) -> None:
    wild = ("run", "split-digits:limit=10", "finetune", *TINY, "--optimizer", "sgd:lr=1e30", "--out", tmp_path)
    said = succeeded(invoke(*wild))
    assert "the other seeds went on" not in said.stderr
    assert "no seed has a value." in said.stdout and "mean" not in said.stdout


# ---- show


@pytest.mark.parametrize("style", FORMATS)
def test_show_in_every_format(stored: Stored, style: str) -> None:
    text = succeeded(invoke("show", stored.out, "--format", style)).stdout
    assert "finetune" in text and "ewc" in text
    if style == "json":
        json.loads(text)
    if style == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert len(rows) > 2 and len({len(row) for row in rows if row}) == 1
    if style == "latex":
        assert r"\begin{tabular}" in text and r"\end{tabular}" in text
    if style == "markdown":
        assert any(line.startswith("|") and "---" in line for line in text.splitlines())


def test_show_one_run_an_experiment_and_everything(stored: Stored) -> None:
    (experiment,) = stored.out.iterdir()
    everything = succeeded(invoke("show", stored.out)).stdout
    assert succeeded(invoke("show", experiment)).stdout == everything
    ewc = next(experiment.glob("ewc-*"))
    assert "finetune" not in succeeded(invoke("show", ewc)).stdout


def test_show_metrics_and_errors(stored: Stored) -> None:
    chosen = ("--metrics", "forgetting, average-accuracy", "--format", "csv")
    text = succeeded(invoke("show", stored.out, *chosen)).stdout
    assert "forgetting" in text and "learning-accuracy" not in text
    assert "remembering" in succeeded(invoke("show", stored.out, "--metrics", "all", "--format", "csv")).stdout
    assert "standard error" in succeeded(invoke("show", stored.out, "--error", "se")).stdout


def test_show_the_matrix(stored: Stored) -> None:
    text = succeeded(invoke("show", stored.out, "--matrix")).stdout
    assert text.count("untrained") == 2
    rows = [line.split() for line in text.splitlines() if line.startswith("task 5 ")]
    accuracy = {run.name: run.accuracy for run in store.find(stored.out)}
    assert [float(cell) for cell in rows[0][2:]] == [
        pytest.approx(100 * value, abs=0.006) for value in accuracy["finetune"].mean(0)[-1]
    ]


# ---- list


@pytest.mark.parametrize("kind", KINDS)
def test_list_a_kind(kind: str) -> None:
    cards = json.loads(succeeded(invoke("list", kind, "--json")).stdout)[kind]
    text = " ".join(succeeded(invoke("list", kind)).stdout.split())
    assert cards
    for card in cards:
        assert f" {card['name']} {' '.join(card['meaning'].split())} " in f"{text} "
        assert card["meaning"].strip().endswith(".") or kind in ("metrics", "tables")
        for known in card["options"]:
            assert known["meaning"] and f" {known['name']}: {known['type']} = " in text


def test_what_is_listed_as_a_default_can_be_given(tmp_path: Path) -> None:
    for kind in plugins.KINDS:
        for card in json.loads(invoke("list", kind, "--json").stdout)[kind]:
            made = plugins.find(kind, card["name"]).read({one["name"]: one["default"] for one in card["options"]})
            assert made == plugins.find(kind, card["name"])()


def test_list_everything() -> None:
    text, listed = succeeded(invoke("list")).stdout, json.loads(invoke("list", "--json").stdout)
    assert list(listed) == list(KINDS)
    assert all(f"\n  {card['name']} " in text for cards in listed.values() for card in cards)


def test_what_is_named_nothing_is_told_the_kinds_and_not_every_name() -> None:
    said = invoke("list", "xyzzy")
    assert said.exit_code == 2 and said.stderr == (
        f"continual: nothing is named 'xyzzy' (continual list KIND lists what there is of a kind: "
        f"{', '.join(sorted(KINDS))})\n"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_alone_says_of_what_kind_it_is(kind: str) -> None:
    """Of the same name in two kinds, the first; what is named so is shown, and nothing else."""
    for card in json.loads(invoke("list", kind, "--json").stdout)[kind][:3]:
        assert card["name"] in succeeded(invoke("list", card["name"])).stdout
        if kind not in plugins.KINDS:
            assert json.loads(invoke("list", card["name"], "--json").stdout) == {kind: [card]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_for_a_terminal_has_no_markup(kind: str) -> None:
    assert "``" not in invoke("list", kind).stdout


def test_help_names_every_option_of_training() -> None:
    from continual.learning.training import Training

    text = succeeded(invoke("run", "--help")).stdout
    for name in (*options_of(Training), *OF_THE_BENCHMARK):
        assert f"--{name.replace('_', '-')} " in text
    assert {"run", "list", "show", "check"} <= set(succeeded(invoke("-h")).stdout.split())
    assert cl.__version__ in succeeded(invoke("--version")).stdout


# ---- check

FAULTY = """
    from dataclasses import dataclass
    import continual as cl

    @dataclass(frozen=True)
    class Faulty(cl.Strategy):
        '''It looks at values in a step.'''

        def penalty(self, net, theta, memory, batch, out, task):
            return theta.square().sum() if float(theta.detach().sum()) > 1e9 else 0 * theta.sum()
"""


def test_check_a_good_strategy() -> None:
    text = succeeded(invoke("check", "ewc+replay:capacity=20")).stdout
    assert {line.split()[0] for line in text.splitlines()} == {"ok"}


def test_check_a_faulty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_one.py").write_text(textwrap.dedent(FAULTY))
    monkeypatch.syspath_prepend(str(tmp_path))
    said = invoke("check", "faulty_one:Faulty")
    assert said.exit_code == 2 and isinstance(said.exception, SystemExit)
    failed = [line for line in said.stdout.splitlines() if line.startswith("FAILED")]
    assert any("asks the device for nothing" in line for line in failed)
    assert said.stderr == f"continual: faulty_one:Faulty fails {len(failed)} of the checks above\n"


# ---- mistakes: (what is typed, what the message says)

MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "command": (
        "rn",
        (
            "no command is named 'rn'; did you mean 'run'?",
            "check, compare, completion, list, report, reproduce, run, schema, show",
        ),
    ),
    "benchmark": ("run split-digit", ("no benchmark is named 'split-digit'; did you mean 'split-digits'?",)),
    "strategy as benchmark": ("run ewc", ("no benchmark is named 'ewc'", "split-digits")),
    "strategy": ("run split-digits ewk", ("no strategy is named 'ewk'; did you mean 'ewc'?", "shared-trunk")),
    "strategy in a chain": ("run split-digits ewc+repley", ("'repley'; did you mean 'replay'?",)),
    "benchmark as strategy": ("run split-digits split-digits", ("no strategy is named 'split-digits'",)),
    "path": ("run split-digits no_such.mine:Mine", ("'no_such.mine:Mine'", "No module named 'no_such'")),
    "path to no class": ("run split-digits json:dumps", ("json:dumps", "not a class with options")),
    "relative path": ("run split-digits .mine:Mine", (".mine:Mine",)),
    "option": ("run split-digits ewc:strenght=3", ("no option 'strenght'; did you mean 'strength'?", "decay")),
    "benchmark option": ("run split-digits:task=2", ("no option 'task'; did you mean 'tasks'?",)),
    "no options at all": ("run split-digits finetune:x=1", ("finetune has no option 'x'", "it has none")),
    "option without value": ("run split-digits ewc:strength", ("ewc:strength",)),
    "option twice": ("run split-digits ewc:half=no,half=no", ("half is given twice",)),
    "no number": ("run split-digits ewc:strength=x", ("strength was given 'x'", "float >= 0")),
    "not finite": ("run split-digits ewc:strength=inf", ("strength was given 'inf'", "float >= 0")),
    "too small": ("run split-digits ewc:strength=-1", ("strength was given '-1'", "float >= 0")),
    "not whole": ("run split-digits replay:capacity=1.5", ("capacity was given '1.5'", "int >= 1")),
    "no truth": ("run split-digits ewc:half=maybe", ("half was given 'maybe'", "bool")),
    "choice": ("run split-digits:scenario=clas", ("given 'clas'", "task|domain|class; did you mean 'class'?")),
    "list of numbers": ("run split-digits --model mlp:layers=a-b", ("layers was given 'a-b'", "joined by '-'")),
    "model": ("run split-digits --model mpl", ("no model is named 'mpl'; did you mean 'mlp'?",)),
    "a word of an option": ("run --model resnet50", ("no model is named 'resnet50'; write torchvision:arch=resnet50",)),
    "a word, of it": (
        "run --model torchvision:vit_b_16",
        ("'torchvision:vit_b_16': write torchvision:arch=vit_b_16;",),
    ),
    "no option": ("run --model torchvision:vit", ("write torchvision:OPTION=VALUE (it has arch, norm, ",)),
    "an option of another": ("run --model resnet18:weights=new", ("width); it is an option of torchvision",)),
    "optimizer": ("run split-digits --optimizer adm", ("no optimizer is named 'adm'; did you mean 'adam'?", "sgd")),
    "schedule": ("run split-digits --schedule cosin", ("no schedule is named 'cosin'; did you mean 'cosine'?",)),
    "rate": ("run split-digits --optimizer adam:lr=-1", ("lr was given '-1'", "float >= 0")),
    "kind of model": ("run split-digits --model continual.strategies:EWC", ("EWC",)),
    "kind of optimizer": ("run split-digits --optimizer continual.strategies:EWC", ("EWC",)),
    "kind of schedule": ("run split-digits --schedule continual.strategies:EWC", ("EWC",)),
    "kind of benchmark": ("run continual.strategies:EWC", ("EWC is not a benchmark",)),
    "kind of strategy": ("run split-digits continual.benchmarks:SplitDigits", ("SplitDigits is not a strategy",)),
    "chain": ("run split-digits shared-trunk+shared-trunk", ("cannot be chained", "'loss'")),
    "chain of rows": ("run split-digits joint+joint", ("cannot be chained", "'rows'")),
    "chain with a gap": ("run split-digits ewc++replay", ("ewc+",)),
    "tasks": ("run split-digits:tasks=11", ("10 classes", "11 tasks", "10 tasks or fewer")),
    "class order": ("run split-digits:order=1-2-3", ("class order 1-2-3", "10 classes 0 to 9")),
    "no seeds": ("run split-digits --seeds 0", ("seeds=0", "at least one")),
    "a seed twice": ("run split-digits --seeds 3-3", ("seeds", "3", "each once")),
    "empty seeds": ("run split-digits --seeds -", ("seeds was given '-'", "int|ints joined by '-'")),
    "large seed": ("run split-digits --seeds 2147483648-", ("below 2147483648",)),
    "far too many seeds": ("run split-digits --seeds 9000000000000000000", ("9000000000000000000",)),
    "epochs": ("run split-digits --epochs 0", ("epochs was given '0'", "int >= 1")),
    "precision": ("run split-digits --precision float16", ("given 'float16'", "float32|tf32|bfloat16|float64")),
    "two names": ("list ewc replay", ("takes a KIND and a NAME, and 'ewc' is no kind", "strategies")),
    "device": ("run split-digits --device tpu", ("device 'tpu'", "cpu, cuda, cuda:N or auto")),
    "device number": ("run split-digits --device cuda:99", ("device 'cuda:99'", "GPUs here")),
    "out is a file": ("run split-digits finetune --out FILE", ("cannot write into the folder FILE",)),
    "out under a file": ("run split-digits finetune --out FILE/runs", ("cannot write into the folder FILE/runs",)),
    "data is a file": ("run split-digits --data FILE", ("data root FILE is no folder", "--data")),
    "data under a file": ("run split-digits --data FILE/x", ("FILE/x/packed/digits cannot be written", "--data")),
    "damaged data": ("run split-digits --data DAMAGED", ("DAMAGED/packed/digits/original.safetensors",)),
    "yaml: a list": ("run list.yaml", ("list.yaml: it takes a mapping of names",)),
    "yaml: none": ("run broken.yaml", ("broken.yaml is not YAML", "line 2")),
    "yaml: key": ("run key.yaml", ("no option 'batchs'; did you mean 'batch'?",)),
    "yaml: missing": ("run missing.yaml", ("missing.yaml cannot be read",)),
    "yaml: second": ("run split-digits key.yaml", ("'key.yaml'",)),
    "show: no folder": ("show missing", ("no folder missing", "--out")),
    "show: empty folder": ("show EMPTY", ("EMPTY holds no runs",)),
    "show: a file": ("show FILE", ("FILE",)),
    "show: format": ("show RUNS --format tabel", ("'tabel'", "'table', 'markdown', 'latex', 'csv', 'json'")),
    "show: metric": ("show RUNS --metrics forgeting", ("'forgeting'; did you mean 'forgetting'?",)),
    "show: no trace": ("show RUNS --metrics minimum-accuracy", ("minimum-accuracy needs",)),
    "show: error": ("show RUNS --error sem", ("'sem'", "'sd', 'se', 'ci95'")),
    "list": ("list strategy", ("nothing is named 'strategy'; did you mean 'strategies'", "benchmarks")),
    "list: a name": ("list reply", ("nothing is named 'reply'; did you mean 'replay'?",)),
    "list: a path": ("list my_mine:Mine", ("continual list KIND my_mine:Mine", "strategies")),
    "list: several are near": ("list split-cifar", ("did you mean 'split-cifar10', 'split-cifar100' or 'split-",)),
    "list: a metric": ("list forgeting", ("did you mean 'forgetting'",)),
    "check": ("check ewk", ("no strategy is named 'ewk'; did you mean 'ewc'?",)),
    "check option": ("check ewc:decay=2", ("decay was given '2'", "<= 1")),
}


@pytest.fixture
def bench(tmp_path: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the mistakes are made with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("a file")
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "RUNS").symlink_to(stored.out)
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("epochs: [1\n")
    (tmp_path / "key.yaml").write_text("benchmark: split-digits\nbatchs: 3\n")
    packed = tmp_path / "DAMAGED" / "packed" / "digits" / "original.safetensors"
    packed.parent.mkdir(parents=True)
    content = bytearray(
        (Path(os.environ["CONTINUAL_DATA"]) / "packed" / "digits" / "original.safetensors").read_bytes()
    )
    content[-100] ^= 1
    packed.write_bytes(content)
    return tmp_path


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_message(bench: Path, mistake: str) -> None:
    typed, told = MISTAKES[mistake]
    arguments = typed.split()
    out = [] if arguments[0] != "run" or "--out" in arguments else ["--out", "OUT"]
    if "cuda:99" in arguments and torch.cuda.device_count() > 99:
        pytest.skip("there is such a GPU")
    before = everything(bench)
    said = invoke(*arguments, *out)
    assert isinstance(said.exception, SystemExit) and said.exit_code == 2, (said.exception, said.output)
    assert said.stderr.startswith("continual: ") and said.stderr.count("continual: ") == 1
    for part in told:
        assert part in said.stderr
    assert said.stdout == "" and "Traceback" not in said.stderr and " at 0x" not in said.stderr
    assert everything(bench) == before


@pytest.mark.parametrize(("typed", "told"), [
    ("--batch 0", "--batch was given '0'; it takes int >= 1"),
    ("--limit 0", "--limit was given '0'; it takes int|none >= 1"),
    ("--test-limit 0 --limit 3", "--test-limit was given '0'; it takes int|none >= 1"),
    ("--seeds 0", "--seeds=0: give at least one, each once, below 2147483648"),
    ("--seeds 4-4", "--seeds=4-4: give at least one, each once, below 2147483648"),
    ("--iterations 3", "epochs=2 and --iterations=3: give one of the two"),
    ("--evaluate-precision training", "--evaluate-precision=training does nothing with precision=float32, which is full"
     "; leave it out"),
    ("--epochs 3 bad.yaml", "no strategy is named 'bad.yaml'"),
    ("--epochs 3 --optimizer adam:lr=-1", "adam: option lr was given '-1'; it takes float >= 0"),
    ("--seeds 3 --track tensorboard:seeds=0", "tensorboard: option seeds was given '0'; it takes mean|each|both"),
    ("--batch 3 flagged_one:Mine:batch=0", "flagged_one:Mine: option batch was given '0'; it takes int >= 1"),
    ("--batch 3 flagged_one:Mine:batch=", "'flagged_one:Mine:batch=': 'batch=' is not option=value"),
])  # fmt: skip
def test_a_mistake_in_a_flag_names_the_flag_and_others_what_they_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flagged_one", raising=False)  # each case writes it anew
    (tmp_path / "flagged_one.py").write_text(
        "from dataclasses import dataclass\nimport continual as cl\n\n@dataclass(frozen=True)\n"
        "class Mine(cl.Strategy):\n    batch: int = cl.option(1, 'rows', ge=1)\n"
    )
    (tmp_path / "given.yaml").write_text("benchmark: split-digits\nepochs: 2\n")
    said = invoke("run", "given.yaml", *typed.split())
    assert said.exit_code == 2 and said.stderr.startswith(f"continual: {told}"), said.stderr


def test_a_mistake_in_a_file_names_what_stands_there(tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_text("benchmark: {name: split-digits, limit: 0}\nbatch: 0\n")
    said = [invoke("run", tmp_path / "given.yaml", *more).stderr for more in (["--epochs", 2], ["--limit", 2])]
    assert said == [
        "continual: split-digits: option limit was given 0; it takes int|none >= 1\n",
        "continual: a run: option batch was given 0; it takes int >= 1\n",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    said = invoke("run", "split-digits", "--device", "cuda", "--out", tmp_path / "runs")
    assert said.exit_code == 2 and not (tmp_path / "runs").exists()
    assert said.stderr == "continual: device 'cuda': PyTorch finds 0 GPUs here; use cpu or auto\n"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("run split-digits --nosuch", "No such option"),
        ("run split-digits --seeds", "requires an argument"),
        ("show", "Missing argument 'DIR'"),
        ("check", "Missing argument 'STRATEGY'"),
        ("list strategies ewc models", "unexpected extra argument"),
        ("--nosuch", "No such option"),
    ],
)
def test_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    said = invoke(*typed.split())
    assert said.exit_code == 2 and told.lower() in said.stderr.lower() and "Traceback" not in said.output
    assert said.stderr.startswith("continual: ") and said.stderr.endswith("--help says what there is\n")
    assert said.stdout == "" and not list(tmp_path.iterdir())


WORDS = st.one_of(
    st.sampled_from([
        "run", "list", "show", "check", "split-digits", "ewc", "finetune", "replay:capacity=", "ewc+replay", "joint",
        "ewc:strength=1e+5", "--seeds", "--epochs", "--model", "mlp:layers=", "--optimizer", "adam:", "--json", "--out",
        "--format", "json", "--metrics", "--device", "cpu", "-1", "0", "3-5", "--help", "--", "-", "models", "+",
    ]),
    st.text("ewc:=,+-.0/é\n", max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.lists(WORDS, max_size=6), command=st.sampled_from([[], ["run"], ["run", "split-digits"], ["show"]]))
def test_no_arguments_give_a_traceback(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results = store.find(stored.out)
    monkeypatch.setattr(runner, "run_plan", lambda plan, **rest: results)
    monkeypatch.setattr("continual.conformance.checks", lambda strategy: iter(()))
    said = invoke(*command, *arguments)
    assert said.exception is None or isinstance(said.exception, SystemExit), (command, arguments, said.exception)
    assert said.exit_code in (0, 2) and "Traceback" not in said.output


# ---- the same from elsewhere


def test_a_benchmark_is_also_a_script(tmp_path: Path) -> None:
    rest = ("--seeds", "1", "--epochs", "1", "--json")
    script = BENCHMARKS / "split_digits.py"
    limited = ("--limit", "10")
    done = subprocess.run(
        [sys.executable, script, ":scenario=task", "ewc:strength=600", *limited, *rest, "--out", tmp_path / "a"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    wanted = succeeded(
        invoke("run", "split-digits:scenario=task,limit=10", "ewc:strength=600", *rest, "--out", tmp_path / "b")
    )
    assert json.loads(done.stdout) == json.loads(wanted.stdout)
    one, other = store.find(tmp_path / "a") + store.find(tmp_path / "b")
    assert one.record["protocol"] == other.record["protocol"] and np.array_equal(one.accuracy, other.accuracy)
    assert one.record["protocol"]["benchmark"]["scenario"] == "task"


def test_a_script_tells_mistakes_as_the_command_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "split_mnist.py", "--benchmark", "split-kmnits", "--out", tmp_path / "runs"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr.startswith("continual: no benchmark is named 'split-kmnits'; did you mean 'split-kmnist'?")


MINE = """
    from dataclasses import dataclass

    import continual as cl

    @dataclass(frozen=True)
    class Mine(cl.Strategy):
        '''The loss times a factor.'''

        first_task_like_finetuning = False

        def loss(self, net, theta, memory, batch, out, task):
            return FACTOR * super().loss(net, theta, memory, batch, out, task)
"""


def in_folder(folder: Path, *arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, or a benchmark's script, started in a folder of the user's own."""
    start = ["-m", "continual"] if script is None else [str(BENCHMARKS / script)]
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, check=False, cwd=folder)


def test_an_edited_plug_in_is_run_again(tmp_path: Path) -> None:
    """What is stored is of the code that gave it."""
    file, seen = tmp_path / "my_factor.py", []
    for factor in (2, 2, 3):
        file.write_text(textwrap.dedent(MINE).replace("FACTOR", str(factor)))
        done = in_folder(tmp_path, "run", "split-digits:limit=10", "my_factor:Mine", "--seeds", "1", "--epochs", "1")
        assert done.returncode == 0, done.stderr
        (result,) = store.find(tmp_path / "runs")
        told = [line for line in done.stderr.splitlines() if " MB of images, in " not in line]
        seen.append((float(result.arrays["loss"][0, 0]), "\n".join(told)))
        assert result.record["code"] == {"my_factor": hashlib.sha256(file.read_bytes()).hexdigest()}
    (first, said), (second, again), (third, changed) = seen
    assert first == second and third == pytest.approx(1.5 * first)
    assert said == "" and again.endswith("already there, not run again (--again runs it)")
    assert changed == "my_factor:Mine: there, but my_factor may have changed since; run again"


def test_an_edited_module_beside_a_plug_in_is_noticed(tmp_path: Path) -> None:
    """It is imported by one that the plug-in imports."""
    (tmp_path / "my_factor.py").write_text(
        "import my_half\n" + textwrap.dedent(MINE).replace("FACTOR", "my_half.half(4)")
    )
    (tmp_path / "my_half.py").write_text("from my_share import SHARE\n\n\ndef half(n):\n    return SHARE * n\n")
    share, seen = tmp_path / "my_share.py", []
    for value in ("0.5", "0.5", "0.75"):
        share.write_text(f"SHARE = {value}\n")
        done = in_folder(tmp_path, "run", "split-digits:limit=10", "my_factor:Mine", "--seeds", "1", "--epochs", "1")
        assert done.returncode == 0, done.stderr
        (result,) = store.find(tmp_path / "runs")
        seen.append((float(result.arrays["loss"][0, 0]), done.stderr))
        assert result.record["code"].keys() == {"my_factor", "my_half", "my_share"}
    assert seen[0][0] == seen[1][0] and seen[2][0] == pytest.approx(1.5 * seen[0][0])
    assert "already there, not run again (--again runs it)" in seen[1][1]
    assert "my_factor:Mine: there, but my_share may have changed since; run again" in seen[2][1]


def test_an_error_in_a_plug_in_names_the_command_that_finds_it(tmp_path: Path) -> None:
    (tmp_path / "my_factor.py").write_text(textwrap.dedent(MINE).replace("FACTOR", "unknown"))
    done = in_folder(tmp_path, "run", "split-digits:limit=10", "my_factor:Mine", "--seeds", "1", "--epochs", "1")
    assert done.returncode == 1 and "NameError: name 'unknown' is not defined" in done.stderr
    assert "'continual check my_factor:Mine' says what a strategy does wrong" in done.stderr


def test_a_script_knows_the_current_folder_and_short_help(tmp_path: Path) -> None:
    (tmp_path / "my_factor.py").write_text(textwrap.dedent(MINE).replace("FACTOR", "2"))
    short = ("--seeds", "1", "--epochs", "1", "--json")
    done = in_folder(tmp_path, ":limit=10", "my_factor:Mine", *short, script="split_digits.py")
    assert done.returncode == 0 and "average-accuracy" in done.stdout, done.stderr
    told = in_folder(tmp_path, "-h", script="split_digits.py")
    assert told.returncode == 0 and "--optimizer" in told.stdout


def test_what_does_not_suit_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "train", lambda *arguments: pytest.fail("something was trained"))
    said = invoke("run", "split-digits", "finetune", "packnet", *TINY, "--out", tmp_path / "runs")
    assert said.exit_code == 2 and "PackNet does not work with scenario=class, where the task" in said.stderr
    assert not list((tmp_path / "runs").rglob("run.json"))


def test_what_is_proposed_next_looks_where_this_run_did(tmp_path: Path) -> None:
    places = ("--data", tmp_path / "my data", "--out", tmp_path / "runs")
    said = succeeded(invoke("run", "split-digits:limit=10", "finetune", *TINY, *places)).stdout
    assert f"--data '{tmp_path}/my data' --out {tmp_path}/runs" in said


def test_digits_need_no_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(cl.Mistake, match="cannot write the run"):  # the run cannot be written either
            cl.run("split-digits:limit=10", seeds=1, epochs=1, data=tmp_path / "a", out=tmp_path / "b")
        with pytest.warns(UserWarning, match="Read-only file system.*digits is read anew at every start"):
            result = cl.run("split-digits:limit=11", seeds=1, epochs=1, data=tmp_path / "c")
    assert result.accuracy.shape == (1, 6, 5)


def test_a_run_of_one_task_shows_its_epochs_and_draws_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    one = ("split-digits:limit=10,tasks=1,validation=0.2", *TINY, "--evaluate-every", "epoch", "--evaluate-rows", "all")
    said = succeeded(invoke("run", *one, "--out", tmp_path / "runs", "--picture", tmp_path / "one.svg")).stdout
    assert "validation" in said.splitlines()[2] and f"Drawn in {tmp_path}/one.svg." in said
    again = succeeded(invoke("show", tmp_path / "runs", "--trace", "--picture", tmp_path / "two.svg")).stdout
    assert said.splitlines()[2] in again and (tmp_path / "two.svg").is_file()
    refused = invoke("show", tmp_path / "runs", "--picture", tmp_path / "three.txt")
    assert refused.exit_code == 2 and "a picture's name ends in one of" in refused.stderr


@pytest.mark.parametrize("same", [
    lambda: cl.run(cl.benchmarks.SplitDigits(limit=10), cl.strategies.EWC(strength=600), seeds=2, epochs=1),
    lambda: cl.run("split-digits:limit=10", "ewc:strength=600", seeds=(0, 1), epochs=1, device="cpu"),
], ids=["objects", "texts"])  # fmt: skip
def test_python_gives_the_numbers_of_the_command_line(stored: Stored, same: Callable[[], Any]) -> None:
    result, again = same(), same()
    assert result.accuracy.shape == (2, 6, 5) and result.forgetting.shape == (2,)
    assert np.array_equal(result.accuracy, again.accuracy)
    (typed,) = [run for run in store.find(stored.out) if run.name == result.name]
    assert np.array_equal(result.accuracy, typed.accuracy)
    assert np.array_equal(result.forgetting, typed.forgetting)
    assert result.record["protocol"] == typed.record["protocol"]


def test_python_stores_and_recognises_too(stored: Stored, copy: Path) -> None:
    before = stamps(copy)
    result = cl.run("split-digits:limit=10", "ewc:strength=600", seeds=2, epochs=1, out=copy)
    assert "written" in result.record and stamps(copy) == before


def test_python_raises_mistakes_and_writes_nothing(tmp_path: Path) -> None:
    for arguments, settings_ in ((("split-digits", "ewk"), {}), (("split-digits", "ewc"), {"epoch": 1})):
        with pytest.raises(cl.Mistake):
            cl.run(*arguments, out=tmp_path / "runs", **settings_)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        cl.rnu  # noqa: B018


def test_runs_are_compared_over_their_seeds(tmp_path: Path) -> None:
    from scipy import stats

    small = {"seeds": 4, "epochs": 1, "batch": 16, "out": tmp_path / "runs"}
    results = [cl.run("split-digits:limit=10", name, **small) for name in ("finetune", "l2:strength=100", "replay")]
    folders = [store.folder(tmp_path / "runs", one.record) for one in results]
    names = ("average-accuracy", "forgetting")
    lines = json.loads(succeeded(invoke("compare", *folders, "--metrics", ",".join(names), "--format", "json")).stdout)
    assert [(line["metric"], line["run"], line["minus"]) for line in lines] == [
        (name, other.name, "finetune") for name in names for other in results[1:]
    ]
    ps = [stats.ttest_rel(one.metric(name), results[0].metric(name)).pvalue for name in names for one in results[1:]]
    assert [line["p"] for line in lines] == pytest.approx(ps) and all(line["paired"] for line in lines)
    assert min(line["p_holm"] for line in lines) == pytest.approx(min(1, 4 * min(ps)))
    said = succeeded(invoke("compare", tmp_path / "runs", "--every-pair")).stdout
    assert said.count("paired, n = 4") == 3 and "corrected for the 3 comparisons" in " ".join(said.split())
    assert "Welch, n = 8" in succeeded(invoke("compare", *folders, "--unpaired", "--format", "markdown")).stdout
    longer = cl.run("split-digits:limit=10", "finetune", **(small | {"epochs": 2}))
    said = succeeded(invoke("compare", folders[0], store.folder(tmp_path / "runs", longer.record))).stdout
    assert "also differ in training.epochs: 2, 1." in " ".join(said.split())
    # what is given twice is not tested twice
    twice = succeeded(invoke("compare", *folders, *folders, "--metrics", "forgetting,forgetting", "--format", "json"))
    assert len(json.loads(twice.stdout)) == 2
    refused = invoke("compare", folders[0], folders[0])
    assert refused.exit_code == 2 and "two different runs at least, and one is given" in refused.stderr
    # each of three runs of two strategies has a name of its own, though no pair has the same strategy
    folders = [store.folder(tmp_path / "runs", one.record) for one in (results[1], results[0], longer)]
    lines = json.loads(succeeded(invoke("compare", *folders, "--format", "json")).stdout)
    runs = [f"finetune ({folder.parent.name})" for folder in folders[1:]]
    assert [(line["run"], line["minus"]) for line in lines] == [(run, "l2:strength=100") for run in runs]


def test_a_comparison_says_what_was_made_with_other_code_or_images(tmp_path: Path) -> None:
    result, folders = cl.run("split-digits:limit=10", "finetune", seeds=2, epochs=1), []
    for letter in "ab":
        protocol = result.record["protocol"]
        benchmark = protocol["benchmark"] | {"sha256": 64 * letter}
        record = result.record | {"protocol": protocol | {"benchmark": benchmark}, "code": {"mine": 64 * letter}}
        folders.append(store.save(store.Result(record, result.arrays), tmp_path))
    said = " ".join(succeeded(invoke("compare", *folders)).stdout.split())
    names = [f"finetune ({folder.parent.name})" for folder in folders]
    assert "also differ in benchmark.sha256: bbbbbbbb, aaaaaaaa." in said
    assert f"mine was not the same file for all (SHA-256): bbbbbbbb for {names[1]}; aaaaaaaa for {names[0]}." in said


def test_a_comparisons_means_are_of_the_seeds_that_it_compares(tmp_path: Path) -> None:
    """Of other seeds they would not differ by the difference beside them; seeds that were stopped are named."""
    small = {"epochs": 2, "batch": 16}
    one = cl.run("split-digits:limit=10", "finetune", seeds=5, **small)
    other = cl.run("split-digits:limit=10", "l2", seeds=[4, 2], **small)
    accuracy = one.accuracy.copy()
    accuracy[0, 2:] = np.nan
    stopped = [{"seed": 0, "task": 2, "step": 3, "why": "loss not finite"}]
    one = store.Result(one.record | {"stopped": stopped}, one.arrays | {"accuracy": accuracy})
    folders = [store.save(each, tmp_path) for each in (one, other)]
    (line,) = json.loads(succeeded(invoke("compare", *folders, "--format", "json")).stdout)
    assert (line["n"], line["paired"]) == (2, True)
    assert line["mean"] == pytest.approx(other.average_accuracy.mean())
    assert line["minus_mean"] == pytest.approx(one.average_accuracy[[4, 2]].mean())
    assert line["mean"] - line["minus_mean"] == pytest.approx(line["difference"])
    said = " ".join(succeeded(invoke("compare", *folders)).stdout.split())
    assert "the n seeds that both have; the means are theirs" in said
    assert "seed 0 of finetune was stopped: loss not finite at task 2, step 3." in said
    unpaired = json.loads(succeeded(invoke("compare", *folders, "--unpaired", "--format", "json")).stdout)
    assert unpaired[0]["minus_mean"] == pytest.approx(np.nanmean(one.average_accuracy))


@pytest.mark.parametrize(("words", "message"), [
    ([], "a comparison takes two different runs at least, and none are given"),
    ([".", "--metrics", "forgeting"], "did you mean 'forgetting'"),
    ([".", "--format", "csv"], "'table', 'markdown', 'latex', 'json'"),
    ([".", "--metrics", "stability-gap"], "needs accuracies measured while learning"), (["gone"], "no folder gone"),
])  # fmt: skip
def test_what_cannot_be_compared_says_why(
    stored: Stored, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stored.out)
    refused = invoke("compare", *words)
    assert refused.exit_code == 2 and message in refused.stderr


FAILS = """
from dataclasses import dataclass

from continual import Strategy


@dataclass(frozen=True)
class Fails(Strategy):
    \"\"\"It fails in its second task.\"\"\"

    def before_task(self, net, theta, memory, task):
        if not task.first:
            raise KeyError("forgotten")
        return theta, memory


@dataclass(frozen=True)
class Counts(Strategy):
    \"\"\"Its memory is no tensor.\"\"\"

    def init(self, net, theta, stream):
        return {"n": 0}
"""


def test_a_strategy_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_mine.py").write_text(FAILS)
    words = ["--seeds", 1, "--epochs", 1, "--model", "mlp:layers=4"]
    fails, counts, goes = "failing_mine:Fails", "failing_mine:Counts", "; the other strategies go on"

    def run(out: str, *strategies: str, more: tuple[str, ...] = ()) -> Result:
        return invoke("run", "split-digits:limit=5", *strategies, *words, "--out", out, *more)

    done = run("first", "finetune", fails, "l2")
    assert isinstance(done.exception, KeyError) and f"{fails}: KeyError: 'forgotten'{goes}\n" in done.stderr
    assert "finetune" in done.stdout and "l2" in done.stdout and "Fails" not in done.stdout
    assert len(list((tmp_path / "first").glob("*/*/run.json"))) == 2
    done = run("second", "l2", fails, counts, more=("--json",))
    assert isinstance(done.exception, KeyError) and done.stderr.count(goes) == 1, "behind the last nothing is left"
    assert f"{fails}: KeyError: 'forgotten'{goes}\n" in done.stderr and "Counts.init gives memory whose" in done.stderr
    assert [one["name"] for one in json.loads(done.stdout)[0]["results"]] == ["l2"]
    done = run("third", counts, "l2")
    assert done.exit_code == 2 and done.stderr.count("Counts.init") == 1 and "l2" in done.stdout
    alone = run("fourth", counts)
    assert alone.exit_code == 2 and not alone.stdout
    assert "Counts.init gives memory whose 'n' is of type int; it takes tensors" in alone.stderr
    assert not list((tmp_path / "third").glob("*/.*")) and not list((tmp_path / "fourth").glob("*/.*"))


def test_learners_of_a_strategy_that_failed_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others need the memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_too.py").write_text(FAILS)
    made, alive = list[Any](), list[int]()
    usual = parts.Learners.__init__

    def noted(self: Any, *given: Any, **more: Any) -> None:
        gc.collect()
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(self))
        usual(self, *given, **more)

    monkeypatch.setattr(parts.Learners, "__init__", noted)
    invoke("run", "split-digits:limit=5", "failing_too:Fails", "l2", "--seeds", 1, "--epochs", 1, "--out", "runs")
    assert alive == [0, 0]


def test_every_accuracy_is_written_for_programs(stored: Stored) -> None:
    said = succeeded(invoke("show", stored.out, "--matrix", "--format", "csv")).stdout
    lines, results = list(csv.DictReader(io.StringIO(said))), store.find(stored.out)
    assert len(lines) == sum(one.accuracy.size for one in results)
    for line in lines:
        (one,) = (one for one in results if one.name == line["strategy"])
        value = one.accuracy[one.seeds.index(int(line["seed"])), int(line["learnt"]), int(line["task"]) - 1]
        assert float(line["accuracy"]) == pytest.approx(value)
    for more in (("--metrics", "forgetting"), ("--together",)):
        refused = invoke("show", stored.out, "--matrix", "--format", "csv", *more)
        assert refused.exit_code == 2 and f"leave out {more[0]}" in refused.stderr


def test_a_metric_of_ones_own_is_named_by_its_path(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metrics.py").write_text("def least(A):\n    'the least'\n    return A[:, -1].min(axis=1)\n")
    monkeypatch.chdir(tmp_path)
    said = succeeded(invoke("show", stored.out, "--metrics", "own_metrics:least", "--format", "json")).stdout
    for line, one in zip(json.loads(said)[0]["results"], store.find(stored.out), strict=True):
        assert line["metrics"]["own_metrics:least"]["mean"] == pytest.approx(one.accuracy[:, -1].min(1).mean())
    missing = invoke("show", stored.out, "--metrics", "own_metrics:most")
    assert missing.exit_code == 2 and "metric 'own_metrics:most' cannot be loaded: AttributeError" in missing.stderr
    assert "own_metrics:least" not in metrics.METRICS, "nobody else knows it"
    compared = succeeded(invoke("compare", stored.out, "--metrics", "own_metrics:least,own_metrics:least"))
    assert compared.stdout.count("paired, n = 2") == 1


def test_one_table_of_all_experiments(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(stored.out, out)
    cl.run("split-digits:limit=10", "finetune", seeds=2, epochs=2, out=out)
    said = succeeded(invoke("show", out, "--together")).stdout
    assert said.count("average") == 2 and "finetune (epochs 2)" in said and "finetune (epochs 1)" in said


ALONE = """
from dataclasses import dataclass
from typing import Literal
import continual as cl
from continual.options import Configured
from continual.streams.stream import Stream

@dataclass(frozen=True)
class One(cl.benchmarks.SplitDigits):
    'Of one scenario.'
    scenario: Literal["class"] = cl.option("class", "the only one")

@dataclass(frozen=True)
class None_(Configured):
    'Without a scenario.'
    def stream(self, seed=0, root=None):
        return cl.benchmarks.SplitDigits(limit=5).stream(seed, root)

class Neither:
    'It derives from nothing.'
    def stream(self, seed=0, root=None):
        return cl.benchmarks.SplitDigits(limit=5).stream(seed, root)
"""


@pytest.mark.parametrize("name", ["One", "None_"])
def test_no_other_scenario_is_proposed_where_there_is_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone.py").write_text(ALONE)
    monkeypatch.chdir(tmp_path)
    said = succeeded(invoke("run", f"alone:{name}", "finetune", *TINY)).stdout
    assert "continual show runs/" in said and "ewc+replay" not in said


def test_what_is_no_benchmark_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neither.py").write_text(ALONE)
    monkeypatch.syspath_prepend(tmp_path)
    import neither  # type: ignore[import-not-found]

    with pytest.raises(cl.Mistake, match=r"is no benchmark: it does not derive from one of continual.streams"):
        cl.run(neither.Neither(), "finetune", seeds=1, epochs=1)


def test_what_is_proposed_next_is_not_what_would_be_refused(tmp_path: Path) -> None:
    said = succeeded(invoke("run", "split-digits:limit=10", *TINY, "--task-aware", "--out", tmp_path)).stdout
    (proposed,) = (line.strip() for line in said.splitlines() if "continual run" in line)
    assert "scenario=task" in proposed and "--task-aware" not in proposed


@pytest.mark.parametrize("format", ["latex", "json"])
def test_matrices_are_not_printed_behind_what_programs_read(stored: Stored, format: str) -> None:
    done = invoke("show", stored.out, "--matrix", "--format", format)
    assert done.exit_code == 2 and not done.stdout and f"--format {format} is not; give one of the two" in done.stderr
