"""Several processes at one results folder and one data root: nothing lost or mixed, nothing half-written seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from continual import files
from continual.results import store
from continual.streams import sets

RELIABILITY = Path(__file__).resolve().parent.parent / "benchmarks" / "reliability"
COMMAND = (sys.executable, "-P", "-m", "continual")


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with bigger numbers, whose parts are used here."""
    monkeypatch.syspath_prepend(str(RELIABILITY))
    import writers

    return writers


def test_writers_and_readers_at_once(tmp_path: Path, writers: Any) -> None:
    done = writers.trial(tmp_path, writers=3, readers=2, runs=6)
    assert done.saved == 18 and done.packed == 5 and done.read > 0


def test_a_reader_tells_a_mixed_run_from_a_whole_one(tmp_path: Path, writers: Any) -> None:
    one, other = writers.result(1, 1), writers.result(1, 2)
    writers.check(one)
    with pytest.raises(AssertionError, match="has something of another"):
        writers.check(store.Result(one.record, one.arrays | {"loss": other.arrays["loss"]}))


@pytest.mark.parametrize("again", [[], ["--again"]])
def test_two_runs_of_one_plan_at_once(tmp_path: Path, again: list[str]) -> None:
    asked = [*COMMAND, "run", "split-digits:limit=20", "finetune", "replay", "--seeds", "2", "--seeds-as", "map",
             "--model", "mlp:layers=8", "--iterations", "2", "--data", tmp_path / "data", "--out", tmp_path / "runs",
             "--quiet", *again]  # fmt: skip
    both = [subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    tables = [text.partition("\nStored in")[0] for text, _ in said]
    assert tables[0] == tables[1] and "replay" in tables[0]
    assert [one.name for one in store.find(tmp_path / "runs")] == ["finetune", "replay"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


# ---- readers and a writer, step by step


def test_a_run_that_is_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, writers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is the old one's and the arrays are the new one's: no damage, and no mixture."""
    path = store.save(writers.result(0, 1), tmp_path)
    usual, once = store._read_record, []

    def slow(file: Path) -> dict[str, Any]:
        record = usual(file)
        if not once:
            once.append(1)
            store.save(writers.result(0, 2), tmp_path, replace=True)
        return record

    monkeypatch.setattr(store, "_read_record", slow)
    found = store.load(path)
    writers.check(found)
    assert once and found.record["size"]["parameters"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no exchange of two names")
def test_a_run_is_there_at_every_moment_of_its_replacement(
    tmp_path: Path, writers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.save(writers.result(0, 1), tmp_path)
    monkeypatch.setattr(type(path), "rename", lambda *_: pytest.fail("it was moved aside"))
    store.save(writers.result(0, 2), tmp_path, replace=True)
    assert store.load(path).record["size"]["parameters"] == 2


def test_a_folder_that_goes_away_is_passed_over(tmp_path: Path, writers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(writers.result(0, 1), tmp_path)
    gone = tmp_path / "gone"
    usual = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: usual(gone) if "b-m-" in str(path) else usual(path))
    with pytest.raises(store.BadFolder, match="holds no runs"):
        store.find(tmp_path)


# ---- what writers that were killed leave behind


def aged(path: Path) -> Path:
    past = time.time() - files.AGE - 10
    os.utime(path, (past, past))
    return path


def test_leftovers_are_cleared_away_when_they_are_old(tmp_path: Path, writers: Any) -> None:
    path = store.save(writers.result(0, 1), tmp_path)
    old, new = (path.with_name(f".writing-{name}-0123abcd") for name in ("old", "new"))
    for one in (old, new):
        shutil.copytree(path, one)
    aged(old)
    assert len(store.find(tmp_path)) == 1
    store.save(writers.result(1, 1), tmp_path)
    assert not old.exists() and new.exists() and len(store.find(tmp_path)) == 2


def test_a_run_that_was_moved_aside_comes_back(tmp_path: Path, writers: Any) -> None:
    """Its writer was killed between taking the old one away and putting the new one there."""
    path = store.save(writers.result(0, 1), tmp_path)
    aside = path.with_name(f".replaced-{path.name}-0123abcd")
    aged(path.rename(aside))
    store.save(writers.result(1, 1), tmp_path)
    assert store.load(path).record["size"]["parameters"] == 1 and not aside.exists()


def test_what_was_half_packed_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "packed" / "digits"
    folder.mkdir(parents=True)
    old, new = (folder / f".original.safetensors.{name}" for name in ("old", "new"))
    for one in (old, new):
        one.write_bytes(b"half")
    aged(old)
    sets.load("digits", tmp_path)
    assert not old.exists() and new.exists()
    assert len(sets.load("digits", tmp_path).x) == 1442
