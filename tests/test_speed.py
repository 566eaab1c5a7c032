"""The speed suite: what is compared, what is told, and that its pieces work, also those that are for a GPU."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "speed"
DIGITS = {"benchmark": "split-digits", "model": "mlp:layers=20", "batch": 32, "images": "none"}


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other from their folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_contenders_take_turns_and_who_cannot_is_told() -> None:
    from turns import CannotRun, Contender, in_turns

    done: list[str] = []

    def do(work: str) -> float:
        done.append(work)
        if work == "c":
            raise CannotRun("no data")
        return float(len(done))

    contenders = {"a": Contender("a"), "b": Contender("b", every=2, times=10), "c": Contender("c")}  # type: ignore[arg-type]
    found, missing = in_turns(contenders, 3, do)
    assert done == ["c", "a", "a", "b", "a", "a", "b"]  # one turn is not counted, and b rests in the second
    assert missing == {"c": "no data"}
    assert found["a"] == [3.0, 5.0, 6.0] and found["b"][0] == 40.0 and math.isnan(found["b"][1])


@pytest.mark.parametrize(
    ("kind", "bound", "most", "own", "measured", "met"),
    [
        ("of", 1.05, None, [2.0, math.nan, 4.0], [1.0, 1.0], True),
        ("of", 0.9, None, [2.0, math.nan, 4.0], [1.0, 1.0], False),
        ("times", 4.0, None, [8.0, 20.0, 12.0], [4.0, 5.0, 3.0], True),
        ("times", 2.0, True, [8.0, 20.0, 12.0], [4.0, 5.0, 3.0], False),
        ("value", 0.0, None, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], True),
        ("value", None, None, [7.0, 7.0, 7.0], [7.0, 7.0, 7.0], None),
    ],
)
def test_what_is_wanted(
    kind: Any, bound: float | None, most: bool | None, own: list[float], measured: list[float], met: bool | None
) -> None:
    from turns import Target

    target = Target(kind, bound, most)
    assert target.measured(own, [2.0, 4.0, 4.0]) == measured
    assert target.met(measured) is met


def test_a_row_is_told_drawn_and_written(tmp_path: Path) -> None:
    from suite import Found, Row, draw, lines, record
    from turns import Contender, Target

    row = Row("replay", {
        "ours": Contender(lambda: 1.0), "hand-written": Contender(lambda: 1.0, Target("of", 1.05)),
        "other": Contender(lambda: 1.0, Target("times", 4.0)),
    })  # fmt: skip
    found = Found(row, {"ours": [1.0, 2.0, 1.0], "hand-written": [1.0, 2.0, 0.5], "other": [3.0, 6.0, math.nan]})
    assert lines(found) == [
        ["replay", "ours", "1 s", "", "", ""],
        ["", "hand-written", "1 s", "ours takes 1.00 (1.00 to 2.00) of it", "at most 1.05", "met"],
        ["", "other", "4.5 s", "3.00 (3.00 to 3.00) times as long", "at least 4", "missed"],
    ]
    draw([found], str(tmp_path / "speed.svg"), "here")
    assert "<!-- replay: hand-written -->" in (tmp_path / "speed.svg").read_text()
    written = json.loads(json.dumps(record([found], ["a GPU"], "here"), allow_nan=False))
    assert written["rows"][0]["turns"]["other"] == [3.0, 6.0, None]
    assert [one["met"] for one in written["rows"][0]["wanted"]] == [True, False]


def test_every_row_is_there_once_and_a_gpu_has_its_own() -> None:
    from suite import rows
    from turns import Place

    found = {device: rows(Place("nowhere", device), False, "cnn") for device in ("cpu", "cuda")}
    names = {device: [row.name for row in own] for device, (own, _) in found.items()}
    assert all(len(set(own)) == len(own) for own in names.values())
    assert any("20 seeds" in name for name in names["cuda"]) and any("DER++" in name for name in names["cuda"])
    assert any("whole process: continual list" in name for name in names["cpu"])
    assert any("--device cuda" in line for line in found["cpu"][1])


def test_what_avalanche_has_too_is_there_on_both_sides() -> None:
    pytest.importorskip("avalanche")
    from avalanche_reference import METHODS, TOLD
    from ours import BENCHMARKS, STRATEGIES
    from suite import BOTH, HELD, ONCE, QUICK

    from continual.plugins import registered

    assert len(set(BOTH)) == len(BOTH) and set(BOTH) == set(METHODS)
    assert set(STRATEGIES) >= set(BOTH) | set(HELD) and set(BOTH) <= set(registered("strategies"))
    assert {STRATEGIES[method].partition(":")[0] for method in BOTH} == set(BOTH)
    assert set(ONCE) <= set(BOTH) - set(HELD) and set(QUICK) <= set(BOTH)
    assert set(TOLD) == set(BENCHMARKS)


def test_a_ratio_that_misses_is_seen_to() -> None:
    from suite import Found, Row, lines
    from turns import Contender, Target

    row = Row("SI", {"ours": Contender(lambda: 1.0), "hand-written": Contender(lambda: 1.0, Target("of", 1.25))})
    for took, said, met in ((1.2504, "1.2504", "missed"), (1.2496, "1.25", "met"), (1.254, "1.254", "missed")):
        (_, line) = lines(Found(row, {"ours": [took], "hand-written": [1.0]}))
        assert line[3:] == [f"ours takes {said} ({said} to {said}) of it", "at most 1.25", met]


def test_what_could_not_be_run_has_a_line_a_row() -> None:
    from suite import Found, Row, not_run

    row, why = Row("SI", {}), "RuntimeError: no solver\nsee\nthis"
    assert not_run(Found(row, {}, {"ours": why, "other": why})) == ["SI: ours, other: RuntimeError: no solver"]
    (long,) = not_run(Found(row, {}, {"ours": "a " * 200, "other": why}))
    assert long.startswith("SI: ours: a a") and long.endswith("...; other: RuntimeError: no solver") and len(long) < 250
    assert not_run(Found(row, {"ours": [1.0]})) == []


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """The suite, as from a shell."""
    import suite

    monkeypatch.setattr(sys, "argv", ["suite.py", *words])
    suite.main()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_list_needs_neither_data_nor_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    command(monkeypatch, "--list", "--device", device)
    listed = capsys.readouterr().out.splitlines()
    assert "PackNet, 784-100-100-10" in listed
    assert any(row.startswith("utilisation") for row in listed) is (device == "cuda")


@pytest.mark.parametrize("words", [(), ("--data", "nowhere-at-all"), ("--data", ".", "--turns", "0")])
def test_what_cannot_be_measured_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, *words)
    told = capsys.readouterr()
    assert ended.value.code == 2 and not told.out and len(told.err.splitlines()) == 1


def test_a_quick_run_says_what_it_leaves_out() -> None:
    from suite import rows
    from turns import Place

    said = "\n".join(rows(Place("nowhere", limit=500), True, "cnn")[1])
    for left_out in ("Fisher", "Adam as documented", "our products", "PackNet", "GEM", "500 training images"):
        assert left_out in said


def test_inside_a_step(tmp_path: Path) -> None:
    """What is measured on a GPU, on a processor and a small network."""
    from ours import Steps, pieces
    from turns import Place

    torch.manual_seed(0)
    kinds = pieces(Place(str(tmp_path), threads=1))
    task = {**DIGITS, "method": "replay:capacity=20"}
    assert kinds["waits"](**task)() == 0
    assert kinds["floor"](**task)() > 1
    assert kinds["train"](method="finetune", model="mlp:layers=20", benchmark="split-digits", seeds=2)() > 0
    steps, before = Steps(Place(str(tmp_path)), **task), None
    for _ in range(3):
        steps.one()
        now = steps.learners.theta.detach().clone()
        assert before is None or not torch.equal(before, now)
        before = now


def test_a_step_that_waits_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ours import Steps
    from turns import Place

    from continual.strategies import L2

    usual = L2.penalty
    monkeypatch.setattr(L2, "penalty", lambda *given: usual(*given) + 0 * float(given[2].detach().sum()))
    assert Steps(Place(str(tmp_path)), **{**DIGITS, "method": "l2"}).waits() > 0


def test_growth_is_seen() -> None:
    from growth import tasks

    found = {name: tasks(name, (2, 4), "cpu") for name in ("ewc", "gem")}
    assert {count: one["flops"] for count, one in found["ewc"].items()}[4] == found["ewc"][2]["flops"] > 0
    assert found["gem"][4]["flops"] > found["gem"][2]["flops"]
    assert tasks("gem", (2,), "cpu")[2]["flops"] == found["gem"][2]["flops"], "whatever else is measured"


def test_vectors_as_long_as_theta_are_told_where_it_is_long() -> None:
    from growth import table

    def one(peak: float, theta: float) -> dict[str, Any]:
        return {"ms": 1.0, "peak": peak, "vectors": peak / theta, "operations": 1, "bytes": 1, "flops": 1}

    found = {"l2": {10**5: one(90, 0.4), 10**8: one(2400, 400)}, "ewc": {10**5: one(401, 0.4), 10**8: one(2400, 400)}}
    assert [line.split("|")[-2].strip() for line in table("parameters", found).splitlines()[2:]] == ["6.0", ""]
    few = {"l2": {10**5: one(90, 0.4), 10**7: one(300, 40)}}
    assert "θ-vectors" in table("parameters", found) and "θ-vectors" not in table("parameters", few)


@pytest.mark.parametrize("method", ["finetune", "l2", "ewc", "si", "a-gem", "replay"])
def test_the_hand_written_loops_learn(method: str) -> None:
    """On a made-up MNIST they know the last task, and those that store samples the first one too."""
    import hand

    drawn = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 10
    x = torch.nn.functional.one_hot(y, 784).float() + 0.1 * torch.rand(600, 784, generator=drawn)
    matrix = hand.METHODS[method](hand.Mnist(x, y, x, y), 0, (50,)).train(100)
    assert matrix.shape == (6, 5) and matrix[-1, -1] > 0.95
    assert method != "replay" or matrix[-1, 0] > 0.5
    assert method != "finetune" or matrix[-1, 0] < 0.2
