"""Results on disk: the same comes back, nothing half-written stays, and what was changed is refused."""

import errno
import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.errors import BadFolder, BadOption
from continual.results import metrics, store
from continual.results.store import Result


def record(name="ewc", seeds=(0, 1), benchmark="split-digits", **options):
    return {
        "title": name,
        "strategy": [{"name": name, **options}],
        "protocol": {
            "benchmark": {"name": benchmark, "tasks": 3},
            "model": {"name": "mlp", "layers": [100, 100]},
            "training": {"epochs": 2, "optimizer": {"name": "adam", "lr": 0.001}},
            "seeds": list(seeds),
        },
        "stopped": [],
    }


def arrays(R=2, T=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "accuracy": rng.random((R, T + 1, T), np.float32),
        "trace": rng.random((R, 6, T), np.float32),
        "trace_task": np.repeat(np.arange(T), 2),
        "trace_step": np.arange(6) * 10,
        "loss": rng.random((R, 7)),
    }


def result(name="ewc", seed=0, **options):
    return Result(record(name, **options), arrays(seed=seed))


def hidden(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


# ---- a result


def test_a_result_gives_arrays_and_metrics():
    one = result()
    A = one.arrays["accuracy"].astype(np.float64)
    assert one.accuracy.dtype == np.float64
    np.testing.assert_array_equal(one.accuracy, A)
    np.testing.assert_array_equal(one.forgetting, metrics.forgetting(A))
    np.testing.assert_array_equal(one.average_accuracy, metrics.average_accuracy(A))
    np.testing.assert_array_equal(one.backward_transfer, metrics.backward_transfer(A))
    np.testing.assert_array_equal(one.forward_transfer, metrics.forward_transfer(A))
    np.testing.assert_array_equal(one.learning_accuracy, metrics.learning_accuracy(A))
    np.testing.assert_array_equal(one.average_incremental_accuracy, metrics.average_incremental_accuracy(A))
    gap = metrics.stability_gap(one.arrays["trace"], one.arrays["trace_task"])
    np.testing.assert_array_equal(one.metric("stability-gap"), gap)
    assert one.trace_step.tolist() == [0, 10, 20, 30, 40, 50]
    assert one.seeds == [0, 1]


def test_a_result_without_a_trace_says_so():
    one = Result(record(), {"accuracy": arrays()["accuracy"]})
    assert one.trace is None
    assert one.trace_task is None
    assert one.training_accuracy is None
    with pytest.raises(BadOption, match="measured while learning"):
        one.metric("minimum-accuracy")


def test_names():
    plain = record("ewc", strength=600)
    del plain["title"]
    plain["strategy"].append({"name": "finetune"})
    assert Result(plain, arrays()).name == "ewc:strength=600+finetune"
    assert Result(plain | {"title": "mine"}, arrays()).name == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": np.zeros((2, 3, 3))}, "accuracy has shape"),
        ({"accuracy": np.zeros((3, 4, 3))}, "accuracy has shape"),
        ({"accuracy": np.zeros(())}, "accuracy has shape"),
        ({"training_accuracy": np.zeros((2, 3, 3))}, "training_accuracy has shape"),
        ({"trace": np.zeros((2, 6, 4))}, "trace has shape"),
        ({"trace_task": np.zeros(5)}, "trace_task has shape"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Result(record(), arrays() | change)


def test_missing_parts_are_refused():
    with pytest.raises(ValueError, match="no array named accuracy"):
        Result(record(), {})
    incomplete = arrays()
    del incomplete["trace_task"]
    with pytest.raises(ValueError, match="a trace goes with trace_task"):
        Result(record(), incomplete)
    with pytest.raises(ValueError, match="no protocol"):
        Result({"strategy": [{"name": "a"}]}, arrays())
    with pytest.raises(ValueError, match="strategy is not a list"):
        Result(record() | {"strategy": []}, arrays())


# ---- there and back


def test_what_is_saved_comes_back(tmp_path):
    one = result()
    path = store.save(one, tmp_path)
    again = store.load(path)
    assert path == store.folder(tmp_path, one.record)
    assert sorted(os.listdir(path)) == ["arrays.safetensors", "run.json"]
    assert {name: again.record[name] for name in one.record} == one.record
    assert set(again.record) - set(one.record) == {"format", "written"}
    assert again.arrays.keys() == one.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        assert again.arrays[name].dtype == array.dtype


def test_nan_and_arrays_in_any_memory_order_come_back(tmp_path):
    accuracy = np.asfortranarray(arrays()["accuracy"].astype(np.float64))
    accuracy[1, 2:] = np.nan
    again = store.load(store.save(Result(record(), {"accuracy": accuracy}), tmp_path))
    np.testing.assert_array_equal(again.accuracy, accuracy)


def test_a_record_with_numpy_numbers_and_nan_is_written_as_json(tmp_path):
    odd = record() | {
        "time": {"seconds": np.float32(1.5), "loss": float("nan")},
        "steps": (np.int64(3), 4),
        "n": {1: 2},
    }
    again = store.load(store.save(Result(odd, arrays()), tmp_path)).record
    assert again["time"] == {"seconds": 1.5, "loss": None}
    assert again["steps"] == [3, 4]
    assert again["n"] == {"1": 2}


def test_the_same_run_is_found_and_another_is_not(tmp_path):
    store.save(result(strength=1), tmp_path)
    # what a run is recognised by: not the title, not the order of the options
    same = record(strength=1) | {"title": "other", "device": "cuda"}
    same["protocol"] = dict(reversed(same["protocol"].items()))
    assert store.lookup(tmp_path, same).record["title"] == "ewc"
    assert store.lookup(tmp_path, record(strength=2)) is None
    assert store.lookup(tmp_path, record(seeds=(0, 2), strength=1)) is None


def test_an_experiment_is_everything_but_the_strategy(tmp_path):
    paths = [store.folder(tmp_path, one) for one in (record("a"), record("b"), record("a", seeds=(5, 6)))]
    assert paths[0].parent == paths[1].parent != paths[2].parent
    assert len(set(paths)) == 3
    assert paths[0].parent.name.startswith("split-digits-mlp-")
    assert store.experiment(record("a")) == paths[0].parent.name


@settings(max_examples=60, deadline=None)
@given(name=st.text(min_size=1, max_size=80))
def test_folders_are_safe_whatever_the_names(tmp_path_factory, name):
    out = tmp_path_factory.getbasetemp()
    path = store.folder(out, record(name, benchmark=name))
    assert path.parent.parent == out
    for part in path.relative_to(out).parts:
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not part.startswith("-")
        assert len(part) < 64


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a*b", "der++", "my.pkg:Mine", "..", "CON", "Ω"])
def test_odd_names_are_saved_inside_the_folder(tmp_path, name):
    out = tmp_path / "runs"
    path = store.save(result(name), out)
    assert path.resolve().is_relative_to(out.resolve())
    assert store.load(path).record["strategy"][0]["name"] == name
    assert os.listdir(tmp_path) == ["runs"]


def test_names_that_look_alike_have_folders_of_their_own(tmp_path):
    alike = ["a.b", "a-b", "a:b", "A*B"]
    assert len({store.folder(tmp_path, record(name)) for name in alike}) == len(alike)


# ---- writing is all or nothing


def test_the_first_stays_unless_replaced(tmp_path):
    store.save(result(seed=1), tmp_path)
    path = store.save(result(seed=2), tmp_path)
    np.testing.assert_array_equal(store.load(path).accuracy, result(seed=1).accuracy)
    store.save(result(seed=3), tmp_path, replace=True)
    np.testing.assert_array_equal(store.load(path).accuracy, result(seed=3).accuracy)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_leaves_nothing_behind_and_the_old_in_place(tmp_path, monkeypatch, failing, replace):
    if replace:
        store.save(result(seed=1), tmp_path)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadFolder, match=r"cannot write the run to .*ewc.*: No space left on device"):
        store.save(result(seed=2), tmp_path, replace=replace)
    monkeypatch.undo()
    assert hidden(tmp_path) == []
    found = store.lookup(tmp_path, record())
    assert (found is not None) == replace
    if replace:
        np.testing.assert_array_equal(found.accuracy, result(seed=1).accuracy)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()])
