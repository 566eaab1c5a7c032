"""Published tables: reading them, running them in pieces, and what is said of each cell."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import continual as cl
from continual import config, plugins, reproduction, runner
from continual.cli import main
from continual.errors import Mistake
from continual.learning.optimizers import SGD
from continual.strategies import Joint, Rehearsal

TABLE: dict[str, Any] = {
    "source": "Nobody 2020, table 1",
    "metric": "average-accuracy",
    "spread": "sd",
    "seeds": 3,
    "protocol": {
        "benchmark": {"name": "split-digits", "limit": 20},
        "model": "mlp:layers=10",
        "iterations": 4,
        "batch": 16,
    },
    "columns": {"task": {"benchmark": {"scenario": "task"}}, "class": {"benchmark": {"scenario": "class"}}},
    "rows": {
        "fine-tuning": {"strategy": "finetune", "cells": {"task": "60.0 ± 25", "class": "99.99 ± 0.01"}},
        "L2": {
            "strategy": {"name": "l2", "towards": "zero"},
            "cells": {"class": {"value": "20 ± 9", "strategy": {"strength": 0.5}, "epochs": 2, "iterations": None}},
            "note": "made up",
        },
    },
}


def written(folder: Path, **changes: Any) -> str:
    """The table as a file, with some entries changed."""
    path = folder / "nobody.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(TABLE) | changes, sort_keys=False), encoding="utf-8")
    return str(path)


def typed(*words: str) -> Any:
    """``continual reproduce`` with words."""
    return CliRunner().invoke(main, ["reproduce", *words])


def test_cells_merge_protocol_column_row_and_cell(tmp_path: Path) -> None:
    table = reproduction.read(written(tmp_path))
    assert [(cell.row, cell.column) for cell in table.cells] == [
        ("fine-tuning", "task"), ("fine-tuning", "class"), ("L2", "class"),
    ]  # fmt: skip
    first, _, last = (cell.plan([5]) for cell in table.cells)
    assert first.benchmark == cl.benchmarks.SplitDigits(limit=20, scenario="task")
    assert first.training.iterations == 4 and first.training.seed_list == [5]
    assert last.strategies == (cl.strategies.L2(strength=0.5, towards="zero"),)
    assert (last.training.epochs, last.training.iterations, last.training.batch) == (2, None, 16)


@pytest.mark.parametrize("name", sorted(plugins.config_files("tables")))
def test_packaged_tables_can_be_read(name: str) -> None:
    table = reproduction.read(name)
    assert table.name == name and table.cells and table.seeds > 1


def test_the_protocol_of_hsu_is_spelled_out() -> None:
    table = reproduction.read("hsu-2018-split-mnist")
    by_name = {(cell.row, cell.column): cell for cell in table.cells}
    for cell in table.cells:
        plan = cell.plan([0])
        assert plan.model == config.make("models", "mlp:layers=400-400")
        assert (plan.benchmark.pad, plan.benchmark.normalize, plan.benchmark.order) == (2, "standard", "natural")
        assert (plan.training.epochs, plan.training.batch, plan.training.last) == (4, 128, "keep")
        assert plan.training.optimizer_state == "keep" and plan.benchmark.scenario == cell.column
    strengths = {"L2": (0.01, 0.5, 100), "EWC": (100, 100, 600), "online EWC": (400, 700, 100),
                 "SI": (300, 3000, 600), "MAS": (1, 10000, 1)}  # fmt: skip
    for row, wanted in strengths.items():
        plans = [by_name[row, column].plan([0]) for column in ("task", "domain", "class")]
        assert tuple(plan.strategies[0].strength for plan in plans) == wanted
        assert all(config.title("optimizers", plan.optimizer) == "adam" for plan in plans)
    assert len(table.cells) == 36 and len(by_name) == 36
    capacities = [by_name[f"naive rehearsal ({size})", "class"].plan([0]).strategies[0] for size in ("1,100", "4,400")]
    assert capacities == [Rehearsal(capacity=1100), Rehearsal(capacity=4400)]
    assert by_name["offline", "task"].plan([0]).strategies == (Joint(every=False),)
    gem = by_name["GEM", "domain"].plan([0])
    assert (gem.optimizer, gem.strategies[0].rehearse, gem.strategies[0].margin) == (SGD(lr=0.01), True, 0.5)


def test_reproducing_is_running_and_comparing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = typed(written(tmp_path), "--out", str(out), "--format", "json")
    assert done.exit_code == 1, done.output  # fine-tuning in the class scenario does not reach 99.99 %
    cells = json.loads(done.stdout)["cells"]
    assert [cell["verdict"] for cell in cells] == ["reproduced", "differs", "reproduced"]
    plan = {"benchmark": "split-digits:limit=20,scenario=class", "model": "mlp:layers=10", "iterations": 4, "batch": 16}
    alone = runner.run(plan.pop("benchmark"), "finetune", seeds=3, **plan)
    assert cells[1]["ours"]["mean"] == pytest.approx(100 * alone.average_accuracy.mean())
    assert cells[1]["ours"]["n"] == 3


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [written(tmp_path), "--out", str(tmp_path / "out")]
    assert typed(*given, "--row", "L2", "--seeds", "2").exit_code == 0
    runs: list[Any] = []
    once = runner.run_strategy
    monkeypatch.setattr(runner, "run_strategy", lambda *arguments: (runs.append(arguments), once(*arguments))[1])
    done = typed(*given)
    assert len(runs) == 7  # three cells of three seeds, two of which were there
    assert done.exit_code == 1 and "Of 3 cells: reproduced 2, differs 1." in done.stdout
    typed(*given)
    assert len(runs) == 7


def test_cells_that_were_not_asked_for_are_not_run(tmp_path: Path) -> None:
    done = typed(written(tmp_path), "--out", str(tmp_path / "out"), "--column", "task", "--seeds", "1")
    assert done.exit_code == 0 and "fine-tuning" in done.stdout
    assert "not run 2" in done.stdout and done.stdout.count("not run") == 1, "counted, and left out"


def test_cells_that_were_not_chosen_are_not_judged(tmp_path: Path) -> None:
    given = [written(tmp_path), "--out", str(tmp_path / "out")]
    assert typed(*given).exit_code == 1, "one of them differs"
    done = typed(*given, "--row", "fine-tuning", "--column", "task")
    assert done.exit_code == 0 and "Of 3 cells: reproduced 1, not run 2." in done.stdout and "L2" not in done.stdout


def test_a_metric_without_a_value_is_no_cell_that_was_not_run(tmp_path: Path) -> None:
    rows = {"A": {"strategy": "finetune", "benchmark": {"tasks": 1}, "cells": {"task": "50 ± 5"}}}
    done = typed(written(tmp_path, rows=rows, metric="forgetting"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2 and "A, task: the metric forgetting has no value here" in done.stderr


def test_jobs_give_the_same_numbers(tmp_path: Path) -> None:
    table = reproduction.read(written(tmp_path))
    cell, seeds = table.cells[0], [0, 1]
    found = []
    for jobs in (1, 2):
        place = reproduction.Place(tmp_path / str(jobs), jobs=jobs)
        told: list[reproduction.Cell] = []
        reproduction.run(table.select(["fine-tuning"], ["task"]), seeds, place, told.append)
        assert told == [cell, cell]
        found.append(reproduction.values(table.metric, cell, seeds, place)[0])
    assert np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


def test_seeds_that_were_stopped_are_told_and_are_no_success(tmp_path: Path) -> None:
    rows = {"A": {"strategy": "finetune", "optimizer": "sgd:lr=1e30", "cells": {"task": "50 ± 50"}}}
    given = [written(tmp_path, rows=rows), "--out", str(tmp_path / "out")]
    done = typed(*given)
    assert done.exit_code == 1 and "Of 1 cell: stopped 1." in done.stdout
    assert done.stdout.count("A, task: seed") == 3 and "was stopped: loss or parameters not finite" in done.stdout
    (cell,) = json.loads(typed(*given, "--format", "json").stdout)["cells"]
    assert cell["verdict"] == "stopped" and cell["ours"]["stopped"] == len(cell["stopped"]) == 3


def test_a_metric_that_is_no_percentage_is_held_against_its_own_unit(tmp_path: Path) -> None:
    rows = {"A": {"strategy": "finetune", "cells": {"task": "1.00 ± 0.00"}}}
    done = typed(written(tmp_path, rows=rows, metric="samples-storage-efficiency"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0 and "reproduced 1" in done.stdout and "in %" not in done.stdout


def test_a_mistake_in_a_job_is_told(tmp_path: Path) -> None:
    protocol = TABLE["protocol"] | {"benchmark": {"name": "split-mnist"}}
    done = typed(written(tmp_path, protocol=protocol), "--out", str(tmp_path / "o"), "--data", str(tmp_path / "no"),
                 "--jobs", "2", "--row", "L2", "--seeds", "1")  # fmt: skip
    assert done.exit_code == 2, done.output
    assert "L2, class: " in done.stderr and str(tmp_path / "no") in done.stderr


def _rows(**cell: Any) -> dict[str, Any]:
    return {"rows": {"A": {"strategy": "finetune", "cells": {"task": cell}}}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": "acuracy"}, "did you mean"),
        ({"spread": "ci"}, "it takes sd or se"),
        ({"seeds": 1}, "at least 2"),
        ({"seeds": "ten"}, "at least 2"),
        ({"colums": {}}, "a table has no 'colums'; did you mean 'columns'"),
        ({"rows": ["A"]}, "rows must be a mapping"),
        ({"rows": {"A": {"strategy": "finetune"}}}, "A: cells must be a mapping"),
        ({"rows": {"A": {"cells": {"clas": "1 ± 1"}}}}, "A, clas: there is no such column; did you mean 'class'"),
        (_rows(value="99"), "A, task: '99' is not of the form"),
        (_rows(value="9 ± 1", epoch=3), "A, task: a run has no option 'epoch'"),
        (
            {"protocol": {"benchmark": {"sequence": ["split-digits", "split-digits"], "foo": 3}}},
            "fine-tuning, task: a sequence has no option 'foo'",
        ),
        (_rows(value="9 ± 1", strategy="ewcc"), "A, task: no strategy is named 'ewcc'"),
        (_rows(value="9 ± -1"), "A, task: '9 ± -1' has a spread below 0"),
        (
            _rows(value="9 ± 1", strategies=["ewc"]),
            "A, task: 'strategies' is not for a table: a cell has one 'strategy'",
        ),
        ({"protocol": TABLE["protocol"] | {"seeds": 7}}, "fine-tuning, task: 'seeds' is not for a table"),
        ({"rows": {"A": {"cells": {"task": "9 ± 1"}}}}, "A, task: there is no strategy; write one into the row"),
        ({"metric": "intransigence"}, "needs a run of joint training beside each"),
        ({"metric": "stability-gap"}, "needs accuracies measured while learning; give evaluate_every"),
    ],
)
def test_mistakes_in_a_table_are_told_with_their_place(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    done = typed(written(tmp_path, **changes), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2 and told in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hsu"], "no table is named 'hsu'"),
        (["hsu-2018-split-mnist", "--row", "EWCC"], "no row is named 'EWCC'"),
        (["hsu-2018-split-mnist", "--column", "clas"], "did you mean 'class'"),
        (["hsu-2018-split-mnist", "--seeds", "x"], "seeds"),
        (["hsu-2018-split-mnist", "--jobs", "0"], "'--jobs': 0"),
        (["hsu-2018-split-mnist", "--format", "pdf"], "'table', 'markdown', 'latex', 'json'"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], told: str) -> None:
    done = typed(*words)
    assert done.exit_code == 2 and told in done.stderr


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in TABLE.items() if name != "columns"}))
    with pytest.raises(Mistake, match="columns is missing"):
        reproduction.read(str(path))


def test_markdown_can_stand_in_a_page(tmp_path: Path) -> None:
    done = typed(written(tmp_path), "--out", str(tmp_path / "out"), "--format", "markdown", "--row", "L2",
                 "--seeds", "1")  # fmt: skip
    assert "| L2 " in done.stdout and "20.00 ± 9.00 |" in done.stdout