def test_an_interrupted_rename_brings_the_old_back(tmp_path, monkeypatch, error):
    path = store.save(result(seed=1), tmp_path)
    rename = type(path).rename

    def interrupted(self, target):
        if self.name.startswith(".writing"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(store, "_exchanged", lambda one, other: False)  # as on a file system that cannot do it
    monkeypatch.setattr(type(path), "rename", interrupted)
    with pytest.raises((BadFolder, KeyboardInterrupt)):
        store.save(result(seed=2), tmp_path, replace=True)
    monkeypatch.undo()
    assert hidden(tmp_path) == []
    np.testing.assert_array_equal(store.load(path).accuracy, result(seed=1).accuracy)


def test_a_result_is_not_dropped_silently_for_a_damaged_one(tmp_path):
    path = store.save(result(), tmp_path)
    (path / "run.json").unlink()
    with pytest.raises(BadFolder, match=r"run\.json"):
        store.save(result(), tmp_path)
    store.save(result(), tmp_path, replace=True)
    assert store.load(path).name == "ewc"


def _write_many(out, barrier, seed, replace):
    for i in range(8):
        one = result(f"s{i}", seed=seed)
        barrier.wait()
        store.save(one, out, replace=replace)


@pytest.mark.parametrize("replace", [False, True])
def test_two_processes_that_save_the_same_run(tmp_path, replace):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_write_many, args=(tmp_path, barrier, seed, replace)) for seed in (1, 2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0]
    found = store.find(tmp_path)
    assert sorted(one.name for one in found) == [f"s{i}" for i in range(8)]
    whole = [result(seed=seed).accuracy.tolist() for seed in (1, 2)]
    assert all(one.accuracy.tolist() in whole for one in found)
    assert hidden(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "runs"
    blocked.write_text("a file where the folder should be")
    for attempt in (lambda: store.save(result(), blocked), lambda: store.check_writable(blocked)):
        with pytest.raises(BadFolder, match="runs"):
            attempt()


def test_checking_a_folder_leaves_nothing_behind(tmp_path):
    store.check_writable(tmp_path / "new" / "runs")
    assert list(tmp_path.iterdir()) == []


# ---- what was changed is refused


@pytest.mark.parametrize("file", ["run.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "foreign"])
def test_damage_is_noticed_and_the_file_named(tmp_path, file, damage):
    path = store.save(result(), tmp_path)
    target = path / file
    content = target.read_bytes()
    middle = content.index(b'"seeds"') + 20 if file == "run.json" else len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    changed = {"empty": b"", "cut": content[:-10], "flipped": flipped, "foreign": b"[1, 2]"}
    if damage == "missing":
        target.unlink()
    else:
        target.write_bytes(changed[damage])
    with pytest.raises(BadFolder, match=file.replace(".", r"\.")):
        store.load(path)


def test_every_byte_of_the_arrays_is_under_the_checksum(tmp_path):
    path = store.save(result(), tmp_path)
    content = (path / "arrays.safetensors").read_bytes()
    for i in range(0, len(content), 97):
        (path / "arrays.safetensors").write_bytes(content[:i] + bytes([content[i] ^ 128]) + content[i + 1 :])
        with pytest.raises(BadFolder, match="damaged"):
            store.load(path)


@pytest.mark.parametrize("change", [{"title": "better"}, {"device": "cuda"}, {"stopped": [1]}])
def test_an_edited_record_is_noticed(tmp_path, change):
    path = store.save(result(), tmp_path)
    content = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(content | change))
    with pytest.raises(BadFolder, match="changed after it was written"):
        store.load(path)


def test_another_format_is_refused(tmp_path):
    path = store.save(result(), tmp_path)
    content = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(BadFolder, match="has format 2; this version reads format 1"):
        store.load(path)


def test_arrays_of_another_run_are_refused(tmp_path):
    mine, other = store.save(result("a", seed=1), tmp_path), store.save(result("b", seed=2), tmp_path)
    shutil.copy(other / "arrays.safetensors", mine / "arrays.safetensors")
    with pytest.raises(BadFolder, match="damaged"):
        store.load(mine)


# ---- finding


def test_runs_are_found_from_above_in_the_order_of_writing(tmp_path):
    names = ["z", "a", "m"]
    paths = [store.save(result(name), tmp_path) for name in names]
    other = store.save(result("a", seeds=(8, 9)), tmp_path)
    assert [one.name for one in store.find(tmp_path)] == [*names, "a"]
    assert [one.name for one in store.find(paths[0].parent)] == names
    assert [one.name for one in store.find(paths[1])] == ["a"]
    assert [one.seeds for one in store.find(other.parent)] == [[8, 9]]


def test_unfinished_folders_are_passed_over(tmp_path):
    path = store.save(result(), tmp_path)
    for hidden_name in (".writing-ewc-0123", ".replaced-ewc-0123"):
        shutil.copytree(path, path.with_name(hidden_name))
    shutil.copytree(path.parent, tmp_path / ".trash")
    assert len(store.find(tmp_path)) == len(store.find(path.parent)) == 1


def test_a_damaged_run_is_not_passed_over(tmp_path):
    path = store.save(result(), tmp_path)
    store.save(result("other"), tmp_path)
    (path / "run.json").unlink()
    with pytest.raises(BadFolder, match=r"run\.json"):
        store.find(tmp_path)


def test_nothing_to_find_says_what_to_type(tmp_path):
    with pytest.raises(BadFolder, match="holds no runs; 'continual run'"):
        store.find(tmp_path)
    with pytest.raises(BadFolder, match=r"there is no folder .*missing.*'continual run'"):
        store.find(tmp_path / "missing")
    (tmp_path / "report.html").write_text("a report")
    with pytest.raises(BadFolder, match=r"report\.html is a file, and no folder of runs"):
        store.find(tmp_path / "report.html")


def test_a_run_that_was_put_in_another_ones_place_is_not_taken_for_it(tmp_path):
    """Its folder's name says what it is asked for by, and its record what it is."""
    one, other = result("ewc"), result("si")
    place = store.save(one, tmp_path)
    shutil.rmtree(store.save(other, tmp_path))
    shutil.copytree(place, store.folder(tmp_path, other.record))
    with pytest.raises(BadFolder, match="has another run, ewc, whose strategy is not the one that the folder's name"):
        store.lookup(tmp_path, other.record)
    with pytest.raises(BadFolder, match="has another run, ewc"):
        store.save(other, tmp_path)
    assert store.lookup(tmp_path, one.record).name == "ewc"
    store.save(other, tmp_path, replace=True)
    assert store.lookup(tmp_path, other.record).name == "si"
